"""What a pack holds in figures: medians of each group of its directions, and the best of each region, in one pass."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa

from catalog.places import packed_ids
from catalog.reader import Catalog
from catalog.schema import table_schema
from catalog.shards import open_shard

KEYS = ("dataset", "region", "space", "kind")
MEASURED = ("gain", "leakage_ratio", "residual", "converged", "kept_share", "roir")
_READ = ("gain", "leakage", "residual", "converged", "kept_share", "roir")
_COLUMNS = ["direction_id", "image_id", *KEYS, "strength", *_READ]
_ORDER = ("local", "individual", "joint", "singular")
BEST = 4
"""Directions of a region that are shown."""
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Group:
    """The directions of one data set, region, space and kind: their number, that of their images, and medians.

    `converged` is the share of those that say so. None where nothing was measured.
    """

    dataset: str
    region: str
    space: str
    kind: str
    directions: int
    images: int
    gain: float | None = None
    leakage_ratio: float | None = None
    residual: float | None = None
    converged: float | None = None
    kept_share: float | None = None
    roir: float | None = None

    @property
    def key(self) -> Key:
        """What it is the group of."""
        return self.dataset, self.region, self.space, self.kind

    def plain(self) -> dict[str, Any]:
        """As JSON, figures in four digits."""
        rounded = {name: None if value is None else float(f"{value:.4g}") for name, value in self.measured.items()}
        return {**asdict(self), **rounded}

    @property
    def measured(self) -> dict[str, float | None]:
        """Its figures by name."""
        return {name: getattr(self, name) for name in MEASURED}

    @classmethod
    def parse(cls, value: object) -> Group | None:
        """Of what `plain` gave; None for anything else."""
        if not isinstance(value, Mapping) or set(value) != {f.name for f in fields(cls)}:
            return None
        texts = all(isinstance(value[name], str) for name in KEYS)
        counts = all(type(value[name]) is int and value[name] >= 0 for name in ("directions", "images"))
        known = [value[name] for name in MEASURED if value[name] is not None]
        numbers = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in known)
        return cls(**value) if texts and counts and numbers else None


@dataclass(frozen=True, order=True)
class Shown:
    """A direction worth showing; the smallest are the best: derived ones before plain ones, the most local first."""

    kind: int
    ratio: float
    direction_id: str
    image_id: str
    strength: float


@dataclass(frozen=True)
class Figures:
    """`groups` sorted by what they are of, and the best directions by (data set, region), each of another image."""

    groups: tuple[Group, ...]
    best: Mapping[tuple[str, str], tuple[Shown, ...]]


@dataclass
class _Gathered:
    """Of one group: figures (n, 6) float32 and the first half of each image's id, shard by shard."""

    values: list[np.ndarray] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)

    def group(self, key: Key) -> Group:
        values = np.concatenate(self.values)
        images = len(np.unique(np.concatenate(self.images)))
        figures = [_mean(v) if name == "converged" else _median(v) for name, v in zip(MEASURED, values.T, strict=True)]
        return Group(*key, len(values), images, *figures)


def figures_of(catalog: Catalog) -> Figures:
    """Cost: reads some columns of every shard. Memory: 40 bytes a direction."""
    gathered: dict[Key, _Gathered] = defaultdict(_Gathered)
    best: dict[tuple[str, str], list[Shown]] = defaultdict(list)
    schema = table_schema("directions", catalog.layout)
    for path in catalog.manifest.shards("directions"):
        with open_shard(catalog.file(path), catalog.manifest.files[path], schema) as shard:
            rows = shard.read(_COLUMNS)
        values, images = _values(rows), packed_ids(rows.column("image_id"), path)
        for key, own in _groups(rows).items():
            gathered[key].values.append(values[own])
            gathered[key].images.append(images[own].astype("S16"))
            best[key[:2]] = _best([*best[key[:2]], *_shown(rows, values, own, key[3])])
    groups = tuple(gathered[key].group(key) for key in sorted(gathered))
    return Figures(groups, {key: tuple(best[key]) for key in sorted(best)})


def _values(rows: pa.Table) -> np.ndarray:
    """(n, 6) float32 in the order of MEASURED, NaN for what was not measured."""
    columns = {
        name: np.asarray(rows.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False), float)
        if name != "converged"
        else np.asarray(rows.column(name).cast(pa.int8()).cast(pa.float64()).to_numpy(), float)
        for name in _READ
    }
    gain = columns["gain"]
    ratio = np.divide(columns["leakage"], gain, out=np.full(len(gain), np.nan), where=gain > 0)
    return np.stack([gain, ratio, *(columns[name] for name in MEASURED[2:])], axis=1).astype(np.float32)


def _groups(rows: pa.Table) -> dict[Key, np.ndarray]:
    """The places (n,) of the rows of each group."""
    columns = [rows.column(name).combine_chunks().dictionary_encode() for name in KEYS]
    names = [column.dictionary.to_pylist() for column in columns]
    codes = np.stack([np.asarray(column.indices) for column in columns], axis=1)
    unique, inverse = np.unique(codes, axis=0, return_inverse=True)
    return {
        (names[0][a], names[1][b], names[2][c], names[3][d]): np.flatnonzero(inverse.ravel() == number)
        for number, (a, b, c, d) in enumerate(unique.tolist())
    }


def _shown(rows: pa.Table, values: np.ndarray, own: np.ndarray, kind: str) -> list[Shown]:
    """Some of the most local directions of a group."""
    ratio = np.where(np.isfinite(values[own, 1]), values[own, 1], np.inf)
    few = own[np.argsort(ratio, kind="stable")[: 8 * BEST]]
    some = rows.select(["direction_id", "image_id", "strength"]).take(few).to_pylist()
    order = _ORDER.index(kind) if kind in _ORDER else len(_ORDER)
    known = [float(r) if math.isfinite(r) else math.inf for r in values[few, 1].tolist()]
    return [
        Shown(order, r, row["direction_id"], row["image_id"], row["strength"])
        for r, row in zip(known, some, strict=True)
    ]


def _best(candidates: list[Shown]) -> list[Shown]:
    """The best of some, each of another image."""
    found: dict[str, Shown] = {}
    for one in sorted(candidates):
        found.setdefault(one.image_id, one)
    return list(found.values())[:BEST]


def _median(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
