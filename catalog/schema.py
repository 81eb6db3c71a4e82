"""Explicit Arrow schemas of the three tables, with the features that make `datasets` show their pictures."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import pyarrow as pa

from catalog.codecs import Codec, CodecSpec, codec_for, effect_codec

TABLES: tuple[str, ...] = ("directions", "images", "regions")
ROW_GROUP = 32  # rows read together for one, at most; footers grow with the number of row groups
_GROUP_BYTES = 2**20  # of the vectors of a row group, about: all of them are read for one
KEYS: dict[str, str] = {"directions": "direction_id", "images": "image_id", "regions": "region_id"}
_STATISTICS = {
    "directions": ["direction_id", "dataset", "region", "space", "kind"],
    "concepts": ["concept_id", "region", "space", "kind"],
}
_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_FACTOR = pa.struct([pa.field("name", pa.string()), pa.field("value", pa.float32())])
_PICTURES = frozenset({"effect", "preview", "image", "mask"})
LEFT_OUT: tuple[str, ...] = ("effect", "image", "latent", "mask", "preview")
"""Columns that a catalog may do without: what shows, or gives back, the pictures it was mined from."""


@dataclass(frozen=True)
class Layout:
    """What decides the schemas: shape and codec of each space's vectors, the shape of an effect, and the columns that
    the tables do not have, some of `LEFT_OUT`.
    """

    spaces: Mapping[str, tuple[int, ...]]
    effect_shape: tuple[int, ...]
    codecs: Mapping[str, CodecSpec]
    left_out: frozenset[str] = frozenset()

    @cached_property
    def stored(self) -> dict[str, Codec]:
        """The codec of each space."""
        return {space: codec_for(self.codecs[space], shape) for space, shape in self.spaces.items()}

    @cached_property
    def effect_codec(self) -> Codec:
        """The codec of the effects of concepts; those of directions are float16."""
        return codec_for(effect_codec(self.effect_shape), self.effect_shape)

    def vector_fields(self, space: str) -> list[pa.Field]:
        """The columns that hold the vectors of a space, null in the rows of others."""
        return self.stored[space].fields(vector_column(space), nullable=True)


def list_of(dtype: pa.DataType) -> pa.DataType:
    """A list whose items are called as Parquet calls them, so that a schema survives the round trip."""
    return pa.list_(pa.field("element", dtype))


def vector_column(space: str) -> str:
    """Name of the column that holds the vectors of a space."""
    return f"{space}_vector"


def fixed_list(name: str, dtype: pa.DataType, shape: tuple[int, ...], nullable: bool = False) -> pa.Field:
    """A column of tensors of one shape, flattened."""
    return pa.field(name, pa.list_(pa.field("element", dtype, nullable=False), prod(shape)), nullable=nullable)


def pictures(*names: str) -> list[pa.Field]:
    """Image columns. Nullable, or `datasets` does not take them for its Image feature; writers never leave one out."""
    return [pa.field(name, _IMAGE) for name in names]


def plain(dtype: pa.DataType, *names: str, nullable: bool = False) -> list[pa.Field]:
    """Columns of one type."""
    return [pa.field(name, dtype, nullable=nullable) for name in names]


def _directions(layout: Layout) -> list[pa.Field]:
    names = ("direction_id", "image_id")
    fields = plain(pa.string(), *names) + plain(pa.string(), "region_id", nullable=True)
    fields += plain(pa.string(), "dataset", "model", "region", "space", "kind")
    fields += plain(pa.int32(), "rank", "timestep") + plain(pa.float64(), "strength", "gain", "leakage")
    fields += plain(pa.float64(), "sigma", "residual", nullable=True) + plain(pa.bool_(), "converged", nullable=True)
    fields += plain(pa.bool_(), "checked", nullable=True) + plain(pa.float64(), "gap", "angle", nullable=True)
    fields += plain(pa.int32(), "cluster_first", "cluster_last", nullable=True)
    fields += plain(pa.int32(), "iterations", nullable=True) + plain(pa.float64(), "change", nullable=True)
    fields += plain(pa.int32(), "joint_rank", "individual_rank", nullable=True)
    fields += plain(pa.string(), "rank_rule", nullable=True)
    fields += plain(list_of(pa.string()), "parents")
    fields += plain(pa.float64(), "kept_share", "roir_before", "roir", nullable=True)
    fields += plain(pa.bool_(), "strength_reached", "strength_limited", nullable=True)
    fields += plain(list_of(pa.float32()), "spectrum") + pictures("effect", "preview")
    fields.append(fixed_list("effect_vector", pa.float16(), layout.effect_shape))
    return fields + [field for space in sorted(layout.spaces)[::-1] for field in layout.vector_fields(space)]


def _images(layout: Layout) -> list[pa.Field]:
    fields = plain(pa.string(), "image_id", "dataset", "split", "source") + pictures("image")
    fields += [*plain(pa.int32(), "timestep"), fixed_list("latent", pa.float32(), layout.spaces["x"])]
    return fields + plain(pa.float64(), "round_trip_psnr") + plain(list_of(_FACTOR), "factors")


def _regions() -> list[pa.Field]:
    fields = plain(pa.string(), "region_id", "image_id", "region") + pictures("mask")
    return fields + plain(pa.int64(), "area")


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


def table_schema(table: str, layout: Layout) -> pa.Schema:
    """Arrow schema of `table` for vectors of a layout, `huggingface` metadata included."""
    fields = {"directions": lambda: _directions(layout), "images": lambda: _images(layout)}.get(table, _regions)()
    return with_features([field for field in fields if field.name not in layout.left_out])


def with_features(fields: list[pa.Field]) -> pa.Schema:
    """A schema of these columns whose metadata tell `datasets` what each is."""
    features = {field.name: _feature(field) for field in fields}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def light_columns(schema: pa.Schema) -> list[str]:
    """Columns that are neither pictures nor vectors: what a query needs to look at every row."""
    vectors = tuple(vector_column(space) for space in ("x", "h"))
    return [
        f.name for f in schema
        if f.name not in _PICTURES and not pa.types.is_fixed_size_list(f.type) and not f.name.startswith(vectors)
    ]  # fmt: skip


def describe(schema: pa.Schema) -> dict[str, str]:
    """Column names to Arrow types, as the manifest records them."""
    return {f.name: f"{f.type}{'' if f.nullable else ' not null'}" for f in schema}


def row_group(table: str, layout: Layout) -> int:
    """Rows of a row group: few where vectors are long, since one row is read with all of its group."""
    vectors = max(codec.usual_bytes for codec in layout.stored.values())
    longest = {
        "directions": vectors,
        "concepts": vectors,
        "images": 1 if "latent" in layout.left_out else 4 * prod(layout.spaces["x"]),
    }
    return max(1, min(ROW_GROUP, _GROUP_BYTES // longest.get(table, 1)))


def parquet_settings(table: str, schema: pa.Schema, layout: Layout) -> dict[str, Any]:
    """Keyword arguments of `pyarrow.parquet.write_table`: small, and quick for one row at random."""
    floats = [f.name for f in schema if pa.types.is_fixed_size_list(f.type) and pa.types.is_floating(f.type.value_type)]
    encodings = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in floats}
    packed = {f.name for f in schema if pa.types.is_binary(f.type)}  # only codecs make such columns
    encodings |= dict.fromkeys(packed, "PLAIN")
    return {
        "compression": _compression(schema, packed),
        "use_dictionary": False,
        "write_statistics": _STATISTICS[table] if table in _STATISTICS else [KEYS[table]],
        "column_encoding": encodings,
        "row_group_size": row_group(table, layout),
        "use_content_defined_chunking": True,
        "write_page_index": True,
        "write_page_checksum": True,
    }


def _compression(schema: pa.Schema, packed: Collection[str]) -> dict[str, str]:
    """Of each leaf column: zstd, but for columns whose values are compressed already."""
    return {leaf: "none" if leaf in packed else "zstd" for field in schema for leaf in _leaves(field.name, field.type)}


def _leaves(path: str, dtype: pa.DataType) -> Iterator[str]:
    """Paths of the leaf columns that Parquet makes of a column."""
    if pa.types.is_struct(dtype):
        for child in dtype:
            yield from _leaves(f"{path}.{child.name}", child.type)
    elif pa.types.is_list(dtype) or pa.types.is_fixed_size_list(dtype):
        yield from _leaves(f"{path}.list.element", dtype.value_type)
    else:
        yield path
