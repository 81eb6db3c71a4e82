"""Arranging: a catalog laid out as the next version of a pack, with the shards of the version before that still stand.

In a pack, a shard of directions holds one data set and one region only and is named after them, so that one region can
be pulled, or loaded, without the others. The same catalog and former version give the same bytes, so that a publication
that was cut off goes on with what has arrived.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalog import manifest as manifests
from catalog.codecs import effect_codec
from catalog.fs import CARD, write_flushed
from catalog.hub.concept_shards import concepts_by_part
from catalog.hub.folder import DraftFolder
from catalog.hub.pack_indexes import COLUMNS, PackIndexes, of_rows
from catalog.hub.parts import part_name
from catalog.hub.portable import portable, portable_failures
from catalog.hub.reuse import WHOLE, grown_only, holders, key_of, reuse_of
from catalog.hub.waiting import Sorter, Waiting
from catalog.manifest import ChunkEntry, ConceptsEntry, FileEntry, Manifest, PackInfo
from catalog.places import packed_ids
from catalog.reader import Catalog
from catalog.schema import KEYS, TABLES, Layout, parquet_settings, table_schema
from catalog.shards import Shard, open_shard
from catalog.tables import SORTED

BATCH_BYTES = 2**25
"""Of a shard of the catalog that are read at once, about."""
_GROUPED = ("dataset", "region")
SHOWING = frozenset({"preview", "image"})
"""Columns without which a pack has no pictures either."""
_EMPTY = FileEntry(sha256=hashlib.sha256(b"").hexdigest(), bytes=0)


@dataclass(frozen=True)
class Arranged:
    """A version of a pack: its manifest, where the files lie that the version before does not have, and all others.

    Until `with_card`, the card is an empty file.
    """

    folder: Path
    manifest: Manifest
    places: Mapping[str, Path]

    @property
    def reused(self) -> list[str]:
        """Names of the files that the version before has."""
        return sorted(self.manifest.files.keys() - self.places.keys())

    def with_card(self, page: bytes) -> Arranged:
        """The same with its card."""
        place = self.folder / CARD
        write_flushed(place, page)
        entry = FileEntry(sha256=hashlib.sha256(page).hexdigest(), bytes=len(page))
        files = {**self.manifest.files, CARD: entry}
        return replace(self, manifest=_checked(self.manifest, files=files), places={**self.places, CARD: place})


def arrange(
    source: Catalog,
    pack: PackInfo,
    former: Manifest | None,
    into: Path,
    left_out: Collection[str] = (),
    pictures: Mapping[str, bytes] | None = None,
    images_before: Callable[[], np.ndarray] | None = None,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> Arranged:
    """Lay a catalog out as `pack`, in the empty folder `into`; what a `former` version has is not written again.

    `left_out`: columns to do without besides those that the catalog lacks; without previews or images there are no
    pictures either. `pictures`: PNGs by name, besides those of the catalog. `images_before`: asks the former version
    for the ids (n,) "S32" of its images, sorted, by which what is new is told from what has been compacted with it;
    without it all of that is written again. `told`: bytes looked at, of how many.

    Search indexes that are not whole, and concepts of other directions, are left out. Cost: reads what is new once.
    Memory: `BATCH_BYTES`, `waiting.BUFFER_BYTES`, and four times a shard of the pack; of concepts, as stored, those of
    a region or `concept_shards.TOGETHER`. Raises CatalogError for
    a damaged catalog, or a full disk.
    """
    layout = replace(source.layout, left_out=source.layout.left_out | frozenset(left_out))
    if former is not None and not _alike(former, source.manifest, layout):
        former = None
    arrangement = _Arrangement(source, former, DraftFolder(into), layout, told)
    if former is not None and images_before is not None:
        arrangement.tell_apart(images_before)
    arrangement.tables()
    return arrangement.finished(pack, pictures or {})


def _alike(former: Manifest, source: Manifest, layout: Layout) -> bool:
    """Whether rows of a former version may stand beside those of a catalog."""
    models = {manifest.provenance.model["fingerprint"] for manifest in (former, source)}
    return former.layout == layout and len(models) == 1 and not former.retired and former.part is None


class _Arrangement:
    """One catalog while it is being laid out."""

    def __init__(
        self,
        source: Catalog,
        former: Manifest | None,
        folder: DraftFolder,
        layout: Layout,
        told: Callable[[int, int], None],
    ) -> None:
        self._source, self._former, self._folder, self._layout, self._told = source, former, folder, layout, told
        self._indexes = PackIndexes(source, former)
        self._reuse = reuse_of(source.manifest, former, exact=self._indexes.gathers)
        self._holders = holders(source.manifest)
        self._new: dict[str, set[str]] = defaultdict(set)  # shards of the pack by shard of the catalog
        self._before: np.ndarray | None = None  # ids of the images of chunks that are not fresh
        self._done, self._of = 0, sum(entry.bytes for entry in source.manifest.files.values())

    def tell_apart(self, images_before: Callable[[], np.ndarray]) -> None:
        """Where shards of the catalog hold new rows among others, as after compaction, go by the images they are of.

        Only where nothing of the former version goes, and the counts say that chunks have whole images.
        """
        manifest, former, fresh = self._source.manifest, self._former, self._reuse.fresh
        mixed = [path for path, own in self._holders.items() if 0 < len(fresh.intersection(own)) < len(set(own))]
        if former is None or not mixed or self._indexes.gathers or not grown_only(manifest, former):
            return
        before = images_before()
        for table in TABLES:
            wanted = sum(manifest.chunks[chunk].rows.get(table, 0) for chunk in fresh)  # type: ignore[call-overload]
            own = [path for path in manifest.shards(table) if fresh.intersection(self._holders[path])]
            if wanted != sum(int(_new_rows(self._read(table, path, ["image_id"]), before).sum()) for path in own):
                return
        self._before, self._reuse = before, reuse_of(manifest, former, apart=True)

    # -- shards ----------------------------------------------------------------------------------------------------

    def tables(self) -> None:
        """Write the rows that are new, table by table, and take over what still stands."""
        for table in TABLES:
            sorter = Sorter(lambda part, waiting, table=table: self._write(table, part, waiting))  # type: ignore[misc]
            for path in self._source.manifest.shards(table):
                if any(self._reuse.touched(chunk, table) for chunk in self._holders[path]):
                    self._sort(table, path, sorter)
                self._done += self._source.manifest.files[path].bytes
                self._told(self._done, self._of)
            sorter.finish()
        for shard in sorted(path for path in self._reuse.shards if path.startswith("directions/")):
            self._indexes.keep(shard)
            if self._indexes.gathers:
                self._gather(shard)

    def _sort(self, table: str, path: str, sorter: Sorter) -> None:
        """Have the rows of a shard that are to be written anew wait for others of their parts."""
        of_directions = table == "directions"
        codes = self._indexes.of_shard(path, self._read(table, path, [*COLUMNS])) if of_directions else {}
        for rows, stored in self._batches(table, path):
            new = rows if self._before is None else rows.filter(_new_rows(rows, self._before))
            for part, own in _parts_of(table, new):
                if any(self._reuse.written(chunk, table, part) for chunk in self._holders[path]):
                    some = new.take(own)
                    sorter.add(part, some, of_rows(codes, some), path, stored * len(own))
            if len(self._holders[path]) > 1:  # whose rows lie anyhow
                sorter.settle()
        sorter.settle()

    def _opened(self, table: str, path: str) -> Shard:
        file, schema = self._source.file(path), table_schema(table, self._source.layout)
        return open_shard(file, self._source.manifest.files[path], schema)

    def _read(self, table: str, path: str, names: list[str]) -> pa.Table:
        """Some columns of a shard."""
        with self._opened(table, path) as shard:
            return shard.read(names)

    def _batches(self, table: str, path: str) -> Iterator[tuple[pa.Table, float]]:
        """The rows of a shard as the pack has them, those of a large one in pieces; and bytes on disk a row, about."""
        schema, entry = table_schema(table, self._layout), self._source.manifest.files[path]
        with self._opened(table, path) as shard:
            groups = shard.footer.groups
            chunks = [chunk for group in groups for chunk in group.chunks]
            stored = sum(c.total_compressed_size for c in chunks if c.path_in_schema.split(".")[0] in schema.names)
            together = max(1, len(groups) * BATCH_BYTES // max(1, entry.bytes))
            for first in range(0, len(groups), together):
                numbers = range(first, min(first + together, len(groups)))
                whole = len(numbers) == len(groups)
                parts = (
                    [shard.read(schema.names)] if whole else [shard.read_row_group(n, schema.names) for n in numbers]
                )
                rows = pa.concat_tables(parts).replace_schema_metadata(schema.metadata)
                yield rows, stored / max(1, entry.rows or 0)

    def _write(self, table: str, part: str, waiting: Waiting) -> None:
        """Write rows that have waited, and their codes."""
        name = f"{table}/{part}{'-' if part else ''}{{digest}}.parquet"
        for rows, origins in waiting.shards(SORTED if table == "directions" else (KEYS[table],)):
            path = self._folder.write_table(name, rows, parquet_settings(table, rows.schema, self._layout))
            for origin in origins:
                self._new[origin].add(path)
            if table == "directions":
                self._indexes.write(self._folder, path, rows, waiting.codes)

    def _gather(self, shard: str) -> None:
        """Codes of a shard that is taken over, out of the catalog's, which tells its rows from others: see `Reuse`."""
        assert self._former is not None  # or there are no such shards
        key, chunks = key_of(shard), self._source.manifest.chunks
        own = {chunk for chunk, entry in self._former.chunks.items() if shard in entry.paths}
        parts = []
        for path in sorted({path for chunk in own for path in chunks[chunk].shards.get("directions", ())}):
            rows = self._read("directions", path, [*COLUMNS, *_GROUPED])
            codes = self._indexes.of_shard(path, rows, all_=False)
            found = dict(_parts_of("directions", rows))
            parts += [of_rows(codes, rows.take(at)) for part, at in found.items() if ("directions", part) == key]
        self._indexes.put_gathered(self._folder, shard, self._former.files[shard].rows or 0, parts)

    # -- the rest --------------------------------------------------------------------------------------------------

    def finished(self, pack: PackInfo, pictures: Mapping[str, bytes]) -> Arranged:
        """The manifest and places, once all tables are laid out."""
        manifest, folder = self._source.manifest, self._folder
        indexes, concepts = self._indexes.finish(folder), self._concepts()
        changes: dict[str, Any] = {
            "version": 1,
            "chunks": {name: self._chunk(name, entry) for name, entry in manifest.chunks.items()},
            "failed_images": portable_failures(manifest.failed_images),
            "pictures": {} if self._layout.left_out & SHOWING else self._pictures(pictures),
            "indexes": indexes,
            "pack": pack,
        }
        files = {CARD: _EMPTY, **folder.entries}
        if self._former is not None:
            taken = set(self._reuse.shards).union(*(entry.files for entry in indexes.values())) - files.keys()
            files |= {path: self._former.files[path] for path in taken}
        folder.flush()
        before = self._former.files if self._former is not None else {}
        places = {path: folder.root / path for path, entry in folder.entries.items() if before.get(path) != entry}
        story = portable(manifest.provenance)
        begun = manifests.fresh(story, self._source.layout.codecs, self._layout.left_out, manifest.part)
        changes |= manifests.with_concepts(begun, concepts)
        return Arranged(folder.root, _checked(begun, files=files, **changes), places)

    def _chunk(self, name: str, entry: ChunkEntry) -> ChunkEntry:
        """A chunk with its shards in the pack."""
        former = self._former.chunks.get(name) if self._former is not None else None
        found: dict[Any, tuple[str, ...]] = {}
        for table, origins in entry.shards.items():
            touched = self._reuse.touched(name, table)
            new = set().union(*(self._new.get(path, set()) for path in origins if touched))
            if former is not None and name not in self._reuse.fresh:
                new |= self._reuse.shards.intersection(former.shards.get(table, ()))
            found[table] = tuple(sorted(new))
        return entry.model_copy(update={"shards": found})

    def _pictures(self, more: Mapping[str, bytes]) -> dict[str, str]:
        known = self._source.manifest.pictures
        found = {name: self._folder.copy(self._source, path) for name, path in known.items()}
        for name in sorted(more.keys() - known.keys()):
            stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)[:80].strip("-")
            data = more[name]
            found[name] = self._folder.write(
                f"pictures/{stem or 'p'}-{{digest}}.png",
                lambda stream, data=data: stream.write(data),  # type: ignore[misc]
            )
        return found

    def _concepts(self) -> ConceptsEntry | None:
        """The concepts, where they are those of the directions, in shards of a region each. All of them are written
        anew, from which those of regions that have not changed come out as they were.
        """
        manifest, layout = self._source.manifest, self._layout
        entry = manifest.concepts
        if entry is None or entry.directions_fingerprint != manifest.directions_fingerprint:
            return None
        longest = max(1, manifest.rows("directions"))  # a concept may hold all of them
        shards = [
            self._folder.write_table(
                f"concepts/{part}-{{digest}}.parquet", rows, parquet_settings("concepts", rows.schema, layout), longest
            )
            for part, rows in concepts_by_part(self._source, layout)
        ]
        return ConceptsEntry(
            shards=tuple(sorted(shards)),
            rows=entry.rows,
            directions_fingerprint=entry.directions_fingerprint,
            effect=effect_codec(layout.effect_shape),
        )


def _checked(base: Manifest, **changes: Any) -> Manifest:
    return manifests.validated({**dict(base), **changes})


def _new_rows(rows: pa.Table, before: np.ndarray) -> np.ndarray:
    """(n,) bool: which rows are of none of the images `before` (m,) "S32"."""
    return ~np.isin(packed_ids(rows.column("image_id"), "image_id"), before)


def _parts_of(table: str, rows: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    """The parts that rows belong to, by name, and the places (n,) of those of each."""
    if table != "directions":
        yield WHOLE, np.arange(rows.num_rows)
        return
    columns = [rows.column(name).combine_chunks().dictionary_encode() for name in _GROUPED]
    datasets, regions = (column.dictionary.to_pylist() for column in columns)
    first, second = (np.asarray(column.indices) for column in columns)
    codes = first.astype(np.int64) * max(1, len(regions)) + second
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for code in np.unique(codes).tolist():
        dataset, region = divmod(code, len(regions))
        found[part_name(datasets[dataset], regions[region])].append(np.flatnonzero(codes == code))
    for part in sorted(found):
        yield part, np.sort(np.concatenate(found[part]))
