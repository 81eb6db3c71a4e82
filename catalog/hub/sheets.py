"""Pictures for the card of a pack: for each region what its best directions do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from catalog.hub.figures import Figures, Shown
from catalog.hub.parts import part_name
from catalog.pictures import encode_png
from catalog.reader import Catalog

REGIONS = 24
"""Regions that are shown, at most."""
_HEIGHT, _GAP = 96, 4  # pixels: of a picture about, and between two rows


def sheets(catalog: Catalog, figures: Figures) -> dict[str, bytes]:
    """A PNG for each region of a data set, by `part_name`: rows of previews, at -strength, 0 and +strength.

    Empty where the catalog has no previews. Cost: reads four row groups for each region.
    """
    if catalog.lacks("preview"):
        return {}
    return {
        part_name(dataset, region): encode_png(_sheet(catalog, best))
        for (dataset, region), best in list(figures.best.items())[:REGIONS]
    }


def _sheet(catalog: Catalog, best: Sequence[Shown]) -> np.ndarray:
    """uint8 (H, W, 3): previews below each other."""
    rows = [_sized(catalog.preview(one.direction_id)) for one in best]
    gap = np.full((_GAP, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for row in rows for part in (row, gap)][:-1])


def _sized(preview: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) of a preview, about as high as others: small ones by whole factors, so that pixels stay sharp."""
    colour = np.stack([preview] * 3, axis=2) if preview.ndim == 2 else preview
    height, width = colour.shape[:2]
    if height <= _HEIGHT:
        factor = max(1, _HEIGHT // height)
        return np.repeat(np.repeat(colour, factor, axis=0), factor, axis=1)
    size = (round(width * _HEIGHT / height), _HEIGHT)
    return np.asarray(Image.fromarray(colour).resize(size, Image.Resampling.LANCZOS))
