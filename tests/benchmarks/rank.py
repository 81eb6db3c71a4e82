"""Rank ratio and captured energy of large Jacobians without forming them, and the dense truth where it can be formed.

Singular values of J restricted to a growing right subspace V (Ritz values) never exceed those of J, and the energy of
all of J is sampled without bias; so the rank found is never too small but for the sampling error, which is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline.certificate import certify
from pipeline.jacobian import JacobianOperator
from pipeline.operators import LinearOperator
from pipeline.spectrum import RANK_ENERGY, Interval, RankRatio, captured_energy, rank_ratio, rank_ratio_matrix_free
from pipeline.svd import TruncatedSVD

SAMPLES = 32  # Gaussian vectors behind every energy
CHUNK = 128  # vectors by which the subspace grows


@dataclass(frozen=True)
class RankFigures:
    """Rank ratio (98 % of the energy) with its interval, energy held by `vectors` directions, products spent."""

    ratio: RankRatio
    captured: Interval
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
    vectors. Cost: `samples` JVPs, and 2 JVPs and 1 VJP per vector. `residuals` are not computed (NaN).
    """
    n_in, n_out = math.prod(op.shape_in), math.prod(op.shape_out)
    most = min(most, n_in, n_out)

    def forward(rows: torch.Tensor) -> torch.Tensor:
        return op.matvec(rows.view(-1, *op.shape_in)).flatten(1)

    def noise(count: int) -> torch.Tensor:
        return torch.randn((count, n_in), generator=generator).to(device=op.device, dtype=op.dtype)

    probes = noise(samples)
    left_over = forward(probes)  # J w less what V explains of it
    v, y = probes[:0], left_over[:0]
    while len(v) < most:
        count = min(CHUNK, most - len(v))
        start = noise(count)
        images = forward(start - (start @ v.T) @ v)
        back = op.rmatvec(torch.linalg.qr(images.T).Q.T.reshape(-1, *op.shape_out)).flatten(1)
        fresh = _orthonormal(back, v)
        products = forward(fresh)
        left_over = left_over - (probes @ fresh.T) @ products
        v, y = torch.cat([v, fresh]), torch.cat([y, products])
        held, rest = float(y.double().square().sum()), float(left_over.double().square().sum()) / samples
        if held >= 1.01 * energy * (held + rest):  # a little more, so that the ratio is resolved
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


def rank_figures(
    op: LinearOperator, most: int, *, seed: int, samples: int = SAMPLES, energy: float = RANK_ENERGY
) -> RankFigures:
    """Matrix-free rank ratio and captured energy of `op` from at most `most` vectors."""
    generator = torch.Generator().manual_seed(seed)
    before = op.products.total
    svd = leading_subspace(op, most, generator=generator, samples=samples, energy=energy)
    ratio = rank_ratio_matrix_free(op, svd, generator=generator, samples=samples, energy=energy)
    captured = captured_energy(op, svd, generator=generator, samples=samples)
    return RankFigures(ratio, captured, len(svd.sigma), op.products.total - before)


def dense_matrix(
    op: JacobianOperator, chunk: int = 256, advance: Callable[[int], None] = lambda n: None
) -> torch.Tensor:
    """The whole Jacobian (prod(shape_out), prod(shape_in)), row by row. Cost: prod(shape_out) VJPs."""
    n_out, rows = math.prod(op.shape_out), []
    for start in range(0, n_out, chunk):
        unit = torch.zeros((min(chunk, n_out - start), n_out), device=op.device, dtype=op.dtype)
        unit[torch.arange(len(unit)), start + torch.arange(len(unit))] = 1.0
        rows.append(op.rmatvec(unit.view(-1, *op.shape_out)).flatten(1))
        advance(len(unit))
    return torch.cat(rows)


@dataclass(frozen=True)
class DenseFigures:
    """From the dense matrix: rank ratio, energy of its first `vectors` singular values, asymmetry."""

    ratio: float
    captured: float
    vectors: int
    asymmetry: float


def dense_figures(matrix: torch.Tensor, vectors: int) -> DenseFigures:
    """The truth that `rank_figures` and `asymmetry` are checked against; `vectors` as many as were used there."""
    sigma = torch.linalg.svdvals(matrix.double())
    squares = sigma.square()
    return DenseFigures(
        rank_ratio(sigma, min(matrix.shape)),
        float(squares[:vectors].sum() / squares.sum()),
        vectors,
        float((matrix - matrix.T).norm() / matrix.norm()),
    )


def asymmetry(op: LinearOperator, *, seed: int, samples: int = SAMPLES) -> float:
    """||J - J^T|| / ||J|| of a square operator, both norms (Frobenius) from the same Gaussian vectors.

    Cost: `samples` JVPs and as many VJPs.
    """
    noise = torch.randn((samples, *op.shape_in), generator=torch.Generator().manual_seed(seed)).to(op.device, op.dtype)
    forward, back = op.matvec(noise), op.rmatvec(noise)
    return float((forward - back).double().norm() / forward.double().norm())
