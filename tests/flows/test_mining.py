"""From a recipe to records: ids, evidence, previews, ranks and provenance."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flows.miner
from catalog.lookup import transfer_candidates
from catalog.reader import Catalog
from catalog.verify import verify
from flows.datasets.dataset import Dataset, load_dataset
from flows.miner import Miner, MiningReport, mining_settings, small_effect
from flows.mining import mine, provenance
from flows.opening import open_model
from flows.ranks import check_method, check_ranks
from flows.recipe import Recipe, load_recipe
from pipeline.errors import InputError
from pipeline.images import as_tensor
from pipeline.models.contract import Denoiser
from pipeline.models.unet2d import UNet2DDenoiser
from tests.flows import tiny
from tests.pipeline.tiny_models import tiny_scheduler, tiny_unet


@pytest.fixture(scope="module")
def denoiser(tiny_model: Path) -> Denoiser:
    return open_model(str(tiny_model))


@pytest.fixture
def recipe(world: Path) -> Recipe:
    return load_recipe(world / "recipe.yaml")


@pytest.fixture
def data(recipe: Recipe, denoiser: Denoiser) -> Dataset:
    return load_dataset(recipe, denoiser.info.image_shape)


def check_every(recipe: Recipe, denoiser: Denoiser, data: Dataset) -> None:
    check_method(recipe, denoiser)
    for image in data.images:
        check_ranks(recipe, denoiser, image)


def rows(folder: Path, **equals: Any) -> list[dict[str, Any]]:
    with Catalog.open(folder) as catalog:
        return catalog.directions(**equals).to_pylist()


def test_every_image_region_space_and_kind_has_its_directions(mined: Path) -> None:
    every = rows(mined / "catalog")
    kinds = {("x", "singular"), ("x", "local"), ("h", "singular"), ("h", "joint"), ("h", "individual")}
    groups = {(row["image_id"], row["region"], row["space"], row["kind"]) for row in every}
    assert len(every) == len(groups) == 5 * len(tiny.REGIONS) * len(kinds)
    assert {group[2:] for group in groups} == kinds


def test_singular_directions_carry_residuals_and_derived_ones_their_parents(mined: Path) -> None:
    every = {row["direction_id"]: row for row in rows(mined / "catalog")}
    for row in every.values():
        assert row["gain"] > 0
        assert row["strength"] > 0
        if row["kind"] == "singular":
            assert row["residual"] >= 0
            assert row["sigma"] == pytest.approx(row["gain"], rel=0.05)
            assert row["parents"] == []
        else:
            assert 0 < row["kept_share"] <= 1
            for parent in row["parents"]:
                same = ("image_id", "region", "space")
                assert [every[parent][name] for name in same] == [row[name] for name in same]
                assert every[parent]["kind"] == "singular"
    assert all(row["roir_before"] is not None for row in every.values() if row["kind"] == "local")


def test_previews_show_minus_nothing_and_plus_side_by_side(mined: Path) -> None:
    with Catalog.open(mined / "catalog") as catalog:
        for key in catalog.directions(kind=["local", "individual"]).column("direction_id").to_pylist():
            minus, centre, plus = np.split(catalog.preview(key).astype(int), 3, axis=1)
            assert minus.shape == (16, 16, 3)
            assert np.abs(plus - centre).max() > 0
            assert np.abs(minus - centre).max() > 0


def test_vectors_have_unit_norm_and_images_their_round_trip(mined: Path) -> None:
    with Catalog.open(mined / "catalog") as catalog:
        for row in catalog.directions().to_pylist():
            assert np.linalg.norm(catalog.vector(row["direction_id"])) == pytest.approx(1, abs=1e-3)
        for image in catalog.images().to_pylist():
            assert np.isfinite(image["round_trip_psnr"])
            assert catalog.latent(image["image_id"]).shape == (3, 16, 16)


def test_ids_depend_on_settings_and_seed_and_on_nothing_else(
    world: Path, tiny_model: Path, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)

    def ids(**changes: Any) -> set[str]:
        recipe = load_recipe(tiny.recipe(world, tiny_model, **changes))
        data = load_dataset(recipe, denoiser.info.image_shape)
        chunk = Miner(recipe, denoiser).mine(data.images, MiningReport(world))
        return {direction.direction_id for direction in chunk.directions}

    base = ids()
    assert ids(name="renamed") == base
    assert not ids(seed=1) & base
    assert not ids(method={"tolerance": 0.2}) & base


def test_an_image_fails_alone_within_its_chunk(
    recipe: Recipe, denoiser: Denoiser, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_on_second(*asked: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise InputError("mask", "something", "something else")
        return tiny.quick_mine_image(*asked)

    calls: list[int] = []
    monkeypatch.setattr(flows.miner, "mine_image", fails_on_second)
    report = MiningReport(Path())
    chunk = Miner(recipe, denoiser).mine(data.images, report)
    assert [record.failure is None for record in chunk.images] == [True, False, True]
    assert report.failed == {data.images[1].source: "InputError: mask: found something; expected something else"}
    assert {direction.image_id for direction in chunk.directions} == {data.images[0].image_id, data.images[2].image_id}
    assert report.images == 2


def test_evidence_that_is_not_finite_is_a_failure_and_never_stored(
    recipe: Recipe, denoiser: Denoiser, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*asked: Any) -> Any:
        mined = tiny.quick_mine_image(*asked)
        object.__setattr__(mined.directions[0], "strength", float("nan"))
        return mined

    monkeypatch.setattr(flows.miner, "mine_image", broken)
    chunk = Miner(recipe, denoiser).mine(data.images[:1], MiningReport(Path()))
    assert chunk.directions == ()
    assert "not finite" in str(chunk.images[0].failure)


def test_an_inversion_that_diverges_is_a_failure(
    recipe: Recipe, denoiser: Denoiser, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (1, *denoiser.info.image_shape)
    monkeypatch.setattr(flows.miner, "invert_pictures", lambda *_: torch.full(shape, torch.nan))
    chunk = Miner(recipe, denoiser).mine(data.images[:1], MiningReport(Path()))
    assert "DDIM inversion" in str(chunk.images[0].failure)


def test_an_image_that_cannot_be_inverted_fails_alone(
    recipe: Recipe, denoiser: Denoiser, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks_on_second(model: Denoiser, x0: torch.Tensor, *asked: Any) -> torch.Tensor:
        if any(torch.equal(x, second) for x in x0):
            raise ZeroDivisionError("alpha = 0")
        return real(model, x0, *asked)

    second, real = as_tensor(data.images[1].image), flows.miner.invert_pictures
    monkeypatch.setattr(flows.miner, "invert_pictures", breaks_on_second)
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)
    report = MiningReport(Path())
    chunk = Miner(recipe, denoiser).mine(data.images, report)
    assert report.failed == {data.images[1].source: "ZeroDivisionError: alpha = 0"}
    assert [record.failure is None for record in chunk.images] == [True, False, True]


def test_records_that_no_catalog_would_take_fail_their_image_alone(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_effect(*asked: Any) -> Any:
        mined = tiny.quick_mine_image(*asked)
        calls.append(1)
        if len(calls) == 2:
            object.__setattr__(mined.directions[0], "effect", torch.zeros(3, 16, 16))
        return mined

    calls: list[int] = []
    monkeypatch.setattr(flows.miner, "mine_image", without_effect)
    assert tiny.run("mine", world / "recipe.yaml", "--out", world / "catalog", "--json") == 1
    report = tiny.parsed(capsys.readouterr().out)
    assert (report["images"], list(report["failed"])) == (2, ["b.jpg"])
    assert "effect: found norm 0" in report["failed"]["b.jpg"]
    assert verify(world / "catalog").ok


def test_a_timestep_that_is_noise_alone_is_refused_by_name_before_any_work(
    recipe: Recipe, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = UNet2DDenoiser(tiny_unet(size=16), tiny_scheduler(rescale_betas_zero_snr=True))
    last = recipe.model_copy(update={"method": recipe.method.model_copy(update={"timestep": 0.98})})
    assert noisy.alpha_sigma(49)[0] == 0.0
    monkeypatch.setattr(flows.miner, "invert_pictures", None)
    with pytest.raises(InputError, match=r"recipe: method.timestep: found 0.98, .* noise alone"):
        mine(last, tmp_path / "catalog", noisy, data)
    assert not (tmp_path / "catalog").exists()


METHODS = {
    "inside": {"loco": {"rank": 1, "null_rank": 2, "variant": "inside"}},
    "no null space": {"loco": {"rank": 1, "null_rank": 0}},
    "orthogonal": {
        "jive": {"rank": 2, "joint_rank": 1, "individual_rank": 1, "orthogonal_individuals": True},
        "edit": {"steps": 4, "eta": 1.0, "eta_share": 0.5},
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_sound_catalog_in_which_both_spaces_can_be_asked(
    method: str, world: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = {"kind": "folder", "path": "photos", "masks": "masks", "limit": 2}
    written = tiny.recipe(world, tiny_model, dataset=dataset, method=METHODS[method])
    assert tiny.run("mine", written, "--out", world / "catalog") == 0
    assert verify(world / "catalog").ok
    capsys.readouterr()
    assert tiny.run("homogeneity", world / "catalog", "--region", "eye", "--json") == 0
    assert {found["space"] for found in tiny.parsed(capsys.readouterr().out)["homogeneity"]} == {"x", "h"}
    with Catalog.open(world / "catalog") as catalog:
        image, mask = catalog.image(catalog.directions().column("image_id")[0].as_py()), np.zeros((16, 16), bool)
        mask[4:8, 5:9] = True
        assert {found.space for found in transfer_candidates(catalog, image, mask, "eye")} == {"x", "h"}


def test_the_recipes_method_reaches_the_pipeline(recipe: Recipe, denoiser: Denoiser, data: Dataset) -> None:
    parts: dict[str, Any] = {
        "loco": {"variant": "inside"},
        "jive": {"orthogonal_individuals": True},
        "edit": {"eta": 1.0, "eta_share": 0.5},
    }
    settings = mining_settings(recipe.model_copy(update={"method": _method(recipe, **parts), "seed": 7}), denoiser)
    assert settings.loco is not None and settings.loco.variant == "inside"
    assert settings.jive is not None and settings.jive.orthogonal_individuals
    assert (settings.decode.eta, settings.decode.eta_share, settings.decode.seed) == (1.0, 0.5, 7)
    # Three blocks of rank 2 leave room for a joint rank of 6 less one individual rank, or less all three.
    for orthogonal, most in ((False, 5), (True, 3)):
        for rank in (most, most + 1):
            jive = {"joint_rank": rank, "orthogonal_individuals": orthogonal}
            asked = recipe.model_copy(update={"method": _method(recipe, jive=jive)})
            with nullcontext() if rank == most else pytest.raises(InputError, match=f"at most {most}"):
                check_every(asked, denoiser, data)


def test_ranks_left_to_a_rule_reach_the_records_with_the_rules_name(
    recipe: Recipe, denoiser: Denoiser, data: Dataset
) -> None:
    auto = recipe.model_copy(update={"method": _method(recipe, jive={"joint_rank": "auto", "individual_rank": "auto"})})
    check_every(auto, denoiser, data)
    for asked, rules in ((recipe, {"given"}), (auto, {auto.method.jive.rank_rule})):
        records = Miner(asked, denoiser).mine(data.images[:1], MiningReport(Path())).directions
        split = [r for r in records if r.kind in ("joint", "individual")]
        assert split and {r.rank_rule for r in split} == rules
        assert len({r.joint_rank for r in split}) == 1
        assert all((r.individual_rank or 0) > r.rank for r in split if r.kind == "individual")
        assert {r.rank_rule for r in records if r.kind in ("singular", "local")} == {None}


def test_an_exact_round_trip_has_a_finite_psnr(
    recipe: Recipe, denoiser: Denoiser, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)
    monkeypatch.setattr(flows.miner, "round_trip_psnr", lambda x0, back: torch.full((len(x0),), torch.inf))
    chunk = Miner(recipe, denoiser).mine(data.images, MiningReport(Path()))
    assert all(np.isfinite(record.round_trip_psnr) for record in chunk.images)


def test_chunks_cut_the_data_set_in_its_own_order(data: Dataset) -> None:
    cut = list(data.chunks(2))
    assert [len(part) for part in cut] == [2, 1]
    assert [item.source for part in cut for item in part] == [image.source for image in data.images]


def test_fractions_of_the_schedule_become_its_indices(recipe: Recipe, denoiser: Denoiser) -> None:
    settings = mining_settings(recipe, denoiser)
    assert denoiser.info.train_timesteps == 50
    assert settings.timestep == round(0.35 * 50)
    assert settings.decode.h_window == (round(0.35 * 50), 0)


def test_a_model_without_a_bottleneck_is_mined_in_x_space_only(
    recipe: Recipe, denoiser: Denoiser, data: Dataset, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = open_model(str(tiny_model))
    monkeypatch.setattr(flat, "info", type(flat.info)(**{**vars(flat.info), "bottleneck_shape": None}))
    assert mining_settings(recipe, flat).jive is None
    assert list(provenance(recipe, flat, data).spaces) == ["x"]
    check_every(recipe.model_copy(update={"method": _method(recipe, jive={"individual_rank": 99})}), flat, data)


def _method(recipe: Recipe, **changes: Any) -> Any:
    method = recipe.method
    parts = {name: getattr(method, name).model_copy(update=value) for name, value in changes.items()}
    return method.model_copy(update=parts)


def test_the_largest_ranks_that_fit_are_accepted_and_one_more_is_not(
    recipe: Recipe, denoiser: Denoiser, data: Dataset
) -> None:
    smallest = min(int(mask.sum()) for image in data.images for mask in image.masks.values()) * 3
    for rank, fits in ((smallest, True), (smallest + 1, False)):
        asked = recipe.model_copy(update={"method": _method(recipe, loco={"rank": rank})})
        if fits:
            check_every(asked, denoiser, data)
        else:
            with pytest.raises(InputError, match=f"at most {smallest}"):
                check_every(asked, denoiser, data)


def test_effects_have_their_documented_scale() -> None:
    for side in (8, 16, 64):
        effect = small_effect(torch.randn(3, side, side, generator=torch.Generator().manual_seed(side)))
        assert effect.shape == (3, 16, 16)
        assert np.linalg.norm(effect) == pytest.approx(1, abs=1e-5)
    assert not small_effect(torch.zeros(3, 16, 16)).any()


def test_a_memory_budget_too_small_for_the_model_is_one_error_before_any_image(
    recipe: Recipe, denoiser: Denoiser
) -> None:
    method = recipe.method.model_copy(update={"memory": 1000})
    with pytest.raises(InputError, match="memory"):
        Miner(recipe.model_copy(update={"method": method}), denoiser)
