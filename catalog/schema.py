"""Explicit Arrow schemas of the three tables, with the features that make `datasets` show their pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import pyarrow as pa

TABLES: tuple[str, ...] = ("directions", "images", "regions")
ROW_GROUP = 16
_ID_STATISTICS = {"directions": "direction_id", "images": "image_id", "regions": "region_id"}
_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_FACTOR = pa.struct([pa.field("name", pa.string()), pa.field("value", pa.float32())])
_PICTURES = frozenset({"effect", "preview", "image", "mask"})


def _list(dtype: pa.DataType) -> pa.DataType:
    """A list whose items are called as Parquet calls them, so that a schema survives the round trip."""
    return pa.list_(pa.field("element", dtype))


def vector_column(space: str) -> str:
    """Name of the column that holds the vectors of a space."""
    return f"{space}_vector"


def _fixed(name: str, dtype: pa.DataType, shape: tuple[int, ...], nullable: bool = False) -> pa.Field:
    return pa.field(name, pa.list_(pa.field("element", dtype, nullable=False), prod(shape)), nullable=nullable)


def _pictures(*names: str) -> list[pa.Field]:
    """Image columns. Nullable, or `datasets` does not take them for its Image feature; writers never leave one out."""
    return [pa.field(name, _IMAGE) for name in names]


def _plain(dtype: pa.DataType, *names: str, nullable: bool = False) -> list[pa.Field]:
    return [pa.field(name, dtype, nullable=nullable) for name in names]


def _directions(spaces: Mapping[str, tuple[int, ...]], effect_shape: tuple[int, ...]) -> list[pa.Field]:
    names = ("direction_id", "image_id")
    fields = _plain(pa.string(), *names) + _plain(pa.string(), "region_id", nullable=True)
    fields += _plain(pa.string(), "dataset", "model", "region", "space", "kind")
    fields += _plain(pa.int32(), "rank", "timestep") + _plain(pa.float64(), "strength", "gain", "leakage")
    fields += _plain(pa.float64(), "sigma", "residual", nullable=True) + _plain(pa.bool_(), "converged", nullable=True)
    fields += _plain(pa.bool_(), "checked", nullable=True) + _plain(pa.float64(), "gap", "angle", nullable=True)
    fields += _plain(pa.int32(), "cluster_first", "cluster_last", nullable=True)
    fields += _plain(pa.int32(), "iterations", nullable=True) + _plain(pa.float64(), "change", nullable=True)
    fields += _plain(pa.int32(), "joint_rank", "individual_rank", nullable=True)
    fields += _plain(pa.string(), "rank_rule", nullable=True)
    fields += _plain(_list(pa.string()), "parents")
    fields += _plain(pa.float64(), "kept_share", "roir_before", "roir", nullable=True)
    fields += _plain(pa.bool_(), "strength_reached", "strength_limited", nullable=True)
    fields += _plain(_list(pa.float32()), "spectrum") + _pictures("effect", "preview")
    fields.append(_fixed("effect_vector", pa.float16(), effect_shape))
    return fields + [_fixed(vector_column(s), pa.float16(), spaces[s], nullable=True) for s in sorted(spaces)[::-1]]


def _images(spaces: Mapping[str, tuple[int, ...]]) -> list[pa.Field]:
    fields = _plain(pa.string(), "image_id", "dataset", "split", "source") + _pictures("image")
    fields += [*_plain(pa.int32(), "timestep"), _fixed("latent", pa.float32(), spaces["x"])]
    return fields + _plain(pa.float64(), "round_trip_psnr") + _plain(_list(_FACTOR), "factors")


def _regions() -> list[pa.Field]:
    fields = _plain(pa.string(), "region_id", "image_id", "region") + _pictures("mask")
    return fields + _plain(pa.int64(), "area")


def _feature(field: pa.Field) -> Any:
    """The `datasets` feature of a field, in its JSON form."""
    if field.name in _PICTURES:
        return {"_type": "Image"}
    return _type_feature(field.type)


def _type_feature(dtype: pa.DataType) -> Any:
    if pa.types.is_fixed_size_list(dtype):
        return {"feature": _type_feature(dtype.value_type), "length": dtype.list_size, "_type": "List"}
    if pa.types.is_list(dtype):
        return {"feature": _type_feature(dtype.value_type), "_type": "List"}
    if pa.types.is_struct(dtype):
        return {child.name: _type_feature(child.type) for child in dtype}
    names = {"halffloat": "float16", "float": "float32", "double": "float64"}
    return {"dtype": names.get(str(dtype), str(dtype)), "_type": "Value"}


def table_schema(table: str, spaces: Mapping[str, tuple[int, ...]], effect_shape: tuple[int, ...]) -> pa.Schema:
    """Arrow schema of `table` for vectors of the given shapes, `huggingface` metadata included."""
    fields = {"directions": lambda: _directions(spaces, effect_shape), "images": lambda: _images(spaces)}.get(
        table, _regions
    )()
    features = {field.name: _feature(field) for field in fields}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def light_columns(schema: pa.Schema) -> list[str]:
    """Columns that are neither pictures nor vectors: what a query needs to look at every row."""
    return [f.name for f in schema if f.name not in _PICTURES and not pa.types.is_fixed_size_list(f.type)]


def describe(schema: pa.Schema) -> dict[str, str]:
    """Column names to Arrow types, as the manifest records them."""
    return {f.name: f"{f.type}{'' if f.nullable else ' not null'}" for f in schema}


def parquet_settings(table: str, schema: pa.Schema) -> dict[str, Any]:
    """Keyword arguments of `pyarrow.parquet.write_table`: small, and quick for one row at random."""
    split = [f"{f.name}.list.element" for f in schema if pa.types.is_fixed_size_list(f.type)]
    return {
        "compression": "zstd",
        "use_dictionary": False,
        "write_statistics": [_ID_STATISTICS[table]],
        "column_encoding": dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
        "row_group_size": ROW_GROUP,
        "use_content_defined_chunking": True,
        "write_page_index": True,
        "write_page_checksum": True,
    }
