"""Ranks chosen from blocks: truth recovered where it can be, nothing that depends on order, basis or width."""

from __future__ import annotations

import time
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.jive import jive
from pipeline.jive_ranks import DEFAULT_RULE, Rule, _gaussian, _rotated_spectra, choose_ranks
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


def test_the_drawn_triangle_stands_for_a_wide_gaussian_matrix() -> None:
    drawn = torch.linalg.svdvals(_gaussian(6, 500, 400, np.random.default_rng(0)))
    assert drawn.shape == (400, 6) and _gaussian(6, 500, 2, np.random.default_rng(0)).shape == (2, 6, 6)
    g = torch.Generator().manual_seed(0)
    true = torch.linalg.svdvals(torch.randn(400, 6, 500, generator=g, dtype=torch.float64))
    torch.testing.assert_close(drawn.mean(0), true.mean(0), rtol=0.01, atol=0)
    torch.testing.assert_close(drawn.std(0), true.std(0), rtol=0.15, atol=0)


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
        ([b[:3] for b in good], {}, "at least 4 to tell signal from noise. Give signal_ranks"),
    ]
    for blocks, options, message in cases:
        with pytest.raises(InputError, match=message):
            choose_ranks(blocks, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="block 1: found only zeros"):
        jive([good[0], good[1] * 0])
