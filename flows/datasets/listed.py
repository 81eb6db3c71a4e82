"""What the sources share whose pictures are plain files in a folder or an archive: keys, reading, and what to say when
the layout is another one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from flows.datasets.archives import Members
from flows.datasets.config import DatasetConfig
from flows.datasets.contract import BrokenImageError, Item, Source
from flows.datasets.pictures import MAX_NAME, SUFFIXES, image_from_bytes, shown_name
from pipeline.errors import InputError

FIELD = "dataset.path"
MAX_METADATA = 2**30
"""Bytes of a metadata file; the largest that is published, FFHQ's, has 267,793,842."""


class ListedSource(Source):
    """Pictures by key, as files of `members`; none of them has masks.

    `files`: the file's name in `members` by key. `name`: what the set is called where the recipe names it not.
    `credits`: what the data set's metadata says of a picture's origin and licence, by key (`licence`, `author`,
    `title`, `source`; only those that are known).
    """

    def __init__(
        self,
        config: DatasetConfig,
        name: str,
        members: Members,
        files: Mapping[str, str],
        credits: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.name = config.name or name
        self.licence = self.licence or config.licence
        self._members, self._files, self._credits = members, files, credits or {}

    def keys(self) -> Iterator[str]:
        yield from self._files

    def __len__(self) -> int:
        return len(self._files)

    def read(self, key: str, parts: Collection[str]) -> Item:
        if key not in self._files:
            raise BrokenImageError(f"{self.name} has no {key}")
        file = self._files[key]
        picture = image_from_bytes(self._members.read(file), shown_name(PurePosixPath(file).name))
        return Item(picture, missing=no_masks(self.name, parts))

    def credit(self, key: str) -> Mapping[str, str]:
        """What is known of the origin and licence of one picture; empty where nothing is."""
        return self._credits.get(key, {})

    def close(self) -> None:
        """Let go of the archive."""
        self._members.close()


def no_masks(dataset: str, parts: Iterable[str]) -> dict[str, str]:
    """Why an item of a data set without masks has none of `parts`."""
    return dict.fromkeys(parts, f"{dataset} has no masks")


def plain(value: object) -> str:
    """A value of somebody's JSON as text that can be stored: half characters are replaced."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def pictures(names: Iterable[str]) -> list[str]:
    """The names among `names` that are pictures by their suffix."""
    return [name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES]


def by_key(names: Iterable[str], key: Callable[[str], str] = str) -> dict[str, str]:
    """Names by key as people may see it. A key that another name has already ends in a digest of its own name."""
    found: dict[str, str] = {}
    for name in names:
        shown = shown_name(key(name))
        if shown in found:
            digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
            shown = f"{shown[: MAX_NAME - 17]}~{digest}"
        found[shown] = name
    return found


def wrong_layout(path: Path, names: Collection[str], expected: str, action: str = "") -> NoReturn:
    """Raise InputError: what lies in `path` is not laid out as `expected`."""
    some = ", ".join(shown_name(name) for name in list(names)[:3])
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    raise InputError(FIELD, f"{some}{more} in {path}" if names else f"no files in {path}", expected, action)


def metadata(members: Members, name: str, given: Path | None, hook: Callable[[dict], Any] | None = None) -> Any:
    """The JSON file `name` of a data set: at `given`, or anywhere in `members`, or beside them; None where it is not.

    `hook` is json's object_hook: what keeps a large file small in memory.

    Raises:
        InputError: `given` is not there, or the file is not readable JSON.
    """
    inside = [each for each in members.names() if PurePosixPath(each).name == name]
    file = given or members.path.resolve().parent / name
    try:
        if inside and given is None:
            data = members.read(min(inside, key=len), MAX_METADATA)
        elif file.is_file():
            with file.open("rb") as stream:
                data = stream.read(MAX_METADATA)
        elif given is not None:
            raise InputError("dataset.metadata", f"nothing at {given}", f"the file {name}")
        else:
            return None
        return json.loads(data, object_hook=hook)
    except (BrokenImageError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("dataset.metadata", f"{name} that cannot be read ({error})", "whole JSON") from error
