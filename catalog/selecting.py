"""Selecting: some directions of a catalog as a catalog of their own, ids and rows as they are.

Images and regions all stay, also those that no selected direction is of: the selection then says what was tried, mining
that continues it does not begin anew with them, and their shards are taken byte for byte.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from catalog.manifest import ChunkEntry
from catalog.places import packed_ids
from catalog.reader import Catalog
from catalog.records import content_id
from catalog.schema import KEYS, TABLES
from catalog.transaction import Transaction
from catalog.writer import CatalogWriter, stage_table
from pipeline.errors import CatalogError, ConflictError, InputError


def select_into(source: Catalog, out: str | Path, keep: np.ndarray) -> Path:
    """Write the catalog of the directions whose rows `keep` (n,) bool, by `source.ids()`, into the new folder `out`.

    Shards whose rows all stay are copied byte for byte; of others the rows that stay are written anew, by the same
    bytes each time. One commit; search indexes and concepts are to be built anew. Cost: reads every shard once; memory:
    one shard, and what a reader takes.

    Raises InputError (`keep` does not fit, or keeps a direction without a parent of it), ConflictError (`out` holds a
    catalog or other things), CatalogError (a damaged source; nothing is selected).
    """
    target = Path(out)
    _check(source, keep)
    manifest = source.manifest
    with CatalogWriter.create(target, manifest.provenance, source.layout.codecs) as writer:
        if writer.manifest.chunks or writer.manifest.failed_images:
            raise ConflictError(str(target), "a catalog", "a new folder", "Choose another place; nothing was written")
        with writer.transaction() as transaction:
            shards = {
                table: [_copied(transaction, source, path) for path in manifest.shards(table)]
                for table in TABLES
                if table != "directions"
            }
            shards["directions"] = _selected(transaction, source, keep)
            for path in manifest.pictures.values():
                _copied(transaction, source, path)
            changes = {
                "chunks": _chunk(transaction, source, shards, keep),
                "failed_images": manifest.failed_images,
                "pictures": manifest.pictures,
            }
            writer.finish(transaction, writer.manifest, changes)
    return target


def _check(source: Catalog, keep: np.ndarray) -> None:
    ids = source.ids()
    if keep.dtype != np.bool_ or keep.shape != ids.shape:
        raise InputError("keep", f"{keep.dtype} {keep.shape}", f"bool ({len(ids)},), one for each direction")
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
    entry, origin = source.manifest.files[path], source.file(path)

    def copy(out: BinaryIO) -> None:
        with origin.open("rb") as stream:
            shutil.copyfileobj(stream, out, 2**20)

    transaction.stage(path, copy, entry.rows)
    if transaction.entries[path].sha256 != entry.sha256:
        raise CatalogError(str(origin), "changed bytes", "the file as committed", "Run `rhumb verify` on it")
    return path


def _selected(transaction: Transaction, source: Catalog, keep: np.ndarray) -> list[str]:
    """Stage what stays of the shards of directions."""
    staged = []
    for path in source.manifest.shards("directions"):
        own = keep[source.shard_rows(path)]
        if own.all():
            staged.append(_copied(transaction, source, path))
        elif own.any():
            rows = source.whole_shards("directions", [path])
            ids = packed_ids(rows.column(KEYS["directions"]), path)
            rows = rows.filter(keep[np.searchsorted(source.ids(), ids)])
            staged.append(stage_table(transaction, "directions", rows, source.layout))
    return staged


def _chunk(
    transaction: Transaction, source: Catalog, shards: dict[str, list[str]], keep: np.ndarray
) -> dict[str, ChunkEntry]:
    """All of it as one chunk, named by the ids it holds."""
    rows = {table: sum(transaction.entries[path].rows or 0 for path in paths) for table, paths in shards.items()}
    if not any(rows.values()):
        return {}
    ids = {table: source.ids(table)[keep] if table == "directions" else source.ids(table) for table in TABLES}
    digest = content_id("selected", *(hashlib.sha256(ids[table].tobytes()).hexdigest() for table in TABLES))
    owned = {table: tuple(sorted(paths)) for table, paths in shards.items() if rows[table]}
    return {digest: ChunkEntry.model_validate({"digest": digest, "rows": rows, "shards": owned})}
