"""The dense truth of Jacobians that can be formed, and asymmetry: what `pipeline.rank` is checked against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline.jacobian import JacobianOperator
from pipeline.operators import LinearOperator
from pipeline.rank import SAMPLES
from pipeline.spectrum import rank_ratio


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
