"""What concepts are judged by: the factor that each direction moves as the reader sees it, and figures over groups.

A direction's true label is the factor of its own region that its one-step edit moves most, by half the difference of
the attribute reader's readings at +strength and -strength of the stored preview, and the sign of that move. Directions
that move none by `LEAST_MOVE` have no label. Intervals are by bootstrap over images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from catalog.alignment import mask_centres, moved, unit_rows
from catalog.concepts import Concept
from catalog.reader import Catalog
from flows.report.choice import read_factors
from pipeline.faces.factors import FACTORS, factors_of
from pipeline.intervals import Figure, figure
from pipeline.reader import AttributeReader

LEAST_MOVE = 0.05  # of a factor's range; half the reader's bar for a side effect of an edit
SHUFFLES = 500
PAIR_SAMPLES = 200
GROUP = ("region", "space", "kind")
WAYS = ("vector", "effect", "both")


@dataclass(frozen=True)
class Group:
    """The n directions of one region, space and kind, sorted by id.

    `images` (n,) names; `moves` (n, f) of the region's own factors; `labels` (n,) the one moved most, -1 for none;
    `concepts` (n,) number of the concept, -1 for none; `signs` (n,) +-1 towards its prototype; `cosines` (n, n) signed,
    by way of comparing, unmoved and moved to one place.
    """

    name: tuple[str, str, str]
    images: np.ndarray
    moves: np.ndarray
    labels: np.ndarray
    concepts: np.ndarray
    signs: np.ndarray
    cosines: dict[str, np.ndarray]


def labels_of(moves: np.ndarray) -> np.ndarray:
    """(n,) column of the largest |move| of (n, f), -1 where it is below `LEAST_MOVE`."""
    sizes = np.abs(moves)
    if not sizes.shape[1]:
        return np.full(len(moves), -1)
    return np.where(sizes.max(axis=1) >= LEAST_MOVE, sizes.argmax(axis=1), -1)


def own_moves(catalog: Catalog, reader: AttributeReader, ids: Sequence[str], region: str) -> np.ndarray:
    """(n, f) how far each direction's stored one-step edit moves the factors of its region. Reads every preview."""
    own = [FACTORS.index(name) for name in factors_of(region)]
    found = np.zeros((len(ids), len(own)))
    for row, key in enumerate(ids):
        minus, _, plus = np.split(catalog.preview(key), 3, axis=1)
        readings = read_factors(reader, [minus, plus])
        found[row] = ((readings[1] - readings[0]) / 2)[own]
    return found


def cosines_of(catalog: Catalog, ids: Sequence[str], images: Sequence[str], region: str, space: str) -> dict[str, Any]:
    """(n, n) signed cosines of vectors, of effects and their mean, as stored and moved to one place."""
    centres = mask_centres(catalog, images, region)
    known = centres[np.isfinite(centres[:, 0])]
    shifts = (np.median(known, axis=0) if len(known) else np.nan) - centres
    provenance = catalog.manifest.provenance
    found = {}
    for way, rows, shape in (
        ("vector", catalog.vectors(ids, space), provenance.shapes[space]),
        ("effect", catalog.effects(ids), provenance.effect_shape),
    ):
        arrays = rows.reshape(-1, *shape)
        for place, placed in (("", arrays), (", moved", moved(arrays, shifts))):
            unit = unit_rows(placed)
            found[way + place] = unit @ unit.T
    for place in ("", ", moved"):
        found["both" + place] = (found["vector" + place] + found["effect" + place]) / 2
    return found


def groups_of(catalog: Catalog, reader: AttributeReader, concepts: Sequence[Concept]) -> Iterable[Group]:
    """Every region, space and kind of a catalog whose directions have one timestep, by name."""
    counted = catalog.directions().group_by(list(GROUP)).aggregate([]).to_pylist()
    place = {key: (i, sign) for i, c in enumerate(concepts) for key, sign in zip(c.members, c.signs, strict=True)}
    for region, space, kind in sorted(tuple(str(row[name]) for name in GROUP) for row in counted):
        rows = catalog.directions(region=region, space=space, kind=kind)
        ids, images = (rows.column(name).to_pylist() for name in ("direction_id", "image_id"))
        moves = own_moves(catalog, reader, ids, region)
        where = np.array([place.get(key, (-1, 1)) for key in ids])
        yield Group(
            (region, space, kind), np.array(images), moves, labels_of(moves), where[:, 0], where[:, 1],
            cosines_of(catalog, ids, images, region, space),
        )  # fmt: skip


# --- shares of members, against chance ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hits:
    """Which members are right (m,) bool, which would be by chance (shuffles, m) bool, and the image of each (m,)."""

    real: np.ndarray
    chance: np.ndarray
    images: np.ndarray

    def figures(self) -> dict[str, Figure]:
        """Share of the right ones and share by chance, each with its interval over images."""
        return {
            "real": figure(self.real.astype(float).tolist(), self.images.tolist(), "mean"),
            "chance": chance_figure(self.chance, self.images),
        }


def pooled(parts: Sequence[Hits]) -> Hits:
    """Members of several groups as one; images of one name are one image."""
    return Hits(
        np.concatenate([p.real for p in parts]),
        np.concatenate([p.chance for p in parts], axis=1),
        np.concatenate([p.images for p in parts]),
    )


def chance_figure(hits: np.ndarray, images: np.ndarray, seed: int = 0) -> Figure:
    """Mean over shuffles (s, m), and the interval of one shuffle of a bootstrap sample of images (m,)."""
    if not hits.shape[1]:
        return Figure(np.nan, np.nan, np.nan, 0)
    numbers = np.unique(images, return_inverse=True)[1]
    drawn = _drawn(int(numbers.max()) + 1, len(hits), seed)[:, numbers]
    weights = np.maximum(drawn.sum(axis=1), 1)
    low, high = np.quantile((hits * drawn).sum(axis=1) / weights, (0.025, 0.975))
    return Figure(float(hits.mean()), float(low), float(high), hits.shape[1])


def _drawn(images: int, samples: int, seed: int) -> np.ndarray:
    """(samples, images) how often each image is in each bootstrap sample."""
    pick = np.random.default_rng(seed).integers(images, size=(samples, images))
    drawn = np.zeros((samples, images), dtype=np.int64)
    np.add.at(drawn, (np.arange(samples)[:, None], pick), 1)
    return drawn


def _counts(concepts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    counts = np.zeros((int(concepts.max(initial=-1)) + 1, int(labels.max(initial=-1)) + 1), dtype=np.int64)
    np.add.at(counts, (concepts, labels), 1)
    return counts


def _commonest(concepts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(m,) bool: whose label is the most common one of their concept."""
    return np.asarray(labels == _counts(concepts, labels).argmax(axis=1)[concepts]) if len(labels) else labels == -1


def purity(group: Group, shuffles: int = SHUFFLES, seed: int = 0) -> Hits:
    """Members whose factor is the most common one of their concept; by chance: labels permuted among the members."""
    chosen = (group.concepts >= 0) & (group.labels >= 0)
    concepts, labels = group.concepts[chosen], group.labels[chosen]
    generator = np.random.default_rng(seed)
    shuffled = [_commonest(concepts, generator.permutation(labels)) for _ in range(shuffles)]
    return Hits(_commonest(concepts, labels), np.array(shuffled).reshape(shuffles, -1), group.images[chosen])


def sign_agreement(group: Group, shuffles: int = SHUFFLES, seed: int = 0) -> Hits:
    """Of the members that move their concept's most common factor, those that move it the way most do, each turned as
    the concept says; by chance: turned at random."""
    chosen = (group.concepts >= 0) & (group.labels >= 0)
    chosen[chosen] = _commonest(group.concepts[chosen], group.labels[chosen])
    concepts, signs = group.concepts[chosen], group.signs[chosen]
    ways = np.sign(group.moves[chosen, group.labels[chosen]])
    generator = np.random.default_rng(seed)
    turned = [_commonest(concepts, (ways * s > 0).astype(int)) for s in
              (signs, *generator.choice([-1, 1], (shuffles, len(signs))))]  # fmt: skip
    return Hits(turned[0], np.array(turned[1:]).reshape(shuffles, -1), group.images[chosen])


# --- pairs of different images --------------------------------------------------------------------------------------


def pair_figure(
    statistic: Callable[[np.ndarray], float], first: np.ndarray, second: np.ndarray, samples: int = PAIR_SAMPLES
) -> Figure:
    """A statistic of weights (p,) of pairs, whose images are `first` and `second` (p,) int.

    A sample that draws images weighs a pair by how often it has both; one without the pairs it takes is left out.
    """
    if not len(first):
        return Figure(np.nan, np.nan, np.nan, 0)
    drawn = _drawn(int(max(first.max(), second.max())) + 1, samples, 0)
    values = np.array([statistic((row[first] * row[second]).astype(float)) for row in drawn])
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, (0.025, 0.975)) if len(values) else (np.nan, np.nan)
    return Figure(statistic(np.ones(len(first))), float(low), float(high), len(first))


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """NaN where nothing weighs."""
    return float(values @ weights / weights.sum()) if weights.sum() > 0 else np.nan


def auc(scores: np.ndarray, same: np.ndarray, weights: np.ndarray) -> float:
    """Chance that a pair that is the same has the larger score than one that is not, ties half; NaN without either."""
    places = np.unique(scores, return_inverse=True)[1]
    yes, no = (np.bincount(places, weights * chosen, minlength=1) for chosen in (same, ~same))
    pairs = yes.sum() * no.sum()
    return float(yes @ (np.cumsum(no) - no / 2) / pairs) if pairs > 0 else np.nan


def _pairs(group: Group, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(one, other, image numbers) of chosen directions (n,) bool, in pairs of different images."""
    numbers = np.unique(group.images, return_inverse=True)[1]
    one, other = np.triu_indices(len(numbers), 1)
    kept = chosen[one] & chosen[other] & (numbers[one] != numbers[other])
    return one[kept], other[kept], numbers


def same_factor(group: Group) -> dict[str, Figure]:
    """By way of comparing: AUC of |cos| for whether two directions of different images move the same factor."""
    one, other, numbers = _pairs(group, group.labels >= 0)
    same = group.labels[one] == group.labels[other]
    found = {}
    for way, cosines in group.cosines.items():
        scores = np.abs(cosines[one, other])
        found[way] = pair_figure(lambda w, s=scores: auc(s, same, w), numbers[one], numbers[other])  # type: ignore[misc]
    return found


def homogeneity(group: Group) -> dict[str, Figure]:
    """Cosine of the moved effects of two directions of different images: of one concept, as their signs say; of any
    two, and of two that no concept has together, at the better sign."""
    one, other, numbers = _pairs(group, np.ones(len(group.images), dtype=bool))
    cosines = group.cosines["effect, moved"][one, other]
    together = (group.concepts[one] == group.concepts[other]) & (group.concepts[one] >= 0)
    signed = cosines * group.signs[one] * group.signs[other]
    return {
        name: pair_figure(lambda w, v=values: weighted_mean(v, w), numbers[one[kept]], numbers[other[kept]])  # type: ignore[misc]
        for name, values, kept in (
            ("in a concept", signed[together], together),
            ("any two", np.abs(cosines), np.ones(len(one), dtype=bool)),
            ("not together", np.abs(cosines)[~together], ~together),
        )
    }


def figures(group: Group, hits: dict[str, Hits]) -> dict[str, Any]:
    """Everything over one group, JSON-serialisable but for Figures."""
    inside = group.concepts >= 0
    sizes = np.bincount(group.concepts[inside]) if inside.any() else np.zeros(0, dtype=int)
    names = factors_of(group.name[0])
    labelled = group.labels[group.labels >= 0]
    shares = np.bincount(labelled, minlength=len(names)) / max(len(labelled), 1)
    return {
        "directions": len(inside),
        "images": len(np.unique(group.images)),
        "concepts": int((sizes > 0).sum()),
        "coverage": figure(inside.astype(float).tolist(), group.images.tolist(), "mean"),
        "labelled": len(labelled),
        "labels": {name: round(float(share), 3) for name, share in zip(names, shares, strict=True)},
        "purity": hits["purity"].figures(),
        "sign_agreement": hits["sign_agreement"].figures(),
        "homogeneity": homogeneity(group),
        "same_factor_auc": same_factor(group),
    }
