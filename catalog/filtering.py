"""Filters by column: rows that have a value, or one of several."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError


def listed(wanted: Any) -> list[Any]:
    """The values that are wanted, of one or a sequence."""
    return [wanted] if isinstance(wanted, str | int | bool | float) else list(wanted)


def matches(column: pa.Array | pa.ChunkedArray, wanted: Any) -> pa.Array:
    """Where a column has one of the wanted values. Raises InputError for values of another type."""
    plain = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    try:
        return pc.is_in(column, value_set=pa.array(listed(wanted), type=plain))
    except (pa.ArrowException, TypeError) as error:
        raise InputError("filter", repr(wanted)[:80], f"values of type {plain}") from error


def filtered(table: pa.Table, equals: dict[str, Any]) -> pa.Table:
    """The rows of a table that have a wanted value in each column of `equals`. Raises InputError."""
    for column, wanted in equals.items():
        if column not in table.column_names:
            raise InputError("filter", column, f"one of {', '.join(table.column_names)}")
        table = table.filter(matches(table.column(column), wanted))
    return table
