"""WebDataset: tar shards of samples, `kind: webdataset`. Nothing is ever extracted.

A sample is the files of one key, their names up to the first dot: KEY.jpg (or jpeg, png, webp) its picture,
KEY.PART.png the mask of a part (KEY.mask_PART.png is read as well), KEY.json an object whose numbers are factors,
KEY.cls the number of its class. Files with other endings are left alone.
"""

from __future__ import annotations

import json
import math
import os
import re
import tarfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from flows.datasets.archives import TarMembers
from flows.datasets.config import DatasetConfig, Resolve
from flows.datasets.contract import BrokenImageError, Item, Source
from flows.datasets.listed import FIELD, by_key
from flows.datasets.patterns import find_files
from flows.datasets.pictures import image_from_bytes, shown_name
from pipeline.errors import InputError

LAYOUT = "WebDataset shards: tars of KEY.jpg, KEY.PART.png, KEY.json and the like"
ENDINGS = ("jpg", "jpeg", "png", "webp")
MAX_TEXT = 2**24
"""Bytes of a KEY.json."""
OPEN_SHARDS = 4
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7z": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
_MASK = re.compile(r"(?:mask_)?(?P<part>.+)\.png")


class WebDatasetDataset(DatasetConfig):
    """`path`: one shard, a folder of them, a pattern such as `shards/*.tar`, or a range such as
    `shards/train-{000..012}.tar`."""

    kind: Literal["webdataset"]
    path: str = Field(min_length=1)

    def open(self, resolve: Resolve) -> Source:
        return WebDatasetSource(self, find_files(resolve(self.path), ".tar")[1])


class WebDatasetSource(Source):
    """Samples in the shards' order, called SHARD/KEY.

    Opening reads the header of every file in every shard (about 35 microseconds each) and keeps keys only; a shard is
    listed again when a sample of it is read. The last four shards stay listed and open, so that their samples are read
    in any order, by offset. Of a shard that is cut, the last sample is an item that cannot be read, since some of it
    may be missing, and so is the shard itself where nothing of it is left.

    Raises:
        InputError: no shards or samples, a compressed shard, or one with an unsafe name in it.
    """

    def __init__(self, config: WebDatasetDataset, shards: Mapping[str, Path]) -> None:
        self._shards, self._open = dict(shards), dict[str, _Shard]()
        self.name = config.name or _common_name(list(shards.values()))
        self.licence = config.licence
        parts: set[str] = set()
        samples: dict[str, tuple[str, str]] = {}
        for name in self._shards:
            shard = self._shard(name)
            parts |= shard.parts
            samples |= {f"{name}/{key}": (name, key) for key in shard.samples}
            if shard.damage and not shard.samples:
                samples[name] = (name, "")
        if not any(key for _, key in samples.values()):
            raise InputError(FIELD, f"no samples in {', '.join(list(self._shards)[:3])}", LAYOUT)
        self._samples = {shown: samples[full] for shown, full in by_key(samples).items()}
        self.parts = sorted(parts)

    def keys(self) -> Iterator[str]:
        return iter(self._samples)

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, key: str, parts: Collection[str]) -> Item:
        if key not in self._samples:
            raise BrokenImageError(f"{self.name} has no {key}")
        name, sample = self._samples[key]
        return self._shard(name).item(sample, parts)

    def _shard(self, name: str) -> _Shard:
        if name in self._open:
            return self._open[name]
        while len(self._open) >= OPEN_SHARDS:
            self._open.pop(next(iter(self._open))).close()
        shard = self._open[name] = _Shard(self._shards[name])
        return shard

    def close(self) -> None:
        """Let go of the shards."""
        while self._open:
            self._open.popitem()[1].close()

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()


class _Shard(TarMembers):
    """A tar that may be cut: `damage` says how, None where it is whole. `samples`: endings of the files of each key."""

    damage: str | None = None

    def __init__(self, path: Path) -> None:
        marked = _is_tar(path)
        super().__init__(path, FIELD)
        self.samples: dict[str, dict[str, str]] = {}
        self._last = ""
        for name in self.names():
            key, ending = _split(name)
            if ending:
                self.samples.setdefault(key, {})[ending] = name
                self._last = key
        if self.damage and not self.names() and not marked and path.stat().st_size >= tarfile.BLOCKSIZE:
            self.close()
            raise InputError(FIELD, f"{path}, which is no tar ({self.damage})", LAYOUT)

    def _walk(self, field: str) -> Iterator[tuple[str, tuple[int, int]]]:
        try:
            yield from super()._walk(field)
        except InputError:
            raise
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            self.damage = str(error)

    @property
    def parts(self) -> set[str]:
        """Every part that a sample has a mask of."""
        return {part for endings in self.samples.values() for part in _masks(endings)}

    def item(self, key: str, parts: Collection[str]) -> Item:
        """A sample. Raises BrokenImageError: it has no picture that can be read, or its numbers cannot be."""
        if self.damage is not None and key in (self._last, ""):
            raise BrokenImageError(f"{self.path.name} is cut here ({self.damage}): some of it may be missing")
        if key not in self.samples:
            raise BrokenImageError(f"{self.path.name} has changed: {shown_name(key)} is not there")
        endings = self.samples[key]
        pictures = [name for ending, name in endings.items() if ending in ENDINGS]
        if len(pictures) != 1:
            there = ", ".join(endings)[:100]
            raise BrokenImageError(f"{len(pictures) or 'no'} pictures ({there}), not one of {', '.join(ENDINGS)}")
        picture = self._picture(pictures[0])
        masks: dict[str, Image.Image | np.ndarray] = {}
        missing, broken, drawn = {}, set(), _masks(endings)
        for part in parts:
            files = drawn.get(part, [])
            try:
                if len(files) == 1:
                    masks[part] = self._picture(files[0])
                else:
                    missing[part] = f"two masks of {part}" if files else f"no mask of {part}"
                    broken |= {part} if files else set()
            except BrokenImageError as error:
                missing[part] = f"mask of {part}: {error}"
                broken.add(part)
        return Item(picture, masks, missing=missing, broken=frozenset(broken), factors=self._factors(endings))

    def _picture(self, name: str) -> Image.Image:
        return image_from_bytes(self.read(name), shown_name(PurePosixPath(name).name))

    def _factors(self, endings: Mapping[str, str]) -> dict[str, float]:
        factors: dict[str, float] = {}
        if "json" in endings:
            try:
                values = json.loads(self.read(endings["json"], MAX_TEXT))
            except (ValueError, RecursionError) as error:
                name = shown_name(PurePosixPath(endings["json"]).name)
                raise BrokenImageError(f"{name} cannot be read ({type(error).__name__})") from error
            factors |= _numbers(values) if isinstance(values, dict) else {}
        if "cls" in endings:
            number = self.read(endings["cls"], MAX_TEXT).strip()
            factors |= {"cls": float(number)} if re.fullmatch(rb"-?[0-9]{1,15}", number) else {}
        return factors


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among values, true and false as 1 and 0."""
    found = {}
    for name, value in values.items():
        try:
            number = float(value) if isinstance(value, bool | int | float) else math.nan
        except OverflowError:
            continue
        if math.isfinite(number):
            found[shown_name(name)] = number
    return found


def _split(name: str) -> tuple[str, str]:
    """A member's key and ending: its name up to its first dot, folders included, and what follows; "" for none."""
    folder, slash, file = name.rpartition("/")
    key, _, ending = file.partition(".")
    stem, dot, suffix = ending.rpartition(".")
    return folder + slash + key, stem + dot + suffix.lower()


def _masks(endings: Mapping[str, str]) -> dict[str, list[str]]:
    """Mask files of a sample by part."""
    found: dict[str, list[str]] = {}
    for ending, name in endings.items():
        if match := _MASK.fullmatch(ending):
            found.setdefault(shown_name(match["part"]), []).append(name)
    return found


def _is_tar(path: Path) -> bool:
    """Whether a shard begins as a tar does. Raises InputError for a packed one: nothing in it has an offset."""
    try:
        with path.open("rb") as file:
            start = file.read(tarfile.BLOCKSIZE)
    except OSError as error:
        raise InputError(FIELD, f"{path} ({error.strerror})", "a shard that can be read") from error
    for magic, how in _PACKED.items():
        if start.startswith(magic):
            raise InputError(
                FIELD,
                f"{path}, which is packed with {how}",
                "plain tar shards, whose samples are found by offset",
                "Unpack it to a plain .tar: pictures hardly grow by that.",
            )
    return start[257:262] == b"ustar"


def _common_name(files: list[Path]) -> str:
    """What the data set is called: its only shard, or the folder of its shards."""
    if len(files) == 1:
        return files[0].stem
    return Path(os.path.commonpath([file.resolve().parent for file in files])).name
