"""Boxes, ellipses and polygons as masks.

Coordinates are (x, y), x to the right and y down from the picture's top left corner, in shares of its width and height
("shares") or in pixels of the mined size ("pixels"; then the right edge is W and the lower one H). A pixel belongs to a
shape when its centre does: the centre of column j lies at x = j + 0.5 pixels. A centre exactly on a straight edge
belongs to the shape on the edge's right, or below it, so boxes and polygons that share an edge share no pixel and leave
none out; a centre exactly on an ellipse lies outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.regions.masks import Mask, RegionMasks, usable

Units = Literal["shares", "pixels"]
Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """left <= x < right, top <= y < bottom."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Ellipse:
    """An axis-aligned ellipse about (x, y) with radii across and down."""

    x: float
    y: float
    across: float
    down: float


@dataclass(frozen=True)
class Polygon:
    """A simple polygon by its corners, in either direction; the last is joined to the first."""

    points: tuple[Point, ...]


Shape = Box | Ellipse | Polygon


def shape_masks(
    shapes: Mapping[str, Shape | Sequence[Shape]], size: tuple[int, int], units: Units = "shares"
) -> RegionMasks:
    """Masks of named shapes on a picture of `size` (H, W); a region of several shapes is their union.

    Raises:
        InputError: a shape that is degenerate, crosses itself, or reaches outside the picture.
    """
    masks: dict[str, Mask] = {}
    skipped = {}
    for region, shape in shapes.items():
        several = (shape,) if isinstance(shape, Box | Ellipse | Polygon) else tuple(shape)
        if not several:
            raise InputError(f"region {region}", "no shape", "at least one box, ellipse or polygon")
        drawn: Mask = np.logical_or.reduce([shape_mask(each, size, units, f"region {region}") for each in several])
        if drawn.any():
            masks[region] = drawn
        else:
            skipped[region] = f"it lies between the pixel centres of a picture of {size[1]} x {size[0]}"
    return usable(masks, skipped)


def shape_mask(shape: Shape, size: tuple[int, int], units: Units = "shares", field: str = "shape") -> Mask:
    """Bool (H, W) of `size`: the pixels whose centres lie in the shape; empty where none does.

    Raises:
        InputError: as `shape_masks`.
    """
    height, width = size
    limits = (1.0, 1.0) if units == "shares" else (float(width), float(height))
    check_shape(shape, limits, field)
    x = (np.arange(width, dtype=np.float64) + 0.5) * (limits[0] / width)
    y = (np.arange(height, dtype=np.float64) + 0.5) * (limits[1] / height)
    if isinstance(shape, Ellipse):
        across, down = (x - shape.x) / shape.across, (y - shape.y) / shape.down
        ellipse: Mask = across[None, :] ** 2 + down[:, None] ** 2 < 1.0
        return ellipse
    return _even_odd(_corners(shape), x, y)


def check_shape(shape: Shape, limits: tuple[float, float] = (1.0, 1.0), field: str = "shape") -> None:
    """Raise InputError unless the shape encloses an area within [0, `limits`] (x, y) and crosses itself nowhere."""
    if isinstance(shape, Ellipse):
        numbers = [shape.x - shape.across, shape.x + shape.across, shape.y - shape.down, shape.y + shape.down]
        degenerate = not (shape.across > 0 and shape.down > 0)
        corners = np.array([[numbers[0], numbers[2]], [numbers[1], numbers[3]]], dtype=np.float64)
    else:
        degenerate = isinstance(shape, Box) and not (shape.left < shape.right and shape.top < shape.bottom)
        corners = _corners(shape)
    if corners.ndim != 2 or corners.shape[1:] != (2,) or not np.isfinite(corners).all():
        raise InputError(field, _shown(shape), "finite numbers, two (x, y) for every corner")
    if degenerate:
        wanted = "left < right and top < bottom" if isinstance(shape, Box) else "radii above 0"
        raise InputError(field, _shown(shape), wanted)
    if (corners < 0).any() or (corners > np.asarray(limits)).any():
        raise InputError(
            field,
            f"{_shown(shape)}, which reaches outside the picture",
            f"x in [0, {limits[0]:g}], y in [0, {limits[1]:g}]",
            "Give shares of the picture's width and height, or pixels of the mined size, and say which.",
        )
    if isinstance(shape, Polygon):
        if len(corners) < 3:
            raise InputError(field, f"a polygon of {len(corners)} corners", "at least three different corners")
        fault = _fault(corners)
        if fault:
            raise InputError(field, f"a polygon {fault}", "a simple polygon", "Split it, or reorder its corners.")


def _corners(shape: Box | Polygon) -> NDArray[np.float64]:
    """Corners (n, 2) in order; a polygon that repeats its first corner at the end loses the copy."""
    if isinstance(shape, Box):
        left, top, right, bottom = shape.left, shape.top, shape.right, shape.bottom
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=np.float64)
    try:
        corners = np.array(shape.points, dtype=np.float64)
    except (TypeError, ValueError):
        return np.empty(0)
    closed = len(corners) > 1 and np.array_equal(corners[0], corners[-1])
    return corners[:-1] if closed else corners


def _even_odd(corners: NDArray[np.float64], x: NDArray[Any], y: NDArray[Any]) -> Mask:
    """Whether the points of the grid x (W,), y (H,) have an odd number of edges on their right."""
    inside = np.zeros((len(y), len(x)), dtype=np.bool_)
    for one, two in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        # Always from the upper end, so that two polygons compute a shared edge alike.
        (x0, y0), (x1, y1) = (one, two) if one[1] <= two[1] else (two, one)
        rows = (y0 <= y) & (y < y1)
        if rows.any():
            inside[rows] ^= x[None, :] < (x0 + (y[rows] - y0) * ((x1 - x0) / (y1 - y0)))[:, None]
    return inside


def _fault(corners: NDArray[np.float64]) -> str:
    """What keeps corners (n, 2) from being a simple polygon, in words; empty where nothing does."""
    ends = np.roll(corners, -1, axis=0)
    count, steps = len(corners), ends - corners
    if not steps.any(axis=1).all():
        return "that names a corner twice in a row"
    before = -np.roll(steps, 1, axis=0)
    folded = (_cross(before, steps) == 0) & ((before * steps).sum(1) > 0)
    if folded.any():
        return f"that runs back on itself at corner {int(folded.argmax()) + 1}"
    one, two = np.triu_indices(count, 2)
    apart = ~((one == 0) & (two == count - 1))  # neighbours share a corner and nothing else
    one, two = one[apart], two[apart]
    a, b, c, d = corners[one], ends[one], corners[two], ends[two]
    sides = np.sign(_cross(b - a, c - a)) * np.sign(_cross(b - a, d - a)) <= 0
    sides &= np.sign(_cross(d - c, a - c)) * np.sign(_cross(d - c, b - c)) <= 0
    boxes = (np.maximum(a, b) >= np.minimum(c, d)) & (np.maximum(c, d) >= np.minimum(a, b))
    meeting = sides & boxes.all(axis=1)
    if meeting.any():
        first = int(meeting.argmax())
        return f"whose edges {int(one[first]) + 1} and {int(two[first]) + 1} meet"
    return ""


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return product


def _shown(shape: Shape) -> str:
    text = repr(shape)
    return text if len(text) <= 120 else text[:117] + "..."
