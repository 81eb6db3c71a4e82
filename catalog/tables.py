"""Records to Arrow tables, with every rule of format.md enforced, and rows back to records."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from catalog.pictures import decode_png, effect_picture, encode_png
from catalog.records import DirectionRecord, ImageRecord, RegionRecord
from catalog.schema import TABLES, Layout, table_schema, vector_column
from pipeline.errors import CatalogError

NORM_TOLERANCE = 1e-3
SORTED: tuple[str, ...] = ("space", "region", "kind", "image_id", "rank")
"""Order of the rows of a directions shard: what is asked for together lies together."""
KINDS: tuple[str, ...] = ("singular", "local", "joint", "individual")
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Frame:
    """What every record of one catalog must fit: model fingerprint, shape of each space, shape of an effect."""

    model: str
    spaces: Mapping[str, tuple[int, ...]]
    effect_shape: tuple[int, ...]


def check_id(value: object, field: str) -> str:
    """`value` if it is an id: 32 lower-case hex digits. Raises CatalogError."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise CatalogError(field, repr(value)[:80], "32 lower-case hex digits, see records.content_id")
    return value


def check_name(value: object, field: str) -> str:
    """`value` if it is a printable name of 1 to 200 characters. Raises CatalogError."""
    if not isinstance(value, str) or not 1 <= len(value) <= 200 or not value.isprintable():
        raise CatalogError(field, repr(value)[:80], "1 to 200 printable characters")
    return value


def _number(value: float | None, field: str, low: float = -math.inf, high: float = math.inf) -> float:
    if value is None or not math.isfinite(value) or not low <= value <= high:
        bounds = "" if low == -math.inf else f" from {low:g}" + ("" if high == math.inf else f" to {high:g}")
        raise CatalogError(field, str(value), f"a finite number{bounds}", "A direction is published with its evidence")
    return float(value)


def _measured(value: float | None, field: str) -> float | None:
    """None for what was not measured (None or NaN); infinity is refused."""
    return None if value is None or math.isnan(value) else _number(value, field)


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


def _picture(array: np.ndarray, field: str) -> dict[str, Any]:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    if array.dtype != np.uint8 or not shaped or array.size == 0:
        raise CatalogError(field, f"{array.dtype} {array.shape}", "uint8 (H, W, 3) or (H, W, 1), not empty")
    return {"bytes": encode_png(array), "path": None}


def _check_certificate(row: Mapping[str, Any], field: str) -> None:
    """Raise CatalogError unless a singular triplet says what its residual proves."""
    _number(row["gap"], f"{field}: gap", 0.0)
    _number(row["angle"], f"{field}: angle", 0.0, math.pi / 2)
    if not isinstance(row["checked"], bool):
        raise CatalogError(f"{field}: checked", str(row["checked"]), "true or false")
    _number(row["cluster_first"], f"{field}: cluster_first", 0, row["rank"])
    _number(row["cluster_last"], f"{field}: cluster_last", row["rank"])


def check_evidence(row: Mapping[str, Any], field: str) -> None:
    """Raise CatalogError unless the row of a direction carries the evidence its kind asks for."""
    _number(row["strength"], f"{field}: strength")
    for name in ("gain", "leakage"):
        _number(row[name], f"{field}: {name}", 0.0)
    if row["kind"] not in KINDS:
        raise CatalogError(f"{field}: kind", repr(row["kind"])[:40], " | ".join(KINDS))
    triplet = ("sigma", "residual", "converged", "checked", "gap", "angle", "cluster_first", "cluster_last")
    of_svd = row["kind"] == "singular" or (row["kind"] == "local" and any(row[name] is not None for name in triplet))
    of_split = row["kind"] in ("joint", "individual")
    if of_svd:
        _number(row["sigma"], f"{field}: sigma", 0.0)
        _number(row["residual"], f"{field}: residual", 0.0)
        if not row["spectrum"]:
            raise CatalogError(f"{field}: spectrum", "nothing", "the singular values it was taken from")
        _check_certificate(row, field)
    if of_split:
        _number(row["iterations"], f"{field}: iterations", 1)
        _number(row["change"], f"{field}: change", 0.0)
        for name in ("joint_rank", "individual_rank"):
            _number(row[name], f"{field}: {name}", 1 if name == f"{row['kind']}_rank" else 0)
        check_name(row["rank_rule"], f"{field}: rank_rule")
    if (of_svd or of_split) and not isinstance(row["converged"], bool):
        raise CatalogError(f"{field}: converged", str(row["converged"]), "true or false")
    if row["kind"] != "singular":
        if not row["parents"]:
            raise CatalogError(f"{field}: parents", "none", "the ids of the directions it was derived from")
        _number(row["kept_share"], f"{field}: kept_share", 0.0, 1.0 + 1e-6)
    ends = (row["strength_reached"], row["strength_limited"])
    if ends not in ((None, None), (True, False), (False, True), (False, False)):
        raise CatalogError(f"{field}: strength_reached, strength_limited", str(ends), "both null, or at most one true")
    if not all(math.isfinite(s) and s >= 0 for s in row["spectrum"]):
        raise CatalogError(f"{field}: spectrum", "NaN, infinity or a negative value", "singular values")


def _direction_row(record: DirectionRecord, region_id: str | None, frame: Frame) -> dict[str, Any]:
    at = f"direction {check_id(record.direction_id, 'direction_id')}"
    if record.space not in frame.spaces:
        raise CatalogError(f"{at}: space", record.space, f"one of {', '.join(frame.spaces)}")
    row: dict[str, Any] = {
        "direction_id": record.direction_id,
        "image_id": check_id(record.image_id, f"{at}: image_id"),
        "region_id": region_id,
        "spectrum": np.asarray(record.spectrum, dtype=np.float32).ravel().tolist(),
        "parents": [check_id(parent, f"{at}: parents") for parent in record.parents],
    }
    for name in ("dataset", "model", "region", "space", "kind"):
        row[name] = check_name(getattr(record, name), f"{at}: {name}")
    for name in ("rank", "timestep"):
        row[name] = int(_number(getattr(record, name), f"{at}: {name}", 0, 2**31 - 1))
    for name in ("strength", "gain", "leakage"):
        row[name] = getattr(record, name)
    for name in ("sigma", "residual", "gap", "angle", "change", "kept_share", "roir_before", "roir"):
        row[name] = _measured(getattr(record, name), f"{at}: {name}")
    for name in ("converged", "checked", "strength_reached", "strength_limited"):
        row[name] = None if getattr(record, name) is None else bool(getattr(record, name))
    for name in ("iterations", "joint_rank", "individual_rank", "cluster_first", "cluster_last"):
        row[name] = None if getattr(record, name) is None else int(getattr(record, name))
    row["rank_rule"] = record.rank_rule
    if record.model != frame.model:
        raise CatalogError(f"{at}: model", record.model, f"the catalog's {frame.model}")
    check_evidence(row, at)
    row["effect_vector"] = _unit(record.effect, frame.effect_shape, f"{at}: effect").astype(np.float16)
    row["effect"] = _picture(effect_picture(record.effect), f"{at}: effect")
    row["preview"] = _picture(record.preview, f"{at}: preview")
    row["vector"] = _unit(record.vector, frame.spaces[record.space], f"{at}: vector").astype(np.float32)
    return row


def _image_row(record: ImageRecord, frame: Frame) -> dict[str, Any]:
    at = f"image {check_id(record.image_id, 'image_id')}"
    latent = np.asarray(record.latent, dtype=np.float32)
    if latent.shape != frame.spaces["x"] or not np.isfinite(latent).all():
        raise CatalogError(f"{at}: latent", f"{latent.shape}", f"finite values of shape {frame.spaces['x']}")
    factors = [
        {"name": check_name(name, f"{at}: factors"), "value": _number(value, f"{at}: factors")}
        for name, value in sorted(record.factors.items())
    ]
    return {
        "image_id": record.image_id,
        "dataset": check_name(record.dataset, f"{at}: dataset"),
        "split": check_name(record.split, f"{at}: split"),
        "source": check_name(record.source, f"{at}: source"),
        "image": _picture(record.image, f"{at}: image"),
        "timestep": int(_number(record.timestep, f"{at}: timestep", 0, 2**31 - 1)),
        "latent": latent.ravel(),
        "round_trip_psnr": _number(record.round_trip_psnr, f"{at}: round_trip_psnr"),
        "factors": factors,
    }


def _region_row(record: RegionRecord) -> dict[str, Any]:
    at = f"region {check_id(record.region_id, 'region_id')}"
    mask = np.asarray(record.mask)
    if mask.dtype != np.bool_ or mask.ndim != 2 or not mask.any():
        raise CatalogError(f"{at}: mask", f"{mask.dtype} {mask.shape}, {int(mask.sum())} set", "bool (H, W), not empty")
    return {
        "region_id": record.region_id,
        "image_id": check_id(record.image_id, f"{at}: image_id"),
        "region": check_name(record.region, f"{at}: region"),
        "mask": _picture(mask.astype(np.uint8) * 255, f"{at}: mask"),
        "area": int(mask.sum()),
    }


def _column(rows: list[dict[str, Any]], field: pa.Field) -> pa.Array:
    if not pa.types.is_fixed_size_list(field.type):
        return pa.array([row[field.name] for row in rows], type=field.type)
    values = np.stack([row[field.name] for row in rows]) if rows else np.zeros((0, field.type.list_size))
    return _scattered(values, np.ones(len(rows), dtype=bool), field)


def _scattered(values: np.ndarray, present: np.ndarray, field: pa.Field) -> pa.Array:
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
        columns |= {field.name: _scattered(encoded[field.name], present, field) for field in fields}
    return columns


def _table(rows: list[dict[str, Any]], schema: pa.Schema, ready: Mapping[str, pa.Array]) -> pa.Table:
    columns = [ready[field.name] if field.name in ready else _column(rows, field) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def check_records(
    image: ImageRecord, regions: Iterable[RegionRecord], directions: Iterable[DirectionRecord], frame: Frame
) -> None:
    """Raise CatalogError where a record of one image would not be accepted by a catalog; joins are not looked at."""
    _image_row(image, frame)
    for region in regions:
        _region_row(region)
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
    frame = Frame(model, layout.spaces, layout.effect_shape)
    rows = {
        "directions": [_direction_row(record, region, frame) for record, region in directions],
        "images": [_image_row(record, frame) for record in images],
        "regions": [_region_row(record) for record in regions],
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
    """Rows of directions with their vectors stored as `layout` says; as they are where both say the same."""
    if former == layout:
        return rows
    spaces = rows.column("space").to_pylist()
    plain: list[dict[str, Any]] = [{"space": space} for space in spaces]
    for space in layout.spaces:
        own = [i for i, one in enumerate(spaces) if one == space]
        for i, vector in zip(own, decoded(rows.take(own), former, space, name), strict=True):
            plain[i]["vector"] = vector
    ready = _vector_columns(plain, layout)
    schema = table_schema("directions", layout)
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
