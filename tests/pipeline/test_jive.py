"""JIVE against the published r.jive, against itself at full width, and against what its parts must satisfy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.jive import JiveResult, jive
from tests.benchmarks.jive_truth import Truth, simulate

FIXTURE = Path(__file__).parent / "data" / "rjive.npz"
RANKS = [2, 1, 3]
RANK_KINDS = 3 * [RANKS, np.array(RANKS), torch.tensor(RANKS), [np.int8(rank) for rank in RANKS]]


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


@pytest.mark.parametrize("orthogonal", [False, True])
def test_the_default_tolerance_agrees_with_the_published_package_to_a_millionth(orthogonal: bool) -> None:
    case = "orth" if orthogonal else "plain"
    with np.load(FIXTURE, allow_pickle=False) as data:
        found = jive([data[f"block{i}"] for i in (1, 2, 3)], 2, RANKS, scale=False, orthogonal_individuals=orthogonal)
        for i in range(3):
            for mine, kind in ((found.joint[i], "joint"), (found.individual[i], "individual")):
                truth = data[f"{case}_{kind}{i + 1}"]
                assert np.linalg.norm(mine - truth) < 1e-6 * np.linalg.norm(truth)


def alternating(matrices: list[np.ndarray], joint: int, ranks: list[int], rounds: int) -> list[np.ndarray]:
    """The textbook rounds at full width, no compression and no momentum: joint and individual parts (R, D)."""

    def cut(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        return (u[:, :rank] * s[:rank]) @ vt[:rank], vt[:rank]

    total, places = np.concatenate(matrices), np.cumsum([len(m) for m in matrices])[:-1]
    own = np.zeros_like(total)
    for _ in range(rounds):
        shared, basis = cut(total - own, joint)
        rests = np.split((total - shared) - (total - shared) @ basis.T @ basis, places)
        before, own = own, np.concatenate([cut(rest, rank)[0] for rest, rank in zip(rests, ranks, strict=True)])
        if np.linalg.norm(own - before) < 1e-13 * np.linalg.norm(total):
            break
    return [shared, own]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 3), st.lists(st.integers(0, 3), min_size=2, max_size=4), st.booleans(), st.integers(0, 10**6))
def test_compressed_rounds_end_where_the_textbook_ones_do(joint: int, own: list[int], scale: bool, seed: int) -> None:
    truth = Truth(rows=(7,) * len(own), width=40, joint=joint, own=tuple(own), strength=2.0)
    given_blocks = [block.numpy() for block in simulate(truth, seed)]
    found = jive(given_blocks, joint, own, scale=scale)
    units = [np.linalg.norm(block) if scale else 1.0 for block in given_blocks]
    parts = alternating([b / u for b, u in zip(given_blocks, units, strict=True)], joint, own, 4000)
    assert found.converged
    for mine, plain in zip((found.joint, found.individual), parts, strict=True):
        stacked = np.concatenate([part / unit for part, unit in zip(mine, units, strict=True)])
        assert np.linalg.norm(stacked - plain) < 1e-6 * np.linalg.norm(given_blocks[0] / units[0])


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(3)), st.integers(0, 10**6), st.booleans())
def test_order_of_rows_and_of_blocks_only_reorders_the_parts(order: list[int], seed: int, orthogonal: bool) -> None:
    given_blocks = blocks(seed=seed)
    options = {"tolerance": 1e-11, "orthogonal_individuals": orthogonal}
    one = jive(given_blocks, 2, [2, 2, 2], **options)  # type: ignore[arg-type]
    turned = jive([block.flip(0) for block in given_blocks], 2, [2, 2, 2], **options)  # type: ignore[arg-type]
    for a, b in zip((*one.joint, *one.individual), (*turned.joint, *turned.individual), strict=True):
        torch.testing.assert_close(a, b.flip(0), atol=1e-7, rtol=0)
    if not orthogonal:  # whose answer belongs to the given order
        moved = jive([given_blocks[i] for i in order], 2, [2, 2, 2], **options)  # type: ignore[arg-type]
        for place, i in enumerate(order):
            torch.testing.assert_close(one.joint[i], moved.joint[place], atol=1e-7, rtol=0)
            torch.testing.assert_close(one.individual[i], moved.individual[place], atol=1e-7, rtol=0)


def test_arrays_are_as_good_as_tensors() -> None:
    given_blocks = blocks()
    one, two = jive(given_blocks, 2, [2, 2, 2]), jive([block.numpy() for block in given_blocks], 2, [2, 2, 2])
    assert np.array_equal(one.joint_basis, two.joint_basis)
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


def everything(found: JiveResult) -> list[object]:
    lists = (found.joint, found.individual, found.joint_bases, found.joint_sigmas)
    lists = (*lists, found.individual_bases, found.individual_sigmas)
    assert all(isinstance(parts, list) and len(parts) == 3 for parts in lists)
    return [*(part for parts in lists for part in parts), found.joint_basis, found.joint_sigma]


@pytest.mark.parametrize("orthogonal", [False, True])
def test_results_come_back_in_the_callers_kind_and_dtype(orthogonal: bool) -> None:
    for dtype, name in ((torch.float32, np.float32), (torch.float64, np.float64)):
        tensors = [x.to(dtype) for x in blocks()]
        found = jive(tensors, 1, [1, 1, 1], orthogonal_individuals=orthogonal)
        assert {t.dtype for t in everything(found) if isinstance(t, torch.Tensor)} == {dtype}
        copied = jive([x.numpy() for x in tensors], 1, [1, 1, 1], orthogonal_individuals=orthogonal)
        for a, b in zip(everything(copied), everything(found), strict=True):
            assert isinstance(a, np.ndarray) and a.dtype == name and isinstance(b, torch.Tensor)
            assert np.array_equal(a, b.numpy())
        for part, block in zip((*copied.joint, *copied.individual), tensors * 2, strict=True):
            assert part.shape == tuple(block.shape)
        assert isinstance(copied.explained_variance["joint"], np.ndarray) and isinstance(copied.scales, np.ndarray)
        assert isinstance(copied.joint_directions(0), np.ndarray) and copied.found_individual_ranks == (1, 1, 1)


def test_arrays_of_any_layout_are_read_and_left_as_they_are() -> None:
    plain = [block.numpy() for block in blocks()]
    expected = jive(plain, 2, RANKS).joint_basis
    locked = [block.copy() for block in plain]
    for block in locked:
        block.setflags(write=False)
    wide = [np.repeat(block, 2, axis=1)[:, ::2] for block in plain]
    backwards = [np.ascontiguousarray(block[::-1, ::-1])[::-1, ::-1] for block in plain]
    kinds = [locked, wide, backwards, [np.asfortranarray(b) for b in plain], [b.astype(">f8") for b in plain],
             [b.tolist() for b in plain], tuple(plain), iter(plain), [np.ma.array(b) for b in plain]]  # fmt: skip
    for kind, ranks in zip(kinds, RANK_KINDS, strict=False):
        kind = list(kind)
        before = [np.array(block) for block in kind]
        found = jive(kind, np.int64(2), ranks)  # type: ignore[arg-type, type-var]
        assert np.array_equal(found.joint_basis, expected)
        assert all(np.array_equal(block, kept) for block, kept in zip(kind, before, strict=True))
        assert type(found.ranks.joint_rank) is int and found.ranks.individual_ranks == tuple(RANKS)


def test_rows_of_the_joint_basis_beyond_its_real_rank_are_zero_and_counted_out() -> None:
    g = torch.Generator().manual_seed(2)
    shared = torch.randn(2, 30, generator=g, dtype=torch.float64)
    flat = [torch.randn(4, 2, generator=g, dtype=torch.float64) @ shared for _ in range(3)]
    for dtype in (torch.float64, torch.float32):
        for orthogonal in (False, True):
            found = jive([x.to(dtype) for x in flat], 3, [1, 0, 1], orthogonal_individuals=orthogonal)
            assert found.found_joint_rank == 2 and found.ranks.joint_rank == 3
            assert found.found_individual_ranks == (0, 0, 0)
            assert found.joint_basis.shape == (3, 30) and not bool(found.joint_basis[2].any())
            assert float(found.joint_sigma[2]) == 0.0 and bool((found.joint_sigma[:2] > 0).all())
            true = torch.linalg.qr(shared.T).Q.T.to(dtype)
            assert float(torch.linalg.svdvals(found.joint_basis[:2] @ true.T).min()) > 0.999


@pytest.mark.parametrize("ranks", [[2, 2, 2], [2, 3, 0], [3, 0, 1]])
def test_ranks_beyond_what_is_there_take_nothing_from_others(ranks: list[int]) -> None:
    """Directions of rounding differ between the compressed space and the full width; the parts may not."""
    g = torch.Generator().manual_seed(5)
    flat = [
        torch.randn(5, 3, generator=g, dtype=torch.float64) @ torch.randn(3, 25, generator=g, dtype=torch.float64)
        for _ in range(3)
    ]
    flat[2] = flat[2][:, :1] * torch.randn(25, generator=g, dtype=torch.float64)
    both = [jive(flat, 0, ranks, orthogonal_individuals=True, compress=c) for c in (True, False)]
    for a, b in zip(both[0].individual, both[1].individual, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


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
        (good, 2.0, [1, 1, 1], {}, "joint_rank: found 2.0; expected a whole number, at least 0"),
        (good, True, [1, 1, 1], {}, "joint_rank: found True"),
        (good, np.True_, [1, 1, 1], {}, "joint_rank: found np.True_"),
        (good, torch.tensor(True), [1, 1, 1], {}, "joint_rank"),
        (good, "2", [1, 1, 1], {}, "joint_rank: found '2'"),
        (good, 1, 1, {}, "individual_ranks: found 1; expected one rank for each of 3 blocks"),
        (good, 1, "111", {}, "individual_ranks: found '111'"),
        (good, 1, [1, 1.5, 1], {}, r"individual_ranks\[1\]: found 1.5"),
        (good, 1, np.ones(3), {}, r"individual_ranks\[0\]: found np.float64\(1.0\)"),
        (good, 1, np.array([True, False, True]), {}, r"individual_ranks\[0\]: found np.True_"),
        (good, None, [9, 1, 1], {}, "individual rank of block 0"),
        (good, 1, [1, 1, 1], {"tolerance": "small"}, "tolerance"),
        (good, 1, [1, 1, 1], {"tolerance": math.nan}, "tolerance"),
        (good, 1, [1, 1, 1], {"max_iterations": 2.5}, "max_iterations"),
        (None, 1, [1], {}, "blocks: found NoneType; expected a list of matrices"),
        ([], 1, [], {}, "blocks: found 0"),
        (good[0], 1, [1, 1, 1], {}, "one width"),
        ([good[0], good[1][:0]], 1, [1, 1], {}, "block 1: found shape"),
        ([good[0], [[1.0, 2.0], [3.0]]], 1, [1, 1], {}, "block 1: found list; expected a matrix"),
        ([good[0], "words"], 1, [1, 1], {}, "block 1: found entries of type <U5"),
        ([good[0], good[1] > 0], 1, [1, 1], {}, "block 1: found torch.bool"),
        ([good[0], good[1] + 1j], 1, [1, 1], {}, "block 1: found torch.complex128"),
        ([good[0], good[1].to_sparse()], 1, [1, 1], {}, "Call to_dense"),
        ([good[0], good[1] / 0.0], 1, [1, 1], {}, "block 1: found NaN or infinite entries"),
        ([good[0], good[1] * 1e200], 1, [1, 1], {}, "Give it in other units"),
        ([good[0], np.ma.masked_less(good[1].numpy(), 0.0)], 1, [1, 1], {}, "masked entries"),
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
    assert np.array_equal(one.joint_basis, two.joint_basis)
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
