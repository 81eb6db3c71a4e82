"""The writer: one at a time, whole chunks only, and the former version intact whatever happens."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa

from catalog import manifest as manifests
from catalog.card import catalog_card
from catalog.codecs import CodecSpec
from catalog.fs import CARD, MANIFEST, disk_error
from catalog.manifest import ChunkEntry, ConceptsEntry, FailedImage, IndexEntry, Manifest, Provenance
from catalog.places import Known
from catalog.reader import Catalog
from catalog.records import Chunk, DirectionRecord, content_id
from catalog.schema import KEYS, TABLES, Layout, parquet_settings
from catalog.shards import LONGEST_LIST, open_shard, write_shard
from catalog.tables import check_id, check_name, to_tables
from catalog.transaction import Lock, Transaction, recover, unborn
from pipeline.errors import CatalogError, ConflictError, InputError

_PNG = b"\x89PNG\r\n\x1a\n"
Stored = tuple[bytes, int | None]
"""A file's bytes, and its rows where it is a table."""


class CatalogWriter:
    """Holds the catalog's lock from `create` or `open` until `close`; use it as a context manager."""

    def __init__(self, folder: Path, lock: Lock, current: Manifest) -> None:
        self.folder, self.manifest = folder, current
        self._lock = lock
        self._ids: dict[str, Known] | None = None
        self._masks: dict[tuple[str, str], str] = {}

    @classmethod
    def create(
        cls, folder: str | Path, provenance: Provenance, codecs: Mapping[str, CodecSpec] | None = None
    ) -> CatalogWriter:
        """Begin the catalog in `folder`, or continue it if it is of the same recipe, model and data.

        `codecs`: how a new catalog stores the vectors of a space; the default one of each where left out. One that was
        begun keeps its own.

        Raises ConflictError, with nothing written: the folder holds something else, or another writer is at work.
        """
        root = Path(folder)
        try:
            new = manifests.fresh(provenance, codecs)
            manifests.parse(manifests.dump(new))
        except (ValueError, TypeError) as error:
            raise InputError("provenance", str(error)[:300], "plain JSON values that read back unchanged") from error
        cls._refuse_foreign(root, provenance)
        with _clear_disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            lock = Lock(root)
        writer = cls(root, lock, new)
        with writer._closing_on_error():
            standing = recover(root)
            if standing is None:
                cls._refuse_foreign(root, provenance)
                writer._begin(new)
            else:
                cls._refuse_other(root, standing.provenance, provenance)
                manifests.check_writable(standing, str(root / MANIFEST))
                writer.manifest = standing
        return writer

    @classmethod
    def open(cls, folder: str | Path) -> CatalogWriter:
        """Continue an existing catalog. Raises NotFoundError, CatalogError, ConflictError (another writer)."""
        root = Path(folder)
        current = manifests.load(root)
        writer = cls(root, Lock(root), current)
        with writer._closing_on_error():
            writer.manifest = recover(root) or current
            manifests.check_writable(writer.manifest, str(root / MANIFEST))
        return writer

    @staticmethod
    def _refuse_foreign(root: Path, provenance: Provenance) -> None:
        if root.exists() and not root.is_dir():
            raise ConflictError(str(root), "a file", "a folder for the catalog", "Choose another --out")
        if (root / MANIFEST).exists():
            CatalogWriter._refuse_other(root, manifests.load(root).provenance, provenance)
        elif root.exists() and not unborn(root):
            raise ConflictError(
                str(root), f"a folder with other content and no {MANIFEST}", "an empty folder or a catalog",
                "Choose another --out; nothing was written",
            )  # fmt: skip

    @staticmethod
    def _refuse_other(root: Path, there: Provenance, wanted: Provenance) -> None:
        one, two = there.identity(), wanted.identity()
        for part in one:
            if one[part] != two[part]:
                raise ConflictError(
                    f"{root}: {part}", f"a catalog of {one[part]}", f"one of {two[part]}",
                    "Choose another --out for this recipe; nothing was written",
                )  # fmt: skip

    def _begin(self, new: Manifest) -> None:
        with self.transaction() as transaction:
            transaction.stage(CARD, _bytes_writer(catalog_card(new.provenance)))
            self.finish(transaction, None, {"files": dict(transaction.entries)})

    # -- what is done ----------------------------------------------------------------------------------------------

    @property
    def done_chunks(self) -> frozenset[str]:
        """Chunk ids that are committed: a resumed run skips them."""
        return frozenset(self.manifest.chunks)

    @property
    def done_images(self) -> frozenset[str]:
        """Ids of the images that are mined and committed."""
        return frozenset(self.known()["images"].all())

    @property
    def masks(self) -> dict[tuple[str, str], str]:
        """The committed region id of each (image id, region)."""
        self.known()
        return dict(self._masks)

    @property
    def failed_images(self) -> dict[str, str]:
        """Image id to reason, for images that were tried and not mined, nor repaired and mined since."""
        return {image: entry.reason for image, entry in self.manifest.failures.items()}

    # -- commits ---------------------------------------------------------------------------------------------------

    def commit(self, chunk: Chunk) -> None:
        """Write, verify and commit one chunk; a no-op if it is already there with the same ids.

        Raises CatalogError naming the record that breaks a rule of format.md (nothing is written), or for a full
        disk (the former version stands); ConflictError for a chunk id that stands for other content.
        """
        digest = _digest(chunk)
        if chunk.chunk_id in self.manifest.chunks:
            if self.manifest.chunks[chunk.chunk_id].digest != digest:
                raise ConflictError(f"chunk {chunk.chunk_id}", "a commit of other ids", "the same content or a new id")
            return
        tables = self._checked_tables(chunk)
        with self.transaction() as transaction:
            rows = {table: tables[table].num_rows for table in TABLES}
            layout = self.manifest.layout
            shards = {t: (stage_table(transaction, t, tables[t], layout),) for t in TABLES if rows[t]}
            entry = ChunkEntry.model_validate({"digest": digest, "rows": rows, "shards": shards})
            chunks = {**self.manifest.chunks, chunk.chunk_id: entry}
            failed = _failed(self.manifest.failed_images, chunk)
            self.finish(transaction, self.manifest, {"chunks": chunks, "failed_images": failed})
        self._remember(tables)

    def add_picture(self, name: str, data: bytes) -> str:
        """Store a PNG under `name`, replacing an older one of that name; returns its path within the catalog."""
        check_name(name, "picture name")
        if not data.startswith(_PNG):
            raise InputError(f"picture {name}", "data of another kind", "the bytes of a PNG file")
        stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)[:80].strip("-") or "p"
        with self.transaction() as transaction:
            path, _ = transaction.stage(f"pictures/{stem}-{{digest}}.png", _bytes_writer(data))
            pictures = {**self.manifest.pictures, name: path}
            former = self.manifest.pictures.get(name)
            obsolete = [former] if former is not None and former not in pictures.values() else []
            self.finish(transaction, self.manifest, {"pictures": pictures}, obsolete)
        return path

    def replace_indexes(self, entries: Mapping[str, IndexEntry], files: Mapping[str, Stored]) -> None:
        """Put a set of search indexes in place of the old one.

        `files` holds what the entries name and the catalog does not have yet: path to (bytes, rows of a table or None).
        """
        with self.transaction() as transaction:
            for path, (data, rows) in files.items():
                transaction.stage(path, _bytes_writer(data), rows)
            kept = {path for entry in entries.values() for path in entry.files}
            former = [path for entry in self.manifest.indexes.values() for path in entry.files]
            gone = [path for path in former if path not in kept]
            self.finish(transaction, self.manifest, {"indexes": dict(entries)}, gone)

    def replace_concepts(self, table: pa.Table) -> None:
        """Put the concepts of the directions that the catalog holds now in place of former ones."""
        settings = parquet_settings("concepts", table.schema, self.manifest.layout)
        with self.transaction() as transaction:
            longest = max(1, self.manifest.rows("directions"))  # a concept may hold all of them
            path = stage_read_back(transaction, "concepts/{digest}.parquet", table, settings, longest)
            entry = ConceptsEntry(
                path=path, rows=table.num_rows, directions_fingerprint=self.manifest.directions_fingerprint
            )
            former = self.manifest.concepts
            gone = [former.path] if former is not None and former.path != path else []
            self.finish(transaction, self.manifest, {"concepts": entry}, gone)

    def finish(
        self, transaction: Transaction, old: Manifest | None, changes: dict[str, Any], obsolete: list[str] | None = None
    ) -> None:
        """Commit what a transaction has staged, with `changes` of the manifest, `obsolete` files going.

        `old` is the manifest that stands, None for a new catalog. Raises CatalogError for one that breaks a rule.
        """
        base = old or self.manifest
        files = {**base.files, **transaction.entries}
        gone = [*(obsolete or []), *base.retired]
        for path in gone:
            files.pop(path, None)
        update = {"version": base.version + 1, "files": files, "retired": (), "pack": None, **changes}
        update["previous"] = transaction.previous
        new = manifests.validated({**dict(base), **update})
        transaction.commit(new, old, gone)
        self.manifest = new

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction that leaves the standing version and no leftovers if anything at all goes wrong."""
        if self._lock.freed:
            raise ConflictError(str(self.folder), "a writer that was closed", "an open one", "Open it again")
        started: Transaction | None = None
        try:
            with _clear_disk_errors(self.folder):
                started = Transaction(self.folder)
                yield started
                started.close()
        except BaseException:
            if started is not None:
                self.manifest = started.abandon() or self.manifest
            self._ids = None
            raise

    # -- checks across records -------------------------------------------------------------------------------------

    def known(self) -> dict[str, Known]:
        """Ids in the catalog per table, and the masks by (image, region); read once."""
        if self._ids is None:
            with Catalog(self.folder, self.manifest) as catalog:
                self._masks = _masks(catalog.regions())
                self._ids = {table: Known(catalog.ids(table)) for table in TABLES}
        return self._ids

    def forget(self) -> None:
        """Read the ids again when they are needed next: rows were added beside `commit`."""
        self._ids = None

    def _remember(self, tables: Mapping[str, pa.Table]) -> None:
        if self._ids is not None:
            self._masks |= _masks(tables["regions"])
            for table in TABLES:
                self._ids[table].add(tables[table].column(KEYS[table]).to_pylist())

    def _checked_tables(self, chunk: Chunk) -> dict[str, pa.Table]:
        known = self.known()
        mined = [record for record in chunk.images if record.failure is None]
        for record in chunk.images:
            check_id(record.image_id, "image_id")
        masks = ChainMap({}, self._masks)
        for region in chunk.regions:
            if masks.setdefault((region.image_id, region.region), region.region_id) != region.region_id:
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
            region_id = masks.get((d.image_id, d.region))
            if region_id is None and d.kind != "joint":
                raise CatalogError(f"{at}: region", d.region, "a region of its image with a mask in the catalog")
            paired.append((d, region_id))
        model = self.manifest.provenance.model["fingerprint"]
        tables = to_tables(paired, mined, list(chunk.regions), model, self.manifest.layout)
        for table in TABLES:
            _must_be_new(tables[table].column(KEYS[table]).to_pylist(), known[table], KEYS[table])
        return tables

    # -- life ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the lock back. Safe to call twice."""
        self._lock.free()

    def __enter__(self) -> CatalogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _clear_disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        clear = disk_error(root, error)
        if clear is None:
            raise
        raise clear from error


def _digest(chunk: Chunk) -> str:
    images = sorted([record.image_id, record.failure is None] for record in chunk.images)
    regions = sorted(record.region_id for record in chunk.regions)
    return content_id(images, regions, sorted(record.direction_id for record in chunk.directions))


def _failed(former: Mapping[str, FailedImage], chunk: Chunk) -> dict[str, FailedImage]:
    """The failed images after a chunk: those it mined are gone, those it mined under another id are repaired."""
    mined = {record.source: record.image_id for record in chunk.images if record.failure is None}
    failed = {
        image: entry.model_copy(update={"repaired_as": mined.get(entry.source, entry.repaired_as)})
        for image, entry in former.items()
        if image not in mined.values()
    }
    for record in chunk.images:
        if record.failure is not None:
            repaired = former[record.image_id].repaired_as if record.image_id in former else None
            failed[record.image_id] = FailedImage(
                source=record.source, reason=record.failure or "no reason given", chunk=chunk.chunk_id,
                repaired_as=repaired,
            )  # fmt: skip
    return failed


def _masks(regions: pa.Table) -> dict[tuple[str, str], str]:
    """The region id of each (image id, region)."""
    names = ("image_id", "region", "region_id")
    images, regions_, keys = (regions.column(name).to_pylist() for name in names)
    return dict(zip(zip(images, regions_, strict=True), keys, strict=True))


def _must_be_in(value: str, known: Known, field: str, expected: str) -> None:
    if value not in known:
        raise CatalogError(field, value, expected)


def _must_be_new(ids: list[str], known: Known, field: str) -> None:
    seen: set[str] = set()
    for value in ids:
        if value in seen or value in known:
            raise CatalogError(field, f"{value} twice", "ids that are unique in the catalog")
        seen.add(value)


def _bytes_writer(data: bytes) -> Callable[[BinaryIO], object]:
    return lambda stream: stream.write(data)


def stage_table(transaction: Transaction, table: str, rows: pa.Table, layout: Layout) -> str:
    """Stage one shard and read it back; its path. Raises CatalogError where the disk holds other rows than given."""
    settings = parquet_settings(table, rows.schema, layout)
    return stage_read_back(transaction, f"{table}/{{digest}}.parquet", rows, settings)


def stage_read_back(
    transaction: Transaction, name: str, rows: pa.Table, settings: dict[str, Any], longest: int = LONGEST_LIST
) -> str:
    """Stage a Parquet file and read it back; its path. `longest`: items of a list, on average. Raises CatalogError."""
    path, staged = transaction.stage(name, lambda stream: write_shard(rows, stream, settings), rows.num_rows)
    with open_shard(staged, transaction.entries[path], rows.schema, longest) as shard:
        read = shard.read()
    if not read.equals(rows):
        raise CatalogError(path, "other rows than were written", "the rows as written", "Check the disk, and try again")
    return path
