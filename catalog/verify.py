"""Verification: every byte, every rule and every join of a catalog, each problem with the file it is in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog import manifest as manifests
from catalog.concepts import read_concepts, stored_table
from catalog.fs import LOCK, MANIFEST, PRIVATE, footer_sha256, inside, sha256_of
from catalog.index import DirectionIndex, check_codes
from catalog.manifest import Manifest
from catalog.pictures import decode_png
from catalog.reader import Catalog, open_shard
from catalog.schema import KEYS, TABLES, light_columns, table_schema
from catalog.tables import check_evidence, check_id, decoded, effects_of, values_of
from pipeline.errors import RhumbError

_PICTURES = {"directions": ("effect", "preview"), "images": ("image",), "regions": ("mask",)}


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
        problems += check_content(root, manifest)
    rows = {table: manifest.rows(table) for table in TABLES}
    size = sum(entry.bytes for entry in manifest.files.values())
    return VerifyReport(str(root), manifest.version, len(manifest.files), size, rows, tuple(problems))


def check_content(root: Path, manifest: Manifest) -> list[Problem]:
    """Problems of what `manifest` lists in folder `root`: schemas, ids, joins, norms, evidence, pictures; and, where
    there are none of these, of the search indexes and concepts.
    """
    return _Tables(root, manifest).check() or [*_check_indexes(root, manifest), *_check_concepts(root, manifest)]


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
        elif entry.footer is not None and footer_sha256(path) != entry.footer:
            yield Problem(name, "its footer is not the recorded one")
    for base, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not (Path(base) == root and f in PRIVATE))
        for name in sorted(names + [f for f in folders if (Path(base) / f).is_symlink()]):
            relative = (Path(base) / name).relative_to(root).as_posix()
            if relative not in manifest.files and relative not in (MANIFEST, LOCK):
                yield Problem(relative, "not listed in the manifest")


class _Tables:
    """Rows of all shards, checked one by one and against each other."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root, self.manifest, self.layout = root, manifest, manifest.layout
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
        schema = table_schema(table, self.layout)
        with open_shard(inside(self.root, path), self.manifest.files[path]) as file:
            if not file.schema_arrow.equals(schema, check_metadata=True):
                self.problems.append(Problem(path, "columns or types differ from the schema"))
                return
            groups = file.metadata.num_row_groups
            sizes = [file.metadata.row_group(group).num_rows for group in range(groups)]
            if any(size != sizes[0] for size in sizes[:-1]) or (sizes and not 0 < sizes[-1] <= sizes[0]):
                self.problems.append(Problem(path, "row groups of several sizes"))
                return
            for group in range(groups):
                self._check_rows(table, path, file.read_row_group(group))

    def _check_rows(self, table: str, path: str, rows: pa.Table) -> None:
        for row in rows.select([*light_columns(rows.schema), *_PICTURES[table]]).to_pylist():
            key = row[KEYS[table]]
            self._try(path, lambda key=key: check_id(key, KEYS[table]))
            former = self.home[table].setdefault(key, path)
            if former != path or (table, key) in self._seen:
                self.problems.append(Problem(path, f"{KEYS[table]} {key} is also in {former}"))
            self._seen.add((table, key))
            for column in _PICTURES[table]:
                self._try(path, lambda row=row, c=column: decode_png((row[c] or {}).get("bytes") or b"", c))
            self._note(table, path, row)
        if table == "directions":
            self._check_vectors(path, rows)
        elif table == "images" and not np.isfinite(values_of(rows.column("latent"), "latent")).all():
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
        if not set(rows.column("space").to_pylist()) <= set(self.layout.spaces):
            self.problems.append(Problem(path, "space: a name the manifest does not know"))
        self._check_unit(path, rows, lambda part: effects_of(part, "effect"))
        for space in self.layout.spaces:
            own = rows.filter(pc.equal(rows.column("space"), space))
            for field in self.layout.vector_fields(space):
                if own.num_rows != rows.num_rows - rows.column(field.name).null_count:
                    self.problems.append(Problem(path, f"{field.name}: not exactly in the rows of space {space}"))
                    return
            self._check_unit(path, own, partial(decoded, layout=self.layout, space=space, name="vector"))

    def _check_unit(self, path: str, rows: pa.Table, read: Callable[[pa.Table], np.ndarray]) -> None:
        """Note the rows whose vectors cannot be read, one by one where not all together can."""
        try:
            read(rows)
        except RhumbError:
            for i in range(rows.num_rows):
                key = rows.column("direction_id")[i].as_py()
                try:
                    read(rows.slice(i, 1))
                except RhumbError as error:
                    self.problems.append(Problem(path, f"direction {key}: {error}"))

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
            try:
                DirectionIndex(catalog, name)
                yield from (Problem(file, what) for file, what in check_codes(catalog, name))
            except RhumbError as error:
                named = [path for path in entry.files if path in str(error)]
                yield Problem((named or sorted(entry.files))[0], str(error))


def _check_concepts(root: Path, manifest: Manifest) -> Iterator[Problem]:
    """Problems of the concepts, which may be those of a former version: their rows, and what they refer to."""
    if manifest.concepts is None:
        return
    path = manifest.concepts.path
    with Catalog(root, manifest) as catalog:
        try:
            concepts = read_concepts(stored_table(catalog), catalog.layout.spaces, catalog.layout.effect_shape, path)
        except RhumbError as error:
            yield Problem(path, str(error))
            return
        for concept in concepts:
            at = f"concept {concept.concept_id}"
            for member in concept.members:
                if not catalog.holds(member):
                    yield Problem(path, f"{at}: member {member} is not in the catalog")
            if not catalog.holds(concept.image_id, "images"):
                yield Problem(path, f"{at}: image {concept.image_id} is not in the catalog")
            if concept.region_id is not None and not catalog.holds(concept.region_id, "regions"):
                yield Problem(path, f"{at}: region {concept.region_id} is not in the catalog")
            try:
                concept.pictures()
            except RhumbError as error:
                yield Problem(path, f"{at}: {error}")
