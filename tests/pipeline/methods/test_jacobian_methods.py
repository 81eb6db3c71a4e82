"""The directions of every method of singular vectors against the dense Jacobian of a tiny model."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

import pipeline.mining
from pipeline.jacobian import JacobianKind
from pipeline.methods.components import HMasked, Individual, IndividualSettings
from pipeline.methods.contract import Found, Method, Refused, Settings
from pipeline.methods.haas import Haas, HaasMasked, HaasSettings
from pipeline.methods.loco import Loco, LocoPlain, LocoSettings
from pipeline.methods.noise_jacobian import NoiseJacobian
from pipeline.methods.pullback import Pullback, PullbackSettings
from pipeline.methods.randoms import RandomH, RandomX, seed_of
from pipeline.methods.singular import most_inside
from tests.pipeline.methods.jacobian_world import (
    DENOISER,
    TIGHT,
    dense,
    first_right,
    found,
    masks,
    rows,
    share,
    subject,
    vector,
)

T = round(Settings().timestep * DENOISER.info.train_timesteps)


@functools.cache
def plain(kind: type[Method]) -> dict[str, Found]:
    """What a method without settings of its own finds."""
    return found(kind(DENOISER, Settings(**TIGHT)))


def test_plain_directions_are_the_first_singular_vectors_of_the_dense_masked_jacobian() -> None:
    kinds: dict[type[Method], JacobianKind] = {LocoPlain: "x0/x", HMasked: "x0/h", NoiseJacobian: "eps/x"}
    for method, kind in kinds.items():
        matrix = dense(kind, T)
        for region, edit in plain(method).items():
            truth = first_right(matrix * rows(masks()[region])[:, None])
            assert abs(float(truth @ vector(edit))) > 0.999, method.name


def test_the_local_direction_is_the_plain_one_without_the_null_space_of_the_rest() -> None:
    method = Loco(DENOISER, LocoSettings(**TIGHT, null_rank=4))
    matrix = dense("x0/x", method.timestep)
    singular = plain(LocoPlain)
    for region, edit in found(method).items():
        inside = rows(masks()[region])
        null = torch.linalg.svd(matrix * (1 - inside)[:, None], full_matrices=False)[2][:4]
        truth = first_right(matrix * inside[:, None])
        truth = truth - null.T @ (null @ truth)
        assert edit.evidence["kept_share"] == pytest.approx(float(truth.norm()), abs=1e-2)
        assert abs(float(truth @ vector(edit)) / float(truth.norm())) > 0.99
        before = singular[region].evidence
        assert edit.evidence["leakage"] / edit.evidence["gain"] < before["leakage"] / before["gain"]


def test_inside_the_null_space_the_gain_is_the_largest_there_is() -> None:
    inside = found(Loco(DENOISER, LocoSettings(**TIGHT, null_rank=4, variant="inside")))
    projected = found(Loco(DENOISER, LocoSettings(**TIGHT, null_rank=4)))
    for region in masks():
        assert inside[region].evidence["gain"] >= projected[region].evidence["gain"] * (1 - 1e-3)


def test_a_region_of_which_the_null_space_leaves_too_little_is_refused_with_its_kept_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline.mining, "MINIMAL_KEPT_SHARE", 1.1)  # nothing is ever enough
    for edit in Loco(DENOISER, LocoSettings(**TIGHT, null_rank=4)).find(subject()).values():
        assert isinstance(edit, Refused)
        assert "kept share 0." in edit.reason


def test_individual_components_are_orthogonal_to_what_the_blocks_share() -> None:
    settings = IndividualSettings(**TIGHT, rank=4, joint_rank=6, individual_rank=2)
    edits = found(Individual(DENOISER, settings))
    masked = plain(HMasked)
    for region, edit in edits.items():
        assert edit.evidence["joint_rank"] == 6
        assert edit.evidence["individual_rank"] == 2
        assert abs(float(vector(edit) @ vector(masked[region]))) < 0.999
        assert 0 < edit.evidence["kept_share"] <= 1
    low = found(Individual(DENOISER, dataclasses.replace(settings, joint_rank=0)))
    for region, edit in low.items():  # nothing is joint: the first individual component is the first singular vector
        assert abs(float(vector(edit) @ vector(masked[region]))) > 0.999


def test_a_joint_rank_without_room_is_lowered_to_what_the_blocks_leave() -> None:
    one = dataclasses.replace(subject(), masks={"left": masks()["left"]})
    edits = found(Individual(DENOISER, IndividualSettings(**TIGHT, rank=4, joint_rank=99, individual_rank=2)), one)
    assert edits["left"].evidence["joint_rank"] == 2 * 4 - 2


def test_of_next_to_nothing_outside_the_regions_there_is_a_block_of_what_it_has_room_for() -> None:
    """One pixel, three numbers, where every block should have rank 4."""
    half = torch.zeros(8, 8, dtype=torch.bool)
    half[:, :4] = True
    rest = ~half
    rest[7, 7] = False
    crowded = dataclasses.replace(subject(), masks={"left": half, "right": rest})
    settings = IndividualSettings(**TIGHT, rank=4, joint_rank=99, individual_rank=4)
    edits = found(Individual(DENOISER, settings), crowded)
    assert {edit.evidence["joint_rank"] for edit in edits.values()} == {2 * 4 + 3 - 4}


def test_a_null_space_is_no_larger_than_what_lies_outside_the_region_has_room_for() -> None:
    """Two pixels, six numbers: all of them are in the null space."""
    nearly = torch.ones(8, 8, dtype=torch.bool)
    nearly[0, :2] = False
    matrix = dense("x0/x", T)
    null = torch.linalg.svd(matrix * (1 - rows(nearly))[:, None], full_matrices=False)[2][:6]
    settings = LocoSettings(tolerance=1e-3, rank=1, null_rank=30)
    edit = found(Loco(DENOISER, settings), dataclasses.replace(subject(), masks={"sky": nearly}))["sky"]
    assert float((null @ vector(edit)).abs().max()) < 1e-2


def test_the_iteration_finds_the_leading_directions_and_a_region_takes_the_most_local_of_them() -> None:
    method = Haas(DENOISER, HaasSettings(**TIGHT, rank=4))
    matrix = dense("x0/h", method.timestep)
    leading = torch.linalg.svd(matrix, full_matrices=False)[2][:4]
    for region, edit in found(method).items():
        shares = [share(matrix, v, masks()[region]) for v in leading]
        best = max(range(4), key=shares.__getitem__)
        assert edit.evidence["share"] == pytest.approx(shares[best], abs=0.02)
        assert abs(float(leading[best] @ vector(edit))) > 0.98
        assert edit.evidence["residual"] < 0.1


def test_the_masked_iteration_finds_what_the_block_search_finds() -> None:
    masked = plain(HMasked)
    for region, edit in found(HaasMasked(DENOISER, HaasSettings(**TIGHT, rank=4))).items():
        assert abs(float(vector(edit) @ vector(masked[region]))) > 0.99


def test_pullback_moves_the_bottleneck_most_whatever_the_region() -> None:
    method = Pullback(DENOISER, PullbackSettings(**TIGHT))
    truth = first_right(dense("h/x", method.timestep))
    edits = found(method)
    for edit in edits.values():
        assert abs(float(truth @ vector(edit))) > 0.999
    assert torch.equal(vector(edits["left"]), vector(edits["right"]))


def test_of_several_pullback_directions_a_region_takes_the_most_local_one() -> None:
    method = Pullback(DENOISER, PullbackSettings(**TIGHT, rank=6))
    matrix = dense("x0/x", method.timestep)
    first = found(Pullback(DENOISER, PullbackSettings(**TIGHT)))
    for region, edit in found(method).items():
        own = share(matrix, vector(edit), masks()[region])
        assert edit.evidence["share"] == pytest.approx(own)
        assert own >= share(matrix, vector(first[region]), masks()[region]) - 1e-6


def test_the_most_local_direction_is_planted_and_found_whatever_its_size() -> None:
    mask = masks()["left"]
    effects = torch.ones(3, 3, 8, 8)
    effects[1] = 1e-3 * mask
    effects[2] = 0.0
    picked = most_inside(torch.eye(3), effects, {"left": mask})
    assert picked.evidence["left"] == {"rank": 1.0, "share": pytest.approx(1.0)}
    assert torch.equal(picked.vectors["left"], torch.eye(3)[1])
    outside = most_inside(torch.eye(3), effects * ~mask, {"left": mask})
    assert "left" in outside.refused
    assert not outside.vectors


def test_random_directions_differ_between_images_regions_and_seeds_and_never_by_order() -> None:
    for kind in (RandomX, RandomH):
        method = kind(DENOISER, kind.settings_class())
        edits, other = found(method), found(method, subject(1))
        reseeded = found(kind(DENOISER, kind.settings_class(seed=1)))
        turned = found(method, dataclasses.replace(subject(), masks=dict(reversed(masks().items()))))
        drawn = [vector(e) for e in (*edits.values(), *other.values(), *reseeded.values())]
        together = torch.stack(drawn)
        assert float((together @ together.T - torch.eye(6)).abs().max()) < 0.5
        for region in masks():
            assert torch.equal(vector(turned[region]), vector(edits[region]))


def test_seeds_of_random_directions_are_the_same_on_every_machine() -> None:
    assert seed_of(0, "image", "mouth") == seed_of(0, "image", "mouth") != seed_of(0, "image", "hair")
    assert 0 <= seed_of(2**40, "image", "mouth") < 2**56
