"""A small pack in pack layout, and a hub over its folder that counts what is asked of it and fails on demand."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from catalog import manifest as manifests
from catalog.concept_building import build_concepts
from catalog.hub.contract import Draft, Hub, PackSummary, Progress, Snapshot
from catalog.hub.names import PackName, Version
from catalog.hub.parts import part_name
from catalog.index import build_indexes
from catalog.manifest import ChunkEntry, FileEntry, Manifest, PackInfo
from catalog.pictures import encode_png
from catalog.reader import Catalog
from catalog.records import Chunk
from catalog.schema import parquet_settings
from catalog.store import StoreError
from catalog.transaction import Transaction
from catalog.writer import CatalogWriter, stage_read_back
from pipeline.errors import NotFoundError
from tests.catalog.samples import chunk_of, provenance

REGIONS = ("mouth", "hair", "left eye", "right eye", "nose", "brow")
SETS = ("random", "Other Set")
NAME = PackName("nowhere", "org", "pack", "1.0.0")


def chunks_of_pack(images: int = 6, regions: tuple[str, ...] = REGIONS) -> list[Chunk]:
    """Chunks of two images, in turn of two data sets. First local x directions of a region are alike everywhere."""
    chunks = []
    for number in range(images // 2):
        chunk, dataset = chunk_of(f"chunk-{number}", 2, regions), SETS[number % 2]
        directions = []
        for d in chunk.directions:
            vector, effect = d.vector, d.effect
            if (d.kind, d.rank) == ("local", 0):
                generator = np.random.default_rng(REGIONS.index(d.region))
                pattern, change = generator.standard_normal((2, *d.vector.shape))
                vector, effect = (_near(one, own) for one, own in ((pattern, vector), (change, effect)))
            directions.append(dataclasses.replace(d, dataset=dataset, vector=vector, effect=effect))
        records = tuple(dataclasses.replace(image, dataset=dataset) for image in chunk.images)
        chunks.append(Chunk(chunk.chunk_id, records, chunk.regions, tuple(directions)))
    return chunks


def _near(pattern: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """float32 unit tensor in the shape of `noise`, near to a pattern."""
    near = pattern.reshape(noise.shape) / np.linalg.norm(pattern) + 0.3 * noise
    return np.asarray(near / np.linalg.norm(near), dtype=np.float32)


def write_pack(folder: Path, chunks: Sequence[Chunk], arranged: bool = True, searchable: bool = True) -> Path:
    """The pack `org/pack` of some chunks, `arranged` in pack layout, with a picture; `searchable`: with concepts."""
    with CatalogWriter.create(folder, provenance()) as writer:
        for chunk in chunks:
            writer.commit(chunk)
        if arranged:
            with Catalog(folder, writer.manifest) as catalog, writer.transaction() as transaction:
                moved, gone = _arranged(transaction, catalog)
                writer.finish(transaction, writer.manifest, {"chunks": moved}, gone)
        writer.add_picture("sheet", encode_png(np.zeros((2, 2, 3), np.uint8)))
    if searchable:
        build_indexes(folder)
        with CatalogWriter.open(folder) as writer, Catalog(folder, writer.manifest) as catalog:
            writer.replace_concepts(build_concepts(catalog))
    manifest = manifests.load(folder)
    pack = PackInfo(repository="org/pack", version="1.0.0")
    write_manifest(folder, manifest.model_copy(update={"pack": pack}))
    for private in (".versions", ".staging", ".cache"):
        shutil.rmtree(folder / private, ignore_errors=True)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for locks, by name."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest in place, whatever it says."""
    (folder / "manifest.json").write_bytes(manifests.dump(manifest))


def _arranged(transaction: Transaction, catalog: Catalog) -> tuple[dict[str, ChunkEntry], list[str]]:
    """Stage the directions by data set and region, and give every chunk all of these shards; with the former ones."""
    former = catalog.manifest.shards("directions")
    rows, places = catalog.whole_shards("directions", former), []
    settings = parquet_settings("directions", rows.schema, catalog.layout)
    for dataset in SETS:
        for region in sorted(set(rows.column("region").to_pylist())):
            pairs = zip(rows.column("dataset").to_pylist(), rows.column("region").to_pylist(), strict=True)
            own = rows.filter(np.array([pair == (dataset, region) for pair in pairs]))
            if own.num_rows:
                name = f"directions/{part_name(dataset, region)}-{{digest}}.parquet"
                places.append(stage_read_back(transaction, name, own, settings))
    shards = tuple(sorted(places))
    chunks = {
        name: entry.model_copy(update={"shards": {**entry.shards, "directions": shards}})
        for name, entry in catalog.manifest.chunks.items()
    }
    return chunks, former


class FolderSnapshot(Snapshot):
    """A pack in a folder. `asked` counts bytes by "manifest", "fetch" and "read"; `before` may raise."""

    def __init__(self, folder: Path, place: str = "nowhere/org/pack@1.0.0") -> None:
        self.folder, self.place = folder, place
        self.asked: Counter[str] = Counter()
        self._counting = threading.Lock()
        self.read_spans: list[tuple[str, int, int]] = []
        self.before: Callable[[str], None] = lambda what: None

    @property
    def revision(self) -> str:  # type: ignore[override]
        return hashlib.sha256((self.folder / "manifest.json").read_bytes()).hexdigest()[:40]

    @property
    def bytes(self) -> int:
        """Of what was asked for, but for the manifest."""
        return self.asked["fetch"] + self.asked["read"]

    def manifest(self, anew: bool = False) -> bytes:
        self.before("manifest")
        return (self.folder / "manifest.json").read_bytes()

    def fetch(self, name: str, entry: FileEntry, target: Path, anew: bool = False) -> None:
        assert not target.exists()
        self.before(f"fetch {name} {anew}")
        shutil.copyfile(self._at(name), target)
        with self._counting:
            self.asked["fetch"] += target.stat().st_size

    def read(self, name: str, entry: FileEntry, start: int, size: int) -> bytes:
        self.before(f"read {name}")
        data = self._at(name).read_bytes()[start : start + size]
        with self._counting:
            self.asked["read"] += len(data)
        self.read_spans.append((name, start, size))
        return data

    def _at(self, name: str) -> Path:
        if not (self.folder / name).is_file():
            raise NotFoundError(name, "missing", "a file")
        return self.folder / name


class FolderHub(Hub):
    """A hub with one version of `org/pack`."""

    place = "nowhere"

    def __init__(self, folder: Path, version: str = "1.0.0") -> None:
        self.own, self._version = FolderSnapshot(folder), Version.parse(version)

    def versions(self, repository: str) -> dict[Version, str]:
        self.own.before("versions")
        return {self._version: self.own.revision}

    def snapshot(self, repository: str, version: Version, revision: str) -> Snapshot:
        return self.own

    def publish(self, draft: Draft, progress: Progress) -> str:
        raise NotImplementedError

    def find(self, words: Sequence[str]) -> Iterator[PackSummary]:
        raise NotImplementedError


class Fails:
    """Raises at every call from number `first` on, `times` times; counts the calls."""

    def __init__(self, first: int, times: int = 1, error: Exception | None = None) -> None:
        self.first, self.times, self.count = first, times, 0
        self.error = error or StoreError("store", "a cut connection", "an answer")

    def __call__(self, *what: object) -> None:
        self.count += 1
        if self.first <= self.count < self.first + self.times:
            raise self.error
