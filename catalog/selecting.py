"""Selecting: some directions of a catalog as a catalog of their own, ids and rows as they are.

Images and regions all stay, also those that no selected direction is of: the selection then says what was tried, and
mining that continues it does not begin anew with them. Only of a part of a pack are they those of its directions.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from catalog.manifest import ChunkEntry, FileEntry, PackPart
from catalog.places import packed_ids
from catalog.reader import Catalog
from catalog.records import content_id
from catalog.schema import KEYS, TABLES, Layout, table_schema
from catalog.transaction import Transaction
from catalog.writer import CatalogWriter, stage_table
from pipeline.errors import CatalogError, ConflictError, InputError

_JOINS = {"images": "image_id", "regions": "region_id"}
_NONE = np.zeros(0, "S32")
Chosen = Callable[[str], np.ndarray]
"""(m,) bool for a directions shard, by its path: which of its rows are selected."""
Write = Callable[[str, Callable[[BinaryIO], object], int | None], object]


def select_into(
    source: Catalog,
    out: str | Path,
    keep: np.ndarray | Chosen,
    left_out: Collection[str] = (),
    part: PackPart | None = None,
) -> Path:
    """Write the catalog of some directions into the new folder `out`.

    `keep` (n,) bool, by `source.ids()`, or asked for each shard. `left_out`: columns, besides those that the source
    has not, that do not come along. `part`: of which pack this is a part, whose directions may lack their parents, and
    whose images and regions are those of its directions; it takes no pictures and no failures along.

    Shards whose rows and columns all stay are copied byte for byte; of others what stays is written anew, by the same
    bytes each time. A chunk whose rows all stay keeps its id and digest, another gets those of the ids it holds now;
    chunks that share a shard become one then, since nothing says which row is whose. One commit; search indexes and
    concepts are to be built anew. Cost: reads every shard once, in a part only row groups with rows that stay; memory:
    one shard, 32 bytes a row, and what a reader takes where `keep` is an array.

    Raises InputError (`keep` does not fit, or keeps a direction without a parent of it), ConflictError (`out` holds a
    catalog or other things), CatalogError (a damaged source; nothing is selected).
    """
    target = Path(out)
    if isinstance(keep, np.ndarray):
        keep = _by_shard(source, keep, part is not None)
    manifest = source.manifest
    without = sorted({*manifest.left_out, *left_out})
    with CatalogWriter.create(target, manifest.provenance, source.layout.codecs, without, part) as writer:
        if writer.manifest.chunks or writer.manifest.failed_images:
            raise ConflictError(str(target), "a catalog", "a new folder", "Choose another place; nothing was written")
        with writer.transaction() as transaction:
            selection = _Selection(transaction, source, writer.manifest.layout)
            selection.take_directions(keep)
            for table in _JOINS:
                selection.take(table, only_theirs=part is not None)
            if part is None:
                for path in manifest.pictures.values():
                    _copied(transaction, source, path)
            changes = {
                "chunks": selection.chunks(),
                "failed_images": manifest.failed_images if part is None else {},
                "pictures": manifest.pictures if part is None else {},
            }
            writer.finish(transaction, writer.manifest, changes)
    return target


def _by_shard(source: Catalog, keep: np.ndarray, orphans: bool) -> Chosen:
    """A choice of rows asked shard by shard. Raises InputError; for a direction without a parent unless `orphans`."""
    ids = source.ids()
    if keep.dtype != np.bool_ or keep.shape != ids.shape:
        raise InputError("keep", f"{keep.dtype} {keep.shape}", f"bool ({len(ids)},), one for each direction")
    if not orphans:
        _refuse_orphans(source, keep)
    return lambda path: np.asarray(keep[source.shard_rows(path)])


def _refuse_orphans(source: Catalog, keep: np.ndarray) -> None:
    ids = source.ids()
    lists = source.directions().column("parents").combine_chunks()
    parents = packed_ids(pa.chunked_array([lists.flatten()]), f"{source.folder}: parents")
    rows = np.searchsorted(ids, parents)
    owners = np.repeat(np.arange(len(ids)), np.diff(lists.offsets.to_numpy()))
    there = rows < len(ids)
    there[there] = ids[rows[there]] == parents[there]
    orphans = np.flatnonzero(keep[owners] & ~(there & keep[np.minimum(rows, max(0, len(ids) - 1))]))
    if len(orphans):
        child, parent = ids[owners[orphans[0]]].decode(), parents[orphans[0]].decode()
        raise InputError("keep", f"{child} without its parent {parent}", "directions with all they are derived from")


def _copied(transaction: Transaction, source: Catalog, path: str) -> str:
    """Stage a file as it is, under its own name. Raises CatalogError where it is not as committed."""
    return copy_file(source, path, transaction.stage, transaction.entries)


def copy_file(source: Catalog, path: str, write: Write, entries: Mapping[str, FileEntry]) -> str:
    """Write a file of a catalog as it is, under its own name, which is returned.

    `write(name, write to a stream, rows)` leaves in `entries` what the disk then holds. Raises CatalogError where that
    is not as committed.
    """
    entry, origin = source.manifest.files[path], source.file(path)

    def copy(out: BinaryIO) -> None:
        with origin.open("rb") as stream:
            shutil.copyfileobj(stream, out, 2**20)

    write(path, copy, entry.rows)
    if entries[path].sha256 != entry.sha256:
        raise CatalogError(str(origin), "changed bytes", "the file as committed", "Run `rhumb verify` on it")
    return path


@dataclass(frozen=True)
class _Kept:
    """What stays of a shard: where it is staged (None: nothing does), its ids (n,) "S32", and whether that is all."""

    path: str | None
    ids: np.ndarray
    all: bool


class _Selection:
    """Shards that are being selected from, and what of them stays."""

    def __init__(self, transaction: Transaction, source: Catalog, layout: Layout) -> None:
        self._transaction, self._source, self._layout = transaction, source, layout
        self._kept: dict[str, _Kept] = {}
        self._joins = {table: [_NONE] for table in _JOINS}

    def take_directions(self, chosen: Chosen) -> None:
        """Stage the directions that are chosen."""
        for path in self._source.manifest.shards("directions"):
            rows = chosen(path)
            self._take("directions", path, rows)
            joins = self._source.shard_part(path, rows, list(_JOINS.values()))
            for table, column in _JOINS.items():
                self._joins[table].append(np.unique(packed_ids(joins.column(column).drop_null(), path)))

    def take(self, table: str, only_theirs: bool) -> None:
        """Stage the rows of a table of images or regions, all of them or those of the directions that stay."""
        theirs = np.unique(np.concatenate(self._joins[table]))
        for path in self._source.manifest.shards(table):
            rows = np.ones(self._source.manifest.files[path].rows or 0, dtype=bool)
            if only_theirs:
                rows = np.isin(self._ids(table, path, rows), theirs)
            self._take(table, path, rows)

    def _ids(self, table: str, path: str, rows: np.ndarray) -> np.ndarray:
        return packed_ids(self._source.shard_part(path, rows, [KEYS[table]]).column(0), path)

    def _take(self, table: str, path: str, rows: np.ndarray) -> None:
        if not rows.any():
            self._kept[path] = _Kept(None, _NONE, all=False)
            return
        if rows.all() and self._layout.left_out == self._source.layout.left_out:
            place = _copied(self._transaction, self._source, path)
        else:
            schema = table_schema(table, self._layout)
            found = self._source.shard_part(path, rows, schema.names)
            found = found.replace_schema_metadata(schema.metadata)
            place = stage_table(self._transaction, table, found, self._layout)
        self._kept[path] = _Kept(place, self._ids(table, path, rows), all=bool(rows.all()))

    def chunks(self) -> dict[str, ChunkEntry]:
        """The chunks of the selection."""
        chunks = self._source.manifest.chunks
        moved = {path: kept.path for path, kept in self._kept.items() if kept.path is not None}
        found: dict[str, ChunkEntry] = {}
        for names in _sharing(chunks):
            paths = {path for name in names for path in chunks[name].paths}
            if all(self._kept[path].all for path in paths):
                found |= {name: chunks[name].moved(moved) for name in names}
            elif entry := self._rest(sorted(paths)):
                found[entry.digest] = entry
        return found

    def _rest(self, paths: list[str]) -> ChunkEntry | None:
        """What stays of some shards as one chunk, named by the ids it holds; None where nothing does."""
        kept = {table: [self._kept[p] for p in paths if p.startswith(f"{table}/")] for table in TABLES}
        ids = {table: np.sort(np.concatenate([_NONE, *(one.ids for one in own)])) for table, own in kept.items()}
        if not any(len(own) for own in ids.values()):
            return None
        digest = content_id("selected", *(hashlib.sha256(ids[table].tobytes()).hexdigest() for table in TABLES))
        places = {table: sorted(one.path for one in own if one.path is not None) for table, own in kept.items()}
        return ChunkEntry.model_validate(
            {
                "digest": digest,
                "rows": {table: len(own) for table, own in ids.items()},
                "shards": {table: tuple(own) for table, own in places.items() if own},
            }
        )


def _sharing(chunks: Mapping[str, ChunkEntry]) -> list[list[str]]:
    """Chunks in groups: those that share a shard, with each other or with a third, are in one."""
    near = {name: name for name in chunks}

    def first(name: str) -> str:
        while near[name] != name:
            near[name] = name = near[near[name]]
        return name

    owners: dict[str, str] = {}
    for name, chunk in chunks.items():
        for path in chunk.paths:
            near[first(name)] = first(owners.setdefault(path, name))
    groups: dict[str, list[str]] = {}
    for name in chunks:
        groups.setdefault(first(name), []).append(name)
    return list(groups.values())
