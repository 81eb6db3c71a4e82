"""Rank and energy of an operator: the rank ratio of the papers, from a whole spectrum or matrix-free."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch

from pipeline.errors import InputError
from pipeline.operators import LinearOperator
from pipeline.svd import TruncatedSVD

RANK_ENERGY = 0.99**2  # the papers' 0.99 is of the root of the energy


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class RankRatio:
    """Rank over dimension with its interval; `resolved` False: k values do not hold the energy, `ratio` is (k+1)/n."""

    ratio: float
    low: float
    high: float
    resolved: bool


def _squares(sigma: torch.Tensor) -> torch.Tensor:
    values = sigma.double().cpu().flatten()
    if len(values) == 0 or not bool(torch.isfinite(values).all() and (values >= 0).all()):
        raise InputError("singular_values", values.tolist()[:4], "at least one, finite and not negative")
    return values.sort(descending=True).values.square()


def rank_ratio(singular_values: torch.Tensor, dimension: int, energy: float = RANK_ENERGY) -> float:
    """Smallest k whose squared singular values hold `energy` of all, over `dimension`; 0 for a zero matrix.

    `singular_values` is the whole spectrum, in any order. The papers' criterion, sqrt of the share above 0.99, is
    the default.

    Raises:
        InputError: no values, negative or non-finite ones, or a dimension smaller than their number.
    """
    squares = _squares(singular_values)
    if dimension < len(squares):
        raise InputError("dimension", dimension, f"at least the number of singular values, {len(squares)}")
    return _rank(squares, float(squares.sum()), energy) / dimension


def _rank(squares: torch.Tensor, total: float, energy: float) -> int:
    """Smallest k with the first k squares >= energy * total; len + 1 when they do not hold it."""
    if total == 0.0:
        return 0
    return int((squares.cumsum(0) < energy * total * (1 - 1e-12)).sum()) + 1


@dataclass(frozen=True)
class Energy:
    """Squared Frobenius norm held by known triplets, and of the whole operator with its interval."""

    held: float
    total: Interval

    @property
    def share(self) -> Interval:
        """The held one over the whole; 1 for a zero operator."""
        if self.total.estimate == 0.0:
            return Interval(1.0, 1.0, 1.0)
        whole = (self.total.estimate, self.total.high, self.total.low)
        return Interval(*(self.held / value if value else 1.0 for value in whole))


def sampled_energy(
    op: LinearOperator,
    svd: TruncatedSVD,
    *,
    generator: torch.Generator,
    samples: int = 32,
    confidence: float = 0.95,
) -> Energy:
    """Energy held by the triplets, and of all of `op`: ||A||_F^2 = sum sigma^2 + E ||A (I - V V^T) w||^2, w Gaussian.

    The known part is exact (A v = sigma u), so only the rest is sampled, as in Hutch++ (Meyer et al. 2021); t interval.
    Cost: `samples` JVPs. Randomness: `generator`.

    Raises:
        InputError: fewer than 8 samples or a confidence outside (0, 1).
    """
    if samples < 8 or not 0 < confidence < 1:
        raise InputError("samples, confidence", (samples, confidence), "at least 8, and between 0 and 1")
    held = float(svd.sigma.double().square().sum())
    noise = torch.randn(
        (samples, math.prod(op.shape_in)), generator=generator, device=generator.device, dtype=torch.float32
    ).to(svd.v)
    rows = svd.v.flatten(1)
    noise = noise - (noise @ rows.T) @ rows
    images = op.matvec(noise.view(samples, *op.shape_in).to(op.dtype))
    energies = images.double().flatten(1).square().sum(dim=1)
    rest = float(energies.mean())
    half = _student(confidence, samples - 1) * float(energies.std()) / math.sqrt(samples)
    return Energy(held, Interval(held + rest, held + max(rest - half, 0.0), held + rest + half))


def _student(confidence: float, freedom: int) -> float:
    """Two-sided Student t quantile by the Cornish-Fisher series (under 0.5 % off from 7 degrees of freedom on)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    first = (z**3 + z) / (4 * freedom)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return z + first + second + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)


def captured_energy(
    op: LinearOperator,
    svd: TruncatedSVD,
    *,
    generator: torch.Generator,
    samples: int = 32,
    confidence: float = 0.95,
) -> Interval:
    """Share of ||A||_F^2 held by the leading triplets of `svd`, matrix-free with a stochastic interval.

    Cost, randomness and errors as `sampled_energy`. A zero operator counts as fully captured.
    """
    return sampled_energy(op, svd, generator=generator, samples=samples, confidence=confidence).share


def rank_ratio_matrix_free(
    op: LinearOperator,
    svd: TruncatedSVD,
    *,
    generator: torch.Generator,
    samples: int = 32,
    confidence: float = 0.95,
    energy: float = RANK_ENERGY,
) -> RankRatio:
    """`rank_ratio` of an operator of which only k triplets are known; dimension is the smaller side.

    Cost, randomness and errors as `sampled_energy`.
    """
    total = sampled_energy(op, svd, generator=generator, samples=samples, confidence=confidence).total
    return rank_ratio_within(svd.sigma, total, min(math.prod(op.shape_in), math.prod(op.shape_out)), energy)


def rank_ratio_within(sigma: torch.Tensor, total: Interval, dimension: int, energy: float = RANK_ENERGY) -> RankRatio:
    """`rank_ratio` from the k leading singular values (k,) and the energy `total` of the whole operator.

    The interval stems from that of the energy; where even the k values do not hold the upper bound's share, `high` is
    1.
    """
    squares = _squares(sigma)
    middle, low, high = (_rank(squares, value, energy) for value in (total.estimate, total.low, total.high))
    known = len(squares)
    return RankRatio(middle / dimension, low / dimension, 1.0 if high > known else high / dimension, middle <= known)
