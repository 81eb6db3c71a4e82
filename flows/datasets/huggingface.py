"""Data sets of the Hugging Face Hub and folders that its library reads: `kind: huggingface`.

The library does the listing, the download and the decoding of tables; pictures are decoded here, so that none escapes
the limits. Data sets that bring a loading script are refused, by the library itself; nothing of a data set is ever run.
A Hub id is pinned to one commit before anything is read. Its library copies tables into its own cache (`HF_HOME`),
unless they are streamed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from flows.datasets.columns import Columns, TableDataset, choose_columns, row_item, row_keys, written_licence
from flows.datasets.config import Resolve, quiet
from flows.datasets.contract import BrokenImageError, Item, Source
from flows.datasets.library import Place, card_citation, find_place, library_errors, load_stream, load_table, no_rows
from flows.datasets.pictures import shown_name
from pipeline.errors import InputError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

_BATCH = 1000
_KEPT, _KEPT_BYTES, _LEAST = 256, 2**26, 16
"""Rows of a stream that are kept behind its reader, how large they may be together, and how many stay in any case."""


class HuggingFaceDataset(TableDataset):
    """`path`: a folder (of Parquet, arrow, pictures, ..., or from `save_to_disk`), or a Hub id owner/name.

    `config` and `split` as the library calls them; each may be left out where there is one. `revision`: a branch, tag
    or commit. `streaming` reads forwards and downloads no more than it reads: for sets too large to have.
    See `TableDataset` for the columns.
    """

    kind: Literal["huggingface"]
    config: str | None = quiet(None, min_length=1)
    split: str | None = quiet(None, min_length=1)
    revision: str | None = quiet(None, min_length=1)
    streaming: bool = quiet(False)

    def open(self, resolve: Resolve) -> Source:
        place = find_place(self.path, resolve(self.path), self.revision)
        return StreamedSource(self, place) if self.streaming else HuggingFaceSource(self, place)


class HuggingFaceSource(Source):
    """Rows of a data set that lies on this machine, read in any order.

    Raises:
        InputError: no such data set, configuration, split or column, an empty split, or files outside the data set.
    """

    def __init__(self, config: HuggingFaceDataset, place: Place) -> None:
        with library_errors(place):
            table, self.split, self.licence = load_table(place, config.config, config.split)
            self._rows = table.with_format("arrow")
        if not len(self._rows):
            raise no_rows(self.split, place.shown)
        schema = self._rows.features.arrow_schema
        _describe(self, config, place, schema)
        self._columns, self._place = choose_columns(config, schema, place.name), place
        self._keys = None if config.key_column is None else row_keys(self._column(config.key_column), config)
        self._rows = self._rows.select_columns(self._columns.pictures)

    def keys(self) -> Iterator[str]:
        return map(str, range(len(self))) if self._keys is None else iter(self._keys)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, key: str, parts: Collection[str]) -> Item:
        number = key if self._keys is None else str(self._keys.get(key, ""))
        if not re.fullmatch("[0-9]{1,18}", number) or int(number) >= len(self):
            raise BrokenImageError(f"{self.name} has no {key}")
        try:
            row = self._rows[int(number)].to_pylist()[0]
        except Exception as error:  # a damaged table, in any of the library's ways
            raise BrokenImageError(f"row {number} cannot be read ({type(error).__name__})") from error
        return row_item(row, self._columns, parts, self._place.fetch)

    def _column(self, name: str) -> Iterator[Any]:
        with library_errors(self._place):
            for batch in self._rows.select_columns([name]).iter(_BATCH):
                yield from batch.column(0).to_pylist()


class StreamedSource(Source):
    """Rows as they come, from the Hub or a folder; their number is not known.

    Reading forwards reads every row once, whether `keys()` lists them or somebody else has; the last rows are kept for
    steps back, and a row further back is searched for from the start. A key that the stream has had before, or none, is
    followed by, or is, the row's number.

    Raises:
        InputError: as `HuggingFaceSource`, and when the stream breaks.
    """

    def __init__(self, config: HuggingFaceDataset, place: Place) -> None:
        with library_errors(place):
            stream, self.split, self.licence = load_stream(place, config.config, config.split)
            first = next(iter(stream), None)
        if first is None:
            raise no_rows(self.split, place.shown)
        schema = _schema(stream, first)
        _describe(self, config, place, schema)
        self._columns, self._place = choose_columns(config, schema, place.name), place
        key = [self._columns.key] if self._columns.key else []
        self._stream = stream.select_columns([*self._columns.pictures, *key])
        self._way: _Way | None = None
        self._kept: dict[str, Mapping[str, Any]] = {}
        self._bytes = 0

    def keys(self) -> Iterator[str]:
        for key, row in self._begun():
            self._keep(key, row)
            yield key

    def __len__(self) -> int:
        raise TypeError("the number of rows of a stream is not known")

    def read(self, key: str, parts: Collection[str]) -> Item:
        if key not in self._kept:
            self._go_to(key)
        return row_item(self._kept[key], self._columns, parts, self._place.fetch)

    def reset(self) -> None:
        self._way = None

    def _begun(self) -> _Way:
        """A way through the stream from its first row."""
        return _Way(self._stream, self._columns, self._place)

    def _go_to(self, key: str) -> None:
        """Read on until the row of a key is kept. Raises BrokenImageError: there is none."""
        if self._way is None or self._way.has_passed(key):
            self._way = self._begun()
        try:
            for name, row in self._way:
                self._keep(name, row)
                if name == key:
                    return
        except InputError:
            self._way = None  # it does not go on after an error
            raise
        raise BrokenImageError(f"{self.name} has no {key}")

    def _keep(self, key: str, row: Mapping[str, Any]) -> None:
        self._bytes += _bytes_in(row) - _bytes_in(self._kept.pop(key, {}))
        self._kept[key] = row
        while len(self._kept) > _KEPT or (self._bytes > _KEPT_BYTES and len(self._kept) > _LEAST):
            self._bytes -= _bytes_in(self._kept.pop(next(iter(self._kept))))


class _Way:
    """One way through the rows of a stream, with their keys. Raises InputError where it breaks."""

    def __init__(self, stream: datasets.IterableDataset, columns: Columns, place: Place) -> None:
        self._numbered = columns.key is None
        self._rows = self._keyed(stream, columns, place)
        self._number = 0
        self._seen: set[str] = set()

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        return self._rows

    def has_passed(self, key: str) -> bool:
        """Whether the row of a key lies behind."""
        if not self._numbered:
            return key in self._seen
        return key.isascii() and key.isdecimal() and int(key[:20]) < self._number

    def _keyed(
        self, stream: datasets.IterableDataset, columns: Columns, place: Place
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        with library_errors(place, "Run it again: what was mined before is kept."):
            for number, row in enumerate(stream):
                self._number = number + 1
                yield _stream_key(row, columns, number, self._seen), row


def _bytes_in(row: Mapping[str, Any]) -> int:
    """The size of the encoded pictures of a row."""
    values = (value.get("bytes") if isinstance(value, Mapping) else value for value in row.values())
    return sum(len(value) for value in values if isinstance(value, bytes))


def _stream_key(row: Mapping[str, Any], columns: Columns, number: int, seen: set[str]) -> str:
    """The key of a row: what its key column says, or its number."""
    value = None if columns.key is None else row.get(columns.key)
    if columns.key is None:
        return str(number)
    key = "" if value is None else shown_name(str(value))
    while not key or key in seen:
        key = shown_name(f"{key}~{number}")
    seen.add(key)
    return key


def _describe(source: Source, config: HuggingFaceDataset, place: Place, schema: pa.Schema) -> None:
    """What the catalog says of a source whose split, and licence by its card, are known."""
    source.name, source.parts, source.labels = config.name or place.name, sorted(config.mask_columns), config.labels
    source.has_labels = config.label_column is not None
    source.licence = source.licence or written_licence(schema) or config.licence
    with library_errors(place):
        source.citation = card_citation(place)
    if place.commit is not None:
        source.origin = {"repository": place.name, "commit": place.commit}
        source.redistributable = source.licence is not None


def _schema(stream: datasets.IterableDataset, row: Mapping[str, Any]) -> pa.Schema:
    """The columns of a stream; of a form that tells none in advance, from its first row."""
    if stream.features is not None:
        return stream.features.arrow_schema
    import pyarrow as pa

    return pa.Table.from_pylist([dict(row)]).schema
