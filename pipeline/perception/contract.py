"""What may be asked of a perceptual backbone, and the files that its numbers come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from pipeline.errors import InputError


@dataclass(frozen=True)
class WeightFile:
    """One file of weights as it was read. `published`: its sha256 is that of the file its authors give out."""

    name: str
    sha256: str
    bytes: int
    published: bool


class Backbone(Protocol):
    """A published network with its weights; `name` is what figures are called after."""

    @property
    def name(self) -> str: ...

    @property
    def files(self) -> tuple[WeightFile, ...]: ...


class PairJudge(Backbone, Protocol):
    """A backbone that compares pictures pair by pair."""

    def __call__(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Pictures (B, C, H, W) in [-1, 1], C 1 or 3 -> (B,) float32 on the pictures' device, without gradient."""
        ...


class FeatureExtractor(Backbone, Protocol):
    """A backbone that turns pictures into features, whose distributions are compared."""

    @property
    def width(self) -> int: ...

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (B, C, H, W) in [-1, 1], C 1 or 3 -> (B, width) float32 on the pictures' device, no gradient."""
        ...


def rgb(pictures: torch.Tensor, field: str = "pictures") -> torch.Tensor:
    """Pictures (B, 1 or 3, H, W) as float32 (B, 3, H, W); grey is repeated.

    Raises:
        InputError: another shape, or pixels that are not finite.
    """
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3):
        raise InputError(field, tuple(pictures.shape), "shape (B, C, H, W) with C 1 or 3")
    if not bool(torch.isfinite(pictures).all()):
        raise InputError(field, "NaN or infinity", "finite pixels in [-1, 1]")
    return pictures.to(torch.float32).expand(-1, 3, -1, -1)


def rgb_pair(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches of one shape, each as `rgb` gives it. Raises InputError as `rgb`, or where the shapes differ."""
    if before.shape != after.shape:
        raise InputError("after", tuple(after.shape), f"the shape of before, {tuple(before.shape)}")
    return rgb(before, "before"), rgb(after, "after")
