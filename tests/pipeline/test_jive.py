"""JIVE against the published r.jive, against itself at full width, and against what its parts must satisfy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.jive import jive

FIXTURE = Path(__file__).parent / "data" / "rjive.npz"
RANKS = [2, 1, 3]


def blocks(width: int = 60, rows: tuple[int, ...] = (6, 5, 7), seed: int = 0) -> list[torch.Tensor]:
    """Two joint rows shared by all blocks, two individual ones each, a little noise."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(2, width, generator=g, dtype=torch.float64)
    made = []
    for count in rows:
        own = torch.randn(2, width, generator=g, dtype=torch.float64)
        weights = torch.randn(count, 4, generator=g, dtype=torch.float64)
        noise = 0.05 * torch.randn(count, width, generator=g, dtype=torch.float64)
        made.append(weights @ torch.cat([shared, own]) + noise)
    return made


@pytest.mark.parametrize("case", ["plain", "orth", "scaled", "scaled_orth"])
def test_agrees_with_the_published_r_package(case: str) -> None:
    with np.load(FIXTURE, allow_pickle=False) as data:
        given_blocks = [torch.tensor(data[f"block{i}"]) for i in (1, 2, 3)]
        truth = {kind: [torch.tensor(data[f"{case}_{kind}{i}"]) for i in (1, 2, 3)] for kind in ("joint", "individual")}
    scaled = case.startswith("scaled")
    orthogonal = case.endswith("orth")
    found = jive(
        given_blocks, 2, RANKS, center=scaled, scale=scaled, orthogonal_individuals=orthogonal, tolerance=1e-13
    )
    entries = sum(x.numel() for x in given_blocks)  # the package also divides by the root of their number
    assert found.converged
    for i, block in enumerate(given_blocks):
        block = block - block.mean(dim=1, keepdim=True)
        unit = float(block.norm()) * entries**0.5 if scaled else 1.0
        for kind, mine in (("joint", found.joint[i]), ("individual", found.individual[i])):
            expected = truth[kind][i] * unit
            assert float((mine - expected).norm() / expected.norm()) < 1e-9, (kind, i)


def test_arrays_are_as_good_as_tensors() -> None:
    given_blocks = blocks()
    one, two = jive(given_blocks, 2, [2, 2, 2]), jive([block.numpy() for block in given_blocks], 2, [2, 2, 2])
    assert torch.equal(one.joint_basis, two.joint_basis)
    shares = one.explained_variance
    assert float((shares["joint"] + shares["individual"]).min()) > 0.9


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("scale", [False, True])
def test_compression_gives_the_answer_of_the_full_width(orthogonal: bool, scale: bool) -> None:
    given_blocks = blocks(400)
    compressed, direct = (
        jive(given_blocks, 2, [2, 2, 2], scale=scale, orthogonal_individuals=orthogonal, tolerance=1e-12, compress=c)
        for c in (True, False)
    )
    assert compressed.iterations == direct.iterations
    for a, b in zip((*compressed.joint, *compressed.individual), (*direct.joint, *direct.individual), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 3), st.lists(st.integers(0, 3), min_size=3, max_size=3), st.booleans(), st.integers(0, 500))
def test_parts_have_their_ranks_and_are_orthogonal(joint: int, ranks: list[int], orthogonal: bool, seed: int) -> None:
    given_blocks = blocks(seed=seed)
    found = jive(given_blocks, joint, ranks, orthogonal_individuals=orthogonal, max_iterations=60)
    exact = 1e-9
    if orthogonal:  # r.jive's projections commute at its fixed point only
        exact = 1e-2 if not found.converged else 1e-4
    eye = torch.eye(joint).double()
    torch.testing.assert_close(found.joint_basis @ found.joint_basis.T, eye, atol=1e-9, rtol=0)
    for i, (x, c, a) in enumerate(zip(given_blocks, found.joint, found.individual, strict=True)):
        size = float(x.norm())
        assert float((c - (c @ found.joint_basis.T) @ found.joint_basis).norm()) < 1e-9 * size
        assert float((a @ found.joint_basis.T).norm()) < exact * size
        rows, sigma = found.individual_bases[i], found.individual_sigmas[i]
        assert rows.shape == (ranks[i], 60) and bool((sigma[:-1] >= sigma[1:]).all())
        torch.testing.assert_close((a @ rows.T).norm(dim=0), sigma, atol=1e-9, rtol=1e-6)
        assert float((a - (a @ rows.T) @ rows).norm()) < 1e-9 * size
        shared = found.joint_directions(i)
        torch.testing.assert_close((c @ shared.T).norm(), c.norm(), atol=1e-9, rtol=1e-9)
        assert len(found.individual_directions(i)) == int((sigma > 0).sum())


def test_orthogonal_individuals_have_orthogonal_row_spaces() -> None:
    found = jive(blocks(), 2, [2, 2, 2], orthogonal_individuals=True, tolerance=1e-12)
    assert found.converged
    for i in range(3):
        assert float((found.individual_bases[i] @ found.joint_basis.T).abs().max()) < 1e-6
        for j in range(i):
            assert float((found.individual_bases[i] @ found.individual_bases[j].T).abs().max()) < 1e-6


def test_planted_joint_space_is_recovered_and_energy_is_accounted_for() -> None:
    given_blocks = blocks(width=3000)
    found = jive(given_blocks, 2, [2, 2, 2], tolerance=1e-10)
    g = torch.Generator().manual_seed(0)
    shared = torch.linalg.qr(torch.randn(2, 3000, generator=g, dtype=torch.float64).T)[0].T
    assert float(torch.linalg.svdvals(found.joint_basis @ shared.T).min()) > 0.999
    assert found.converged and found.change <= 1e-10 and found.residual < 0.05
    rest = torch.stack(
        [
            (x - c - a).square().sum() / x.square().sum()
            for x, c, a in zip(given_blocks, found.joint, found.individual, strict=True)
        ]
    )
    torch.testing.assert_close(found.joint_shares + found.individual_shares + rest, torch.ones(3).double())


def test_scaling_keeps_a_huge_block_from_owning_the_joint_space() -> None:
    small, middle, large = blocks()
    scaled = jive([small, middle, 1000 * large], 2, [2, 2, 2])
    unscaled = jive([small, middle, large], 2, [2, 2, 2])
    overlap = torch.linalg.svdvals(scaled.joint_basis @ unscaled.joint_basis.T)
    assert float(overlap.min()) > 0.999
    torch.testing.assert_close(scaled.joint[2] / 1000, unscaled.joint[2], atol=1e-6, rtol=1e-4)


def test_results_come_back_in_the_input_dtype() -> None:
    found = jive([x.float() for x in blocks()], 1, [1, 1, 1])
    tensors = (*found.joint, *found.individual, found.joint_basis, *found.individual_bases, found.joint_sigma)
    assert {t.dtype for t in tensors} == {torch.float32}


def test_missing_rank_shows_as_zero_rows_and_not_as_noise() -> None:
    g = torch.Generator().manual_seed(1)
    flat = [torch.randn(3, 1, generator=g) @ torch.randn(1, 20, generator=g) for _ in range(2)]
    found = jive(flat, 0, [2, 2])
    for rows, sigma in zip(found.individual_bases, found.individual_sigmas, strict=True):
        assert float(sigma[0]) > 0 and float(sigma[1]) == 0.0 and not bool(rows[1].any())
        assert bool(torch.isfinite(rows).all())


def test_momentum_ends_where_the_plain_rounds_end_in_a_fraction_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks with slowly falling spectra and a joint rank that cuts into them, as those of one image are."""
    g = torch.Generator().manual_seed(3)
    decay = 0.85 ** torch.arange(12, dtype=torch.float64)
    common = torch.linalg.qr(torch.randn(80, 20, generator=g, dtype=torch.float64)).Q.T
    crowded = []
    for _ in range(4):
        turn = torch.linalg.qr(torch.randn(20, 12, generator=g, dtype=torch.float64)).Q.T
        own = torch.linalg.qr(torch.randn(80, 12, generator=g, dtype=torch.float64)).Q.T
        crowded.append(decay[:, None] * (turn @ common + 0.5 * own))
    fast = jive(crowded, 14, [2] * 4)
    monkeypatch.setattr("pipeline.jive_rounds._PLAIN_ROUNDS", 10**9)
    slow = jive(crowded, 14, [2] * 4, max_iterations=30_000, tolerance=1e-8)
    assert fast.converged and slow.converged
    assert fast.iterations * 4 < slow.iterations
    assert fast.residual == pytest.approx(slow.residual, rel=1e-6)
    for mine, plain in zip(fast.individual_bases, slow.individual_bases, strict=True):
        assert float(torch.linalg.svdvals(mine @ plain.T).min()) > 0.999


def test_too_few_iterations_are_reported() -> None:
    found = jive(blocks(), 2, [2, 2, 2], tolerance=1e-14, max_iterations=2)
    assert not found.converged and found.iterations == 2 and found.change > 1e-14


def test_bad_input_is_named() -> None:
    good = blocks()
    cases = [
        (good[:1], 1, [1], {}, "at least two"),
        ([good[0], good[1][:, :50]], 1, [1, 1], {}, "one width"),
        ([good[0], good[1] * torch.nan], 1, [1, 1], {}, "block 1"),
        ([good[0], good[1] * 0], 1, [1, 1], {}, "only zeros"),
        (good, 1, [1, 1], {}, "individual_ranks"),
        (good, 19, [1, 1, 1], {}, "joint_rank"),
        (good, -1, [1, 1, 1], {}, "joint_rank"),
        (good, 2, [7, 1, 1], {}, "individual rank of block 0"),
        (good, 10, [4, 4, 4], {"orthogonal_individuals": True}, "when orthogonal"),
        (good, 1, [1, 1, 1], {"tolerance": 0.0}, "tolerance"),
    ]
    for given_blocks, joint, ranks, options, message in cases:
        with pytest.raises(InputError, match=message):
            jive(given_blocks, joint, ranks, **options)  # type: ignore[arg-type]


def test_integers_are_numbers_and_truth_values_are_not() -> None:
    whole = [np.random.default_rng(i).integers(-5, 6, (4, 12)) for i in range(3)]
    one, two = jive(whole, 1, [1, 1, 1]), jive([block.astype(np.float64) for block in whole], 1, [1, 1, 1])
    assert torch.equal(one.joint_basis, two.joint_basis)
    with pytest.raises(InputError, match="block 0"):
        jive([block > 0 for block in whole], 1, [1, 1, 1])


def test_constant_rows_have_nothing_to_centre() -> None:
    with pytest.raises(InputError, match="rows that are constant"):
        jive([0.1 * np.ones((3, 11)), np.random.default_rng(0).normal(size=(3, 11))], 1, [1, 1], center=True)


def test_a_smaller_joint_rank_leaves_its_directions_to_the_individual_parts() -> None:
    g = torch.Generator().manual_seed(0)
    shared = torch.randn(3, 80, generator=g, dtype=torch.float64)
    made = [torch.randn(9, 3, generator=g, dtype=torch.float64) @ shared for _ in range(3)]
    made = [block + 0.05 * torch.randn(9, 80, generator=g, dtype=torch.float64) for block in made]
    free, held = jive(made), jive(made, 1)
    assert free.ranks.joint_rank == 3
    assert held.ranks.individual_ranks == tuple(rank + 2 for rank in free.ranks.individual_ranks)
