"""One loader contract for every kind of data set: source images with their masks, and what could not be loaded.

Images are identified by content (pixels and data set name), never by position. Pixels are uint8 at the model's size.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from catalog.records import content_id
from flows.paths import builtin_folder
from flows.recipe import BuiltinDataset, Recipe
from pipeline.errors import InputError, NotFoundError
from pipeline.faces.factors import REGIONS
from pipeline.images import eight_bits, fit_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MASK_SUFFIXES = (".png", ".webp", ".bmp", ".tif", ".tiff")  # lossless: a JPEG mask has no clean edge
MASK_THRESHOLD = 128
MAX_PIXELS = 100_000_000  # refuse decompression bombs


@dataclass(frozen=True)
class SourceImage:
    """One image to be mined.

    `image` uint8 (H, W, 3|1) at the model's size; `masks` bool (H, W) by region, only regions that were asked for,
    none of them empty; `factors` by name where the data set knows them; `skipped` regions with the reason.
    """

    image_id: str
    dataset: str
    split: str
    source: str
    image: np.ndarray
    masks: dict[str, np.ndarray]
    factors: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A file or row that could not become a `SourceImage`, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class LoadedDataset:
    """What a recipe's `dataset` turned out to hold. Failed items are listed, never counted as images."""

    name: str
    split: str
    regions: tuple[str, ...]
    images: tuple[SourceImage, ...]
    failures: tuple[Failure, ...]

    def fingerprint(self, without: Collection[str] = ()) -> str:
        """32 hex digits over the images and masks, whatever their order; `without` leaves out sources by name."""
        images = [image for image in self.images if image.source not in without]
        return content_id("dataset", sorted([i.image_id, *sorted(mask_digests(i.masks).items())] for i in images))


def image_id(dataset: str, pixels: np.ndarray) -> str:
    """Id of an image: a hash of the data set's name and the pixels, uint8 (H, W, C), at the size they are mined."""
    digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    return content_id("image", dataset, list(pixels.shape), digest)


def mask_digests(masks: Mapping[str, np.ndarray]) -> dict[str, str]:
    """A digest of each mask, by region."""
    return {
        region: hashlib.sha256(np.packbits(mask).tobytes() + repr(mask.shape).encode()).hexdigest()[:32]
        for region, mask in masks.items()
    }


def load_dataset(recipe: Recipe, image_shape: tuple[int, int, int]) -> LoadedDataset:
    """Load the images and masks a recipe asks for, at the model's size.

    Args:
        recipe: says which data set and which regions.
        image_shape: (C, H, W) of the model, C 1 or 3.

    Raises:
        InputError: no images, an unknown region, a mask of the wrong aspect, or a model with other channels.
        NotFoundError: the built-in data is missing from the installation.
    """
    if isinstance(recipe.dataset, BuiltinDataset):
        return load_builtin(recipe.dataset, recipe.regions, image_shape)
    folder = recipe.dataset
    return load_folder(
        recipe.resolve(folder.path),
        recipe.resolve(folder.masks) if folder.masks else None,
        recipe.regions,
        image_shape,
        name=folder.name,
        limit=folder.limit,
    )


def load_builtin(
    dataset: BuiltinDataset,
    regions: Sequence[str] = REGIONS,
    image_shape: tuple[int, int, int] = (3, 64, 64),
    folder: Path | None = None,
) -> LoadedDataset:
    """The first `limit` images of a built-in split, resized to the model where it is not of 64 x 64.

    Raises:
        InputError: an unknown region.
        NotFoundError: the Parquet file is not there.
    """
    _check_regions(regions, REGIONS)
    path = (folder or builtin_folder()) / dataset.name / f"{dataset.split}.parquet"
    if not path.is_file():
        raise NotFoundError("built-in data", f"no {path}", "the images that travel with the package")
    table = pq.read_table(path)
    images, failures = [], []
    for row in table.slice(0, dataset.limit).to_pylist():
        image = fit_image(Image.open(io.BytesIO(row["image"]["bytes"])), image_shape)
        labels = ImageOps.fit(
            Image.open(io.BytesIO(row["mask"]["bytes"])), _size(image_shape), Image.Resampling.NEAREST
        )
        every = {region: np.asarray(labels) == REGIONS.index(region) for region in regions}
        masks, skipped = _without_empty(every)
        source = f"{dataset.name}/{dataset.split}/{row['seed']:08x}"
        if not masks:
            failures.append(Failure(source, f"no region has a mask: {'; '.join(skipped.values())}"))
            continue
        identity = image_id(dataset.name, image)
        images.append(SourceImage(identity, dataset.name, dataset.split, source, image, masks, row["factors"], skipped))
    return LoadedDataset(dataset.name, dataset.split, tuple(regions), tuple(images), tuple(failures))


def shown_name(file: Path) -> str:
    """A file's name as people and the catalog may see it: at most 200 characters, unprintable ones as escapes."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in file.name)[-200:]


def load_folder(
    path: Path,
    masks: Path | None,
    regions: Sequence[str],
    image_shape: tuple[int, int, int],
    name: str | None = None,
    limit: int | None = None,
) -> LoadedDataset:
    """A user's own images: every image file directly in `path`, in the order of their names.

    An image is turned upright (EXIF), flattened onto white where it is transparent, centre-cropped to the model's
    aspect and resized; its masks go through the same crop. A mask is `masks`/NAME/REGION.png or
    `masks`/NAME_REGION.png (grey, white means inside, threshold 128; an alpha channel is ignored), of its image's
    size or a multiple of it. A region without a mask, or with an empty one, is skipped for that image and listed in
    `skipped`; an image that cannot be read, or that is left without any region, is a failure and the rest goes on.
    The same picture under two names counts once.

    Raises:
        InputError: no such folder, no images in it, none that can be used, a mask of another aspect than its image,
            or a region that no image has a mask of.
    """
    files = _image_files(path)
    found = find_masks(masks, [file.stem for file in files]) if masks else {}
    _check_regions(regions, sorted({region for each in found.values() for region in each}))
    label = name or path.resolve().name
    images: dict[str, SourceImage] = {}
    failures = []
    for file in files[:limit]:
        try:
            image = _folder_image(file, label, found.get(file.stem, {}), regions, image_shape)
        except BrokenImageError as error:
            failures.append(Failure(shown_name(file), str(error)))
            continue
        if image.image_id in images:
            failures.append(Failure(shown_name(file), f"the same picture as {images[image.image_id].source}"))
        elif not image.masks:
            failures.append(Failure(shown_name(file), f"no region has a mask: {'; '.join(image.skipped.values())}"))
        else:
            images[image.image_id] = image
    if not images:
        reasons = "; ".join(f"{failure.source}: {failure.reason}" for failure in failures[:3])
        raise InputError("dataset.path", f"no usable image in {path} ({reasons})", "at least one image with a mask")
    return LoadedDataset(label, "all", tuple(regions), tuple(images.values()), tuple(failures))


class BrokenImageError(Exception):
    """A file that cannot be decoded: one of many becomes a recorded failure."""


def _image_files(path: Path) -> list[Path]:
    if not path.is_dir():
        raise InputError("dataset.path", f"{path}, which is not a folder", "a folder of images")
    files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError("dataset.path", f"no images in {path}", f"files ending in {', '.join(SUFFIXES)}")
    stems: dict[str, Path] = {}
    for file in files:
        if file.stem in stems:
            raise InputError(
                "dataset.path", f"{stems[file.stem].name} and {file.name}", "one image per name, since masks go by name"
            )
        stems[file.stem] = file
    return files


def find_masks(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Mask files by image name and region: NAME/REGION.png and NAME_REGION.png.

    Where one image's name begins another's (`a` and `a_b`), a flat file belongs to the longest name that fits.

    Raises:
        InputError: no such folder, or two masks of one region of one image.
    """
    if not folder.is_dir():
        raise InputError("dataset.masks", f"{folder}, which is not a folder", "a folder of masks")
    found: dict[str, dict[str, Path]] = {name: {} for name in names}

    def add(name: str, region: str, file: Path) -> None:
        if region in found[name]:
            raise InputError("dataset.masks", f"{found[name][region]} and {file}", f"one mask of {region} for {name}")
        found[name][region] = file

    longest_first = sorted(names, key=len, reverse=True)
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and entry.name in found:
            for file in sorted(entry.iterdir()):
                if file.is_file() and file.suffix.lower() in MASK_SUFFIXES:
                    add(entry.name, file.stem, file)
        elif entry.is_file() and entry.suffix.lower() in MASK_SUFFIXES:
            owner = next((name for name in longest_first if entry.stem.startswith(name + "_")), None)
            if owner is not None and entry.stem != owner + "_":
                add(owner, entry.stem[len(owner) + 1 :], entry)
    return found


def _folder_image(
    file: Path, dataset: str, masks: Mapping[str, Path], regions: Sequence[str], image_shape: tuple[int, int, int]
) -> SourceImage:
    picture = open_image(file)
    image = fit_image(picture, image_shape)
    every: dict[str, np.ndarray] = {}
    missing = {}
    for region in regions:
        if region not in masks:
            missing[region] = f"no mask of {region}"
            continue
        try:
            every[region] = fit_mask(open_image(masks[region]), picture.size, image_shape, str(masks[region]))
        except BrokenImageError as error:
            missing[region] = f"mask of {region}: {error}"
    usable, empty = _without_empty(every)
    identity = image_id(dataset, image)
    return SourceImage(identity, dataset, "all", shown_name(file), image, usable, skipped=missing | empty)


def open_image(file: Path) -> Image.Image:
    """The decoded picture, upright. Raises BrokenImageError: Pillow reports a damaged file in many ways."""
    try:
        with Image.open(file) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise BrokenImageError(f"{picture.width} x {picture.height} pixels, more than {MAX_PIXELS:,}")
            picture.load()
            return ImageOps.exif_transpose(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        message = str(error).replace(str(file), file.name)
        raise BrokenImageError(f"cannot be read as an image ({message})") from error


def _size(image_shape: tuple[int, int, int]) -> tuple[int, int]:
    return image_shape[2], image_shape[1]


def fit_mask(
    mask: Image.Image, image_size: tuple[int, int], image_shape: tuple[int, int, int], source: str
) -> np.ndarray:
    """A mask picture as bool (H, W) of the model, through the same centre crop as its image of `image_size` (w, h).

    Raises:
        InputError: the mask's aspect differs from its image's by more than a pixel: it is the mask of something else.
    """
    width, height = image_size
    if abs(mask.width * height - mask.height * width) > max(mask.width, mask.height, width, height):
        raise InputError(
            f"mask {source}",
            f"{mask.width} x {mask.height} pixels",
            f"its image's size, {width} x {height}, or a multiple",
            "Draw the mask on the image that it belongs to.",
        )
    grey = eight_bits(mask)
    if grey.mode in ("RGBA", "LA", "PA"):
        grey = grey.convert("RGBA").convert("RGB")  # alpha is ignored: masks are told by brightness
    binary = grey.convert("L").point([0] * MASK_THRESHOLD + [255] * (256 - MASK_THRESHOLD))
    if binary.size != image_size:
        binary = binary.resize(image_size, Image.Resampling.NEAREST)
    if binary.size != _size(image_shape):
        binary = ImageOps.fit(binary, _size(image_shape), method=Image.Resampling.NEAREST)
    return np.asarray(binary) >= MASK_THRESHOLD


def _without_empty(masks: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Usable masks, and the others with the reason: empty, or covering the whole picture."""
    usable, skipped = {}, {}
    for region, mask in masks.items():
        if not mask.any():
            skipped[region] = f"the mask of {region} is empty"
        elif mask.all():
            skipped[region] = f"the mask of {region} covers the whole image"
        else:
            usable[region] = mask
    return usable, skipped


def _check_regions(regions: Sequence[str], available: Sequence[str]) -> None:
    for region in regions:
        if region not in available:
            raise InputError("regions", region, f"one of the regions with masks: {', '.join(available) or 'none'}")
