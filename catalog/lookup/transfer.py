"""Which catalogued directions may work on a new image: ranked by likeness of place, picture and effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from catalog.index import EFFECT
from catalog.lookup.ask import check_k, known_values
from catalog.lookup.similarity import opened_index
from catalog.places import texts
from catalog.reader import Catalog
from pipeline.errors import InputError, NotFoundError

COMPARED = 1200
_ROW = ("direction_id", "image_id", "region_id", "dataset", "space", "kind", "rank", "gain", "leakage", "strength")


@dataclass(frozen=True)
class Transfer:
    """A catalogued direction that may work on a new image.

    `score` is the plain mean of the three parts, each in [0, 1]: a ranking by likeness, not a prediction of gain.
    `mask_iou`: overlap of the home mask with the new one. `image_similarity`: correlation of the two images in the box
    around both masks, widened by a quarter, 0 where negative. `effect_inside`: share of the effect's energy that falls
    into the new mask. `shift`: the way from the centre of the home mask to that of the new one, in pixels (x right, y
    down); the score compares in place, without it. `gain`, `leakage` and `strength` are those measured at home.

    Of a catalog that was published without masks, `mask_iou` and `shift` are None, and pictures are compared around
    the new mask; without images `image_similarity` is None. The score is the mean of the parts that there are.
    """

    direction_id: str
    score: float
    mask_iou: float | None
    image_similarity: float | None
    effect_inside: float
    shift: tuple[float, float] | None
    image_id: str
    dataset: str
    space: str
    kind: str
    rank: int
    gain: float
    leakage: float
    strength: float


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

    `image` uint8 (H, W, 3) or (H, W), `mask` bool (H, W), both at the catalog's image size. Up to 1,200 directions are
    compared one by one; where there are more, those that the index of effects finds to be likest to the mask in any
    colour. Raises InputError (sizes, types, empty mask), NotFoundError (no directions of that region, space and kinds),
    CatalogError (that index is missing or stale).
    """
    check_k(k)
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.ndim != 2 or not mask.any():
        raise InputError("mask", f"{mask.dtype} {mask.shape}, {int(mask.sum())} set", "bool (H, W), not empty")
    if image.dtype != np.uint8 or image.shape[:2] != mask.shape:
        raise InputError("image", f"{image.dtype} {image.shape}", f"uint8 of the mask's size {mask.shape}")
    among = catalog.select(region=region, kind=list(kinds), **({} if space is None else {"space": space}))
    rows = [row for row in catalog.rows(_compared_ids(catalog, among, mask), _ROW) if row["region_id"] is not None]
    if not rows:
        names = ", ".join(known_values(catalog, "region")) or "none"
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
        known = [part for part in (iou, alike, share) if part is not None]
        answers.append(Transfer(score=sum(known) / len(known), **parts, shift=shift, **kept))
    return sorted(answers, key=lambda t: (-t.score, t.direction_id))[:k]


def _compared_ids(catalog: Catalog, among: np.ndarray, mask: np.ndarray) -> list[str]:
    """Ids of the directions worth comparing: all, or of many those whose effects are likest to the mask's own shape."""
    if int(among.sum()) <= COMPARED:
        return texts(catalog.ids()[among])
    index = opened_index(catalog, EFFECT)
    weight = _covered(catalog, mask)
    found: dict[str, None] = {}
    channels = catalog.layout.effect_shape[0]
    for colour in np.eye(channels, dtype=np.float32):
        query = np.multiply.outer(colour, weight.astype(np.float32)).ravel()
        found |= dict.fromkeys(key for key, _ in index.search(query, COMPARED // channels, among))
    return list(found)


def _compared(
    catalog: Catalog, image_id: str, region: str, image: np.ndarray, mask: np.ndarray
) -> tuple[float | None, float | None, tuple[float, float] | None]:
    """(mask IoU, image similarity, shift in pixels) of a catalogued image and the new one; None what is left out."""
    home = None if catalog.lacks("mask") else catalog.mask(image_id, region)
    there = None if catalog.lacks("image") else catalog.image(image_id)
    for known in (home, there):
        if known is not None and known.shape[:2] != mask.shape:
            size = known.shape[:2]
            raise InputError("mask", f"{mask.shape}", f"the catalog's image size {size}", "Resize image and mask")
    union = mask if home is None else home | mask
    alike = None if there is None else _alike(image, there, union)
    if home is None:
        return None, alike, None
    iou = float((home & mask).sum() / union.sum())
    down, right = np.argwhere(mask).mean(axis=0) - np.argwhere(home).mean(axis=0)
    return iou, alike, (float(right), float(down))


def _alike(image: np.ndarray, there: np.ndarray, union: np.ndarray) -> float:
    """Correlation of two pictures in the box around two masks, of which `union` (H, W) is what either covers."""
    box = []
    for axis in (1, 0):
        hit = np.flatnonzero(union.any(axis=axis))
        margin = (hit[-1] - hit[0] + 1) // 4 + 1
        box.append(slice(max(0, int(hit[0] - margin)), int(hit[-1] + margin + 1)))
    one, two = (_centred(picture[box[0], box[1]]) for picture in (image, there))
    scale = np.linalg.norm(one) * np.linalg.norm(two)
    return max(0.0, float((one * two).sum() / scale)) if scale > 0 else 0.0


def _centred(crop: np.ndarray) -> np.ndarray:
    """float64 (h, w, 3) with the mean of each channel removed; grey counts in all three."""
    colour = np.broadcast_to(crop.reshape(*crop.shape[:2], -1), (*crop.shape[:2], 3)).astype(np.float64)
    return np.asarray(colour - colour.mean(axis=(0, 1)))


def _covered(catalog: Catalog, mask: np.ndarray) -> np.ndarray:
    """(h w,) float64: the share of each cell of an effect's grid that a mask covers."""
    _, height, width = catalog.layout.effect_shape
    rows = np.arange(mask.shape[0]) * height // mask.shape[0]
    columns = np.arange(mask.shape[1]) * width // mask.shape[1]
    cells = rows[:, None] * width + columns[None, :]
    covered = np.bincount(cells.ravel(), mask.ravel().astype(np.float64), height * width)
    return np.asarray(covered / np.maximum(np.bincount(cells.ravel(), minlength=height * width), 1))


def _inside(effects: np.ndarray, catalog: Catalog, mask: np.ndarray) -> np.ndarray:
    """Share of each effect's energy within the mask, which is averaged down to the effect's grid. (n,)."""
    channels, height, width = catalog.layout.effect_shape
    energy = (effects.astype(np.float64) ** 2).reshape(-1, channels, height * width).sum(axis=1)
    total = energy.sum(axis=1)
    inside = energy @ _covered(catalog, mask)
    return np.asarray(np.clip(inside / np.where(total > 0, total, 1), 0.0, 1.0))
