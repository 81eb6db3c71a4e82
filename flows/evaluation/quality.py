"""KID of edited pictures against their own sources: two sets of the same images, of which neither is independent."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np

from flows.evaluation.cells import Rows
from pipeline.intervals import Figure, figure, student

LEAST = 3  # images of a region, so that two are left where one is left out


def kid(tried: Rows, finds: Rows) -> Figure:
    """KID of edits (rows with "image", "region", "features") against originals ("image", "features"), mean over
    regions, each of one edit an image; NaN where no region has three images with features of both.

    The unbiased squared MMD under the kernel k(x, y) = (x.y / d + 1)^3 (Binkowski et al. 2018, arXiv:1801.01401), as
    the U-statistic of pairs (Gretton et al. 2012, JMLR 13, Lemma 6): the mean over images i != j of
    k(e_i, e_j) + k(o_i, o_j) - k(e_i, o_j) - k(o_i, e_j). No image meets itself, so that its mean is 0 where edits are
    distributed as originals, however alike an edit and its source are. It is the mean, over all ways to halve the
    images, of KID between the edits of one half and the originals of the other.

    The interval is the jackknife's that leaves out one image with all its edits, times Student's t with images - 1
    degrees of freedom; where the distance is 0 the jackknife is up to 1.4 times too wide (Efron and Stein 1981).
    Float64; cost O(regions n^2 d), no randomness. The count is of edits.
    """
    originals = {row["image"]: row["features"] for row in finds if "features" in row}
    edits: dict[str, dict[str, str]] = {}
    for row in tried:
        if "features" in row and row["image"] in originals:
            edits.setdefault(row["region"], {})[row["image"]] = row["features"]
    edits = {region: own for region, own in edits.items() if len(own) >= LEAST}
    if not edits:
        return figure([], [])
    names = sorted(set().union(*edits.values()))
    place = {name: i for i, name in enumerate(names)}
    value, without = 0.0, np.zeros(len(names))
    for own in edits.values():
        whole, parts = _paired(_unpacked(list(own.values())), _unpacked([originals[name] for name in own]))
        changes = np.zeros(len(names))  # none by images that the region does not have
        changes[[place[name] for name in own]] = parts - whole
        value += whole / len(edits)
        without += (whole + changes) / len(edits)
    error = float(np.sqrt((len(names) - 1) * without.var()))
    edge = student(len(names) - 1) * error
    return Figure(value, value - edge, value + edge, sum(map(len, edits.values())))


def _paired(edited: np.ndarray, originals: np.ndarray) -> tuple[float, np.ndarray]:
    """The U-statistic of pairs of features, each (n, d), and what it is without each of them (n,)."""
    cross = _kernel(edited, originals)
    pairs = _kernel(edited, edited) + _kernel(originals, originals) - cross - cross.T
    np.fill_diagonal(pairs, 0.0)
    own, n = pairs.sum(1), len(pairs)
    return float(own.sum() / (n * (n - 1))), (own.sum() - 2 * own) / ((n - 1) * (n - 2))


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    result: np.ndarray = (first @ second.T / first.shape[1] + 1) ** 3
    return result


def _unpacked(texts: Sequence[str]) -> np.ndarray:
    """Features (n, d) as `World.features` packs them."""
    return np.stack([np.frombuffer(base64.b64decode(text), dtype="<f4") for text in texts]).astype(np.float64)
