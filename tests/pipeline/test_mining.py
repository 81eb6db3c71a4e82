from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, get_args

import pytest
import torch

import pipeline.mining
import pipeline.strengths
from pipeline.editing import DecodeSettings, decode
from pipeline.errors import InputError
from pipeline.jacobian import jacobian
from pipeline.jive import jive
from pipeline.jive_ranks import Rule
from pipeline.metrics import rms_inside
from pipeline.mining import Direction, JiveSettings, LocoSettings, MinedImage, MiningSettings, check_masks, mine_image
from pipeline.strengths import STRENGTH_LIMIT, VISIBLE_RMS, linear_strength
from tests.pipeline.tiny_models import tiny_denoiser, tiny_image

ONE_LEVEL = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
DENOISER = tiny_denoiser(dtype=torch.float64, **ONE_LEVEL)
X_T = 0.3 * tiny_image(DENOISER)[0]
SETTINGS = MiningSettings(
    timestep=18,
    loco=LocoSettings(rank=2, null_rank=4),
    jive=JiveSettings(rank=3, joint_rank=2, individual_rank=2),
    decode=DecodeSettings(steps=2),
    tolerance=1e-3,
)


def masks() -> dict[str, torch.Tensor]:
    left, right = torch.zeros(8, 8, dtype=torch.bool), torch.zeros(8, 8, dtype=torch.bool)
    left[1:4, 1:4] = True
    right[4:7, 3:7] = True
    return {"left": left, "right": right}


@pytest.fixture(scope="module")
def mined() -> MinedImage:
    with torch.no_grad():
        return mine_image(DENOISER, X_T, masks(), SETTINGS)


def of(mined: MinedImage, space: str, kind: str) -> list[Direction]:
    return [d for d in mined.directions if (d.space, d.kind) == (space, kind)]


@pytest.fixture(scope="module")
def dense() -> torch.Tensor:
    """d f / d x_t as a matrix (out, in)."""
    operator = jacobian(DENOISER.differentiable(), X_T, SETTINGS.timestep, "x0/x")
    eye = torch.eye(X_T.numel(), dtype=torch.float64).view(-1, *X_T.shape)
    return operator.matvec(eye).flatten(1).T


def test_singular_directions_are_those_of_the_dense_masked_jacobian(mined: MinedImage, dense: torch.Tensor) -> None:
    for region, mask in masks().items():
        rows = mask.expand(3, 8, 8).flatten()
        _, sigma, vt = torch.linalg.svd(dense * rows[:, None], full_matrices=False)
        for d in of(mined, "x", "singular"):
            if d.region == region:
                assert d.converged
                assert d.sigma == pytest.approx(float(sigma[d.rank]), rel=1e-3)
                assert abs(float(vt[d.rank] @ d.vector.flatten())) > 0.99


def test_gain_and_leakage_are_measured_inside_and_outside(mined: MinedImage, dense: torch.Tensor) -> None:
    assert mined.directions
    for d in mined.directions:
        if d.space != "x":
            continue
        effect = (dense @ d.vector.flatten()).view(X_T.shape)
        mask = masks()[d.region]
        torch.testing.assert_close(d.effect, effect)
        assert d.gain == pytest.approx(float((effect * mask).norm()))
        assert d.leakage == pytest.approx(float((effect * ~mask).norm()))


def test_local_directions_lie_in_the_null_space_and_leak_less_than_their_parents(mined: MinedImage) -> None:
    parents = {(d.region, d.rank): d for d in of(mined, "x", "singular")}
    local = of(mined, "x", "local")
    assert local
    for d in local:
        assert d.kept_share is not None
        assert 0.05 <= d.kept_share <= 1.0
        parent = parents[d.region, d.parents[0]]
        assert d.roir_before == pytest.approx(parent.leakage / parent.gain)
        assert abs(float((d.vector * parent.vector).sum())) == pytest.approx(d.kept_share, rel=1e-6)
        assert d.leakage < parent.leakage


def test_every_vector_has_unit_norm_and_canonical_sign(mined: MinedImage) -> None:
    for d in mined.directions:
        assert float(d.vector.norm()) == pytest.approx(1.0)
        if d.kind != "local":
            assert float(d.vector.flatten()[d.vector.abs().argmax()]) > 0


def test_components_come_per_region_in_h_space_and_never_for_everything_else(mined: MinedImage) -> None:
    for kind in ("singular", "joint", "individual"):
        found = of(mined, "h", kind)
        assert {d.region for d in found} == {"left", "right"}
        assert all(tuple(d.vector.shape) == DENOISER.info.bottleneck_shape for d in found)
        assert max(d.rank for d in found) < 2
    for d in of(mined, "h", "individual"):
        assert d.parents == (0, 1)
        assert 0 < (d.kept_share or 0) <= 1


def test_joint_and_individual_row_spaces_are_orthogonal(mined: MinedImage) -> None:
    for region in masks():
        joint = torch.stack([d.vector.flatten() for d in of(mined, "h", "joint") if d.region == region])
        own = torch.stack([d.vector.flatten() for d in of(mined, "h", "individual") if d.region == region])
        assert float((joint @ own.T).abs().max()) < 1e-6


def test_visible_strength_makes_the_decoded_change_visible(mined: MinedImage) -> None:
    reference = decode(DENOISER, X_T[None], SETTINGS.timestep, SETTINGS.decode)
    checked = 0
    for d in mined.directions:
        if d.rank or d.kind == "joint" or d.strength >= STRENGTH_LIMIT[d.space]:
            continue
        step = d.strength * d.vector[None]
        shifted, h_shift = (X_T[None] + step, None) if d.space == "x" else (X_T[None], step)
        edited = decode(DENOISER, shifted, SETTINGS.timestep, SETTINGS.decode, h_shift)
        change = float(rms_inside(edited - reference, masks()[d.region])[0])
        assert change == pytest.approx(VISIBLE_RMS, rel=0.25)
        assert d.roir is not None
        assert math.isfinite(d.roir)
        checked += 1
    assert checked >= 2


def test_only_first_directions_that_edit_their_region_have_a_decoded_roir(mined: MinedImage) -> None:
    assert all((d.roir is not None) == (d.rank == 0 and d.kind != "joint") for d in mined.directions)


def test_mining_is_seeded(mined: MinedImage) -> None:
    with torch.no_grad():
        again = mine_image(DENOISER, X_T, masks(), SETTINGS)
    assert again.products == mined.products
    for one, two in zip(mined.directions, again.directions, strict=True):
        assert torch.equal(one.vector, two.vector)
        assert one.strength == two.strength


def test_how_the_search_for_the_visible_strength_ended_is_kept_where_there_was_one(mined: MinedImage) -> None:
    for d in mined.directions:
        ends = (d.strength_reached, d.strength_limited)
        if d.rank or d.kind == "joint":
            assert ends == (None, None)
            continue
        assert ends in ((True, False), (False, True), (False, False))
        assert d.strength == STRENGTH_LIMIT[d.space] or not d.strength_limited
    assert any(d.strength_reached for d in mined.directions)


@pytest.mark.parametrize("reach", [1e9, 1e-9])
def test_a_search_ends_at_the_target_or_at_its_limit(reach: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.strengths, "STRENGTH_LIMIT", {"x": reach, "h": reach})
    with torch.no_grad():
        found = mine_image(DENOISER, X_T, masks(), dataclasses.replace(SETTINGS, jive=None))
    first = [d for d in found.directions if d.rank == 0]
    assert all(bool(d.strength_limited) == (reach < 1) for d in first)
    assert all(d.roir is not None and math.isfinite(d.roir) for d in first if d.strength_reached)


def test_joint_and_individual_directions_say_whether_their_split_settled(
    mined: MinedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for d in of(mined, "h", "joint") + of(mined, "h", "individual"):
        assert d.converged is True
        assert d.iterations is not None and 1 < d.iterations <= 1000
        assert d.change is not None and d.change <= 1e-6
    monkeypatch.setattr(pipeline.mining, "jive", functools.partial(jive, max_iterations=1))
    with torch.no_grad():
        stopped = mine_image(DENOISER, X_T, masks(), dataclasses.replace(SETTINGS, loco=None, strength=1.0))
    ends = {(d.kind, d.converged, d.iterations) for d in stopped.directions if d.kind != "singular"}
    assert ends == {("joint", False, 1), ("individual", False, 1)}
    assert all(d.change is not None and d.change > 1e-6 for d in stopped.directions if d.kind != "singular")


@pytest.mark.parametrize("rule", get_args(Rule))
@pytest.mark.parametrize("given", ["both", "joint", "individual", "none"])
def test_ranks_left_open_are_chosen_and_said_to_be(given: str, rule: Rule) -> None:
    ranks = dataclasses.replace(
        SETTINGS.jive or JiveSettings(),
        joint_rank=1 if given in ("both", "joint") else "auto",
        individual_rank=1 if given in ("both", "individual") else "auto",
        rank_rule=rule,
    )
    asked = dataclasses.replace(SETTINGS, loco=None, jive=ranks, strength=1.0)
    with torch.no_grad():
        found = [d for d in mine_image(DENOISER, X_T, masks(), asked).directions if d.kind != "singular"]
        again = [d for d in mine_image(DENOISER, X_T, masks(), asked).directions if d.kind != "singular"]
    assert {d.rank_rule for d in found} == {"given" if given == "both" else rule}
    if given in ("both", "joint"):
        assert {d.joint_rank for d in found} == {1}
    if given in ("both", "individual"):
        assert {d.individual_rank for d in found} == {1}
    for region in masks():
        own = [d for d in found if (d.region, d.kind) == (region, "individual")]
        assert [d.rank for d in own] == list(range(own[0].individual_rank or 0))
    assert all(torch.equal(a.vector, b.vector) for a, b in zip(found, again, strict=True))


def test_individuals_of_different_regions_are_orthogonal_where_asked() -> None:
    ranks = dataclasses.replace(SETTINGS.jive or JiveSettings(), orthogonal_individuals=True)
    with torch.no_grad():
        found = mine_image(DENOISER, X_T, masks(), dataclasses.replace(SETTINGS, loco=None, jive=ranks, strength=1.0))
    left, right = (
        torch.stack([d.vector.flatten() for d in of(found, "h", "individual") if d.region == region])
        for region in masks()
    )
    assert float((left @ right.T).abs().max()) < 1e-6


def test_a_given_strength_is_kept_and_nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    only_x = dataclasses.replace(SETTINGS, jive=None, strength=2.5, loco=LocoSettings(rank=1, null_rank=2))
    monkeypatch.setattr(pipeline.strengths, "decode", None)
    with torch.no_grad():
        found = mine_image(DENOISER, X_T, masks(), only_x)
    assert {(d.strength, d.roir, d.strength_reached) for d in found.directions} == {(2.5, None, None)}
    assert found.products.total > 0


def test_without_a_null_space_the_singular_directions_stand_in_as_local_ones() -> None:
    plain = dataclasses.replace(SETTINGS, jive=None, strength=1.0, loco=LocoSettings(rank=2, null_rank=0))
    for variant in ("projected", "inside"):
        loco = dataclasses.replace(plain.loco or LocoSettings(), variant=variant)
        with torch.no_grad():
            found = mine_image(DENOISER, X_T, masks(), dataclasses.replace(plain, loco=loco))
        singular, local = of(found, "x", "singular"), of(found, "x", "local")
        assert len(singular) == len(local) == 4
        for parent, d in zip(singular, local, strict=True):
            torch.testing.assert_close(d.vector, parent.vector)
            assert (d.region, d.rank, d.parents) == (parent.region, parent.rank, (parent.rank,))
            assert d.kept_share == pytest.approx(1.0)
            assert (d.gain, d.leakage) == pytest.approx((parent.gain, parent.leakage))
            assert d.roir_before == pytest.approx(d.leakage / d.gain)


def test_inside_the_null_space_directions_gain_at_least_as_much_and_carry_all_evidence(mined: MinedImage) -> None:
    inside = dataclasses.replace(SETTINGS, jive=None, loco=LocoSettings(rank=2, null_rank=4, variant="inside"))
    with torch.no_grad():
        found = mine_image(DENOISER, X_T, masks(), inside)
    for one, two in zip(of(found, "x", "singular"), of(mined, "x", "singular"), strict=True):
        assert torch.equal(one.vector, two.vector)
    local = of(found, "x", "local")
    projected = {(d.region, d.rank): d for d in of(mined, "x", "local")}
    assert {d.rank for d in local if d.region == "left"} == {0, 1}
    for d in local:
        assert (d.kept_share, d.parents, d.converged, d.roir_before) == (1.0, (0, 1), True, None)
        assert d.sigma == pytest.approx(d.gain, rel=1e-6)
        assert d.residual is not None and d.residual <= inside.tolerance
        assert float(d.vector.norm()) == pytest.approx(1.0)
        if d.rank == 0:
            assert d.gain >= projected[d.region, 0].gain * (1 - 1e-6)
            assert (d.strength_reached, d.strength_limited) != (None, None)


def test_linear_strength_is_bounded_and_inverse_to_the_gain() -> None:
    mask = masks()["left"]
    weak, strong = (
        Direction("left", "x", "singular", 0, X_T, torch.ones(1), effect=X_T, gain=gain) for gain in (1.0, 4.0)
    )
    assert linear_strength(weak, mask) == pytest.approx(4 * linear_strength(strong, mask))
    assert linear_strength(dataclasses.replace(weak, gain=0.0), mask) == STRENGTH_LIMIT["x"]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(8, 8, dtype=torch.bool), "an empty mask"),
        (torch.ones(8, 8, dtype=torch.bool), "covers the whole image"),
        (torch.ones(4, 8, dtype=torch.bool), "the model's image size"),
        (torch.ones(8, 8, dtype=torch.uint8), "torch.bool"),
    ],
)
def test_masks_that_select_nothing_or_everything_or_do_not_fit_are_refused(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_masks({"eye": mask}, (8, 8))
    with pytest.raises(InputError, match="at least one region"):
        check_masks({}, (8, 8))


def test_a_rank_larger_than_the_region_is_refused() -> None:
    large = dataclasses.replace(SETTINGS, loco=LocoSettings(rank=28, null_rank=1))
    with pytest.raises(InputError, match="rank of left: found 28; expected 1 to 27"), torch.no_grad():
        mine_image(DENOISER, X_T, masks(), large)


def starts(seed: int) -> dict[str, torch.Tensor]:
    """Three start vectors for each space that have nothing to do with the answer."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": DENOISER.info.image_shape, "h": DENOISER.info.bottleneck_shape or ()}
    return {space: torch.randn((3, *shape), generator=generator) for space, shape in shapes.items()}


def spans(mined: MinedImage) -> dict[tuple[str, str, int], list[Direction]]:
    """Singular directions by region, space and the first rank of their cluster; clusters that go on are left out."""
    found: dict[tuple[str, str, int], list[Direction]] = {}
    for d in mined.directions:
        if d.kind == "singular" and d.cluster_first is not None:
            found.setdefault((d.region, d.space, d.cluster_first), []).append(d)
    return {key: own for key, own in found.items() if own[-1].cluster_last == own[-1].rank}


@pytest.mark.parametrize("kind", ["near", "far"])
def test_a_warm_start_changes_nothing_beyond_the_tolerance(kind: str, mined: MinedImage) -> None:
    singular = [d for d in mined.directions if d.kind == "singular"]
    near = {space: torch.stack([d.vector for d in singular if d.space == space]) for space in ("x", "h")}
    with torch.no_grad():
        warm = mine_image(DENOISER, X_T, masks(), SETTINGS, near if kind == "near" else starts(0))
    assert [(d.region, d.space, d.kind, d.rank) for d in warm.directions if d.kind == "singular"] == [
        (d.region, d.space, d.kind, d.rank) for d in singular
    ]
    for one, two in zip(singular, (d for d in warm.directions if d.kind == "singular"), strict=True):
        assert two.converged and two.checked
        assert two.sigma == pytest.approx(one.sigma, abs=2 * SETTINGS.tolerance * float(one.spectrum[0]))
    cold_spans, warm_spans = spans(mined), spans(warm)
    alike = cold_spans.keys() & warm_spans.keys()
    assert len(alike) >= 4
    for key in alike:
        one, two = (torch.stack([d.vector.flatten() for d in own]) for own in (cold_spans[key], warm_spans[key]))
        bound = sum(float(own[key][0].angle or 0.0) for own in (cold_spans, warm_spans))
        assert len(one) == len(two)
        assert bound < math.pi / 2
        assert float(torch.linalg.matrix_norm(two - (two @ one.T) @ one, 2)) <= math.sin(bound) + 1e-9
    if kind == "near":
        assert warm.products.total < mined.products.total


def test_each_space_starts_from_its_own_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    def spy(*asked: Any, start: torch.Tensor | None = None, **more: Any) -> Any:
        seen.append(start)
        return real(*asked, start=start, **more)

    seen: list[torch.Tensor | None] = []
    real, given = pipeline.mining.masked_svds, starts(1)
    monkeypatch.setattr(pipeline.mining, "masked_svds", spy)
    with torch.no_grad():
        mine_image(DENOISER, X_T, masks(), dataclasses.replace(SETTINGS, strength=1.0), given)
        mine_image(DENOISER, X_T, masks(), dataclasses.replace(SETTINGS, strength=1.0), {"h": given["h"]})
        mine_image(DENOISER, X_T, masks(), dataclasses.replace(SETTINGS, strength=1.0))
    assert seen[0] is given["x"] and seen[1] is seen[3] is given["h"]
    assert [seen[i] for i in (2, 4, 5)] == [None, None, None]
    with pytest.raises(InputError, match="start: found shape"):
        mine_image(DENOISER, X_T, masks(), SETTINGS, {"x": torch.zeros(2, 3, 4, 4)})
