"""CelebA-HQ with the part masks of CelebAMask-HQ, in the layout of its archive: `kind: celebamask-hq`.

Lee et al., "MaskGAN: Towards Diverse and Interactive Facial Image Manipulation", CVPR 2020. Sides are the person's:
l_eye lies on the image's right. Some images are mirrored, their masks with them, so no side follows from a part's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from flows.datasets.config import DatasetConfig, Resolve, quiet
from flows.datasets.contract import BrokenImageError, Item, NotAnnotatedError, Source
from flows.datasets.numbered import expected, folder_with, glimpse, numbers, open_in
from pipeline.errors import InputError

PARTS = (
    *("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear"),
    *("mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth"),
)
IMAGES = "CelebA-HQ-img"
MASKS = "CelebAMask-HQ-mask-anno"
ATTRIBUTES = "CelebAMask-HQ-attribute-anno.txt"
POSE = "CelebAMask-HQ-pose-anno.txt"
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv", "Eval/list_eval_partition.txt")
SPLITS = ("train", "val", "test")  # what 0, 1 and 2 mean in CelebA's partition
IMAGES_A_FOLDER = 2000  # of masks
ANGLES = {"yaw": "yaw", "pitch": "pitch", "raw": "roll", "roll": "roll"}  # the file's header says Raw for roll
MAX_TEXT = 1 << 26  # bytes of an annotation file; the longest has 4 MB
CITATION = """\
@inproceedings{CelebAMask-HQ,
  title={MaskGAN: Towards Diverse and Interactive Facial Image Manipulation},
  author={Lee, Cheng-Han and Liu, Ziwei and Wu, Lingyun and Luo, Ping},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year={2020}
}"""

_IMAGE = re.compile(r"(0|[1-9][0-9]{0,4})\.jpg")
_ORIGINAL = re.compile(r"([0-9]{1,5})\s+[0-9]+\s+([0-9]{6}\.jpg)")
_MASK = re.compile(rf"([0-9]{{5}})_(?:{'|'.join(PARTS)})\.png")


class CelebaMaskDataset(DatasetConfig):
    """CelebAMask-HQ as its archive unpacks; `path` is its folder or the one above.

    `split` takes the images of one part of CelebA's official partition. It needs CelebA-HQ-to-CelebA-mapping.txt and,
    from CelebA, list_eval_partition.txt (or .csv) in the same folder.
    """

    kind: Literal["celebamask-hq"]
    path: str = Field(min_length=1)
    split: Literal["all", "train", "val", "test"] = quiet("all")

    def open(self, resolve: Resolve) -> Source:
        source = CelebaMaskSource(resolve(self.path), self.split)
        source.name = self.name or source.name
        return source


class CelebaMaskSource(Source):
    """Images N.jpg in the order of N, masks of the 18 parts, attributes as 0 or 1, and yaw, pitch and roll in degrees.

    Masks without an image, and gaps among the images, are items that cannot be read. Sources of the licence: the
    "Dataset Agreement" and the licence section of https://github.com/switchablenorms/CelebAMask-HQ.

    Raises:
        InputError: another layout, no such split, or an annotation file that is damaged.
    """

    name = "celebamask-hq"
    licence = (
        "CelebAMask-HQ agreement: non-commercial research and educational use only, no redistribution of images "
        "(https://github.com/switchablenorms/CelebAMask-HQ)"
    )
    redistributable = False
    citation = CITATION

    def __init__(self, path: Path, split: str = "all") -> None:
        self._folder = folder_with(IMAGES, path, "CelebAMask-HQ", _wrong_layout)
        self.split = split
        self._images = numbers(self._folder / IMAGES, _IMAGE)
        if not self._images:
            raise _wrong_layout(glimpse(self._folder / IMAGES))
        has_masks = (self._folder / MASKS).exists()
        self._masked = _masked(self._folder) if has_masks else set()
        self.parts = PARTS if has_masks else ()
        self.without_parts = f"There is no {MASKS} in {self._folder}: copy it there."
        wanted = expected(self._images, self._masked)
        if split != "all":
            splits = _splits(self._folder, path, split)
            wanted = [number for number in wanted if _split_of(number, splits) == split]
            if not wanted:
                raise InputError("dataset.split", f"no image of {split} in {self._folder}", "a split that has images")
        self._numbers = {f"{number}.jpg": number for number in wanted}
        self._attributes, self._pose = _attributes(self._folder), _pose(self._folder)

    def keys(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, key: str, parts: Collection[str]) -> Item:
        number = self._numbers[key]
        self._check(parts)
        if number not in self._images:
            why = "though it has masks" if number in self._masked else "though images before and after it are"
            raise BrokenImageError(f"{IMAGES}/{key} is not there, {why}")
        picture = open_in(self._folder, f"{IMAGES}/{key}")
        masks: dict[str, Image.Image | np.ndarray] = {}
        missing, broken = {}, set()
        for part in parts:
            try:
                masks[part] = self._mask(number, part)
            except BrokenImageError as error:
                missing[part] = str(error)
                broken |= set() if isinstance(error, NotAnnotatedError) else {part}
        factors = self._attributes.row(number) | self._pose.row(number)
        return Item(picture, masks, missing=missing, broken=frozenset(broken), factors=factors)

    def _check(self, parts: Collection[str]) -> None:
        for part in parts:
            if part not in PARTS:
                raise InputError("regions", part, f"one of the parts {', '.join(PARTS)}")

    def _mask(self, number: int, part: str) -> Image.Image:
        """The grey mask, white inside. Raises BrokenImageError: there is none, or it cannot be read."""
        folder = self._folder / MASKS / str(number // IMAGES_A_FOLDER)
        file = folder / f"{number:05d}_{part}.png"
        if number not in self._masked:
            if not folder.is_dir():
                raise BrokenImageError(f"{MASKS}/{folder.name} is not there: the data set was copied in part")
            raise NotAnnotatedError("the image has no mask of any part")
        if not file.exists() and not file.is_symlink():
            raise NotAnnotatedError("not annotated")
        mask = open_in(self._folder, file.relative_to(self._folder).as_posix())
        try:
            return mask.convert("L")
        except ValueError as error:  # a few rare modes, such as LAB
            raise BrokenImageError(f"a mask with pixels of the kind {mask.mode}") from error


@dataclass(frozen=True)
class Table:
    """An annotation file: columns `names`, `values` (rows, columns), and the row's place by image number."""

    names: tuple[str, ...]
    places: Mapping[int, int]
    values: np.ndarray

    def row(self, number: int) -> dict[str, float]:
        """What the table says of an image, nothing where it does not know it."""
        place = self.places.get(number)
        return {} if place is None else dict(zip(self.names, map(float, self.values[place]), strict=True))


NO_TABLE = Table((), {}, np.empty((0, 0)))


def read_table(file: Path) -> Table:
    """An annotation file of CelebAMask-HQ: a line with the number of rows, a header, and rows `N.jpg value value ...`.

    Raises:
        InputError: not of this form, a row twice, values that are not finite numbers, or not as many rows as it says.
    """
    lines = _lines(file)
    if len(lines) < 2 or not re.fullmatch(r"[0-9]{1,9}", lines[0].strip()):
        raise _damaged(file, "no number of rows in its first line and no header in its second")
    names = tuple(lines[1].split())
    if len(set(names)) != len(names):
        raise _damaged(file, "a header that names a column twice")
    places: dict[int, int] = {}
    rows: list[list[float]] = []
    for place, line in enumerate(lines[2:]):
        match, row = _IMAGE.fullmatch(line.split()[0]), _numbers(line.split()[1:])
        if match is None or row is None or len(row) != len(names):
            raise _damaged(file, f"no image and {len(names)} numbers in line {place + 3}")
        if places.setdefault(int(match[1]), place) != place:
            raise _damaged(file, f"{match[0]} again in line {place + 3}")
        rows.append(row)
    if len(rows) != int(lines[0]):
        raise _damaged(file, f"{len(rows)} rows where its first line says {int(lines[0])}")
    return Table(names, places, np.array(rows, dtype=np.float64).reshape(len(rows), len(names)))


def _numbers(words: Sequence[str]) -> list[float] | None:
    """The words as finite numbers, None where one is not."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None


def _lines(file: Path) -> list[str]:
    """The lines of a text file that say something."""
    try:
        if file.stat().st_size > MAX_TEXT:
            raise _damaged(file, f"{file.stat().st_size:,} bytes")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(file, f"what cannot be read as text ({type(error).__name__})") from error
    return [line for line in text.split("\n") if line.strip()]


def _damaged(file: Path, found: str) -> InputError:
    return InputError(
        f"dataset.path: {file.name}", found, "the file as it was published", "Copy it again, whole, or take it away."
    )


def _attributes(folder: Path) -> Table:
    """Attributes as False and True, empty where there is no file."""
    file = folder / ATTRIBUTES
    if not file.is_file():
        return NO_TABLE
    table = read_table(file)
    if not np.isin(table.values, (-1, 1)).all():
        raise _damaged(file, "values other than -1 and 1")
    return replace(table, values=table.values > 0)


def _pose(folder: Path) -> Table:
    """Yaw, pitch and roll in degrees, empty where there is no file."""
    file = folder / POSE
    if not file.is_file():
        return NO_TABLE
    table = read_table(file)
    names = tuple(ANGLES.get(name.lower(), "") for name in table.names)
    if sorted(names) != ["pitch", "roll", "yaw"]:
        raise _damaged(file, f"the header {' '.join(table.names)!r}, not Yaw Pitch Raw")
    return replace(table, names=names)


def _wrong_layout(found: str) -> InputError:
    return InputError(
        "dataset.path",
        found,
        f"the layout of CelebAMask-HQ: {IMAGES}/N.jpg and, for masks, {MASKS}/K/NNNNN_part.png with K = N // 2000",
        "Point it at the folder CelebAMask-HQ, as its archive unpacks.",
    )


def _masked(folder: Path) -> set[int]:
    """The images that have a mask of some part in the place where it should be."""
    found = set()
    for inner in (folder / MASKS).iterdir() if (folder / MASKS).is_dir() else ():
        if re.fullmatch(r"0|[1-9][0-9]?", inner.name) and inner.is_dir():
            found |= {number for number in numbers(inner, _MASK) if number // IMAGES_A_FOLDER == int(inner.name)}
    if not found:
        raise _wrong_layout(glimpse(folder / MASKS))
    return found


def _splits(folder: Path, given: Path, split: str) -> dict[int, str]:
    """The split of every image by CelebA's partition.

    An image's place there is its original file's name: that of the mapping's index, which counts from 0, is one more.
    """
    mapping = folder / MAPPING
    places = [base / name for base in (folder, given) for name in PARTITIONS]
    partition = next((file for file in places if file.is_file()), None)
    if partition is None or not mapping.is_file():
        raise InputError(
            "dataset.split",
            f"{split}, and no {MAPPING if partition else PARTITIONS[0]} in {folder}",
            f"{MAPPING} and CelebA's {PARTITIONS[0]}, which together know the split of an image",
            "Copy them there, or leave out `split`.",
        )
    codes = {}
    for line in _lines(partition):
        words = line.replace(",", " ").split()
        if len(words) == 2 and words[1] in ("0", "1", "2"):  # not the header of the .csv
            codes[words[0]] = int(words[1])
    splits = {}
    for place, line in enumerate(_lines(mapping)[1:], start=2):
        match = _ORIGINAL.fullmatch(line.strip())
        if match is None:
            raise _damaged(mapping, f"no index, original index and file in line {place}")
        if match[2] not in codes:
            raise _damaged(partition, f"no split of {match[2]}")
        splits[int(match[1])] = SPLITS[codes[match[2]]]
    return splits


def _split_of(number: int, splits: Mapping[int, str]) -> str:
    if number not in splits:
        raise InputError(f"dataset.path: {MAPPING}", f"nothing on image {number}", "a line for every image")
    return splits[number]
