"""Warm starts while mining: the nearest image that the catalog already holds, and what was found on it.

A start is an offer: where nothing is committed yet, or what is cannot be read, the search starts cold, and finds the
same within its tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from catalog.reader import Catalog
from flows.datasets.contract import SourceImage
from pipeline.errors import RhumbError
from pipeline.images import as_tensor
from pipeline.warm import nearest, start_block

THUMBNAIL = 8  # pixels a side that images are compared by


class Stored(NamedTuple):
    """Singular vectors `v` (k, *shape) of one region as a catalog holds them, with their values `sigma` (k,)."""

    v: torch.Tensor
    sigma: torch.Tensor


class Neighbours:
    """The images of a catalog that is being mined, as thumbnails in memory (0.8 KB each). Takes no lock.

    `refresh` reads the chunks committed since it was last called, each once; `start` reads one chunk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._catalog: Catalog | None = None
        self._read: set[str] = set()
        self._places: list[tuple[str, str]] = []  # chunk id and image id of every thumbnail
        self._thumbnails: list[torch.Tensor] = []

    def refresh(self) -> None:
        """Take in what has been committed; chunks that cannot be read are left out."""
        with suppress(RhumbError):
            self._catalog = Catalog.open(self.folder)
            for name in sorted(self._catalog.manifest.chunks.keys() - self._read):
                self._read.add(name)
                with suppress(RhumbError), self._catalog.chunk(name) as chunk:
                    for key in chunk.images().column("image_id").to_pylist():
                        self._thumbnails.append(_thumbnail(chunk.image(key)))
                        self._places.append((name, key))

    def start(self, image: SourceImage) -> dict[str, torch.Tensor]:
        """Space -> start vectors (k, *shape) from the nearest image; empty for a cold start."""
        if self._catalog is None or not self._places:
            return {}
        name, key = self._places[nearest(_thumbnail(image.image), torch.stack(self._thumbnails))]
        masks = {region: torch.from_numpy(mask) for region, mask in image.masks.items()}
        try:
            with self._catalog.chunk(name) as chunk:
                return _starts(chunk, key, masks)
        except RhumbError:
            return {}


def _thumbnail(pixels: np.ndarray) -> torch.Tensor:
    """float32 (C, 8, 8) of uint8 pixels (H, W, C) or (H, W)."""
    return adaptive_avg_pool2d(as_tensor(pixels.reshape(*pixels.shape[:2], -1)), THUMBNAIL)


def _starts(chunk: Catalog, image_id: str, masks: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Start vectors by space from the singular directions of an image, moved to `masks`. Raises RhumbError."""
    regions = chunk.regions(image_id=image_id).column("region").to_pylist()
    theirs = {region: torch.from_numpy(chunk.mask(image_id, region)) for region in regions}
    starts = {}
    for space, shape in chunk.manifest.provenance.shapes.items():
        rows = chunk.directions(image_id=image_id, space=space, kind="singular").sort_by("rank").to_pylist()
        found = {}
        for region in sorted({row["region"] for row in rows}):
            own = [row for row in rows if row["region"] == region]
            vectors = chunk.vectors([row["direction_id"] for row in own], space)
            values = torch.tensor([row["sigma"] for row in own])
            found[region] = Stored(torch.from_numpy(vectors).view(-1, *shape), values)
        if found:
            starts[space] = start_block(found, theirs, masks)
    return starts
