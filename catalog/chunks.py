"""A chunk made ready to be stored: what its records must be to each other and to what is there, and its tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from catalog.manifest import FailedImage, FileEntry
from catalog.places import Known
from catalog.records import Chunk, DirectionRecord, content_id
from catalog.schema import KEYS, TABLES, Layout
from catalog.secrecy import without_secrets
from catalog.shards import LONGEST_LIST, open_shard
from catalog.tables import check_id, to_tables
from pipeline.errors import CatalogError

Masks = dict[tuple[str, str], str]
"""The region id of each (image id, region)."""


def checked_tables(
    chunk: Chunk, known: Mapping[str, Known], masks: Mapping[tuple[str, str], str], model: str, layout: Layout
) -> dict[str, pa.Table]:
    """The rows that a chunk adds to a catalog of a model, by table. `known` ids by table, `masks`: what is there.

    Raises CatalogError naming the record and field that breaks a rule of format.md.
    """
    mined = [record for record in chunk.images if record.failure is None]
    for record in chunk.images:
        check_id(record.image_id, "image_id")
    own: Masks = {}
    for region in chunk.regions:
        pair = region.image_id, region.region
        if own.setdefault(pair, masks.get(pair, region.region_id)) != region.region_id:
            raise CatalogError(f"region {region.region_id}", "a second mask", f"one {region.region} per image")
    images = known["images"].with_those({record.image_id for record in mined})
    for region in chunk.regions:
        _must_be_in(region.image_id, images, f"region {region.region_id}: image_id", "the id of a mined image")
    everything = known["directions"].with_those({d.direction_id for d in chunk.directions})
    paired: list[tuple[DirectionRecord, str | None]] = []
    for d in chunk.directions:
        at = f"direction {d.direction_id}"
        _must_be_in(d.image_id, images, f"{at}: image_id", "the id of a mined image")
        for parent in d.parents:
            _must_be_in(parent, everything, f"{at}: parents", "ids of catalogued directions")
        pair = d.image_id, d.region
        region_id = own.get(pair) or masks.get(pair)
        if region_id is None and d.kind != "joint":
            raise CatalogError(f"{at}: region", d.region, "a region of its image with a mask in the catalog")
        paired.append((d, region_id))
    tables = to_tables(paired, mined, list(chunk.regions), model, layout)
    for table in TABLES:
        _must_be_new(tables[table].column(KEYS[table]).to_pylist(), known[table], KEYS[table])
    return tables


def _must_be_in(value: str, known: Known, field: str, expected: str) -> None:
    if value not in known:
        raise CatalogError(field, value, expected)


def _must_be_new(ids: list[str], known: Known, field: str) -> None:
    seen: set[str] = set()
    for value in ids:
        if value in seen or value in known:
            raise CatalogError(field, f"{value} twice", "ids that are unique in the catalog")
        seen.add(value)


def digest_of(chunk: Chunk) -> str:
    """Content id of all that a chunk adds: what makes two commits of one chunk id the same."""
    mined = [record.image_id for record in chunk.images if record.failure is None]
    failed = [record.image_id for record in chunk.images if record.failure is not None]
    regions, directions = ([r.region_id for r in chunk.regions], [d.direction_id for d in chunk.directions])
    return digest_of_ids(mined, failed, regions, directions)


def digest_of_ids(
    mined: Iterable[str], failed: Iterable[str], regions: Iterable[str], directions: Iterable[str]
) -> str:
    """`digest_of` from the ids."""
    images = sorted([*([key, True] for key in mined), *([key, False] for key in failed)])
    return content_id(images, sorted(regions), sorted(directions))


def masks_of(regions: pa.Table) -> Masks:
    """The region id of each (image id, region)."""
    images, names, keys = (regions.column(name).to_pylist() for name in ("image_id", "region", "region_id"))
    return dict(zip(zip(images, names, strict=True), keys, strict=True))


def sources_of(chunk: Chunk) -> dict[str, str]:
    """The source of each image that was mined, by id."""
    return {record.image_id: record.source for record in chunk.images if record.failure is None}


def failures_of(chunk: Chunk) -> dict[str, FailedImage]:
    """The images of a chunk that were not mined, by id."""
    return {
        record.image_id: FailedImage(
            source=record.source, reason=without_secrets(record.failure or "no reason given"), chunk=chunk.chunk_id
        )
        for record in chunk.images
        if record.failure is not None
    }


def failed_after(
    former: Mapping[str, FailedImage],
    sources: Mapping[str, str],
    failed: Mapping[str, FailedImage],
    known: Collection[str] | Known = (),
) -> dict[str, FailedImage]:
    """The failed images after others were mined (`sources` by id) and others `failed`, but for those `known` as mined.

    Those mined now are gone; those mined under another id from the same source, once it was repaired, say so.
    """
    mined = {source: image for image, source in sources.items()}
    after = {
        image: entry if entry.source not in mined else entry.model_copy(update={"repaired_as": mined[entry.source]})
        for image, entry in former.items()
        if image not in sources
    }
    for image, entry in failed.items():
        if image not in known:
            repaired = former[image].repaired_as if image in former else None
            after[image] = entry.model_copy(update={"repaired_as": repaired})
    return after


def read_back(path: Path, entry: FileEntry, rows: pa.Table, name: str, longest: int = LONGEST_LIST) -> None:
    """Raise CatalogError where a file holds other rows than were written to it. `longest`: items of a list."""
    with open_shard(path, entry, rows.schema, longest) as shard:
        read = shard.read()
    if not read.equals(rows):
        raise CatalogError(name, "other rows than were written", "the rows as written", "Check the disk, and try again")
