"""CIFAR-10 (Krizhevsky 2009), the binary version: cifar-10-batches-bin/ or cifar-10-binary.tar.gz, read in place.

Each of data_batch_1.bin ... data_batch_5.bin and test_batch.bin is records of 3,073 bytes: a label, then 32 x 32 red,
green and blue values, row by row. batches.meta.txt names the ten labels, one a line. The Python and MATLAB versions
are not read: the former is pickles, which may run code when they are opened.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from pydantic import Field

from flows.datasets.archives import Members, open_members
from flows.datasets.config import DatasetConfig, Resolve
from flows.datasets.contract import BrokenImageError, Item, Source
from flows.datasets.listed import FIELD, no_masks, wrong_layout
from flows.datasets.pictures import shown_name
from pipeline.errors import InputError

SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
BATCHES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
META = "batches.meta.txt"
LAYOUT = f"the binary version of CIFAR-10: {', '.join(BATCHES['train'])}, {BATCHES['test'][0]} and {META}"
GET_BINARY = "Take cifar-10-binary.tar.gz, the binary version; it is read as it is, without unpacking."
CITATION = """\
@techreport{Krizhevsky09learningmultiple,
  title={Learning multiple layers of features from tiny images},
  author={Alex Krizhevsky},
  institution={University of Toronto},
  year={2009}
}"""


class CifarDataset(DatasetConfig):
    """`split`: only that one."""

    kind: Literal["cifar10"]
    path: str = Field(min_length=1)
    split: Literal["all", "train", "test"] = "all"

    def open(self, resolve: Resolve) -> CifarSource:
        return CifarSource(self, resolve)


class _Record(NamedTuple):
    file: str
    start: int


class CifarSource(Source):
    """Keys are SPLIT/NUMBER-CLASS, such as `test/00012-frog`; numbers run through the batches of a split.

    Opening reads the batches once, one at a time, for their labels. From the tar.gz, pictures in the order of `keys`
    cost little; a step back unpacks it from its start, about a second.
    """

    redistributable = False  # its authors state no licence
    citation = CITATION

    def __init__(self, config: CifarDataset, resolve: Resolve) -> None:
        path = resolve(config.path)
        self._members = open_members(path)
        files = _batches(self._members, path, ("train", "test") if config.split == "all" else (config.split,))
        classes = _classes(self._members, files[META])
        self._records = dict(self._listed(files, classes))
        if not self._records:
            raise InputError(FIELD, f"no picture in the batches of {path}", f"records of {RECORD:,} bytes")
        self.name = config.name or "cifar10"
        self.split, self.licence = config.split, config.licence

    def _listed(self, files: dict[str, str], classes: Sequence[str]) -> Iterator[tuple[str, _Record]]:
        for split, batches in BATCHES.items():
            number = 0
            for batch in batches:
                if batch not in files:
                    continue
                for place, label in enumerate(_labels(self._members, files[batch], classes)):
                    yield f"{split}/{number:05d}-{classes[label]}", _Record(files[batch], place * RECORD)
                    number += 1

    def keys(self) -> Iterator[str]:
        yield from self._records

    def __len__(self) -> int:
        return len(self._records)

    def read(self, key: str, parts: Collection[str]) -> Item:
        if key not in self._records:
            raise BrokenImageError(f"{self.name} has no {key}")
        file, start = self._records[key]
        planes = np.frombuffer(self._members.part(file, start + 1, RECORD - 1), np.uint8).reshape(3, SIDE, SIDE)
        picture = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
        return Item(picture, missing=no_masks(self.name, parts))

    def close(self) -> None:
        """Let go of the archive."""
        self._members.close()


def _batches(members: Members, path: Path, splits: Sequence[str]) -> dict[str, str]:
    """The files that are needed, by their original names. Raises InputError: another version, or one is missing."""
    names = members.names()
    found: dict[str, str] = {}
    for name in names:
        short = PurePosixPath(name).name
        if short in found and (short == META or short.endswith(".bin")):
            raise InputError(FIELD, f"{shown_name(found[short])} and {shown_name(name)}", LAYOUT, "Name one of them.")
        found[short] = name
    needed = [META, *(batch for split in splits for batch in BATCHES[split])]
    missing = [file for file in needed if file not in found]
    if not missing:
        return {file: found[file] for file in needed}
    if {"batches.meta", "data_batch_1", "test_batch"} & found.keys():
        raise InputError(
            FIELD, f"the Python version of CIFAR-10 in {path}: pickles, which may run code", LAYOUT, GET_BINARY
        )
    if {"batches.meta.mat", "data_batch_1.mat", "test_batch.mat"} & found.keys():
        raise InputError(FIELD, f"the MATLAB version of CIFAR-10 in {path}", LAYOUT, GET_BINARY)
    if {"fine_label_names.txt", "coarse_label_names.txt", "meta"} & found.keys():
        raise InputError(FIELD, f"CIFAR-100 in {path}", LAYOUT, GET_BINARY)
    if len(missing) < len(needed):
        raise InputError(FIELD, f"no {', '.join(missing)} in {path}", LAYOUT, "Unpack it again, or name the tar.gz.")
    wrong_layout(path, names, LAYOUT, GET_BINARY)


def _classes(members: Members, file: str) -> list[str]:
    try:
        text = members.read(file, limit=10_000).decode("ascii")
    except (BrokenImageError, UnicodeDecodeError) as error:
        raise InputError(FIELD, f"{META} that cannot be read ({error})", "ten names, one a line") from error
    names = [shown_name(line.strip())[:80] for line in text.splitlines() if line.strip()]
    if len(names) != 10 or len(set(names)) != 10:
        raise InputError(FIELD, f"{META} with {len(set(names))} different names", "ten names, one a line", GET_BINARY)
    return names


def _labels(members: Members, file: str, classes: Sequence[str]) -> bytes:
    """The label of every record of a batch, one byte each."""
    try:
        data = members.read(file)
    except BrokenImageError as error:
        raise InputError(FIELD, str(error), "a whole batch", "Get the data set again.") from error
    if len(data) % RECORD:
        raise InputError(
            FIELD,
            f"{shown_name(file)} of {len(data):,} bytes",
            f"a multiple of {RECORD:,} (30,730,000 in the original)",
            "It is cut or of another data set: get it again.",
        )
    labels = data[::RECORD]
    if labels and max(labels) >= len(classes):
        raise InputError(
            FIELD, f"label {max(labels)} in {shown_name(file)}", f"labels below {len(classes)}", GET_BINARY
        )
    return labels
