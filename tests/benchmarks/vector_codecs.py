"""Ways to store unit vectors, each as its users would: what a Parquet file takes for a direction, and what comes back.

All that can keep a stated cosine are held to the same one, so that their bytes compare.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.codecs import BLOCKS, DctCodec, DctSpec, Float16Spec, codec_for, cosines
from catalog.schema import ROW_GROUP

COLUMN = "vector"
SCALED = 64  # entries that share a scale under int8


@dataclass(frozen=True)
class Stored:
    """One way over all vectors: bytes a direction, times smaller than float32, cosines, milliseconds to decode one."""

    way: str
    bytes: float
    smaller: float
    cosine_min: float
    cosine_median: float
    decode_ms: float


Stages = tuple[dict[str, Any], Callable[[], np.ndarray]]  # columns as written; how they are read


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines (n,) of rows (n, D), in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def parquet_bytes(columns: dict[str, Any], rows: int) -> float:
    """Bytes a row of the columns in a Parquet file with the catalog's settings, without its footer."""
    table = pa.table(columns)
    lists = [f"{f.name}.list.element" for f in table.schema if pa.types.is_fixed_size_list(f.type)]
    wide = [n for n, f in zip(lists, (f for f in table.schema if pa.types.is_fixed_size_list(f.type)), strict=True)
            if f.type.value_type.bit_width > 8]  # fmt: skip
    file = io.BytesIO()
    pq.write_table(
        table, file, compression="zstd", use_dictionary=False, write_statistics=False, row_group_size=ROW_GROUP,
        column_encoding=dict.fromkeys(wide, "BYTE_STREAM_SPLIT"), use_content_defined_chunking=True,
    )  # fmt: skip
    found = pq.ParquetFile(file).metadata
    groups = [found.row_group(i) for i in range(found.num_row_groups)]
    return float(sum(g.column(i).total_compressed_size for g in groups for i in range(g.num_columns))) / rows


def lists(values: np.ndarray) -> pa.Array:
    """(n, D) as a column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _by_codec(vectors: np.ndarray, spec: Any, shape: tuple[int, ...]) -> Stages:
    codec = codec_for(spec, shape)
    encoded = codec.encode(vectors, COLUMN)
    values = encoded[COLUMN]
    column = lists(values) if isinstance(spec, Float16Spec) else pa.array(list(values), type=pa.binary())
    return {COLUMN: column}, lambda: codec.decode(encoded)


def _in_basis(vectors: np.ndarray, shape: tuple[int, ...], least: float, whole: Callable[..., np.ndarray]) -> Stages:
    """Whole numbers in another orthonormal basis: `whole(vectors, back)` transforms rows (n, D) and back."""
    plain = codec_for(DctSpec(block=1, channels=False, cosine=least), (1, 1, vectors.shape[1]))
    encoded = plain.encode(whole(vectors, False).astype(np.float32), COLUMN)
    return {COLUMN: pa.array(list(encoded[COLUMN]), type=pa.binary())}, lambda: whole(plain.decode(encoded), True)


def whole_picture(shape: tuple[int, ...]) -> Callable[[np.ndarray, bool], np.ndarray]:
    """One cosine transform over all pixels of every channel, lowest frequencies first."""
    down, across = cosines(shape[1]), cosines(shape[2])
    rows, columns = np.indices(shape[1:])
    order = np.argsort(np.broadcast_to(np.hypot(rows / shape[1], columns / shape[2]), shape).ravel(), kind="stable")

    def run(vectors: np.ndarray, back: bool) -> np.ndarray:
        if not back:
            waves = down @ vectors.reshape(-1, *shape) @ across.T
            return np.asarray(waves.reshape(len(vectors), -1)[:, order])
        spread = np.empty_like(vectors)
        spread[:, order] = vectors
        return np.asarray((down.T @ spread.reshape(-1, *shape) @ across).reshape(len(vectors), -1))

    return run


def haar(shape: tuple[int, ...], levels: int = 3) -> Callable[[np.ndarray, bool], np.ndarray]:
    """Haar wavelets of `levels` scales in every channel, coarse ones first."""
    pair = np.array([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2.0)

    def run(vectors: np.ndarray, back: bool) -> np.ndarray:
        pictures = vectors.reshape(-1, *shape).astype(np.float64)
        sides = [(shape[1] >> level, shape[2] >> level) for level in range(levels)]
        for height, width in reversed(sides) if back else sides:
            part = pictures[:, :, :height, :width]
            grid = (len(part), shape[0], 2, height // 2, 2, width // 2) if back else (
                len(part), shape[0], height // 2, 2, width // 2, 2)  # fmt: skip
            path = "ncahbw,ai,bj->nchiwj" if back else "nchawb,ai,bj->ncihjw"
            turned = np.einsum(path, part.reshape(grid), pair, pair, optimize=True)
            pictures[:, :, :height, :width] = turned.reshape(part.shape)
        return np.asarray(pictures.reshape(len(vectors), -1))

    return run


def _int8(vectors: np.ndarray) -> Stages:
    blocks = vectors.reshape(len(vectors), -1, SCALED)
    scales = (np.abs(blocks).max(2) / 127).astype(np.float16)
    safe = np.maximum(scales.astype(np.float32), 1e-7)[:, :, None]
    whole = np.clip(np.rint(blocks / safe), -127, 127).astype(np.int8)
    columns = {COLUMN: lists(whole.reshape(vectors.shape)), "scales": lists(scales)}
    return columns, lambda: np.asarray((whole * safe).reshape(vectors.shape))


def _sparse(vectors: np.ndarray, least: float) -> Stages:
    """float16 of the largest entries, zero elsewhere; what is left out takes all the error allowed."""
    energies = np.sort(vectors.astype(np.float64) ** 2, axis=1)
    left_out = (energies.cumsum(1) <= 1.0 - least**2).sum(1)
    limits = np.sqrt(np.take_along_axis(energies, np.minimum(left_out, energies.shape[1] - 1)[:, None], 1))
    kept = np.where(np.abs(vectors) >= limits, vectors, 0).astype(np.float16)
    return {COLUMN: lists(kept)}, lambda: kept.astype(np.float32)


def shared_basis(examples: np.ndarray) -> np.ndarray:
    """Orthonormal rows (k, D) float32 that span `examples` (k, D): all that a catalog of them could learn."""
    _, sigma, rows = np.linalg.svd(examples, full_matrices=False)
    return np.asarray(rows[sigma > 1e-3 * sigma[0]], dtype=np.float32)


def _low_rank(vectors: np.ndarray, basis: np.ndarray, spec: DctSpec, shape: tuple[int, ...]) -> Stages:
    """float16 weights of a shared basis; what it leaves is stored as by `spec`, coarser where little is left."""
    weights = (vectors @ basis.T).astype(np.float16)
    rest = vectors - weights.astype(np.float32) @ basis
    lengths = np.linalg.norm(rest, axis=1)
    made = []
    for vector, length in zip(rest, lengths, strict=True):
        least = float(np.clip(1.0 - (1.0 - spec.cosine) / length**2, 0.9, 0.9999))
        codec = codec_for(spec.model_copy(update={"cosine": least}), shape)
        made.append((codec, codec.encode(vector[None] / length, COLUMN)))

    def read() -> np.ndarray:
        rows = np.concatenate([codec.decode(encoded) for codec, encoded in made])
        return np.asarray(weights.astype(np.float32) @ basis + lengths[:, None] * rows)

    values = [encoded[COLUMN][0] for _, encoded in made]
    columns = {COLUMN: pa.array(values, type=pa.binary()), "weights": lists(weights), "length": pa.array(lengths)}
    return columns, read


def ways(vectors: np.ndarray, shape: tuple[int, ...], least: float, basis: np.ndarray | None) -> dict[str, Stages]:
    """Every way to store `vectors` (n, D) float32 of `shape`, by name."""
    found = {"float16": _by_codec(vectors, Float16Spec(), shape), f"int8, a scale per {SCALED}": _int8(vectors)}
    found["float16 of the largest entries"] = _sparse(vectors, least)
    for block in reversed(BLOCKS):
        for channels in (False, True) if shape[0] <= 4 else (False,):
            name = f"cosines, blocks of {block}" if block > 1 else "whole numbers, no transform"
            spec = DctSpec(block=block, channels=channels, cosine=least)
            found[name + (", channels mixed" if channels else "")] = _by_codec(vectors, spec, shape)
    found["cosines of the whole picture"] = _in_basis(vectors, shape, least, whole_picture(shape))
    found["Haar wavelets"] = _in_basis(vectors, shape, least, haar(shape))
    if basis is not None:
        best = DctSpec(block=8 if shape[0] <= 4 else 1, channels=shape[0] <= 4, cosine=least)
        found[f"shared basis of {len(basis)}, then cosines"] = _low_rank(vectors, basis, best, shape)
    return found


def compare(vectors: np.ndarray, shape: tuple[int, ...], least: float, basis: np.ndarray | None = None) -> list[Stored]:
    """All ways over vectors (n, D), smallest first."""
    rows = []
    for way, (columns, read) in ways(vectors, shape, least, basis).items():
        begun = time.perf_counter()
        back = read()
        spent = time.perf_counter() - begun
        cosines_ = cosine(vectors, back)
        size = parquet_bytes(columns, len(vectors))
        rows.append(
            Stored(
                way, size, 4 * vectors.shape[1] / size, float(cosines_.min()), float(np.median(cosines_)),
                1e3 * spent / len(vectors),
            )
        )  # fmt: skip
    return sorted(rows, key=lambda row: row.bytes)


def spectrum(vectors: np.ndarray, shape: tuple[int, ...], least: float) -> dict[str, Any]:
    """Why: energy by frequency, and bits an entry that a Gaussian source of these variances needs at this cosine.

    Frequencies are of the whole picture, in eighths of the highest. Bits are by reverse water-filling over the
    variances of all entries (Cover and Thomas, "Elements of Information Theory", theorem 10.3.3), in each basis.
    """
    waves = whole_picture(shape)(vectors, False)
    rows, columns = np.indices(shape[1:])
    frequency = np.sort(np.broadcast_to(np.hypot(rows / shape[1], columns / shape[2]), shape).ravel())
    energy = (waves.astype(np.float64) ** 2).mean(0)
    bands = np.minimum((8 * frequency).astype(int), 7)
    bits = {"entries": _bits(vectors, least), "cosines of the whole picture": _bits(waves, least)}
    for block in BLOCKS[:-1]:
        codec = codec_for(DctSpec(block=block, channels=shape[0] <= 4, cosine=least), shape)
        assert isinstance(codec, DctCodec)
        coefficients = np.stack([codec.coefficients(vector.astype(np.float64)) for vector in vectors])
        bits[f"cosines, blocks of {block}"] = _bits(coefficients, least)
    return {
        "energy_by_eighth_of_frequency": np.bincount(bands, energy, 8).tolist(),
        "entries_by_eighth_of_frequency": np.bincount(bands, minlength=8).tolist(),
        "bits_an_entry": bits, "bits_an_entry_if_white": 0.5 * math.log2(1.0 / (1.0 - least**2)),
    }  # fmt: skip


def _bits(coefficients: np.ndarray, least: float) -> float:
    """Bits an entry by reverse water-filling at the error that the cosine allows."""
    variances = (coefficients.astype(np.float64) ** 2).mean(0)
    allowed = (1.0 - least**2) * variances.sum()
    low, high = 0.0, float(variances.max())
    for _ in range(60):
        level = 0.5 * (low + high)
        low, high = (level, high) if np.minimum(variances, level).sum() < allowed else (low, level)
    return float(0.5 * np.log2(np.maximum(variances / high, 1.0)).mean())


def medians(values: Sequence[float]) -> dict[str, float]:
    """Median and largest of some measurements."""
    return {"median": float(np.median(values)), "max": float(np.max(values)), "count": len(values)}
