"""FAISS indexes of a catalog: by vector (per space) and by effect, joined to directions by id, searched sign-blind.

An index file is data from elsewhere: FAISS's own reader believes the sizes and types that a file states, so it never
sees one. There is one kind of index, whose bytes are fixed but for its vectors; these are read as plain numbers.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.fs import inside, sha256_of
from catalog.manifest import IndexEntry, SketchSpec
from catalog.reader import Catalog
from catalog.sketch import sketch, spec_for
from catalog.tables import check_id
from catalog.writer import CatalogWriter, SearchIndex
from pipeline.errors import CatalogError

IDS_SCHEMA = pa.schema(
    [pa.field("faiss_id", pa.int64(), nullable=False), pa.field("direction_id", pa.string(), nullable=False)]
)
_BLOCK = 1024
_REBUILD = "Run `rhumb index` on the catalog"


def faiss_id(direction_id: str) -> int:
    """The 63-bit number that stands for a direction in an index: from its id, whatever its row. Raises CatalogError."""
    check_id(direction_id, "direction_id")
    return int(direction_id[:16], 16) >> 1


def indexed_ids(catalog: Catalog, name: str) -> list[str]:
    """Direction ids that belong in index `name` ("x", "h" or "effect"), sorted."""
    table = catalog.directions() if name == "effect" else catalog.directions(space=name)
    return [str(key) for key in table.column("direction_id").to_pylist()]


def search_vectors(catalog: Catalog, name: str, ids: Sequence[str], spec: SketchSpec) -> np.ndarray:
    """(n, spec.dimension) float32 search vectors of directions, in the order of `ids`."""
    out = np.empty((len(ids), spec.dimension), dtype=np.float32)
    for start in range(0, len(ids), _BLOCK):
        part = ids[start : start + _BLOCK]
        stored = catalog.effects(part) if name == "effect" else catalog.vectors(part, name)
        out[start : start + _BLOCK] = sketch(stored, spec)
    return out


def _numbers(ids: Sequence[str]) -> np.ndarray:
    """(n,) int64 FAISS ids. Raises CatalogError where two are the same."""
    numbers = np.array([faiss_id(key) for key in ids], dtype=np.int64)
    if len(np.unique(numbers)) != len(numbers):
        raise CatalogError("index", "two directions with the same first 63 bits of their ids", "distinct ones")
    return numbers


def _flat_index(vectors: np.ndarray, numbers: np.ndarray) -> faiss.Index:
    """The one kind of index there is: flat inner product of (n, D) float32 vectors, with explicit ids (n,) int64."""
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
    if len(vectors):
        index.add_with_ids(np.ascontiguousarray(vectors, dtype=np.float32), numbers)
    return index


def _head(rows: int, dimension: int) -> bytes:
    """What FAISS writes before the vectors of such an index: two headers, and the number of floats that follow."""
    header = struct.pack("<iqqq?i", dimension, rows, 2**20, 2**20, True, faiss.METRIC_INNER_PRODUCT)
    return b"IxM2" + header + b"IxFI" + header + struct.pack("<Q", rows * dimension)


def read_vectors(path: Path, numbers: np.ndarray, dimension: int) -> np.ndarray:
    """(n, dimension) float32 vectors of an index file whose ids must be `numbers`, in their order.

    Raises CatalogError: any byte but those of the vectors is not as `build_index` writes it, or a vector is not finite.
    """
    rows = len(numbers)
    head, tail = _head(rows, dimension), struct.pack("<Q", rows) + numbers.astype("<i8").tobytes()
    size = len(head) + 4 * rows * dimension + len(tail)
    found = path.stat().st_size
    if found != size:
        raise CatalogError(str(path), f"{found} bytes", f"{size}, of {rows} vectors of {dimension}", _REBUILD)
    data = path.read_bytes()
    if not (data.startswith(head) and data.endswith(tail)):
        raise CatalogError(str(path), "another kind of index or other ids", "a flat one of these directions", _REBUILD)
    vectors = np.frombuffer(data, "<f4", rows * dimension, len(head)).reshape(rows, dimension)
    if not np.isfinite(vectors).all():
        raise CatalogError(str(path), "NaN or infinity", "finite search vectors", _REBUILD)
    return vectors


def build_index(catalog: Catalog, name: str, seed: int = 0) -> SearchIndex:
    """Index `name` ("x", "h" or "effect") of a catalog: from its directions and `seed` alone, whatever the order of
    commits. Cost: reads every vector once; 4 KB of memory per direction.
    """
    ids, spec = indexed_ids(catalog, name), spec_for(_entries(catalog, name), seed)
    numbers = _numbers(ids)
    index = _flat_index(search_vectors(catalog, name, ids, spec), numbers)
    listed = io.BytesIO()
    table = pa.table([pa.array(numbers), pa.array(ids, pa.string())], schema=IDS_SCHEMA)
    pq.write_table(table, listed, compression="zstd")
    return SearchIndex(faiss.serialize_index(index).tobytes(), listed.getvalue(), len(ids), spec)


def _entries(catalog: Catalog, name: str) -> int:
    provenance = catalog.manifest.provenance
    return prod(provenance.effect_shape if name == "effect" else provenance.shapes[name])


def build_indexes(folder: str | Path, seed: int = 0) -> dict[str, int]:
    """Build and commit all indexes of a catalog; returns entries per index. See `build_index`.

    Raises ConflictError while another writer is at work.
    """
    with CatalogWriter.open(folder) as writer, Catalog(writer.folder, writer.manifest) as catalog:
        names = [*catalog.manifest.provenance.spaces, "effect"]
        built = {name: build_index(catalog, name, seed) for name in names}
        writer.replace_indexes(built)
        return {name: index.rows for name, index in built.items()}


class DirectionIndex:
    """One search index of a catalog, checked to belong to the version that is open."""

    def __init__(self, catalog: Catalog, name: str) -> None:
        """Raises CatalogError: no index yet, one built for other directions, or damaged files."""
        entry = catalog.manifest.indexes.get(name)  # type: ignore[call-overload]
        if entry is None:
            raise CatalogError(f"index {name}", "none in the catalog", "a search index", _REBUILD)
        self.entry: IndexEntry = entry
        if entry.directions_fingerprint != catalog.manifest.directions_fingerprint:
            raise CatalogError(f"index {name}", "one built before the last commit", "one of these directions", _REBUILD)
        wanted = spec_for(_entries(catalog, name), entry.sketch.seed)
        if entry.sketch != wanted:
            raise CatalogError(f"index {name}: sketch", entry.sketch, f"{wanted}", _REBUILD)
        path = inside(catalog.folder, entry.faiss)
        if not path.is_file() or sha256_of(path) != catalog.manifest.files[entry.faiss].sha256:
            raise CatalogError(str(path), "a missing or changed file", "the index as committed", _REBUILD)
        ids = indexed_ids(catalog, name)
        if entry.rows != len(ids):
            raise CatalogError(f"index {name}: rows", entry.rows, f"{len(ids)}, one per direction", _REBUILD)
        numbers = _numbers(ids)
        self.vectors = read_vectors(path, numbers, entry.sketch.dimension)
        self.index = _flat_index(self.vectors, numbers)
        self._direction_of = dict(zip(numbers.tolist(), ids, strict=True))

    @property
    def dimension(self) -> int:
        """Entries of a search vector."""
        return self.entry.sketch.dimension

    def search(self, vector: np.ndarray, k: int, among: Iterable[str] | None = None) -> list[tuple[str, float]]:
        """The k directions of largest |cos| between search vectors, with their signed cosine; ties by id.

        `vector` (D,) float32 as stored; `among` restricts the answer to these ids.
        """
        query = sketch(vector.reshape(1, -1), self.entry.sketch)
        limit = self.index.ntotal
        options = None
        if among is not None:
            chosen = np.array(sorted(faiss_id(key) for key in among), dtype=np.int64)
            limit = len(chosen)
            options = faiss.SearchParameters(sel=faiss.IDSelectorBatch(chosen))
        k = min(k, limit)
        if k < 1:
            return []
        best: dict[int, float] = {}
        for sign in (1.0, -1.0):
            scores, found = self.index.search(np.float32(sign) * query, k, params=options)
            for score, number in zip(scores[0].tolist(), found[0].tolist(), strict=True):
                if number >= 0 and abs(score) >= abs(best.get(number, 0.0)):
                    best[number] = sign * score
        named = [(self._direction_of[number], score) for number, score in best.items()]
        ranked = sorted(named, key=lambda pair: (-abs(pair[1]), pair[0]))
        return ranked[:k]
