"""Ranks chosen from blocks: truth recovered where it can be, nothing that depends on order, basis or width."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.jive import jive
from pipeline.jive_chance import WhiteSpectra, frames, gaussian
from pipeline.jive_ranks import DEFAULT_RULE, RankChoice, Rule, _leading_rows, _rotated_spectra, choose_ranks
from tests.benchmarks.jive_truth import Truth, simulate

RULES: tuple[Rule, ...] = get_args(Rule)
NOISY = Truth(rows=(16, 12, 20), width=120, joint=2, own=(1, 2, 2), strength=3.0)
EXACT = Truth(rows=(9, 8, 10), width=60, joint=2, own=(1, 2, 3), noise=0.0)


def rotated(block: torch.Tensor, seed: int) -> torch.Tensor:
    turn = torch.randn(len(block), len(block), generator=torch.Generator().manual_seed(seed), dtype=block.dtype)
    return torch.linalg.qr(turn).Q @ block


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_finds_a_loud_joint_part_and_no_joint_rank_where_there_is_none(rule: Rule) -> None:
    for joint in (0, 2):
        truth = Truth(rows=(20, 25, 30), width=150, joint=joint, own=(1, 2, 2), clustered=True, joint_share=1.3)
        found = choose_ranks(simulate(truth, 1), rule)
        assert (found.joint_rank, found.individual_ranks, found.rule) == (joint, truth.individual_ranks, rule)
        assert found.settled
        passed = [s > t for s, t in zip(found.statistics, found.thresholds, strict=False)]
        assert all(passed[:joint]) and not any(passed[joint : joint + 1])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 3), st.lists(st.integers(0, 3), min_size=2, max_size=4), st.integers(0, 10**6))
def test_ranks_of_blocks_without_noise_are_exact(joint: int, own: list[int], seed: int) -> None:
    own = [max(rank, 0 if joint else 1) for rank in own]
    truth = Truth(rows=(8,) * len(own), width=50, joint=joint, own=tuple(own), noise=0.0)
    found = choose_ranks(simulate(truth, seed))
    assert (found.joint_rank, found.individual_ranks) == (joint, tuple(own))


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(RULES), st.permutations(range(3)), st.sampled_from([NOISY, EXACT]), st.integers(0, 10**6))
def test_the_order_of_the_blocks_changes_no_rank(rule: Rule, order: list[int], truth: Truth, seed: int) -> None:
    blocks = simulate(truth, seed)
    one, two = choose_ranks(blocks, rule), choose_ranks([blocks[i] for i in order], rule)
    assert one.joint_rank == two.joint_rank
    assert tuple(one.individual_ranks[i] for i in order) == two.individual_ranks
    assert tuple(one.signal_ranks[i] for i in order) == two.signal_ranks


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(RULES), st.sampled_from([NOISY, EXACT]), st.integers(0, 10**6))
def test_orthogonal_transforms_of_rows_change_no_rank(rule: Rule, truth: Truth, seed: int) -> None:
    blocks = simulate(truth, seed)
    one, two = choose_ranks(blocks, rule), choose_ranks([rotated(b, seed + i) for i, b in enumerate(blocks)], rule)
    assert (one.joint_rank, one.individual_ranks) == (two.joint_rank, two.individual_ranks)
    assert one.thresholds == pytest.approx(two.thresholds, rel=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(rule: Rule) -> None:
    blocks = simulate(NOISY, 0)
    one, two, other = (choose_ranks(blocks, rule, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert one == two
    assert one.thresholds != other.thresholds or one.edges != other.edges


@pytest.mark.parametrize("rule", RULES)
def test_truncated_svds_of_great_width_are_cheap_and_give_their_shared_directions(rule: Rule) -> None:
    g = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(32_768, 20, generator=g)).Q.T
    sigma = torch.linspace(2.0, 1.0, 8)[:, None]
    blocks = [sigma * rotated(frame[[0, 1, 2, *range(3 + 5 * i, 8 + 5 * i)]], i) for i in range(3)]
    begun = time.monotonic()
    found = choose_ranks(blocks, rule, signal_ranks=[8] * 3)
    assert time.monotonic() - begun < 20
    if rule == "permutation":  # which compares loudness, and takes the loudest of their own for shared as well
        assert found.joint_rank >= 3
    else:
        assert (found.joint_rank, found.individual_ranks) == (3, (5, 5, 5))


def test_rows_that_are_all_signal_are_joint_where_nearer_to_all_blocks_than_to_all_but_one() -> None:
    axes = torch.eye(400, dtype=torch.float64)
    for cosine, joint in ((0.8, 1), (0.7, 0)):
        # Three unit vectors with the same angle between any two: their largest square is 1 + 2 cosine.
        vectors = torch.stack([cosine**0.5 * axes[0] + (1 - cosine) ** 0.5 * axes[1 + i] for i in range(3)])
        blocks = [torch.stack([v, 0.5 * axes[10 + i]]) for i, v in enumerate(vectors)]
        for rule in ("angles", "product"):
            assert choose_ranks(blocks, rule, signal_ranks=[2] * 3).joint_rank == joint


@pytest.mark.parametrize("shape", [(6, 300), (300, 6), (9, 9)])
def test_what_is_drawn_stands_for_a_gaussian_matrix(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    g = torch.Generator().manual_seed(0)
    true = torch.linalg.svdvals(torch.randn(2000, *shape, generator=g, dtype=torch.float64))
    small = torch.stack([torch.linalg.svdvals(gaussian(*shape, rng)) for _ in range(500)])
    assert gaussian(6, 300, rng).shape == (6, 6)
    white = WhiteSpectra(*shape, 2000, rng)
    for index in (0, 3, true.shape[1] - 1):
        values = torch.from_numpy(white.nth(index))
        for drawn in (values, small[:, index]):
            torch.testing.assert_close(drawn.mean(), true[:, index].mean(), rtol=0.01, atol=0.03)
            torch.testing.assert_close(drawn.std(), true[:, index].std(), rtol=0.15, atol=0)
    assert white.median() == pytest.approx(float(true.median()), rel=0.02)
    assert white.energy.mean() == pytest.approx(shape[0] * shape[1], rel=0.01)
    assert not white.nth(true.shape[1]).any()


def test_bisection_finds_the_singular_values_of_the_very_matrix_drawn() -> None:
    white = WhiteSpectra(7, 7, 3, np.random.default_rng(1))
    for draw in range(3):
        off = white._squares[:, draw] ** 0.5
        full = np.diag(white._diagonal[:, draw]) + np.diag(off, 1) + np.diag(off, -1)
        expected = np.linalg.eigvalsh(full)[::-1].clip(0.0) ** 0.5
        np.testing.assert_allclose([white.nth(k)[draw] for k in range(7)], expected, atol=1e-6)


@pytest.mark.parametrize("width", [9, 40])
def test_frames_are_orthonormal_and_turn_freely_against_each_other(width: int) -> None:
    ranks, rng = [3, 2, 4], np.random.default_rng(0)
    cosines = []
    for _ in range(800):
        parts = frames(ranks, width, rng).split(ranks)
        for part in parts:
            torch.testing.assert_close(part @ part.T, torch.eye(len(part)).double(), atol=1e-12, rtol=0)
        cosines.append([float((parts[i] @ parts[j].T).square().sum()) for i, j in ((0, 1), (0, 2), (1, 2))])
    expected = [3 * 2 / width, 3 * 4 / width, 2 * 4 / width]
    np.testing.assert_allclose(np.mean(cosines, axis=0), expected, rtol=0.08)


@pytest.mark.parametrize("shape", [(60, 10), (10, 60), (12, 11)])
def test_bootstrap_by_triangles_has_the_overlaps_of_whole_matrices(shape: tuple[int, int]) -> None:
    rng, strength = np.random.default_rng(0), torch.tensor([14.0, 9.0], dtype=torch.float64)
    small = torch.stack([_leading_rows(strength, *shape, rng) for _ in range(600)])
    whole = torch.from_numpy(rng.standard_normal((600, *shape)))
    whole[:, range(2), range(2)] += strength
    true = torch.linalg.svd(whole, full_matrices=False).Vh[:, :2, :2]
    torch.testing.assert_close(small.square().mean(0), true.square().mean(0), rtol=0.05, atol=0.01)


MEMORY = """
import resource, torch
from pipeline.jive_ranks import choose_ranks
g = torch.Generator().manual_seed(0)
for rows, width in ((900, 150), (150, 900)):
    blocks = [torch.randn(rows, width, generator=g, dtype=torch.float64) for _ in range(2)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for rule in ("product", "angles"):
        choose_ranks(blocks, rule)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024, (rows, width)
"""


def test_tall_and_wide_blocks_need_no_more_than_one_draw_in_memory() -> None:
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", MEMORY], check=True, timeout=120)
    assert time.monotonic() - begun < 60


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(RULES), st.integers(2, 4), st.integers(4, 9), st.integers(5, 30), st.integers(0, 3),
    st.booleans(), st.booleans(), st.booleans(), st.integers(0, 10**6),
)  # fmt: skip
def test_what_is_chosen_always_fits_jive_with_the_same_settings(
    rule: Rule, count: int, rows: int, width: int, joint: int, exact: bool, orthogonal: bool, center: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(joint + 1, width, generator=g, dtype=torch.float64)
    blocks = []
    for _ in range(count):
        signal = torch.randn(rows, joint + 1, generator=g, dtype=torch.float64) @ shared
        own = torch.randn(rows, 2, generator=g, dtype=torch.float64) @ torch.randn(2, width, generator=g).double()
        blocks.append(signal + own + (0.0 if exact else 0.1) * torch.randn(rows, width, generator=g).double())
    options = {"orthogonal_individuals": orthogonal, "center": center, "max_iterations": 3}
    choice = choose_ranks(blocks, rule, orthogonal_individuals=orthogonal, draws=20)
    found = jive(blocks, choice=choice, **options)  # type: ignore[arg-type]
    if not center:
        assert found.ranks == choice
    loose = choose_ranks(blocks, rule, draws=20)
    for given_joint in (0, min(rows, width) - 1):
        jive(blocks, given_joint, choice=loose, **options)  # type: ignore[arg-type]
    jive(blocks, None, [1] * count, choice=loose, **options)  # type: ignore[arg-type]


def test_orthogonal_parts_without_room_give_up_their_weakest_directions() -> None:
    g = torch.Generator().manual_seed(0)
    blocks = [size * torch.randn(8, 12, generator=g, dtype=torch.float64) for size in (1.0, 2.0, 1.5)]
    free = choose_ranks(blocks, "angles", scale=False, signal_ranks=[8] * 3)
    cut = choose_ranks(blocks, "angles", scale=False, signal_ranks=[8] * 3, orthogonal_individuals=True)
    room = 12 - cut.joint_rank
    assert sum(free.individual_ranks) > room == sum(cut.individual_ranks)
    kept = [s[: cut.joint_rank + rank] for s, rank in zip(cut.spectra, cut.individual_ranks, strict=True)]
    lost = [s[cut.joint_rank + rank :] for s, rank in zip(cut.spectra, cut.individual_ranks, strict=True)]
    assert min(s[-1] for s in kept if len(s) > cut.joint_rank) >= max(s[0] for s in lost if s)
    used = jive(blocks, choice=free, scale=False, orthogonal_individuals=True, max_iterations=2).ranks
    assert used == cut


def test_arrays_give_the_ranks_of_tensors_and_no_draw_touches_the_global_generators() -> None:
    blocks = simulate(NOISY, 0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    found = choose_ranks([block.numpy() for block in blocks], signal_ranks=np.array([4, 5, 6]))  # type: ignore[arg-type]
    assert found == choose_ranks(blocks, signal_ranks=[4, 5, 6])
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]


def test_rotation_stands_for_permutation_of_the_columns() -> None:
    blocks = simulate(NOISY, 0)
    turned = _rotated_spectra(blocks, NOISY.width, 200, np.random.default_rng(0)).mean(0)
    g = torch.Generator().manual_seed(0)
    permuted = [torch.cat([b[:, torch.randperm(NOISY.width, generator=g)] for b in blocks]) for _ in range(200)]
    torch.testing.assert_close(turned, torch.linalg.svdvals(torch.stack(permuted)).mean(0), rtol=0.03, atol=0)


def test_centred_rows_are_not_taken_for_an_exact_rank() -> None:
    truth = Truth(rows=(120, 100), width=40, joint=1, own=(1, 2), strength=3.0)
    centred = [b - b.mean(1, keepdim=True) for b in simulate(truth, 0)]
    found = choose_ranks(centred)
    assert (found.joint_rank, found.individual_ranks) == (1, (1, 2))


@pytest.mark.parametrize("rule", RULES)
def test_blocks_of_noise_alone_have_no_ranks_and_split_into_nothing(rule: Rule) -> None:
    blocks = simulate(Truth(rows=(12, 15), width=60, joint=0, own=(0, 0)), 0)
    found = jive(blocks, choice=choose_ranks(blocks, rule))
    assert (found.ranks.joint_rank, found.ranks.individual_ranks) == (0, (0, 0))
    assert found.converged and found.residual == pytest.approx(1.0)


def test_jive_uses_the_chosen_ranks_and_says_so() -> None:
    blocks = simulate(NOISY, 0)
    auto = jive(blocks)
    assert (auto.ranks.joint_rank, auto.ranks.individual_ranks) == (2, (1, 2, 2))
    assert auto.ranks.rule == DEFAULT_RULE and auto.ranks.thresholds
    given_ranks = jive(blocks, 2, [1, 2, 2])
    assert given_ranks.ranks.rule == "given"
    for a, b in zip(auto.individual, given_ranks.individual, strict=True):
        assert torch.equal(a, b)
    other = choose_ranks(blocks, "permutation")
    assert jive(blocks, choice=other).ranks is not None and jive(blocks, choice=other).ranks.rule == "permutation"
    half = jive(blocks, 0, choice=other)
    assert half.ranks.joint_rank == 0 and half.ranks.individual_ranks == tuple(
        rank + other.joint_rank for rank in other.individual_ranks
    )
    assert half.ranks.rule == "permutation"
    narrow = jive(blocks, 47, choice=other)
    assert narrow.ranks.individual_ranks == (1, 1, 1)


def test_bad_input_is_named() -> None:
    good = simulate(NOISY, 0)
    cases = [
        (good[:1], {}, "at least two"),
        ([good[0], good[1][:, :50]], {}, "one width"),
        ([good[0], good[1] * torch.nan], {}, "block 1"),
        ([good[0], good[1] * 0], {}, "only zeros"),
        (good, {"rule": "angels"}, "permutation, angles, product"),
        (good, {"signal_ranks": [1, 1]}, "signal_ranks: found 2; expected one rank for each of 3"),
        (good, {"signal_ranks": [1, 13, 1]}, "signal rank of block 1: found 13; expected 1 to 12"),
        (good, {"draws": 5}, "at least 20"),
        (good, {"draws": 50.0}, "draws: found 50.0; expected a whole number"),
        (good, {"signal_ranks": [1, 2.0, 1]}, r"signal_ranks\[1\]: found 2.0; expected a whole number, at least 1"),
        (good, {"signal_ranks": 2}, "signal_ranks: found 2; expected one rank for each of 3"),
        ([], {}, "blocks: found 0; expected at least two"),
        ([good[0].numpy() > 0, good[1].numpy()], {}, "block 0: found entries of type bool"),
        ([b[:3] for b in good], {}, "at least 4 to tell signal from noise. Give signal_ranks"),
    ]
    for blocks, options, message in cases:
        with pytest.raises(InputError, match=message):
            choose_ranks(blocks, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="block 1: found only zeros"):
        jive([good[0], good[1] * 0])
    with pytest.raises(InputError, match="choice: found ranks of 2 blocks"):
        jive(good, choice=RankChoice(1, (1, 1), "product"))
    with pytest.raises(InputError, match="choice: found tuple"):
        jive(good, choice=(1, [1, 1, 1]))  # type: ignore[arg-type]
