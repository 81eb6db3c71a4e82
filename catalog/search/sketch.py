"""Sketches: what stands for a direction in an index. An inner product of two is about the cosine of the directions.

Measured on real directions of held-out images, 256 entries: an SRHT errs by 0.046 (x), 0.049 (h), 0.045 (effects) in
|cos|, a learned sketch by 0.013, 0.017 and 0.001. Low frequencies or pooling kept first make it worse: directions are
local, and half of their energy lies above a quarter of the bandwidth.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from catalog.search.spec import SketchSpec
from pipeline.errors import InputError

WIDE = 4096  # entries that a learned sketch starts from: they alone err by 0.012, and bound the stored projection
_LARGEST_FACTOR = 6  # log2 of the dense factors of a Hadamard matrix: faster through BLAS than by additions
_BLOCK = 64  # vectors sketched at a time: a few megabytes


@lru_cache(maxsize=8)
def _dense(order: int) -> np.ndarray:
    """The Hadamard matrix of 2^order rows, natural order, float32."""
    matrix = np.ones((1, 1), dtype=np.float32)
    for _ in range(order):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def hadamard(rows: np.ndarray) -> np.ndarray:
    """Unnormalised Walsh-Hadamard transform of each row (n, 2^m) float32, natural order.

    H of 2^m rows is the Kronecker product of smaller ones, each applied as a dense product along its own axis:
    more additions than the butterfly, but in cache and through BLAS, so 10 times faster at 2^14 entries.
    """
    count, size = rows.shape
    order, inner = size.bit_length() - 1, 1
    factors = -(-order // _LARGEST_FACTOR)
    for i in range(factors):
        part = order // factors + (i < order % factors)
        if inner == 1:
            rows = rows.reshape(-1, 1 << part) @ _dense(part)
        else:
            rows = np.matmul(_dense(part), rows.reshape(-1, 1 << part, inner))
        inner <<= part
    return np.asarray(rows.reshape(count, size))


@lru_cache(maxsize=8)
def _drawn(size: int, dimension: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    signs = (2 * generator.integers(0, 2, size) - 1).astype(np.float32)
    return signs, np.sort(generator.permutation(size)[:dimension])


def srht(vectors: np.ndarray, dimension: int, seed: int) -> np.ndarray:
    """(n, D) float32 -> (n, min(dimension, P)), P the next power of two: inner products are kept on average.

    Tropp, "Improved analysis of the subsampled randomized Hadamard transform" (2011). Randomness: NumPy's
    default_rng(seed), signs drawn first. Cost: about 0.15 ms for 12,288 entries.
    """
    size = 1 << (vectors.shape[1] - 1).bit_length()
    signs, kept = _drawn(size, dimension, seed)
    out = np.empty((len(vectors), len(kept)), dtype=np.float32)
    padded = np.zeros((min(_BLOCK, len(vectors)), size), dtype=np.float32)
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        np.multiply(block, signs[: block.shape[1]], out=padded[: len(block), : block.shape[1]])
        out[start : start + _BLOCK] = hadamard(padded[: len(block)])[:, kept]
    out *= np.float32(1 / np.sqrt(len(kept)))
    return out


def unit(rows: np.ndarray) -> np.ndarray:
    """(n, D) float32 rows scaled to unit length; a zero row stays zero."""
    rows = np.asarray(rows, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1), dtype=np.float32)


def wide(entries: int) -> int:
    """Entries that the projection of a learned sketch of vectors of `entries` entries is applied to."""
    return int(min(WIDE, 1 << (entries - 1).bit_length()))


def sketch(vectors: np.ndarray, spec: SketchSpec, projection: np.ndarray | None = None) -> np.ndarray:
    """(n, D) float32 -> (n, spec.dimension) float32; `projection` (dimension, wide(D)) float32 of a learned sketch.

    Vectors are scaled to unit length first, sketches of kind srht again afterwards. Learned ones are not: their
    length says how much of the vector the projection knows, and scaling it away made |cos| up to 0.14 too large.
    Raises InputError where the projection or the number of entries does not fit the spec.
    """
    if (projection is not None) != (spec.kind == "learned"):
        raise InputError("projection", "one missing or too many", f"one for learned sketches; this is {spec.kind}")
    rows = unit(vectors)
    if projection is not None:
        if projection.shape != (spec.dimension, wide(rows.shape[1])):
            expected = f"({spec.dimension}, {wide(rows.shape[1])}) for vectors of {rows.shape[1]} entries"
            raise InputError("projection", projection.shape, expected)
        return np.asarray(srht(rows, WIDE, spec.seed) @ projection.T)
    if spec.kind == "srht":
        return unit(srht(rows, spec.dimension, spec.seed))
    if rows.shape[1] != spec.dimension:
        raise InputError("sketch", f"vectors of {rows.shape[1]} entries", f"{spec.dimension}, as the spec says")
    return rows


def learn_projection(vectors: np.ndarray, spec: SketchSpec, passes: int = 3) -> np.ndarray:
    """(dimension, wide(D)) float32 projection for vectors like these, (n, D) float32.

    Its rows are an orthonormal basis of the leading right singular subspace of the vectors' SRHT, by randomised
    subspace iteration (Halko, Martinsson, Tropp 2011, algorithm 4.4), turned at random within it, so that every entry
    of a sketch has about the same spread and quantises alike. Not centred: v and -v are one direction. Randomness:
    default_rng(spec.seed). Cost: 2 * passes + 1 products of (n, wide) with (wide, dimension).
    """
    rows = srht(unit(vectors), WIDE, spec.seed)
    generator = np.random.default_rng(spec.seed)
    extra = min(rows.shape[1], spec.dimension + 32)
    basis = np.linalg.qr(generator.standard_normal((rows.shape[1], extra)).astype(np.float32))[0]
    for _ in range(passes):
        basis = np.linalg.qr(rows.T @ (rows @ basis))[0]
    images = (rows @ basis).astype(np.float64)
    turn = np.linalg.eigh(images.T @ images)[1][:, ::-1][:, : spec.dimension].astype(np.float32)
    mix = np.linalg.qr(generator.standard_normal((spec.dimension, spec.dimension)))[0].astype(np.float32)
    return np.ascontiguousarray((basis @ turn @ mix).T)
