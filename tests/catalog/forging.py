"""Catalogs as a hostile or careless writer would leave them: other rows under checksums that are right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from catalog import manifest as manifests
from catalog.fs import footer_sha256
from catalog.schema import parquet_settings

Change = Callable[[pa.Table], pa.Table]


def shard_of(folder: Path, table: str) -> str:
    """The one shard of a table, or the file of the concepts."""
    manifest = manifests.load(folder)
    if table == "concepts":
        assert manifest.concepts is not None
        return manifest.concepts.path
    (path,) = manifest.shards(table)
    return path


def rewritten(folder: Path, table: str, change: Change) -> str:
    """Change the one file of a table and record its new checksum; its path."""
    name = shard_of(folder, table)
    rows = pq.read_table(folder / name, partitioning=None)
    new = change(rows)
    settings = parquet_settings(table, rows.schema, manifests.load(folder).layout)
    pq.write_table(new, folder / name, **settings)
    recorded(folder, table, new.num_rows)
    return name


def recorded(folder: Path, table: str, rows: int) -> None:
    """Make the manifest agree with what lies in the file of a table, and have it say so many rows."""
    name = shard_of(folder, table)
    path, value = folder / name, json.loads((folder / "manifest.json").read_text())
    value.pop("checksum")
    value["files"][name] |= {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size,
        "rows": rows, "footer": footer_sha256(path),
    }  # fmt: skip
    if table == "concepts":
        value["concepts"]["rows"] = rows
    else:
        (chunk,) = value["chunks"]
        value["chunks"][chunk]["rows"][table] = rows
    value["checksum"] = hashlib.sha256(canonical(value)).hexdigest()
    (folder / "manifest.json").write_bytes(canonical(value))


def canonical(value: dict[str, Any]) -> bytes:
    """The form of a manifest."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def put(column: str, row: int, value: Any) -> Change:
    """One value of a column replaced, or what a function makes of it."""

    def change(table: pa.Table) -> pa.Table:
        values = table.column(column).to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        number, field = table.schema.get_field_index(column), table.schema.field(column)
        return table.set_column(number, field, pa.array(values, type=field.type))

    return change


def no_text(column: str, row: int) -> Change:
    """The first two bytes of a string replaced by some that are no UTF-8."""

    def change(table: pa.Table) -> pa.Table:
        values = [text.encode() for text in table.column(column).to_pylist()]
        values[row] = b"\xff\xfe" + values[row][2:]
        raw = pa.array(values, pa.binary())
        number, field = table.schema.get_field_index(column), table.schema.field(column)
        return table.set_column(number, field, pa.Array.from_buffers(pa.string(), len(raw), raw.buffers()))

    return change
