"""Joint and individual variation explained (Lock, Hoadley, Marron, Nobel 2013) for a few very wide blocks.

Blocks X_i (r_i, D) share their columns. X_i = C_i + A_i + residual, where all C_i have their rows in one joint row
space of rank r_C, and A_i has rank r_A,i with rows orthogonal to the joint row space. The rows are few and D is huge,
and every iterate stays in the row space of the stacked blocks: one QR of the stacked rows reduces the whole iteration
to a dense problem of side sum(r_i) with exactly the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.jive_blocks import centred, read_blocks, whole, whole_ranks
from pipeline.jive_ranks import RankChoice, choose_ranks, with_room
from pipeline.jive_rounds import Rounds, null_level, truncate
from pipeline.svd import canonical_sign

_Spectrum = tuple[torch.Tensor, torch.Tensor]
Matrix = TypeVar("Matrix", torch.Tensor, np.ndarray)


@dataclass(frozen=True)
class JiveResult(Generic[Matrix]):
    """A decomposition of b blocks of shape (r_i, D), in their units, dtype and device; arrays where all blocks were.

    `joint` and `individual`: C_i and A_i (r_i, D). `joint_basis` (r_C, D): orthonormal rows of the joint row space,
    strongest first, with the singular values `joint_sigma` (r_C,) of the stacked joint part (of the scaled blocks
    where scaling was asked for). `individual_bases` (r_A,i, D) and `individual_sigmas` (r_A,i,): right singular
    vectors and singular values of each A_i, signs canonical; `joint_bases` and `joint_sigmas` those of each C_i.
    Where a part has lower rank than asked for, the rest are zero rows with sigma 0, never directions of rounding.
    `scales` (b,): what each block was divided by. `residual`: ||X - C - A|| / ||X|| of the stacked, scaled blocks;
    `change`: size of the last step relative to ||X||.
    `joint_shares`, `individual_shares` (b,): ||C_i||^2 / ||X_i||^2 and ||A_i||^2 / ||X_i||^2.
    `ranks`: the ranks used, and the rule that chose them with what it compared ("given" where both were).
    """

    joint: list[Matrix]
    individual: list[Matrix]
    joint_basis: Matrix
    joint_sigma: Matrix
    joint_bases: list[Matrix]
    joint_sigmas: list[Matrix]
    individual_bases: list[Matrix]
    individual_sigmas: list[Matrix]
    scales: Matrix
    residual: float
    change: float
    iterations: int
    converged: bool
    joint_shares: Matrix
    individual_shares: Matrix
    ranks: RankChoice

    @property
    def explained_variance(self) -> dict[str, Matrix]:
        """Shares (b,) of every block's squared norm that its joint and its individual part hold."""
        return {"joint": self.joint_shares, "individual": self.individual_shares}

    @property
    def found_joint_rank(self) -> int:
        """How many rows of `joint_basis` are real; less than `ranks.joint_rank` where the joint part has lower rank."""
        return int((self.joint_sigma > 0).sum())

    @property
    def found_individual_ranks(self) -> tuple[int, ...]:
        """How many rows of each of `individual_bases` are real."""
        return tuple(int((sigma > 0).sum()) for sigma in self.individual_sigmas)

    def joint_directions(self, block: int) -> Matrix:
        """Right singular vectors (<= r_C, D) of C_i with sigma > 0, strongest first: what the block shares."""
        return self.joint_bases[block][self.joint_sigmas[block] > 0]

    def individual_directions(self, block: int) -> Matrix:
        """Right singular vectors (<= r_A,i, D) of A_i with sigma > 0, strongest first: what edits this region only."""
        return self.individual_bases[block][self.individual_sigmas[block] > 0]


def jive(
    blocks: Sequence[Matrix],
    joint_rank: int | None = None,
    individual_ranks: Sequence[int] | None = None,
    *,
    choice: RankChoice | None = None,
    center: bool = False,
    scale: bool = True,
    orthogonal_individuals: bool = False,
    tolerance: float = 1e-8,
    max_iterations: int = 10_000,
    compress: bool = True,
) -> JiveResult[Matrix]:
    """Split blocks into joint and individual parts, of given ranks or of ranks chosen from the blocks.

    The tiny problem is solved in float64. No randomness but in the choice of ranks.

    Args:
        blocks: at least two matrices (r_i, D), same D, finite, none all zero; all tensors, or all arrays.
        joint_rank: r_C, 0 to rank of the space. Left out: that of `choice`.
        individual_ranks: r_A,i per block; r_C + r_A,i (with `orthogonal_individuals`, r_C + sum r_A,i) must fit. Left
            out: those of `choice` and what a smaller `joint_rank` than its own frees, as far as there is room.
        choice: ranks chosen beforehand, cut to what the blocks have room for. Left out where it is needed:
            `choose_ranks` with its defaults and the settings given here, which takes the blocks for signal plus white
            noise.
        center: subtract each row's mean first, as r.jive does for variables measured on D samples; the parts are then
            those of the centred blocks. Off, as rows sigma v^T of an SVD are vectors and have no mean to lose.
        scale: divide each block by its Frobenius norm first, or a large region dominates.
        orthogonal_individuals: r.jive's orthIndiv: individual row spaces orthogonal to each other too. Then the order
            of the blocks matters, and so does where the individual parts start: as in r.jive, which defines the
            answer, at entries of -1 in its own units. Otherwise they start at zero.
        tolerance: stop when the joint and the individual parts both change by at most this, relative to ||X||. They are
            then about ten times as far from where the rounds end, and hundreds of times where these creep.
        max_iterations: `converged` is False when it is reached.
        compress: iterate in the row space of the stacked blocks; False works at full width (for checks only).

    Returns:
        The parts with their evidence.

    Raises:
        InputError: blocks that `read_blocks` refuses, rows that are constant where they are centred, ranks that are no
            whole numbers or larger than the space, or that cannot be chosen.
    """
    rows, arrays = read_blocks(blocks)
    if center:
        rows = centred(rows, null_level(rows[0].dtype))
    if not (isinstance(tolerance, Real) and tolerance > 0):
        raise InputError("tolerance", repr(tolerance), "a number above 0")
    whole("max_iterations", max_iterations, least=1)
    used = _ranks(rows, joint_rank, individual_ranks, choice, scale, orthogonal_individuals)
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
    found = _result(state, basis, scales, rows[0], iterations, converged, used)
    return _with_arrays(found) if arrays else found


def _ranks(
    blocks: Sequence[torch.Tensor],
    joint_rank: int | None,
    individual_ranks: Sequence[int] | None,
    choice: RankChoice | None,
    scale: bool,
    orthogonal: bool,
) -> RankChoice:
    """The ranks to use: those given, and for the others those of `choice`, made here where there is none."""
    shapes = [tuple(block.shape) for block in blocks]
    joint = None if joint_rank is None else whole("joint_rank", joint_rank)
    ranks = None if individual_ranks is None else whole_ranks("individual_ranks", individual_ranks, len(blocks))
    _validate(shapes, joint or 0, ranks or (0,) * len(blocks), orthogonal)
    if joint is not None and ranks is not None:
        return RankChoice(joint, ranks, "given")
    if choice is None:
        choice = choose_ranks(blocks, scale=scale, orthogonal_individuals=orthogonal)
    if not isinstance(choice, RankChoice):
        raise InputError("choice", type(choice).__name__, "what choose_ranks returns")
    return with_room(choice, shapes, orthogonal, joint, ranks)


def _validate(shapes: Sequence[tuple[int, ...]], joint_rank: int, ranks: Sequence[int], orthogonal: bool) -> None:
    """Raise InputError where given ranks have no room; ranks yet to be chosen are zeros here."""
    space = min(sum(rows for rows, _ in shapes), shapes[0][1])
    if joint_rank > space:
        raise InputError("joint_rank", joint_rank, f"0 to {space}, the rank of the stacked blocks")
    for i, (rank, (rows, _)) in enumerate(zip(ranks, shapes, strict=True)):
        if rank > min(rows, space - joint_rank):
            expected = f"0 to {min(rows, space - joint_rank)} (rows of the block; space left by joint_rank)"
            raise InputError(f"individual rank of block {i}", rank, expected)
    if orthogonal and joint_rank + sum(ranks) > space:
        raise InputError("individual_ranks", list(ranks), f"a sum of at most {space - joint_rank} when orthogonal")


def _result(
    state: Rounds,
    basis: torch.Tensor | None,
    scales: torch.Tensor,
    like: torch.Tensor,
    iterations: int,
    converged: bool,
    used: RankChoice,
) -> JiveResult[torch.Tensor]:
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
    real = state.joint_sigma > null_level(like.dtype) * state.total.norm()
    residual = state.total - state.joint - state.individual
    energies = torch.stack([block.square().sum() for block in state.blocks])
    shares = [
        torch.stack([part.square().sum() for part in whole.split(state.heights)]) / energies
        for whole in (state.joint, state.individual)
    ]
    return JiveResult(
        joint=[widen(p * s) for p, s in zip(shared, scales, strict=True)],
        individual=[widen(p * s) for p, s in zip(parts, scales, strict=True)],
        joint_basis=canonical_sign(widen(state.joint_basis * real[:, None])),
        joint_sigma=(state.joint_sigma * real).to(like.dtype),
        joint_bases=[rows for rows, _ in joint],
        joint_sigmas=[sigma for _, sigma in joint],
        individual_bases=[rows for rows, _ in individual],
        individual_sigmas=[sigma for _, sigma in individual],
        scales=scales,
        residual=float(residual.norm() / state.total.norm()),
        change=state.change,
        iterations=iterations,
        converged=converged,
        joint_shares=shares[0],
        individual_shares=shares[1],
        ranks=used,
    )


def _with_arrays(result: JiveResult[torch.Tensor]) -> JiveResult[Any]:
    """The same numbers as arrays."""

    def array(value: Any) -> Any:
        if isinstance(value, list):
            return [array(one) for one in value]
        return value.numpy() if isinstance(value, torch.Tensor) else value

    return JiveResult(**{field.name: array(getattr(result, field.name)) for field in fields(result)})
