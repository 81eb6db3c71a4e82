"""Flickr-Faces-HQ (Karras et al. 2019): images1024x1024/ or thumbnails128x128/, in sub-folders of a thousand or flat.

A folder or an archive of either, or of both; ffhq-dataset-v2.json, inside or beside it, says which pictures are for
validation and credits each. The pictures under in-the-wild-images/, not aligned, are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field

from flows.datasets.archives import open_members
from flows.datasets.config import DatasetConfig, Resolve, quiet
from flows.datasets.listed import FIELD, ListedSource, metadata, pictures, plain, wrong_layout
from flows.datasets.numbered import expected
from flows.datasets.pictures import shown_name
from pipeline.errors import InputError

FOLDERS = ("images1024x1024", "thumbnails128x128")
LAYOUT = f"FFHQ's {' or '.join(FOLDERS)}, with NNNNN.png or 00000/NNNNN.png in it"
CATEGORIES = ("training", "validation")
TRAINING = 60_000
"""Pictures with lower numbers are for training, by the authors' own rule."""
CITATION = """\
@inproceedings{karras2019style,
  title={A Style-Based Generator Architecture for Generative Adversarial Networks},
  author={Karras, Tero and Laine, Samuli and Aila, Timo},
  booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages={4401--4410},
  year={2019}
}"""
_KEPT = {"category", "metadata", "photo_url", "photo_title", "author", "license"}
_NUMBERED = re.compile(r"[0-9]{1,8}")
_FILE = re.compile(r"(?:img)?([0-9]{1,8})")


class FfhqDataset(DatasetConfig):
    """`images`: which of the folders, if `path` holds both; the larger pictures by default. `split`: only those of
    ffhq-dataset-v2.json's category, or by number where it is not there. `metadata`: where it is, if neither in `path`
    nor beside it.
    """

    kind: Literal["ffhq"]
    path: str = Field(min_length=1)
    images: Literal["images1024x1024", "thumbnails128x128"] | None = None
    split: Literal["all", "training", "validation"] = "all"
    metadata: str | None = quiet(None, min_length=1)

    def open(self, resolve: Resolve) -> FfhqSource:
        return FfhqSource(self, resolve)


class FfhqSource(ListedSource):
    """Keys are numbers of five digits, such as `00012`, whatever the folder: a face has one key at every size.

    A number without its picture, where most of the numbers around it have theirs, is an item that cannot be read.
    """

    licence = "CC BY-NC-SA 4.0 (NVIDIA Corporation); each picture under its author's own licence"
    citation = CITATION

    def __init__(self, config: FfhqDataset, resolve: Resolve) -> None:
        path = resolve(config.path)
        members = open_members(path)
        names = pictures(members.names())
        there = [folder for folder in FOLDERS if any(folder in name.split("/")[:-1] for name in names)]
        if config.images is not None and config.images not in (*there, path.resolve().name):
            raise InputError(
                "dataset.images", config.images, f"a folder that is in {path}: {', '.join(there) or 'none'}"
            )
        if there:
            folder = config.images or there[0]
            names = [name for name in names if folder in name.split("/")[:-1]]
        files = _by_number(name for name in names if "in-the-wild-images" not in name.split("/"))
        if not files:
            wrong_layout(path, members.names(), LAYOUT)
        self._metadata = resolve(config.metadata) if config.metadata else None
        self._members = members
        chosen = expected(files, ())
        if config.split != "all":
            chosen = [number for number in chosen if self._category(number) == config.split]
        if not chosen:
            raise InputError("dataset.split", config.split, f"one that some picture in {path} is of")
        keyed = {f"{number:05d}": files.get(number, f"{number:05d}.png") for number in chosen}
        super().__init__(config, "ffhq", members, keyed)
        self.split = config.split

    def credit(self, key: str) -> Mapping[str, str]:
        facts = self._known.get(int(key), {}).get("metadata")
        names = {"licence": "license", "author": "author", "title": "photo_title", "source": "photo_url"}
        return {what: plain(facts[name]) for what, name in names.items() if isinstance(facts, dict) and facts.get(name)}

    @cached_property
    def _known(self) -> Mapping[int, Mapping[str, Any]]:
        """The entries of ffhq-dataset-v2.json by number, read when one is first needed: the whole of it takes about ten
        seconds and half a gigabyte. Raises InputError: it has another form."""
        entries = metadata(self._members, "ffhq-dataset-v2.json", self._metadata, _slim)
        return {} if entries is None else _checked(entries)

    def _category(self, number: int) -> str:
        if number in self._known:
            return str(self._known[number]["category"])
        return CATEGORIES[0] if number < TRAINING else CATEGORIES[1]


def _by_number(names: Iterable[str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for name in names:
        match = _FILE.fullmatch(PurePosixPath(name).stem)
        if match is None:
            raise InputError(FIELD, f"the picture {shown_name(name)}", LAYOUT)
        number = int(match[1])
        if number in found:
            raise InputError(FIELD, f"{shown_name(found[number])} and {shown_name(name)}", "one picture of each number")
        found[number] = name
    return found


def _slim(entry: dict[str, Any]) -> dict[str, Any]:
    """Only what is used of each object of a quarter of a gigabyte, as json reads it."""
    return {key: value for key, value in entry.items() if key in _KEPT or key.isdigit()}


def _checked(entries: Any) -> dict[int, dict[str, Any]]:
    """The entries of ffhq-dataset-v2.json by number. Raises InputError: it has another form."""
    if not isinstance(entries, dict):
        raise InputError("dataset.metadata", "ffhq-dataset-v2.json that is no object", "an object of numbered entries")
    for key, entry in entries.items():
        numbered = _NUMBERED.fullmatch(key) is not None
        if not (numbered and isinstance(entry, dict) and entry.get("category") in CATEGORIES):
            raise InputError(
                "dataset.metadata",
                f"entry {shown_name(key)} of ffhq-dataset-v2.json",
                f"a number with a category, {' or '.join(CATEGORIES)}",
            )
    return {int(key): entry for key, entry in entries.items()}
