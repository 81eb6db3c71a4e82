"""What chance gives: spectra of white noise and random frames, drawn one at a time in the few numbers that matter.

Rotations of the rows and of the columns of a Gaussian matrix leave its distribution alone, so a whole matrix is drawn
as a triangle (Bartlett), or as two diagonals where only its singular values count (Dumitriu & Edelman 2002): what is
kept grows with the smaller side, whatever the other one is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

_HALVINGS = 46  # of the interval that holds a singular value: 1e-14 of the largest one


def gaussian(rows: int, width: int, rng: np.random.Generator) -> torch.Tensor:
    """A Gaussian matrix (rows, min(rows, width)) up to a rotation of its columns: whole where tall, else a triangle."""
    if rows >= width:
        return torch.from_numpy(rng.standard_normal((rows, width)))
    lower = np.tril(rng.standard_normal((rows, rows)), -1)
    np.fill_diagonal(lower, np.sqrt(rng.chisquare(width - np.arange(rows))))
    return torch.from_numpy(lower)


def frames(ranks: Sequence[int], width: int, rng: np.random.Generator) -> torch.Tensor:
    """Random orthonormal rows (sum(ranks), .), `ranks` (each at most `width`) to a block, independent between blocks.

    Turning all blocks together changes no product between them, so that the first one's rows may be the first axes.
    """
    first, *others = gaussian(sum(ranks), width, rng).split(list(ranks))
    axes = torch.eye(*first.shape, dtype=torch.float64)
    return torch.cat([axes, *(torch.linalg.qr(part.T).Q.T for part in others)])


class WhiteSpectra:
    """Singular values of `draws` white matrices (rows, width) of unit variance, as bidiagonal ones that have them.

    `energy` (draws,): their squared Frobenius norms. Cost of a singular value of all draws: 46 passes over n numbers,
    n the smaller side; memory of 2 n numbers a draw.
    """

    def __init__(self, rows: int, width: int, draws: int, rng: np.random.Generator) -> None:
        self.count, larger = sorted((rows, width))
        every = np.arange(self.count)
        diagonal = rng.chisquare(larger - every, (draws, self.count)).T  # squares (n, draws)
        below = rng.chisquare(self.count - every[1:], (draws, self.count - 1)).T
        self.energy = diagonal.sum(0) + below.sum(0)
        # B B^T of the bidiagonal B is tridiagonal.
        self._diagonal, self._squares = diagonal.copy(), diagonal[:-1] * below
        self._diagonal[1:] += below
        self._bound = float(self.energy.max())

    def nth(self, index: int) -> np.ndarray:
        """The singular value (draws,) with `index` larger ones of each draw; 0 where there are no more."""
        if index >= self.count:
            return np.zeros(len(self.energy))
        return self._root(lambda above: above > index)

    def median(self) -> float:
        """Median of the singular values of all draws together."""
        half = self.count * len(self.energy) / 2
        return float(self._root(lambda above: np.full(above.shape, above.sum() > half))[0])

    def _root(self, is_below: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Roots of what bisection ends at: `is_below` of how many eigenvalues of each draw lie above a number."""
        low, high = np.zeros(len(self.energy)), np.full(len(self.energy), self._bound)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = is_below(self._above(middle))
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.sqrt((low + high) / 2)

    def _above(self, x: np.ndarray) -> np.ndarray:
        """How many eigenvalues of each draw's tridiagonal matrix exceed x (draws,): signs of its pivots (Sturm)."""
        pivot = self._diagonal[0] - x
        above = (pivot > 0).astype(np.int64)
        for diagonal, square in zip(self._diagonal[1:], self._squares, strict=True):
            pivot = diagonal - x - square / np.where(pivot == 0.0, 1e-200, pivot)
            above += pivot > 0
        return above
