"""A published version as a catalog: read in place, by pieces, nothing of it copied that is not asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from catalog import manifest as manifests
from catalog.concept_files import check_sizes, most_members
from catalog.concept_tables import stored_form
from catalog.fs import MANIFEST
from catalog.hub.contract import Hub, Snapshot
from catalog.hub.names import PackName, Version, chosen_version
from catalog.hub.opening import open_hub
from catalog.hub.parts import Part
from catalog.hub.pieces import ANEW, Pieces, patiently, pieces_folder
from catalog.manifest import Manifest
from catalog.reader import Catalog
from catalog.schema import TABLES, table_schema
from catalog.shards import Shard, open_shard
from pipeline.errors import CatalogError

SORTS: tuple[str, ...] = ("dataset", "region", "space", "kind")
"""Columns by which parts are told apart, whose bounds the footer of a shard has."""
_CONCEPTS = "concepts"


class SnapshotCatalog(Catalog):
    """One published version of a repository. Everything that a catalog can do, of the hub only what that takes.

    Shards are read by pieces that stay in the cache; other files are fetched whole and compared with their sha256. A
    piece that is damaged is fetched once more. Raises StoreError, besides, where the hub cannot be reached.
    """

    def __init__(self, snapshot: Snapshot, manifest: Manifest, origin: str) -> None:
        """`origin`: the place of the repository, which all of its versions share pieces in."""
        super().__init__(Path(snapshot.place), manifest)
        self.snapshot, self.origin = snapshot, origin
        self._pieces: dict[str, Pieces] = {}

    def __enter__(self) -> SnapshotCatalog:
        return self

    @property
    def fetched(self) -> int:
        """Bytes that came from the hub so far, but for the manifest."""
        return sum(pieces.fetched for pieces in self._pieces.values())

    def chunk(self, chunk_id: str) -> Catalog:
        """As of any catalog."""
        return SnapshotCatalog(self.snapshot, super().chunk(chunk_id).manifest, self.origin)

    def file(self, path: str) -> Path:
        """A listed file, whole and as it was published. Raises CatalogError, StoreError."""
        self._let_go(path)
        return self._pieces_of(path).whole()

    def bounds(self, path: str) -> list[tuple[int, int, dict[str, tuple[str, str]]]]:
        """For each row group of a directions shard: its rows, its bytes as stored, and the first and last data set,
        region, space and kind, where the footer has them. Reads the footer.
        """
        found = []
        for group in self._file(path).footer.groups:
            ends = {chunk.path_in_schema: chunk.ends for chunk in group.chunks if chunk.path_in_schema in SORTS}
            told = {name: (_text(own[0], path), _text(own[1], path)) for name, own in ends.items() if own is not None}
            found.append((group.num_rows, sum(chunk.total_compressed_size for chunk in group.chunks), told))
        return found

    def near(self, path: str, part: Part) -> np.ndarray:
        """(m,) bool: the rows of a shard, of directions or concepts, that lie where rows of a part may be. Reads its
        footer.
        """
        asked = zip(SORTS, (part.datasets, part.regions, part.spaces, part.kinds), strict=True)
        wanted = [(name, values) for name, values in asked if values]
        parts = [
            np.full(rows, all(name not in ends or _between(values, *ends[name]) for name, values in wanted))
            for rows, _, ends in self.bounds(path)
        ]
        return np.concatenate([np.zeros(0, bool), *parts])

    def prefetch(self, path: str, chosen: np.ndarray, columns: Sequence[str]) -> None:
        """Fetch some columns of the row groups that hold rows `chosen` (m,) bool, neighbours together."""
        file = self._file(path)
        starts = range(0, len(chosen), file.group_size)
        file.expect([at // file.group_size for at in starts if chosen[at : at + file.group_size].any()], columns)

    def _pieces_of(self, path: str) -> Pieces:
        if path not in self._pieces:
            entry = self.manifest.files[path]
            self._pieces[path] = Pieces(pieces_folder(self.origin), self.snapshot, path, entry)
        return self._pieces[path]

    def _let_go(self, path: str) -> None:
        shard = self._files.pop(path, None)
        if shard is not None:
            shard.close()

    @cached_property
    def _schemas(self) -> dict[str, pa.Schema]:
        concepts = stored_form(self.manifest).schema
        return {**{table: table_schema(table, self.layout) for table in TABLES}, _CONCEPTS: concepts}

    def _opened(self, path: str, schema: pa.Schema) -> Shard:
        pieces = self._pieces_of(path)
        pieces.mark()
        try:
            shard = self._opened_once(path, schema)
        except CatalogError:
            pieces.drop()
            try:
                shard = self._opened_once(path, schema)
            except CatalogError as error:
                raise self._told(path, error) from error
        pieces.mark()
        return shard

    def _opened_once(self, path: str, schema: pa.Schema) -> Shard:
        pieces, entry = self._pieces_of(path), self.manifest.files[path]
        if not _of_concepts(path):
            return open_shard(pieces.path, entry, schema, fetch=pieces.need)
        members = most_members(self.manifest)
        shard = open_shard(pieces.path, entry, schema, members, pieces.need)
        try:
            check_sizes(shard.footer, schema, members, str(pieces.path))
        except CatalogError:
            shard.close()
            raise
        return shard

    def _read(self, path: str, group: int | None, columns: Sequence[str]) -> pa.Table:
        self._file(path)
        pieces = self._pieces_of(path)
        pieces.mark()
        try:
            return self._read_once(path, group, columns)
        except CatalogError:
            self._let_go(path)
            pieces.drop()
        try:
            return self._read_once(path, group, columns)
        except CatalogError as error:
            raise self._told(path, error) from error

    def _read_once(self, path: str, group: int | None, columns: Sequence[str]) -> pa.Table:
        if _of_concepts(path):  # whose lists may be of any length
            self._file(path).check_pages(group, columns)
        return super()._read(path, group, columns)

    def _told(self, path: str, error: CatalogError) -> CatalogError:
        """An error that names the published file, not its pieces."""
        place = error.field.replace(str(self._pieces_of(path).path), f"{self.snapshot.place}/{path}")
        return CatalogError(place, error.found, error.expected, ANEW)


def _of_concepts(path: str) -> bool:
    return path.startswith(f"{_CONCEPTS}/")


def _text(value: bytes, path: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise CatalogError(path, "a footer with ends that are no text", "a whole Parquet shard") from error


def _between(values: Sequence[str], first: str, last: str) -> bool:
    return any(first <= value <= last for value in values)


def open_version(hub: Hub, repository: str, version: Version, revision: str) -> SnapshotCatalog:
    """A published version, to be read in place.

    Raises CatalogError: a manifest that is damaged, or of another pack; NotFoundError, StoreError.
    """
    snapshot = hub.snapshot(repository, version, revision)
    at = f"{snapshot.place}/{MANIFEST}"
    try:
        manifest = manifests.parse(patiently(snapshot.manifest), at)
    except CatalogError:
        manifest = manifests.parse(patiently(lambda: snapshot.manifest(anew=True)), at)
    pack = manifest.pack
    if pack is None or (pack.repository, pack.version) != (repository, str(version)):
        found = f"{pack.repository} {pack.version}" if pack is not None else "no pack"
        raise CatalogError(f"{at}: pack", found, f"{repository} {version}", "It names the files of another pack")
    return SnapshotCatalog(snapshot, manifest, f"{hub.place}/{repository}")


def open_pack(name: PackName, hub: Hub | None = None) -> SnapshotCatalog:
    """The published version that a name speaks of, to be read in place.

    Raises NotFoundError, CatalogError, StoreError; InputError: it may not be read with the credentials at hand.
    """
    hub = hub if hub is not None else open_hub(name)
    versions = patiently(lambda: hub.versions(name.repository))
    version = chosen_version(versions, name.wanted, str(name))
    return open_version(hub, name.repository, version, versions[version])
