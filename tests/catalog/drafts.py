"""Drafts of versions for the tests of hubs: a few files of random bytes, and a manifest that names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from catalog.fs import CARD
from catalog.hub.contract import Draft
from catalog.hub.names import Version
from catalog.manifest import FileEntry

REPOSITORY = "org/pack"


def card(version: str, title: str = "Smiles", tags: tuple[str, ...] = ("rhumb", "celeba", "mouth")) -> bytes:
    """A card with front matter."""
    head = json.dumps({"pretty_name": title, "license": "mit", "tags": list(tags)})
    return f"---\n{head}\n---\n# {title} {version}\n".encode()


def shard(number: int, size: int = 3000) -> tuple[str, bytes]:
    """A file that follows from its number: (name, bytes)."""
    data = np.random.default_rng(number).bytes(size)
    return f"directions/{hashlib.sha256(data).hexdigest()[:16]}.parquet", data


def entry(data: bytes) -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def draft(
    folder: Path,
    version: str,
    numbers: tuple[int, ...] = (1, 2),
    held: tuple[int, ...] = (),
    former: str | None = None,
    page: bytes | None = None,
    contents: Mapping[str, bytes] | None = None,
) -> Draft:
    """A version of REPOSITORY with shards of some numbers, of which the `former` revision has those `held`.

    `contents`: other files in place of the shards.
    """
    contents = {**(contents or dict(map(shard, numbers))), CARD: page or card(version)}
    kept = {shard(number)[0] for number in held}
    places = {}
    for name, data in contents.items():
        if name not in kept:
            places[name] = folder / version / name
            places[name].parent.mkdir(parents=True, exist_ok=True)
            places[name].write_bytes(data)
    files = {name: entry(data) for name, data in sorted(contents.items())}
    told = {"pack": {"version": version}, "files": {name: one.sha256 for name, one in files.items()}}
    manifest = json.dumps(told, indent=1).encode()
    return Draft(REPOSITORY, Version.parse(version), manifest, files, places, former, f"Version {version}")


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""
