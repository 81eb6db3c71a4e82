"""Statistics over many edits with their confidence intervals, by bootstrap over images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Figure:
    """A statistic with its 95 % interval by bootstrap over images, and over how many values."""

    estimate: float
    low: float
    high: float
    count: int


def figure(
    values: Sequence[float],
    images: Sequence[str],
    statistic: Literal["median", "mean"] = "median",
    *,
    samples: int = 2000,
    seed: int = 0,
) -> Figure:
    """Percentile bootstrap that draws whole images: values of one image are not independent of each other.

    `images` names the image of each value. Infinite values are kept (a median survives some); no values give NaN.
    """
    if not values:
        return Figure(math.nan, math.nan, math.nan, 0)
    order = np.argsort(np.asarray(values, dtype=np.float64), kind="stable")
    numbers = np.asarray(values, dtype=np.float64)[order]
    _, image_of = np.unique(np.asarray(images)[order], return_inverse=True)
    count = int(image_of.max()) + 1
    pick = np.random.default_rng(seed).integers(count, size=(samples, count))
    drawn = np.zeros((samples + 1, count), dtype=np.int64)  # how often each sample drew each image
    np.add.at(drawn, (np.arange(samples)[:, None], pick), 1)
    drawn[-1] = 1  # the last row is the data itself
    compute = _medians if statistic == "median" else _means
    results = compute(numbers, drawn[:, image_of])
    low, high = np.sort(results[:-1])[[round(q * (samples - 1)) for q in (0.025, 0.975)]]
    return Figure(float(results[-1]), float(low), float(high), len(values))


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
