"""What a Parquet file from outside may unpack to, told from its footer before anything is read."""

from __future__ import annotations

from catalog.footer import Footer


def excess(footer: Footer, rows: int, size: int, values: int) -> str | None:
    """What a footer states beyond `rows` rows exactly, `size` bytes, and `values` values in any one column; None: fine.

    Runs and dictionaries unpack to as many values as a column states, whatever its bytes: bytes alone bound nothing.
    """
    groups = footer.groups
    counts = [[chunk.num_values for chunk in group.chunks] for group in groups]
    unpacked = sum(group.total_byte_size for group in groups)
    parts = [footer.num_rows, unpacked, *(group.num_rows for group in groups), *(n for own in counts for n in own)]
    if min(parts) < 0 or sum(group.num_rows for group in groups) != rows or footer.num_rows != rows:
        return f"{footer.num_rows} rows"
    if len({len(own) for own in counts}) > 1:
        return "row groups of several widths"
    most = max((sum(column) for column in zip(*counts, strict=True)), default=0)
    if unpacked > size or most > values:
        return f"{unpacked} bytes or {most} values unpacked"
    return None
