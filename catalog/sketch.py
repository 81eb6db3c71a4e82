"""Search vectors: what stands for a direction in an index. Norms are 1, so an inner product is a cosine."""

from __future__ import annotations

import numpy as np

from catalog.manifest import SketchSpec

DIMENSION = 1024  # standard error of a cosine 0.03, so |cos| of 0.2 stands out; see format.md


def spec_for(size: int, seed: int = 0) -> SketchSpec:
    """The sketch of vectors of `size` entries: themselves up to 1,024, an SRHT above."""
    if size <= DIMENSION:
        return SketchSpec(kind="identity", dimension=size)
    return SketchSpec(kind="srht", dimension=DIMENSION, seed=seed)


def _hadamard(rows: np.ndarray) -> np.ndarray:
    """Unnormalised Walsh-Hadamard transform of each row (n, 2^m), natural order, in O(2^m m) per row."""
    count, size = rows.shape
    half = 1
    while half < size:
        pairs = rows.reshape(count, -1, 2, half)
        rows = np.concatenate((pairs[:, :, :1] + pairs[:, :, 1:], pairs[:, :, :1] - pairs[:, :, 1:]), axis=2)
        rows = rows.reshape(count, size)
        half *= 2
    return rows


def sketch(vectors: np.ndarray, spec: SketchSpec) -> np.ndarray:
    """(n, D) float32 -> (n, spec.dimension) float32 of unit norm; a zero row stays zero.

    SRHT: Tropp, "Improved analysis of the subsampled randomized Hadamard transform" (2011), up to scaling to unit
    length. Randomness: NumPy's default_rng(spec.seed).
    """
    if spec.kind == "srht":
        size = 1 << (vectors.shape[1] - 1).bit_length()
        generator = np.random.default_rng(spec.seed)
        signs = (2 * generator.integers(0, 2, size) - 1).astype(np.float32)
        kept = np.sort(generator.permutation(size)[: spec.dimension])
        out = np.empty((len(vectors), spec.dimension), dtype=np.float32)
        for start in range(0, len(vectors), 64):  # blocks keep the memory at a few megabytes
            block = vectors[start : start + 64]
            padded = np.zeros((len(block), size), dtype=np.float32)
            padded[:, : vectors.shape[1]] = block
            out[start : start + 64] = _hadamard(padded * signs)[:, kept]
        out /= np.float32(np.sqrt(spec.dimension))
    else:
        out = np.array(vectors, dtype=np.float32)
    norms = np.linalg.norm(out, axis=1, keepdims=True)
    return np.asarray(out / np.where(norms > 0, norms, 1), dtype=np.float32)
