"""What a perfect editor would score: the true factor moved in the renderer, judged by the same reader and rules.

A factor near the end of its range has no room for the edit that worked at home, and at visible strength some factors
move by little more than success asks. Both bound every method; the bound is measured here, pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from flows.datasets.contract import SourceImage
from pipeline.faces.factors import FACTORS, factors_of
from pipeline.faces.render import render
from pipeline.metrics import EditSuccess, rms_inside, success
from pipeline.strengths import VISIBLE_RMS

RENDERED = "faces64"  # the data set whose faces can be drawn from their factors alone
STEPS = 50  # positions tried over the whole range of a factor

Readings = Callable[[torch.Tensor], list[dict[str, float]]]
"""What reads pictures (B, C, H, W): factors by name, for each."""


def truth_of(image: SourceImage) -> Mapping[str, float]:
    """The factors that an image can be drawn from; none where it cannot."""
    return image.factors if image.dataset == RENDERED else {}


def perfect_images(factors: Mapping[str, float], mask: torch.Tensor, factor: str, sign: float) -> torch.Tensor:
    """(2, 3, 64, 64): the face of `factors` as it is, and with one moved until the change is visible, or its range
    ends. `mask` (H, W) is the region's."""
    truth = torch.tensor([[factors[name] for name in FACTORS]])
    column = FACTORS.index(factor)
    moved = truth.repeat(STEPS + 1, 1)
    moved[:, column] += sign * torch.linspace(0.0, 1.0, STEPS + 1)
    moved = moved[(moved[:, column] >= 0.0) & (moved[:, column] <= 1.0)]
    faces = render(moved).images
    where = mask.to(faces.device).expand(len(faces), *faces.shape[-2:])
    visible = (rms_inside(faces - faces[:1], where) >= VISIBLE_RMS).nonzero().flatten().tolist()
    return faces[[0, visible[0] if visible else -1]]


def perfect_bound(
    read: Readings, factors: Mapping[str, float], mask: torch.Tensor, region: str, like: EditSuccess | None
) -> bool | None:
    """`perfect_transfer`, and None where the truth is not known or nothing was read at home."""
    if like is None or set(FACTORS) - set(factors):
        return None
    return perfect_transfer(read, factors, mask, region, like)


def perfect_transfer(
    read: Readings, factors: Mapping[str, float], mask: torch.Tensor, region: str, like: EditSuccess
) -> bool:
    """Whether a perfect edit of the factor and sign of `like` is a transfer success on the face of `factors`."""
    before, after = read(perfect_images(factors, mask, like.factor, 1.0 if like.move > 0 else -1.0))
    return success(before, after, factors_of(region), 0.0, like=like).success
