"""The three questions asked of a catalog: what is similar, how uniform is a region, what may work on a new image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from catalog.index import DirectionIndex
from catalog.reader import Catalog
from pipeline.errors import InputError, NotFoundError

By = Literal["vector", "effect"]
_NORMAL_QUANTILES = (0.12566, 0.67449, 1.64485)  # of |N(0, 1)| at 10, 50 and 90 %
_RERANKED = 100  # candidates ranked again by stored vectors: facts measured recall 1.0 on sketches of 1,024


@dataclass(frozen=True)
class Similar:
    """A direction like the one asked for. `score` is the exact |cos|; `sign` -1 where -v is the alike one."""

    direction_id: str
    score: float
    sign: int
    image_id: str
    dataset: str
    region: str
    space: str
    kind: str
    rank: int


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
    """

    region: str
    space: str
    kind: str
    by: By
    images: int
    used: int
    overall: Spread
    of_rank: dict[int, Spread]


@dataclass(frozen=True)
class Transfer:
    """A catalogued direction that may work on a new image.

    `score` is the plain mean of the three parts, each in [0, 1]: a ranking by likeness, not a prediction of gain.
    `mask_iou`: overlap of the home mask with the new one. `image_similarity`: correlation of the two images in the box
    around both masks, widened by a quarter, 0 where negative. `effect_inside`: share of the effect's energy that falls
    into the new mask. `shift`: the way from the centre of the home mask to that of the new one, in pixels (x right, y
    down); the score compares in place, without it. `gain`, `leakage` and `strength` are those measured at home.
    """

    direction_id: str
    score: float
    mask_iou: float
    image_similarity: float
    effect_inside: float
    shift: tuple[float, float]
    image_id: str
    dataset: str
    space: str
    kind: str
    rank: int
    gain: float
    leakage: float
    strength: float


def _check_k(k: int) -> None:
    if k < 1:
        raise InputError("k", k, "at least 1")


def similar(
    catalog: Catalog,
    direction_id: str,
    k: int = 10,
    by: By = "vector",
    other_images: bool = True,
    same_region: bool = False,
) -> list[Similar]:
    """The k directions most similar to one, best first: sign-blind, by vector (same space) or by effect (any space).

    At least 100 candidates come from the index and are ranked again by the stored values. `other_images` leaves out
    directions of the same image; `same_region` keeps only those of the same region. Fewer than k where the catalog
    has fewer. Raises NotFoundError, InputError, CatalogError (index missing or stale).
    """
    _check_k(k)
    if by not in ("vector", "effect"):
        raise InputError("by", by, "vector | effect")
    key = catalog.resolve(direction_id)
    rows = {row["direction_id"]: row for row in catalog.directions().to_pylist()}
    own = rows[key]
    name = own["space"] if by == "vector" else "effect"
    among = [
        other for other, row in rows.items()
        if other != key
        and (by == "effect" or row["space"] == own["space"])
        and not (other_images and row["image_id"] == own["image_id"])
        and not (same_region and row["region"] != own["region"])
    ]  # fmt: skip
    index = DirectionIndex(catalog, name)
    query = (catalog.vector(key) if by == "vector" else catalog.effect(key)).ravel()
    found = [other for other, _ in index.search(query, max(_RERANKED, 10 * k), among)]
    if not found:
        return []
    stored = catalog.vectors(found, name) if by == "vector" else catalog.effects(found)
    norms = np.linalg.norm(stored, axis=1) * np.linalg.norm(query)
    cosines = (stored @ query) / norms
    ranked = sorted(zip(found, cosines.tolist(), strict=True), key=lambda pair: (-abs(pair[1]), pair[0]))
    return [_similar(rows[other], cosine) for other, cosine in ranked[:k]]


def _similar(row: dict[str, Any], cosine: float) -> Similar:
    names = ("direction_id", "image_id", "dataset", "region", "space", "kind", "rank")
    return Similar(score=min(abs(cosine), 1.0), sign=1 if cosine >= 0 else -1, **{name: row[name] for name in names})


def _spread(groups: Sequence[np.ndarray]) -> Spread:
    """Spread over pairs within each group of rows (n_i, D)."""
    cosines, energy = [], np.zeros(groups[0].shape[1])
    for rows in groups:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        gram = unit @ unit.T
        cosines.append(np.abs(gram[np.triu_indices(len(rows), 1)]))
        energy += (unit.astype(np.float64) ** 2).sum(axis=0)
    values = np.concatenate(cosines)
    shaped = float(energy.sum() ** 2 / (energy**2).sum())
    q10, q50, q90 = (float(q) for q in np.quantile(values, (0.1, 0.5, 0.9)))
    return Spread(
        n=sum(len(rows) for rows in groups), pairs=len(values), q10=q10, q50=q50, q90=q90,
        random=_random_quantiles(groups[0].shape[1]), random_shaped=_random_quantiles(shaped),
    )  # fmt: skip


def _random_quantiles(entries: float) -> tuple[float, float, float]:
    low, middle, high = (min(1.0, q / float(np.sqrt(entries))) for q in _NORMAL_QUANTILES)
    return low, middle, high


def homogeneity(
    catalog: Catalog,
    region: str,
    space: str = "x",
    kind: str = "local",
    rank: int | None = None,
    by: By = "vector",
    limit: int = 512,
) -> Homogeneity:
    """Pairwise |cos| of a region's directions (or of their effects) over images, per rank and overall.

    Directions of one rank on different images are compared. `limit` bounds the images used. Cost: reads their vectors
    once; limit^2 / 2 cosines per rank. Raises NotFoundError if fewer than two images have such directions.
    """
    if by not in ("vector", "effect"):
        raise InputError("by", by, "vector | effect")
    rows = catalog.directions(region=region, space=space, kind=kind).to_pylist()
    ranks = sorted({row["rank"] for row in rows if rank is None or row["rank"] == rank})
    images = sorted({row["image_id"] for row in rows if row["rank"] in ranks})
    used = set(images[:limit])
    of_rank: dict[int, Spread] = {}
    groups: list[np.ndarray] = []
    for r in ranks:
        first = {row["image_id"]: row["direction_id"] for row in reversed(rows) if row["rank"] == r}
        ids = sorted(key for image, key in first.items() if image in used)
        if len(ids) > 1:
            groups.append(catalog.vectors(ids, space) if by == "vector" else catalog.effects(ids))
            of_rank[r] = _spread(groups[-1:])
    if not groups:
        table = catalog.directions()
        have = {(d["region"], d["space"], d["kind"]) for d in table.select(["region", "space", "kind"]).to_pylist()}
        there = "; ".join(" ".join(group) for group in sorted(have)[:12]) or "none"
        found = f"{len(images)} images with {region} {space} {kind}" + ("" if rank is None else f" of rank {rank}")
        raise NotFoundError("directions to compare", found, "at least two images", f"There are: {there}")
    return Homogeneity(region, space, kind, by, len(images), len(used), _spread(groups), of_rank)


def transfer_candidates(
    catalog: Catalog,
    image: np.ndarray,
    mask: np.ndarray,
    region: str,
    k: int = 10,
    space: str | None = None,
    kinds: Sequence[str] = ("local", "individual"),
) -> list[Transfer]:
    """Catalogued directions of `region` that may work on a new image, best first; see `Transfer` for the score.

    `image` uint8 (H, W, 3) or (H, W), `mask` bool (H, W), both at the catalog's image size. Raises InputError
    (sizes, types, empty mask), NotFoundError (no directions of that region, space and kinds).
    """
    _check_k(k)
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.ndim != 2 or not mask.any():
        raise InputError("mask", f"{mask.dtype} {mask.shape}, {int(mask.sum())} set", "bool (H, W), not empty")
    if image.dtype != np.uint8 or image.shape[:2] != mask.shape:
        raise InputError("image", f"{image.dtype} {image.shape}", f"uint8 of the mask's size {mask.shape}")
    wanted: dict[str, Any] = {"region": region, "kind": list(kinds)} | ({} if space is None else {"space": space})
    rows = [row for row in catalog.directions(**wanted).to_pylist() if row["region_id"] is not None]
    if not rows:
        names = ", ".join(sorted(set(catalog.directions().column("region").to_pylist()))) or "none"
        found = f"{region}, {space or 'any space'}, {' or '.join(kinds)}"
        raise NotFoundError("directions", found, "a region, space and kind of the catalog", f"Regions: {names}")
    homes = {key: _compared(catalog, key, region, image, mask) for key in {row["image_id"] for row in rows}}
    inside = _inside(catalog.effects([row["direction_id"] for row in rows]), catalog, mask)
    answers = []
    for row, share in zip(rows, inside.tolist(), strict=True):
        iou, alike, shift = homes[row["image_id"]]
        parts = {"mask_iou": iou, "image_similarity": alike, "effect_inside": share}
        names_ = ("direction_id", "image_id", "dataset", "space", "kind", "rank", "gain", "leakage", "strength")
        kept = {name: row[name] for name in names_}
        answers.append(Transfer(score=sum(parts.values()) / 3, **parts, shift=shift, **kept))
    return sorted(answers, key=lambda t: (-t.score, t.direction_id))[:k]


def _compared(
    catalog: Catalog, image_id: str, region: str, image: np.ndarray, mask: np.ndarray
) -> tuple[float, float, tuple[float, float]]:
    """(mask IoU, image similarity, shift in pixels) of a catalogued image and the new one."""
    home, there = catalog.mask(image_id, region), catalog.image(image_id)
    if home.shape != mask.shape:
        raise InputError("mask", f"{mask.shape}", f"the catalog's image size {home.shape}", "Resize image and mask")
    union = home | mask
    iou = float((home & mask).sum() / union.sum())
    down, right = np.argwhere(mask).mean(axis=0) - np.argwhere(home).mean(axis=0)
    box = []
    for axis in (1, 0):
        hit = np.flatnonzero(union.any(axis=axis))
        margin = (hit[-1] - hit[0] + 1) // 4 + 1
        box.append(slice(max(0, int(hit[0] - margin)), int(hit[-1] + margin + 1)))
    one, two = (_centred(picture[box[0], box[1]]) for picture in (image, there))
    scale = np.linalg.norm(one) * np.linalg.norm(two)
    alike = max(0.0, float((one * two).sum() / scale)) if scale > 0 else 0.0
    return iou, alike, (float(right), float(down))


def _centred(crop: np.ndarray) -> np.ndarray:
    """float64 (h, w, 3) with the mean of each channel removed; grey counts in all three."""
    colour = np.broadcast_to(crop.reshape(*crop.shape[:2], -1), (*crop.shape[:2], 3)).astype(np.float64)
    return np.asarray(colour - colour.mean(axis=(0, 1)))


def _inside(effects: np.ndarray, catalog: Catalog, mask: np.ndarray) -> np.ndarray:
    """Share of each effect's energy within the mask, which is averaged down to the effect's grid. (n,)."""
    channels, height, width = catalog.manifest.provenance.effect_shape
    rows = np.arange(mask.shape[0]) * height // mask.shape[0]
    columns = np.arange(mask.shape[1]) * width // mask.shape[1]
    cells = rows[:, None] * width + columns[None, :]
    covered = np.bincount(cells.ravel(), mask.ravel().astype(np.float64), height * width)
    weight = covered / np.maximum(np.bincount(cells.ravel(), minlength=height * width), 1)
    energy = (effects.astype(np.float64) ** 2).reshape(-1, channels, height * width).sum(axis=1)
    total = energy.sum(axis=1)
    return np.asarray(np.clip((energy @ weight) / np.where(total > 0, total, 1), 0.0, 1.0))
