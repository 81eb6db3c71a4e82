"""Parquet files of pictures: `kind: parquet`.

Rows are read forwards from one row group at a time, a few at once and only the columns that are needed: neither a file
nor a row group is ever in memory as a whole.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows.datasets.columns import Columns, TableDataset, choose_columns, files_in, row_item, row_keys, written_licence
from flows.datasets.config import Resolve
from flows.datasets.contract import BrokenImageError, Item, Source
from flows.datasets.listed import FIELD
from flows.datasets.patterns import find_files
from pipeline.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH = 16
"""Rows that are decoded at once."""
_BUFFER = 2**20  # without one, pyarrow reads a row group's whole column at once


class ParquetDataset(TableDataset):
    """`path`: a file, a folder, a pattern such as `data/train-*.parquet`, or a range (`flows.datasets.patterns`); paths
    in columns start at its folder before any wildcard. Rows are called by their number, after their file's name where
    there are several files. See `TableDataset` for the columns.
    """

    kind: Literal["parquet"]

    def open(self, resolve: Resolve) -> Source:
        return ParquetSource(self, resolve(self.path))


class ParquetSource(Source):
    """Rows of Parquet files, in the order of the files' names.

    Reading in the order of `keys()` decodes every row once; a step back decodes its row group again from the start.

    Raises:
        InputError: no files, one that is damaged, other columns than the recipe's, or no rows.
    """

    def __init__(self, config: ParquetDataset, path: Path) -> None:
        root, files = find_files(path, ".parquet")
        self._files = list(files.values())
        self._columns, counts = self._listed(config)
        self._starts = [0, *accumulate(counts)]
        if not self._starts[-1]:
            raise InputError(FIELD, f"{path}, with {len(files)} files and not a single row", "a table of pictures")
        self._keys = None if config.key_column is None else row_keys(self._column(config.key_column), config)
        self._names = {name: place for place, name in enumerate(files)}
        self._fetch = files_in(root)
        self._at: _Group | None = None
        self.name = config.name or (path.stem if path.is_file() else root.resolve().name)
        self.parts, self.labels = sorted(config.mask_columns), dict(config.labels)
        self.has_labels = config.label_column is not None
        self.licence = self.licence or config.licence

    def keys(self) -> Iterator[str]:
        if self._keys is not None:
            yield from self._keys
            return
        for place, name in enumerate(self._names):
            for row in range(self._starts[place + 1] - self._starts[place]):
                yield str(row) if len(self._files) == 1 else f"{name}:{row}"

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, key: str, parts: Collection[str]) -> Item:
        place, row = self._place(key)
        return row_item(self._row(place, row), self._columns, parts, self._fetch)

    def _listed(self, config: ParquetDataset) -> tuple[Columns, list[int]]:
        """The columns, and the number of rows of each file; every footer is read, and compared with the recipe."""
        columns, counts = None, []
        for path in self._files:
            with open_parquet(path) as file:
                found = choose_columns(config, file.schema_arrow, path.name)
                if columns is None:
                    self.licence = written_licence(file.schema_arrow)
                if columns not in (None, found):
                    raise InputError(
                        "dataset.image_column",
                        f"{found.image} in {path.name}, {columns.image} in {self._files[0].name}",
                        "the same columns in all files",
                    )
                columns = found
                counts.append(sum(_group_rows(file)))
        assert columns is not None
        return columns, counts

    def _column(self, name: str) -> Iterator[Any]:
        for path in self._files:
            with open_parquet(path) as file:
                try:
                    for batch in file.iter_batches(columns=[name]):
                        yield from batch.column(0).to_pylist()
                except _damage() as error:
                    raise _damaged(path, _said(error)) from error

    def _place(self, key: str) -> tuple[int, int]:
        """The file's place and the row in it. Raises BrokenImageError: no such key."""
        if self._keys is not None:
            row = self._keys.get(key, -1)
            place = bisect_right(self._starts, row) - 1
            row -= self._starts[place] if place >= 0 else 0
        else:
            name, _, number = key.rpartition(":")
            place = self._names.get(name, -1) if len(self._files) > 1 else 0
            row = int(number) if number.isascii() and number.isdigit() and len(number) < 20 else -1
        if place < 0 or not 0 <= row < self._starts[place + 1] - self._starts[place]:
            raise BrokenImageError(f"{self.name} has no {key}")
        return place, row

    def _row(self, place: int, row: int) -> dict[str, Any]:
        if self._at is None or not self._at.has(place, row):
            self.close()
            self._at = _Group(self._files[place], place, row, self._columns.pictures)
        return self._at.row(row)

    def reset(self) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file that is being read."""
        if self._at is not None:
            self._at.close()
            self._at = None

    def __del__(self) -> None:
        if hasattr(self, "_at"):
            self.close()


class _Group:
    """The row group of a file in which `row` lies, read forwards. Raises BrokenImageError: there is none any more."""

    def __init__(self, path: Path, place: int, row: int, columns: list[str]) -> None:
        self._path, self._place, self._columns = path, place, columns
        self._file = open_parquet(path)
        starts = [0, *accumulate(_group_rows(self._file))]
        self._group = bisect_right(starts, row) - 1
        if self._group == len(starts) - 1:
            self.close()
            raise BrokenImageError(f"{path.name} has changed: row {row} is not there")
        self._start, self._end = starts[self._group : self._group + 2]
        self._broken: tuple[int, str] | None = None
        self._batch: pa.RecordBatch | None = None
        self._first = self._next = self._start  # the rows [first, next) are in the batch
        self._batches: Iterator[pa.RecordBatch] | None = None

    def has(self, place: int, row: int) -> bool:
        """Whether the row is in this row group."""
        return place == self._place and self._start <= row < self._end

    def row(self, row: int) -> dict[str, Any]:
        """A row's values. Raises BrokenImageError: the file is damaged there, or before it in the row group."""
        if self._broken is not None and row >= self._broken[0]:
            raise BrokenImageError(self._broken[1])
        try:
            return dict(self._batch_of(row).slice(row - self._first, 1).to_pylist()[0])
        except StopIteration:
            self._broken = (self._next, f"{self._path.name} has fewer rows than it says")
        except UnicodeDecodeError as error:
            raise BrokenImageError(f"{self._path.name} has text in row {row} that is none") from error
        except _damage() as error:
            self._broken = (self._next, f"{self._path.name} is damaged ({_said(error)})")
        raise BrokenImageError(self._broken[1])

    def _batch_of(self, row: int) -> pa.RecordBatch:
        if self._batches is None or row < self._first:
            self._batches = self._file.iter_batches(
                BATCH, row_groups=[self._group], columns=self._columns, use_threads=False
            )
            self._first = self._next = self._start
        while self._batch is None or row >= self._next:
            batch = next(self._batches)
            self._first, self._next, self._batch = self._next, self._next + batch.num_rows, batch
        return self._batch

    def close(self) -> None:
        self._file.close()


def _group_rows(file: pq.ParquetFile) -> list[int]:
    """The number of rows of each row group."""
    return [int(file.metadata.row_group(group).num_rows) for group in range(file.metadata.num_row_groups)]


def open_parquet(path: Path) -> pq.ParquetFile:
    """The opened file; only its footer is read. Raises InputError: it is damaged, or no Parquet."""
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=_BUFFER)
    except _damage() as error:
        raise _damaged(path, _said(error)) from error


def _damaged(path: Path, why: str) -> InputError:
    return InputError(FIELD, f"{path} ({why})", "a whole Parquet file", "It is damaged or cut: get it again.")


def _damage() -> tuple[type[Exception], ...]:
    from pyarrow import ArrowException

    return (ArrowException, OSError, UnicodeDecodeError)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
