"""Joint and individual ranks for JIVE, chosen from the blocks by one of three rules, with the numbers they compared.

A rule asks whether what the blocks share is more than chance gives. Chance is always a uniformly random rotation in
all D dimensions of the columns, drawn in the few coordinates that matter (`pipeline.jive_chance`), so a width of 32,768
costs no more than a width of a hundred, and neither do 32,768 rows. No draw depends on the order of the blocks or on
the basis of their rows.

Blocks come in two kinds. Plain matrices are signal plus white noise: the signal's rank is estimated against the noise.
Blocks without noise rows, such as truncated SVDs `diag(S) V^T`, hold nothing to estimate noise from: the caller says
by `signal_ranks` how many of their directions are signal (all rows, or those above a threshold on S), and what is left
of them, if anything, is taken for the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.jive_blocks import read_blocks, whole, whole_ranks
from pipeline.jive_chance import WhiteSpectra, frames, gaussian
from pipeline.jive_rounds import Rounds, truncate, without
from pipeline.jive_signal import Block, compressed, with_signal

Rule = Literal["permutation", "angles", "product"]
DEFAULT_RULE: Rule = "product"
LEVEL = 0.05  # of every test
_ROUNDS = 12  # of the permutation rule, between joint and individual ranks


@dataclass(frozen=True)
class RankChoice:
    """Ranks and why. `rule` is "given" where both were; `signal_ranks` (b,) what each block was taken to hold.

    `statistics` and `thresholds` (n,): the joint rank is how many leading statistics pass their threshold.
    permutation: singular values of the stacked blocks less their individual parts, and their 95 % quantile over
    rotated blocks. angles: squared singular values of the stacked row-space bases. product: eigenvalues of the mean
    product of two blocks' projections. `spectra`, `edges`: per block the singular values, and above which of them
    begins what counts as individual (permutation, outside the joint space) or as signal (the others). `settled`: False
    where the permutation rule's ranks still moved when it stopped.
    """

    joint_rank: int
    individual_ranks: tuple[int, ...]
    rule: str
    signal_ranks: tuple[int, ...] = ()
    statistics: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()
    spectra: tuple[tuple[float, ...], ...] = ()
    edges: tuple[tuple[float, ...], ...] = ()
    settled: bool = True


def choose_ranks(
    blocks: Sequence[torch.Tensor | np.ndarray],
    rule: Rule = DEFAULT_RULE,
    *,
    generator: torch.Generator | None = None,
    signal_ranks: Sequence[int] | None = None,
    scale: bool = True,
    orthogonal_individuals: bool = False,
    draws: int = 100,
) -> RankChoice:
    """Joint rank and individual ranks of blocks that share their columns.

    - "permutation" (Lock et al. 2013): joint and individual ranks in turn, the other part removed, until both stay.
      Needs no noise level. Compares loudness, so that individual parts louder than the joint one mislead it.
    - "angles" (AJIVE: Feng et al. 2018): directions near all row spaces of the signals, by the larger of the
      random-direction bound and the Wedin bound. Where a weak signal makes the Wedin bound wide, what only some blocks
      share counts as joint.
    - "product" (after Sergazinov, Taeb, Gaynanova 2024): spectrum of the product of two projections onto the signals'
      row spaces, averaged over all pairs of blocks, against a rotational bootstrap (Prothero et al. 2024) of a
      direction that all blocks hold, and against random subspaces.

    The last two take the noise for white and the joint space for part of each block's signal, so that an individual
    rank is the signal rank less the joint one. Where no block has noise and `signal_ranks` covers all it holds, no
    bound on angles exists: a direction is joint when it is nearer to being held by all b blocks than by all but one,
    its squared cosines summing to more than b - 1/2.

    Cost: one draw at a time, in memory of the smaller side of a block squared; 2 s for two blocks of 1500 x 300 on one
    core by the default rule, half a minute by permutation.

    Args:
        blocks: at least two matrices (r_i, D), same D, finite, none all zero; signal plus white noise. Tensors or
            arrays.
        generator: drives all draws; left out, a generator with seed 0.
        signal_ranks: per block how many singular directions are signal. Left out, it is those louder than any of
            `draws` white matrices whose noise level is what the block's remaining singular values have; blocks whose
            rank is short of their rows and columns are free of noise.
        scale: permutation only: divide each block by its Frobenius norm first, as `jive` does.
        orthogonal_individuals: as in `jive`: individual ranks are cut to what orthogonal row spaces leave room for, the
            weakest directions first.
        draws: random draws behind each threshold.

    Raises:
        InputError: as `jive`; an unknown rule; `signal_ranks` that do not fit; fewer than 4 rows to tell noise by.
    """
    rows, _ = read_blocks(blocks)
    if rule not in get_args(Rule):
        raise InputError("rule", repr(rule), f"one of {', '.join(get_args(Rule))}")
    if signal_ranks is not None:
        signal_ranks = whole_ranks("signal_ranks", signal_ranks, len(rows), least=1)
    whole("draws", draws, least=20)  # thresholds are 5 % quantiles
    generator = generator or torch.Generator().manual_seed(0)
    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    made = compressed(rows, scale)
    every = rule == "permutation"  # which compares with what the blocks would be if nothing was shared
    order = sorted(range(len(made)), key=lambda i: made[i].sigma.tolist())
    ordered = [with_signal(made[i], i, signal_ranks, every, draws, rng) for i in order]
    choice = _RULES[rule](ordered, draws, rng)
    back = [order.index(i) for i in range(len(order))]
    choice = replace(
        choice,
        rule=rule,
        individual_ranks=tuple(choice.individual_ranks[i] for i in back),
        signal_ranks=tuple(ordered[i].signal for i in back),
        spectra=tuple(choice.spectra[i] for i in back),
        edges=tuple(choice.edges[i] for i in back),
    )
    return with_room(choice, [tuple(block.shape) for block in rows], orthogonal_individuals)


def with_room(
    choice: RankChoice,
    shapes: Sequence[Sequence[int]],
    orthogonal_individuals: bool,
    joint_rank: int | None = None,
    individual_ranks: tuple[int, ...] | None = None,
) -> RankChoice:
    """The choice with given ranks in place of its own, its own ones cut to what blocks of these shapes have room for.

    What a smaller `joint_rank` frees goes to the individual parts. Where individual row spaces are orthogonal to each
    other and do not fit side by side, the directions with the smallest singular values go first.
    """
    if len(choice.individual_ranks) != len(shapes):
        found = f"ranks of {len(choice.individual_ranks)} blocks"
        raise InputError("choice", found, f"one individual rank for each of {len(shapes)} blocks")
    space = min(sum(rows for rows, _ in shapes), shapes[0][1])
    if individual_ranks is not None:
        taken = sum(individual_ranks) if orthogonal_individuals else max(individual_ranks)
        joint = max(0, min(choice.joint_rank, space - taken)) if joint_rank is None else joint_rank
        return replace(choice, joint_rank=joint, individual_ranks=individual_ranks)
    joint = min(choice.joint_rank, space) if joint_rank is None else joint_rank
    room, freed = max(0, space - joint), max(0, choice.joint_rank - joint)
    ranks = [min(rank + freed, rows, room) for rank, (rows, _) in zip(choice.individual_ranks, shapes, strict=True)]
    before = 0 if choice.rule == "permutation" else joint  # directions that `spectra` hold and that are joint

    def weakest(place: int) -> tuple[float, int]:
        spectrum, last = choice.spectra[place] if choice.spectra else (), before + ranks[place] - 1
        return spectrum[last] if last < len(spectrum) else 0.0, -ranks[place]

    while orthogonal_individuals and sum(ranks) > room:
        ranks[min((i for i, rank in enumerate(ranks) if rank), key=weakest)] -= 1
    return replace(choice, joint_rank=joint, individual_ranks=tuple(ranks))


# --- permutation --------------------------------------------------------------------------------------------------


def _leading(passed: torch.Tensor) -> int:
    """How many come before the first that did not pass."""
    return int(passed.to(torch.int64).cumprod(0).sum())


def _permutation(blocks: list[Block], draws: int, rng: np.random.Generator) -> RankChoice:
    """Lock et al.'s alternation of two tests, both with rotations where the paper permutes.

    Joint: the columns of each block are permuted as one, which leaves a block its own spectrum and breaks its ties with
    the others; so does a rotation of its row space, which many columns are like, and which compresses. Individual: the
    entries of each row are permuted, which leaves nothing but noise of the same energy; the white matrix of that
    energy stands for it, whatever basis the rows are in.
    """
    parts = [block.vt[: block.signal] * block.sigma[: block.signal, None] for block in blocks]
    width, heights = blocks[0].width, [len(part) for part in parts]
    floor = 1e-9 * float(torch.cat(parts).norm())
    individual = [torch.zeros_like(part) for part in parts]
    tried: list[RankChoice] = []
    for _ in range(_ROUNDS):
        left = [part - a for part, a in zip(parts, individual, strict=True)]
        observed = torch.linalg.svdvals(torch.cat(left))
        chance = _rotated_spectra(left, width, draws, rng).quantile(1 - LEVEL, dim=0)
        joint = _leading(observed[: len(chance)] > chance[: len(observed)].clamp(min=floor))
        basis = truncate(torch.cat(left), joint)[2]
        spectra = [torch.linalg.svdvals(without(part, basis)) for part in parts]
        edges = [
            _equal_energy(s, floor, WhiteSpectra(block.rows, max(width - joint, 1), draws, rng))
            for s, block in zip(spectra, blocks, strict=True)
        ]
        ranks = [sum(x > e for x, e in zip(s.tolist(), es, strict=False)) for s, es in zip(spectra, edges, strict=True)]
        found = RankChoice(
            joint, tuple(ranks), "permutation", (), tuple(observed.tolist()), tuple(chance.tolist()),
            tuple(tuple(s.tolist()) for s in spectra), tuple(edges),
        )  # fmt: skip
        if any((found.joint_rank, found.individual_ranks) == (t.joint_rank, t.individual_ranks) for t in tried):
            settled = tried[-1].joint_rank == joint and tried[-1].individual_ranks == found.individual_ranks
            return replace(found, settled=settled)
        tried.append(found)
        rounds = Rounds(parts, joint, ranks, False, torch.zeros_like(parts[0][:1]))
        rounds.run(1e-4, 200)
        individual = list(rounds.individual.split(heights))
    return replace(tried[-1], settled=False)


def _rotated_spectra(parts: list[torch.Tensor], width: int, draws: int, rng: np.random.Generator) -> torch.Tensor:
    """Singular values (draws, n) of the stacked parts, each turned at random in the space of all columns."""
    sigmas = [torch.linalg.svdvals(part)[: min(len(part), width)] for part in parts]
    ranks, stacked = [len(s) for s in sigmas], torch.cat(sigmas)[:, None]
    return torch.stack([torch.linalg.svdvals(stacked * frames(ranks, width, rng)) for _ in range(draws)])


def _equal_energy(spectrum: torch.Tensor, floor: float, white: WhiteSpectra) -> tuple[float, ...]:
    """95 % quantiles of the singular values of white matrices with the energy of `spectrum`, at least `floor`, up to
    the first that `spectrum` does not exceed."""
    edges: list[float] = []
    for index, value in enumerate(spectrum.tolist()):
        share = np.quantile(white.nth(index) / white.energy**0.5, 1 - LEVEL)
        edges.append(max(floor, float(share) * float(spectrum.norm())))
        if value <= edges[-1]:
            break
    return tuple(edges)


# --- angles between signal row spaces -----------------------------------------------------------------------------


def _shared(blocks: list[Block], draws: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, float]:
    """What both subspace rules compare: squared singular values (m,) of the stacked bases, m = the smallest signal
    rank, the directions (m, k) they belong to, and the 95 % quantile of the largest square if bases were random."""
    ranks = [block.signal for block in blocks]
    most = min(ranks)
    _, sigma, vt = truncate(torch.cat([block.vt[: block.signal] for block in blocks]), most)
    if most == 0:
        return sigma, vt, 0.0
    random = [torch.linalg.svdvals(frames(ranks, blocks[0].width, rng))[0].square() for _ in range(draws)]
    return sigma.square(), vt, float(torch.stack(random).quantile(1 - LEVEL))


def _chosen(
    blocks: list[Block], rule: Rule, squares: torch.Tensor, thresholds: torch.Tensor,
    shown: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
) -> RankChoice:  # fmt: skip
    """The ranks by thresholds on the squares; `shown` turns both into the rule's own statistic."""
    joint = _leading(squares > thresholds)
    return RankChoice(
        joint,
        tuple(block.signal - joint for block in blocks),
        rule,
        statistics=tuple(shown(squares).tolist()),
        thresholds=tuple(shown(thresholds).tolist()),
        spectra=tuple(tuple(block.sigma.tolist()) for block in blocks),
        edges=tuple((block.edge,) for block in blocks),
    )


def _bounded(blocks: list[Block], bound: torch.Tensor, random: float) -> torch.Tensor:
    """Thresholds on the squares: the larger of both bounds. Without any noise there is no bound on angles: then b, all
    blocks alike, where the blocks are known to be free of it, and b - 1/2 where nothing is known."""
    if all(block.noise == 0 for block in blocks):
        bound = torch.full_like(bound, len(blocks) - (0.0 if all(block.exact for block in blocks) else 0.5))
    return bound.clamp(min=random, max=len(blocks) - 1e-6)


def _angles(blocks: list[Block], draws: int, rng: np.random.Generator) -> RankChoice:
    """AJIVE: a joint direction's square is at least b - sum(sin^2), the sines bounded by Wedin's theorem."""
    squares, _, random = _shared(blocks, draws, rng)
    lost = torch.stack([_wedin(block, draws, rng).square() for block in blocks]).sum(0)
    bound = (len(blocks) - lost).quantile(LEVEL)
    return _chosen(blocks, "angles", squares, _bounded(blocks, bound.expand_as(squares), random))


def _wedin(block: Block, draws: int, rng: np.random.Generator) -> torch.Tensor:
    """Draws of max(||E V||, ||E^T U||) / sigma_r, at most 1: E is the block less its signal, U and V random there."""
    rank, tail = block.signal, block.sigma[block.signal :]
    if rank == 0 or len(tail) == 0:
        return torch.zeros(draws, dtype=torch.float64)
    norms = torch.zeros(draws, dtype=torch.float64)
    for room in (block.rows - rank, block.width - rank):
        for draw in range(draws):
            near = torch.from_numpy(rng.standard_normal((rank, len(tail))))
            drawn = torch.cat([near, gaussian(rank, room - len(tail), rng)], dim=1)
            turned = torch.linalg.qr(drawn.T).Q.T[:, : len(tail)]
            norms[draw] = torch.maximum(norms[draw], torch.linalg.matrix_norm(turned * tail, 2))
    return (norms / block.sigma[rank - 1]).clamp(max=1.0)


# --- product of projections ---------------------------------------------------------------------------------------


def _product(blocks: list[Block], draws: int, rng: np.random.Generator) -> RankChoice:
    """Spectrum of the mean of P_i P_j over all pairs of blocks: (P^2 - P) / (b (b - 1)) with P the sum of the P_i, so
    its eigenvectors are those of P, and the squares of the stacked bases give its eigenvalues.

    Were the k-th of them held by all blocks, block i would show it with length c_i = ||T_i a_i||: a_i are its
    coordinates in the block's signal, T_i how the signal's estimated directions overlap with the true ones, drawn by
    the bootstrap. Estimates err independently, so b unit vectors with products c_i c_j give the square to expect. A
    block that does not hold it shows what chance gives, r_i / D of its square. The threshold lies halfway between the
    5 % quantile where all hold it and the 95 % quantile where all but one do, the best of these cases.
    """
    squares, directions, random = _shared(blocks, draws, rng)
    if len(squares) == 0:
        return _chosen(blocks, "product", squares, squares)
    count, eye = len(blocks), torch.eye(len(blocks), dtype=torch.float64)
    lengths = []
    for block in blocks:
        inside = (block.vt[: block.signal] @ directions.T).abs()  # (r, m); signs are arbitrary, the draws symmetric
        inside = inside / inside.norm(dim=0).clamp(min=1e-12)
        lengths.append((_overlaps(block, draws, rng) @ inside).norm(dim=1))  # (draws, m)
    c = torch.stack(lengths, dim=-1)
    by_chance = torch.tensor([(block.signal / block.width) ** 0.5 for block in blocks], dtype=torch.float64)
    all_hold = _top_square(c).quantile(LEVEL, dim=0)
    missing = [_top_square(torch.where(one, by_chance, c)).quantile(1 - LEVEL, dim=0) for one in eye.bool()]
    bound = _bounded(blocks, (all_hold + torch.stack(missing).amax(0)) / 2, random)
    return _chosen(blocks, "product", squares, bound, lambda x: x * (x - 1) / (count * (count - 1)))


def _top_square(c: torch.Tensor) -> torch.Tensor:
    """Largest squared singular value (...) of b stacked unit vectors with products c_i c_j; c (..., b)."""
    eye = torch.eye(c.shape[-1], dtype=c.dtype)
    return torch.linalg.eigvalsh(c[..., :, None] * c[..., None, :] * (1 - eye) + eye)[..., -1]


def _overlaps(block: Block, draws: int, rng: np.random.Generator) -> torch.Tensor:
    """Rotational bootstrap: (draws, r, r), estimated signal directions against true ones, under fresh noise.

    The signal keeps its strengths, less what the noise adds to them (Benaych-Georges & Nadakuditi 2012); its row and
    column spaces are turned at random, which is the same as keeping them and drawing isotropic noise. Signs are free.
    """
    rank, rows, width, noise = block.signal, block.rows, block.width, block.noise
    if noise == 0 or rank == 0:
        return torch.eye(rank, dtype=torch.float64).expand(draws, rank, rank)
    level = noise**2
    above = block.sigma[:rank].square() - (rows + width) * level
    strength = (above + (above.square() - 4 * rows * width * level**2).clamp(min=0).sqrt()) / 2
    strength = strength.clamp(min=(rows * width) ** 0.5 * level).sqrt() / noise
    return torch.stack([_leading_rows(strength, rows, width, rng) for _ in range(draws)])


def _leading_rows(strength: torch.Tensor, rows: int, width: int, rng: np.random.Generator) -> torch.Tensor:
    """Leading right singular vectors (r, r), in their first r coordinates, of unit noise (rows, width) with `strength`
    (r,) added to the diagonal. Noise rows and columns beyond the first r are drawn as triangles."""
    rank = len(strength)
    if rows > rank + width:
        top = torch.from_numpy(rng.standard_normal((rank, width)))
        drawn = torch.cat([top, gaussian(width, rows - rank, rng).T])
    else:
        near = torch.from_numpy(rng.standard_normal((rows, rank)))
        drawn = torch.cat([near, gaussian(rows, width - rank, rng)], dim=1)
    drawn[range(rank), range(rank)] += strength
    if len(drawn) >= drawn.shape[1]:
        return torch.linalg.eigh(drawn.T @ drawn).eigenvectors[:rank, -rank:].flip(1).T
    squares, u = torch.linalg.eigh(drawn @ drawn.T)
    near = drawn[:, :rank].T @ u[:, -rank:] / squares[-rank:].sqrt()
    return near.flip(1).T


_RULES: dict[Rule, Callable[[list[Block], int, np.random.Generator], RankChoice]] = {
    "permutation": _permutation,
    "angles": _angles,
    "product": _product,
}
