"""The one quantiser of an index: trained once on a sample, stored as plain arrays, the same for every shard.

FAISS trains and encodes, but its own serialised form is never written nor read: an index is made of arrays that were
checked for shape, range and finiteness.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.footer import Footer, footer_in
from catalog.search.bounded import excess
from catalog.search.sketch import WIDE
from catalog.search.spec import FLAT_BYTES, IndexSpec
from pipeline.errors import CatalogError

SCHEMA = pa.schema(
    [
        pa.field("array", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("values", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False),
    ]
)
# Names stay a dictionary while they are read: a long one repeated in every row is never written out.
_READ = SCHEMA.set(0, pa.field("array", pa.dictionary(pa.int32(), pa.string()), nullable=False))
_BITS = 4  # of a PQ code: 16 centroids for each part, what fast-scan looks up in a register
_LARGEST_VALUE = 1e3  # sketches have at most unit length
_MARGIN = 1.2  # a later entry may pass the largest of the sample; beyond this it is clipped
REBUILD = "Run `rhumb index` on the catalog"


@dataclass(frozen=True)
class Quantiser:
    """Arrays float32, those that the spec does not need empty.

    `projection` (dimension, wide) of a learned sketch; `centroids` (lists, dimension) of unit length; `bounds`
    (2, dimension): smallest value and extent of each entry for SQ8; `codebooks` (parts * 16, dimension / parts): the
    centroids of each part of a residual for PQ.
    """

    projection: np.ndarray
    centroids: np.ndarray
    bounds: np.ndarray
    codebooks: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, those that are not empty."""
        named = {name: getattr(self, name) for name in ("projection", "centroids", "bounds", "codebooks")}
        return {name: value for name, value in named.items() if value.size}


def _empty() -> np.ndarray:
    return np.zeros((0, 0), dtype=np.float32)


def train(spec: IndexSpec, sketches: np.ndarray, projection: np.ndarray | None = None) -> Quantiser:
    """The quantiser of `spec` from a sample of sketches (n, dimension) float32.

    Centroids by spherical k-means (FAISS, 10 rounds, seeded by the spec): v and -v are both in the sample, since a
    search asks for both. Cost: about 20 n lists dimension multiplications.
    """
    basis = _empty() if projection is None else projection
    if spec.kind == "flat":
        return Quantiser(basis, _empty(), _empty(), _empty())
    seed = spec.sketch.seed % 2**31
    signs = np.where(np.random.default_rng(seed).integers(0, 2, len(sketches)) > 0, 1, -1).astype(np.float32)
    rows = np.ascontiguousarray(sketches * signs[:, None])
    means = faiss.Kmeans(
        spec.sketch.dimension, spec.lists, niter=10, spherical=True, seed=seed, min_points_per_centroid=1,
        max_points_per_centroid=len(rows) // spec.lists + 1,
    )  # fmt: skip
    means.train(rows)
    centroids = np.ascontiguousarray(means.centroids, dtype=np.float32)
    if spec.kind == "ivf-sq8":
        reach = _MARGIN * np.abs(rows).max(axis=0)
        return Quantiser(basis, centroids, np.stack((-reach, 2 * reach)), _empty())
    coarse = _coarse(centroids)
    residuals = rows - centroids[coarse.search(rows, 1)[1][:, 0]]
    pq_ = faiss.ProductQuantizer(spec.sketch.dimension, 2 * spec.code_size, _BITS)
    pq_.cp.seed = seed
    pq_.train(residuals)
    codebooks = faiss.vector_to_array(pq_.centroids).reshape(2 * spec.code_size * 2**_BITS, -1)
    return Quantiser(basis, centroids, _empty(), codebooks.astype(np.float32))


def _coarse(centroids: np.ndarray) -> faiss.IndexFlatIP:
    coarse = faiss.IndexFlatIP(centroids.shape[1])
    coarse.add(np.ascontiguousarray(centroids, dtype=np.float32))
    return coarse


def empty_index(spec: IndexSpec, quantiser: Quantiser) -> faiss.Index:
    """The FAISS index of `spec` with nothing in it, from arrays; ivf-pq is not yet packed for fast-scan."""
    dimension, metric = spec.sketch.dimension, faiss.METRIC_INNER_PRODUCT
    if spec.kind == "flat":
        return faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, metric)
    coarse = _coarse(quantiser.centroids)
    if spec.kind == "ivf-sq8":
        # not of residuals: 8 bits resolve a sketch, and codes do not depend on the list they are in
        index = faiss.IndexIVFScalarQuantizer(
            coarse, dimension, spec.lists, faiss.ScalarQuantizer.QT_8bit, metric, False
        )
        faiss.copy_array_to_vector(np.ascontiguousarray(quantiser.bounds.ravel()), index.sq.trained)
    else:
        index = faiss.IndexIVFPQ(coarse, dimension, spec.lists, 2 * spec.code_size, _BITS, metric)
        index.by_residual = True
        faiss.copy_array_to_vector(np.ascontiguousarray(quantiser.codebooks.ravel()), index.pq.centroids)
    index.is_trained = True
    return index


class Encoder:
    """Makes codes of sketches: the same sketch gives the same code in every shard."""

    def __init__(self, spec: IndexSpec, quantiser: Quantiser) -> None:
        self.spec = spec
        self._index = empty_index(spec, quantiser)

    def __call__(self, sketches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, dimension) float32 -> lists (n,) int32 and codes (n, code_size) uint8; all in list 0 of a flat index."""
        if self.spec.kind == "flat":
            codes = sketches.astype("<f2").view(np.uint8).reshape(len(sketches), self.spec.code_size)
            return np.zeros(len(sketches), dtype=np.int32), codes
        rows = np.ascontiguousarray(sketches, dtype=np.float32)
        lists = self._index.quantizer.search(rows, 1)[1][:, 0]
        codes = np.empty((len(rows), self.spec.code_size), dtype=np.uint8)
        if len(rows):
            self._index.encode_vectors(
                len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(lists), faiss.swig_ptr(codes), False
            )
        return lists.astype(np.int32), codes


def probes_for(spec: IndexSpec, quantiser: Quantiser, sketches: np.ndarray, share: float = 0.985) -> int:
    """Lists to look into so that `share` of the 10 nearest of held-out queries are found, from a sample of sketches.

    In the whole catalog neighbours are nearer than in a sample of it, so fewer lists would do there. At least
    min(8, lists); 256 queries.
    """
    queries = sketches[:: max(1, len(sketches) // 256)]
    scores = queries @ sketches.T
    best = np.argpartition(-np.abs(scores), min(11, scores.shape[1] - 1), axis=1)[:, :11]
    home = np.argmax(sketches[best.ravel()] @ quantiser.centroids.T, axis=1).reshape(best.shape)
    towards = queries @ quantiser.centroids.T
    needed = []
    for i in range(len(queries)):
        signs = np.sign(scores[i, best[i]])
        mine = towards[i][home[i]] * signs  # how near the query, turned towards the neighbour, is to its list
        needed += [int((towards[i] * sign > value).sum()) + 1 for sign, value in zip(signs, mine, strict=True)]
    return int(min(spec.lists, max(8, np.quantile(needed, share, method="higher"))))


def dump(quantiser: Quantiser) -> bytes:
    """The quantiser as the bytes of its Parquet file: one row for each row of an array."""
    names: list[str] = []
    numbers: list[int] = []
    values: list[np.ndarray] = []
    for name, array in quantiser.arrays().items():
        names += [name] * len(array)
        numbers += range(len(array))
        values += list(np.asarray(array, dtype=np.float32))
    table = pa.table([names, pa.array(numbers, pa.int32()), pa.array(values, SCHEMA.field("values").type)], SCHEMA)
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", use_dictionary=["array"], write_page_checksum=True)
    return out.getvalue()


def _shapes(spec: IndexSpec) -> dict[str, tuple[int, int | None]]:
    shapes: dict[str, tuple[int, int | None]] = {}
    dimension = spec.sketch.dimension
    if spec.sketch.kind == "learned":
        shapes["projection"] = (dimension, None)
    if spec.kind != "flat":
        shapes["centroids"] = (spec.lists, dimension)
    if spec.kind == "ivf-sq8":
        shapes["bounds"] = (2, dimension)
    if spec.kind == "ivf-pq":
        shapes["codebooks"] = (2 * spec.code_size * 2**_BITS, dimension // (2 * spec.code_size))
    return shapes


def needs_quantiser(spec: IndexSpec) -> bool:
    """Whether an index of `spec` has a quantiser file at all."""
    return bool(_shapes(spec))


def parse(data: bytes, spec: IndexSpec, name: str = "quantiser") -> Quantiser:
    """The quantiser in `data`, which must be what `spec` says. Raises CatalogError naming `name`."""

    def refuse(found: object, expected: str) -> CatalogError:
        return CatalogError(name, found, expected, REBUILD)

    shapes = _shapes(spec)
    rows = sum(count for count, _ in shapes.values())
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, read_dictionary=["array"]) as file:
            if not file.schema_arrow.equals(_READ):
                raise refuse("other columns", ", ".join(SCHEMA.names))
            most = rows * (4 * WIDE + 1024) + 2**20
            if (found := excess(Footer(footer_in(data), name, REBUILD), rows, most, rows * WIDE)) is not None:
                raise refuse(found, f"{rows} rows of at most {most} bytes")
            table = file.read()
        table.validate(full=True)
        if not all(set(chunk.dictionary.to_pylist()) <= shapes.keys() for chunk in table.column("array").chunks):
            raise refuse("other arrays", f"{', '.join(shapes)}, row after row")
        table = table.combine_chunks()
        names = list(zip(table.column("array").to_pylist(), table.column("row").to_pylist(), strict=True))
    except CatalogError:
        raise
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:  # names that are no UTF-8, or not there
        raise refuse(f"an unreadable file ({str(error)[:120]})", "a Parquet file of arrays") from error
    if names != [(array, row) for array, (count, _) in shapes.items() for row in range(count)]:
        raise refuse("other arrays", f"{', '.join(shapes)}, row after row")
    arrays, start = {}, 0
    for array, (count, width) in shapes.items():
        lists = table.column("values").slice(start, count).combine_chunks()
        values = lists.flatten().to_numpy(zero_copy_only=False)
        lengths = np.unique(np.diff(lists.offsets.to_numpy()))
        if len(lengths) != 1 or not (lengths[0] == width or (width is None and 1 <= lengths[0] <= WIDE)):
            raise refuse(f"{array} with rows of {lengths[:3].tolist()} values", f"{width or f'1 to {WIDE}'} in each")
        if not (np.abs(values) <= _LARGEST_VALUE).all():
            raise refuse(f"{array} with NaN or huge values", f"finite ones within {_LARGEST_VALUE:g}")
        arrays[array] = np.ascontiguousarray(values.reshape(count, -1), dtype=np.float32)
        start += count
    return Quantiser(**{name: arrays.get(name, _empty()) for name in Quantiser.__dataclass_fields__})


def flat_values(codes: np.ndarray) -> np.ndarray:
    """(n, code_size) uint8 codes of a flat index as float16 (n, dimension)."""
    return np.ascontiguousarray(codes).view("<f2").reshape(len(codes), codes.shape[1] // FLAT_BYTES)
