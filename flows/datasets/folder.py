"""A user's own images in a folder, with masks beside them: `kind: folder`."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from pydantic import Field

from flows.datasets.archives import is_hidden
from flows.datasets.config import DatasetConfig, Resolve, quiet
from flows.datasets.contract import BrokenImageError, Item, Source
from flows.datasets.listed import by_key
from flows.datasets.pictures import (
    JPEG_SUFFIXES,
    MASK_SUFFIXES,
    SUFFIXES,
    label_values,
    mask_picture,
    open_image,
    shown_name,
)
from pipeline.errors import InputError

STRAY = "masks without an image"
"""The key of the one item that stands for all of them; no image is called so, for want of a suffix."""
MANY = 1000
"""How many masks without an image are counted."""


class FolderDataset(DatasetConfig):
    """The user's own images in `path`, and their masks in `masks` as NAME/REGION.png or NAME_REGION.png.

    `nested` takes images of sub-folders too, but for `masks` and `label_maps` where those lie in `path`; masks then lie
    in the same sub-folders of `masks`. `label_maps`: a folder of NAME.png whose pixel values are labels, named by
    `labels`. Relative paths are relative to the recipe's folder. `name` (default: the folder's name) is what the
    catalog calls the data set.
    """

    kind: Literal["folder"]
    path: str = Field(min_length=1)
    masks: str | None = None
    nested: bool = quiet(False)
    label_maps: str | None = quiet(None)
    labels: dict[str, int] = quiet({})

    def open(self, resolve: Resolve) -> Source:
        masks = resolve(self.masks) if self.masks else None
        maps = resolve(self.label_maps) if self.label_maps else None
        path = resolve(self.path)
        return FolderSource(path, masks, self.name, self.nested, maps, self.labels, self.licence)


class FolderSource(Source):
    """Every image file in a folder, in the order of their names, but for hidden ones; see `FolderDataset`.

    A mask is grey, white means inside, threshold 128, an alpha channel is ignored; its size is its image's or a
    multiple of it. Masks that belong to no image are one last item, `STRAY`, that cannot be read and says how many
    there are: one for all, since whoever mines ten images may have the masks of thirty thousand.

    Raises:
        InputError: no such folder, no images in it, two images of one name, two masks of one region of one image, or no
            masks but JPEG ones.
    """

    def __init__(
        self,
        path: Path,
        masks: Path | None = None,
        name: str | None = None,
        nested: bool = False,
        label_maps: Path | None = None,
        labels: Mapping[str, int] | None = None,
        licence: str | None = None,
    ) -> None:
        names = by_key(_image_names(path, nested, [folder for folder in (masks, label_maps) if folder]))
        self._files = {key: path / name for key, name in names.items()}
        stems = {key: str(PurePosixPath(name).with_suffix("")) for key, name in names.items()}
        found = find_masks(masks, list(stems.values())) if masks else {}
        self._masks = {key: found.get(stem, {}) for key, stem in stems.items()}
        self._stray = ""
        if masks:
            _refuse_jpeg(masks, found)
            self._stray = _stray_masks(masks, found, [path, *([label_maps] if label_maps else [])])
        self._maps = None if label_maps is None else _label_maps(label_maps, stems)
        self.name = name or path.resolve().name
        self.licence = licence
        self.parts = sorted({part for own in self._masks.values() for part in own})
        self.labels, self.has_labels = dict(labels or {}), label_maps is not None

    def keys(self) -> Iterator[str]:
        yield from self._files
        if self._stray:
            yield STRAY

    def __len__(self) -> int:
        return len(self._files) + bool(self._stray)

    def read(self, key: str, parts: Collection[str]) -> Item:
        if key not in self._files:
            raise BrokenImageError(self._stray if key == STRAY and self._stray else f"{self.name} has no {key}")
        picture = open_image(self._files[key])
        masks, missing, broken = {}, {}, set()
        for part in parts:
            file = self._masks[key].get(part)
            if file is None:
                missing[part] = f"no mask of {part}"
                continue
            try:
                masks[part] = mask_picture(open_image(file))
            except BrokenImageError as error:
                missing[part] = f"mask of {part}: {error}"
                broken.add(part)
        return Item(picture, masks, self._label_map(key), missing, frozenset(broken))

    def _label_map(self, key: str) -> np.ndarray | None:
        if self._maps is None or key not in self._maps:
            return None
        try:
            return label_values(open_image(self._maps[key]))
        except BrokenImageError as error:
            raise BrokenImageError(f"label map {shown_name(self._maps[key].name)}: {error}") from error


def _image_names(path: Path, nested: bool, apart: Sequence[Path]) -> list[str]:
    """The images in `path`, without what lies in the folders `apart` in it, by their names there, `/` between."""
    if not path.is_dir():
        raise InputError("dataset.path", f"{path}, which is not a folder", "a folder of images")
    inner = [place for folder in apart if (place := _place_in(folder, path)) is not None]

    def is_image(file: Path) -> bool:
        name = file.relative_to(path)
        chosen = file.suffix.lower() in SUFFIXES and not is_hidden(name.as_posix())
        return chosen and not any(map(name.is_relative_to, inner)) and file.is_file()

    files = sorted(filter(is_image, path.rglob("*") if nested else path.iterdir()))
    if not files:
        raise InputError("dataset.path", f"no images in {path}", f"files ending in {', '.join(SUFFIXES)}")
    stems: dict[Path, Path] = {}
    for file in files:
        stem = file.with_suffix("")
        if stem in stems:
            raise InputError(
                "dataset.path", f"{stems[stem].name} and {file.name}", "one image per name, since masks go by name"
            )
        stems[stem] = file
    return [file.relative_to(path).as_posix() for file in files]


def _place_in(folder: Path, path: Path) -> Path | None:
    """Where `folder` lies in `path`; None where it does not, or is `path` itself."""
    folder, path = folder.resolve(), path.resolve()
    return folder.relative_to(path) if folder != path and folder.is_relative_to(path) else None


def _label_maps(folder: Path, stems: Mapping[str, str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError("dataset.label_maps", f"{folder}, which is not a folder", "a folder of label maps, NAME.png")
    files = {key: folder / f"{stem}.png" for key, stem in stems.items()}
    found = {key: file for key, file in files.items() if file.is_file()}
    if not found:
        raise InputError("dataset.label_maps", f"none for any image in {folder}", "NAME.png for an image NAME")
    return found


def find_masks(
    folder: Path, names: Sequence[str], suffixes: Collection[str] = MASK_SUFFIXES
) -> dict[str, dict[str, Path]]:
    """Mask files by image name and part: NAME/PART.png and NAME_PART.png, where NAME may begin with sub-folders.

    Where one image's name begins another's (`a` and `a_b`), a flat file belongs to the longest name that fits.

    Raises:
        InputError: no such folder, or two masks of one part of one image.
    """
    if not folder.is_dir():
        raise InputError("dataset.masks", f"{folder}, which is not a folder", "a folder of masks")
    found: dict[str, dict[str, Path]] = {name: {} for name in names}
    siblings: dict[str, dict[str, str]] = {}
    for name in names:
        parent, _, short = name.rpartition("/")
        siblings.setdefault(parent, {})[short] = name
    for parent, own in sorted(siblings.items()):
        if (folder / parent).is_dir():
            _find_flat(folder / parent, own, suffixes, found)
    return found


def _find_flat(
    folder: Path, short: Mapping[str, str], suffixes: Collection[str], found: dict[str, dict[str, Path]]
) -> None:
    """Add the masks directly in `folder`, or in a folder of their image's name there, of the images `short`: their
    whole names by their names in `folder`."""

    def add(name: str, part: str, file: Path) -> None:
        if part in found[name]:
            raise InputError("dataset.masks", f"{found[name][part]} and {file}", f"one mask of {part} for {name}")
        found[name][part] = file

    longest = max(map(len, short), default=0)

    def is_mask(file: Path) -> bool:
        return file.suffix.lower() in suffixes and not is_hidden(file.name) and file.is_file()

    for entry in sorted(folder.iterdir()):
        if entry.name in short and entry.is_dir():
            for file in sorted(entry.iterdir()):
                if is_mask(file):
                    add(short[entry.name], file.stem, file)
        elif is_mask(entry):
            cuts = [i for i, c in enumerate(entry.stem) if c == "_" and i <= longest and entry.stem[:i] in short]
            if cuts and entry.stem[cuts[-1] + 1 :]:
                add(short[entry.stem[: cuts[-1]]], entry.stem[cuts[-1] + 1 :], entry)


def _refuse_jpeg(folder: Path, found: Mapping[str, Mapping[str, Path]]) -> None:
    """Raise InputError where no image has a mask, but would have one if JPEG were read."""
    if any(found.values()):
        return
    unread = [file for own in find_masks(folder, list(found), JPEG_SUFFIXES).values() for file in own.values()]
    if unread:
        raise InputError(
            "dataset.masks",
            f"{len(unread):,} JPEG files, such as {shown_name(unread[0].relative_to(folder).as_posix())}, in {folder}",
            f"masks ending in {', '.join(MASK_SUFFIXES)}",
            "JPEG is not read for masks since it has no clean edge: draw or export them again without loss.",
        )


def _stray_masks(folder: Path, found: Mapping[str, Mapping[str, Path]], apart: Sequence[Path]) -> str:
    """What to say of the masks in `folder` that are no image's; nothing where there are none. The folders `apart`, of
    images and label maps, may lie in it; where one of them is `folder` itself, nothing tells what is a mask."""
    inner = [_place_in(other, folder) for other in apart]
    if any(other.resolve() == folder.resolve() for other in apart):
        return ""
    taken = {file for own in found.values() for file in own.values()}
    stray = list(islice(_others(folder, taken, {folder / place for place in inner if place is not None}), MANY + 1))
    if not stray:
        return ""
    count = f"more than {MANY:,} masks" if len(stray) > MANY else f"{len(stray):,} mask{'s' * (len(stray) > 1)}"
    examples = " and ".join(shown_name(name) for name in stray[:2])
    belong = "belongs" if len(stray) == 1 else "belong"
    return f"{count} in {shown_name(folder.name)} {belong} to no image here, such as {examples}"


def _others(folder: Path, taken: Collection[Path], apart: Collection[Path]) -> Iterator[str]:
    """The names of mask files in and below `folder` that are not `taken`, in order; not below the folders `apart`."""
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(name for name in folders if not is_hidden(name) and here / name not in apart)
        for file in (here / name for name in sorted(files)):
            if file.suffix.lower() in MASK_SUFFIXES and not is_hidden(file.name) and file not in taken:
                yield file.relative_to(folder).as_posix()
