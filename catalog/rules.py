"""The rules of format.md that a single row must keep, whoever wrote it: the writer's, and those of `verify`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from catalog.pictures import decode_png
from pipeline.errors import CatalogError

KINDS: tuple[str, ...] = ("singular", "local", "joint", "individual")
MEASURED: tuple[str, ...] = ("sigma", "residual", "gap", "angle", "change", "kept_share", "roir_before", "roir")
COUNTED: tuple[str, ...] = ("iterations", "joint_rank", "individual_rank", "cluster_first", "cluster_last")
JUDGED: tuple[str, ...] = ("converged", "checked", "strength_reached", "strength_limited")
_ID = re.compile(r"[0-9a-f]{32}")
_MEMBERS = ("members", "signs", "cosines", "effect_cosines")  # of a concept, one each
_ROUNDING = 1e-3  # of cosines kept in single precision
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Frame:
    """What every record of one catalog must fit: model fingerprint, shape of each space, shape of an effect, and
    height and width of an image (None: not known yet).
    """

    model: str
    spaces: Mapping[str, tuple[int, ...]]
    effect_shape: tuple[int, ...]
    size: tuple[int, int] | None = None


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


def check_number(value: float | None, field: str, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` if it is finite and within bounds. Raises CatalogError, for None too."""
    if value is None or not math.isfinite(value) or not low <= value <= high:
        bounds = "" if low == -math.inf else f" from {low:g}" + ("" if high == math.inf else f" to {high:g}")
        raise CatalogError(field, str(value), f"a finite number{bounds}")
    return float(value)


def check_whole(value: float | None, field: str) -> int:
    """`value` as a whole number from 0 that an int32 holds. Raises CatalogError."""
    return int(check_number(value, field, 0, _LARGEST))


def check_list(value: object, field: str) -> list[Any]:
    """`value` if it is a list without nulls. Raises CatalogError."""
    if not isinstance(value, list) or any(item is None for item in value):
        raise CatalogError(field, "null" if value is None else "a list with nulls", "a list without nulls")
    return value


def stored_bytes(value: Mapping[str, Any] | None, field: str) -> bytes:
    """The bytes of a stored image. Raises CatalogError: null, or one that names a file."""
    if value is None or not isinstance(value["bytes"], bytes):
        raise CatalogError(field, "nothing", "a PNG")
    if value["path"] is not None:
        raise CatalogError(f"{field}: path", repr(value["path"])[:80], "null: the PNG itself is stored")
    return value["bytes"]


def stored_picture(value: Mapping[str, Any] | None, field: str) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) of a stored image. Raises CatalogError: null, no PNG, or one that names a file."""
    return decode_png(stored_bytes(value, field), field)


def check_picture(array: np.ndarray, field: str, size: tuple[int, int] | None = None) -> None:
    """Raise CatalogError unless `array` is uint8 (H, W), (H, W, 1) or (H, W, 3), of `size` where that is known."""
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    if array.dtype != np.uint8 or not shaped or array.size == 0:
        raise CatalogError(field, f"{array.dtype} {array.shape}", "uint8 (H, W, 3) or (H, W, 1), not empty")
    if size is not None and array.shape[:2] != size:
        found = " x ".join(map(str, array.shape[:2]))
        raise CatalogError(field, f"{found} pixels", f"{size[0]} x {size[1]}: the images of a catalog are of one size")


def _check_certificate(row: Mapping[str, Any], field: str) -> None:
    """Raise CatalogError unless a singular triplet says what its residual proves."""
    check_number(row["gap"], f"{field}: gap", 0.0)
    check_number(row["angle"], f"{field}: angle", 0.0, math.pi / 2)
    if not isinstance(row["checked"], bool):
        raise CatalogError(f"{field}: checked", str(row["checked"]), "true or false")
    check_number(row["cluster_first"], f"{field}: cluster_first", 0, row["rank"])
    check_number(row["cluster_last"], f"{field}: cluster_last", row["rank"])


def check_evidence(row: Mapping[str, Any], field: str) -> None:
    """Raise CatalogError unless the row of a direction carries the evidence its kind asks for."""
    check_number(row["strength"], f"{field}: strength")
    for name in ("gain", "leakage"):
        check_number(row[name], f"{field}: {name}", 0.0)
    if row["kind"] not in KINDS:
        raise CatalogError(f"{field}: kind", repr(row["kind"])[:40], " | ".join(KINDS))
    triplet = ("sigma", "residual", "converged", "checked", "gap", "angle", "cluster_first", "cluster_last")
    of_svd = row["kind"] == "singular" or (row["kind"] == "local" and any(row[name] is not None for name in triplet))
    of_split = row["kind"] in ("joint", "individual")
    if of_svd:
        check_number(row["sigma"], f"{field}: sigma", 0.0)
        check_number(row["residual"], f"{field}: residual", 0.0)
        if not row["spectrum"]:
            raise CatalogError(f"{field}: spectrum", "nothing", "the singular values it was taken from")
        _check_certificate(row, field)
    if of_split:
        check_number(row["iterations"], f"{field}: iterations", 1)
        check_number(row["change"], f"{field}: change", 0.0)
        for name in ("joint_rank", "individual_rank"):
            check_number(row[name], f"{field}: {name}", 1 if name == f"{row['kind']}_rank" else 0)
        check_name(row["rank_rule"], f"{field}: rank_rule")
    if (of_svd or of_split) and not isinstance(row["converged"], bool):
        raise CatalogError(f"{field}: converged", str(row["converged"]), "true or false")
    if row["kind"] != "singular":
        if not row["parents"]:
            raise CatalogError(f"{field}: parents", "none", "the ids of the directions it was derived from")
        check_number(row["kept_share"], f"{field}: kept_share", 0.0, 1.0 + 1e-6)
    ends = (row["strength_reached"], row["strength_limited"])
    if ends not in ((None, None), (True, False), (False, True), (False, False)):
        raise CatalogError(f"{field}: strength_reached, strength_limited", str(ends), "both null, or at most one true")
    if not all(math.isfinite(s) and s >= 0 for s in check_list(row["spectrum"], f"{field}: spectrum")):
        raise CatalogError(f"{field}: spectrum", "NaN, infinity or a negative value", "singular values")


def check_direction(row: Mapping[str, Any], pictures: Mapping[str, np.ndarray], frame: Frame) -> None:
    """Raise CatalogError unless a row of `directions` keeps the rules; joins and vectors are not looked at.

    `pictures`: its effect and preview, decoded, (H, 3 W) with or without channels the latter; those that are stored.
    """
    at = f"direction {check_id(row['direction_id'], 'direction_id')}"
    check_id(row["image_id"], f"{at}: image_id")
    if row["region_id"] is not None:
        check_id(row["region_id"], f"{at}: region_id")
    for name in ("dataset", "model", "region", "space", "kind"):
        check_name(row[name], f"{at}: {name}")
    if row["space"] not in frame.spaces:
        raise CatalogError(f"{at}: space", row["space"], f"one of {', '.join(frame.spaces)}")
    if row["model"] != frame.model:
        raise CatalogError(f"{at}: model", row["model"], f"the catalog's {frame.model}")
    for name in ("rank", "timestep"):
        check_whole(row[name], f"{at}: {name}")
    for name in MEASURED:
        if row[name] is not None:
            check_number(row[name], f"{at}: {name}")
    for name in COUNTED:
        if row[name] is not None:
            check_whole(row[name], f"{at}: {name}")
    if row["rank_rule"] is not None:
        check_name(row["rank_rule"], f"{at}: rank_rule")
    for parent in check_list(row["parents"], f"{at}: parents"):
        if check_id(parent, f"{at}: parents") == row["direction_id"]:
            raise CatalogError(f"{at}: parents", "itself", "the ids of the directions it was derived from")
    check_evidence(row, at)
    wide = None if frame.size is None else (frame.size[0], 3 * frame.size[1])
    for name, picture in pictures.items():
        check_picture(picture, f"{at}: {name}", wide if name == "preview" else None)


def check_image(row: Mapping[str, Any], picture: np.ndarray | None, frame: Frame) -> None:
    """Raise CatalogError unless a row of `images` keeps the rules; `picture` is its image, decoded, where stored."""
    at = f"image {check_id(row['image_id'], 'image_id')}"
    for name in ("dataset", "split", "source"):
        check_name(row[name], f"{at}: {name}")
    check_whole(row["timestep"], f"{at}: timestep")
    check_number(row["round_trip_psnr"], f"{at}: round_trip_psnr")
    for factor in check_list(row["factors"], f"{at}: factors"):
        check_name(factor["name"], f"{at}: factors")
        check_number(factor["value"], f"{at}: factors")
    if picture is not None:
        check_picture(picture, f"{at}: image", frame.size)


def check_region(row: Mapping[str, Any], mask: np.ndarray | None, frame: Frame) -> None:
    """Raise CatalogError unless a row of `regions` keeps the rules; `mask` uint8 (H, W), 0 or 255, where stored."""
    at = f"region {check_id(row['region_id'], 'region_id')}"
    check_id(row["image_id"], f"{at}: image_id")
    check_name(row["region"], f"{at}: region")
    if mask is None:
        check_number(row["area"], f"{at}: area", 1)
        return
    check_picture(mask, f"{at}: mask", frame.size)
    if mask.ndim != 2 or not np.isin(mask, (0, 255)).all():
        raise CatalogError(f"{at}: mask", f"values other than 0 and 255, or {mask.shape}", "one channel, 0 or 255")
    pixels = int(np.count_nonzero(mask))
    if not pixels or row["area"] != pixels:
        raise CatalogError(f"{at}: area", f"{row['area']} for a mask of {pixels} pixels", "the pixels of a mask, not 0")


def check_concept(row: Mapping[str, Any], spaces: Mapping[str, tuple[int, ...]], at: str) -> None:
    """Raise CatalogError unless a row of `concepts` keeps the rules; joins, norms and pixels are not looked at."""
    for field in ("region", "space", "kind"):
        check_name(row[field], f"{at}: {field}")
    for field in ("concept_id", "medoid", "image_id"):
        check_id(row[field], f"{at}: {field}")
    if row["region_id"] is not None:
        check_id(row["region_id"], f"{at}: region_id")
    if row["space"] not in spaces:
        raise CatalogError(f"{at}: space", row["space"], f"one of {', '.join(spaces)}")
    if row["kind"] not in KINDS:
        raise CatalogError(f"{at}: kind", row["kind"], " | ".join(KINDS))
    check_whole(row["timestep"], f"{at}: timestep")
    _check_members(row, at)
    _check_figures(row, at)
    for field in {"effect", "preview"} & row.keys():
        stored_bytes(row[field], f"{at}: {field}")
    for space in spaces:
        if (row[f"{space}_vector"] is not None) != (space == row["space"]):
            raise CatalogError(f"{at}: {space}_vector", "missing, or of another space", "one in the concept's space")


def _check_members(row: Mapping[str, Any], at: str) -> None:
    """Raise CatalogError unless the lists of a concept are whole: members once each and sorted, signs, images."""
    for field in ("datasets", *_MEMBERS):
        check_list(row[field], f"{at}: {field}")
    lengths = {field: len(row[field]) for field in _MEMBERS}
    if len(set(lengths.values())) != 1 or not row["members"] or row["medoid"] not in row["members"]:
        raise CatalogError(f"{at}: members", f"lists of {lengths}", "equally long ones, the medoid among the members")
    for member in row["members"]:
        check_id(member, f"{at}: members")
    if sorted(set(row["members"])) != row["members"]:
        raise CatalogError(f"{at}: members", "one twice, or in another order", "ids in order, each once")
    if row.get("parents", row["members"]) != row["members"]:  # a column of the former form
        raise CatalogError(f"{at}: parents", "others", "the members")
    if set(row["signs"]) - {-1, 1}:
        raise CatalogError(f"{at}: signs", sorted(set(row["signs"]))[:4], "-1 or 1")
    for data_set in row["datasets"]:
        check_name(data_set, f"{at}: datasets")
    if not row["datasets"]:
        raise CatalogError(f"{at}: datasets", "none", "those of the members")
    if not 0 < row["images"] <= min(row["of_images"], len(row["members"])):
        found = f"{row['images']} of {row['of_images']}, {len(row['members'])} members"
        raise CatalogError(f"{at}: images", found, "at least one, at most all, and no more than members")


def _check_figures(row: Mapping[str, Any], at: str) -> None:
    """Raise CatalogError unless the figures of a concept are finite, in their ranges, and in order."""
    for field in ("agreement", "spread_q10", "spread_q50", "spread_q90"):
        check_number(row[field], f"{at}: {field}", 0.0, 1.0 + _ROUNDING)
    check_number(row["effect_agreement"], f"{at}: effect_agreement", -1.0 - _ROUNDING, 1.0 + _ROUNDING)
    check_number(row["strength"], f"{at}: strength")
    for field in ("gain", "gain_q10", "gain_q90", "leakage", "leakage_q10", "leakage_q90"):
        check_number(row[field], f"{at}: {field}", 0.0)
    for field, low in (("cosines", 0.0), ("effect_cosines", -1.0)):
        for cosine in row[field]:
            check_number(cosine, f"{at}: {field}", low - _ROUNDING, 1.0 + _ROUNDING)
    if abs(row["agreement"] - row["images"] / row["of_images"]) > _ROUNDING:
        raise CatalogError(f"{at}: agreement", row["agreement"], f"{row['images']} of {row['of_images']} images")
    ranges = {"spread": ("spread_q10", "spread_q50", "spread_q90")}
    ranges |= {name: (f"{name}_q10", name, f"{name}_q90") for name in ("gain", "leakage")}
    for field, names in ranges.items():
        low, middle, high = (row[name] for name in names)
        if not low <= middle + _ROUNDING * abs(middle) or not middle <= high + _ROUNDING * abs(high):
            raise CatalogError(f"{at}: {field}", f"{low:g}, {middle:g}, {high:g}", "quantiles in order")
