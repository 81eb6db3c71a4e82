"""Directions of different images laid over each other: moved so that their regions' centres coincide, in numpy.

`pipeline.registration` moves a direction to be applied, bicubic and in torch; here many are moved to be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

import numpy as np

from catalog.reader import Catalog
from pipeline.errors import CatalogError, NotFoundError


def unit_rows(array: np.ndarray) -> np.ndarray:
    """(n, ...) -> (n, D) float32 rows of unit L2 norm; a zero row stays zero."""
    rows = np.asarray(array, dtype=np.float32).reshape(len(array), -1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1))


def mask_centres(catalog: Catalog, image_ids: Sequence[str], region: str) -> np.ndarray:
    """(n, 2) float64 centres of gravity (down, right) of a region's masks as shares of the picture's height and width.

    NaN where an image has no mask of that name, as joint components have none, and in a catalog without masks.
    Decodes one mask per distinct image. Raises CatalogError for a mask without a pixel.
    """
    if catalog.lacks("mask"):
        return np.full((len(image_ids), 2), np.nan)
    known = {image_id: _centre(catalog, image_id, region) for image_id in dict.fromkeys(image_ids)}
    return np.array([known[image_id] for image_id in image_ids], dtype=np.float64).reshape(-1, 2)


def _centre(catalog: Catalog, image_id: str, region: str) -> tuple[float, float]:
    try:
        mask = catalog.mask(image_id, region)
    except NotFoundError:
        return np.nan, np.nan
    if not mask.any():
        raise CatalogError(f"image {image_id}: mask of {region}", "no pixel", "a mask", "Run `rhumb verify`")
    down, right = (np.argwhere(mask).mean(axis=0) + 0.5) / mask.shape
    return float(down), float(right)


def moved(arrays: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Arrays (n, C, h, w) moved by `shifts` (n, 2), (down, right) as shares of h and w; float32 of the same shape.

    Bilinear between cells, zero where nothing comes in; a shift that is NaN moves nothing. Norms are not kept.
    """
    out = np.zeros(arrays.shape, dtype=np.float32)
    height, width = arrays.shape[2:]
    for array, target, shift in zip(arrays, out, np.nan_to_num(shifts), strict=True):
        for down, share_down in _cells(float(shift[0]) * height):
            for right, share_right in _cells(float(shift[1]) * width):
                to_rows, from_rows = _overlap(down, height)
                to_columns, from_columns = _overlap(right, width)
                part = array[:, from_rows, from_columns]
                target[:, to_rows, to_columns] += np.float32(share_down * share_right) * part
    return out


def _cells(shift: float) -> list[tuple[int, float]]:
    """A shift as whole cells, and the share of each of the two: 2.25 is 2 by 0.75 and 3 by 0.25."""
    whole = floor(shift)
    return [(cells, share) for cells, share in ((whole, whole + 1 - shift), (whole + 1, shift - whole)) if share > 0]


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """(where to, where from) along an axis of `size` cells; both empty where all is moved out."""
    kept = max(0, size - abs(shift))
    low, high = slice(0, kept), slice(size - kept, size)
    return (high, low) if shift >= 0 else (low, high)
