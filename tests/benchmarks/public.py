"""The iterations of the public codes, for comparison: one masked operator at a time, from a random start.

`subspace_iteration` is that of LOCO Edit and Pullback, the rounds of `pipeline.methods.subspace_iteration`, but with
transposed products one vector at a time as their scripts make them. `deflation` is that of Haas et al.: one vector at a
time, orthogonal to those before, until its eigenvalue stops changing. Written from the papers and their public scripts'
settings. Products go through our own operators: shared primal, kept reverse graph.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch

from pipeline.methods.subspace_iteration import ROUNDS, rounds
from pipeline.operators import LinearOperator, Products

__all__ = ["ROUNDS", "PublicRun", "deflation", "spent", "subspace_iteration"]

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


@dataclass
class OneByOne:
    """A, its transposed products made one vector at a time."""

    base: LinearOperator
    products: Products = field(init=False)

    def __post_init__(self) -> None:
        self.shape_in, self.shape_out = self.base.shape_in, self.base.shape_out
        self.dtype, self.device, self.products = self.base.dtype, self.base.device, self.base.products

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        return self.base.matvec(v)

    def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.base.rmatvec(row[None]) for row in u])


def spent(op: LinearOperator) -> int:
    """Forward-equivalents so far: products of a vector either way, and passes made again for want of memory."""
    return op.products.total + op.products.recomputed


def _triplets(v: torch.Tensor, y: torch.Tensor, back: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Singular values of A on the span of v (k, n_in) and the largest residual, from y = A v and back = A^T y."""
    values, turn = torch.linalg.eigh(y.double() @ y.double().T)
    sigma, turn = values.flip(0).clamp(min=0.0).sqrt(), turn.flip(1).T
    inverse = 1.0 / sigma.clamp(min=1e-30)
    rows = (turn * inverse[:, None]) @ back.double() - sigma[:, None] * (turn @ v.double())
    return sigma, float(rows.norm(dim=1).max() / sigma[0])


def subspace_iteration(op: LinearOperator, rank: int, *, seed: int, oracle: float) -> PublicRun:
    """Iterate to the rule of the public codes; note the first round whose largest residual is at most `oracle`."""
    generator = torch.Generator().manual_seed(seed)
    before, begun, aside = spent(op), time.perf_counter(), 0.0
    reached: tuple[int, float] | None = None
    for done, last in enumerate(rounds(OneByOne(op), rank, generator=generator), 1):
        watch = time.perf_counter()
        sigma, residual = _triplets(last.v, last.images, last.back)
        aside += time.perf_counter() - watch
        if reached is None and residual <= oracle:
            reached = spent(op) - before, time.perf_counter() - begun - aside
        stopped = done >= ROUNDS[0] and last.settled(signed=True)
        if stopped or done == ROUNDS[1]:
            break
    seconds = time.perf_counter() - begun - aside
    return PublicRun(last.v, sigma, residual, spent(op) - before, seconds, done, stopped, *(reached or (None, None)))


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
