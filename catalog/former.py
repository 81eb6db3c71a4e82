"""Manifests of former format versions, as the present one says the same. See "Evolution" in format.md."""

from __future__ import annotations

from typing import Any

LATER = frozenset({"concepts", "left_out", "part", "previous", "retired", "writer_features"})
"""Keys that version 1 did not know."""
_TABLES = ("directions", "images", "regions")


def upgraded(value: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a version "1" manifest in the terms of version "2"; nothing is checked here.

    Version 1 named shards by their chunk, wrote empty ones, stored all vectors as float16, and kept indexes as FAISS
    files. Those indexes are retired: the next commit deletes them, and `rhumb index` builds others.
    """
    chunks, files, indexes, vectors = (_mapping(value.get(key)) for key in ("chunks", "files", "indexes", "vectors"))
    empty = {
        f"{table}/{name}.parquet"
        for name, entry in chunks.items()
        for table, rows in _mapping(_mapping(entry).get("rows")).items()
        if rows == 0
    }
    owned = {str(_mapping(entry).get(key)) for entry in indexes.values() for key in ("faiss", "ids")}
    return {
        **value,
        "format_version": "2",
        "chunks": {name: _chunk(name, entry) for name, entry in chunks.items()},
        "vectors": {space: _vector(entry) for space, entry in vectors.items()},
        "indexes": {},
        "retired": sorted(path for path in (empty | owned) & files.keys()),
    }


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _chunk(name: str, entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    rows = _mapping(entry.get("rows"))
    return {**entry, "shards": {table: (f"{table}/{name}.parquet",) for table in _TABLES if rows.get(table)}}


def _vector(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {**entry, "codec": {"kind": entry.get("codec")}}
