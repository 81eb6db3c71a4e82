"""Which model, version and class a recipe means: from the recipe to the catalog's manifest, and back to the model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import ScoreSdeVeScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

import flows.editing
import flows.miner
import flows.work
from catalog.reader import Catalog
from flows.datasets.dataset import load_dataset
from flows.editing import model_of
from flows.mining import mine
from flows.model_choice import ModelChoice
from flows.opening import model_place, open_model
from flows.recipe import Recipe, load_recipe, parse_recipe
from flows.run_settings import RunSettings
from flows.runners.contract import run_here
from flows.running import run_mining
from flows.work import Desk, Job, Work, desk_of
from pipeline.errors import InputError, ModelError
from pipeline.models.contract import Denoiser
from pipeline.models.files import Origin
from tests.flows import tiny
from tests.pipeline.tiny_models import tiny_unet

COMMIT = "c" * 40
HERE = RunSettings(workers=1)
CONTENT: dict[str, Any] = {"name": "r", "dataset": {"kind": "builtin"}, "regions": ["mouth"]}
Capture = pytest.CaptureFixture[str]


def recipe_of(model: object) -> Recipe:
    return parse_recipe({**CONTENT, "model": model})


def test_a_name_alone_is_the_reference() -> None:
    assert recipe_of("owner/name").model == ModelChoice(reference="owner/name")
    assert parse_recipe(CONTENT).model.reference == "builtin"


def test_only_what_differs_from_the_default_enters_the_fingerprint() -> None:
    plain = recipe_of("owner/name")
    assert plain.model_dump(mode="json")["model"] == "owner/name"
    same = recipe_of({"reference": "owner/name", "revision": None, "class_label": None})
    assert same.fingerprint() == plain.fingerprint()
    others = [{"reference": "owner/name", **more} for more in ({"revision": "v1"}, {"class_label": 0})]
    assert len({plain.fingerprint(), *(recipe_of(other).fingerprint() for other in others)}) == 3


CHOICES = st.builds(
    ModelChoice,
    reference=st.text("abc/.@", min_size=1),
    revision=st.none() | st.text("abc123", min_size=1),
    class_label=st.none() | st.integers(0, 2000),
)


@settings(max_examples=100, deadline=None)
@given(CHOICES)
def test_a_manifest_gives_back_the_model_of_its_recipe(choice: ModelChoice) -> None:
    written = json.dumps(recipe_of(choice.model_dump()).model_dump(mode="json")["model"])
    assert recipe_of(json.loads(written)).model == choice


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"reference": "a/b", "revison": "v1"}, "Did you mean 'revision'"),
        ({"revision": "v1"}, r"model\.reference"),
        ({"reference": "a/b", "class_label": -1}, "class_label"),
        ({"reference": "a/b", "class_label": "cat"}, "class_label"),
        ({"reference": "builtin", "revision": "v1"}, "no revision of the built-in model"),
        ("", "reference"),
        (5, "recipe: model: found 5; expected a name or a mapping"),
        (["a/b"], "expected a name or a mapping"),
        (None, "expected a name or a mapping"),
    ],
)
def test_a_model_that_cannot_be_meant_is_one_clear_error(model: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe_of(model)


def written(folder: Path, model: object) -> Recipe:
    """The recipe of `folder`/recipe.yaml with this model."""
    path = tiny.recipe(folder, Path("model"))
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "model": model}))
    return load_recipe(path)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional model of three classes."""
    return tiny.model(tmp_path_factory.mktemp("classes") / "model", num_class_embeds=3)


@pytest.fixture
def mined(classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalog of one picture, mined with class 2 of that model."""
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)
    tiny.photographs(tmp_path, 1)
    run_mining(written(tmp_path, {"reference": str(classes), "class_label": 2}), tmp_path / "catalog", HERE)
    return tmp_path / "catalog"


def test_the_manifest_names_every_file_of_the_model_and_its_class(mined: Path, classes: Path) -> None:
    with Catalog.open(mined) as catalog:
        provenance = catalog.manifest.provenance
    assert provenance.recipe["model"] == {"reference": str(classes), "class_label": 2}
    model = provenance.model
    assert (model["reference"], model["commit"]) == (str(classes), None)
    assert model["fingerprint"] == open_model(ModelChoice(reference=str(classes), class_label=2)).info.fingerprint
    assert set(model["files"]) == {
        "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    for name, record in model["files"].items():
        data = (classes / name).read_bytes()
        assert record == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def test_a_catalog_opens_its_model_with_the_class_it_was_mined_with(mined: Path, classes: Path) -> None:
    with Catalog.open(mined) as catalog:
        expected = catalog.manifest.provenance.model["fingerprint"]
        assert model_of(catalog)[0].info.fingerprint == expected
        assert model_of(catalog, str(classes))[0].info.fingerprint == expected


def test_a_catalog_asks_for_the_commit_it_was_mined_at(mined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ModelChoice] = []

    def opened(choice: ModelChoice) -> Denoiser:
        asked.append(choice)
        raise ModelError("model", "nothing", "something")

    monkeypatch.setattr(flows.editing, "open_model", opened)
    with Catalog.open(mined) as catalog:
        hub = {"reference": "owner/name@main", "class_label": 2}
        provenance = catalog.manifest.provenance
        monkeypatch.setitem(provenance.recipe, "model", hub)
        monkeypatch.setitem(provenance.model, "commit", COMMIT)
        for place in (None, "elsewhere"):
            with pytest.raises(ModelError):
                model_of(catalog, place)
    assert asked == [
        ModelChoice(reference="owner/name", revision=COMMIT, class_label=2),
        ModelChoice(reference="elsewhere", class_label=2),
    ]


def test_workers_open_the_commit_that_their_parent_opened(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.photographs(tmp_path, 5)
    recipe = load_recipe(tiny.recipe(tmp_path, tiny_model))
    denoiser = open_model(str(tiny_model))
    assert denoiser.origin is not None
    denoiser.origin = replace(denoiser.origin, commit=COMMIT)
    jobs: list[Job] = []

    def noted(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
        jobs.append(desk.job)
        yield from run_here(desk, works)

    mine(recipe, tmp_path / "out", denoiser, load_dataset(recipe, denoiser.info.image_shape), noted)
    assert jobs[0].commit == COMMIT
    asked: list[ModelChoice] = []

    def opened(choice: ModelChoice, device: str | None) -> Denoiser:
        asked.append(choice)
        return denoiser

    monkeypatch.setattr(flows.work, "open_model", opened)
    desk_of(jobs[0])
    assert asked == [ModelChoice(reference=str(tiny_model), revision=COMMIT)]


def test_a_folder_beside_the_recipe_comes_first_and_keeps_its_class(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    tiny.photographs(tmp_path, 1)
    recipe = written(tmp_path, {"reference": "model", "class_label": 1})
    assert model_place(recipe) == ModelChoice(reference=str(tmp_path / "model"), class_label=1)
    assert model_place(recipe_of({"reference": "owner/name", "revision": "v1"})).revision == "v1"


def test_inspect_takes_a_class_and_prints_the_files(classes: Path, capsys: Capture) -> None:
    assert tiny.run("inspect", classes) != 0
    assert "class_label" in capsys.readouterr().err
    assert tiny.run("inspect", classes, "--class-label", 1, "--json") == 0
    info = tiny.parsed(capsys.readouterr().out)
    assert isinstance(info, dict)
    assert info["commit"] is None and len(info["files"]) == 4
    assert tiny.run("inspect", classes, "--class-label", 1) == 0
    assert "unet/config.json" in capsys.readouterr().out
    assert tiny.run("inspect", classes, "--class-label", 1, "--revision", "v1") != 0
    assert "only Hub models have revisions" in " ".join(capsys.readouterr().err.split())
    assert tiny.run("inspect", "") != 0
    assert "an empty name" in capsys.readouterr().err


def test_a_model_made_in_memory_has_no_origin(tiny_model: Path) -> None:
    loaded = open_model(str(tiny_model))
    assert isinstance(loaded.origin, Origin)
    assert loaded.differentiable().origin is loaded.origin


def test_a_variance_exploding_model_is_mined_end_to_end(tmp_path: Path) -> None:
    """NCSN++ blocks at the root of a folder, as google/ncsnpp-*: both spaces, finite evidence, a closed round trip."""
    unet = tiny_unet(
        size=8, block_out_channels=(8,), down_block_types=("SkipDownBlock2D",), up_block_types=("SkipUpBlock2D",),
        time_embedding_type="fourier", center_input_sample=True, norm_num_groups=None,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.startswith("conv_out") or ".skip_conv" in name:
                parameter.mul_(0.1)  # as tame as a trained network
    unet.save_pretrained(tmp_path / "model")
    ScoreSdeVeScheduler(num_train_timesteps=100, sigma_max=50.0).save_pretrained(tmp_path / "model")
    tiny.photographs(tmp_path, 1)
    report = run_mining(written(tmp_path, "model"), tmp_path / "catalog", HERE)
    assert (report.images, report.failed) == (1, {})
    with Catalog.open(tmp_path / "catalog") as catalog:
        rows = catalog.directions().to_pylist()
        (image,) = catalog.images().to_pylist()
    assert {row["space"] for row in rows} == {"x", "h"}
    assert all(math.isfinite(row["gain"]) and row["gain"] > 0 for row in rows)
    assert image["round_trip_psnr"] > 20
