"""What every kind of data set may say in a recipe. Each kind adds its own keys in its own file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from flows.datasets.contract import Source

if TYPE_CHECKING:
    from pipeline.images import Fit

Resolve = Callable[[str], Path]
"""A path of the recipe on this machine: relative ones start at the recipe's own folder."""


def quiet(default: Any, **limits: Any) -> Any:
    """A key that enters the fingerprint, and so the ids of directions, only where it is not at its default."""
    return Field(default=default, exclude_if=lambda value: value == default, **limits)


class Part(BaseModel):
    """A part of a recipe: every key is known, none changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Resize(Part):
    """How a picture becomes one of the model's size, and its masks with it (by nearest neighbour).

    `crop`: "center" cuts the middle of the model's aspect, "none" stretches the whole picture, [left, top, right,
    bottom] in shares of the picture cuts that box and stretches it. `filter`: the resampling of the picture.
    """

    crop: (
        Literal["center", "none"]
        | Annotated[tuple[float, float, float, float], Field(description="left, top, right, bottom")]
    ) = "center"
    filter: Literal["lanczos", "bicubic", "bilinear", "box", "hamming", "nearest"] = "lanczos"

    @field_validator("crop", mode="before")
    @classmethod
    def _named_or_a_box(cls, crop: object) -> object:
        if crop not in ("center", "none") and not (isinstance(crop, list | tuple) and len(crop) == 4):
            raise ValueError("center, none, or a box [left, top, right, bottom]")
        return crop

    @property
    def fit(self) -> Fit:
        """The same in the pipeline's terms."""
        from pipeline.images import Fit  # with torch behind it: recipes are read without

        return Fit(self.crop, self.filter)


class DatasetConfig(Part):
    """`dataset` in a recipe. A kind adds `kind: Literal["..."]`, its keys, and `open`.

    `limit`: only the first images. `name`: what the catalog calls the data set (default: what its source says).
    `licence`: the licence of the user's copy, where the source does not say it.
    """

    name: str | None = Field(default=None, min_length=1)
    limit: int | None = Field(default=None, ge=1)
    licence: str | None = quiet(None, min_length=1)
    resize: Resize = quiet(Resize())

    @abstractmethod
    def open(self, resolve: Resolve) -> Source:
        """The data set, listed and checked. Raises InputError naming the key of `dataset` that does not fit."""
