"""FAISS indexes of a catalog: by vector (per space) and by effect, joined to directions by id, searched sign-blind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.fs import inside, sha256_of
from catalog.manifest import IndexEntry, SketchSpec
from catalog.reader import Catalog
from catalog.sketch import sketch, spec_for
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError

IDS_SCHEMA = pa.schema(
    [pa.field("faiss_id", pa.int64(), nullable=False), pa.field("direction_id", pa.string(), nullable=False)]
)
_BLOCK = 1024
_REBUILD = "Run `rhumb index` on the catalog"


def faiss_id(direction_id: str) -> int:
    """The 63-bit number that stands for a direction in an index: from its id, whatever its row."""
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


def _id_list(ids: list[str]) -> pa.Table:
    numbers = [faiss_id(key) for key in ids]
    if len(set(numbers)) != len(numbers):
        raise CatalogError("index", "two directions with the same first 63 bits of their ids", "distinct ones")
    return pa.table([pa.array(numbers, pa.int64()), pa.array(ids, pa.string())], schema=IDS_SCHEMA)


def build_indexes(folder: str | Path, seed: int = 0) -> dict[str, int]:
    """Build and commit the indexes of a catalog; returns entries per index.

    The result depends on the directions and `seed` alone, not on the order of commits. Cost: reads every vector
    once; 4 KB of memory per direction and index. Raises ConflictError while another writer is at work.
    """
    with CatalogWriter.open(folder) as writer, Catalog(writer.folder, writer.manifest) as catalog:
        sizes = {name: int(np.prod(shape)) for name, shape in catalog.manifest.provenance.shapes.items()}
        sizes["effect"] = int(np.prod(catalog.manifest.provenance.effect_shape))
        built = {}
        for name, size in sizes.items():
            ids = indexed_ids(catalog, name)
            spec = spec_for(size, seed)
            index = faiss.IndexIDMap2(faiss.IndexFlatIP(spec.dimension))
            table = _id_list(ids)
            if ids:
                index.add_with_ids(search_vectors(catalog, name, ids, spec), table.column("faiss_id").to_numpy())
            built[name] = (faiss.serialize_index(index).tobytes(), table, spec)
        writer.replace_indexes(built)
        return {name: table.num_rows for name, (_, table, _) in built.items()}


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
        paths = [inside(catalog.folder, path) for path in (entry.faiss, entry.ids)]
        for path, listed in zip(paths, (entry.faiss, entry.ids), strict=True):
            # checked before FAISS parses it: its reader trusts the lengths that a file states
            if not path.is_file() or sha256_of(path) != catalog.manifest.files[listed].sha256:
                raise CatalogError(str(path), "a missing or changed file", "the index as committed", _REBUILD)
        self.index = faiss.read_index(str(paths[0]))
        table = pq.read_table(paths[1], schema=IDS_SCHEMA, partitioning=None)
        self._direction_of = dict(
            zip(table.column("faiss_id").to_pylist(), table.column("direction_id").to_pylist(), strict=True)
        )
        if self.index.ntotal != entry.rows or len(self._direction_of) != entry.rows or self.index.d != self.dimension:
            raise CatalogError(f"index {name}", f"{self.index.ntotal} entries", f"{entry.rows}", _REBUILD)

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
