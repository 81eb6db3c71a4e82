from __future__ import annotations

import pytest
import torch

from pipeline.jacobian import jacobian
from pipeline.methods.components import Individual, IndividualSettings
from pipeline.methods.loco import Loco, LocoSettings
from pipeline.methods.nested import _project, by_null_rank, first_components, fits, singular_blocks
from pipeline.methods.singular import Picked
from pipeline.svd import masked_svds
from tests.pipeline.methods.jacobian_world import DENOISER, TIGHT, found, masks, subject, vector


def test_one_search_gives_loco_directions_of_every_null_rank() -> None:
    settings = LocoSettings(rank=2, **TIGHT)
    method = Loco(DENOISER, settings)
    operator = jacobian(DENOISER, subject().x_t, method.timestep, "x0/x")
    nested = dict(by_null_rank(operator, masks(), (0, 4), settings))
    assert list(nested) == [0, 4]
    for null_rank, picked in nested.items():
        alone = found(Loco(DENOISER, LocoSettings(rank=2, null_rank=null_rank, **TIGHT)))
        for region, edit in alone.items():
            assert abs(float(picked.vectors[region].flatten() @ vector(edit))) == pytest.approx(1, abs=1e-4)
    assert nested[0].evidence["left"]["kept_share"] == pytest.approx(1)


def test_null_ranks_without_room_are_left_out() -> None:
    settings = LocoSettings(rank=1, tolerance=0.3, steps=2)
    operator = jacobian(DENOISER, subject().x_t, 20, "x0/x")
    large = torch.ones(8, 8, dtype=torch.bool)
    large[0, :2] = False  # two pixels are left: six numbers
    assert [rank for rank, _ in by_null_rank(operator, {"large": large}, (0, 5, 7), settings)] == [0, 5]


def test_the_next_vector_stands_in_for_one_inside_the_null_space_and_a_region_without_any_is_refused() -> None:
    operator = jacobian(DENOISER, subject().x_t, 20, "x0/x")
    svd = masked_svds(
        operator, masks(), {"left": 2}, generator=torch.Generator().manual_seed(0), tolerance=TIGHT["tolerance"]
    )["left"]
    picked = Picked({}, {}, {})
    for null_rank in (1, 2):  # its own vectors as the null space
        _project(picked, f"null rank {null_rank}", svd, svd, null_rank)
    assert picked.evidence == {"null rank 1": {"rank": 1.0, "kept_share": pytest.approx(1)}}
    assert "kept share 0.000" in picked.refused["null rank 2"].reason


def test_one_search_gives_components_of_every_rank() -> None:
    settings = IndividualSettings(rank=4, joint_rank=3, individual_rank=2, **TIGHT)
    method = Individual(DENOISER, settings)
    operator = jacobian(DENOISER, subject().x_t, method.timestep, "x0/h")
    blocks = singular_blocks(operator, masks(), settings)
    assert len(blocks) == 3
    alone = found(method)
    picked = first_components(blocks, 3, 2, scale=True)
    for region, edit in alone.items():
        assert abs(float(picked.vectors[region].flatten() @ vector(edit))) == pytest.approx(1, abs=1e-4)
    plain = first_components(blocks, 0, 1, scale=True)
    for region in masks():
        first = blocks[region].v[0].flatten()
        assert abs(float(plain.vectors[region].flatten() @ first)) == pytest.approx(1, abs=1e-6)


def test_room_is_shared_by_joint_and_individual_ranks() -> None:
    settings = IndividualSettings(rank=4, tolerance=0.3, steps=2)
    operator = jacobian(DENOISER, subject().x_t, 20, "x0/h")
    blocks = singular_blocks(operator, masks(), settings)
    assert fits(blocks, 10, 2) and not fits(blocks, 11, 2)
    assert fits(blocks, 0, 4) and not fits(blocks, 0, 5)


def test_orthogonal_individuals_are_those_of_the_method_and_need_room_each() -> None:
    settings = IndividualSettings(rank=4, joint_rank=3, individual_rank=2, orthogonal_individuals=True, **TIGHT)
    method = Individual(DENOISER, settings)
    operator = jacobian(DENOISER, subject().x_t, method.timestep, "x0/h")
    blocks = singular_blocks(operator, masks(), settings)
    picked = first_components(blocks, 3, 2, scale=True, orthogonal_individuals=True)
    for region, edit in found(method).items():
        assert abs(float(picked.vectors[region].flatten() @ vector(edit))) == pytest.approx(1, abs=1e-4)
    left, right = (picked.vectors[region].flatten() for region in masks())
    assert abs(float(left @ right)) < 1e-5
    assert fits(blocks, 6, 2, orthogonal_individuals=True) and not fits(blocks, 7, 2, orthogonal_individuals=True)
    first_components(blocks, 6, 2, scale=True, orthogonal_individuals=True)
