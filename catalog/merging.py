"""Merging: several catalogs of one model and one method made one, ids and rows as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.fs import inside
from catalog.manifest import ChunkEntry, Provenance
from catalog.reader import Catalog
from catalog.records import content_id
from catalog.schema import KEYS, TABLES
from catalog.tables import recoded
from catalog.transaction import Transaction
from catalog.writer import CatalogWriter, stage_table
from pipeline.errors import CatalogError, ConflictError, InputError


@dataclass(frozen=True)
class Merged:
    """Rows of the merged catalog by table, and how many rows several sources shared."""

    rows: dict[str, int]
    shared: dict[str, int]


def merge(sources: Sequence[str | Path], out: str | Path) -> Merged:
    """Merge catalogs into a new one at `out`; run again to continue after a stop.

    The sources must be of one model, one size of picture, and one `method` of their recipes, since edits follow it.
    Rows that several sources hold under one id are taken from the first. Shards that share no row with what is there
    are copied byte for byte. Search indexes and concepts are to be built anew. Cost: reads and writes every shard once.

    Raises InputError (fewer than two sources), ConflictError (they do not belong together, or `out` holds something
    else), CatalogError (a damaged source; what was merged before it stands).
    """
    if len(sources) < 2:
        raise InputError("catalogs to merge", len(sources), "at least two")
    opened = [Catalog.open(source) for source in sources]
    try:
        for other in opened[1:]:
            _refuse_other_kind(opened[0], other)
        shared = dict.fromkeys(TABLES, 0)
        with CatalogWriter.create(out, _provenance(opened), opened[0].layout.codecs) as writer:
            for source in opened:
                for table, count in _adopt(writer, source).items():
                    shared[table] += count
            return Merged({table: writer.manifest.rows(table) for table in TABLES}, shared)
    finally:
        for source in opened:
            source.close()


def _refuse_other_kind(first: Catalog, other: Catalog) -> None:
    """Raise ConflictError unless the directions of both can be used alike."""
    one, two = (c.manifest.provenance for c in (first, other))
    parts = {
        "model": (one.model["fingerprint"], two.model["fingerprint"]),
        "spaces": (one.shapes, two.shapes),
        "effect shape": (one.effect_shape, two.effect_shape),
        "method": (one.recipe.get("method"), two.recipe.get("method")),
        "resize": tuple(p.recipe.get("dataset", {}).get("resize") for p in (one, two)),
    }
    for name, (here, there) in parts.items():
        if here != there:
            raise ConflictError(
                f"{other.folder}: {name}", str(there)[:200], f"that of {first.folder}: {str(here)[:200]}",
                "Merge catalogs of one model and one method only; nothing was written",
            )  # fmt: skip


def _provenance(sources: Sequence[Catalog]) -> Provenance:
    """That of the first, but for the data: of all of them, each as its own catalog says."""
    all_ = [source.manifest.provenance for source in sources]
    data = [part.data for part in all_]
    names = list(dict.fromkeys(str(part.get("name", "unnamed")) for part in data))
    licences = list(dict.fromkeys(str(part["licence"]) for part in data if part.get("licence")))
    regions = [part.recipe.get("regions") for part in all_]
    recipe = {**all_[0].recipe, "name": " + ".join(dict.fromkeys(str(part.recipe.get("name")) for part in all_))[:200]}
    if all(isinstance(part, list) for part in regions):
        recipe["regions"] = list(dict.fromkeys(name for part in regions for name in part or ()))
    return all_[0].model_copy(
        update={
            "recipe_fingerprint": content_id("merged", [part.recipe_fingerprint for part in all_]),
            "recipe": recipe,
            "data": {
                "fingerprint": content_id("merged", [part["fingerprint"] for part in data]),
                "name": " + ".join(names)[:200],
                "images": None,
                "licence": "; ".join(licences) or None,
                "redistributable": all(part.get("redistributable", True) is not False for part in data),
                "sources": data,
            },
        }
    )


def _adopt(writer: CatalogWriter, source: Catalog) -> dict[str, int]:
    """Commit what a source adds, as one version; how many of its rows were there already, by table."""
    _refuse_other_masks(writer, source)
    known = writer.known()
    there = {table: np.array([key.decode() in known[table] for key in source.ids(table)], bool) for table in TABLES}
    shared = {table: int(there[table].sum()) for table in TABLES}
    new = {table: source.ids(table)[~there[table]] for table in TABLES}
    if not any(len(ids) for ids in new.values()):
        return shared
    with writer.transaction() as transaction:
        if not any(shared.values()) and source.layout == writer.manifest.layout:
            chunks = _copied(transaction, source)
        else:
            chunks = _rewritten(transaction, writer, source, new)
        taken = {name if name not in writer.manifest.chunks else entry.digest: entry for name, entry in chunks.items()}
        failed = {**source.manifest.failed_images, **writer.manifest.failed_images}
        mined = {key.decode() for key in source.ids("images")} | set(writer.done_images)
        changes: dict[str, Any] = {
            "chunks": {**writer.manifest.chunks, **taken},
            "failed_images": {key: entry for key, entry in failed.items() if key not in mined},
        }
        writer.finish(transaction, writer.manifest, changes)
    writer.forget()
    return shared


def _refuse_other_masks(writer: CatalogWriter, source: Catalog) -> None:
    masks = writer.masks
    for row in source.regions().select(["image_id", "region", "region_id"]).to_pylist():
        if masks.get((row["image_id"], row["region"]), row["region_id"]) != row["region_id"]:
            raise ConflictError(
                f"{source.folder}: {row['region']} of image {row['image_id']}", "another mask than a former source has",
                "one mask of a region of an image", "Leave one of the two catalogs out; what was merged stands",
            )  # fmt: skip


def _copied(transaction: Transaction, source: Catalog) -> dict[str, ChunkEntry]:
    """Stage every shard as it is, under its digest."""
    moved = {}
    for table in TABLES:
        for path in source.manifest.shards(table):
            entry, origin = source.manifest.files[path], inside(source.folder, path)
            name = f"{table}/{{digest}}.parquet"
            final, _ = transaction.stage(name, lambda out, origin=origin: out.write(origin.read_bytes()), entry.rows)  # type: ignore[misc]
            if transaction.entries[final].sha256 != entry.sha256:
                raise CatalogError(str(origin), "changed bytes", "the shard as committed", "Run `rhumb verify` on it")
            moved[path] = final
    return {name: entry.moved(moved) for name, entry in source.manifest.chunks.items()}


def _rewritten(
    transaction: Transaction, writer: CatalogWriter, source: Catalog, new: dict[str, np.ndarray]
) -> dict[str, ChunkEntry]:
    """Stage the rows that are new, with their vectors in the codec of the merged catalog, as one chunk."""
    shards: dict[str, list[str]] = {}
    for table in TABLES:
        for path in source.manifest.shards(table):
            wanted = pa.array([key.decode() for key in new[table]], pa.string())
            rows = source.whole_shards(table, [path])
            rows = rows.filter(pc.is_in(rows.column(KEYS[table]), value_set=wanted))
            if rows.num_rows:
                if table == "directions":
                    rows = recoded(rows, source.layout, writer.manifest.layout, path)
                shards.setdefault(table, []).append(stage_table(transaction, table, rows, writer.manifest.layout))
    digest = content_id("merged", *(sorted(key.decode() for key in new[table]) for table in TABLES))
    entry = ChunkEntry.model_validate(
        {
            "digest": digest,
            "rows": {table: len(new[table]) for table in TABLES},
            "shards": {table: tuple(sorted(paths)) for table, paths in shards.items()},
        }
    )
    return {digest: entry}
