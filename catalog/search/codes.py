"""Code files: what an index holds of one directions shard, immutable, joined to it by direction id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.footer import Footer
from catalog.fs import footer_of
from catalog.search.bounded import excess
from catalog.search.quantiser import REBUILD, flat_values
from catalog.search.spec import IndexSpec
from pipeline.errors import CatalogError

ID_BYTES = 16
_ROW_GROUP = 2**16


@dataclass(frozen=True)
class Codes:
    """Of n directions: `keys` (n,) S32 ids in hex, `lists` (n,) int32, `codes` (n, code_size) uint8."""

    keys: np.ndarray
    lists: np.ndarray
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)


def schema(spec: IndexSpec) -> pa.Schema:
    """Columns of a code file: the id as 16 bytes, the number of the inverted list, the code."""
    columns = {"direction_id": pa.binary(ID_BYTES), "list": pa.int32(), "code": pa.binary(spec.code_size)}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def join(parts: Iterable[Codes], spec: IndexSpec) -> Codes:
    """Codes of several shards as those of one: nothing is encoded anew."""
    some = [part for part in parts if len(part)]
    if not some:
        return Codes(np.zeros(0, "S32"), np.zeros(0, np.int32), np.zeros((0, spec.code_size), np.uint8))
    fields = zip(*((part.keys, part.lists, part.codes) for part in some), strict=True)
    return Codes(*(np.concatenate(field) for field in fields))


def _fixed(rows: np.ndarray) -> pa.FixedSizeBinaryArray:
    data = np.ascontiguousarray(rows, dtype=np.uint8)
    return pa.Array.from_buffers(pa.binary(data.shape[1]), len(data), [None, pa.py_buffer(data)])


def _bytes(column: pa.ChunkedArray) -> np.ndarray:
    """(n, width) uint8 of a fixed-size binary column without nulls."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    width = column.type.byte_width
    if not len(array):
        return np.zeros((0, width), np.uint8)
    raw = np.frombuffer(array.buffers()[1], np.uint8, len(array) * width, array.offset * width)
    return raw.reshape(len(array), width)


_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)


def _hex(raw: np.ndarray) -> np.ndarray:
    digits = np.empty((len(raw), 2 * ID_BYTES), np.uint8)
    digits[:, 0::2], digits[:, 1::2] = _DIGITS[raw >> 4], _DIGITS[raw & 15]
    return digits.view(f"S{2 * ID_BYTES}")[:, 0]


def _unhex(keys: np.ndarray) -> np.ndarray:
    digits = np.ascontiguousarray(keys, dtype=f"S{2 * ID_BYTES}").view(np.uint8).reshape(len(keys), 2 * ID_BYTES)
    values = digits - np.where(digits >= ord("a"), ord("a") - 10, ord("0")).astype(np.uint8)
    return np.asarray(values[:, 0::2] << 4 | values[:, 1::2], dtype=np.uint8)


def write(codes: Codes, spec: IndexSpec, stream: BinaryIO) -> None:
    """Write a code file. The same codes give the same bytes."""
    lists = pa.array(np.asarray(codes.lists, np.int32))
    table = pa.table([_fixed(_unhex(codes.keys)), lists, _fixed(codes.codes)], schema=schema(spec))
    pq.write_table(
        table, stream, compression="zstd", use_dictionary=False, write_statistics=False, row_group_size=_ROW_GROUP,
        write_page_checksum=True,
    )  # fmt: skip


def read(path: Path, spec: IndexSpec, rows: int, columns: tuple[str, ...] = ("direction_id", "list", "code")) -> Codes:
    """The codes in a file of `rows` rows; columns left out come back empty. Sizes are checked before anything is read,
    so `rows` must not be the file's own word.

    Raises CatalogError: unreadable, other columns or number of rows, a list that the index does not have, or a flat
    code with NaN or infinity.
    """
    wanted = schema(spec)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if not file.schema_arrow.equals(wanted):
                raise CatalogError(str(path), "other columns", f"{wanted}".replace("\n", ", "), REBUILD)
            most = 2 * rows * (ID_BYTES + 4 + spec.code_size) + 2**20
            if (found := excess(Footer(footer_of(path, REBUILD), str(path), REBUILD), rows, most, rows)) is not None:
                raise CatalogError(str(path), found, f"{rows} rows of at most {most} bytes", REBUILD)
            table = file.read(list(columns))
        table.validate(full=True)
    except CatalogError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: names that are no UTF-8
        raise CatalogError(
            str(path), f"an unreadable file ({str(error)[:120]})", "a whole code file", REBUILD
        ) from error
    if any(table.column(name).null_count for name in columns) or table.num_rows != rows:
        raise CatalogError(str(path), "nulls or missing rows", f"{rows} codes", REBUILD)
    none = join((), spec)
    keys = _hex(_bytes(table.column("direction_id"))) if "direction_id" in columns else none.keys
    lists = table.column("list").to_numpy() if "list" in columns else none.lists
    codes = _bytes(table.column("code")) if "code" in columns else none.codes
    last = max(1, spec.lists) - 1
    if len(lists) and (lists.min() < 0 or lists.max() > last):
        raise CatalogError(str(path), f"list {lists.min()} or {lists.max()}", f"lists from 0 to {last}", REBUILD)
    if spec.kind == "flat" and not np.isfinite(flat_values(codes)).all():
        raise CatalogError(str(path), "NaN or infinity", "finite search vectors", REBUILD)
    return Codes(keys, np.asarray(lists, np.int32), codes)


def batches(parts: Iterable[Codes], spec: IndexSpec, rows: int = 2**19) -> Iterator[Codes]:
    """The same codes in pieces of at least `rows` rows, but for the last: many small shards cost no more than one."""
    waiting: list[Codes] = []
    for part in parts:
        waiting.append(part)
        if sum(len(w) for w in waiting) >= rows:
            yield join(waiting, spec)
            waiting = []
    if waiting:
        yield join(waiting, spec)
