"""Regions from a mask-generation model, such as SAM (Kirillov et al. 2023), prompted by a grid of points.

Every point of a regular grid is a prompt; the model answers with a few masks and how good it takes them to be. What is
sure, stable, of a fitting size and no copy of a better mask stays, under names that depend on the masks alone. The
model is a function here; `mask_model` loads those of transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.regions.masks import Mask, RegionMasks, numbered, usable

Prompted = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Points (n, 2) as (x, y) in shares of a picture -> logits (n, m, H, W), inside above 0, and predicted IoUs (n, m)."""


@dataclass(frozen=True)
class MaskSettings:
    """Which masks stay.

    Attributes:
        points_per_side: prompts, a square grid of this many by this many.
        points_per_batch: prompts answered at a time; memory is 4 bytes * points * masks per point * H * W and more.
        min_score: least IoU with the true object that the model predicts for its mask.
        min_stability: least stability: pixels with logits above `offset` over those above -`offset`.
        offset: of the logits.
        max_overlap: a mask whose IoU with a better one is above this is its copy.
        min_share, max_share: of the picture.
        most: masks that stay, the best by score; None is no limit.
    """

    points_per_side: int = 32
    points_per_batch: int = 32
    min_score: float = 0.88
    min_stability: float = 0.95
    offset: float = 1.0
    max_overlap: float = 0.7
    min_share: float = 0.002
    max_share: float = 0.5
    most: int | None = None

    def __post_init__(self) -> None:
        """Raise InputError for numbers out of range."""
        if self.points_per_side < 1 or self.points_per_batch < 1 or (self.most is not None and self.most < 1):
            raise InputError("mask generation", self, "numbers of points and masks of at least 1")
        if not 0 <= self.min_share < self.max_share <= 1:
            found = f"{self.min_share} to {self.max_share}"
            raise InputError("mask generation: shares", found, "0 <= min_share < max_share <= 1")
        if not (0 <= self.max_overlap <= 1 and self.offset >= 0):
            raise InputError("mask generation", self, "max_overlap in [0, 1] and offset from 0 up")


@dataclass(frozen=True)
class GeneratedMasks:
    """Masks of one picture: `regions` segment-1 (the largest; see `numbered`), segment-2, ...

    `scores` and `stability` by region. `dropped` says how many masks went for which reason, of `candidates` in all.
    """

    regions: RegionMasks
    scores: dict[str, float]
    stability: dict[str, float]
    dropped: dict[str, int]
    candidates: int


def point_grid(per_side: int) -> torch.Tensor:
    """The middles of `per_side` x `per_side` equal cells, (n, 2) as (x, y) in shares of the picture, row by row."""
    middles = (torch.arange(per_side, dtype=torch.float64) + 0.5) / per_side
    rows, columns = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], dim=1)


@dataclass
class _Pool:
    """Masks that passed so far, bool (H, W) each, and what was dropped."""

    masks: list[Mask] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    stability: list[float] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    candidates: int = 0

    def add(self, logits: torch.Tensor, scores: torch.Tensor, settings: MaskSettings) -> None:
        """Take in logits (n, H, W) with scores (n,)."""
        self.candidates += len(logits)
        logits, scores = self._filtered(logits, scores, scores >= settings.min_score, "score")  # false for NaN too
        if not len(logits):
            return
        inner, outer = ((logits > sign * settings.offset).flatten(1).sum(1) for sign in (1, -1))
        stability = inner / outer.clamp(min=1)
        steady = stability >= settings.min_stability
        stability = stability[steady]
        logits, scores = self._filtered(logits, scores, steady, "stability")
        masks = logits > 0
        share = masks.flatten(1).double().mean(1)
        fits = (share >= settings.min_share) & (share > 0)
        self._count("size: too small", int((~fits).sum()))
        large = (share > settings.max_share) | (share == 1)
        self._count("size: too large", int((fits & large).sum()))
        fits &= ~large
        self.masks += list(masks[fits].cpu().numpy())
        self.scores += scores[fits].tolist()
        self.stability += stability[fits].tolist()

    def _filtered(
        self, logits: torch.Tensor, scores: torch.Tensor, kept: torch.Tensor, reason: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._count(reason, int((~kept).sum()))
        return logits[kept], scores[kept]

    def _count(self, reason: str, number: int) -> None:
        if number:
            self.dropped[reason] = self.dropped.get(reason, 0) + number

    def named(self, settings: MaskSettings) -> GeneratedMasks:
        """What is left without copies, under its names."""
        distinct = distinct_masks(self.masks, self.scores, settings.max_overlap)
        self._count("copy of a better mask", len(self.masks) - len(distinct))
        chosen = distinct[: settings.most]
        self._count("more than asked for", len(distinct) - len(chosen))
        names = {name: chosen[rank] for name, rank in numbered([self.masks[index] for index in chosen]).items()}
        reasons = ", ".join(f"{count} by {reason}" for reason, count in self.dropped.items())
        skipped = {} if names else {"segment-1": f"none of {self.candidates} masks is left ({reasons})"}
        return GeneratedMasks(
            regions=usable({name: self.masks[index] for name, index in names.items()}, skipped),
            scores={name: self.scores[index] for name, index in names.items()},
            stability={name: self.stability[index] for name, index in names.items()},
            dropped=self.dropped,
            candidates=self.candidates,
        )


@torch.no_grad()
def generate_masks(prompted: Prompted, settings: MaskSettings | None = None) -> GeneratedMasks:
    """Prompt a model with a grid of points and keep the masks that `settings` lets pass.

    Args:
        prompted: the model at one picture, such as `MaskModel.prompted` returns.

    Cost: one image encoding, made before, and one decoding for every `points_per_batch` prompts.
    """
    settings, pool = settings or MaskSettings(), _Pool()
    for points in point_grid(settings.points_per_side).split(settings.points_per_batch):
        logits, scores = prompted(points)
        pool.add(logits.flatten(0, 1), scores.flatten(), settings)
    return pool.named(settings)


def distinct_masks(masks: list[Mask], scores: list[float], max_overlap: float) -> list[int]:
    """Positions of the masks that are no copies, best first: IoU non-maximum suppression over whole masks.

    Going from the best score down (of equal ones in the order of `numbered`), a mask stays unless its IoU with one that
    stayed is above `max_overlap`.
    """
    order = sorted(numbered(masks).values(), key=lambda index: -scores[index])
    kept: list[int] = []
    areas = [int(mask.sum()) for mask in masks]
    for index in order:
        for better in kept:
            small, large = sorted((areas[index], areas[better]))
            if small > max_overlap * large:  # else their IoU cannot be above it
                shared = int(np.count_nonzero(masks[index] & masks[better]))
                if shared > max_overlap * (small + large - shared):
                    break
        else:
            kept.append(index)
    return kept
