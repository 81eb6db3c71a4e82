"""Compaction: many small shards made few. Ids, rows and what chunks are done stay as they are."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from catalog.index import shard_codes
from catalog.manifest import IndexEntry, Manifest
from catalog.reader import Catalog
from catalog.schema import TABLES
from catalog.search import codes as coded
from catalog.transaction import Transaction
from catalog.writer import CatalogWriter, stage_table
from pipeline.errors import InputError

SHARD_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Compacted:
    """Files of the three tables before and after, and bytes likewise."""

    shards: int
    shards_before: int
    bytes: int
    bytes_before: int


def compact(folder: str | Path, shard_bytes: int = SHARD_BYTES) -> Compacted:
    """Merge shards that are smaller than half of `shard_bytes` into ones of about that size, table by table.

    One commit for each merged shard, so an interruption loses at most one; a second run merges nothing. Search indexes
    go on as they are. Raises InputError, NotFoundError, CatalogError (a damaged shard is never merged, nor are damaged
    codes), ConflictError (another writer).
    """
    if shard_bytes < 2**16:
        raise InputError("shard bytes", shard_bytes, "at least 65,536")
    with CatalogWriter.open(folder) as writer:
        before = _size(writer.manifest)
        for table in TABLES:
            for group in _groups(writer.manifest, table, shard_bytes):
                _merge(writer, table, group)
        after = _size(writer.manifest)
    return Compacted(after[0], before[0], after[1], before[1])


def _groups(manifest: Manifest, table: str, shard_bytes: int) -> list[list[str]]:
    """Groups of two or more small shards, each of at most `shard_bytes` together."""
    groups: list[list[str]] = []
    room = 0
    for path in manifest.shards(table):
        size = manifest.files[path].bytes
        if 2 * size > shard_bytes:
            continue
        if not groups or size > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(path)
        room -= size
    return [group for group in groups if len(group) > 1]


def _merge(writer: CatalogWriter, table: str, paths: Sequence[str]) -> None:
    """Put one shard in the place of several: the same rows and ids. Memory: those rows."""
    now = writer.manifest
    with Catalog(writer.folder, now) as catalog, writer.transaction() as transaction:
        merged = stage_table(transaction, table, catalog.whole_shards(table, paths), now.layout)
        moved = dict.fromkeys(paths, merged)
        chunks = {name: entry.moved(moved) for name, entry in now.chunks.items()}
        indexes = now.indexes
        if table == "directions":
            indexes = {name: _joined(catalog, transaction, name, entry, moved) for name, entry in indexes.items()}
        kept = {path for entry in indexes.values() for path in entry.files}
        former = [path for entry in now.indexes.values() for path in entry.files]
        obsolete = [*paths, *(path for path in former if path not in kept)]
        writer.finish(transaction, now, {"chunks": chunks, "indexes": indexes}, obsolete)


def _joined(
    catalog: Catalog, transaction: Transaction, name: str, entry: IndexEntry, moved: Mapping[str, str]
) -> IndexEntry:
    """An index after shards became one: their codes joined, as they are; left out where one of them had none.

    Raises CatalogError for codes that are not as committed: joined, they would pass for whole ones.
    """
    codes = {path: own for path, own in entry.codes.items() if path not in moved}
    if entry.codes.keys() >= moved.keys():
        joined, stream = coded.join([shard_codes(catalog, name, path) for path in moved], entry.spec), io.BytesIO()
        coded.write(joined, entry.spec, stream)
        data, place = stream.getvalue(), f"index/{name}-{{digest}}.parquet"
        codes[next(iter(moved.values()))], _ = transaction.stage(place, lambda out: out.write(data), len(joined))
    return entry.model_copy(update={"codes": codes})


def _size(manifest: Manifest) -> tuple[int, int]:
    """(number, bytes) of all shards."""
    paths = [path for table in TABLES for path in manifest.shards(table)]
    return len(paths), sum(manifest.files[path].bytes for path in paths)
