"""Metrics against closed forms and dense truth; searches and intervals against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.metrics import (
    bootstrap_interval,
    captured_energy,
    local_linearity,
    mask_iou,
    psnr_outside,
    rank_ratio,
    rank_ratio_matrix_free,
    rms_inside,
    roir,
    ssim_outside,
    success,
    visible_strength,
)
from pipeline.operators import Dense
from pipeline.svd import truncated_svd


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corner(size: int = 8) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[: size // 2, : size // 2] = True
    return mask


def images(count: int = 2, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=seeded(seed)) * 2 - 1


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 2.0), st.floats(0.0, 2.0), st.floats(0.1, 5.0))
def test_roir_is_the_ratio_of_norms_and_blind_to_scale(inside: float, outside: float, scale: float) -> None:
    mask, before = corner(), images()
    d = torch.where(mask, inside, outside)
    expected = outside * math.sqrt(48) / (inside * math.sqrt(16))
    for factor in (1.0, -scale):
        found = roir(before.double(), before.double() + factor * d, mask)
        torch.testing.assert_close(found, torch.full((2,), expected).double(), rtol=1e-5, atol=1e-6)


def test_roir_without_change_inside_is_infinite_and_without_change_outside_zero() -> None:
    mask, before = corner(), images()
    assert roir(before, before + (~mask).float(), mask).isinf().all()
    assert roir(before, before, mask).isinf().all()
    assert float(roir(before, before + mask.float(), mask).abs().max()) == 0.0


def test_masks_may_differ_per_image() -> None:
    masks = torch.stack([corner(), ~corner()])
    before = images()
    found = roir(before, before + corner().float(), masks)
    assert float(found[0]) == 0.0 and math.isinf(float(found[1]))


def test_rms_inside_counts_pixels_and_channels_of_the_mask_only() -> None:
    d = torch.where(corner(), 0.3, 7.0).expand(2, 3, 8, 8)
    torch.testing.assert_close(rms_inside(d, corner()), torch.full((2,), 0.3))


def test_psnr_outside_matches_its_formula_and_ignores_the_inside() -> None:
    before = images()
    after = before + torch.where(corner(), 5.0, 0.02)
    torch.testing.assert_close(psnr_outside(before, after, corner()), torch.full((2,), 40.0), atol=1e-3, rtol=0)
    assert psnr_outside(before, before, corner()).isinf().all()


def test_ssim_outside_is_one_for_a_change_inside_and_falls_with_a_change_outside() -> None:
    before, mask = images(size=24), corner(24)
    mask[8:, 8:] = False
    small = torch.zeros(24, 24)
    small[:5, :5] = 1.0  # windows of 7x7 reach 3 pixels beyond: keep them inside the mask
    torch.testing.assert_close(ssim_outside(before, before + small, mask), torch.ones(2))
    noisy = before + 0.3 * torch.randn(before.shape, generator=seeded(1)) * (~mask)
    assert bool((ssim_outside(before, noisy, mask) < 0.95).all())


def test_mask_iou_closed_forms() -> None:
    a = corner()
    assert float(mask_iou(a, a)) == 1.0 and float(mask_iou(a, ~a)) == 0.0
    assert float(mask_iou(a, torch.zeros_like(a))) == 0.0
    assert float(mask_iou(a, torch.ones_like(a))) == pytest.approx(0.25)
    assert mask_iou(torch.stack([a, a]), torch.stack([a, ~a])).tolist() == [1.0, 0.0]


def decoder(power: float, gains: torch.Tensor, calls: list[int]):  # type: ignore[no-untyped-def]
    """Change inside the mask of RMS gain * |strength| ** power, saturating at 0.9."""

    def decode(strengths: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        calls.append(len(cases))
        change = strengths.sign() * (gains[cases] * strengths.abs() ** power).clamp(max=0.9)
        return change.view(-1, 1, 1, 1) * corner() + torch.zeros(len(cases), 3, 8, 8)

    return decode


@settings(max_examples=25, deadline=None)
@given(st.floats(0.7, 1.4), st.floats(0.2, 5.0), st.booleans())
def test_visible_strength_hits_the_target_within_its_evaluations(power: float, guess: float, negative: bool) -> None:
    gains, calls = torch.tensor([0.05, 0.1, 0.2]), []  # type: ignore[var-annotated]
    sign = -1.0 if negative else 1.0
    found = visible_strength(
        decoder(power, gains, calls),
        torch.zeros(3, 3, 8, 8),
        corner(),
        first_guess=sign * guess,
        limit=50.0,
        evaluations=8,
    )
    assert bool(found.reached.all()) and not bool(found.limited.any())
    assert len(calls) == found.evaluations <= 8
    assert bool(((found.rms - 0.15).abs() <= 0.05 * 0.15).all())
    assert bool((found.strength.sign() == sign).all())
    torch.testing.assert_close(rms_inside(found.images, corner()), found.rms)
    assert float(found.roir.abs().max()) == 0.0


def test_linear_change_is_found_in_two_evaluations() -> None:
    calls: list[int] = []
    visible_strength(
        decoder(1.0, torch.tensor([0.05, 0.1]), calls),
        torch.zeros(2, 3, 8, 8),
        corner(),
        first_guess=torch.tensor([1.0, 2.5]),
        limit=50.0,
    )
    assert len(calls) == 2


def test_settled_cases_are_not_decoded_again() -> None:
    calls: list[int] = []
    visible_strength(
        decoder(1.0, torch.tensor([0.15, 0.1]), calls),
        torch.zeros(2, 3, 8, 8),
        corner(),
        first_guess=1.0,
        limit=50.0,
    )
    assert calls == [2, 1]


def test_range_limit_is_reported_and_never_exceeded() -> None:
    tried: list[float] = []
    inner = decoder(1.0, torch.tensor([0.01, 0.1]), [])

    def decode(strengths: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        tried.append(float(strengths.abs().max()))
        return inner(strengths, cases)  # type: ignore[no-any-return]

    found = visible_strength(decode, torch.zeros(2, 3, 8, 8), corner(), first_guess=1.0, limit=5.0)
    assert found.limited.tolist() == [True, False] and found.reached.tolist() == [False, True]
    assert float(found.strength[0]) == 5.0 and max(tried) <= 5.0


def test_broken_pictures_count_as_too_strong() -> None:
    def decode(strengths: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        change = torch.where(strengths > 3, math.nan, 0.1 * strengths)
        return change.view(-1, 1, 1, 1).expand(1, 3, 8, 8)

    found = visible_strength(decode, torch.zeros(1, 3, 8, 8), corner(), first_guess=4.0, limit=9.0, evaluations=8)
    assert bool(found.reached.all()) and bool(torch.isfinite(found.images).all())


def test_rank_ratio_of_known_spectra() -> None:
    assert rank_ratio(torch.ones(100), 100) == pytest.approx(0.99)
    assert rank_ratio(torch.tensor([10.0, 0.0, 0.0]), 10) == 0.1
    assert rank_ratio(torch.zeros(5), 5) == 0.0
    assert rank_ratio(torch.tensor([1.0, 3.0]), 4, energy=0.9) == 0.25


def low_rank(decay: float = 0.7, n: int = 80) -> Dense:
    g = seeded()
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0] for _ in range(2))
    return Dense((left * decay ** torch.arange(n).double()) @ right.T, (n,), (n,))


def test_matrix_free_energy_and_rank_match_the_dense_spectrum() -> None:
    op = low_rank()
    truth = torch.linalg.svdvals(op.matrix)
    svd = truncated_svd(op, 8, generator=seeded(1), tolerance=1e-5)
    share = captured_energy(op, svd, generator=seeded(2), samples=64)
    exact = float(truth[:8].square().sum() / truth.square().sum())
    assert share.low <= exact <= share.high and share.high - share.low < 5e-3
    found = rank_ratio_matrix_free(op, svd, generator=seeded(2))
    assert found.resolved and found.low <= rank_ratio(truth, 80) <= found.high
    few = truncated_svd(op, 2, generator=seeded(1), tolerance=1e-3)
    unresolved = rank_ratio_matrix_free(op, few, generator=seeded(2))
    assert not unresolved.resolved and unresolved.ratio == pytest.approx(3 / 80) and unresolved.high == 1.0


def test_stochastic_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    op = low_rank(0.9, 40)
    svd = truncated_svd(op, 3, generator=seeded(1), tolerance=1e-4)
    truth = torch.linalg.svdvals(op.matrix).square()
    exact = float(svd.sigma.square().sum() / truth.sum())
    hits = 0
    for seed in range(60):
        interval = captured_energy(op, svd, generator=seeded(seed), samples=16)
        hits += interval.low <= exact <= interval.high
    assert hits >= 51


def test_captured_energy_of_everything_is_one() -> None:
    zero = Dense(torch.zeros(9, 9), (9,), (9,))
    svd = truncated_svd(zero, 2, generator=seeded())
    assert captured_energy(zero, svd, generator=seeded()).estimate == 1.0
    thin = Dense(torch.outer(torch.arange(9.0), torch.ones(9)).double(), (9,), (9,))
    whole = truncated_svd(thin, 2, generator=seeded())
    assert captured_energy(thin, whole, generator=seeded()).estimate == pytest.approx(1.0, abs=1e-9)


def test_linearity_is_perfect_for_a_linear_map_and_tells_a_quadratic_one() -> None:
    matrix = torch.randn(6, 6, generator=seeded(), dtype=torch.float64)
    x = torch.randn(2, 6, generator=seeded(1), dtype=torch.float64)
    v = torch.randn(2, 6, generator=seeded(2), dtype=torch.float64)
    exact = local_linearity(lambda z: z @ matrix.T, x, v, 3.0, v @ matrix.T)
    for figure in (exact.cosine, exact.norm_ratio, exact.value_cosine, exact.value_norm_ratio):
        torch.testing.assert_close(figure, torch.ones(2).double())
    bent = local_linearity(lambda z: 100 + z + z**2, torch.zeros(1, 1), torch.ones(1, 1), 2.0, torch.ones(1, 1))
    assert float(bent.norm_ratio) == pytest.approx(3.0) and float(bent.value_norm_ratio) == pytest.approx(106 / 102)
    with pytest.raises(InputError, match="jvp"):
        local_linearity(lambda z: z, x, v, 1.0, v[:, :2])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.sampled_from(["median", "mean"]))
def test_bootstrap_interval_holds_its_estimate_and_is_seeded(values: list[float], statistic: str) -> None:
    items = torch.tensor(values, dtype=torch.float64)
    first, again = (bootstrap_interval(items, statistic, generator=seeded(3)) for _ in range(2))  # type: ignore[arg-type]
    assert first == again
    truth = np.median(values) if statistic == "median" else np.mean(values)
    assert first.estimate == pytest.approx(float(truth), abs=1e-12)
    assert items.min() - 1e-12 <= first.low <= first.high <= items.max() + 1e-12


def test_bootstrap_keeps_infinite_ratios_and_refuses_nan() -> None:
    found = bootstrap_interval(torch.tensor([1.0, 2.0, 3.0, 4.0, math.inf]), generator=seeded())
    assert found.estimate == 3.0 and math.isinf(found.high)
    with pytest.raises(InputError, match="NaN"):
        bootstrap_interval(torch.tensor([1.0, math.nan]), generator=seeded())
    with pytest.raises(InputError, match="values"):
        bootstrap_interval(torch.zeros(0), generator=seeded())


BEFORE = {"smile": 0.4, "opening": 0.2, "eye": 0.5, "light": 0.5}
OWN = ("smile", "opening")


def moved(**changes: float) -> dict[str, float]:
    return {name: value + changes.get(name, 0.0) for name, value in BEFORE.items()}


def test_success_needs_an_own_move_still_others_and_a_low_roir() -> None:
    good = success(BEFORE, moved(smile=-0.2, eye=0.05), OWN, 0.5)
    assert good.success and good.factor == "smile" and good.sign == -1 and good.other == "eye"
    assert not success(BEFORE, moved(smile=0.14), OWN, 0.5).success
    assert not success(BEFORE, moved(smile=0.2, eye=-0.11), OWN, 0.5).success
    assert not success(BEFORE, moved(smile=0.2, light=0.2), OWN, 0.5).success
    assert success(BEFORE, moved(smile=0.2, light=0.2), OWN, 0.5, others=["eye"]).success
    assert not success(BEFORE, moved(smile=0.2), OWN, 1.01).success
    assert not success(BEFORE, moved(smile=0.2), OWN, math.nan).success
    assert success(BEFORE, moved(smile=0.2, opening=0.6), OWN, 1.0).factor == "opening"


def test_transfer_needs_the_same_factor_and_sign() -> None:
    home = success(BEFORE, moved(smile=0.2), OWN, 0.5)
    assert success(BEFORE, moved(smile=0.18, opening=0.5), OWN, 0.5, like=home).success
    assert not success(BEFORE, moved(smile=-0.3), OWN, 0.5, like=home).success
    assert not success(BEFORE, moved(opening=0.5), OWN, 0.5, like=home).success


def test_bad_input_is_named() -> None:
    before, mask = images(), corner()
    cases = [
        (lambda: roir(before, before[:1], mask), "after"),
        (lambda: roir(before, before, mask[:4]), "mask"),
        (lambda: roir(before, before, torch.zeros_like(mask)), "empty mask"),
        (lambda: psnr_outside(before, before, torch.ones_like(mask)), "outside"),
        (lambda: ssim_outside(before[..., :5, :5], before[..., :5, :5], mask[:5, :5]), "image size"),
        (lambda: rank_ratio(torch.tensor([-1.0]), 3), "singular_values"),
        (lambda: rank_ratio(torch.ones(5), 3), "dimension"),
        (lambda: success(BEFORE, BEFORE, (), 0.1), "own"),
        (lambda: success(BEFORE, BEFORE, ("beard",), 0.1), "beard"),
        (lambda: visible_strength(lambda s, i: before, before, mask, first_guess=0.0, limit=1.0), "first_guess"),
        (lambda: visible_strength(lambda s, i: before, before, mask, first_guess=2.0, limit=1.0), "first_guess"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()  # type: ignore[no-untyped-call]
