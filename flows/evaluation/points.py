"""Where figures of Jacobians are measured, an image at a fraction of T, and how their medians are written."""

from __future__ import annotations

from typing import Protocol

from flows.datasets.contract import SourceImage
from flows.evaluation.cells import Rows
from flows.evaluation.series import listed
from flows.evaluation.world import World
from pipeline.methods.contract import Subject


def timestep_of(world: World, share: float) -> int:
    """Timestep index of a fraction of T, as methods take it."""
    total = world.denoiser.info.train_timesteps
    return min(round(share * total), total - 1)


def subject_of(world: World, image: SourceImage, share: float) -> Subject:
    """An image at a fraction of T, inverted as the recipe says."""
    return world.subjects([image], timestep_of(world, share), world.recipe.method.inversion_steps)[0]


class Bounded(Protocol):
    """An estimate with its interval."""

    @property
    def estimate(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def interval(found: Bounded) -> tuple[float, float, float]:
    """Estimate, low and high, as points of plots have them."""
    return found.estimate, found.low, found.high


def text(found: Bounded, form: str = ".2g") -> str:
    """0.42 (0.35 to 0.51), without the interval where one image gives none."""
    between = f" ({found.low:{form}} to {found.high:{form}})" if found.low < found.high else ""
    return f"{found.estimate:{form}}{between}"


def sample(rows: Rows) -> str:
    """Of how many images the figures are, regions that are on fewer named, and what their intervals are."""
    count = len({row["image"] for row in rows})
    if count == 1:
        return "From one held-out image: no intervals."
    images: dict[str, set[str]] = {}
    for row in rows:
        if "region" in row and "refused" not in row:
            images.setdefault(row["region"], set()).add(row["image"])
    fewer = [f"{region} is on {len(own)}" for region, own in images.items() if len(own) < count]
    text = f"Medians over {count} held-out images{f' ({listed(fewer)})' if fewer else ''}"
    return f"{text}, with 95 % intervals by bootstrap over images."
