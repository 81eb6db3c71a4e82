"""Verification: every byte, every rule and every join of a catalog, each problem with the file it is in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog import manifest as manifests
from catalog.fs import LOCK, MANIFEST, STAGING, inside, sha256_of
from catalog.index import IDS_SCHEMA, DirectionIndex, faiss_id, indexed_ids, search_vectors
from catalog.manifest import Manifest
from catalog.pictures import decode_png
from catalog.reader import Catalog
from catalog.schema import TABLES, table_schema, vector_column
from catalog.tables import NORM_TOLERANCE, check_evidence, check_id, vectors_of
from pipeline.errors import RhumbError

_PICTURES = {"directions": ("effect", "preview"), "images": ("image",), "regions": ("mask",)}
_KEYS = {"directions": "direction_id", "images": "image_id", "regions": "region_id"}


@dataclass(frozen=True)
class Problem:
    """What is wrong, and in which file of the catalog."""

    file: str
    what: str


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and what is wrong; `ok` when nothing is."""

    folder: str
    version: int
    files: int
    bytes: int
    rows: dict[str, int]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether the catalog is whole."""
        return not self.problems


def verify(folder: str | Path) -> VerifyReport:
    """Check a catalog in full: checksums, schemas, counts, ids and joins, norms, evidence, pictures, indexes.

    Damage is reported, not raised; only a folder that is no catalog at all raises NotFoundError. Reads every file
    twice. Files that are damaged are not read further, so one flipped byte gives one problem.
    """
    root = Path(folder)
    try:
        manifest = manifests.load(root)
    except LookupError:
        raise
    except RhumbError as error:
        return VerifyReport(str(root), 0, 0, 0, {}, (Problem(MANIFEST, str(error)),))
    problems = list(_check_files(root, manifest))
    if not problems:
        problems += check_tables(root, manifest)
    if not problems:
        problems += _check_indexes(root, manifest)
    rows = {table: manifest.rows(table) for table in TABLES}
    size = sum(entry.bytes for entry in manifest.files.values())
    return VerifyReport(str(root), manifest.version, len(manifest.files), size, rows, tuple(problems))


def check_tables(root: Path, manifest: Manifest) -> list[Problem]:
    """Problems of the rows that `manifest` lists in folder `root`: schemas, ids, joins, norms, evidence, pictures."""
    return _Tables(root, manifest).check()


def _check_files(root: Path, manifest: Manifest) -> Iterator[Problem]:
    for name, entry in sorted(manifest.files.items()):
        try:
            path = inside(root, name)
        except RhumbError as error:
            yield Problem(name, str(error))
            continue
        if not path.is_file():
            yield Problem(name, "missing")
        elif path.stat().st_size != entry.bytes:
            yield Problem(name, f"{path.stat().st_size} bytes instead of {entry.bytes}: truncated or overwritten")
        elif sha256_of(path) != entry.sha256:
            yield Problem(name, "bytes changed: its sha256 is not the recorded one")
    for base, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not (Path(base) == root and f == STAGING))
        for name in sorted(names + [f for f in folders if (Path(base) / f).is_symlink()]):
            relative = (Path(base) / name).relative_to(root).as_posix()
            if relative not in manifest.files and relative not in (MANIFEST, LOCK):
                yield Problem(relative, "not listed in the manifest")


class _Tables:
    """Rows of all shards, checked one by one and against each other."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root, self.manifest = root, manifest
        self.home: dict[str, dict[str, str]] = {table: {} for table in TABLES}  # id -> shard
        self.masks: dict[str, tuple[str, str]] = {}  # region id -> (image id, region)
        self.joins: list[tuple[str, dict[str, Any]]] = []
        self.problems: list[Problem] = []
        self._seen: set[tuple[str, str]] = set()

    def check(self) -> list[Problem]:
        """All problems of the tables, shard by shard, then of what joins them."""
        for table in TABLES:
            for path in self.manifest.shards(table):
                try:
                    self._check_shard(table, path)
                except (RhumbError, OSError, pa.ArrowException) as error:
                    self.problems.append(Problem(path, str(error)[:400]))
        for path, row in self.joins:
            self._check_joins(path, row)
        return self.problems

    def _check_shard(self, table: str, path: str) -> None:
        provenance = self.manifest.provenance
        schema = table_schema(table, provenance.shapes, provenance.effect_shape)
        with pq.ParquetFile(inside(self.root, path), page_checksum_verification=True) as file:
            if not file.schema_arrow.equals(schema, check_metadata=True):
                self.problems.append(Problem(path, "columns or types differ from the schema"))
                return
            if file.metadata.num_rows != self.manifest.files[path].rows:
                self.problems.append(Problem(path, f"{file.metadata.num_rows} rows, not those of the manifest"))
            for group in range(file.metadata.num_row_groups):
                self._check_rows(table, path, file.read_row_group(group))

    def _check_rows(self, table: str, path: str, rows: pa.Table) -> None:
        fixed = [f.name for f in rows.schema if pa.types.is_fixed_size_list(f.type)]
        for row in rows.drop_columns(fixed).to_pylist():
            key = row[_KEYS[table]]
            self._try(path, lambda key=key: check_id(key, _KEYS[table]))
            former = self.home[table].setdefault(key, path)
            if former != path or (table, key) in self._seen:
                self.problems.append(Problem(path, f"{_KEYS[table]} {key} is also in {former}"))
            self._seen.add((table, key))
            for column in _PICTURES[table]:
                self._try(path, lambda row=row, c=column: decode_png((row[c] or {}).get("bytes") or b"", c))
            self._note(table, path, row)
        if table == "directions":
            self._check_vectors(path, rows)
        elif table == "images" and not np.isfinite(vectors_of(rows.column("latent"), "latent")).all():
            self.problems.append(Problem(path, "latent: NaN or infinity"))

    def _try(self, path: str, check: Any) -> None:
        try:
            check()
        except RhumbError as error:
            self.problems.append(Problem(path, str(error)))

    def _note(self, table: str, path: str, row: dict[str, Any]) -> None:
        if table == "regions":
            self.masks[row["region_id"]] = (row["image_id"], row["region"])
            self.joins.append((path, {"id": row["region_id"], "image_id": row["image_id"]}))
        elif table == "directions":
            self._try(path, lambda: check_evidence(row, f"direction {row['direction_id']}"))
            join = {name: row[name] for name in ("image_id", "region_id", "region", "parents", "kind", "model")}
            self.joins.append((path, {"id": row["direction_id"], **join}))

    def _check_vectors(self, path: str, rows: pa.Table) -> None:
        columns = {"effect_vector": rows}
        for space in self.manifest.provenance.spaces:
            name = vector_column(space)
            own = pc.equal(rows.column("space"), space)
            columns[name] = rows.filter(own)
            if columns[name].num_rows != rows.num_rows - rows.column(name).null_count:
                self.problems.append(Problem(path, f"{name}: not exactly in the rows of space {space}"))
                return
        if not set(rows.column("space").to_pylist()) <= set(self.manifest.provenance.spaces):
            self.problems.append(Problem(path, "space: a name the manifest does not know"))
        for name, part in columns.items():
            values = vectors_of(part.column(name), name).astype(np.float64)
            norms = np.linalg.norm(values, axis=1)
            for i in np.flatnonzero(~(np.abs(norms - 1.0) <= NORM_TOLERANCE)).tolist():
                key = part.column("direction_id")[i].as_py()
                self.problems.append(Problem(path, f"direction {key}: {name} has norm {norms[i]:.6g}, not 1"))

    def _check_joins(self, path: str, row: Mapping[str, Any]) -> None:
        def note(text: str) -> None:
            self.problems.append(Problem(path, f"{row['id']}: {text}"))

        if row["image_id"] not in self.home["images"]:
            note(f"image {row['image_id']} is not in the catalog")
        if "kind" not in row:
            return
        if row["model"] != self.manifest.provenance.model["fingerprint"]:
            note("model is not that of the manifest")
        if row["region_id"] is None and row["kind"] != "joint":
            note("region_id is missing")
        if row["region_id"] is not None and self.masks.get(row["region_id"]) != (row["image_id"], row["region"]):
            note(f"region {row['region_id']} is not in the catalog as {row['region']} of its image")
        for parent in row["parents"]:
            if parent not in self.home["directions"]:
                note(f"parent {parent} is not in the catalog")


def _check_indexes(root: Path, manifest: Manifest) -> Iterator[Problem]:
    with Catalog(root, manifest) as catalog:
        for name, entry in sorted(manifest.indexes.items()):
            ids = indexed_ids(catalog, name)
            try:
                index = DirectionIndex(catalog, name)
                wanted = search_vectors(catalog, name, ids, entry.sketch)
                if not np.allclose(index.vectors, wanted, atol=1e-4):
                    yield Problem(entry.faiss, "search vectors are not those of the stored directions")
            except RhumbError as error:
                yield Problem(entry.faiss, str(error))
                continue
            try:
                listed = pq.read_table(inside(root, entry.ids), partitioning=None)
                expected = [{"faiss_id": faiss_id(key), "direction_id": key} for key in ids]
                if not listed.schema.equals(IDS_SCHEMA) or listed.to_pylist() != expected:
                    yield Problem(entry.ids, "the id list is not the sorted ids of the directions")
            except (RhumbError, OSError, ValueError, pa.ArrowException) as error:
                yield Problem(entry.ids, str(error)[:400])
