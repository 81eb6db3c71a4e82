"""How uniform the meaning of directions is over the images: of a region's directions, or of one direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from catalog.alignment import mask_centres, moved, unit_rows
from catalog.lookup.ask import By, check_by, energy_of, entries_that_count, none_there, random_quantiles
from catalog.places import texts
from catalog.reader import Catalog
from pipeline.errors import InputError

ALIKE = 0.5  # |cos| from which the nearest direction of an image counts as the same; see `concept_building`
_BLOCK = 256
_NAMES = ("region", "space", "kind", "timestep")


@dataclass(frozen=True)
class Spread:
    """Pairwise |cos| over `pairs` pairs of `n` directions of different images: 10, 50 and 90 % quantiles.

    `random` are the same quantiles for independent directions uniform on the sphere of all entries, `random_shaped`
    for independent ones that put the energy on the same entries as these do on average (effects live inside their
    region, which alone makes them alike). Both by the normal approximation |N(0, 1)| / sqrt(entries that count).
    """

    n: int
    pairs: int
    q10: float
    q50: float
    q90: float
    random: tuple[float, float, float]
    random_shaped: tuple[float, float, float]


@dataclass(frozen=True)
class Homogeneity:
    """How uniform the directions of a region are over the images of a catalog.

    `images` counts all images that have such directions, `used` those compared (the ids are hashes, so the first
    ones in order are a random sample). `of_rank` maps a rank to its spread; `overall` pairs equal ranks only.
    `of_image`: mean |cos| of each used image's directions to those of the same rank on the others, in the order of
    ids. `disagreeing`: images for which it is below what nine in ten pairs of random directions of that shape reach.
    """

    region: str
    space: str
    kind: str
    by: By
    images: int
    used: int
    overall: Spread
    of_rank: dict[int, Spread]
    of_image: dict[str, float]
    disagreeing: tuple[str, ...]


@dataclass(frozen=True)
class NearestOnImage:
    """The direction of another image that is most like the one asked about; `score`, `sign` as in `Similar`.

    `effect`: cosine of the two effects under that sign.
    """

    image_id: str
    direction_id: str
    rank: int
    score: float
    sign: int
    effect: float


@dataclass(frozen=True)
class DirectionHomogeneity:
    """How alike a direction's nearest directions are on other images that have its region, space, kind and timestep.

    `nearest`: one per used image, most alike first. `agreement`: share of the images whose nearest has a score of at
    least 0.5; `effect_agreement`: mean signed cosine of the effects of the nearest ones; `disagreeing`: the others'
    ids. `random`: 10, 50 and 90 % of the score if the others' directions were random ones of the same shape, as many
    as an image has.
    """

    direction_id: str
    region: str
    space: str
    kind: str
    timestep: int
    by: By
    moved: bool
    images: int
    used: int
    agreement: float
    effect_agreement: float
    q10: float
    q50: float
    q90: float
    random: tuple[float, float, float]
    nearest: tuple[NearestOnImage, ...]
    disagreeing: tuple[str, ...]


def _rows(catalog: Catalog, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids (n,) str, image ids (n,) str, ranks (n,) int) of chosen rows, by id."""
    rows = np.flatnonzero(chosen)
    images = np.array(catalog.column("image_id").take(rows).to_pylist(), dtype=object)
    ranks = np.asarray(catalog.column("rank").take(rows))
    return np.array(texts(catalog.ids()[rows]), dtype=object), images, ranks


def _stored(catalog: Catalog, ids: Sequence[str], space: str, by: By) -> np.ndarray:
    """(n, D) unit rows whose inner products are the cosines asked about; for both, their mean."""
    if by == "both":
        parts = [_stored(catalog, ids, space, one) for one in ("vector", "effect")]
        return np.concatenate(parts, axis=1) / np.float32(np.sqrt(2))
    return unit_rows(catalog.vectors(ids, space) if by == "vector" else catalog.effects(ids))


def homogeneity(
    catalog: Catalog,
    region: str,
    space: str = "x",
    kind: str = "local",
    rank: int | None = None,
    by: By = "vector",
    limit: int = 512,
) -> Homogeneity:
    """Pairwise |cos| of a region's directions (or of their effects, or the mean of both) over images, per rank.

    Directions of one rank on different images are compared, where they lie. `limit` bounds the images used. Cost: reads
    their vectors once, those of one rank at a time; limit^2 / 2 cosines per rank. Raises InputError, NotFoundError if
    fewer than two images have such directions.
    """
    check_by(by)
    if limit < 2:
        raise InputError("limit", limit, "at least 2 images")
    wanted = {"region": region, "space": space, "kind": kind} | ({} if rank is None else {"rank": rank})
    ids, homes, ranks = _rows(catalog, catalog.select(**wanted))
    images = np.unique(homes)
    used = images[:limit]
    kept = np.isin(homes, used)
    ids, homes, ranks = ids[kept], homes[kept], ranks[kept]
    entries = _entries(catalog, space, by) if len(ids) else 1.0
    of_rank: dict[int, Spread] = {}
    pairs: list[np.ndarray] = []
    energy, count = np.zeros(1), 0
    means: dict[str, list[float]] = {}
    for r in np.unique(ranks).tolist():
        of_r = np.flatnonzero(ranks == r)
        first = of_r[np.unique(homes[of_r], return_index=True)[1]]
        if len(first) > 1:
            cosines, own = _compared(_stored(catalog, ids[first].tolist(), space, by))
            pairs.append(cosines[np.triu_indices(len(first), 1)])
            energy, count = energy + own, count + len(first)
            of_rank[int(r)] = _spread(pairs[-1], len(first), own, entries)
            for home, mean in zip(homes[first], cosines.sum(axis=1) / (len(first) - 1), strict=True):
                means.setdefault(home, []).append(float(mean))
    if not pairs:
        found = f"{len(images)} images with {region} {space} {kind}" + ("" if rank is None else f" of rank {rank}")
        raise none_there(catalog, found, "at least two images")
    overall = _spread(np.concatenate(pairs), count, energy, entries)
    of_image = {home: float(np.mean(values)) for home, values in sorted(means.items())}
    odd = tuple(home for home, mean in of_image.items() if mean < overall.random_shaped[2])
    return Homogeneity(region, space, kind, by, len(images), len(used), overall, of_rank, of_image, odd)


def _entries(catalog: Catalog, space: str, by: By) -> float:
    """Entries over which what is compared would be spread evenly; the mean of two cosines has a variance of its own."""
    provenance = catalog.manifest.provenance
    sizes = {"vector": (prod(provenance.shapes[space]),), "effect": (prod(provenance.effect_shape),)}
    parts = sizes["vector"] + sizes["effect"] if by == "both" else sizes[by]
    return len(parts) ** 2 / sum(1 / size for size in parts)


def _compared(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of unit rows (n, D): the |cos| of each to each other (n, n), 0 to itself, and their energy (D,)."""
    cosines = np.abs(rows @ rows.T)
    np.fill_diagonal(cosines, 0)
    return cosines, energy_of(rows)


def _spread(cosines: np.ndarray, count: int, energy: np.ndarray, entries: float) -> Spread:
    """Spread of the |cos| of all pairs of `count` rows of an `energy`; `entries` count if all count the same."""
    q10, q50, q90 = (float(q) for q in np.quantile(cosines, (0.1, 0.5, 0.9)))
    return Spread(
        n=count, pairs=len(cosines), q10=q10, q50=q50, q90=q90,
        random=random_quantiles(entries), random_shaped=random_quantiles(entries_that_count(energy)),
    )  # fmt: skip


def homogeneity_of(
    catalog: Catalog, direction_id: str, by: By = "both", move: bool = True, limit: int = 512
) -> DirectionHomogeneity:
    """How alike a direction's nearest directions are on other images: by vector, effect, or the mean of both cosines.

    Directions of the same region, space, kind and timestep are compared. With `move` each is first moved so that the
    centre of its region lies where this one's does, which tells meaning from place; where the catalog was published
    without masks, they are compared where they lie, and `moved` is False. `limit` bounds the images used.
    Cost: reads their vectors once, and one mask per image. Raises InputError, NotFoundError: no such direction, or no
    other image with directions of its kind.
    """
    check_by(by)
    if limit < 1:
        raise InputError("limit", limit, "at least 1 image")
    key = catalog.resolve(direction_id)
    own = catalog.rows([key], ["image_id", *_NAMES])[0]
    home, wanted = own["image_id"], {name: own[name] for name in _NAMES}
    ids, homes, ranks = _rows(catalog, catalog.select(**wanted) & ~catalog.select(image_id=home))
    images = np.unique(homes)
    if not len(images):
        raise none_there(catalog, f"no other image with {own['region']} {own['space']} {own['kind']}", "at least one")
    used = images[:limit]
    kept = np.isin(homes, used)
    ids, homes, ranks = ids[kept], homes[kept], ranks[kept]
    move = move and not catalog.lacks("mask")
    region = own["region"] if move else None
    vectors, effects = _cosines(catalog, key, ids.tolist(), [home, *homes.tolist()], own["space"], region)
    cosines = {"vector": vectors, "effect": effects, "both": (vectors + effects) / 2}[by]
    nearest = []
    for image in used.tolist():
        of_image = np.flatnonzero(homes == image)
        best = of_image[np.abs(cosines[of_image]).argmax()]
        sign = 1 if cosines[best] >= 0 else -1
        score, effect = min(1.0, abs(float(cosines[best]))), sign * float(effects[best])
        nearest.append(NearestOnImage(image, str(ids[best]), int(ranks[best]), score, sign, effect))
    nearest.sort(key=lambda n: (-n.score, n.direction_id))
    scores = np.array([n.score for n in nearest])
    q10, q50, q90 = (float(q) for q in np.quantile(scores, (0.1, 0.5, 0.9)))
    entries = entries_that_count(energy_of(_stored(catalog, [key], own["space"], by)))
    return DirectionHomogeneity(
        direction_id=key, **wanted, by=by, moved=move, images=len(images), used=len(used),
        agreement=float((scores >= ALIKE).mean()), effect_agreement=float(np.mean([n.effect for n in nearest])),
        q10=q10, q50=q50, q90=q90, random=random_quantiles(entries, max(1, round(len(ids) / len(used)))),
        nearest=tuple(nearest), disagreeing=tuple(n.image_id for n in nearest if n.score < ALIKE),
    )  # fmt: skip


def _cosines(
    catalog: Catalog, key: str, ids: list[str], homes: list[str], space: str, region: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (n,) of vectors and of effects of `ids` to those of `key`, whose image is the first of `homes`.

    Moved to where that image has the region, unless there is none.
    """
    provenance = catalog.manifest.provenance
    shapes = provenance.shapes[space], provenance.effect_shape
    centres = np.full((len(homes), 2), np.nan) if region is None else mask_centres(catalog, homes, region)
    queries = [unit_rows(catalog.vector(key)[None])[0], unit_rows(catalog.effect(key)[None])[0]]
    out = np.empty((2, len(ids)), dtype=np.float64)
    for start in range(0, len(ids), _BLOCK):
        part = slice(start, start + _BLOCK)
        shifts = centres[:1] - centres[1:][part]
        for row, (query, shape, stored) in enumerate(
            zip(queries, shapes, (catalog.vectors(ids[part], space), catalog.effects(ids[part])), strict=True)
        ):
            out[row, part] = unit_rows(moved(stored.reshape(-1, *shape), shifts)) @ query
    return out[0], out[1]
