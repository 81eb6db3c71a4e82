"""Merging: several catalogs of one model and one method made one, ids and rows as they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.manifest import ChunkEntry, FailedImage, PackPart, Provenance
from catalog.places import texts
from catalog.reader import Catalog
from catalog.records import content_id
from catalog.schema import KEYS, TABLES
from catalog.tables import recoded
from catalog.transaction import Transaction
from catalog.writer import CatalogWriter, stage_table
from pipeline.errors import CatalogError, ConflictError, InputError

_MASKS = pa.schema([(name, pa.string()) for name in ("image_id", "region", "region_id")])


@dataclass(frozen=True)
class Merged:
    """Rows of the merged catalog by table, and how many more the sources hold: those that several have, counted again.

    Both are of the whole merge, whether it was done at once or continued.
    """

    rows: dict[str, int]
    shared: dict[str, int]


def merge(sources: Sequence[str | Path], out: str | Path) -> Merged:
    """Merge catalogs into a new one at `out`; run again to continue after a stop.

    The sources must be of one model, one size of picture, and one `method` of their recipes, since edits follow it, and
    have the same columns left out. Of parts of packs one more part is made, which says what it was made of.
    Rows that several sources hold under one id are taken from the first. Shards that share no row with what is there
    are copied byte for byte. Images that failed are kept, but for those that another source has mined. Search indexes
    and concepts are to be built anew. Cost: reads and writes every shard once.

    Raises InputError (fewer than two sources), ConflictError with nothing merged (they do not belong together, two
    have other masks of one region, or `out` holds something else), CatalogError (a damaged source; what was merged
    before it stands).
    """
    if len(sources) < 2:
        raise InputError("catalogs to merge", len(sources), "at least two")
    opened = [Catalog.open(source) for source in sources]
    try:
        for other in opened[1:]:
            _refuse_other_kind(opened[0], other)
        _refuse_other_masks(opened)
        first, left_out = opened[0].layout.codecs, opened[0].manifest.left_out
        with CatalogWriter.create(out, _provenance(opened), first, left_out, _part(opened)) as writer:
            with Catalog(writer.folder, writer.manifest) as standing:  # sources may have changed since it was begun
                _refuse_other_masks([standing, *opened])
            for source in opened:
                _adopt(writer, source)
            rows = {table: writer.manifest.rows(table) for table in TABLES}
            return Merged(rows, {table: _shared(opened, table) for table in TABLES})
    finally:
        for source in opened:
            source.close()


def _shared(sources: Sequence[Catalog], table: str) -> int:
    """How many rows of a table the sources hold beyond one for each id."""
    ids = np.concatenate([source.ids(table) for source in sources])
    return len(ids) - len(np.unique(ids))


def _refuse_other_kind(first: Catalog, other: Catalog) -> None:
    """Raise ConflictError unless the directions of both can be used alike."""
    one, two = (c.manifest.provenance for c in (first, other))
    parts = {
        "model": (one.model["fingerprint"], two.model["fingerprint"]),
        "spaces": (one.shapes, two.shapes),
        "effect shape": (one.effect_shape, two.effect_shape),
        "method": (one.recipe.get("method"), two.recipe.get("method")),
        "resize": tuple(p.recipe.get("dataset", {}).get("resize") for p in (one, two)),
        "left_out": (first.manifest.left_out, other.manifest.left_out),
    }
    for name, (here, there) in parts.items():
        if here != there:
            raise ConflictError(
                f"{other.folder}: {name}", str(there)[:200], f"that of {first.folder}: {str(here)[:200]}",
                "Merge catalogs of one model and one method only; nothing was written" if name != "left_out" else
                "Pull or publish both with the same columns; nothing was written",
            )  # fmt: skip


def _part(sources: Sequence[Catalog]) -> PackPart | None:
    """What the merged catalog is a part of: the first pack of which there is but a part; None where all are whole.

    Its filter `merged` names all such parts, as parents and members of every one of them may be missing.
    """
    parts = [source.manifest.part for source in sources if source.manifest.part is not None]
    if not parts:
        return None
    merged = sorted({line for part in parts for line in _told(part)})
    return parts[0].model_copy(update={"filters": {"merged": tuple(merged)}})


def _told(part: PackPart) -> tuple[str, ...]:
    """A part in words; those of the parts that it was merged of."""
    if "merged" in part.filters:
        return part.filters["merged"]
    asked = " ".join(f"{name}={','.join(values)}" for name, values in sorted(part.filters.items()))
    return (f"{part.repository}@{part.version} {asked}".rstrip()[:200],)


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


def _adopt(writer: CatalogWriter, source: Catalog) -> None:
    """Commit what a source adds, as one version; nothing where it adds nothing."""
    known, standing = writer.known(), writer.manifest
    there = {table: np.array([key.decode() in known[table] for key in source.ids(table)], bool) for table in TABLES}
    new = {table: source.ids(table)[~there[table]] for table in TABLES}
    mined = set(texts(source.ids("images"))) | set(writer.done_images)
    failed = _failed(standing.failed_images, source.manifest.failed_images, mined)
    adds = any(len(ids) for ids in new.values())
    if not adds and failed == standing.failed_images:
        return
    with writer.transaction() as transaction:
        if not adds:
            chunks = {}
        elif not any(own.any() for own in there.values()) and source.layout == standing.layout:
            chunks = _copied(transaction, source)
        else:
            chunks = _rewritten(transaction, writer, source, new)
        taken = {name if name not in standing.chunks else entry.digest: entry for name, entry in chunks.items()}
        changes: dict[str, Any] = {"chunks": {**standing.chunks, **taken}, "failed_images": failed}
        writer.finish(transaction, standing, changes)
    writer.forget()


def _failed(
    standing: Mapping[str, FailedImage], source: Mapping[str, FailedImage], mined: Collection[str]
) -> dict[str, FailedImage]:
    """The failed images of both: not those mined by either; of two entries of one image, rather the repaired one."""
    failed = {**source, **standing}
    for key in standing.keys() & source.keys():
        if standing[key].repaired_as is None:
            failed[key] = standing[key].model_copy(update={"repaired_as": source[key].repaired_as})
    return {key: entry for key, entry in failed.items() if key not in mined}


def _refuse_other_masks(sources: Sequence[Catalog]) -> None:
    """Raise ConflictError where two of the catalogs have other masks of one region of an image."""
    names = ["image_id", "region", "region_id"]
    parts = [source.regions().select(names).cast(_MASKS) for source in sources]
    owners = pa.array(np.repeat(np.arange(len(sources)), [part.num_rows for part in parts]))
    masks = pa.concat_tables(parts).append_column("source", owners)
    counted = masks.group_by(names[:2], use_threads=False).aggregate([("region_id", "count_distinct")])
    for odd in counted.filter(pc.greater(counted.column("region_id_count_distinct"), 1)).slice(0, 1).to_pylist():
        here = pc.and_(*(pc.equal(masks.column(name), odd[name]) for name in names[:2]))
        own = masks.filter(here).to_pylist()
        other = next(row for row in own if row["region_id"] != own[0]["region_id"])
        raise ConflictError(
            f"{sources[other['source']].folder}: {odd['region']} of image {odd['image_id']}",
            f"another mask than that of {sources[own[0]['source']].folder}", "one mask of a region of an image",
            "Leave one of the two catalogs out; nothing was merged",
        )  # fmt: skip


def _copied(transaction: Transaction, source: Catalog) -> dict[str, ChunkEntry]:
    """Stage every shard as it is, under its digest."""
    moved = {}
    for table in TABLES:
        for path in source.manifest.shards(table):
            entry, origin = source.manifest.files[path], source.file(path)
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
            wanted = pa.array(texts(new[table]), pa.string())
            rows = source.whole_shards(table, [path])
            rows = rows.filter(pc.is_in(rows.column(KEYS[table]), value_set=wanted))
            if rows.num_rows:
                if table == "directions":
                    rows = recoded(rows, source.layout, writer.manifest.layout, path)
                shards.setdefault(table, []).append(stage_table(transaction, table, rows, writer.manifest.layout))
    digest = content_id("merged", *(sorted(texts(new[table])) for table in TABLES))
    entry = ChunkEntry.model_validate(
        {
            "digest": digest,
            "rows": {table: len(new[table]) for table in TABLES},
            "shards": {table: tuple(sorted(paths)) for table, paths in shards.items()},
        }
    )
    return {digest: entry}
