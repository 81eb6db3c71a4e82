from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from pipeline.errors import InputError
from pipeline.perception.distributions import frechet_distance, kernel_distance


def normal(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn((count, width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(count: int, mean: torch.Tensor, deviations: torch.Tensor, seed: int) -> torch.Tensor:
    """Features whose sample mean and covariance are exactly `mean` and diag(deviations^2)."""
    x = normal(count, len(mean), seed)
    basis = torch.linalg.qr(x - x.mean(0)).Q
    return basis * math.sqrt(count - 1) * deviations + mean


def test_fid_of_two_gaussians_is_the_closed_form() -> None:
    mean_a, mean_b = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5, 1.0, 1.0])
    deviation_a, deviation_b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.5, 2.0, 0.7])
    a, b = with_moments(50, mean_a, deviation_a, 0), with_moments(80, mean_b, deviation_b, 1)
    expected = float((mean_a - mean_b).square().sum() + (deviation_a - deviation_b).square().sum())
    found = frechet_distance(a, b)
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert found.counts == (50, 80) and not found.few


def test_fid_is_that_of_a_general_matrix_square_root() -> None:
    mix = normal(6, 6, 2)
    a, b = normal(40, 6, 3) @ mix + 0.3, normal(30, 6, 4)
    first, second = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = scipy.linalg.sqrtm(first @ second).real
    gap = a.numpy().mean(0) - b.numpy().mean(0)
    expected = gap @ gap + np.trace(first + second - 2 * root)
    assert frechet_distance(a, b).value == pytest.approx(expected, rel=1e-9)


def test_fid_is_zero_for_equal_sets_symmetric_and_blind_to_rotations_of_both() -> None:
    a, b = normal(40, 6, 5), 1.2 * normal(40, 6, 6) + 0.1
    rotation = torch.linalg.qr(normal(6, 6, 7)).Q
    value = frechet_distance(a, b).value
    assert frechet_distance(a, a).value == pytest.approx(0, abs=1e-12)
    assert frechet_distance(b, a).value == pytest.approx(value, rel=1e-9)
    assert frechet_distance(a @ rotation, b @ rotation).value == pytest.approx(value, rel=1e-9)


def test_fid_of_fewer_images_than_features_is_refused_or_flagged() -> None:
    a, b = normal(5, 8, 8), normal(50, 8, 9)
    with pytest.raises(InputError, match="FID: images: found 5 and 50; expected at least 8.*use KID"):
        frechet_distance(a, b)
    flagged = frechet_distance(a, b, allow_few=True)
    assert flagged.few and flagged.value > frechet_distance(normal(50, 8, 10), b).value


def test_fid_of_inception_features_wants_2048_images() -> None:
    few = torch.zeros(2047, 2048)
    with pytest.raises(InputError, match="at least 2048"):
        frechet_distance(few, few)


def plain_kid(x: torch.Tensor, y: torch.Tensor) -> float:
    kernel = lambda a, b: (float(a @ b) / len(a) + 1) ** 3  # noqa: E731
    n, m = len(x), len(y)
    own_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    own_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own_x + own_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kid_and_its_standard_error_are_those_of_plain_loops() -> None:
    x, y = normal(6, 4, 11), 0.5 + normal(5, 4, 12)
    found = kernel_distance(x, y)
    without_x = [plain_kid(torch.cat([x[:i], x[i + 1 :]]), y) for i in range(6)]
    without_y = [plain_kid(x, torch.cat([y[:i], y[i + 1 :]])) for i in range(5)]
    variance = 5 * np.var(without_x) + 4 * np.var(without_y)
    assert found.value == pytest.approx(plain_kid(x, y), rel=1e-9)
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=1e-9)


def test_kid_is_zero_on_average_for_equal_distributions_whatever_the_counts() -> None:
    for counts in ((8, 8), (20, 5)):
        values = torch.tensor([
            kernel_distance(normal(counts[0], 6, 1000 + i), normal(counts[1], 6, 5000 + i)).value for i in range(600)
        ])  # fmt: skip
        assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(600)
        assert float((values < 0).float().mean()) > 0.2  # it is not clamped


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 1.0, 1.6), (0.7, 0.85, 1.2)])
def test_the_standard_error_of_kid_is_its_spread_over_repeats(shift: float, low: float, high: float) -> None:
    found = [kernel_distance(normal(60, 8, 100 + i), shift + normal(60, 8, 900 + i)) for i in range(300)]
    spread = float(torch.tensor([one.value for one in found]).std())
    ratio = float(torch.tensor([one.standard_error for one in found]).square().mean().sqrt()) / spread
    assert low < ratio < high


def test_kid_sees_a_difference_many_standard_errors_away() -> None:
    found = kernel_distance(normal(100, 8, 20), 1.0 + normal(1100, 8, 21))  # more than a block of rows
    assert found.value > 5 * found.standard_error > 0


def test_features_that_make_no_sense_are_refused() -> None:
    good = normal(5, 3, 13)
    for bad in (normal(5, 4, 14), good[0], good[:1], good * math.nan):
        for distance in (frechet_distance, kernel_distance):
            with pytest.raises(InputError, match="features"):
                distance(good, bad)
