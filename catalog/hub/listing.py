"""What a published version holds, part by part: told by its manifest and the footers of its shards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from catalog.hub.contract import Hub
from catalog.hub.names import PackName, Version, chosen_version
from catalog.hub.opening import open_hub
from catalog.hub.pieces import patiently
from catalog.hub.snapshots import SORTS, SnapshotCatalog, open_version
from catalog.schema import TABLES


@dataclass(frozen=True)
class Share:
    """The directions of one data set, region, space and kind: how many, and the bytes that they take, about."""

    dataset: str
    region: str
    space: str
    kind: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Listing:
    """A published version and the others of its repository. `bytes`: of all files; `rows` by table."""

    repository: str
    version: str
    revision: str
    versions: tuple[Version, ...]
    rows: dict[str, int]
    bytes: int
    concepts: int
    left_out: tuple[str, ...]
    shares: tuple[Share, ...]


def listed(name: PackName, hub: Hub | None = None) -> Listing:
    """What there is to pull. Fetches the manifest and footers, and four columns where a row group holds several parts.

    Raises NotFoundError, CatalogError, InputError, StoreError.
    """
    hub = hub if hub is not None else open_hub(name)
    versions = patiently(lambda: hub.versions(name.repository))
    version = chosen_version(versions, name.wanted, str(name))
    with open_version(hub, name.repository, version, versions[version]) as source:
        manifest = source.manifest
        return Listing(
            repository=name.repository, version=str(version), revision=source.snapshot.revision,
            versions=tuple(sorted(versions)), rows={table: manifest.rows(table) for table in TABLES},
            bytes=sum(entry.bytes for entry in manifest.files.values()),
            concepts=manifest.concepts.rows if manifest.concepts is not None else 0,
            left_out=manifest.left_out, shares=tuple(shares(source)),
        )  # fmt: skip


def shares(source: SnapshotCatalog) -> list[Share]:
    """The parts of a version, sorted by data set, region, space and kind."""
    rows: Counter[tuple[str, str, str, str]] = Counter()
    sizes: Counter[tuple[str, str, str, str]] = Counter()
    for path in source.manifest.shards("directions"):
        start, held = 0, source.manifest.files[path].rows or 0
        for count, size, ends in source.bounds(path):
            if all(name in ends and ends[name][0] == ends[name][1] for name in SORTS):
                columns = [[ends[name][0]] * count for name in SORTS]
            else:
                own = np.zeros(held, dtype=bool)
                own[start : start + count] = True
                columns = [column.to_pylist() for column in source.shard_part(path, own, SORTS).columns]
            for key, number in Counter(zip(*columns, strict=True)).items():
                rows[key] += number
                sizes[key] += size * number // count
            start += count
    return [Share(*key, rows[key], sizes[key]) for key in sorted(rows)]
