"""Oxford's Flowers-102 with its segmentations, in its original layout: `kind: flowers102`.

Nilsback and Zisserman, "Automated flower classification over a large number of classes", ICVGIP 2008. Its README and
page (https://www.robots.ox.ac.uk/~vgg/data/flowers/102/) state no licence; the pictures were found on the web.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from flows.datasets.config import DatasetConfig, Resolve, quiet
from flows.datasets.contract import BrokenImageError, Item, NotAnnotatedError, Source
from flows.datasets.matlab import numbers_in
from flows.datasets.numbered import expected, folder_with, glimpse, numbers, open_in
from pipeline.errors import InputError

PART = "flower"
IMAGES, SEGMENTATIONS = "jpg", "segmim"
LABELS, SETS = "imagelabels.mat", "setid.mat"
SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}
BACKGROUND = (0, 0, 254)
# Levels by which JPEG changes flat blue, and blue beside a flower. Measured on drawn flowers of five colours, qualities
# 60 to 95: the edge is off by one or two pixels, and petals of a blue as close as 50 levels lose no more than that.
EXACT, NEAR = 12, 32
BLOCK = 64  # pixels of a block of a JPEG: no artefact is larger
MAX_FILE = 1 << 18  # bytes of a .mat; the longer of the two has 15 kB
MAX_VALUE = 99_999  # five digits
CITATION = """\
@inproceedings{Nilsback08,
  title={Automated Flower Classification over a Large Number of Classes},
  author={M-E. Nilsback and A. Zisserman},
  booktitle={Proceedings of the Indian Conference on Computer Vision, Graphics and Image Processing},
  year={2008}
}"""

_IMAGE = re.compile(r"image_([0-9]{5})\.jpg")
_SEGMENTATION = re.compile(r"segmim_([0-9]{5})\.jpg")


class FlowersDataset(DatasetConfig):
    """Flowers-102 as its archives unpack: jpg/, segmim/ (for masks), imagelabels.mat and setid.mat in `path`.

    `split` takes the images that setid.mat lists for training, validation or testing.
    """

    kind: Literal["flowers102"]
    path: str = Field(min_length=1)
    split: Literal["all", "train", "val", "test"] = quiet("all")

    def open(self, resolve: Resolve) -> Source:
        source = FlowersSource(resolve(self.path), self.split)
        source.name, source.licence = self.name or source.name, self.licence
        return source


class FlowersSource(Source):
    """Images image_NNNNN.jpg in the order of their numbers, the mask `flower`, and the category, 1 to 102, as a factor.

    Segmentations without an image, and gaps among the images, are items that cannot be read.

    Raises:
        InputError: another layout, no such split, or a .mat file that is damaged.
    """

    name = "flowers102"
    redistributable = False
    citation = CITATION

    def __init__(self, path: Path, split: str = "all") -> None:
        self._folder = folder_with(IMAGES, path, "flowers-102", _wrong_layout)
        self.split = split
        self._images = numbers(self._folder / IMAGES, _IMAGE)
        if not self._images:
            raise _wrong_layout(glimpse(self._folder / IMAGES))
        has_masks = (self._folder / SEGMENTATIONS).exists()
        masked = numbers(self._folder / SEGMENTATIONS, _SEGMENTATION) if has_masks else set()
        if has_masks and not masked:
            raise _wrong_layout(glimpse(self._folder / SEGMENTATIONS))
        self.parts = (PART,) if has_masks else ()
        self.without_parts = f"There is no {SEGMENTATIONS} in {self._folder}: unpack 102segmentations.tgz there."
        wanted = expected(self._images, masked)
        if split != "all":
            chosen = set(_whole_numbers(self._folder / SETS, SPLITS[split]).tolist())
            wanted = [number for number in wanted if number in chosen]
            if not wanted:
                raise InputError("dataset.split", f"no image of {split} in {self._folder}", "a split that has images")
        labels = self._folder / LABELS
        self._labels = _whole_numbers(labels, "labels") if labels.is_file() else np.empty(0, np.int64)
        self._numbers = {f"image_{number:05d}.jpg": number for number in wanted}

    def keys(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, key: str, parts: Collection[str]) -> Item:
        number = self._numbers[key]
        self._check(parts)
        picture = open_in(self._folder, f"{IMAGES}/{key}")
        known = 1 <= number <= len(self._labels)
        factors = {"category": float(self._labels[number - 1])} if known else {}
        if not parts:
            return Item(picture, factors=factors)
        try:
            return Item(picture, {PART: self._mask(number)}, factors=factors)
        except BrokenImageError as error:
            broken = () if isinstance(error, NotAnnotatedError) else (PART,)
            return Item(picture, missing={PART: str(error)}, broken=frozenset(broken), factors=factors)

    def _check(self, parts: Collection[str]) -> None:
        for part in parts:
            if part != PART:
                raise InputError("regions", part, f"the one part {PART}")

    def _mask(self, number: int) -> NDArray[np.bool_]:
        file = self._folder / SEGMENTATIONS / f"segmim_{number:05d}.jpg"
        if not file.exists() and not file.is_symlink():
            raise NotAnnotatedError("not annotated")
        mask = flower_mask(open_in(self._folder, file.relative_to(self._folder).as_posix()))
        if mask.all():
            raise BrokenImageError(f"{file.name} has no background of flat blue")
        return mask


def flower_mask(segmentation: Image.Image) -> NDArray[np.bool_]:
    """Where a segmentation, a picture on flat blue, shows the flower: bool (H, W).

    Background is what is nearly blue and joined to what is exactly blue but for compression: so a blue petal stays, and
    blue that bleeds into the flower's edge goes. Specks no larger than a block of a JPEG are taken for artefacts.
    """
    from skimage.filters import apply_hysteresis_threshold
    from skimage.morphology import remove_small_objects

    pixels = np.asarray(segmentation.convert("RGB"), dtype=np.int16)
    away = np.abs(pixels - np.array(BACKGROUND, dtype=np.int16)).max(axis=-1)
    background = apply_hysteresis_threshold(-away, -NEAR - 1, -EXACT - 1)
    background = remove_small_objects(background, max_size=BLOCK)
    return np.asarray(remove_small_objects(~background, max_size=BLOCK), dtype=bool)


def _whole_numbers(file: Path, name: str) -> NDArray[np.int64]:
    """The whole numbers, at least 1, of variable `name` of a MATLAB file. Raises InputError."""
    if not file.is_file():
        raise _damaged(file, f"no such file in {file.parent}")
    if file.stat().st_size > MAX_FILE:
        raise _damaged(file, f"{file.stat().st_size:,} bytes")
    try:
        values = numbers_in(file.read_bytes(), name)
    except (ValueError, OSError) as error:
        raise _damaged(file, str(error)) from error
    if not ((values >= 1) & (values <= MAX_VALUE) & (values == np.floor(values))).all():
        raise _damaged(file, f"{name} with values that are not numbers of images or categories")
    return values.astype(np.int64)


def _damaged(file: Path, found: str) -> InputError:
    return InputError(
        f"dataset.path: {file.name}", found, "the MATLAB file as it was published", "Copy it again, whole."
    )


def _wrong_layout(found: str) -> InputError:
    return InputError(
        "dataset.path",
        found,
        f"the layout of Flowers-102: {IMAGES}/image_NNNNN.jpg and, for masks, {SEGMENTATIONS}/segmim_NNNNN.jpg",
        "Point it at the folder in which its archives were unpacked.",
    )
