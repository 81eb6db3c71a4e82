"""What a Parquet file from outside may unpack to, told from its footer before anything is read."""

from __future__ import annotations

import pyarrow.parquet as pq


def excess(metadata: pq.FileMetaData, rows: int, size: int, values: int) -> str | None:
    """What a footer states beyond `rows` rows exactly, `size` bytes, and `values` values in any one column; None: fine.

    Runs and dictionaries unpack to as many values as a column states, whatever its bytes: bytes alone bound nothing.
    """
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    counts = [[group.column(i).num_values for i in range(group.num_columns)] for group in groups]
    unpacked = sum(group.total_byte_size for group in groups)
    parts = [metadata.num_rows, unpacked, *(group.num_rows for group in groups), *(n for own in counts for n in own)]
    most = max((sum(column) for column in zip(*counts, strict=True)), default=0)
    if min(parts) < 0 or sum(group.num_rows for group in groups) != rows or metadata.num_rows != rows:
        return f"{metadata.num_rows} rows"
    if unpacked > size or most > values:
        return f"{unpacked} bytes or {most} values unpacked"
    return None
