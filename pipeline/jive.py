"""Joint and individual variation explained (Lock, Hoadley, Marron, Nobel 2013) for a few very wide blocks.

Blocks X_i (r_i, D) share their columns. X_i = C_i + A_i + residual, where all C_i have their rows in one joint row
space of rank r_C, and A_i has rank r_A,i with rows orthogonal to the joint row space. The rows are few and D is huge,
and every iterate stays in the row space of the stacked blocks: one QR of the stacked rows reduces the whole iteration
to a dense problem of side sum(r_i) with exactly the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.jive_ranks import RankChoice, choose_ranks
from pipeline.jive_rounds import Rounds, check_blocks, null_level, truncate
from pipeline.svd import canonical_sign

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
    `ranks`: the ranks used, and the rule that chose them with what it compared ("given" where both were).
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
    ranks: RankChoice

    @property
    def explained_variance(self) -> dict[str, torch.Tensor]:
        """Shares (b,) of every block's squared norm that its joint and its individual part hold."""
        return {"joint": self.joint_shares, "individual": self.individual_shares}

    def joint_directions(self, block: int) -> torch.Tensor:
        """Right singular vectors (<= r_C, D) of C_i with sigma > 0, strongest first: what the block shares."""
        return self.joint_bases[block][self.joint_sigmas[block] > 0]

    def individual_directions(self, block: int) -> torch.Tensor:
        """Right singular vectors (<= r_A,i, D) of A_i with sigma > 0, strongest first: what edits this region only."""
        return self.individual_bases[block][self.individual_sigmas[block] > 0]


def jive(
    blocks: Sequence[torch.Tensor | np.ndarray],
    joint_rank: int | None = None,
    individual_ranks: Sequence[int] | None = None,
    *,
    choice: RankChoice | None = None,
    center: bool = False,
    scale: bool = True,
    orthogonal_individuals: bool = False,
    tolerance: float = 1e-6,
    max_iterations: int = 3000,
    compress: bool = True,
) -> JiveResult:
    """Split blocks into joint and individual parts, of given ranks or of ranks chosen from the blocks.

    The tiny problem is solved in float64. No randomness but in the choice of ranks.

    Args:
        blocks: at least two matrices (r_i, D), same D, finite, none all zero; tensors or arrays.
        joint_rank: r_C, 0 to rank of the space. Left out: that of `choice`.
        individual_ranks: r_A,i per block; r_C + r_A,i (with `orthogonal_individuals`, r_C + sum r_A,i) must fit. Left
            out: those of `choice` and what a smaller `joint_rank` than its own frees, as far as there is room.
        choice: ranks chosen beforehand. Left out where it is needed: `choose_ranks` with its defaults and this `scale`,
            which takes the blocks for signal plus white noise.
        center: subtract each row's mean first, as r.jive does for variables measured on D samples; the parts are then
            those of the centred blocks. Off, as rows sigma v^T of an SVD are vectors and have no mean to lose.
        scale: divide each block by its Frobenius norm first, or a large region dominates.
        orthogonal_individuals: r.jive's orthIndiv: individual row spaces orthogonal to each other too. Then the order
            of the blocks matters, and so does where the individual parts start: as in r.jive, which defines the
            answer, at entries of -1 in its own units. Otherwise they start at zero.
        tolerance: stop when the joint and the individual parts both change by at most this, relative to ||X||.
        max_iterations: `converged` is False when it is reached.
        compress: iterate in the row space of the stacked blocks; False works at full width (for checks only).

    Returns:
        The parts with their evidence.

    Raises:
        InputError: fewer than two blocks, mismatching widths, NaN, a zero block, ranks larger than the space, or ranks
            that cannot be chosen.
    """
    rows = _matrices(blocks)
    check_blocks(rows)
    if center:
        rows = _centred(rows)
    if not (tolerance > 0 and max_iterations >= 1):
        raise InputError("tolerance, max_iterations", (tolerance, max_iterations), "a positive number, at least 1")
    used = _ranks(rows, joint_rank, individual_ranks, choice, scale)
    _validate(rows, used.joint_rank, list(used.individual_ranks), orthogonal_individuals)
    ranks = list(used.individual_ranks)
    heights = [len(block) for block in rows]
    stacked = torch.cat([block.double() for block in rows])  # (R, D)
    norms = torch.stack([part.norm() for part in stacked.split(heights)])
    scales = norms if scale else torch.ones_like(norms)
    stacked = stacked / torch.cat([s.expand(h) for s, h in zip(scales, heights, strict=True)])[:, None]
    entry = 0.0
    if orthogonal_individuals:
        entry = -math.sqrt(stacked.numel()) if scale else -1.0  # it divides scaled blocks by this root too
        stacked = torch.cat([stacked, torch.full_like(stacked[:1], entry)])  # the start must survive compression
    if compress:
        basis, core = torch.linalg.qr(stacked.T)  # (D, k), (k, R): X = core^T basis^T
        stacked = core.T.contiguous()
    else:
        basis = None
    first = stacked[sum(heights) :] if entry else torch.zeros_like(stacked[:1])
    state = Rounds(list(stacked[: sum(heights)].split(heights)), used.joint_rank, ranks, orthogonal_individuals, first)
    iterations, converged = state.run(tolerance, max_iterations)
    return _result(state, basis, scales, rows[0], iterations, converged, used)


def _matrices(blocks: Sequence[torch.Tensor | np.ndarray]) -> list[torch.Tensor]:
    """The blocks as tensors of one floating dtype, the widest of theirs; integers become float64."""
    rows = [block if isinstance(block, torch.Tensor) else torch.from_numpy(np.array(block)) for block in blocks]
    for i, block in enumerate(rows):
        if block.is_complex() or block.dtype == torch.bool:
            raise InputError(f"block {i}", block.dtype, "real numbers")
    rows = [block if block.is_floating_point() else block.double() for block in rows]
    widest = torch.float64 if any(block.dtype == torch.float64 for block in rows) else torch.float32
    return [block.to(widest) for block in rows]


def _centred(rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """Rows less their means. Raises InputError where nothing but rounding is left of a block."""
    centred = [block - block.mean(dim=1, keepdim=True) for block in rows]
    for i, (before, after) in enumerate(zip(rows, centred, strict=True)):
        if not float(after.norm()) > null_level(before.dtype) * float(before.norm()):
            raise InputError(
                f"block {i}", "rows that are constant", "rows that vary", "Leave it out, or do not centre."
            )
    return centred


def _ranks(
    blocks: Sequence[torch.Tensor],
    joint_rank: int | None,
    individual_ranks: Sequence[int] | None,
    choice: RankChoice | None,
    scale: bool,
) -> RankChoice:
    """The ranks to use: those given, and for the others those of `choice`, made here where there is none."""
    if joint_rank is not None and individual_ranks is not None:
        return RankChoice(joint_rank, tuple(individual_ranks), "given")
    choice = choice or choose_ranks(blocks, scale=scale)
    joint = choice.joint_rank if joint_rank is None else joint_rank
    room = min(sum(len(block) for block in blocks), blocks[0].shape[1]) - joint
    if individual_ranks is None:
        freed = max(0, choice.joint_rank - joint)  # what is not joint any more is left for the individual parts
        most = [min(len(block), room) for block in blocks]
        individual_ranks = [max(0, min(r + freed, m)) for r, m in zip(choice.individual_ranks, most, strict=True)]
    return replace(choice, joint_rank=joint, individual_ranks=tuple(individual_ranks))


def _validate(blocks: Sequence[torch.Tensor], joint_rank: int, ranks: list[int], orthogonal: bool) -> None:
    if len(ranks) != len(blocks):
        raise InputError("individual_ranks", len(ranks), f"one rank for each of {len(blocks)} blocks")
    space = min(sum(len(block) for block in blocks), blocks[0].shape[1])
    if not 0 <= joint_rank <= space:
        raise InputError("joint_rank", joint_rank, f"0 to {space}, the rank of the stacked blocks")
    for i, (rank, block) in enumerate(zip(ranks, blocks, strict=True)):
        if not 0 <= rank <= min(len(block), space - joint_rank):
            expected = f"0 to {min(len(block), space - joint_rank)} (rows of the block; space left by joint_rank)"
            raise InputError(f"individual rank of block {i}", rank, expected)
    if orthogonal and joint_rank + sum(ranks) > space:
        raise InputError("individual_ranks", ranks, f"a sum of at most {space - joint_rank} when orthogonal")


def _result(
    state: Rounds,
    basis: torch.Tensor | None,
    scales: torch.Tensor,
    like: torch.Tensor,
    iterations: int,
    converged: bool,
    used: RankChoice,
) -> JiveResult:
    """Back from the compressed space: widen rows, undo the block scales, fix signs."""

    def widen(rows: torch.Tensor) -> torch.Tensor:
        return (rows if basis is None else rows @ basis.T).to(like.dtype)

    def spectrum(part: torch.Tensor, rank: int, factor: torch.Tensor, size: torch.Tensor) -> _Spectrum:
        _, sigma, vt = truncate(part, rank)
        real = sigma > null_level(like.dtype) * size
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
        ranks=used,
    )
