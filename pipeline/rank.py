"""Rank ratio and norm of large Jacobians without forming them: Ritz values, sampled energy, and what both prove.

Singular values of J restricted to a growing right subspace V (Ritz values) never exceed those of J, and the energy of
all of J is sampled without bias; so the rank found is never too small but for the sampling error, which is given.
Where V does not hold the energy, the largest gain s outside V bounds the rank from below: by Weyl the first r squared
singular values of J sum to at most ||J V||_F^2 + r s^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pipeline.certificate import certify
from pipeline.operators import LinearOperator, Projected
from pipeline.spectrum import RANK_ENERGY, Energy, Interval, RankRatio, rank_ratio_within, sampled_energy
from pipeline.svd import TruncatedSVD, truncated_svd

SAMPLES = 32  # Gaussian vectors behind every energy
CHUNK = 128  # vectors by which the subspace grows
HOPELESS = 2.0  # times the vectors allowed: where the latest chunk's pace asks for more, the search ends at once
REMAINDER_TOLERANCE = 0.05  # residual of the largest gain outside the subspace, relative to it


@dataclass(frozen=True)
class RankFigures:
    """Rank ratio (98 % of the energy) and Frobenius norm with their intervals, energy held by `vectors` directions,
    products spent. Where the ratio is not resolved, it is a lower bound, and so is its `low`."""

    ratio: RankRatio
    captured: Interval
    frobenius: Interval
    vectors: int
    products: int


def _orthonormal(rows: torch.Tensor, against: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows spanning `rows` (k, n) outside the rows of `against`; twice is enough to reach rounding."""
    for _ in range(2):
        rows = rows - (rows @ against.T) @ against
        rows = torch.linalg.qr(rows.T).Q.T
    return rows


def leading_subspace(
    op: LinearOperator, most: int, *, generator: torch.Generator, samples: int = SAMPLES, energy: float = RANK_ENERGY
) -> TruncatedSVD:
    """Ritz triplets of a randomised right subspace with one power pass (Halko et al. 2011, algorithm 4.4), in chunks.

    It grows by `CHUNK` until the energy held, compared with a sample of what is left, passes `energy`, or to `most`
    vectors, or to where it is plain that `most` are not enough: later chunks hold no more than earlier ones. Cost:
    `samples` JVPs, and 2 JVPs and 1 VJP per vector. `residuals` are not computed (NaN).
    """
    n_in, n_out = math.prod(op.shape_in), math.prod(op.shape_out)
    most = min(most, n_in, n_out)

    def forward(rows: torch.Tensor) -> torch.Tensor:
        return op.matvec(rows.view(-1, *op.shape_in)).flatten(1)

    def noise(count: int) -> torch.Tensor:
        return torch.randn((count, n_in), generator=generator).to(device=op.device, dtype=op.dtype)

    probes = noise(samples)
    left_over = forward(probes)  # J w less what V explains of it
    v, y, held = probes[:0], left_over[:0], 0.0
    while len(v) < most:
        count = min(CHUNK, most - len(v))
        start = noise(count)
        images = forward(start - (start @ v.T) @ v)
        back = op.rmatvec(torch.linalg.qr(images.T).Q.T.reshape(-1, *op.shape_out)).flatten(1)
        fresh = _orthonormal(back, v)
        products = forward(fresh)
        left_over = left_over - (probes @ fresh.T) @ products
        v, y = torch.cat([v, fresh]), torch.cat([y, products])
        gained, rest = float(products.double().square().sum()), float(left_over.double().square().sum()) / samples
        held += gained
        missing = 1.01 * energy * (held + rest) - held  # a little more, so that the ratio is resolved
        if missing <= 0 or len(v) + missing * count / max(gained, 1e-300) > HOPELESS * most:
            break
    values, vectors = torch.linalg.eigh(y.double() @ y.double().T)
    sigma, turn = values.flip(0).clamp(min=0.0).sqrt(), vectors.flip(1).T
    inverse = torch.where(sigma > 1e-7 * sigma[0], 1.0 / sigma.clamp(min=1e-30), 0.0)
    nothing = torch.full_like(sigma, math.nan)
    return TruncatedSVD(
        u=((turn * inverse[:, None]).to(y) @ y).view(-1, *op.shape_out),
        sigma=sigma.to(op.dtype),
        v=(turn.to(v) @ v).view(-1, *op.shape_in),
        residuals=nothing,
        converged=torch.zeros_like(sigma, dtype=torch.bool),
        tolerance=math.nan,
        checked=False,
        certificate=certify(sigma, torch.full_like(sigma, math.inf), len(sigma)),
        products=op.products,
    )


def least_rank(op: LinearOperator, svd: TruncatedSVD, energy: Energy, share: float, generator: torch.Generator) -> int:
    """The least rank that can hold `share` of all energy, where the vectors of `svd` do not: at least one more.

    (share ||J||_F^2 - ||J V||_F^2) / s^2 at the low end of the sampled energy, s = ||J (I - V V^T)||_2 from a search
    that stops at a residual of `REMAINDER_TOLERANCE`. Cost: that search, some tens of products.
    """
    rest = truncated_svd(Projected(op, svd.v.flatten(1)), 1, generator=generator, tolerance=REMAINDER_TOLERANCE)
    missing, gain = share * energy.total.low - energy.held, float(rest.sigma[0]) * (1 + REMAINDER_TOLERANCE)
    return max(len(svd.sigma) + 1, math.ceil(missing / gain**2) if gain > 0 else 0)


def rank_figures(
    op: LinearOperator, most: int, *, seed: int, samples: int = SAMPLES, energy: float = RANK_ENERGY
) -> RankFigures:
    """Matrix-free rank ratio, captured energy and Frobenius norm of `op` from at most `most` vectors.

    Cost: as `leading_subspace`, `samples` JVPs more, and `least_rank` where it needs that.

    Raises:
        InputError: fewer than 8 samples.
    """
    generator = torch.Generator().manual_seed(seed)
    before = op.products.total
    svd = leading_subspace(op, most, generator=generator, samples=samples, energy=energy)
    sampled = sampled_energy(op, svd, generator=generator, samples=samples)
    dimension = min(math.prod(op.shape_in), math.prod(op.shape_out))
    ratio = rank_ratio_within(svd.sigma, sampled.total, dimension, energy)
    if not ratio.resolved:
        least = min(least_rank(op, svd, sampled, energy, generator), dimension) / dimension
        ratio = RankRatio(least, least, 1.0, False)
    total = sampled.total
    norm = Interval(*(math.sqrt(value) for value in (total.estimate, total.low, total.high)))
    return RankFigures(ratio, sampled.share, norm, len(svd.sigma), op.products.total - before)
