"""The fixed images of the built-in data sets: rendered one by one from their own seeds, quantised to 8 bits.

Seeds. torch's CPU generator looks at the low 32 bits of a seed only. Training draws from seed * 1_000_003 + step
(`pipeline.training`, `pipeline.reader`), which for a training seed below 4,000 stays under 4.02e9. The built-in
images start at `FIRST_SEED` = 0xF0000000 (4.03e9), and what the reader is judged on at 0xFF000000, so no image of
`mine` or `holdout` was ever drawn in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.faces.factors import FACTORS, sample_factors
from pipeline.faces.render import STYLES, render

FIRST_SEED = 0xF000_0000
SPLITS: dict[str, dict[str, int]] = {  # images in each split of each data set
    "faces64": {"mine": 256, "holdout": 256},
    "paintings64": {"mine": 128, "holdout": 128},
}


@dataclass(frozen=True)
class Face:
    """One built-in face: `image` uint8 (64, 64, 3), `regions` uint8 (64, 64) of indices into `REGIONS`."""

    seed: int
    image: np.ndarray
    regions: np.ndarray
    factors: dict[str, float]


def seed_of(style: str, split: str, row: int) -> int:
    """The seed of one built-in image; every (style, split, row) has its own."""
    split_index = list(SPLITS[style]).index(split)
    return FIRST_SEED + ((STYLES.index(style) * 2 + split_index) << 20) + row


def draw_face(seed: int, style: str) -> Face:
    """The face of one seed: factors drawn from it, then rendered. Deterministic."""
    factors = sample_factors(1, torch.Generator().manual_seed(seed))
    rendering = render(factors, style)
    image = ((rendering.images[0].permute(1, 2, 0) + 1.0) * 127.5).round().to(torch.uint8).numpy()
    regions = rendering.masks[0].to(torch.uint8).argmax(dim=0).to(torch.uint8).numpy()
    return Face(seed, image, regions, dict(zip(FACTORS, factors[0].tolist(), strict=True)))


def builtin_faces(style: str, split: str) -> Iterator[Face]:
    """The faces of one split in order: 256 + 256 of faces64, 128 + 128 of paintings64."""
    for row in range(SPLITS[style][split]):
        yield draw_face(seed_of(style, split, row), style)
