"""What the lookups share: which directions are asked about, and what random ones would answer."""

from __future__ import annotations

from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from catalog.reader import Catalog
from pipeline.errors import InputError, NotFoundError

By = Literal["vector", "effect", "both"]
BY: tuple[By, ...] = ("vector", "effect", "both")
_SHOWN = 12


@dataclass(frozen=True)
class Filters:
    """Which directions may answer: those with one of the values of every field that has any.

    `image` holds ids of images or their first digits.
    """

    region: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()
    space: tuple[str, ...] = ()
    dataset: tuple[str, ...] = ()
    image: tuple[str, ...] = ()
    timestep: tuple[int, ...] = ()

    def rows(self, catalog: Catalog) -> np.ndarray:
        """(n,) bool, by row of the catalog. Raises InputError for a value that no direction has."""
        wanted: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name)}
        if "image" in wanted:
            wanted["image_id"] = [catalog.resolve(key, "images") for key in wanted.pop("image")]
        for name, values in wanted.items():
            known = () if name == "image_id" else known_values(catalog, name)
            for value in values:
                if known and value not in known:
                    raise InputError(name, value, f"one of {', '.join(map(str, known[:_SHOWN]))}")
        return catalog.select(**wanted)


def known_values(catalog: Catalog, column: str) -> list[Any]:
    """The values that directions have in a column, sorted."""
    found = catalog.column(column)
    whole = found.dictionary if pa.types.is_dictionary(found.type) else found
    return sorted(whole.unique().to_pylist())


def check_k(k: int, offset: int = 0) -> None:
    """Raise InputError unless something is asked for."""
    if k < 1:
        raise InputError("k", k, "at least 1")
    if offset < 0:
        raise InputError("offset", offset, "at least 0")


def check_by(by: str) -> None:
    """Raise InputError unless `by` is something that directions are compared by."""
    if by not in BY:
        raise InputError("by", by, " | ".join(BY))


def none_there(catalog: Catalog, found: str, expected: str) -> NotFoundError:
    """The error for a region, space and kind without enough directions: it names those there are."""
    names = ("region", "space", "kind")
    columns = {name: catalog.column(name).cast(pa.string()) for name in names}
    have = pa.table(columns).group_by(list(names)).aggregate([]).to_pylist()
    there = "; ".join(sorted(" ".join(row.values()) for row in have)[:_SHOWN]) or "none"
    return NotFoundError("directions to compare", found, expected, f"There are: {there}")


def random_quantiles(entries: float, of: int = 1) -> tuple[float, float, float]:
    """10, 50 and 90 % of the largest of `of` |cos| between independent directions on a sphere of so many entries.

    By the normal approximation |N(0, 1)| / sqrt(entries).
    """
    normal = NormalDist()
    low, middle, high = (normal.inv_cdf((1 + q ** (1 / of)) / 2) / float(np.sqrt(entries)) for q in (0.1, 0.5, 0.9))
    return min(1.0, low), min(1.0, middle), min(1.0, high)


def energy_of(unit: np.ndarray) -> np.ndarray:
    """(D,) float64: the energy that unit rows (n, D) put on each entry, summed."""
    return np.asarray(np.einsum("nd,nd->d", unit, unit, dtype=np.float64))


def entries_that_count(energy: np.ndarray) -> float:
    """Participation ratio of an energy (D,), see `energy_of`: how many entries it is shared out over."""
    return float(np.sum(energy) ** 2 / np.sum(np.square(energy)))
