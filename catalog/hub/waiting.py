"""Rows on their way into the shards of a pack: they wait for others of their part until they fill a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.search.codes import Codes

SHARD_BYTES = 32 * 2**20
"""Of a shard of a pack, about."""
BUFFER_BYTES = 3 * SHARD_BYTES
"""Of all rows that wait, in memory; those of one shard of the catalog may be added to them."""


@dataclass
class Waiting:
    """Rows of one part. `origins` are the shards of the catalog that they come from, one for each of `tables`, and
    `codes` their codes by index; `stored` is what they take on disk, about.
    """

    tables: list[pa.Table] = field(default_factory=list)
    codes: list[Mapping[str, Codes]] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    stored: float = 0.0
    held: int = 0

    def shards(self, sorted_by: Sequence[str]) -> Iterator[tuple[pa.Table, set[str]]]:
        """All of them in the order of a shard, cut where they are too many for one; with the origins of each piece.

        They do not wait any more then: what they take in memory is let go, but for one copy.
        """
        counts, rows = [table.num_rows for table in self.tables], pa.concat_tables(self.tables)
        self.tables.clear()
        order = pc.sort_indices(rows.select(list(sorted_by)), sort_keys=[(name, "ascending") for name in sorted_by])
        rows = rows.take(order)
        numbers = np.repeat(np.arange(len(counts)), counts)[order.to_numpy()]
        pieces = max(1, round(self.stored / SHARD_BYTES))
        ends = np.linspace(0, rows.num_rows, pieces + 1).astype(int).tolist()
        for start, end in pairwise(ends):
            if end > start:
                yield rows.slice(start, end - start), {self.origins[n] for n in np.unique(numbers[start:end])}


class Sorter:
    """Sorts the rows of a table into parts. `write` is given those of one part that are to become shards now."""

    def __init__(self, write: Callable[[str, Waiting], None]) -> None:
        self._write = write
        self._parts: dict[str, Waiting] = {}

    @property
    def held(self) -> int:
        """Bytes of all rows that wait."""
        return sum(waiting.held for waiting in self._parts.values())

    def add(self, part: str, rows: pa.Table, codes: Mapping[str, Codes], origin: str, stored: float) -> None:
        """Have rows wait. `stored`: bytes that they take on disk, about."""
        own = self._parts.setdefault(part, Waiting())
        own.tables.append(rows)
        own.codes.append(codes)
        own.origins.append(origin)
        own.stored += stored
        own.held += rows.nbytes + sum(c.keys.nbytes + c.lists.nbytes + c.codes.nbytes for c in codes.values())

    def settle(self) -> None:
        """At the end of a chunk: write parts that fill a shard, and the fullest ones while too much waits."""
        for part in [part for part, own in self._parts.items() if own.stored >= SHARD_BYTES]:
            self._write(part, self._parts.pop(part))
        while self.held > BUFFER_BYTES:
            part = max(sorted(self._parts), key=lambda name: self._parts[name].held)
            self._write(part, self._parts.pop(part))

    def finish(self) -> None:
        """Write all that waits."""
        for part in sorted(self._parts):
            self._write(part, self._parts.pop(part))
