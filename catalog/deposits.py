"""Deposits: what a worker has mined, in the catalog's store, whole but not yet part of the catalog.

A worker, wherever it is, writes the shards of its chunk and last a receipt. The writer of the catalog takes deposits
in by their receipts (`CatalogWriter.adopt`); rows never pass through it. What has no receipt is waste of a dead worker.
See "Deposits" in format.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field, ValidationError, model_validator

from catalog.canonical import check_seal, read_json, sealed
from catalog.chunks import Masks, checked_tables, digest_of, digest_of_ids, failures_of, masks_of, read_back, sources_of
from catalog.codecs import CodecSpec
from catalog.fs import INCOMING, check_part, write_flushed_by, writing_to
from catalog.local_store import checked_name
from catalog.manifest import ChunkEntry, ChunkId, FailedImage, FileEntry, Id, Manifest, RelativePath, Shape, Strict
from catalog.places import Known
from catalog.records import Chunk, content_id
from catalog.schema import KEYS, TABLES, Layout, parquet_settings
from catalog.shards import write_shard
from catalog.store import LocalStore, Store, StoreError
from catalog.transaction import entry_of
from pipeline.errors import CatalogError, InputError, NotFoundError

RECEIPT = "receipt.json"
_LARGEST = 64 * 2**20  # bytes of a receipt


def _part(value: str) -> str:
    return check_part(value)


Name = Annotated[str, Field(min_length=1, max_length=96), AfterValidator(_part)]
"""An id of a job or a work: a plain file name."""


class Target(Strict):
    """What a worker must know of the catalog that it mines for. Small, and JSON by `model_dump_json`."""

    catalog: Id
    """Which one: content id of what two runs must share to write into one catalog, and of its schemas."""
    model: str
    spaces: dict[Literal["x", "h"], Shape]
    effect_shape: Shape
    codecs: dict[Literal["x", "h"], CodecSpec]

    @classmethod
    def of(cls, manifest: Manifest) -> Target:
        """That of a catalog, the same as long as it lives."""
        vectors = {space: spec.model_dump(mode="json") for space, spec in manifest.vectors.items()}
        provenance = manifest.provenance
        return cls(
            catalog=content_id("target", provenance.identity(), vectors, manifest.schemas),
            model=provenance.model["fingerprint"],
            spaces=provenance.spaces,
            effect_shape=provenance.effect_shape,
            codecs={space: spec.codec for space, spec in manifest.vectors.items()},
        )

    @property
    def layout(self) -> Layout:
        """What decides the schemas of the tables."""
        codecs = {str(space): codec for space, codec in self.codecs.items()}
        return Layout({str(space): shape for space, shape in self.spaces.items()}, self.effect_shape, codecs)


class Deposit(Strict):
    """The receipt of a chunk whose shards lie in the store. Everything follows from its parts, or it is refused."""

    catalog: Id
    job_id: Name
    work_id: Name
    chunk_id: ChunkId
    entry: ChunkEntry
    files: dict[RelativePath, FileEntry]
    """The shards, by the names that they get in the catalog."""
    images: dict[Id, str]
    """The source of each image that was mined, by id."""
    directions: tuple[Id, ...]
    masks: tuple[tuple[Id, str, Id], ...]
    """(image id, region, region id)."""
    failed: dict[Id, FailedImage]
    note: dict[str, Any]
    """What the worker says of its work; JSON, not read here."""

    @model_validator(mode="after")
    def _consistent(self) -> Deposit:
        regions = [region_id for _, _, region_id in self.masks]
        counted = {"directions": len(self.directions), "images": len(self.images), "regions": len(regions)}
        told = {table: self.entry.rows.get(table) for table in TABLES}  # type: ignore[call-overload]
        held = {table: sum(e.rows or 0 for path, e in self.files.items() if path.startswith(table)) for table in TABLES}
        if not counted == told == held or self.entry.paths != set(self.files):
            raise ValueError(f"{counted} ids, {told} rows in {held} of the files {sorted(self.files)}")
        if self.digest != digest_of_ids(self.images, self.failed, regions, self.directions):
            raise ValueError("a digest of other ids")
        keys = [*self.directions, *regions]
        pairs = {(image, region) for image, region, _ in self.masks}
        if len(set(keys)) < len(keys) or len(pairs) < len(regions) or self.images.keys() & self.failed.keys():
            raise ValueError("something twice")
        if not {image for image, _, _ in self.masks} <= self.images.keys():
            raise ValueError("a mask of an image that is not in it")
        if any(entry.chunk != self.chunk_id for entry in self.failed.values()):
            raise ValueError("a failed image of another chunk")
        return self

    @property
    def digest(self) -> str:
        """Content id of all ids that it adds."""
        return self.entry.digest

    @property
    def ids(self) -> tuple[tuple[str, list[str]], ...]:
        """The ids that it adds, by table."""
        regions = [region_id for _, _, region_id in self.masks]
        return ("images", list(self.images)), ("directions", list(self.directions)), ("regions", regions)

    @property
    def region_ids(self) -> Masks:
        """The region id of each (image id, region)."""
        return {(image, region): region_id for image, region, region_id in self.masks}

    def place(self, path: str) -> str:
        """Where in the store a file is that the catalog will call `path`."""
        return f"{folder_of(self.job_id, self.work_id)}/{path.replace('/', '-')}"


def folder_of(job_id: str, work_id: str = "") -> str:
    """Where in the store the deposits of a job are, or the one of a work. Raises CatalogError for no plain names."""
    return "/".join((INCOMING, *(check_part(part) for part in (job_id, work_id) if part)))


def receipt_name(job_id: str, work_id: str) -> str:
    """Where in the store the receipt of a work is."""
    return f"{folder_of(job_id, work_id)}/{RECEIPT}"


def write_deposit(
    store: Store, job_id: str, work_id: str, chunk: Chunk, target: Target, note: Mapping[str, Any] | None = None
) -> Deposit:
    """Put a mined chunk into the store: shards, each read back, then the receipt, which makes it count.

    Where there is one already, of a twin of this worker, that one is returned and nothing of this one stays.

    Raises CatalogError naming the record that breaks a rule of format.md, or for a full disk; InputError (`note` is no
    plain JSON, or the store cannot be written); StoreError for what may pass: to be called again.
    """
    nothing = {table: Known(np.zeros(0, "S32")) for table in TABLES}
    tables = checked_tables(chunk, nothing, {}, target.model, target.layout)
    place = folder_of(job_id, work_id)
    files: dict[str, FileEntry] = {}
    put: list[str] = []
    try:
        with writing_to(store.place), store.drafts(folder_of(job_id)) as drafts:
            for table in TABLES:
                if tables[table].num_rows:
                    path, entry = _draft(drafts, table, tables[table], target.layout)
                    files[path] = entry
                    put.append(f"{place}/{path.replace('/', '-')}")
                    store.put(put[-1], drafts / table)
                    _check_put(store, put[-1], entry)
            deposit = _receipt(job_id, work_id, chunk, target, tables, files, note or {})
            if store.put_if_absent(receipt_name(job_id, work_id), _dump(deposit)):
                return deposit
    except BaseException:
        _delete_quietly(store, put)
        raise
    standing = read_deposit(store, job_id, work_id)
    store.delete(set(put) - {standing.place(path) for path in standing.files})
    return standing


def _draft(drafts: Path, table: str, rows: pa.Table, layout: Layout) -> tuple[str, FileEntry]:
    """Write a shard to `drafts`, flush it and read it back; its name in the catalog, and what the manifest will say."""
    path = drafts / table
    write_flushed_by(path, lambda stream: write_shard(rows, stream, parquet_settings(table, rows.schema, layout)))
    entry = entry_of(path, rows.num_rows)
    name = f"{table}/{entry.sha256[:16]}.parquet"
    read_back(path, entry, rows, name)
    return name, entry


def _check_put(store: Store, name: str, entry: FileEntry) -> None:
    try:
        same = store.sha256(name) == entry.sha256
    except NotFoundError as error:  # removed with the deposit of a twin that was taken in meanwhile
        raise StoreError(error.field, error.found, "the shard as written", "Try again") from error
    if not same:
        raise CatalogError(f"{store.place}: {name}", "other bytes than were put", "the shard as written", "Try again")


def _receipt(
    job_id: str,
    work_id: str,
    chunk: Chunk,
    target: Target,
    tables: Mapping[str, pa.Table],
    files: dict[str, FileEntry],
    note: Mapping[str, Any],
) -> Deposit:
    value = {
        "catalog": target.catalog,
        "job_id": job_id,
        "work_id": work_id,
        "chunk_id": chunk.chunk_id,
        "entry": {
            "digest": digest_of(chunk),
            "rows": {table: tables[table].num_rows for table in TABLES},
            "shards": {path.split("/")[0]: (path,) for path in files},
        },
        "files": files,
        "images": sources_of(chunk),
        "directions": tuple(tables["directions"].column(KEYS["directions"]).to_pylist()),
        "masks": tuple((*pair, region_id) for pair, region_id in masks_of(tables["regions"]).items()),
        "failed": failures_of(chunk),
        "note": dict(note),
    }
    deposit = _validated(value, f"deposit {work_id}")
    try:
        if parse_receipt(_dump(deposit), "note") != deposit:
            raise ValueError("a value that does not read back")
    except (ValueError, TypeError) as error:
        raise InputError("note", str(error)[:200], "plain JSON") from error
    return deposit


def _delete_quietly(store: Store, names: list[str]) -> None:
    """Delete what a deposit that came to nothing has put: the first error says more than one of this would."""
    try:
        store.delete(names)
    except (OSError, CatalogError, InputError):
        return


def _dump(deposit: Deposit) -> bytes:
    return sealed(deposit.model_dump())


def _validated(value: Mapping[str, Any], name: str) -> Deposit:
    try:
        return Deposit.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise CatalogError(name, found[:300], "a whole receipt") from None


def parse_receipt(data: bytes, name: str) -> Deposit:
    """The deposit of a receipt. Raises CatalogError naming `name` and what is wrong with it."""
    value = read_json(data, name) if len(data) <= _LARGEST else None
    if not isinstance(value, dict):
        raise CatalogError(name, "no receipt", "the receipt of a deposit")
    check_seal(value, data, name)
    deposit = _validated(value, name)
    if _dump(deposit) != data:
        raise CatalogError(name, "a form other than the canonical one", "the receipt as written")
    return deposit


def read_deposit(store: Store, job_id: str, work_id: str) -> Deposit:
    """The deposit of a work. Raises NotFoundError (none), CatalogError (its receipt is torn, changed, or another's)."""
    name = receipt_name(job_id, work_id)
    deposit = parse_receipt(store.read(name), name)
    if (deposit.job_id, deposit.work_id) != (job_id, work_id):
        raise CatalogError(name, f"that of {deposit.job_id}/{deposit.work_id}", "its own work's")
    return deposit


def has_deposit(store: Store, job_id: str, work_id: str) -> bool:
    """Whether a work was mined and waits to be taken into the catalog."""
    return store.exists(receipt_name(job_id, work_id))


def whole_deposits(store: Store, job_id: str, waste: list[str] | None = None) -> Iterator[Deposit]:
    """The deposits of a job that wait to be taken in, by work id.

    What is wrong with receipts that cannot be read is added to `waste`; `clean` removes them.
    """
    for name in store.list(folder_of(job_id)):
        parts = name.split("/")
        if len(parts) != 4 or parts[3] != RECEIPT:
            continue
        try:
            yield read_deposit(store, job_id, parts[2])
        except NotFoundError:  # taken in by now
            continue
        except CatalogError as error:
            if waste is not None:
                waste.append(str(error))


def damaged(deposits: Sequence[Deposit], store: Store) -> dict[str, str]:
    """What is wrong with the shards of some deposits, by work id; those that are as their receipts say are left out.

    Compares sizes, and checksums where the store is a folder; elsewhere the worker has read back what it put.
    """
    sizes = store.sizes(one.place(path) for one in deposits for path in one.files)
    wrong: dict[str, str] = {}
    for one in deposits:
        for path, entry in one.files.items():
            name = one.place(path)
            same = sizes[name] == entry.bytes
            if not same or (isinstance(store, LocalStore) and store.sha256(name) != entry.sha256):
                wrong[one.work_id] = f"{name}: missing or changed"
    return wrong


def discard(store: Store, *deposits: Deposit) -> None:
    """Remove deposits. The receipt goes first, so that no half of one ever looks whole."""
    store.delete(receipt_name(one.job_id, one.work_id) for one in deposits)
    folders = {folder_of(one.job_id, one.work_id) for one in deposits}
    below = [name for job in sorted({one.job_id for one in deposits}) for name in _own_files(store, folder_of(job))]
    store.delete(name for name in below if "/".join(name.split("/")[:3]) in folders)


def clean(store: Store, job_id: str | None = None) -> int:
    """Remove everything incoming of a job, or of all, but whole deposits; how many files that were.

    For a coordinator whose workers have ended: what a living one is writing would go too. What no worker can have put
    there is somebody else's and stays: links, and names that are not plain.
    """
    top = folder_of(job_id) if job_id is not None else INCOMING
    below = _own_files(store, top)
    whole: set[str] = set()
    for job in {name.split("/")[1] for name in below if name.count("/") > 1}:
        whole |= {folder_of(job, deposit.work_id) for deposit in whole_deposits(store, job)}
    waste = [name for name in below if name.rsplit("/", 1)[0] not in whole]
    store.delete(sorted(waste, key=lambda name: not name.endswith(RECEIPT)))
    store.tidy(top)
    return len(waste)


def _own_files(store: Store, below: str) -> list[str]:
    """Names of the files below a folder of deposits that a worker can have put there."""

    def own(name: str) -> bool:
        try:
            check_part(name.split("/")[1])
            if isinstance(store, LocalStore):
                store.path(name)
            else:
                checked_name(name)
        except CatalogError:
            return False
        return True

    return [name for name in store.list(below) if own(name)]
