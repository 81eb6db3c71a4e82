"""A part of a published version as a catalog of its own: which rows are asked for, and where they are to be found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from catalog import manifest as manifests
from catalog.concept_tables import rewritten, stored_form, without, written_form
from catalog.filtering import matches
from catalog.hub.contract import Progress
from catalog.hub.listing import shares
from catalog.hub.parts import Part
from catalog.hub.snapshots import SORTS, SnapshotCatalog
from catalog.index import build_indexes
from catalog.manifest import PackPart
from catalog.places import packed_ids
from catalog.schema import table_schema
from catalog.selecting import select_into
from catalog.writer import CatalogWriter
from pipeline.errors import NotFoundError

_SHOWN = 12


def build_part(source: SnapshotCatalog, out: Path, part: Part, info: PackPart, progress: Progress) -> None:
    """Write a part of a version as a catalog into the new folder `out`, with concepts and search indexes if it has any.

    Concepts come along where they are of the regions, spaces, kinds and a data set that are asked for, with the
    directions that they are named after. Not for interruptions: `out` is a catalog before it is finished.

    Raises NotFoundError: nothing that is asked for is there; else as `select_into`, and StoreError.
    """
    _refuse_unknown(source, part)
    concepts = _concepts(source, part)
    if part.prototypes and not concepts.rows:
        raise _nothing(source, "no prototypes in that part of the pack")
    choice = _Choice(source, part, concepts, progress)
    select_into(source, out, choice, part.without, info)
    progress("verifying", choice.total, choice.total)
    if not manifests.load(out).rows("directions"):
        raise _nothing(source, "no directions in that part of the pack")
    if concepts.rows:
        with CatalogWriter.open(out) as writer:
            writer.replace_concepts(_tables(source, part, concepts))
    if source.manifest.indexes:
        build_indexes(out)


@dataclass
class _Concepts:
    """The concepts of a part: which rows of each file (m,) bool, and what directions they are named after."""

    rows: dict[str, np.ndarray] = field(default_factory=dict)
    medoids: set[str] = field(default_factory=set)
    datasets: set[str] = field(default_factory=set)
    regions: set[str] = field(default_factory=set)


def _concepts(source: SnapshotCatalog, part: Part) -> _Concepts:
    """The concepts of a part; none where the pack has none that are its own. Fetches all of them that is wanted."""
    found, entry = _Concepts(), source.manifest.concepts
    if entry is None or entry.directions_fingerprint != source.manifest.directions_fingerprint:
        return found
    for path in filter(part.may_hold, entry.paths):
        rows = source.near(path, part)
        source.prefetch(path, rows, _columns(source, part))
        told = source.shard_part(path, rows, ["datasets", *SORTS[1:], "medoid"]).to_pylist()
        own = [any(part.takes(one, *(row[name] for name in SORTS[1:])) for one in row["datasets"]) for row in told]
        rows[rows] = own
        if any(own):
            found.rows[path] = rows
        for row in (row for row, wanted in zip(told, own, strict=True) if wanted):
            found.medoids.add(row["medoid"])
            found.datasets.update(row["datasets"])
            found.regions.add(row["region"])
    return found


def _columns(source: SnapshotCatalog, part: Part) -> list[str]:
    """Columns of concepts that a part of a pack has."""
    return list(written_form(without(source.layout, part.without)).schema.names)


def _tables(source: SnapshotCatalog, part: Part, concepts: _Concepts) -> Iterator[pa.Table]:
    """The concepts of a part as they are written, a file of the pack at a time, each by id."""
    form, layout = stored_form(source.manifest), without(source.layout, part.without)
    for path, rows in concepts.rows.items():
        yield rewritten(source.shard_part(path, rows, _columns(source, part)), form, layout).sort_by("concept_id")


class _Choice:
    """Which rows of each shard of directions are asked for. Reads what tells it, with all of a row that is wanted."""

    def __init__(self, source: SnapshotCatalog, part: Part, concepts: _Concepts, progress: Progress) -> None:
        self._source, self._part, self._progress = source, part, progress
        self._columns = [n for n in table_schema("directions", source.layout).names if n not in part.without]
        self._medoids, self._around = np.zeros(0, "S32"), part
        if concepts.rows and (part.prototypes or part.datasets):
            self._medoids = packed_ids(pa.chunked_array([sorted(concepts.medoids)]), "medoids of concepts")
            self._around = Part(tuple(concepts.regions), tuple(concepts.datasets), part.kinds, part.spaces)
        self._sizes = {path: source.manifest.files[path].bytes for path in self._shards()}
        self.total, self._done = sum(self._sizes.values()), 0

    def _shards(self) -> list[str]:
        shards = self._source.manifest.shards("directions")
        return [path for path in shards if self._part.may_hold(path) or self._around.may_hold(path)]

    def __call__(self, path: str) -> np.ndarray:
        """(m,) bool, by the rows of a shard."""
        rows = np.zeros(self._source.manifest.files[path].rows or 0, dtype=bool)
        if path not in self._sizes:
            return rows
        self._progress(f"pulling {path}", self._done, self.total)
        self._done += self._sizes[path]
        if not self._part.prototypes and self._part.may_hold(path):
            near = self._source.near(path, self._part)
            self._source.prefetch(path, near, self._columns)
            rows[np.flatnonzero(near)[self._asked_for(path, near)]] = True
        if len(self._medoids) and self._around.may_hold(path):
            near = self._source.near(path, self._around) & ~rows
            ids = packed_ids(self._source.shard_part(path, near, ["direction_id"]).column(0), path)
            rows[np.flatnonzero(near)[np.isin(ids, self._medoids)]] = True
        return rows

    def _asked_for(self, path: str, near: np.ndarray) -> np.ndarray:
        """(n,) bool: which of the rows that are `near` (m,) bool are of the part."""
        part = self._part
        found = self._source.shard_part(path, near, SORTS)
        fits = np.ones(found.num_rows, dtype=bool)
        for name, wanted in zip(SORTS, (part.datasets, part.regions, part.spaces, part.kinds), strict=True):
            if wanted:
                fits &= np.asarray(matches(found.column(name), wanted))
        return fits


def _refuse_unknown(source: SnapshotCatalog, part: Part) -> None:
    """Raise NotFoundError for a data set or region that the names of all shards show not to be there."""
    shards = source.manifest.shards("directions")
    asked = [("data set", name, Part(datasets=(name,))) for name in part.datasets]
    asked += [("region", name, Part(regions=(name,))) for name in part.regions]
    for what, name, alone in asked:
        if not any(alone.may_hold(path) for path in shards):
            raise _nothing(source, f"no {what} {name}")


def _nothing(source: SnapshotCatalog, found: str) -> NotFoundError:
    """The error for a part that is not there: it names what is."""
    there = shares(source)
    known = {name: sorted({str(getattr(one, name)) for one in there}) for name in SORTS}
    told = "; ".join(f"{name}s {_some(names)}" for name, names in known.items())
    return NotFoundError(source.snapshot.place, found, f"what it holds: {told}")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) or "none"
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
