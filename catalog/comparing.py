"""What one catalog has and another has not: by id, by content, and in figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from catalog.places import texts
from catalog.reader import Catalog
from catalog.schema import KEYS, TABLES, light_columns, table_schema

_BLOCK = 1024
SAME_VECTOR = 1e-3  # 1 - |cos|; codecs keep more
_FIGURES = ("gain", "leakage", "residual", "roir", "kept_share")


@dataclass(frozen=True)
class Change:
    """A row that both have, and the columns in which it differs; `vector` and `effect` are among them."""

    table: str
    id: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """From one catalog to another: ids by table, changed rows, parts of the provenance, and medians of the evidence.

    `figures` maps a column to its median before and after, over all directions that have it.
    """

    added: dict[str, list[str]]
    dropped: dict[str, list[str]]
    changed: list[Change]
    provenance: dict[str, tuple[object, object]]
    figures: dict[str, tuple[float | None, float | None]]

    @property
    def same(self) -> bool:
        """Whether both hold the same rows."""
        return not (self.changed or any(self.added.values()) or any(self.dropped.values()))


def diff(former: Catalog, later: Catalog) -> Difference:
    """What `later` adds, changes and drops.

    Cost: reads the vectors of directions that both have once, in blocks, but not of shards that both have.
    """
    added, dropped, changed = {}, {}, []
    for table in TABLES:
        one, two = former.ids(table), later.ids(table)
        added[table] = texts(np.setdiff1d(two, one, assume_unique=True))
        dropped[table] = texts(np.setdiff1d(one, two, assume_unique=True))
        changed += sorted(_changes(former, later, table), key=lambda change: change.id)
    return Difference(added, dropped, changed, _provenance(former, later), _figures(former, later))


def _changes(former: Catalog, later: Catalog, table: str) -> Iterator[Change]:
    """The rows that both have and that differ, of directions in the order of the shards, in which reading is quick."""
    columns = [name for name in light_columns(table_schema(table, former.layout)) if name != KEYS[table]]
    read = {"directions": Catalog.directions, "images": Catalog.images, "regions": Catalog.regions}[table]
    light = [read(catalog).select(columns) for catalog in (former, later)]
    both = np.intersect1d(former.ids(table), later.ids(table), assume_unique=True)
    if table == "directions":
        alone = [p for p in former.manifest.shards(table) if later.manifest.files.get(p) != former.manifest.files[p]]
        rows = [former.shard_rows(path) for path in alone]
        stored = former.ids()[np.concatenate([np.zeros(0, np.int64), *rows])]
        both = stored[np.isin(stored, both)]
    for start in range(0, len(both), _BLOCK):
        part = both[start : start + _BLOCK]
        odd: dict[str, list[str]] = {key: [] for key in texts(part)}
        own = [rows.take(np.searchsorted(c.ids(table), part)) for c, rows in zip((former, later), light, strict=True)]
        for name in columns:
            one, two = (rows.column(name).to_pylist() for rows in own)
            for key, here, there in zip(odd, one, two, strict=True):
                if here != there:
                    odd[key].append(name)
        if table == "directions":
            _compare_vectors(former, later, odd)
        yield from (Change(table, key, tuple(names)) for key, names in odd.items() if names)


def _compare_vectors(former: Catalog, later: Catalog, odd: dict[str, list[str]]) -> None:
    ids = list(odd)
    _note_apart(former.effects(ids), later.effects(ids), ids, "effect", odd)
    spaces = {key: row["space"] for key, row in zip(ids, former.rows(ids, ["space"]), strict=True)}
    for space in former.layout.spaces:
        own = [key for key in ids if spaces[key] == space and "space" not in odd[key]]
        if former.layout.spaces.get(space) == later.layout.spaces.get(space) and own:
            _note_apart(former.vectors(own, space), later.vectors(own, space), own, "vector", odd)


def _note_apart(one: np.ndarray, two: np.ndarray, ids: Sequence[str], what: str, odd: dict[str, list[str]]) -> None:
    if one.shape != two.shape:
        apart = np.ones(len(ids), dtype=bool)
    else:
        apart = 1 - np.abs(np.einsum("ij,ij->i", one, two)) > SAME_VECTOR
    for key, far in zip(ids, apart.tolist(), strict=True):
        if far:
            odd[key].append(what)


def _provenance(former: Catalog, later: Catalog) -> dict[str, tuple[object, object]]:
    """The parts in which the two differ, each before and after."""
    one, two = (c.manifest.provenance.model_dump(mode="json") for c in (former, later))
    codecs = [{space: spec.model_dump() for space, spec in c.layout.codecs.items()} for c in (former, later)]
    one["codecs"], two["codecs"] = codecs
    one["left_out"], two["left_out"] = former.manifest.left_out, later.manifest.left_out
    return {name: (one[name], two[name]) for name in one if one[name] != two[name]}


def _figures(former: Catalog, later: Catalog) -> dict[str, tuple[float | None, float | None]]:
    return {name: (_median(former, name), _median(later, name)) for name in _FIGURES}


def _median(catalog: Catalog, column: str) -> float | None:
    values = catalog.directions().column(column).drop_null().to_numpy()
    return float(np.median(values)) if len(values) else None
