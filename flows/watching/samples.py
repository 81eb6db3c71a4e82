"""Medians of what streams by, in fixed memory: a seeded reservoir of what was seen."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from statistics import quantiles

SIZE = 1024  # kept of all that was seen: quartiles of more are off by some 2 % of the ranks


class Reservoir:
    """A uniform sample of at most SIZE of the finite numbers given, the same for the same numbers in one order."""

    def __init__(self, seed: int = 0) -> None:
        self.seen = 0
        self._kept: list[float] = []
        self._random = random.Random(seed)

    def add(self, values: Iterable[float | None]) -> None:
        """Take numbers in; None, NaN and infinity are left out."""
        for value in values:
            if value is None or not math.isfinite(value):
                continue
            self.seen += 1
            if len(self._kept) < SIZE:
                self._kept.append(float(value))
            elif (place := self._random.randrange(self.seen)) < SIZE:
                self._kept[place] = float(value)

    def quartiles(self) -> tuple[float, float, float] | None:
        """Those of the sample, between neighbours linearly; None where nothing was seen."""
        if not self._kept:
            return None
        if len(self._kept) == 1:
            return (self._kept[0],) * 3
        low, middle, high = quantiles(self._kept, n=4, method="inclusive")
        return low, middle, high
