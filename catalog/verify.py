"""Verification: every byte, every rule and every join of a catalog, each problem with the file it is in."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog import manifest as manifests
from catalog.concept_checks import concept_problems
from catalog.fs import LOCK, MANIFEST, PRIVATE, footer_sha256, inside, sha256_of
from catalog.hub.parts import part_name, part_of
from catalog.index import DirectionIndex, check_codes
from catalog.manifest import FileEntry, Manifest
from catalog.meanwhile import replaced, unexplained
from catalog.mirror import opened, present, store_of
from catalog.reader import Catalog
from catalog.rules import Frame, check_direction, check_id, check_image, check_region, stored_picture
from catalog.schema import KEYS, TABLES, light_columns, table_schema
from catalog.shards import Shard, differing, open_shard
from catalog.store import LocalStore
from catalog.tables import decoded, effects_of, values_of
from pipeline.errors import CatalogError, NotFoundError, RhumbError

DAMAGE = (RhumbError, ArithmeticError, LookupError, MemoryError, OSError, TypeError, ValueError, pa.ArrowException)
"""What reading hostile bytes may raise: in a report it is a problem, never a traceback."""
_LISTED = 100  # problems of one file
_ID_DIGITS = 32
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
    twice, and again where a commit did away with some meanwhile. Files that are damaged are not read further, so one
    flipped byte gives one problem.
    """
    while True:
        root = opened(folder)
        try:
            manifest = manifests.load(root)
        except NotFoundError:
            raise
        except DAMAGE as error:
            return VerifyReport(str(folder), 0, 0, 0, {}, (Problem(MANIFEST, _told(error)),))
        report = verify_version(root, manifest)
        if report.ok or not replaced(root, manifest):
            return replace(report, folder=str(folder))


def verify_version(root: Path, manifest: Manifest) -> VerifyReport:
    """`verify` for one version of the catalog in folder `root`, which need not be the one that stands any more."""
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
            wrong = _wrong_with(present(root, name, entry, anew=True), entry)
        except DAMAGE as error:
            wrong = _told(error)
        if wrong is not None:
            yield Problem(name, wrong)
    store = store_of(root)
    names = _names_in(root) if isinstance(store, LocalStore) else store.list()
    own = manifest.files.keys() | {MANIFEST, LOCK}
    if others := [name for name in names if name not in own and name.split("/")[0] not in PRIVATE]:
        try:
            yield from [Problem(name, "not listed in the manifest") for name in unexplained(root, others)]
        except DAMAGE as error:
            yield Problem(others[0], _told(error))


def _names_in(root: Path) -> Iterator[str]:
    """All files of a folder, and links, but for those of its private folders."""
    for base, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not (Path(base) == root and f in PRIVATE))
        for name in sorted(names + [f for f in folders if (Path(base) / f).is_symlink()]):
            yield (Path(base) / name).relative_to(root).as_posix()


def _wrong_with(path: Path, entry: FileEntry) -> str | None:
    """What of a file is not as the manifest says, if anything."""
    if not path.is_file():
        return "missing"
    if path.stat().st_size != entry.bytes:
        return f"{path.stat().st_size} bytes instead of {entry.bytes}: truncated or overwritten"
    if sha256_of(path) != entry.sha256:
        return "bytes changed: its sha256 is not the recorded one"
    if entry.footer is not None and footer_sha256(path) != entry.footer:
        return "its footer is not the recorded one"
    return None


class _Tables:
    """Rows of all shards, checked one by one and against each other. Memory: some 40 bytes a row, 100 a region."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root, self.manifest, self.layout = root, manifest, manifest.layout
        model = manifest.provenance.model["fingerprint"]
        self.frame = Frame(model, self.layout.spaces, self.layout.effect_shape)
        self._pictures = {t: [n for n in names if n not in self.layout.left_out] for t, names in _PICTURES.items()}
        self.ids: dict[str, np.ndarray] = {}  # (n,) "S32", sorted, by table
        self.problems: list[Problem] = []
        self._noted: Counter[str] = Counter()
        self._all_read = True

    def check(self) -> list[Problem]:
        """All problems of the tables: shard by shard, then, where every row could be read, of what joins them."""
        for table in ("images", "regions", "directions"):  # the size of an image is that of masks and previews
            found = [self._ids_of(table, path) for path in self.manifest.shards(table)]
            self._check_unique(table, found)
        if self._all_read:
            try:
                self._check_joins()
            except DAMAGE as error:
                self._note(MANIFEST, _told(error))
        return self.problems

    def _note(self, path: str, what: str) -> None:
        self._noted[path] += 1
        if self._noted[path] <= _LISTED:
            self.problems.append(Problem(path, what[:400]))
        elif self._noted[path] == _LISTED + 1:
            self.problems.append(Problem(path, f"more than {_LISTED} problems; the others are not listed"))

    def _try(self, path: str, at: str, check: Callable[[], object]) -> None:
        try:
            check()
        except DAMAGE as error:
            self._note(path, str(error) if isinstance(error, RhumbError) else f"{at}: {_told(error)}")

    def _ids_of(self, table: str, path: str) -> np.ndarray:
        """(n,) "S32": the ids of a shard, whose rows are checked one by one."""
        ids: list[str] = []
        try:
            with open_shard(inside(self.root, path), self.manifest.files[path]) as file:
                schema = table_schema(table, self.layout)
                if not file.schema_arrow.equals(schema, check_metadata=True):
                    odd = differing(file.schema_arrow, schema)
                    raise CatalogError(f"{path}: {odd}", "columns or types differ from the schema", "the schema's")
                file.check_pages()
                for group in range(len(file.footer.groups)):
                    ids += self._check_group(table, path, file, group)
        except DAMAGE as error:
            self._all_read = False
            self._note(path, _told(error))
        return np.array(ids, dtype="S32")

    def _check_group(self, table: str, path: str, file: Shard, group: int) -> list[str]:
        """The ids of a row group; none where it is damaged, which says nothing of the groups after it."""
        try:
            return self._check_rows(table, path, file.read_row_group(group))
        except DAMAGE as error:
            self._all_read = False
            self._note(path, f"from row {group * file.group_size}: {_told(error)}")
            return []

    def _check_rows(self, table: str, path: str, rows: pa.Table) -> list[str]:
        """The ids of some rows, after a check of each."""
        ids, what = [], table[:-1]
        names = [*light_columns(rows.schema), *self._pictures[table]]
        for row in rows.select(names).to_pylist():
            key = row[KEYS[table]]
            self._try(path, f"{what} {key!r}"[:60], partial(self._check_row, table, row))
            if isinstance(key, str) and key.isascii() and len(key) == _ID_DIGITS:
                ids.append(key)
        if table == "directions":
            self._try(path, "name", partial(_check_name, path, rows))
            self._try(path, "vectors", partial(self._check_vectors, path, rows))
        elif "latent" in rows.column_names:
            self._try(path, "latent", partial(_check_latents, rows))
        return ids

    def _check_row(self, table: str, row: Mapping[str, Any]) -> None:
        at = f"{table[:-1]} {check_id(row[KEYS[table]], KEYS[table])}"
        pictures = {name: stored_picture(row[name], f"{at}: {name}") for name in self._pictures[table]}
        if table == "directions":
            check_direction(row, pictures, self.frame)
        elif table == "regions":
            check_region(row, pictures.get("mask"), self.frame)
        else:
            check_image(row, pictures.get("image"), self.frame)
        self._learn_size(pictures)

    def _learn_size(self, pictures: Mapping[str, np.ndarray]) -> None:
        """The size of all images: that of the first, or where images are left out of a mask, or of a preview."""
        for name, wide in (("image", 1), ("mask", 1), ("preview", 3)):
            if self.frame.size is None and name in pictures:
                height, width = pictures[name].shape[:2]
                self.frame = replace(self.frame, size=(height, width // wide))

    def _check_vectors(self, path: str, rows: pa.Table) -> None:
        self._check_unit(path, rows, lambda part: effects_of(part, "effect"))
        for space in self.layout.spaces:
            own = rows.filter(pc.equal(rows.column("space"), space))
            for field in self.layout.vector_fields(space):
                if own.num_rows != rows.num_rows - rows.column(field.name).null_count:
                    self._note(path, f"{field.name}: not exactly in the rows of space {space}")
                    return
            self._check_unit(path, own, partial(decoded, layout=self.layout, space=space, name="vector"))

    def _check_unit(self, path: str, rows: pa.Table, read: Callable[[pa.Table], np.ndarray]) -> None:
        """Note the rows whose vectors cannot be read, one by one where not all together can."""
        try:
            read(rows)
        except DAMAGE:
            for i in range(rows.num_rows):
                try:
                    read(rows.slice(i, 1))
                except DAMAGE as error:
                    self._note(path, f"direction {rows.column('direction_id')[i].as_py()}: {_told(error)}")

    def _check_unique(self, table: str, found: list[np.ndarray]) -> None:
        """Sort the ids of a table, and note those that it has twice."""
        shards = self.manifest.shards(table)
        starts = np.cumsum([0, *(len(ids) for ids in found)])
        ids = np.concatenate([np.zeros(0, "S32"), *found])
        order = np.argsort(ids, kind="stable")
        self.ids[table] = ids[order]
        for at in np.flatnonzero(self.ids[table][1:] == self.ids[table][:-1]):
            first, again = (shards[int(np.searchsorted(starts, order[i], "right")) - 1] for i in (at, at + 1))
            self._note(again, f"{KEYS[table]} {self.ids[table][at].decode()} is also in {first}")

    # -- joins -----------------------------------------------------------------------------------------------------

    def _columns(self, table: str, *names: str) -> Iterator[tuple[str, dict[str, list[Any]]]]:
        """(shard, values by column) of every shard of a table."""
        for path in self.manifest.shards(table):
            with open_shard(inside(self.root, path), self.manifest.files[path]) as file:
                yield path, file.read(list(names)).to_pydict()

    def _check_joins(self) -> None:
        numbers: dict[str, int] = {}  # of the names of regions
        ids, images, regions = [np.zeros(0, "S32")], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for path, own in self._columns("regions", "region_id", "image_id", "region"):
            ids.append(np.array(own["region_id"], "S32"))
            images.append(self._images_of(path, own["region_id"], own["image_id"]))
            regions.append(np.array([numbers.setdefault(name, len(numbers)) for name in own["region"]], np.int64))
        self._check_pairs(np.concatenate(images), np.concatenate(regions), len(numbers))
        order = np.argsort(np.concatenate(ids), kind="stable")
        image, region = np.concatenate(images)[order], np.concatenate(regions)[order]
        joined = ("direction_id", "image_id", "region_id", "region", "kind", "parents")
        for path, own in self._columns("directions", *joined):
            keys, place = own["direction_id"], _rows_of(own["region_id"], self.ids["regions"])
            found = self._images_of(path, keys, own["image_id"])
            for i, (key, region_id, name) in enumerate(zip(keys, own["region_id"], own["region"], strict=True)):
                if region_id is None:
                    if own["kind"][i] != "joint":
                        self._note(path, f"{key}: region_id is missing")
                elif place[i] < 0 or image[place[i]] != found[i] or region[place[i]] != numbers.get(name, -1):
                    self._note(path, f"{key}: region {region_id} is not in the catalog as {name} of its image")
            if self.manifest.part is not None:
                continue
            pairs_of = [(key, parent) for key, parents in zip(keys, own["parents"], strict=True) for parent in parents]
            for at in np.flatnonzero(_rows_of([parent for _, parent in pairs_of], self.ids["directions"]) < 0):
                self._note(path, f"{pairs_of[at][0]}: parent {pairs_of[at][1]} is not in the catalog")

    def _check_pairs(self, image: np.ndarray, region: np.ndarray, names: int) -> None:
        """Note images (places, (n,)) that have two masks of one region (numbers, (n,))."""
        pairs = np.sort(image[image >= 0] * names + region[image >= 0])
        for pair in np.unique(pairs[1:][pairs[1:] == pairs[:-1]]):
            key = self.ids["images"][pair // names].decode()
            self._note(self.manifest.shards("regions")[-1], f"image {key} has two masks of one region")

    def _images_of(self, path: str, keys: list[str], images: list[str]) -> np.ndarray:
        """(n,) int64: where the image of each row stands among the catalog's, -1 where it does not."""
        found = _rows_of(images, self.ids["images"])
        for i in np.flatnonzero(found < 0):
            self._note(path, f"{keys[i]}: image {images[i]} is not in the catalog")
        return found


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, RhumbError) else f"unreadable ({type(error).__name__}: {str(error)[:200]})"


def _check_name(path: str, rows: pa.Table) -> None:
    """Raise CatalogError where the name of a shard of directions says another data set or region than its rows."""
    said = part_of(path)
    if said is None:
        return
    for pair in rows.select(["dataset", "region"]).group_by(["dataset", "region"]).aggregate([]).to_pylist():
        if part_name(pair["dataset"], pair["region"]) != said:
            found = f"rows of {pair['region']} of {pair['dataset']}"
            raise CatalogError(path, found[:200], "those that its name says", "Have it published anew")


def _check_latents(rows: pa.Table) -> None:
    finite = np.isfinite(values_of(rows.column("latent"), "latent")).all(axis=1)
    if not finite.all():
        key = rows.column("image_id")[int(finite.argmin())].as_py()
        raise CatalogError(f"image {key}: latent", "NaN or infinity", "finite values")


def _rows_of(keys: Sequence[str | None], known: np.ndarray) -> np.ndarray:
    """(n,) int64: the place of each key among sorted ids (m,) "S32", -1 for those that are not there."""
    wanted = np.array([(key or "").encode(errors="replace")[: _ID_DIGITS + 1] for key in keys], dtype="S33")
    if not len(known):
        return np.full(len(keys), -1)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, at, -1)


def _check_indexes(root: Path, manifest: Manifest) -> Iterator[Problem]:
    with Catalog(root, manifest) as catalog:
        for name, entry in sorted(manifest.indexes.items()):
            try:
                DirectionIndex(catalog, name)
                yield from (Problem(file, what) for file, what in check_codes(catalog, name))
            except DAMAGE as error:
                named = [path for path in entry.files if path in str(error)]
                yield Problem((named or sorted(entry.files) or [MANIFEST])[0], _told(error))


def _check_concepts(root: Path, manifest: Manifest) -> Iterator[Problem]:
    """Problems of the concepts, which may be those of a former version: their rows, and what they refer to."""
    if manifest.concepts is None:
        return
    with Catalog(root, manifest) as catalog:
        try:
            yield from (Problem(file, what) for file, what in concept_problems(catalog))
        except DAMAGE as error:
            named = [path for path in manifest.concepts.paths if path in str(error)]
            yield Problem((named or [*manifest.concepts.paths, MANIFEST])[0], _told(error))
