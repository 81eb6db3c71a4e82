"""Where rows lie: ids in sorted arrays, so that a million of them take megabytes and one is found in microseconds."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import CatalogError

_SHOWN = 3
_AWAITING = 2_000  # ids that were added and take 130 bytes each, until they join the others
_HEX = np.isin(np.arange(256), np.frombuffer(b"0123456789abcdef", dtype=np.uint8))


@dataclass(frozen=True)
class Places:
    """The rows of one table over all its shards.

    `ids` (n,) "S32" sorted; `order` (n,) int64: position of each in the shards read one after the other; `starts`
    (shards + 1,): position at which each shard begins; `group_sizes`: rows of its row groups, but for the last.
    """

    shards: tuple[str, ...]
    ids: np.ndarray
    order: np.ndarray
    starts: np.ndarray
    group_sizes: tuple[int, ...]

    @classmethod
    def of(cls, shards: Sequence[str], read: Iterable[tuple[pa.ChunkedArray, int]], name: str) -> Places:
        """From the id column and row group size of every shard. Raises CatalogError: an id twice, or no id."""
        parts, sizes = [np.zeros(0, dtype="S32")], []
        for path, (column, size) in zip(shards, read, strict=True):
            parts.append(packed_ids(column, f"{name}/{path}"))
            sizes.append(size)
        ids = np.concatenate(parts)
        order = np.argsort(ids, kind="stable")
        ranked = ids[order]
        twice = np.flatnonzero(ranked[1:] == ranked[:-1])
        if len(twice):
            raise CatalogError(name, f"{ranked[twice[0]].decode(errors='replace')} twice", "ids that are unique")
        starts = np.cumsum([0, *(len(part) for part in parts[1:])])
        return cls(tuple(shards), ranked, order, starts, tuple(sizes))

    def row(self, key: str) -> int | None:
        """The row of a whole id, None where there is none."""
        return _row(self.ids, key)

    def place(self, row: int) -> tuple[str, int, int]:
        """(shard, row group, row within the group) of a row."""
        position = int(self.order[row])
        shard = int(np.searchsorted(self.starts, position, side="right")) - 1
        group, within = divmod(position - int(self.starts[shard]), self.group_sizes[shard])
        return self.shards[shard], group, within

    def of_shard(self, path: str) -> np.ndarray:
        """(m,) int64: the rows that lie in a shard, in its order."""
        number = self._number[path]
        return self._rank[self.starts[number] : self.starts[number + 1]]

    @cached_property
    def _number(self) -> dict[str, int]:
        return {path: number for number, path in enumerate(self.shards)}

    @cached_property
    def _rank(self) -> np.ndarray:
        """The row of every position: `order` the other way round."""
        rank = np.empty(len(self.order), dtype=np.int64)
        rank[self.order] = np.arange(len(self.order))
        return rank

    def beginning(self, prefix: str) -> tuple[list[str], list[str]]:
        """Up to three ids that begin with `prefix`, and the ids nearest to where it would stand."""
        wanted = np.bytes_(prefix.encode("ascii", errors="replace"))
        start = int(np.searchsorted(self.ids, wanted))
        after = texts(self.ids[start : start + _SHOWN])
        return [key for key in after if key.startswith(prefix)], texts(self.ids[max(0, start - 2) : start + 1])


def texts(ids: np.ndarray) -> list[str]:
    """Ids (n,) "S32" as text."""
    return [key.decode() for key in ids]


def _row(ids: np.ndarray, key: str) -> int | None:
    """The place of a whole id among sorted ids, None where it is not there."""
    try:
        wanted = np.bytes_(key.encode("ascii"))
    except UnicodeEncodeError:
        return None
    at = int(np.searchsorted(ids, wanted))
    return at if at < len(ids) and ids[at] == wanted and len(key) == 32 else None


def packed_ids(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """(n,) "S32": ids of 32 lower-case hex digits each. Raises CatalogError naming `name` for anything else."""
    if column.null_count or not pa.types.is_string(column.type):
        raise CatalogError(name, f"ids of type {column.type}, some missing", "an id in every row")
    if len(column) and pc.min_max(pc.binary_length(column)).as_py() != {"min": 32, "max": 32}:
        raise CatalogError(name, "ids of other lengths", "32 digits each")
    digits = np.frombuffer(b"".join(_bytes_of(chunk) for chunk in column.chunks if len(chunk)), dtype=np.uint8)
    if not _HEX[digits].all():
        raise CatalogError(name, "ids of other characters", "32 lower-case hex digits each")
    return digits.view("S32")


def _bytes_of(text: pa.StringArray) -> memoryview:
    """The bytes of all strings of an array, one after the other."""
    _, offsets, data = text.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[[text.offset, text.offset + len(text)]]
    return memoryview(data)[ends[0] : ends[1]]


class Known:
    """A set of ids: those of a table, 32 bytes each, and those added since, which join them from time to time."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids
        self._added: set[str] = set()
        self._others: tuple[Known | Container[str], ...] = ()

    def __contains__(self, key: str) -> bool:
        return key in self._added or _row(self._ids, key) is not None or any(key in other for other in self._others)

    def add(self, keys: Iterable[str]) -> None:
        """Know these too."""
        self._added.update(keys)
        if len(self._added) >= _AWAITING:
            new = np.array(sorted(key for key in self._added if _row(self._ids, key) is None), dtype="S32")
            self._ids = np.insert(self._ids, np.searchsorted(self._ids, new), new)
            self._added.clear()

    def with_those(self, keys: Container[str]) -> Known:
        """These and others, as they are when it is asked; nothing is copied."""
        both = Known(self._ids[:0])
        both._others = self, keys
        return both

    def all(self) -> list[str]:
        """All of them, in no order."""
        return [*texts(self._ids), *self._added]
