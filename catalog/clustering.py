"""Sign-blind clusters of unit vectors, as many as there are: what concepts are made of. Pure numpy.

A cluster is the vectors around an axis: their |cos| to it is at least `alike`, and to no other axis larger. Axes start
where vectors lie densest, move to the sign-aligned mean of what is near them until they stand still (mean shift on
lines), and are then settled all together (k-means on lines). How many there are follows from `alike`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAMPLE = 4096  # vectors compared pair by pair to find where they are dense
MERGED = 0.9  # two axes of a larger |cos| are one
_ROUNDS = 30
_STILL = 1e-6


@dataclass(frozen=True)
class Clusters:
    """`labels` (n,) int64, the cluster of each vector, -1 for none; `axes` (k, D) float32 unit, of either sign."""

    labels: np.ndarray
    axes: np.ndarray


def sign_blind_clusters(
    unit: np.ndarray, owners: np.ndarray, alike: float = 0.5, least: int = 3, seed: int = 0
) -> Clusters:
    """Clusters of unit vectors (n, D) float32, each with vectors of at least `least` different `owners` (n,) int.

    A vector that is alike to no axis belongs to none. v and -v count the same, to the last bit. Depends on the order
    of rows through ties and, beyond 4,096, through the sample (NumPy's default_rng(seed)): callers sort.

    Cost: 4,096^2 D products and 16 MB for the densest places, and again for each further sample of what is left, until
    a sample has none; then up to 30 rounds of n D k products.
    """
    generator = np.random.default_rng(seed)
    axes, rest = np.empty((0, unit.shape[1]), dtype=np.float32), np.arange(len(unit))
    while len(rest) >= least:
        chosen = np.sort(generator.permutation(rest)[:SAMPLE])
        found = _dense_axes(unit[chosen], owners[chosen], alike, least)
        if not len(found):
            break
        axes = _settled(unit, owners, np.concatenate([axes, found]), alike, least)
        left = np.flatnonzero(_labels(unit, axes, alike) < 0)
        if len(left) >= len(rest) or len(chosen) == len(rest):
            break
        rest = left
    return Clusters(_labels(unit, axes, alike), axes)


def aligned_mean(rows: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Unit mean (D,) of rows (n, D), each turned so that its cosine to `axis` (D,) is not negative."""
    signs = np.where(rows @ axis < 0, np.float32(-1), np.float32(1))
    total = signs @ rows
    norm = np.linalg.norm(total)
    return np.asarray(total / norm if norm > 0 else axis)


def _labels(unit: np.ndarray, axes: np.ndarray, alike: float) -> np.ndarray:
    if not len(axes):
        return np.full(len(unit), -1, dtype=np.int64)
    cosines = np.abs(unit @ axes.T)
    return np.where(cosines.max(axis=1) >= alike, cosines.argmax(axis=1), -1)


def _owners(owners: np.ndarray, members: np.ndarray) -> int:
    return len(np.unique(owners[members]))


def _dense_axes(unit: np.ndarray, owners: np.ndarray, alike: float, least: int) -> np.ndarray:
    """(k, D) axes where vectors lie dense, densest first; whatever an axis has near it founds no other."""
    near = np.abs(unit @ unit.T) >= alike
    left, weight = np.ones(len(unit), dtype=bool), near.sum(axis=1)
    axes = []
    while True:
        first = int(np.where(left, weight, 0).argmax())
        if not left[first] or weight[first] < least:
            break
        rows = unit[left]
        axis = rows[int(left[:first].sum())]
        for _ in range(_ROUNDS):
            members = rows[np.abs(rows @ axis) >= alike]
            former, axis = axis, aligned_mean(members, axis) if len(members) else axis
            if abs(float(former @ axis)) > 1 - _STILL:
                break
        gone = left & (np.abs(unit @ axis) >= alike)
        if _owners(owners, gone) >= least:
            axes.append(axis)
        gone[first] = True
        left &= ~gone
        weight = weight - near[:, gone].sum(axis=1)
    return np.array(axes, dtype=np.float32).reshape(-1, unit.shape[1])


def _settled(unit: np.ndarray, owners: np.ndarray, axes: np.ndarray, alike: float, least: int) -> np.ndarray:
    """Axes moved to the means of what is nearest to them until none moves; those too small or too alike leave."""
    for _ in range(_ROUNDS):
        labels = _labels(unit, axes, alike)
        kept: list[np.ndarray] = []
        for number in np.argsort(-np.bincount(labels[labels >= 0], minlength=len(axes)), kind="stable"):
            members = labels == number
            if _owners(owners, members) >= least:
                axis = aligned_mean(unit[members], axes[number])
                if all(abs(float(axis @ other)) < MERGED for other in kept):
                    kept.append(axis)
        moved = np.array(kept, dtype=np.float32).reshape(-1, unit.shape[1])
        still = moved.shape == axes.shape and bool((np.abs((moved * axes).sum(axis=1)) > 1 - _STILL).all())
        axes = moved
        if still:
            break
    sizes = _labels(unit, axes, alike)
    large = [number for number in range(len(axes)) if _owners(owners, sizes == number) >= least]
    return axes[large]
