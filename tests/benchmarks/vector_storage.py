"""Reading coded vectors from a catalog's shards on this disk: one row at random, and everything in order.

Rows are synthetic with the measured spectrum: coded directions whose blocks of coefficients were moved around the
picture, so that Parquet finds no two alike in a shard. The shards have the catalog's own columns and settings. A few
are written and then copied: the disk and its cache do not know that.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.codecs import CodecSpec, codec_for
from catalog.schema import Layout, parquet_settings, table_schema, vector_column

SHARD = 4096  # rows; what compaction makes of many chunks
EFFECT = (3, 16, 16)
READS = 300
DISTINCT = 3  # shards written; the others are copies
IN_ORDER = 6  # shards read in order


@dataclass(frozen=True)
class Access:
    """Milliseconds for one row by its place (median, 99 of 100), and rates in order in MB/s (1 MB = 10^6 bytes).

    `first`: with a footer read for every row. `kept`: with footers kept, as a catalog that is open does, from files
    that the system's cache was told to drop before. `raw` reads the same bytes and does nothing with them.
    """

    rows: int
    shards: int
    file_bytes: int
    first_ms: tuple[float, float]
    kept_ms: tuple[float, float]
    raw_rate: float
    file_rate: float
    float32_rate: float
    load: float  # the machine's, of a minute: what else ran meanwhile


_ZSTD = pa.Codec("zstd", compression_level=1)


def moved(encoded: Sequence[bytes], row: int, size: int, block: int) -> bytes:
    """The coded vector of a row: one of `encoded`, its blocks (of `block` bytes a plane) moved by a step of its own."""
    source, turns = encoded[row % len(encoded)], row // len(encoded) * block
    unpacked = _ZSTD.decompress(source[1:], source[0] * size)
    planes = np.frombuffer(unpacked, dtype=np.uint8).reshape(-1, size)
    return source[:1] + _ZSTD.compress(np.roll(planes, turns, axis=1).tobytes(), asbytes=True)


def _column(field: pa.Field, rows: int) -> pa.Array:
    """`rows` values that take next to no space: what is timed are the vectors."""
    if field.nullable:
        return pa.nulls(rows, field.type)
    if pa.types.is_fixed_size_list(field.type):
        values = np.zeros(rows * field.type.list_size, dtype=field.type.value_type.to_pandas_dtype())
        return pa.FixedSizeListArray.from_arrays(pa.array(values), type=field.type)
    blank: Any = [] if pa.types.is_list(field.type) else "" if pa.types.is_string(field.type) else 0
    return pa.repeat(pa.scalar(blank, type=field.type), rows)


def write(folder: Path, vectors: np.ndarray, shape: tuple[int, ...], spec: CodecSpec, rows: int) -> list[Path]:
    """Shards of `rows` synthetic directions like `vectors` (n, D) under `folder`."""
    layout = Layout({"x": shape}, EFFECT, {"x": spec})
    codec, name = codec_for(spec, shape), vector_column("x")
    encoded = list(codec.encode(vectors, name)[name])
    schema = table_schema("directions", layout)
    paths = []
    for start in range(0, rows, SHARD):
        part = range(start, min(start + SHARD, rows))
        paths.append(folder / f"{start:09d}.parquet")
        if len(paths) > DISTINCT and len(part) == SHARD:
            shutil.copyfile(paths[len(paths) % DISTINCT], paths[-1])
            continue
        values = [moved(encoded, row, codec.size, 64 * shape[0]) for row in part]
        columns = [_column(field, len(part)) for field in schema]
        columns[schema.get_field_index(name)] = pa.array(values, type=pa.binary())
        columns[schema.get_field_index("direction_id")] = pa.array([f"{row:032x}" for row in part])
        table = pa.Table.from_arrays(columns, schema=schema)
        pq.write_table(table, paths[-1], **parquet_settings("directions", schema, layout))
    return paths


def forget(paths: Sequence[Path]) -> None:
    """Ask the system to drop the files from its cache, once they are on the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(paths: Sequence[Path], shape: tuple[int, ...], spec: CodecSpec, rows: int, seed: int = 0) -> Access:
    """Time the reads of `Access`. Randomness: which rows, by NumPy's default_rng(seed)."""
    codec, name = codec_for(spec, shape), vector_column("x")

    def one(file: pq.ParquetFile, row: int) -> np.ndarray:
        group_size = file.metadata.row_group(0).num_rows
        group = file.read_row_group(row // group_size, columns=[name], use_threads=False)
        column = group.column(name).combine_chunks().slice(row % group_size, 1)
        return codec.decode({name: column.to_numpy(zero_copy_only=False)})

    picked = np.random.default_rng(seed).permutation(rows)[: 2 * READS].tolist()
    first, kept = [], []
    for row in picked[:READS]:
        begun = time.perf_counter()
        with pq.ParquetFile(paths[row // SHARD], page_checksum_verification=True) as file:
            one(file, row % SHARD)
        first.append(1e3 * (time.perf_counter() - begun))
    files = [pq.ParquetFile(path, page_checksum_verification=True) for path in paths]
    forget(paths)
    for row in picked[READS:]:
        begun = time.perf_counter()
        one(files[row // SHARD], row % SHARD)
        kept.append(1e3 * (time.perf_counter() - begun))
    ordered = paths[:IN_ORDER]
    size, read = sum(path.stat().st_size for path in ordered), min(rows, IN_ORDER * SHARD)
    forget(ordered)
    begun = time.perf_counter()
    for path in ordered:
        path.read_bytes()
    raw = size / (time.perf_counter() - begun) / 1e6
    forget(ordered)
    begun = time.perf_counter()
    for file in files[:IN_ORDER]:
        for batch in file.iter_batches(batch_size=256, columns=[name], use_threads=False):
            codec.decode({name: batch.column(0).to_numpy(zero_copy_only=False)})
    spent = time.perf_counter() - begun
    for file in files:
        file.close()
    return Access(
        rows, len(paths), sum(path.stat().st_size for path in paths), _spread(first), _spread(kept), raw,
        size / spent / 1e6, 4 * read * codec.size / spent / 1e6, os.getloadavg()[0],
    )  # fmt: skip


def _spread(times: Sequence[float]) -> tuple[float, float]:
    return float(np.percentile(times, 50)), float(np.percentile(times, 99))
