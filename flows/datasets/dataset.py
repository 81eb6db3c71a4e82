"""A source and a recipe's regions and size, made into images to be mined: one at a time, in the source's own order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from catalog.records import content_id
from flows.datasets.builtin import BuiltinSource
from flows.datasets.contract import BrokenImageError, Failure, Item, Source, SourceImage, image_id
from flows.datasets.pictures import grey_mask
from flows.image_errors import ImageErrors
from flows.regions import Parts, Regions, check_regions, open_regions
from flows.time_limit import TookTooLongError, limited
from flows.transient import is_transient, patiently
from pipeline.errors import InputError
from pipeline.faces.factors import REGIONS
from pipeline.images import CENTER, Fit, fit_image

if TYPE_CHECKING:
    from flows.recipe import Recipe


@dataclass(frozen=True)
class Dataset:
    """The images a recipe asks for, read lazily: iterating holds one item at a time, and the ids of those before it.

    `image_shape` (C, H, W) of the model; `limit` takes the first items; `part` (index, count) every count-th of them,
    from index on; `seconds` that reading one of them may take. The same picture under two keys counts once, as far as
    one iteration sees. Every iteration reads from the start.
    """

    source: Source
    regions: Regions
    image_shape: tuple[int, int, int]
    fit: Fit = CENTER
    limit: int | None = None
    part: tuple[int, int] = (0, 1)
    seconds: float | None = None
    errors: ImageErrors = field(default_factory=ImageErrors, compare=False, repr=False)

    def __post_init__(self) -> None:
        channels = self.image_shape[0]
        if channels not in (1, 3):
            raise InputError("model: channels", channels, "1 (grey) or 3 (RGB), as images have")
        self.regions.check_size(self.image_shape[1:])

    @property
    def name(self) -> str:
        """What the catalog calls the data set."""
        return self.source.name

    @property
    def split(self) -> str:
        """The split, as the source calls it."""
        return self.source.split

    def shard(self, index: int, count: int) -> Dataset:
        """Part `index` of `count`: every count-th item, so that parts are of one size and together are the whole.

        Raises:
            InputError: no such part.
        """
        if count < 1 or not 0 <= index < count:
            raise InputError("shard", f"{index} of {count}", "an index from 0 up to the number of parts")
        return replace(self, part=(self.part[0] + self.part[1] * index, self.part[1] * count))

    def keys(self) -> Iterator[str]:
        """The keys of the items, in order."""
        return islice(islice(self.source.keys(), self.limit), self.part[0], None, self.part[1])

    def count(self) -> int | None:
        """Number of items, None where only reading everything would tell."""
        try:
            every = len(self.source)
        except TypeError:
            return None
        every = every if self.limit is None else min(every, self.limit)
        return len(range(self.part[0], every, self.part[1]))

    def __iter__(self) -> Iterator[SourceImage | Failure]:
        seen: dict[str, str] = {}
        for key in self.keys():
            image = self.read(key)
            if isinstance(image, SourceImage):
                if image.image_id in seen:
                    reason = f"the same picture as {seen[image.image_id]}"
                    image = Failure(self.name, self.split, key, reason, repeats=True)
                else:
                    seen[image.image_id] = key
            yield image

    def read(self, key: str) -> SourceImage | Failure:
        """One item as an image to be mined, or why it cannot become one. What may pass is tried again.

        Raises:
            InputError, RunError: what is wrong concerns the whole data set.
        """
        try:
            with limited(self.seconds):
                image = self._read(key)
        except TookTooLongError as error:
            self.source.reset()
            return self._failure(key, self.errors.reason(key, error))
        except InputError:
            raise
        except Exception as error:
            return self._failure(key, self.errors.reason(key, error))
        self.errors.none()
        return image

    def _read(self, key: str) -> SourceImage | Failure:
        try:
            item = patiently(lambda: self.source.read(key, self.regions.parts))
        except BrokenImageError as error:
            if is_transient(error):  # its source is out of reach, perhaps for all
                raise
            return self._failure(key, str(error))
        try:
            return self._image(key, item)
        except InputError as error:  # labels of another picture, or pixels of a kind that cannot be converted
            return self._failure(key, str(error))

    def chunks(self, size: int) -> Iterator[list[SourceImage | Failure]]:
        """The images in groups of `size`, in order; the last may be smaller."""
        items = iter(self)
        while chunk := list(islice(items, size)):
            yield chunk

    def fingerprint(self) -> str:
        """32 hex digits over what the data set is and how its pictures are fitted. Which images it holds is not part of
        it: those have ids of their own, and a data set may grow."""
        crop = list(self.fit.crop) if isinstance(self.fit.crop, tuple) else self.fit.crop
        shape = list(self.image_shape)
        return content_id(
            "dataset", type(self.source).__name__, self.name, self.split, crop, self.fit.resampling, shape
        )

    @cached_property
    def _all(self) -> tuple[SourceImage | Failure, ...]:
        return tuple(self)

    @property
    def images(self) -> tuple[SourceImage, ...]:
        """All images, read at once: for data sets that fit into memory."""
        return tuple(image for image in self._all if isinstance(image, SourceImage))

    @property
    def failures(self) -> tuple[Failure, ...]:
        """All items that could not become images."""
        return tuple(image for image in self._all if isinstance(image, Failure))

    def _failure(self, key: str, reason: str) -> Failure:
        return Failure(self.name, self.split, key, reason)

    def _image(self, key: str, item: Item) -> SourceImage | Failure:
        pixels = fit_image(item.picture, self.image_shape, self.fit)
        size = item.picture.size
        labels = None if item.labels is None else self._fitted(item.labels, item.picture.size)
        made = self.regions.masks(self._parts(item), labels, self.source.labels, self.image_shape[1:])
        if not made.masks and self.regions.generated is None:
            return self._failure(key, f"no region has a mask: {'; '.join(dict.fromkeys(made.skipped.values()))}")
        identity = image_id(self.name, pixels)
        factors = dict(item.factors)
        return SourceImage(identity, self.name, self.split, key, pixels, made.masks, factors, made.skipped, size)

    def _parts(self, item: Item) -> Parts:
        """The item's parts at the model's size; a mask of another picture counts as broken."""
        masks, missing, broken = {}, dict(item.missing), set(item.broken)
        for part, mask in item.masks.items():
            try:
                fitted = fit_mask(mask, item.picture.size, self.image_shape, part, self.fit)
            except InputError as error:
                missing[part] = str(error)
                broken.add(part)
                continue
            if fitted.any():
                masks[part] = fitted
            else:
                missing[part] = f"the mask of {part} is empty at {fitted.shape[1]} x {fitted.shape[0]} pixels"
        return Parts(masks, missing, broken)

    def _fitted(self, labels: np.ndarray, picture_size: tuple[int, int]) -> np.ndarray:
        """A label map (H, W) at the model's size, through the crop of its picture."""
        _check_aspect((labels.shape[1], labels.shape[0]), picture_size, "label map")
        picture = Image.fromarray(labels.astype(np.int32))
        size = (self.image_shape[2], self.image_shape[1])
        return np.asarray(self.fit.apply(picture, size, "nearest")).astype(np.int32)


def load_dataset(recipe: Recipe, image_shape: tuple[int, int, int]) -> Dataset:
    """The images and masks a recipe asks for, at the model's size; listed and checked now, read when iterated.

    Args:
        recipe: says which data set and which regions.
        image_shape: (C, H, W) of the model's pictures, C 1 or 3.

    Raises:
        InputError: no images, an unknown region, or a model with other channels.
        NotFoundError: the built-in data is missing from the installation.
    """
    config = recipe.dataset
    source = config.open(recipe.resolve)
    regions = recipe.open_regions()
    check_regions(regions, source)
    return Dataset(source, regions, image_shape, config.resize.fit, config.limit)


def load_builtin(
    split: Literal["mine", "holdout"] = "mine",
    regions: Sequence[str] = REGIONS,
    limit: int | None = None,
    image_shape: tuple[int, int, int] = (3, 64, 64),
) -> Dataset:
    """The built-in faces with exact masks of `regions`, without a recipe: for notebooks and examples.

    Raises:
        InputError: an unknown region.
    """
    source = BuiltinSource("faces64", split)
    chosen = open_regions(tuple(regions), Path)
    check_regions(chosen, source)
    return Dataset(source, chosen, image_shape, limit=limit)


def fit_mask(
    mask: Image.Image | np.ndarray,
    image_size: tuple[int, int],
    image_shape: tuple[int, int, int],
    name: str,
    fit: Fit = CENTER,
) -> np.ndarray:
    """A mask as bool (H, W) of the model, through the same crop as its image of `image_size` (width, height).

    Pictures are read by brightness, threshold 128; an alpha channel is ignored.

    Raises:
        InputError: the mask's aspect differs from its image's by more than a pixel: it is the mask of something else.
    """
    values = mask.astype(bool) if isinstance(mask, np.ndarray) else grey_mask(mask)
    _check_aspect((values.shape[1], values.shape[0]), image_size, f"mask {name}")
    picture = Image.fromarray(values.astype(np.uint8))
    if picture.size != image_size:
        picture = picture.resize(image_size, Image.Resampling.NEAREST)
    return np.asarray(fit.apply(picture, (image_shape[2], image_shape[1]), "nearest")).astype(bool)


def _check_aspect(size: tuple[int, int], image_size: tuple[int, int], what: str) -> None:
    width, height = image_size
    if abs(size[0] * height - size[1] * width) > max(*size, width, height):
        raise InputError(
            what,
            f"{size[0]} x {size[1]} pixels",
            f"its image's size, {width} x {height}, or a multiple",
            "Draw the mask on the image that it belongs to.",
        )
