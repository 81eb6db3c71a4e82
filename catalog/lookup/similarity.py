"""What is similar to a direction: on other images, in other regions and data sets, sign-blind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa

from catalog.index import EFFECT, DirectionIndex
from catalog.lookup.ask import By, Filters, check_by, check_k
from catalog.reader import Catalog
from pipeline.errors import InputError, NotFoundError

RERANKED = 100  # candidates ranked again by stored vectors, at least
_FIELDS = ("direction_id", "image_id", "dataset", "region", "space", "kind", "rank", "timestep")
_INDEXES: WeakKeyDictionary[Catalog, dict[str, DirectionIndex]] = WeakKeyDictionary()
_EVERYTHING = Filters()


@dataclass(frozen=True)
class Similar:
    """A direction like the one asked for. `score` is the exact |cos|; `sign` -1 where -v is the alike one.

    `others` are ids of further directions of the same image that were ranked, best first: it stands for them all.
    """

    direction_id: str
    score: float
    sign: int
    image_id: str
    dataset: str
    region: str
    space: str
    kind: str
    rank: int
    timestep: int
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class SimilarPage:
    """Part of an answer: those from `offset` on. `among` directions passed the filters; `more`: the answer goes on."""

    found: tuple[Similar, ...]
    offset: int
    among: int
    more: bool


def similar(
    catalog: Catalog,
    direction_id: str,
    k: int = 10,
    by: By = "vector",
    other_images: bool = True,
    same_region: bool = False,
    offset: int = 0,
    grouped: bool = True,
    filters: Filters = _EVERYTHING,
) -> list[Similar]:
    """The k directions most similar to one, best first, after the first `offset`; fewer where there are fewer.

    Sign-blind: by `vector` (of the same space), by `effect` (of any space), or by `both` (of the same space): then the
    score is |mean of the two cosines|, so that vectors and effects have to agree about the sign. `other_images` leaves
    out directions of the same image, `same_region` and `filters` keep only some. `grouped` shows one direction an
    image, the best, and names its others.

    Candidates come from the index, 100 at least, and are ranked again by the stored values; where an answer needs
    more, the next ones follow those ranked so far, so pages join without gaps or repeats. Cost: a search, and about
    100 vectors read; the index is opened once per catalog. Raises NotFoundError, InputError, CatalogError (index
    missing or stale).
    """
    return list(similar_page(catalog, direction_id, k, by, other_images, same_region, offset, grouped, filters).found)


def similar_page(
    catalog: Catalog,
    direction_id: str,
    k: int = 10,
    by: By = "vector",
    other_images: bool = True,
    same_region: bool = False,
    offset: int = 0,
    grouped: bool = True,
    filters: Filters = _EVERYTHING,
) -> SimilarPage:
    """`similar`, with what there is besides."""
    check_k(k, offset)
    check_by(by)
    key = catalog.resolve(direction_id)
    own = catalog.rows([key], ["image_id", "region", "space"])[0]
    among = filters.rows(catalog)
    among[np.searchsorted(catalog.ids(), np.bytes_(key))] = False
    if by != "effect":
        among &= catalog.select(space=own["space"])
    if other_images:
        among &= ~catalog.select(image_id=own["image_id"])
    if same_region:
        among &= catalog.select(region=own["region"])
    queries = {}
    if by != "effect":
        queries[own["space"]] = catalog.vector(key).ravel()
    if by != "vector":
        queries[EFFECT] = catalog.effect(key).ravel()
    return _page(catalog, queries, among, k, offset, grouped)


def similar_to(
    catalog: Catalog,
    vector: np.ndarray | str | Path,
    space: str,
    k: int = 10,
    offset: int = 0,
    grouped: bool = True,
    filters: Filters = _EVERYTHING,
) -> list[Similar]:
    """The k directions most similar to a vector from outside, as in `similar`.

    `vector`: an array of any float type and of as many entries as the space has, of any length but zero, or a .npy
    file of one. `space`: that of the vector, x or h, or `effect` for an effect. Raises InputError, CatalogError.
    """
    check_k(k, offset)
    query = _outside(catalog, vector, space)
    among = filters.rows(catalog)
    if space != EFFECT:
        among &= catalog.select(space=space)
    return list(_page(catalog, {space: query}, among, k, offset, grouped).found)


def _outside(catalog: Catalog, vector: np.ndarray | str | Path, space: str) -> np.ndarray:
    """(D,) float32 of unit norm."""
    provenance = catalog.manifest.provenance
    shapes = {**provenance.shapes, EFFECT: provenance.effect_shape}
    if space not in shapes:
        raise InputError("space", space, f"one of {', '.join(shapes)}")
    if isinstance(vector, str | Path):
        try:
            # Mapped, so that a file that states an absurd size takes no memory; nothing in it is unpickled.
            vector = np.load(vector, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise NotFoundError("vector", str(vector), "a .npy file") from error
        except (OSError, ValueError, EOFError) as error:
            raise InputError("vector", f"{vector} ({str(error)[:80]})", "a .npy file of numbers") from error
    if not isinstance(vector, np.ndarray) or vector.dtype.kind not in "fiu" or vector.size != prod(shapes[space]):
        found = f"{vector.dtype} {vector.shape}" if isinstance(vector, np.ndarray) else type(vector).__name__
        raise InputError("vector", found, f"floats of shape {shapes[space]}")
    flat = np.asarray(vector, dtype=np.float64).ravel()
    norm = float(np.linalg.norm(flat))
    if not np.isfinite(norm) or norm == 0:
        raise InputError("vector", f"norm {norm}", "finite values, not all zero")
    return (flat / norm).astype(np.float32)


def opened_index(catalog: Catalog, name: str) -> DirectionIndex:
    """The index of a catalog, opened once for as long as the catalog is in use: neither ever changes."""
    indexes = _INDEXES.setdefault(catalog, {})
    if name not in indexes:
        indexes[name] = DirectionIndex(catalog, name)
    return indexes[name]


def _page(
    catalog: Catalog, queries: Mapping[str, np.ndarray], among: np.ndarray, k: int, offset: int, grouped: bool
) -> SimilarPage:
    """One page of the directions (bool by row) most alike to the queries, by name of their index."""
    ranked = _Ranked(catalog, queries, among)
    going_on, possible = ranked.more(), None
    while going_on and ranked.count(grouped) <= offset + k:
        if possible is None:
            homes = catalog.column("image_id").filter(pa.array(among))
            possible = len(homes.unique()) if grouped else len(homes)
        if ranked.count(grouped) == possible:
            break
        going_on = ranked.more()
    answers = ranked.answers(grouped)
    shown = answers[offset : offset + k]
    rows = catalog.rows([ids[0] for ids in shown], _FIELDS)
    found = tuple(_similar(row, ranked.cosines[ids[0]], ids[1:]) for row, ids in zip(rows, shown, strict=True))
    return SimilarPage(found, offset, int(np.count_nonzero(among)), len(answers) > offset + k)


def _similar(row: dict[str, Any], cosine: float, others: list[str]) -> Similar:
    score, sign = min(abs(cosine), 1.0), 1 if cosine >= 0 else -1
    return Similar(score=score, sign=sign, others=tuple(others), **{name: row[name] for name in _FIELDS})


class _Ranked:
    """Candidates in the order of their exact cosines, window after window of the index's own order.

    A later window is twice as large and never changes what came before it.
    """

    def __init__(self, catalog: Catalog, queries: Mapping[str, np.ndarray], among: np.ndarray) -> None:
        self.catalog, self.queries, self.among = catalog, queries, among
        self.indexes = {name: opened_index(catalog, name) for name in queries}
        self.cosines: dict[str, float] = {}
        self.images: dict[str, list[str]] = {}
        self._window = max(RERANKED, *(index.candidates for index in self.indexes.values())) // 2

    def count(self, grouped: bool) -> int:
        """How many answers there are so far."""
        return len(self.images) if grouped else len(self.cosines)

    def answers(self, grouped: bool) -> list[list[str]]:
        """Ids, best first; grouped by image, each list with the best of an image at its head."""
        return list(self.images.values()) if grouped else [[key] for key in self.cosines]

    def more(self) -> bool:
        """Rank the next window; False where there is none."""
        before, self._window = self._window, self._window * 2
        found: dict[str, None] = {}
        ended = True
        for name, query in self.queries.items():
            hits = self.indexes[name].search(query, self._window, self.among)
            ended &= len(hits) < self._window
            found |= dict.fromkeys(key for key, _ in hits if key not in self.cosines)
        if not found:
            return not ended and before < len(self.among)
        ids = list(found)
        cosines = sum(self._exact(name, ids) for name in self.queries) / len(self.queries)
        order = sorted(zip(ids, np.asarray(cosines).tolist(), strict=True), key=lambda pair: (-abs(pair[1]), pair[0]))
        self.cosines |= dict(order)
        rows = np.searchsorted(self.catalog.ids(), np.array([key for key, _ in order], dtype="S32"))
        homes = self.catalog.column("image_id").take(rows).to_pylist()
        for (key, _), home in zip(order, homes, strict=True):
            self.images.setdefault(home, []).append(key)
        return not ended

    def _exact(self, name: str, ids: list[str]) -> np.ndarray:
        """(n,) cosines of stored values to the query."""
        query = self.queries[name]
        stored = self.catalog.effects(ids) if name == EFFECT else self.catalog.vectors(ids, name)
        return np.asarray((stored @ query) / (np.linalg.norm(stored, axis=1) * np.linalg.norm(query)))
