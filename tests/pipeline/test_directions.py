"""LOCO directions against dense truth: orthogonal to the null space, honest about what projection leaves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.directions import gain_and_leakage, loco_directions, loco_inside, null_space_projection
from pipeline.errors import InputError
from pipeline.operators import Dense
from pipeline.svd import TruncatedSVD, masked_svds

SHAPE = (2, 6, 6)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def region_mask() -> torch.Tensor:
    mask = torch.zeros(6, 6)
    mask[1:3, 1:4] = 1
    return mask


def operator(seed: int = 0) -> Dense:
    """Strong directions that change everything, weaker ones that change the region only."""
    g, n = seeded(seed), 72
    inside = region_mask().expand(SHAPE).flatten().double()
    everywhere = torch.randn(n, 4, generator=g).double()
    local = torch.randn(n, 3, generator=g).double() * inside[:, None]
    rows = torch.linalg.qr(torch.randn(n, 7, generator=g).double())[0].T
    return Dense(torch.cat([2 * everywhere, local], 1) @ rows, SHAPE, SHAPE)


def both(op: Dense, rank: int = 3, null_rank: int = 6) -> tuple[TruncatedSVD, TruncatedSVD]:
    mask = region_mask()
    found = masked_svds(
        op,
        {"region": mask, "rest": 1 - mask},
        {"region": rank, "rest": null_rank},
        generator=seeded(),
        tolerance=1e-6,
    )
    return found["region"], found["rest"]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 6), st.integers(0, 200))
def test_projection_is_orthogonal_idempotent_and_splits_the_norm(k: int, n: int, seed: int) -> None:
    g = seeded(seed)
    null = torch.linalg.qr(torch.randn(12, n, generator=g, dtype=torch.float64))[0].T.reshape(n, 3, 4)
    v = 3.0 * torch.randn(k, 3, 4, generator=g, dtype=torch.float64)
    unit, kept = null_space_projection(v, null)
    torch.testing.assert_close(unit.flatten(1).norm(dim=1), torch.ones(k).double())
    assert float((unit.flatten(1) @ null.flatten(1).T).abs().max() if n else 0.0) < 1e-12
    removed = (v.flatten(1) @ null.flatten(1).T).norm(dim=1) / v.flatten(1).norm(dim=1)
    torch.testing.assert_close(kept.square() + removed.square(), torch.ones(k).double())
    again, all_kept = null_space_projection(unit, null)
    torch.testing.assert_close(again, unit)
    torch.testing.assert_close(all_kept, torch.ones(k).double())


def test_a_vector_inside_the_null_span_is_refused_and_never_normalised() -> None:
    null = torch.eye(6)[:2]
    v = torch.stack([torch.tensor([0.0, 1, 0.04, 0, 0, 0]), torch.tensor([0.0, 1, 0.06, 0, 0, 0])])
    unit, kept = null_space_projection(v, null)
    assert (kept < 0.05).tolist() == [True, False]
    assert float(unit[0].norm()) == 0.0 and float(unit[1].norm()) == pytest.approx(1.0)
    single, share = null_space_projection(v[1], null)
    assert torch.equal(single, unit[1]) and torch.equal(share, kept[1])


def test_projection_makes_directions_more_local_and_figures_match_the_matrix() -> None:
    op, mask = operator(), region_mask()
    region, rest = both(op)
    spent = op.products.jvp
    found = loco_directions(op, mask, region, rest, 4)
    assert op.products.jvp - spent <= 2 * len(region.v)
    usable = ~found.refused
    assert bool(usable.any())
    assert bool((found.locality[usable] < 0.01 * found.locality_before[usable]).all())
    images = (found.vectors.flatten(1) @ op.matrix.T).view(-1, *SHAPE)
    torch.testing.assert_close(found.effects, images)
    gain, leakage = gain_and_leakage(images, mask)
    torch.testing.assert_close(found.gain[usable], gain[usable])
    torch.testing.assert_close(found.leakage[usable], leakage[usable])
    torch.testing.assert_close(found.gain_before, region.sigma)
    torch.testing.assert_close(found.sigma, region.sigma)
    torch.testing.assert_close(gain.square() + leakage.square(), images.flatten(1).norm(dim=1).square())


def test_null_rank_zero_leaves_the_region_vectors_and_costs_one_product_each() -> None:
    op = operator()
    region, rest = both(op)
    spent = op.products.jvp
    found = loco_directions(op, region_mask(), region, rest, 0)
    assert op.products.jvp - spent == len(region.v)
    torch.testing.assert_close(found.vectors, region.v)
    torch.testing.assert_close(found.kept_share, torch.ones(3).double())
    torch.testing.assert_close(found.locality, found.locality_before)


def test_refused_directions_are_flagged_zero_and_without_figures() -> None:
    op = operator()
    region, rest = both(op)
    first = {name: getattr(rest, name)[:1] for name in ("u", "sigma", "v", "residuals", "converged")}
    inside = replace(rest, **first)
    found = loco_directions(op, region_mask(), inside, rest, 4)
    assert found.refused.tolist() == [True] and float(found.vectors.norm()) == 0.0
    assert math.isnan(float(found.gain[0])) and float(found.gain_before[0]) > 0
    assert len(region.v) == 3


def test_the_svd_inside_the_null_space_never_gains_less_than_projecting_afterwards() -> None:
    op, mask = operator(), region_mask()
    region, rest = both(op)
    after = loco_directions(op, mask, region, rest, 4)
    inside, svd = loco_inside(op, mask, rest, 3, 4, generator=seeded(), tolerance=1e-6, region=region)
    assert bool(svd.converged.all()) and not bool(inside.refused.any())
    assert float(inside.gain[0]) >= float(after.gain[~after.refused].max()) - 1e-6
    overlap = inside.vectors.flatten(1) @ rest.v[:4].flatten(1).T
    assert float(overlap.abs().max()) < 1e-9
    matrix = op.matrix * mask.expand(SHAPE).flatten()[:, None].double()
    null = rest.v[:4].flatten(1)
    truth = torch.linalg.svdvals(matrix - (matrix @ null.T) @ null)[:3]
    torch.testing.assert_close(inside.sigma, truth, rtol=1e-5, atol=1e-6)
    assert bool(inside.gain_before.isnan().all())


def test_directions_without_gain_inside_the_null_space_are_refused() -> None:
    op = operator()
    _, rest = both(op)
    found, _ = loco_inside(op, region_mask(), rest, 5, 4, generator=seeded(), tolerance=1e-6)
    assert found.refused.tolist() == [False, False, False, True, True]
    assert float(found.vectors[3:].norm()) == 0.0


def test_bad_ranks_and_shapes_are_input_errors() -> None:
    op, mask = operator(), region_mask()
    region, rest = both(op)
    with pytest.raises(InputError, match="null_rank"):
        loco_directions(op, mask, region, rest, 7)
    with pytest.raises(InputError, match="null_rank"):
        loco_inside(op, mask, rest, 2, -1, generator=seeded())
    with pytest.raises(InputError, match="rank"):
        loco_inside(op, mask, rest, 70, 4, generator=seeded())
    with pytest.raises(InputError, match="orthonormal"):
        null_space_projection(torch.ones(1, 4), 2 * torch.eye(4)[:1])
    with pytest.raises(InputError, match="zero or non-finite"):
        null_space_projection(torch.zeros(1, 4), torch.eye(4)[:1])
    with pytest.raises(InputError, match="null"):
        null_space_projection(torch.ones(1, 4), torch.eye(5)[:1])
    too_many, _ = both(op, rank=9)
    with pytest.raises(InputError, match="numerical rank"):
        loco_directions(op, mask, too_many, rest, 4)
