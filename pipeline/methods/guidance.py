"""What tells a trained method its attribute: the readings of an attribute reader, or captions under CLIP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pipeline.errors import InputError
from pipeline.methods.contract import Reader


@dataclass(frozen=True)
class Goal:
    """An attribute that a region's edit is to change.

    For a reader: its reading number `index` is raised (`sign` 1) or lowered (-1). For CLIP: a picture that `source`
    describes becomes one that `target` does. `name` is the attribute's, as people call it.
    """

    region: str
    name: str
    index: int = 0
    sign: int = 1
    source: str = ""
    target: str = ""

    def __post_init__(self) -> None:
        if not self.region or not self.name or "/" in self.region + self.name:
            raise InputError("goal", f"{self.region!r}, {self.name!r}", "a region and a name, neither holding a slash")
        if self.sign not in (1, -1) or self.index < 0:
            raise InputError("goal", f"index {self.index}, sign {self.sign}", "the number of a reading, and 1 or -1")

    @property
    def key(self) -> str:
        """One name for region and attribute."""
        return f"{self.region}/{self.name}"


def reader_goals(
    factors: Sequence[str],
    owner: Mapping[str, str],
    regions: Sequence[str] | None = None,
    preferred: Mapping[str, str] | None = None,
) -> tuple[Goal, ...]:
    """For every region one of the reader's `factors` that it owns, raised; a region without one has no goal.

    `owner`: which region shows each factor. `preferred`: the factor of a region, of others it is the first. `regions`:
    left out, all that own a factor, in the order of factors.
    """
    found: dict[str, Goal] = {}
    for index, name in enumerate(factors):
        goal = Goal(owner[name], name, index)
        if goal.region not in found or (preferred or {}).get(goal.region) == name:
            found[goal.region] = goal
    return tuple(found[region] for region in (found if regions is None else regions) if region in found)


class Guidance(ABC):
    """How far edited pictures are from their goal, as a loss that can be differentiated."""

    @abstractmethod
    def check(self, goal: Goal) -> None:
        """Raises InputError for a goal that this guidance cannot be told."""

    @abstractmethod
    def loss(self, goal: Goal, pictures: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
        """A scalar, the mean over a batch: `edited` against the clean `pictures`, both (B, C, H, W) in [-1, 1]."""


class ReaderGuidance(Guidance):
    """Distance of the goal's reading from the end of its range, 1 raised and 0 lowered, in L1.

    `hold` weighs the mean distance of all other readings from those of the unedited pictures. Pictures are clamped
    first: a reading beyond what a picture can show is none.
    """

    def __init__(self, reader: Reader, hold: float = 0.0) -> None:
        self.reader, self.hold = reader, hold

    def check(self, goal: Goal) -> None:
        """Whatever the reader knows can be asked for; an index that it lacks is told by `loss`."""

    def loss(self, goal: Goal, pictures: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
        readings = self.reader(edited.clamp(-1.0, 1.0))
        if goal.index >= readings.shape[1]:
            raise InputError(f"goal {goal.key}", f"index {goal.index}", f"one of the reader's {readings.shape[1]}")
        end = 1.0 if goal.sign > 0 else 0.0
        away = (readings[:, goal.index] - end).abs().mean()
        if self.hold == 0.0 or readings.shape[1] == 1:
            return away
        with torch.no_grad():
            before = self.reader(pictures.clamp(-1.0, 1.0))
        others = [i for i in range(readings.shape[1]) if i != goal.index]
        return away + self.hold * (readings - before)[:, others].abs().mean()
