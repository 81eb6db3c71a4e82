"""Accuracy against the public iteration on operators whose singular triplets are known, clustered spectra included.

Both look for the first five triplets of dense operators in float64. The public iteration stops by its own rule; the
search runs to the wanted residual, and once more to the loosest tolerance, in steps of ten from half the residual that
the public run ended with, at which both its residual and its angle are no larger than the public ones: what being as
accurate costs. Angles are to the span of the true vectors that belong to the wanted values
or to values within the wanted residual of the last of them: where the rank cuts a cluster in two, any part of the
cluster is an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.operators import Dense, LinearOperator
from pipeline.svd import truncated_svd
from tests.benchmarks.harness import Target, at_least, at_most
from tests.benchmarks.public import ROUNDS, spent, subspace_iteration

RANK, SIZE = 5, (600, 500)  # wanted triplets; inputs and outputs
# By dtype: angles and residuals that count as the same below it, and the tightest tolerance tried to get there.
SAME = {torch.float64: 1e-6, torch.float32: 1e-4}
TIGHTEST = {torch.float64: 1e-7, torch.float32: 1e-5}
_TAIL = torch.arange(200, dtype=torch.float64)
SPECTRA = {
    "fast decay": 0.5 ** _TAIL[:40],
    "slow decay": 0.98**_TAIL,
    "cluster at the wanted rank": torch.cat([1.0 - 0.1 * _TAIL[:4], 0.5 - 1e-3 * _TAIL[:6], 0.4 * 0.97**_TAIL]),
    "cluster inside the wanted": torch.cat([1.0 - 1e-4 * _TAIL[:4], torch.tensor([0.8]), 0.6 * 0.97**_TAIL]),
    "multiple values": torch.cat([torch.ones(3), 0.7 * torch.ones(4), 0.5 * 0.97**_TAIL]),
    "flat": 1.0 - 1e-3 * _TAIL,
    "exact low rank": torch.tensor([1.0, 0.9, 0.5, 0.499, 0.1, 0.05]),
}


@dataclass(frozen=True)
class Case:
    """One run on one operator: products, largest residual over sigma_1, sine of the largest angle to the truth."""

    name: str
    run: str
    products: int
    residual: float
    angle: float


def known(sigma: torch.Tensor, seed: int) -> tuple[Dense, torch.Tensor]:
    """A dense operator with singular values `sigma` (k,), and its right vectors (k, n_in)."""
    generator = torch.Generator().manual_seed(seed)
    right, left = (
        torch.linalg.qr(torch.randn(n, len(sigma), generator=generator, dtype=torch.float64))[0] for n in SIZE
    )
    return Dense((left * sigma) @ right.T, SIZE[:1], (1, 1, SIZE[1])), right.T


def compare(residual: float) -> list[Case]:
    """Every spectrum by the public iteration and by the search, to `residual` and as accurate as the public run."""
    cases = []
    for seed, (name, sigma) in enumerate(SPECTRA.items()):
        op, right = known(sigma.double(), seed)
        span = answers(sigma, right, RANK, residual)
        run = subspace_iteration(op, RANK, seed=seed, oracle=residual)
        public = Case(name, "public", run.products, run.residual, sine(run.v, span))
        cases += [public, _ours(name, "ours", op, RANK, span, residual), as_accurate(op, RANK, span, public, residual)]
    return cases


def answers(sigma: torch.Tensor, right: torch.Tensor, rank: int, residual: float) -> torch.Tensor:
    """The true right vectors (j, n), j >= rank, whose values are at most `residual` * sigma_1 below the last wanted."""
    return right[: int((sigma >= sigma[rank - 1] - residual * sigma[0]).sum())]


def as_accurate(op: LinearOperator, rank: int, span: torch.Tensor, public: Case, residual: float) -> Case:
    """The search at the loosest tolerance tried at which neither its residual nor its angle is over the public one."""
    same, tightest = SAME[op.dtype], TIGHTEST[op.dtype]
    tolerance = min(residual, max(0.5 * public.residual, tightest))
    while True:
        found = _ours(public.name, "ours, as accurate", op, rank, span, tolerance)
        if over(found, public, same) <= 1.0 or tolerance <= tightest:
            return found
        tolerance = max(tightest, 0.1 * tolerance)


def over(ours: Case, public: Case, same: float) -> float:
    """Our residual or angle over the public one, the larger ratio; what is below `same` counts as the same."""
    return max(ours.residual / max(public.residual, same), ours.angle / max(public.angle, same))


def _ours(name: str, run: str, op: LinearOperator, rank: int, span: torch.Tensor, tolerance: float) -> Case:
    before, generator = spent(op), torch.Generator().manual_seed(0)
    svd = truncated_svd(op, rank, generator=generator, tolerance=tolerance, max_products=2 * rank * ROUNDS[1])
    products = spent(op) - before
    rows = op.rmatvec(svd.u).flatten(1) - svd.sigma[:, None] * svd.v.flatten(1)
    return Case(name, run, products, float(rows.norm(dim=1).max() / svd.sigma[0]), sine(svd.v, span))


def sine(v: torch.Tensor, span: torch.Tensor) -> float:
    """Sine of the largest angle between the span of orthonormal rows `v` (k, ...) and `span` (j, n), j >= k."""
    rows = v.flatten(1).double()
    return float(torch.linalg.matrix_norm(rows - (rows @ span.T) @ span, 2))


def targets_of(cases: Sequence[Case], residual: float) -> list[Target]:
    """The wanted residual everywhere; as accurate as the public run everywhere, for no more products."""
    by_run = {run: [case for case in cases if case.run == run] for run in ("public", "ours", "ours, as accurate")}
    public, tight = by_run["public"], by_run["ours, as accurate"]
    pairs = list(zip(public, tight, strict=True))
    return [
        at_most("known spectra: largest residual", max(case.residual for case in by_run["ours"]), residual),
        at_most(
            "known spectra: largest residual or angle over the public one's, when as accurate",
            max(over(ours, theirs, SAME[torch.float64]) for theirs, ours in pairs), 1,
        ),
        at_least(
            "known spectra: least public products over ours, when as accurate",
            min(theirs.products / ours.products for theirs, ours in pairs), 1,
        ),
    ]  # fmt: skip
