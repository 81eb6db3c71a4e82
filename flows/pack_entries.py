"""What a pack holds, as small records to choose from: directions, and prototypes of many directions. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from math import prod
from typing import Any, Literal

import numpy as np

from catalog.concepts import Concept
from catalog.reader import Catalog
from pipeline.errors import InputError

EFFECT = "effect"
_COLUMNS = ("direction_id", "image_id", "dataset", "region", "space", "kind", "rank", "timestep", "strength", "gain",
            "leakage")  # fmt: skip
_BATCH = 256  # vectors compared at once
_INDEXED = 5_000  # directions from which an index is used: it is opened in the time that comparing so many takes
_SHOWN = 40


@dataclass(frozen=True)
class Entry:
    """A direction, or a prototype: the mean of directions that mean the same on many images.

    Attributes:
        id: 32 hex digits; the first 6 or more will do wherever they are unique.
        what: "direction" or "prototype".
        region, space, kind, datasets, timestep: where it is at home; `space` is x or h.
        rank: its place among those of its image, region and kind; None for a prototype.
        strength: at which the change can be seen; a negative one goes the other way.
        gain, leakage: what a unit of strength changes inside the region, and outside of it.
        images, of_images: how many images bear it out, of those that were asked; 1 of 1 for a direction.
        source: the picture on which it was found; a prototype lies where that picture has the region.
        score: cosine to what was searched for, negative where its opposite is alike; None where nothing was.
    """

    id: str
    what: Literal["direction", "prototype"]
    region: str
    space: str
    kind: str
    datasets: tuple[str, ...]
    timestep: int
    rank: int | None
    strength: float
    gain: float
    leakage: float
    images: int
    of_images: int
    source: str
    score: float | None = None


class Entries(tuple[Entry, ...]):
    """Entries, shown as a table in a notebook."""

    def _repr_html_(self) -> str:
        names = [field.name for field in fields(Entry)]
        rows = "".join(f"<tr>{''.join(_cell(getattr(entry, name)) for name in names)}</tr>" for entry in self[:_SHOWN])
        more = f"<p>and {len(self) - _SHOWN} more</p>" if len(self) > _SHOWN else ""
        return f"<table><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>{rows}</table>{more}"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        text = f"{value:.3g}"
    elif isinstance(value, tuple):
        text = ", ".join(value)
    else:
        text = "" if value is None else str(value)
    return f"<td>{escape(text)}</td>"


Values = str | Sequence[str] | None
"""One value of a column, several of which one must match, or None for any."""


@dataclass(frozen=True)
class Choice:
    """Which entries are meant: those with one of the values of every field that has any."""

    region: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()
    space: tuple[str, ...] = ()
    dataset: tuple[str, ...] = ()

    @classmethod
    def of(cls, **values: Values) -> Choice:
        """Raises InputError for anything but text."""
        return cls(**{name: _names(value, name) for name, value in values.items()})

    @property
    def given(self) -> dict[str, tuple[str, ...]]:
        """The fields that have any, as filters of a catalog."""
        return {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name)}

    def within(self, whole: Choice) -> Choice:
        """This choice from another one. Raises InputError for a value that the other leaves out."""
        for name, values in self.given.items():
            if odd := [value for value in values if value not in (whole.given.get(name) or values)]:
                raise InputError(name, repr(odd[0])[:80], f"one of {', '.join(whole.given[name])}, as was asked for")
        return Choice(**(whole.given | self.given))

    def meets(self, concept: Concept) -> bool:
        """Whether a concept is meant."""
        own = {"region": {concept.region}, "kind": {concept.kind}, "space": {concept.space}}
        own["dataset"] = set(concept.datasets)
        return all(set(values) & own[name] for name, values in self.given.items())

    def check(self, catalog: Catalog, concepts: Sequence[Concept]) -> None:
        """Raise InputError for a value that neither directions nor concepts have."""
        for name, values in self.given.items():
            known = set(catalog.column(name).unique().to_pylist())
            known |= {found for c in concepts for found in (c.datasets if name == "dataset" else (getattr(c, name),))}
            if odd := sorted(set(values) - known):
                there = ", ".join(sorted(known)[:_SHOWN]) or "none: the pack is empty"
                raise InputError(name, repr(odd[0])[:80], f"one of {there}")


def _names(value: Values, field: str) -> tuple[str, ...]:
    names = () if value is None else (value,) if isinstance(value, str) or not isinstance(value, Iterable) else value
    if odd := [name for name in names if not isinstance(name, str)]:
        raise InputError(field, repr(odd[0])[:80], "a name, or several")
    return tuple(names)


def of_concept(catalog: Catalog, concept: Concept, score: float | None = None) -> Entry:
    """The entry of a prototype."""
    sources = _sources(catalog, [concept.image_id])
    return _prototype(concept, sources, score)


def of_directions(catalog: Catalog, ids: Sequence[str], scores: Mapping[str, float] | None = None) -> list[Entry]:
    """The entries of directions, in the order of `ids`. Reads one row group for each."""
    rows = catalog.rows(ids, _COLUMNS)
    sources = _sources(catalog, [row["image_id"] for row in rows])
    return [_direction(row, sources, (scores or {}).get(row["direction_id"])) for row in rows]


def listed(catalog: Catalog, choice: Choice, concepts: Sequence[Concept], directions: bool) -> Entries:
    """All entries that are meant, prototypes first, those of one region, space and kind together."""
    found = [concept for concept in concepts if choice.meets(concept)]
    rows = catalog.directions(**choice.given).select(list(_COLUMNS)).to_pylist() if directions else []
    sources = _sources(catalog, None)
    entries = [_prototype(concept, sources) for concept in found] + [_direction(row, sources) for row in rows]
    return Entries(sorted(entries, key=_in_order))


def most_local(entries: Entries, k: int) -> Entries:
    """The k best to begin with: prototypes that most images bear out, then directions of the least leakage for gain."""

    def key(entry: Entry) -> tuple[Any, ...]:
        leak = entry.leakage / max(entry.gain, 1e-12)
        return entry.what == "direction", -entry.images / max(1, entry.of_images), leak, entry.id

    return Entries(sorted(entries, key=key)[:k])


def alike(
    catalog: Catalog,
    choice: Choice,
    concepts: Sequence[Concept],
    directions: bool,
    query: np.ndarray,
    space: str,
    k: int,
    but: str = "",
) -> Entries:
    """The k entries whose vectors, or effects where `space` is "effect", have the largest |cos| to `query` (D,).

    `but`: the id of one that is left out. Of many directions the candidates come from the index, where there is one;
    else all that are meant are compared, which reads their vectors.
    """
    own = [c for c in concepts if choice.meets(c) and c.concept_id != but and space in (c.space, EFFECT)]
    scores = {c.concept_id: _cosine(c.effect if space == EFFECT else c.vector, query) for c in own}
    if directions:
        found = _by_index if _has_index(catalog, space) else _by_all
        scores |= {key: score for key, score in found(catalog, choice, query, space, k + 1) if key != but}
    best = sorted(scores, key=lambda key: (-abs(scores[key]), key))[:k]
    known = {concept.concept_id: concept for concept in own}
    plain = of_directions(catalog, [key for key in best if key not in known], scores)
    entries = {entry.id: entry for entry in plain}
    entries |= {key: of_concept(catalog, known[key], scores[key]) for key in best if key in known}
    return Entries(entries[key] for key in best)


def checked_query(catalog: Catalog, array: np.ndarray, space: str) -> np.ndarray:
    """(D,) float64 of unit norm, of a vector or effect from outside. Raises InputError."""
    shape = catalog.layout.effect_shape if space == EFFECT else catalog.layout.spaces[space]
    if array.dtype.kind not in "fiu" or array.size != prod(shape):
        raise InputError("like", f"{array.dtype} of shape {array.shape}", f"numbers of shape {tuple(shape)}")
    flat = np.asarray(array, dtype=np.float64).ravel()
    norm = float(np.linalg.norm(flat))
    if not np.isfinite(norm) or norm == 0:
        raise InputError("like", f"norm {norm}", "finite values, not all zero")
    return flat / norm


def _has_index(catalog: Catalog, space: str) -> bool:
    entry = catalog.manifest.indexes.get(space)  # type: ignore[call-overload]
    many = catalog.manifest.rows("directions") >= _INDEXED
    return many and entry is not None and entry.covers(catalog.manifest.shards("directions"))


def _by_index(catalog: Catalog, choice: Choice, query: np.ndarray, space: str, k: int) -> Iterator[tuple[str, float]]:
    from catalog.lookup import Filters, similar_to  # with FAISS behind it

    filters = Filters(choice.region, choice.kind, choice.space, choice.dataset)
    for found in similar_to(catalog, query, space, k=k, grouped=False, filters=filters):
        yield found.direction_id, found.sign * found.score


def _by_all(catalog: Catalog, choice: Choice, query: np.ndarray, space: str, k: int) -> Iterator[tuple[str, float]]:
    among = catalog.select(**choice.given)
    if space != EFFECT:
        among &= catalog.select(space=space)
    ids = [key.decode() for key in catalog.ids()[among]]
    for start in range(0, len(ids), _BATCH):
        part = ids[start : start + _BATCH]
        stored = catalog.effects(part) if space == EFFECT else catalog.vectors(part, space)
        yield from zip(part, (stored @ query / np.linalg.norm(stored, axis=1)).tolist(), strict=True)


def _cosine(stored: np.ndarray, query: np.ndarray) -> float:
    flat = stored.ravel().astype(np.float64)
    return float(flat @ query / np.linalg.norm(flat))


def _sources(catalog: Catalog, images: Sequence[str] | None) -> dict[str, str]:
    """The source of images by id; of all where None."""
    if images is not None and not images:
        return {}
    table = catalog.images() if images is None else catalog.images(image_id=sorted(set(images)))
    return dict(zip(table.column("image_id").to_pylist(), table.column("source").to_pylist(), strict=True))


def _direction(row: Mapping[str, Any], sources: Mapping[str, str], score: float | None = None) -> Entry:
    same = {name: row[name] for name in ("region", "space", "kind", "timestep", "rank", "strength", "gain", "leakage")}
    return Entry(
        id=row["direction_id"], what="direction", datasets=(row["dataset"],), images=1, of_images=1,
        source=sources.get(row["image_id"], ""), score=score, **same,
    )  # fmt: skip


def _prototype(concept: Concept, sources: Mapping[str, str], score: float | None = None) -> Entry:
    names = ("region", "space", "kind", "datasets", "timestep", "strength", "gain", "leakage", "images", "of_images")
    same = {name: getattr(concept, name) for name in names}
    source = sources.get(concept.image_id, "")
    return Entry(id=concept.concept_id, what="prototype", rank=None, source=source, score=score, **same)


def _in_order(entry: Entry) -> tuple[Any, ...]:
    rank = -1 if entry.rank is None else entry.rank
    return entry.what == "direction", entry.region, entry.space, entry.kind, entry.source, rank, entry.id
