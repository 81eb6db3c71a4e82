"""Joint and individual variation explained (Lock, Hoadley, Marron, Nobel 2013) for a few very wide blocks.

Blocks X_i (r_i, D) share their columns. X_i = C_i + A_i + residual, where all C_i have their rows in one joint row
space of rank r_C, and A_i has rank r_A,i with rows orthogonal to the joint row space. The rows are few and D is huge,
and every iterate stays in the row space of the stacked blocks: one QR of the stacked rows reduces the whole iteration
to a dense problem of side sum(r_i) with exactly the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.errors import InputError
from pipeline.svd import canonical_sign

# Relative to a block's norm: singular values below it are rounding of the given numbers.
_NULL = {torch.float64: 1e-12}
_NULL_SINGLE = 2e-6
_PLAIN_ROUNDS = 20  # before momentum sets in
_Spectrum = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class JiveResult:
    """A decomposition in the units, dtype and device of the input blocks; b blocks of shape (r_i, D).

    `joint` and `individual`: C_i and A_i (r_i, D). `joint_basis` (r_C, D): orthonormal rows of the joint row space,
    strongest first, with the singular values `joint_sigma` (r_C,) of the stacked joint part (of the scaled blocks
    where scaling was asked for). `individual_bases` (r_A,i, D) and `individual_sigmas` (r_A,i,): right singular
    vectors and singular values of each A_i, signs canonical; `joint_bases` and `joint_sigmas` those of each C_i.
    Where a part has lower rank than asked for, the rest are zero rows with sigma 0. `scales` (b,): what each block
    was divided by. `residual`: ||X - C - A|| / ||X|| of the stacked, scaled blocks; `change`: size of the last step
    relative to ||X||.
    `joint_shares`, `individual_shares` (b,): ||C_i||^2 / ||X_i||^2 and ||A_i||^2 / ||X_i||^2.
    """

    joint: tuple[torch.Tensor, ...]
    individual: tuple[torch.Tensor, ...]
    joint_basis: torch.Tensor
    joint_sigma: torch.Tensor
    joint_bases: tuple[torch.Tensor, ...]
    joint_sigmas: tuple[torch.Tensor, ...]
    individual_bases: tuple[torch.Tensor, ...]
    individual_sigmas: tuple[torch.Tensor, ...]
    scales: torch.Tensor
    residual: float
    change: float
    iterations: int
    converged: bool
    joint_shares: torch.Tensor
    individual_shares: torch.Tensor

    def joint_directions(self, block: int) -> torch.Tensor:
        """Right singular vectors (<= r_C, D) of C_i with sigma > 0, strongest first: what the block shares."""
        return self.joint_bases[block][self.joint_sigmas[block] > 0]

    def individual_directions(self, block: int) -> torch.Tensor:
        """Right singular vectors (<= r_A,i, D) of A_i with sigma > 0, strongest first: what edits this region only."""
        return self.individual_bases[block][self.individual_sigmas[block] > 0]


def jive(
    blocks: Sequence[torch.Tensor],
    joint_rank: int,
    individual_ranks: Sequence[int],
    *,
    scale: bool = True,
    orthogonal_individuals: bool = False,
    tolerance: float = 1e-6,
    max_iterations: int = 3000,
    compress: bool = True,
    start: Literal["zero", "r.jive"] | None = None,
) -> JiveResult:
    """Split blocks into joint and individual parts of given ranks.

    Rows are not centred: they are vectors sigma v^T, not variables measured on D samples. Who wants r.jive's centring
    subtracts the row means first. The tiny problem is solved in float64.

    Args:
        blocks: at least two matrices (r_i, D), same D, finite, none all zero.
        joint_rank: r_C, 0 to rank of the space.
        individual_ranks: r_A,i per block; r_C + r_A,i (with `orthogonal_individuals`, r_C + sum r_A,i) must fit.
        scale: divide each block by its Frobenius norm first, or a large region dominates.
        orthogonal_individuals: r.jive's orthIndiv: individual row spaces orthogonal to each other too; then the order
            of the blocks matters.
        tolerance: stop when the joint and the individual parts both change by at most this, relative to ||X||.
        max_iterations: `converged` is False when it is reached.
        compress: iterate in the row space of the stacked blocks; False works at full width (for checks only).
        start: individual parts before the first round. "zero" is the natural one. "r.jive" is what the published
            package does: every entry -1 in its own units. Left out, it is "r.jive" with `orthogonal_individuals`,
            whose answer depends on the start and is so defined by that package, and "zero" without.

    Returns:
        The parts with their evidence. No randomness.

    Raises:
        InputError: fewer than two blocks, mismatching widths, NaN, a zero block, or ranks larger than the space.
    """
    ranks = list(individual_ranks)
    _validate(blocks, joint_rank, ranks, orthogonal_individuals)
    if not (tolerance > 0 and max_iterations >= 1):
        raise InputError("tolerance, max_iterations", (tolerance, max_iterations), "a positive number, at least 1")
    heights = [len(block) for block in blocks]
    stacked = torch.cat([block.double() for block in blocks])  # (R, D)
    norms = torch.stack([part.norm() for part in stacked.split(heights)])
    scales = norms if scale else torch.ones_like(norms)
    stacked = stacked / torch.cat([s.expand(h) for s, h in zip(scales, heights, strict=True)])[:, None]
    entry = 0.0
    if start == "r.jive" or (start is None and orthogonal_individuals):
        entry = -math.sqrt(stacked.numel()) if scale else -1.0  # it divides scaled blocks by this root too
        stacked = torch.cat([stacked, torch.full_like(stacked[:1], entry)])  # the start must survive compression
    if compress:
        basis, core = torch.linalg.qr(stacked.T)  # (D, k), (k, R): X = core^T basis^T
        stacked = core.T.contiguous()
    else:
        basis = None
    first = stacked[sum(heights) :] if entry else torch.zeros_like(stacked[:1])
    state = _Iteration(list(stacked[: sum(heights)].split(heights)), joint_rank, ranks, orthogonal_individuals, first)
    iterations, converged = state.run(tolerance, max_iterations)
    return _result(state, basis, scales, blocks[0], iterations, converged)


def _validate(blocks: Sequence[torch.Tensor], joint_rank: int, ranks: list[int], orthogonal: bool) -> None:
    if len(blocks) < 2:
        raise InputError("blocks", len(blocks), "at least two: with one there is nothing to be joint with")
    widths = {block.shape[1] if block.ndim == 2 else -1 for block in blocks}
    if len(widths) != 1 or -1 in widths:
        raise InputError("blocks", [tuple(block.shape) for block in blocks], "matrices (r_i, D) of one width D")
    for i, block in enumerate(blocks):
        if not bool(torch.isfinite(block).all()):
            raise InputError(f"block {i}", "NaN or infinite entries", "finite numbers")
        if not bool(block.any()):
            raise InputError(f"block {i}", "only zeros", "at least one non-zero entry", "Leave this region out")
    if len(ranks) != len(blocks):
        raise InputError("individual_ranks", len(ranks), f"one rank for each of {len(blocks)} blocks")
    space = min(sum(len(block) for block in blocks), widths.pop())
    if not 0 <= joint_rank <= space:
        raise InputError("joint_rank", joint_rank, f"0 to {space}, the rank of the stacked blocks")
    for i, (rank, block) in enumerate(zip(ranks, blocks, strict=True)):
        if not 0 <= rank <= min(len(block), space - joint_rank):
            expected = f"0 to {min(len(block), space - joint_rank)} (rows of the block; space left by joint_rank)"
            raise InputError(f"individual rank of block {i}", rank, expected)
    if orthogonal and joint_rank + sum(ranks) > space:
        raise InputError("individual_ranks", ranks, f"a sum of at most {space - joint_rank} when orthogonal")


def _truncate(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rank-`rank` SVD (u, sigma, vt) of a small matrix."""
    u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], sigma[:rank], vt[:rank]


def _without(matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """matrix (I - rows^T rows)."""
    return matrix - (matrix @ rows.T) @ rows


class _Iteration:
    """Alternating estimates of the joint and the individual parts, in the order and with the start of r.jive.

    Joint: rank-r_C SVD of the stacked X_i - A_i. Individual: rank-r_A,i SVD of (X_i - C_i)(I - V_C V_C^T), and with
    `orthogonal` also outside the other blocks' current individual row spaces, block after block.
    """

    def __init__(
        self, blocks: list[torch.Tensor], joint_rank: int, ranks: list[int], orthogonal: bool, start: torch.Tensor
    ) -> None:
        self.blocks, self.joint_rank, self.ranks, self.orthogonal = blocks, joint_rank, ranks, orthogonal
        self.heights = [len(block) for block in blocks]
        self.total = torch.cat(blocks)
        self.joint = torch.zeros_like(self.total)
        self.individual = start.expand_as(self.total)
        self.joint_basis = self.total[:0]
        self.joint_sigma = self.total[:0, 0]
        self.bases: list[torch.Tensor] = []
        self.change = math.inf

    def run(self, tolerance: float, max_iterations: int) -> tuple[int, bool]:
        """Iterate; returns the number of iterations and whether both parts have settled.

        Where neighbouring ranks explain nearly as much, the plain rounds creep for ten thousand steps. Momentum
        (Nesterov 1983), begun anew whenever the residual rises (O'Donoghue & Candes 2015), ends at the same fixed
        point in a twentieth of them. With `orthogonal` the answer depends on the path, so the path stays r.jive's.
        """
        size, run_up, last = float(self.total.norm()), 0, math.inf
        given = self.individual  # what a round starts from: the last individual parts, thrown forward
        for iteration in range(max_iterations):
            before = self.joint, self.individual
            self._round(given, first=iteration == 0)
            steps = float((self.joint - before[0]).norm()), float((self.individual - given).norm())
            self.change = max(steps) / size
            if iteration > 0 and self.change <= tolerance:
                return iteration + 1, True
            residual = float((self.total - self.joint - self.individual).norm())
            calm = iteration >= _PLAIN_ROUNDS and residual <= last * (1 + 1e-12) and not self.orthogonal
            run_up, last = run_up + 1 if calm else 0, residual
            given = self.individual + run_up / (run_up + 3) * (self.individual - before[1])
        return max_iterations, False

    def _round(self, individual: torch.Tensor, first: bool) -> None:
        """The joint part of what `individual` leaves, and the individual parts of what that leaves."""
        u, self.joint_sigma, self.joint_basis = _truncate(self.total - individual, self.joint_rank)
        self.joint = (u * self.joint_sigma) @ self.joint_basis
        self.individual = torch.cat(self._individuals(first))

    def _individuals(self, first: bool) -> list[torch.Tensor]:
        parts = []
        rests = [x - c for x, c in zip(self.blocks, self.joint.split(self.heights), strict=True)]
        for i, (rest, rank) in enumerate(zip(rests, self.ranks, strict=True)):
            rest = _without(rest, self.joint_basis)
            if self.orthogonal and not first:
                for j, rows in enumerate(self.bases):
                    rest = rest if j == i else _without(rest, rows)
            u, sigma, vt = _truncate(rest, rank)
            if first:
                self.bases.append(vt)
            else:
                self.bases[i] = vt
            parts.append((u * sigma) @ vt)
        return self._separated(parts) if self.orthogonal and first else parts

    def _separated(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """The first orthogonal round: each part leaves the others' row spaces only after all are known."""
        for i, part in enumerate(parts):
            for j, rows in enumerate(self.bases):
                part = part if j == i else _without(part, rows)
            parts[i] = part
        self.bases = [_truncate(part, rank)[2] for part, rank in zip(parts, self.ranks, strict=True)]
        return parts


def _result(
    state: _Iteration,
    basis: torch.Tensor | None,
    scales: torch.Tensor,
    like: torch.Tensor,
    iterations: int,
    converged: bool,
) -> JiveResult:
    """Back from the compressed space: widen rows, undo the block scales, fix signs."""

    def widen(rows: torch.Tensor) -> torch.Tensor:
        return (rows if basis is None else rows @ basis.T).to(like.dtype)

    def spectrum(part: torch.Tensor, rank: int, factor: torch.Tensor, size: torch.Tensor) -> _Spectrum:
        _, sigma, vt = _truncate(part, rank)
        real = sigma > _NULL.get(like.dtype, _NULL_SINGLE) * size
        return canonical_sign(widen(vt * real[:, None])), (sigma * real * factor).to(like.dtype)

    parts, shared = state.individual.split(state.heights), state.joint.split(state.heights)
    sizes = [block.norm() for block in state.blocks]
    individual = [spectrum(*case) for case in zip(parts, state.ranks, scales, sizes, strict=True)]
    joint = [spectrum(part, state.joint_rank, f, size) for part, f, size in zip(shared, scales, sizes, strict=True)]
    residual = state.total - state.joint - state.individual
    energies = torch.stack([block.square().sum() for block in state.blocks])
    shares = [
        torch.stack([part.square().sum() for part in whole.split(state.heights)]) / energies
        for whole in (state.joint, state.individual)
    ]
    return JiveResult(
        joint=tuple(widen(p * s) for p, s in zip(shared, scales, strict=True)),
        individual=tuple(widen(p * s) for p, s in zip(parts, scales, strict=True)),
        joint_basis=canonical_sign(widen(state.joint_basis)),
        joint_sigma=state.joint_sigma.to(like.dtype),
        joint_bases=tuple(rows for rows, _ in joint),
        joint_sigmas=tuple(sigma for _, sigma in joint),
        individual_bases=tuple(rows for rows, _ in individual),
        individual_sigmas=tuple(sigma for _, sigma in individual),
        scales=scales,
        residual=float(residual.norm() / state.total.norm()),
        change=state.change,
        iterations=iterations,
        converged=converged,
        joint_shares=shares[0],
        individual_shares=shares[1],
    )
