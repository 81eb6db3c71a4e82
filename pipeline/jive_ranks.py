"""Joint and individual ranks for JIVE, chosen from the blocks by one of three rules, with the numbers they compared.

A rule asks whether what the blocks share is more than chance gives. Chance is always a uniformly random rotation in
all D dimensions of the columns, drawn in the few coordinates that matter (`_gaussian`), so a width of 32,768 costs no
more than a width of a hundred. No draw depends on the order of the blocks or on the basis of their rows.

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
from pipeline.jive_rounds import Rounds, check_blocks, null_level, truncate, without

Rule = Literal["permutation", "angles", "product"]
DEFAULT_RULE: Rule = "product"
LEVEL = 0.05  # of every test
_ROUNDS = 12  # of the permutation rule, between joint and individual ranks
_LEAST_ROWS = 4  # fewer singular values than this tell nothing about noise


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


@dataclass(frozen=True)
class _Block:
    """One block in compressed coordinates: rows (p, k), its SVD, signal rank and noise level, and D.

    `edge` is what a singular value must exceed to be signal, `noise` the standard deviation of an entry, 0 if unknown.
    """

    rows: torch.Tensor
    sigma: torch.Tensor
    vt: torch.Tensor
    width: int
    signal: int = 0
    noise: float = 0.0
    edge: float = 0.0
    exact: bool = False


def choose_ranks(
    blocks: Sequence[torch.Tensor],
    rule: Rule = DEFAULT_RULE,
    *,
    generator: torch.Generator | None = None,
    signal_ranks: Sequence[int] | None = None,
    scale: bool = True,
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

    Args:
        blocks: at least two matrices (r_i, D), same D, finite, none all zero; signal plus white noise.
        generator: drives all draws; left out, a generator with seed 0.
        signal_ranks: per block how many singular directions are signal. Left out, it is those louder than any of
            `draws` white matrices whose noise level is what the block's remaining singular values have; blocks whose
            rank is short of their rows and columns are free of noise.
        scale: permutation only: divide each block by its Frobenius norm first, as `jive` does.
        draws: random draws behind each threshold.

    Raises:
        InputError: as `jive`; an unknown rule; `signal_ranks` that do not fit; fewer than 4 rows to tell noise by.
    """
    check_blocks(blocks)
    if rule not in get_args(Rule):
        raise InputError("rule", repr(rule), f"one of {', '.join(get_args(Rule))}")
    if signal_ranks is not None and len(signal_ranks) != len(blocks):
        raise InputError("signal_ranks", len(signal_ranks), f"one rank for each of {len(blocks)} blocks")
    if draws < 20:
        raise InputError("draws", draws, "at least 20: thresholds are 5 % quantiles")
    generator = generator or torch.Generator().manual_seed(0)
    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    made = _compressed(blocks, scale)
    order = sorted(range(len(made)), key=lambda i: made[i].sigma.tolist())
    ordered = [_with_signal(made[i], i, signal_ranks, rule, draws, rng) for i in order]
    choice = _RULES[rule](ordered, draws, rng)
    back = [order.index(i) for i in range(len(order))]
    return replace(
        choice,
        rule=rule,
        individual_ranks=tuple(choice.individual_ranks[i] for i in back),
        signal_ranks=tuple(ordered[i].signal for i in back),
        spectra=tuple(choice.spectra[i] for i in back),
        edges=tuple(choice.edges[i] for i in back),
    )


# --- blocks and their signal --------------------------------------------------------------------------------------


def _compressed(blocks: Sequence[torch.Tensor], scale: bool) -> list[_Block]:
    """Blocks in the row space of the stacked rows; rows that are centred leave one column dimension fewer to noise."""
    heights = [len(block) for block in blocks]
    stacked = torch.cat([block.double() for block in blocks]).cpu()
    norms = torch.stack([part.norm() for part in stacked.split(heights)])
    centred = bool((stacked.sum(1).abs() <= 1e-6 * stacked.abs().sum(1)).all())
    parts = torch.linalg.qr(stacked.T).R.T.split(heights) if stacked.shape[1] > len(stacked) else stacked.split(heights)
    made = []
    for block, rows, norm in zip(blocks, parts, norms, strict=True):
        rows = rows / norm if scale else rows
        _, sigma, vt = truncate(rows, min(rows.shape))
        width = block.shape[1] - centred
        holds = int((sigma > null_level(block.dtype) * sigma.norm()).sum())
        made.append(_Block(rows, sigma[:holds], vt[:holds], width, exact=holds < min(len(block), width)))
    return made


def _with_signal(
    block: _Block, place: int, given: Sequence[int] | None, rule: Rule, draws: int, rng: np.random.Generator
) -> _Block:
    """The block with its signal rank, as given or estimated, and the noise level of the rest."""
    holds, rows = len(block.sigma), len(block.rows)
    if given is not None:
        if not 1 <= given[place] <= min(rows, block.width):
            raise InputError(f"signal rank of block {place}", given[place], f"1 to {min(rows, block.width)}")
        rank = min(given[place], holds)
        return replace(block, signal=rank, noise=_noise(block, rank))
    if block.exact or rule == "permutation":  # which compares with what the blocks would be if nothing was shared
        return replace(block, signal=holds)
    if holds < _LEAST_ROWS:
        expected = f"at least {_LEAST_ROWS} to tell signal from noise"
        raise InputError(
            f"block {place}", f"{holds} singular values", expected, "Give signal_ranks to choose_ranks, or more rows"
        )
    white = _white(rows, block.width, draws, rng)
    noise = float(block.sigma.median() / white.median())
    edge, rank, seen = noise * float(white.max()), -1, set()
    while rank not in seen:
        seen.add(rank)
        rank = min(int((block.sigma > edge).sum()), holds - 1)
        noise = _noise(block, rank)
        edge = noise * float(_white(rows - rank, block.width - rank, draws, rng).max())
    return replace(block, signal=rank, noise=noise, edge=edge)


def _noise(block: _Block, rank: int) -> float:
    """Standard deviation of a white matrix with the energy of all but the first `rank` singular values."""
    entries = (len(block.rows) - rank) * (block.width - rank)
    return float(block.sigma[rank:].norm()) / entries**0.5 if rank < len(block.sigma) else 0.0


# --- chance -------------------------------------------------------------------------------------------------------


def _gaussian(rows: int, width: int, draws: int, rng: np.random.Generator) -> torch.Tensor:
    """Gaussian matrices (draws, rows, width), up to a rotation of their columns that leaves min(rows, width) of them.

    Wide ones by Bartlett's decomposition: the triangle of their LQ, whose diagonal is chi distributed.
    """
    if rows >= width:
        return torch.from_numpy(rng.standard_normal((draws, rows, width)))
    lower = np.tril(rng.standard_normal((draws, rows, rows)), -1)
    every = np.arange(rows)
    lower[:, every, every] = np.sqrt(rng.chisquare(width - every, (draws, rows)))
    return torch.from_numpy(lower)


def _white(rows: int, width: int, draws: int, rng: np.random.Generator) -> torch.Tensor:
    """Singular values (draws, min(rows, width)) of Gaussian matrices."""
    return torch.linalg.svdvals(_gaussian(min(rows, width), max(rows, width), draws, rng))


def _frames(ranks: Sequence[int], width: int, draws: int, rng: np.random.Generator) -> torch.Tensor:
    """Random orthonormal rows (draws, sum(ranks), .), `ranks` to a block, independent between blocks."""
    rows = _gaussian(sum(ranks), width, draws, rng)
    return torch.cat([torch.linalg.qr(part.mT).Q.mT for part in rows.split(list(ranks), dim=1)], dim=1)


def _leading(passed: torch.Tensor) -> int:
    """How many come before the first that did not pass."""
    return int(passed.to(torch.int64).cumprod(0).sum())


# --- permutation --------------------------------------------------------------------------------------------------


def _permutation(blocks: list[_Block], draws: int, rng: np.random.Generator) -> RankChoice:
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
            _equal_energy(s, len(block.rows), width - joint, draws, rng)
            for s, block in zip(spectra, blocks, strict=True)
        ]
        ranks = [_leading(s > e.clamp(min=floor)) for s, e in zip(spectra, edges, strict=True)]
        found = RankChoice(
            joint, tuple(ranks), "permutation", (), tuple(observed.tolist()), tuple(chance.tolist()),
            tuple(tuple(s.tolist()) for s in spectra), tuple(tuple(e.tolist()) for e in edges),
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
    turned = torch.cat(sigmas)[:, None] * _frames([len(s) for s in sigmas], width, draws, rng)
    return torch.linalg.svdvals(turned)


def _equal_energy(spectrum: torch.Tensor, rows: int, width: int, draws: int, rng: np.random.Generator) -> torch.Tensor:
    """95 % quantiles (n,) of the singular values of white matrices (rows, width) with the energy of `spectrum`."""
    white = _white(rows, max(width, 1), draws, rng)
    edges = (white / white.norm(dim=1, keepdim=True)).quantile(1 - LEVEL, dim=0) * spectrum.norm()
    return torch.cat([edges, edges.new_zeros(len(spectrum))])[: len(spectrum)]


# --- angles between signal row spaces -----------------------------------------------------------------------------


def _shared(blocks: list[_Block], draws: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, float]:
    """What both subspace rules compare: squared singular values (m,) of the stacked bases, m = the smallest signal
    rank, the directions (m, k) they belong to, and the 95 % quantile of the largest square if bases were random."""
    ranks = [block.signal for block in blocks]
    most = min(ranks)
    _, sigma, vt = truncate(torch.cat([block.vt[: block.signal] for block in blocks]), most)
    if most == 0:
        return sigma, vt, 0.0
    random = torch.linalg.svdvals(_frames(ranks, blocks[0].width, draws, rng))[:, 0].square()
    return sigma.square(), vt, float(random.quantile(1 - LEVEL))


def _chosen(
    blocks: list[_Block], rule: Rule, squares: torch.Tensor, thresholds: torch.Tensor,
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


def _bounded(blocks: list[_Block], bound: torch.Tensor, random: float) -> torch.Tensor:
    """Thresholds on the squares: the larger of both bounds. Without any noise there is no bound on angles: then b, all
    blocks alike, where the blocks are known to be free of it, and b - 1/2 where nothing is known."""
    if all(block.noise == 0 for block in blocks):
        bound = torch.full_like(bound, len(blocks) - (0.0 if all(block.exact for block in blocks) else 0.5))
    return bound.clamp(min=random, max=len(blocks) - 1e-6)


def _angles(blocks: list[_Block], draws: int, rng: np.random.Generator) -> RankChoice:
    """AJIVE: a joint direction's square is at least b - sum(sin^2), the sines bounded by Wedin's theorem."""
    squares, _, random = _shared(blocks, draws, rng)
    lost = torch.stack([_wedin(block, draws, rng).square() for block in blocks]).sum(0)
    bound = (len(blocks) - lost).quantile(LEVEL)
    return _chosen(blocks, "angles", squares, _bounded(blocks, bound.expand_as(squares), random))


def _wedin(block: _Block, draws: int, rng: np.random.Generator) -> torch.Tensor:
    """Draws of max(||E V||, ||E^T U||) / sigma_r, at most 1: E is the block less its signal, U and V random there."""
    rank, tail = block.signal, block.sigma[block.signal :]
    if rank == 0 or len(tail) == 0:
        return torch.zeros(draws, dtype=torch.float64)
    norms = []
    for room in (len(block.rows) - rank, block.width - rank):
        rest = _gaussian(rank, room - len(tail), draws, rng)
        near = torch.from_numpy(rng.standard_normal((draws, rank, len(tail))))
        frames = torch.linalg.qr(torch.cat([near, rest], dim=2).mT).Q.mT[:, :, : len(tail)]
        norms.append(torch.linalg.svdvals(frames * tail)[:, 0])
    return (torch.stack(norms).amax(0) / block.sigma[rank - 1]).clamp(max=1.0)


# --- product of projections ---------------------------------------------------------------------------------------


def _product(blocks: list[_Block], draws: int, rng: np.random.Generator) -> RankChoice:
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


def _overlaps(block: _Block, draws: int, rng: np.random.Generator) -> torch.Tensor:
    """Rotational bootstrap: (draws, r, r), estimated signal directions against true ones, under fresh noise.

    The signal keeps its strengths, less what the noise adds to them (Benaych-Georges & Nadakuditi 2012); its row and
    column spaces are turned at random, which is the same as keeping them and drawing isotropic noise.
    """
    rank, rows, noise = block.signal, len(block.rows), block.noise
    if noise == 0 or rank == 0:
        return torch.eye(rank, dtype=torch.float64).expand(draws, rank, rank)
    level = noise**2
    above = block.sigma[:rank].square() - (rows + block.width) * level
    strength = (above + (above.square() - 4 * rows * block.width * level**2).clamp(min=0).sqrt()) / 2
    strength = strength.clamp(min=(rows * block.width) ** 0.5 * level).sqrt()
    drawn = noise * torch.from_numpy(rng.standard_normal((draws, rows, rank)))
    drawn[:, range(rank), range(rank)] += strength
    drawn = torch.cat([drawn, noise * _gaussian(rows, block.width - rank, draws, rng)], dim=2)
    return torch.linalg.svd(drawn, full_matrices=False).Vh[:, :rank, :rank]


_RULES: dict[Rule, Callable[[list[_Block], int, np.random.Generator], RankChoice]] = {
    "permutation": _permutation,
    "angles": _angles,
    "product": _product,
}
