"""Blocks of known joint and individual ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Truth:
    """Blocks (rows_i, width) of `joint` directions that all hold, `partial` ones that all but the last hold, and
    `own_i` of each block's own, plus white noise of standard deviation `noise`.

    Singular values of the signal run from 1.5 `strength` down to `strength`, or are all equal where `clustered`, in
    units of the noise's largest one, sqrt(rows) + sqrt(width); the joint and partial ones are `joint_share` of that.
    `oblique`: cosine between the blocks' first own directions. `rough`: rows of unequal noise, a factor of 4 between
    extremes. `keep`: a block is handed over as its truncated SVD diag(S) V^T of that many rows.
    """

    rows: tuple[int, ...]
    width: int
    joint: int
    own: tuple[int, ...]
    strength: float = 2.0
    noise: float = 1.0
    partial: int = 0
    joint_share: float = 1.0
    clustered: bool = False
    oblique: float = 0.0
    rough: bool = False
    keep: int | None = None

    @property
    def individual_ranks(self) -> tuple[int, ...]:
        """What is not joint of each block: its own directions and the partial ones it holds."""
        last = len(self.own) - 1
        return tuple(rank + (self.partial if i < last else 0) for i, rank in enumerate(self.own))


def simulate(truth: Truth, seed: int) -> list[torch.Tensor]:
    """Blocks (rows_i, width), float64, with directions uniformly random but for what `truth` says."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shared = truth.joint + truth.partial
    frame = torch.linalg.qr(normal(truth.width, shared + sum(truth.own) + 1)).Q.T
    common, *owns, between = frame.split([shared, *truth.own, 1])
    blocks = []
    for i, (rows, own) in enumerate(zip(truth.rows, owns, strict=True)):
        held = common[: truth.joint if i == len(truth.rows) - 1 else shared]
        if truth.oblique and len(own):
            own = own.clone()
            own[0] = truth.oblique**0.5 * between[0] + (1 - truth.oblique) ** 0.5 * own[0]
        count = len(held) + len(own)
        loud = torch.linspace(1.0 if truth.clustered else 1.5, 1.0, count, dtype=torch.float64)
        loud = loud[torch.randperm(count, generator=generator)] * truth.strength * (rows**0.5 + truth.width**0.5)
        loud[: len(held)] *= truth.joint_share
        signal = (torch.linalg.qr(normal(rows, count)).Q * loud) @ torch.cat([held, own])
        noise = truth.noise * normal(rows, truth.width)
        block = signal + (torch.logspace(-0.3, 0.3, rows, dtype=torch.float64)[:, None] if truth.rough else 1) * noise
        if truth.keep is not None:
            _, sigma, vt = torch.linalg.svd(block, full_matrices=False)
            block = sigma[: truth.keep, None] * vt[: truth.keep]
        blocks.append(block)
    return blocks
