"""Records to Arrow tables, with every rule of format.md enforced, and rows back to records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from catalog.codecs import NORM_TOLERANCE
from catalog.pictures import decode_png, effect_picture, encode_png
from catalog.records import DirectionRecord, ImageRecord, RegionRecord
from catalog.rules import (
    COUNTED,
    JUDGED,
    MEASURED,
    Frame,
    check_direction,
    check_id,
    check_image,
    check_name,
    check_number,
    check_region,
    check_whole,
)
from catalog.schema import TABLES, Layout, table_schema, vector_column
from pipeline.errors import CatalogError

SORTED: tuple[str, ...] = ("space", "region", "kind", "image_id", "rank")
"""Order of the rows of a directions shard: what is asked for together lies together."""
__all__ = [
    "NORM_TOLERANCE", "SORTED", "Frame", "check_id", "check_name", "check_records", "decoded", "effects_of", "recoded",
    "scattered", "to_direction", "to_tables", "values_of",
]  # fmt: skip


def _measured(value: float | None, field: str) -> float | None:
    """None for what was not measured (None or NaN); infinity is refused."""
    return None if value is None or math.isnan(value) else check_number(value, field)


def _unit(array: np.ndarray, shape: tuple[int, ...], field: str) -> np.ndarray:
    """`array` (shape) flattened to float64. Raises CatalogError: wrong shape, not finite, norm off by over 1e-3."""
    if tuple(array.shape) != shape:
        raise CatalogError(field, f"shape {tuple(array.shape)}", f"{shape}")
    flat = np.asarray(array, dtype=np.float64).ravel()
    if not np.isfinite(flat).all():
        raise CatalogError(field, "NaN or infinity", "finite values of a unit vector")
    norm = np.linalg.norm(flat)
    if abs(norm - 1.0) > NORM_TOLERANCE:
        raise CatalogError(field, f"norm {norm:.6g}", f"unit norm within {NORM_TOLERANCE:g}")
    return flat


def _png(array: np.ndarray) -> dict[str, Any]:
    return {"bytes": encode_png(array), "path": None}


def _direction_row(record: DirectionRecord, region_id: str | None, frame: Frame) -> dict[str, Any]:
    at = f"direction {check_id(record.direction_id, 'direction_id')}"
    row: dict[str, Any] = {
        "region_id": region_id,
        "spectrum": np.asarray(record.spectrum, dtype=np.float32).ravel().tolist(),
        "parents": list(record.parents),
    }
    for name in ("direction_id", "image_id", "dataset", "model", "region", "space", "kind", "rank_rule"):
        row[name] = getattr(record, name)
    for name in ("rank", "timestep"):
        row[name] = check_whole(getattr(record, name), f"{at}: {name}")
    for name in ("strength", "gain", "leakage"):
        row[name] = getattr(record, name)
    for name in MEASURED:
        row[name] = _measured(getattr(record, name), f"{at}: {name}")
    for name in JUDGED:
        row[name] = None if getattr(record, name) is None else bool(getattr(record, name))
    for name in COUNTED:
        row[name] = None if getattr(record, name) is None else check_whole(getattr(record, name), f"{at}: {name}")
    pictures = {"effect": _shown(record.effect, frame, at), "preview": record.preview}
    check_direction(row, pictures, frame)
    row |= {name: _png(picture) for name, picture in pictures.items()}
    row["effect_vector"] = record.effect.astype(np.float16).ravel()
    row["vector"] = _unit(record.vector, frame.spaces[record.space], f"{at}: vector").astype(np.float32)
    return row


def _shown(effect: np.ndarray, frame: Frame, at: str) -> np.ndarray:
    _unit(effect, frame.effect_shape, f"{at}: effect")
    return effect_picture(effect)


def _image_row(record: ImageRecord, frame: Frame) -> dict[str, Any]:
    at = f"image {check_id(record.image_id, 'image_id')}"
    latent = np.asarray(record.latent, dtype=np.float32)
    if latent.shape != frame.spaces["x"] or not np.isfinite(latent).all():
        raise CatalogError(f"{at}: latent", f"{latent.shape}", f"finite values of shape {frame.spaces['x']}")
    row: dict[str, Any] = {
        name: getattr(record, name) for name in ("image_id", "dataset", "split", "source", "round_trip_psnr")
    }
    row["timestep"] = check_whole(record.timestep, f"{at}: timestep")
    row["factors"] = [{"name": name, "value": value} for name, value in sorted(record.factors.items())]
    check_image(row, record.image, frame)
    return {**row, "image": _png(record.image), "latent": latent.ravel()}


def _region_row(record: RegionRecord, frame: Frame) -> dict[str, Any]:
    at = f"region {check_id(record.region_id, 'region_id')}"
    mask = np.asarray(record.mask)
    if mask.dtype != np.bool_ or mask.ndim != 2 or not mask.any():
        raise CatalogError(f"{at}: mask", f"{mask.dtype} {mask.shape}, {int(mask.sum())} set", "bool (H, W), not empty")
    row: dict[str, Any] = {name: getattr(record, name) for name in ("region_id", "image_id", "region")}
    row["area"] = int(mask.sum())
    picture = mask.astype(np.uint8) * 255
    check_region(row, picture, frame)
    return {**row, "mask": _png(picture)}


def _column(rows: list[dict[str, Any]], field: pa.Field) -> pa.Array:
    if not pa.types.is_fixed_size_list(field.type):
        return pa.array([row[field.name] for row in rows], type=field.type)
    values = np.stack([row[field.name] for row in rows]) if rows else np.zeros((0, field.type.list_size))
    return scattered(values, np.ones(len(rows), dtype=bool), field)


def scattered(values: np.ndarray, present: np.ndarray, field: pa.Field) -> pa.Array:
    """A column with `values` in the rows that are `present` (n,) and null in the others."""
    missing = None if present.all() else ~present
    if not pa.types.is_fixed_size_list(field.type):
        spread = np.full(len(present), None, dtype=object)
        spread[present] = values
        return pa.array(spread, type=field.type, mask=missing)
    wide = np.zeros((len(present), field.type.list_size), dtype=field.type.value_type.to_pandas_dtype())
    wide[present] = values
    mask = None if missing is None else pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(pa.array(wide.ravel()), type=field.type, mask=mask)


def _vector_columns(rows: list[dict[str, Any]], layout: Layout) -> dict[str, pa.Array]:
    """The columns of all spaces, each null in the rows of the others."""
    columns: dict[str, pa.Array] = {}
    for space, codec in layout.stored.items():
        present = np.array([row["space"] == space for row in rows], dtype=bool)
        fields = layout.vector_fields(space)
        own = [row["vector"] for row in rows if row["space"] == space]
        size = int(np.prod(layout.spaces[space]))
        encoded = codec.encode(np.stack(own) if own else np.zeros((0, size), np.float32), vector_column(space))
        columns |= {field.name: scattered(encoded[field.name], present, field) for field in fields}
    return columns


def _table(rows: list[dict[str, Any]], schema: pa.Schema, ready: Mapping[str, pa.Array]) -> pa.Table:
    columns = [ready[field.name] if field.name in ready else _column(rows, field) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _size(record: ImageRecord) -> tuple[int, int]:
    """Height and width of an image, of which all of its catalog are."""
    height, width = (*record.image.shape, 0, 0)[:2]
    return height, width


def check_records(
    image: ImageRecord, regions: Iterable[RegionRecord], directions: Iterable[DirectionRecord], frame: Frame
) -> None:
    """Raise CatalogError where a record of one image would not be accepted by a catalog; joins are not looked at."""
    _image_row(image, frame)
    frame = replace(frame, size=_size(image))
    for region in regions:
        _region_row(region, frame)
    for direction in directions:
        _direction_row(direction, None, frame)


def to_tables(
    directions: list[tuple[DirectionRecord, str | None]],
    images: list[ImageRecord],
    regions: list[RegionRecord],
    model: str,
    layout: Layout,
) -> dict[str, pa.Table]:
    """The shards of a chunk, rows in the order of `SORTED`. `directions` pairs each record with the id of its region.

    Raises CatalogError naming the record and field that breaks a rule of format.md.
    """
    size = _size(images[0]) if images else None
    frame = Frame(model, layout.spaces, layout.effect_shape, size)
    rows = {
        "directions": [_direction_row(record, region, frame) for record, region in directions],
        "images": [_image_row(record, frame) for record in images],
        "regions": [_region_row(record, frame) for record in regions],
    }
    rows["directions"].sort(key=lambda row: tuple(row[name] for name in SORTED))
    ready = {"directions": _vector_columns(rows["directions"], layout)}
    return {table: _table(rows[table], table_schema(table, layout), ready.get(table, {})) for table in TABLES}


def values_of(column: pa.ChunkedArray, field: str) -> np.ndarray:
    """The numbers of a column without nulls, in their stored dtype: (n, D) of fixed-size lists, else (n,).

    Raises CatalogError for a null.
    """
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # a column without chunks stays chunked
        array = pa.array([], type=column.type) if column.num_chunks == 0 else array.chunk(0)
    if array.null_count:
        raise CatalogError(field, f"{array.null_count} empty vectors", "a vector in every row of its space")
    if not pa.types.is_fixed_size_list(column.type):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    values = array.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values).reshape(len(array), column.type.list_size)


def decoded(rows: pa.Table, layout: Layout, space: str, name: str) -> np.ndarray:
    """(n, D) float32 vectors of rows of one space, unit norm within 1e-3. `name` is the file's, for errors.

    Raises CatalogError for a vector that is missing or that no writer would have stored.
    """
    fields = layout.vector_fields(space)
    columns = {field.name: values_of(rows.column(field.name), f"{name}: {field.name}") for field in fields}
    try:
        vectors = layout.stored[space].decode(columns)
    except CatalogError as error:
        raise CatalogError(f"{name}: {error.field}", error.found, error.expected, error.action) from error
    return _of_unit_norm(vectors, f"{name}: {fields[0].name}")


def recoded(rows: pa.Table, former: Layout, layout: Layout, name: str) -> pa.Table:
    """Rows of directions as `layout` has them; their vectors as they are where both store them the same way."""
    schema = table_schema("directions", layout)
    if former.codecs == layout.codecs:
        return rows.select(schema.names).replace_schema_metadata(schema.metadata)
    spaces = rows.column("space").to_pylist()
    plain: list[dict[str, Any]] = [{"space": space} for space in spaces]
    for space in layout.spaces:
        own = [i for i, one in enumerate(spaces) if one == space]
        for i, vector in zip(own, decoded(rows.take(own), former, space, name), strict=True):
            plain[i]["vector"] = vector
    ready = _vector_columns(plain, layout)
    columns = [ready[field.name] if field.name in ready else rows.column(field.name) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def effects_of(rows: pa.Table, name: str) -> np.ndarray:
    """(n, D) float32 effects, unit norm within 1e-3. Raises CatalogError as `decoded` does."""
    field = f"{name}: effect_vector"
    return _of_unit_norm(values_of(rows.column("effect_vector"), field).astype(np.float32), field)


def _of_unit_norm(vectors: np.ndarray, field: str) -> np.ndarray:
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    wrong = np.flatnonzero(~(np.abs(norms - 1.0) <= NORM_TOLERANCE))
    if len(wrong):
        raise CatalogError(
            field, f"norm {norms[wrong[0]]:.6g}", "1: a whole vector", "Run `rhumb verify` and pull or mine it again"
        )
    return vectors


def to_direction(row: Mapping[str, Any], vector: np.ndarray, effect: np.ndarray, name: str) -> DirectionRecord:
    """A row of `directions` back to its record; `vector` and `effect` float32 in their shapes."""
    plain = ("direction_id", "image_id", "dataset", "model", "region", "space", "kind", "rank", "timestep")
    measured = ("strength", "gain", "leakage", "sigma", "residual", "converged", "iterations", "change", "kept_share")
    proven = ("checked", "gap", "angle", "cluster_first", "cluster_last")
    split = ("joint_rank", "individual_rank", "rank_rule")
    decoded = ("roir_before", "roir", "strength_reached", "strength_limited")
    return DirectionRecord(
        **{key: row[key] for key in plain + measured + proven + split + decoded},
        vector=vector,
        effect=effect,
        preview=decode_png(row["preview"]["bytes"], f"{name}: preview"),
        spectrum=np.asarray(row["spectrum"], dtype=np.float32),
        parents=tuple(row["parents"]),
    )
