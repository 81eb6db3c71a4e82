"""The iterations of the public codes, for comparison: one masked operator at a time, from a random start.

`subspace_iteration` is that of LOCO Edit and Pullback: forward products of a block, transposed products one vector at
a time, an SVD of the result, until no entry of the right vectors moves by more than a tolerance. `deflation` is that of
Haas et al.: one vector at a time, orthogonal to those before, until its eigenvalue stops changing. Written from the
papers and their public scripts' settings. Products go through our own operators: shared primal, kept reverse graph.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from pipeline.operators import LinearOperator

ROUNDS = (12, 50)  # fewest and most
MOVEMENT = 1e-3  # the laxer of the two thresholds in use
EIGENVALUE = 1e-3  # relative change of an eigenvalue at which one vector is taken as found


@dataclass(frozen=True)
class PublicRun:
    """Right vectors (r, n) of a run with what it cost, and the same at the round that an oracle would have stopped at.

    `residual`: the largest ||A^T u - sigma v|| / sigma_1 of the wanted triplets. `oracle_products` and
    `oracle_seconds` are None where no round reached the oracle's residual.
    """

    v: torch.Tensor
    sigma: torch.Tensor
    residual: float
    products: int
    seconds: float
    rounds: int
    stopped: bool
    oracle_products: int | None
    oracle_seconds: float | None


def spent(op: LinearOperator) -> int:
    """Forward-equivalents so far: products of a vector either way, and passes made again for want of memory."""
    return op.products.total + op.products.recomputed


def one_by_one(op: LinearOperator, rows: torch.Tensor) -> torch.Tensor:
    """A^T of each row (k, n_out) by itself: (k, n_in)."""
    return torch.cat([op.rmatvec(row.view(1, *op.shape_out)).flatten(1) for row in rows])


def _triplets(v: torch.Tensor, y: torch.Tensor, back: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Singular values of A on the span of v (k, n_in) and the largest residual, from y = A v and back = A^T y."""
    values, turn = torch.linalg.eigh(y.double() @ y.double().T)
    sigma, turn = values.flip(0).clamp(min=0.0).sqrt(), turn.flip(1).T
    inverse = 1.0 / sigma.clamp(min=1e-30)
    rows = (turn * inverse[:, None]) @ back.double() - sigma[:, None] * (turn @ v.double())
    return sigma, float(rows.norm(dim=1).max() / sigma[0])


def subspace_iteration(op: LinearOperator, rank: int, *, seed: int, oracle: float) -> PublicRun:
    """Iterate to the rule of the public codes; note the first round whose largest residual is at most `oracle`."""
    n_in = math.prod(op.shape_in)
    noise = torch.randn(n_in, rank, generator=torch.Generator().manual_seed(seed))
    v = torch.linalg.qr(noise.to(op.device, op.dtype))[0].T
    before, begun, aside = spent(op), time.perf_counter(), 0.0
    reached: tuple[int, float] | None = None
    stopped, done = False, 0
    for done in range(1, ROUNDS[1] + 1):
        y = op.matvec(v.reshape(-1, *op.shape_in)).flatten(1)
        back = one_by_one(op, y)
        turned = torch.linalg.svd(back, full_matrices=False)[2]
        watch = time.perf_counter()
        sigma, residual = _triplets(v, y, back)
        aside += time.perf_counter() - watch
        if reached is None and residual <= oracle:
            reached = spent(op) - before, time.perf_counter() - begun - aside
        stopped = done >= ROUNDS[0] and bool(((turned - v).abs() <= MOVEMENT).all())
        if stopped or done == ROUNDS[1]:
            break
        v = turned
    seconds = time.perf_counter() - begun - aside
    return PublicRun(v, sigma, residual, spent(op) - before, seconds, done, stopped, *(reached or (None, None)))


def deflation(op: LinearOperator, rank: int, *, seed: int) -> PublicRun:
    """Power iteration on A^T A, one vector after the other, each kept orthogonal to those before it."""
    generator, n_in = torch.Generator().manual_seed(seed), math.prod(op.shape_in)
    found = torch.zeros(0, n_in, device=op.device)
    before, begun, rounds = spent(op), time.perf_counter(), 0
    images, backs = [], []
    for _ in range(rank):
        v = torch.randn(1, n_in, generator=generator).to(op.device)
        value = 0.0
        for _ in range(ROUNDS[1]):
            v = v - (v @ found.T) @ found
            v = v / v.norm()
            y = op.matvec(v.view(1, *op.shape_in)).flatten(1)
            back = op.rmatvec(y.view(1, *op.shape_out)).flatten(1)
            last, value, rounds = value, float(back.norm()), rounds + 1
            held, v = v, back
            if abs(value - last) <= EIGENVALUE * value:
                break
        found = torch.cat([found, held])
        images.append(y)
        backs.append(back)
    seconds = time.perf_counter() - begun
    sigma, residual = _triplets(found, torch.cat(images), torch.cat(backs))
    return PublicRun(found, sigma, residual, spent(op) - before, seconds, rounds, True, None, None)
