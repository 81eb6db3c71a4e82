"""The signal in a block for JIVE's rules of ranks: its singular directions, how many of them are louder than noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.jive_chance import WhiteSpectra
from pipeline.jive_rounds import null_level, truncate

_LEAST_ROWS = 4  # fewer singular values than this tell nothing about noise


@dataclass(frozen=True)
class Block:
    """One block (rows, width) by its SVD in compressed coordinates, its signal rank and its noise level.

    `edge` is what a singular value must exceed to be signal, `noise` the standard deviation of an entry, 0 if unknown.
    """

    sigma: torch.Tensor
    vt: torch.Tensor
    rows: int
    width: int
    signal: int = 0
    noise: float = 0.0
    edge: float = 0.0
    exact: bool = False


def compressed(blocks: Sequence[torch.Tensor], scale: bool) -> list[Block]:
    """Blocks in the row space of the stacked rows; rows that are centred leave one column dimension fewer to noise."""
    heights = [len(block) for block in blocks]
    stacked = torch.cat([block.double() for block in blocks]).cpu()
    norms = torch.stack([part.norm() for part in stacked.split(heights)])
    centred = bool((stacked.sum(1).abs() <= 1e-6 * stacked.abs().sum(1)).all())
    parts = torch.linalg.qr(stacked.T).R.T.split(heights) if stacked.shape[1] > len(stacked) else stacked.split(heights)
    made = []
    for block, rows, norm in zip(blocks, parts, norms, strict=True):
        rows = rows / norm if scale else rows
        _, sigma, vt = truncate(torch.linalg.qr(rows).R if len(rows) > rows.shape[1] else rows, len(rows))
        width = block.shape[1] - centred
        holds = int((sigma > null_level(block.dtype) * sigma.norm()).sum())
        made.append(Block(sigma[:holds], vt[:holds], len(block), width, exact=holds < min(len(block), width)))
    return made


def with_signal(
    block: Block, place: int, given: Sequence[int] | None, all_rows: bool, draws: int, rng: np.random.Generator
) -> Block:
    """The block with its signal rank, as given or estimated, and the noise level of the rest; or `all_rows` signal.

    Raises InputError where the given rank does not fit, or where too few rows are there to tell noise by.
    """
    holds, rows = len(block.sigma), block.rows
    if given is not None:
        if given[place] > min(rows, block.width):
            raise InputError(f"signal rank of block {place}", given[place], f"1 to {min(rows, block.width)}")
        rank = min(given[place], holds)
        return replace(block, signal=rank, noise=_noise(block, rank))
    if block.exact or all_rows:
        return replace(block, signal=holds)
    if holds < _LEAST_ROWS:
        expected = f"at least {_LEAST_ROWS} to tell signal from noise"
        raise InputError(
            f"block {place}", f"{holds} singular values", expected, "Give signal_ranks to choose_ranks, or more rows"
        )
    white = WhiteSpectra(rows, block.width, draws, rng)
    noise = float(block.sigma.median()) / white.median()
    edge, rank, seen = noise * float(white.nth(0).max()), -1, set()
    while rank not in seen:
        seen.add(rank)
        rank = min(int((block.sigma > edge).sum()), holds - 1)
        noise = _noise(block, rank)
        edge = noise * float(WhiteSpectra(rows - rank, block.width - rank, draws, rng).nth(0).max())
    return replace(block, signal=rank, noise=noise, edge=edge)


def _noise(block: Block, rank: int) -> float:
    """Standard deviation of a white matrix with the energy of all but the first `rank` singular values."""
    entries = (block.rows - rank) * (block.width - rank)
    return float(block.sigma[rank:].norm()) / entries**0.5 if rank < len(block.sigma) else 0.0
