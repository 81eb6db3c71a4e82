"""Statistics over many edits with their confidence intervals: values of one image are not independent of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.errors import InputError

_NORMAL = 1.959964  # 97.5 % quantile
_FEW = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706)  # of Student's t with 1 to 5 degrees of freedom
_SHIFT = 1 / 3  # of one value; see `_proportion`


@dataclass(frozen=True)
class Figure:
    """A statistic with its 95 % interval, see `figure`, and over how many values."""

    estimate: float
    low: float
    high: float
    count: int


def figure(
    values: Sequence[float],
    images: Sequence[str],
    statistic: Literal["median", "mean"] = "median",
    *,
    crossed: Sequence[str] | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> Figure:
    """Percentile bootstrap that draws whole images; the mean of nothing but 0 and 1 has `_proportion`'s interval.

    `images` names the image of each value. Infinite values are kept (a median survives some); no values give NaN. A
    bootstrap never leaves the values that it draws from, so a proportion near 1 would get an interval that is too short
    or no width at all. `crossed` names a second image of each value, as the target of a transfer; the interval of a
    proportion allows for both. `samples` and `seed` are the bootstrap's.

    Raises:
        InputError: a second image of values that are no proportion.
    """
    if not values:
        return Figure(math.nan, math.nan, math.nan, 0)
    order = np.argsort(np.asarray(values, dtype=np.float64), kind="stable")
    numbers = np.asarray(values, dtype=np.float64)[order]
    _, image_of = np.unique(np.asarray(images)[order], return_inverse=True)
    if statistic == "mean" and bool(np.isin(numbers, (0.0, 1.0)).all()):
        other_of = None if crossed is None else np.unique(np.asarray(crossed)[order], return_inverse=True)[1]
        return _proportion(numbers, image_of, other_of)
    if crossed is not None:
        raise InputError("crossed", f"a {statistic} of values that are not all 0 or 1", "a proportion")
    count = int(image_of.max()) + 1
    pick = np.random.default_rng(seed).integers(count, size=(samples, count))
    drawn = np.zeros((samples + 1, count), dtype=np.int64)  # how often each sample drew each image
    np.add.at(drawn, (np.arange(samples)[:, None], pick), 1)
    drawn[-1] = 1  # the last row is the data itself
    compute = _medians if statistic == "median" else _means
    results = compute(numbers, drawn[:, image_of])
    low, high = np.sort(results[:-1])[[round(q * (samples - 1)) for q in (0.025, 0.975)]]
    return Figure(float(results[-1]), float(low), float(high), len(values))


def _proportion(values: np.ndarray, image_of: np.ndarray, other_of: np.ndarray | None = None) -> Figure:
    """Wilson's interval (1927) of a share of successes, with the effective sample size of values in images.

    The n values (n,), 0 or 1, count as n / deff: deff is the variance of their mean over images, by linearisation, over
    the binomial p (1 - p) / n (the design effect; Kish 1965, section 5.4). As it is itself estimated, from few images,
    it grows by (t / 1.96)^2, t with images - 1 degrees of freedom (Korn and Graubard 1998). It lies between 1,
    independent values, and b = sum of m^2 / n over images of m values, where the values of an image are all alike
    (images of equal size then count once each); b also where it cannot be told: all succeed, all fail, or one image.

    Where each value is of a second image too, the variance is that over the images, plus that over the second ones,
    less that over pairs, which both hold (two-way clustering; Cameron, Gelbach and Miller 2011, eq. 2.11); t is that of
    the fewer images, and b the larger one: what values share by either image cannot be more than all of them.

    Wilson's limits still fail too often where few values differ from the rest (Brown, Cai and DasGupta 2001), so each
    starts a third of one value outwards from p; a half is the continuity correction, which is wider than needed.
    """
    share, count = float(values.mean()), len(values)
    ways = [image_of] if other_of is None else [image_of, other_of]
    largest = max(float((np.bincount(way) ** 2).sum() / count) for way in ways)
    fewest = min(int(way.max()) + 1 for way in ways)
    effect, binomial = largest, share * (1 - share) / count
    if binomial > 0 and fewest > 1:
        variance = sum(_variance(values - share, way) for way in ways)
        if other_of is not None:
            pairs = np.unique(np.stack(ways), axis=1, return_inverse=True)[1].reshape(-1)
            variance -= _variance(values - share, pairs)
        effect = min(max(variance / binomial * (student(fewest - 1) / _NORMAL) ** 2, 1.0), largest)
    low, high = (_wilson(share + side * _SHIFT * effect / count, count / effect, side) for side in (-1, 1))
    return Figure(share, min(low, share), max(high, share), count)  # by rounding alone a limit of 1 may fall short


def _variance(residuals: np.ndarray, group_of: np.ndarray) -> float:
    """Of the mean of n values, by their residuals (n,) and the groups (n,) that they are alike in."""
    totals = np.bincount(group_of, weights=residuals)
    return len(totals) / (len(totals) - 1) * float((totals**2).sum()) / len(residuals) ** 2


def _wilson(share: float, count: float, side: int) -> float:
    """The lower (`side` -1) or upper (1) limit, within [0, 1], of a share of `count` independent values."""
    share, square = min(max(share, 0.0), 1.0), _NORMAL**2 / count
    edge = _NORMAL * math.sqrt((share * (1 - share) + square / 4) / count)
    return min(max((share + square / 2 + side * edge) / (1 + square), 0.0), 1.0)


def student(freedom: int) -> float:
    """97.5 % quantile of Student's t, within 0.002: a table, then Cornish and Fisher's expansion about the normal one
    (Abramowitz and Stegun 1964, 26.7.5)."""
    if freedom <= len(_FEW):
        return _FEW[freedom - 1]
    z = _NORMAL
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _medians(numbers: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Medians (s,) of sorted `numbers` (n,) repeated `weights` (s, n) times."""
    until = weights.cumsum(1)
    total = until[:, -1:]
    ends = [numbers[(until <= middle).sum(1)] for middle in ((total - 1) // 2, total // 2)]
    result: np.ndarray = np.where(ends[0] == ends[1], ends[0], 0.5 * ends[0] + 0.5 * ends[1])
    return result


def _means(numbers: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means (s,) of `numbers` (n,) repeated `weights` (s, n) times; infinite numbers count only where drawn."""
    finite = np.isfinite(numbers)
    sums = weights[:, finite] @ numbers[finite]
    broken = (weights[:, ~finite] > 0).any(1)
    return np.where(broken, np.inf, sums / weights.sum(1))
