"""The one loader contract. A `Source` lists the items of a data set and reads one at a time; it resizes nothing, names
no regions, and holds no more than one item in memory. `flows.datasets.dataset` makes images to be mined of it.

Items are identified by content (pixels at the mined size and data set name), never by position; a `key` only says where
an item is found and is what people are shown.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from catalog.records import content_id
from catalog.secrecy import without_secrets


class BrokenImageError(Exception):
    """An item that cannot be read or decoded, with the reason for people: one of many becomes a recorded failure."""


class NotAnnotatedError(BrokenImageError):
    """A mask that was never made, which is nothing broken."""


@dataclass(frozen=True)
class Item:
    """One item as its source holds it, at its own size.

    `picture` is upright (EXIF). `masks` by part, of the picture's aspect, grey pictures (white is inside) or bool
    (H, W); only parts that were asked for and that the item has. `labels`: an integer label map (H, W) of the picture's
    aspect, where the source has one and regions of it were asked for. `missing`: parts asked for that could not be
    had, with the reason; `broken` those of them that are there and cannot be read: a union of parts goes on without one
    that is not annotated, and not without one that is broken. `factors`: named numbers that the source knows of the
    item, such as attributes or pose.
    """

    picture: Image.Image
    masks: Mapping[str, Image.Image | np.ndarray] = field(default_factory=dict)
    labels: np.ndarray | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    broken: frozenset[str] = frozenset()
    factors: Mapping[str, float] = field(default_factory=dict)


class Source(ABC):
    """A data set as it lies on disk or on the Hub. Opening one lists it and checks that what it needs is there; it
    raises InputError, naming the recipe's field, where it is not.

    `name` and `split` are what the catalog calls it; `licence` is the text or name of its licence, None where the
    source says nothing; `redistributable` says whether its pictures may be passed on; `citation` is what its authors
    ask to be cited, BibTeX as they print it, None where they ask for nothing; the manifest keeps all three. `parts`:
    every part that some item may have a mask of (what an unknown region is checked against), and `without_parts` why
    there are none; `labels`: label names and their values in the label map, if it `has_labels`; `origin`: where it was
    had from, such as a Hub repository and commit.
    """

    name: str
    split: str = "all"
    licence: str | None = None
    redistributable: bool = True
    citation: str | None = None
    parts: Sequence[str] = ()
    without_parts: str = ""
    has_labels: bool = False
    labels: Mapping[str, int] = {}
    origin: Mapping[str, str] = {}

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """Every item's key, unique and in a stable order, at most 200 printable characters; cheap: decodes nothing."""

    @abstractmethod
    def read(self, key: str, parts: Collection[str]) -> Item:
        """The item `key` with its masks of `parts`, and its label map if it has one.

        Raises:
            BrokenImageError: the item cannot be read; masks that cannot are listed in `missing` instead.
            InputError: what is wrong concerns the whole data set.
        """

    def reset(self) -> None:
        """Forget what an ended `read` may have left half done: it can be broken off anywhere."""
        return

    def __len__(self) -> int:
        """Number of items; sources that would have to read everything to know it raise TypeError."""
        return sum(1 for _ in self.keys())


@dataclass(frozen=True)
class SourceImage:
    """One image to be mined.

    `image` uint8 (H, W, 3|1) at the model's size, of a picture of `source_size` (width, height); `masks` bool (H, W) by
    region, only regions that were asked for, none of them empty; `factors` by name where the data set knows them;
    `skipped` regions with the reason.
    """

    image_id: str
    dataset: str
    split: str
    source: str
    image: np.ndarray
    masks: dict[str, np.ndarray]
    factors: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    source_size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Failure:
    """An item that could not become a `SourceImage`, and why, without secrets. `repeats`: only because its picture
    came before."""

    dataset: str
    split: str
    source: str
    reason: str
    repeats: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", without_secrets(self.reason))

    @property
    def image_id(self) -> str:
        """The id under which the failure is recorded: there are no pixels to take one from."""
        return content_id("unreadable", self.dataset, self.source)


def image_id(dataset: str, pixels: np.ndarray) -> str:
    """Id of an image: a hash of the data set's name and the pixels, uint8 (H, W, C), at the size they are mined."""
    digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    return content_id("image", dataset, list(pixels.shape), digest)


def region_ids(image: str, masks: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The region id of each mask, bool (H, W), of the image of that id."""
    return {region: content_id("region", image, region, _digest(mask)) for region, mask in masks.items()}


def _digest(mask: np.ndarray) -> str:
    return hashlib.sha256(np.packbits(mask).tobytes() + repr(mask.shape).encode()).hexdigest()[:32]
