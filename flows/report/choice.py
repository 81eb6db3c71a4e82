"""Which directions the report shows: the most telling ones, found without a single network pass.

Where the attribute reader knows the data (the built-in faces), the catalog's one-step previews are read, and a
direction is the more telling the more it moves one factor of its own region and the less it moves any other. Elsewhere
the most local directions come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from catalog.reader import Catalog
from pipeline.faces.factors import FACTORS, REGIONS, factors_of
from pipeline.images import as_tensor
from pipeline.reader import AttributeReader

TELLING_ENOUGH = 0.35  # share of a factor's range beyond which a larger move is no clearer

# What a newcomer recognises first; other factors follow.
FAVOURITES = ("left_openness", "right_openness", "mouth_smile", "hair_colour", "brow_height", "nose_length")


@dataclass(frozen=True)
class Candidate:
    """A direction's row of the catalog, the factor it moves most, and how telling it is (larger is better)."""

    row: dict[str, Any]
    factor: str
    score: float


def read_factors(reader: AttributeReader, images: Sequence[np.ndarray]) -> np.ndarray:
    """Factor readings (B, 22) of uint8 pictures (H, W, 3)."""
    with torch.no_grad():
        return reader.read(torch.stack([as_tensor(image) for image in images])).numpy()


def _thirds(preview: np.ndarray) -> list[np.ndarray]:
    return np.split(preview, 3, axis=1)


def candidates(catalog: Catalog, region: str, space: str, kind: str, reader: AttributeReader | None) -> list[Candidate]:
    """All directions of a region, space and kind, most telling first."""
    rows = catalog.directions(region=region, space=space, kind=kind).to_pylist()
    found = []
    for row in rows:
        locality = row["leakage"] / max(row["gain"], 1e-12)
        if reader is None or region not in REGIONS:
            found.append(Candidate(row, "", -locality - 0.1 * row["rank"]))
            continue
        readings = read_factors(reader, _thirds(catalog.preview(row["direction_id"])))
        moves = (readings[2] - readings[0]) / 2
        own = [FACTORS.index(name) for name in factors_of(region)]
        best = max(own, key=lambda i: abs(moves[i]))
        others = max(abs(moves[i]) for i in range(len(FACTORS)) if i not in own)
        side = max((abs(moves[i]) for i in own if i != best), default=0.0)
        favourite = 0.4 if FACTORS[best] in FAVOURITES else 0.0
        score = favourite + min(abs(moves[best]), TELLING_ENOUGH) - 2.0 * others - 0.5 * side - 0.5 * locality
        found.append(Candidate(row, FACTORS[best], float(score)))
    return sorted(found, key=lambda candidate: (-candidate.score, candidate.row["direction_id"]))


def varied(found: Sequence[Candidate], count: int) -> list[Candidate]:
    """The best `count` candidates that each move another factor, filled up with the next best."""
    chosen: list[Candidate] = []
    for candidate in found:
        if len(chosen) < count and candidate.factor not in {c.factor for c in chosen}:
            chosen.append(candidate)
    for candidate in found:
        if len(chosen) < count and candidate not in chosen and not candidate.factor:
            chosen.append(candidate)
    return chosen
