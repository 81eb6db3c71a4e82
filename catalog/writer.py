"""The writer: one at a time, whole chunks only, and the former version intact whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from catalog import manifest as manifests
from catalog.adoption import Adopted, Intake
from catalog.card import catalog_card
from catalog.chunks import (
    Masks,
    checked_tables,
    digest_of,
    failed_after,
    failures_of,
    masks_of,
    read_back,
    sources_of,
)
from catalog.codecs import CodecSpec, effect_codec
from catalog.concept_tables import form_of, rewritten
from catalog.deposits import Deposit, damaged, discard
from catalog.fs import CARD, MANIFEST, writing_to
from catalog.kept import KnownMasks, keep_receipts, known_rows
from catalog.manifest import ChunkEntry, ConceptsEntry, IndexEntry, Manifest, PackPart, Provenance
from catalog.mirror import locked, opened, recovered, refreshed, start_transaction, store_of
from catalog.places import Known
from catalog.records import Chunk
from catalog.schema import KEYS, LEFT_OUT, TABLES, Layout, parquet_settings
from catalog.shards import LONGEST_LIST, write_shard
from catalog.store import Store, StoreError
from catalog.tables import check_name
from catalog.transaction import Lock, Transaction, unborn
from pipeline.errors import ConflictError, InputError

_WHOLE = "a whole catalog, as mining makes it"
_PNG = b"\x89PNG\r\n\x1a\n"
Stored = tuple[bytes, int | None]
"""A file's bytes, and its rows where it is a table."""


class CatalogWriter:
    """Holds the catalog's lock from `create` or `open` until `close`; use it as a context manager."""

    def __init__(self, folder: Path, lock: Lock, current: Manifest) -> None:
        self.folder, self.manifest = folder, current
        self._lock = lock
        self._ids: dict[str, Known] | None = None
        self._settled = True
        self._masks = KnownMasks()

    @classmethod
    def create(
        cls,
        folder: str | Path,
        provenance: Provenance,
        codecs: Mapping[str, CodecSpec] | None = None,
        left_out: Collection[str] = (),
        part: PackPart | None = None,
    ) -> CatalogWriter:
        """Begin the catalog in `folder`, or continue it if it is of the same recipe, model and data.

        `codecs`: how a new catalog stores the vectors of a space; the default one of each where left out. One that was
        begun keeps its own. `left_out`: columns that its tables do not have, `part`: the published version that it is
        a part of; neither is for mining, and one that was begun must have the same.

        Raises ConflictError, with nothing written: the folder holds something else, or another writer is at work;
        InputError: it cannot be written to.
        """
        root = refreshed(folder)
        if unknown := sorted(set(left_out) - set(LEFT_OUT)):
            raise InputError("left_out", unknown[0], f"some of {', '.join(LEFT_OUT)}")
        try:
            new = manifests.fresh(provenance, codecs, left_out, part)
            manifests.parse(manifests.dump(new))
        except (ValueError, TypeError) as error:
            raise InputError("provenance", str(error)[:300], "plain JSON values that read back unchanged") from error
        with writing_to(root):
            cls._refuse_foreign(root, new)
            root.mkdir(parents=True, exist_ok=True)
            lock = locked(root, patient=True)
        writer = cls(root, lock, new)
        with writer._closing_on_error():
            standing = recovered(root)
            if standing is None:
                cls._refuse_foreign(root, new)
                writer._begin(new)
            else:
                cls._refuse_other(root, standing, new)
                manifests.check_writable(standing, str(root / MANIFEST))
                writer.manifest = standing
        return writer

    @classmethod
    def open(cls, folder: str | Path) -> CatalogWriter:
        """Continue an existing catalog. Raises NotFoundError, CatalogError, ConflictError (another writer)."""
        root = opened(folder)
        current = manifests.load(root)
        writer = cls(root, locked(root), current)
        with writer._closing_on_error():
            writer.manifest = recovered(root) or current
            manifests.check_writable(writer.manifest, str(root / MANIFEST))
        return writer

    @staticmethod
    def _refuse_foreign(root: Path, new: Manifest) -> None:
        if root.exists() and not root.is_dir():
            raise ConflictError(str(root), "a file", "a folder for the catalog", "Choose another --out")
        if (root / MANIFEST).exists():
            CatalogWriter._refuse_other(root, manifests.load(root), new)
        elif root.exists() and not unborn(root):
            raise ConflictError(
                str(root), f"a folder with other content and no {MANIFEST}", "an empty folder or a catalog",
                "Choose another --out; nothing was written",
            )  # fmt: skip

    @staticmethod
    def _refuse_other(root: Path, there: Manifest, wanted: Manifest) -> None:
        one, two = there.provenance.identity(), wanted.provenance.identity()
        for part in one:
            if one[part] != two[part]:
                raise ConflictError(
                    f"{store_of(root).place}: {part}", f"a catalog of {one[part]}", f"one of {two[part]}",
                    "Choose another --out for this recipe; nothing was written",
                )  # fmt: skip
        if (there.left_out, there.part) != (wanted.left_out, wanted.part):
            raise ConflictError(
                store_of(root).place, _kind(there), _kind(wanted), "Choose another --out; nothing was written"
            )

    def _refuse_records(self) -> None:
        """Raise ConflictError where the catalog was published or pulled: mining does not go on with one."""
        if self.manifest.left_out or self.manifest.part is not None:
            raise ConflictError(self.store.place, _kind(self.manifest), _WHOLE, "Mine into another --out")

    def _begin(self, new: Manifest) -> None:
        with self.transaction() as transaction:
            transaction.stage(CARD, _bytes_writer(catalog_card(new.provenance)))
            self.finish(transaction, None, {"files": dict(transaction.entries)})

    # -- what is done ----------------------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """Where the catalog lies, and where workers leave their deposits."""
        return store_of(self.folder)

    @property
    def done_chunks(self) -> frozenset[str]:
        """Chunk ids that are committed: a resumed run skips them."""
        return frozenset(self.manifest.chunks)

    @property
    def done_images(self) -> frozenset[str]:
        """Ids of the images that are mined and committed."""
        return frozenset(self.known()["images"].all())

    @property
    def masks(self) -> Mapping[tuple[str, str], str]:
        """The committed region id of each (image id, region), those of later commits too."""
        self.known()
        return self._masks

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
        self._settle()
        self._refuse_records()
        digest = digest_of(chunk)
        if chunk.chunk_id in self.manifest.chunks:
            if self.manifest.chunks[chunk.chunk_id].digest != digest:
                raise ConflictError(f"chunk {chunk.chunk_id}", "a commit of other ids", "the same content or a new id")
            return
        known, model = self.known(), self.manifest.provenance.model["fingerprint"]
        tables = checked_tables(chunk, known, self._masks, model, self.manifest.layout)
        with self.transaction() as transaction:
            rows = {table: tables[table].num_rows for table in TABLES}
            layout = self.manifest.layout
            shards = {t: (stage_table(transaction, t, tables[t], layout),) for t in TABLES if rows[t]}
            entry = ChunkEntry.model_validate({"digest": digest, "rows": rows, "shards": shards})
            chunks = {**self.manifest.chunks, chunk.chunk_id: entry}
            failed = failed_after(self.manifest.failed_images, sources_of(chunk), failures_of(chunk), known["images"])
            self.finish(transaction, self.manifest, {"chunks": chunks, "failed_images": failed})
        ids = {table: tables[table].column(KEYS[table]).to_pylist() for table in TABLES}
        self._remember(ids, masks_of(tables["regions"]))

    def adopt(self, deposits: Sequence[Deposit], store: Store | None = None) -> Adopted:
        """Take in what workers have left in the catalog's store: all that can be, in one commit, files as they are.

        A deposit that repeats something that is there, or that is damaged, is dropped; all of them are then removed
        from the store. Until then a kill loses nothing: what was taken in is dropped when it is offered again.
        Cost: reads shards that lie in a folder once, to compare them with their receipts.

        Raises as `commit` does; StoreError before anything is taken in.
        """
        self._settle()
        self._refuse_records()
        store = store if store is not None else self.store
        intake, wrong = Intake(self.manifest, self.known()), damaged(deposits, store)
        dropped, adopted = dict[str, str](), list[Deposit]()
        with self.transaction() as transaction:
            for deposit in deposits:
                reason = intake.clash(deposit) or wrong.get(deposit.work_id)
                if reason is not None:
                    dropped[deposit.work_id] = reason
                    continue
                for path, entry in deposit.files.items():
                    transaction.take(path, entry, store, deposit.place(path))
                intake.take(deposit)
                adopted.append(deposit)
            if adopted:
                keep_receipts(store, adopted)
                changes = {"chunks": intake.chunks, "failed_images": intake.failed}
                self.finish(transaction, self.manifest, changes)
        self._remember(intake.ids, intake.masks)
        with suppress(StoreError):  # what stays is dropped when it is offered again
            discard(store, *deposits)
        return Adopted(tuple(adopted), dropped)

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

    def replace_concepts(self, tables: pa.Table | Iterable[pa.Table]) -> None:
        """Put the concepts of the directions that the catalog holds now in place of former ones, in the form that is
        written now: those of a table in one file, of several in one each, which are taken one at a time.
        """
        layout, one = self.manifest.layout, isinstance(tables, pa.Table)
        several: Iterable[pa.Table] = [tables] if one else tables
        with self.transaction() as transaction:
            paths, rows = list[str](), 0
            for table in several:
                rows += table.num_rows
                if one or table.num_rows:
                    paths.append(_stage_concepts(transaction, table, layout))
            entry = ConceptsEntry(
                path=paths[0] if one else None,
                shards=None if one else tuple(sorted(paths)),
                rows=rows,
                directions_fingerprint=self.manifest.directions_fingerprint,
                effect=effect_codec(layout.effect_shape),
            )
            former = self.manifest.concepts
            gone = [left for left in former.paths if left not in paths] if former is not None else []
            self.finish(transaction, self.manifest, manifests.with_concepts(self.manifest, entry), gone)

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
        self._lock.check()
        transaction.commit(new, old, gone)
        self.manifest = new

    def _settle(self) -> None:
        """Ask which manifest stands, where a commit failed and its store could not be asked."""
        if not self._settled:
            self.manifest, self._settled = manifests.load(refreshed(self.folder)), True
            self._ids = None

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction that leaves the standing version and no leftovers if anything at all goes wrong."""
        self._lock.check()
        started: Transaction | None = None
        before = self.manifest.version
        try:
            self._settle()
            with writing_to(self.folder):
                started = start_transaction(self.folder, self.manifest)
                yield started
                started.close()
        except BaseException:
            self._settled = False
            with suppress(StoreError):  # asked again before the next commit
                self.manifest = (started.abandon() if started is not None else None) or self.manifest
                self._settled = True
            if not self._settled or self.manifest.version != before:
                self._ids = None
            raise

    # -- checks across records -------------------------------------------------------------------------------------

    def known(self) -> dict[str, Known]:
        """Ids in the catalog per table, and the masks by (image, region); read once."""
        if self._ids is None:
            self._ids, self._masks = known_rows(self.folder, self.manifest)
        return self._ids

    def forget(self) -> None:
        """Read the ids again when they are needed next: rows were added beside `commit`."""
        self._ids = None

    def _remember(self, ids: Mapping[str, Iterable[str]], masks: Masks) -> None:
        if self._ids is not None:
            self._masks.add(masks)
            for table in TABLES:
                self._ids[table].add(ids[table])

    # -- life ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            with writing_to(self.folder):
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


def _kind(manifest: Manifest) -> str:
    """What a catalog is besides its content: for errors."""
    left_out = f"a catalog that was published without {', '.join(manifest.left_out)}" if manifest.left_out else ""
    of_pack = f"a part of {manifest.part.repository} {manifest.part.version}" if manifest.part is not None else ""
    return ", ".join(filter(None, (left_out, of_pack))) or _WHOLE


def _bytes_writer(data: bytes) -> Callable[[BinaryIO], object]:
    return lambda stream: stream.write(data)


def stage_table(transaction: Transaction, table: str, rows: pa.Table, layout: Layout) -> str:
    """Stage one shard and read it back; its path. Raises CatalogError where the disk holds other rows than given."""
    settings = parquet_settings(table, rows.schema, layout)
    return stage_read_back(transaction, f"{table}/{{digest}}.parquet", rows, settings)


def _stage_concepts(transaction: Transaction, table: pa.Table, layout: Layout) -> str:
    """Stage a file of concepts, of either form, and read it back; its path."""
    rows = rewritten(table, form_of(table.schema, layout), layout)
    longest = max(pc.list_value_length(rows.column("members")).to_pylist(), default=1)
    settings = parquet_settings("concepts", rows.schema, layout)
    return stage_read_back(transaction, "concepts/{digest}.parquet", rows, settings, longest)


def stage_read_back(
    transaction: Transaction, name: str, rows: pa.Table, settings: dict[str, Any], longest: int = LONGEST_LIST
) -> str:
    """Stage a Parquet file and read it back; its path. `longest`: items of a list, on average. Raises CatalogError."""
    path, staged = transaction.stage(name, lambda stream: write_shard(rows, stream, settings), rows.num_rows)
    read_back(staged, transaction.entries[path], rows, path, longest)
    return path
