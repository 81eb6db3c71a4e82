"""What the footer of a Parquet file says of its column chunks, read by ourselves.

Arrow ends the process, where it should raise, over some of what a damaged or hostile footer may say of a chunk
(encryption, histograms of the wrong length), as soon as it is asked for that chunk; readers of whole files do raise.
A footer is a struct of Thrift's compact protocol: FileMetaData of Apache Parquet's parquet.thrift.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, overload

from catalog.fs import PARQUET_TAIL
from pipeline.errors import CatalogError

ENCODINGS = {
    0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 4: "BIT_PACKED", 5: "DELTA_BINARY_PACKED",
    6: "DELTA_LENGTH_BYTE_ARRAY", 7: "DELTA_BYTE_ARRAY", 8: "RLE_DICTIONARY", 9: "BYTE_STREAM_SPLIT",
}  # fmt: skip
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT, _UUID = 1, 2, 3, 7, 8, 9, 10, 12, 13
_NUMBERS = frozenset({4, 5, 6})  # i16, i32, i64
_SIZES = {_DOUBLE: 8, _BYTE: 1, _UUID: 16}
_DEEPEST = 16
# Fields of each struct that are read, and the struct that each holds, if any.
_Fields = Mapping[int, Any]
_STATISTICS: _Fields = {5: None, 6: None}
_CHUNK_DATA: _Fields = {2: None, 3: None, 5: None, 6: None, 7: None, 9: None, 11: None, 12: _STATISTICS}
_CHUNK: _Fields = {3: _CHUNK_DATA, 8: {}, 9: None}
_GROUP: _Fields = {1: _CHUNK, 2: None, 3: None}
_FILE: _Fields = {3: None, 4: _GROUP}
_NOTHING: _Fields = {}


class Chunk(NamedTuple):
    """One column of one row group, by the names that Arrow has for them; `ends`: smallest and largest value, as stored,
    where they are told."""

    path_in_schema: str
    num_values: int
    total_uncompressed_size: int
    total_compressed_size: int
    data_page_offset: int
    has_dictionary_page: bool
    encodings: tuple[str, ...]
    ends: tuple[bytes, bytes] | None


class Group(NamedTuple):
    """One row group."""

    num_rows: int
    total_byte_size: int
    chunks: Sequence[Chunk]


class Footer:
    """The row groups of a file, parsed when first asked for. `data`: the footer, with its length and magic.

    Cost: about 20 microseconds for each column of a row group, once in a process: of a footer seen before, only the
    chunks that are asked for.
    """

    def __init__(self, data: bytes, name: str, action: str) -> None:
        self._data, self._name, self._action = data, name, action

    @property
    def num_rows(self) -> int:
        """Rows of the file, as it says."""
        return self._parsed[0]

    @property
    def groups(self) -> Sequence[Group]:
        """The row groups, in order. Raises CatalogError: damage, or columns that are encrypted."""
        return self._parsed[1]

    @cached_property
    def _parsed(self) -> tuple[int, list[Group]]:
        digest = hashlib.sha256(self._data).digest()
        if digest in _SEEN:
            rows, groups = _SEEN[digest]
            return rows, [Group(count, size, _Chunks(self, starts)) for count, size, starts in groups]
        try:
            content, _ = _struct(self._data, 0, _FILE)
            listed = [(_number(group, 3), _number(group, 2), _list(group, 1)) for group in _list(content, 4)]
            parsed = [Group(rows, size, [self._chunk(chunk) for _, chunk in chunks]) for rows, size, chunks in listed]
            rows = _number(content, 3)
        except CatalogError:
            raise
        except (IndexError, KeyError, ValueError, TypeError, AttributeError) as error:
            found = "a footer that cannot be followed"
            raise CatalogError(self._name, found, "a whole Parquet file", self._action) from error
        if len(_SEEN) >= _REMEMBERED:
            _SEEN.clear()
        _SEEN[digest] = rows, [(rows, size, array("L", [at for at, _ in chunks])) for rows, size, chunks in listed]
        return rows, parsed

    def chunk_at(self, start: int) -> Chunk:
        """The chunk that begins at a byte of a footer that was parsed before."""
        return self._chunk(_struct(self._data, start, _CHUNK)[0])

    def _chunk(self, content: Mapping[int, Any]) -> Chunk:
        if 8 in content or 9 in content:
            raise CatalogError(self._name, "encrypted columns", "columns that can be read", self._action)
        data = content[3]
        ends = data.get(12, {})
        return Chunk(
            path_in_schema=".".join(part.decode() for part in _list(data, 3)),
            num_values=_number(data, 5),
            total_uncompressed_size=_number(data, 6),
            total_compressed_size=_number(data, 7),
            data_page_offset=_number(data, 9),
            has_dictionary_page=11 in data,
            encodings=tuple(ENCODINGS.get(number, str(number)) for number in _list(data, 2)),
            ends=(ends[6], ends[5]) if 5 in ends and 6 in ends else None,
        )


class _Chunks(Sequence[Chunk]):
    """The chunks of a row group, each parsed when it is asked for."""

    def __init__(self, footer: Footer, starts: array[int]) -> None:
        self._footer, self._starts = footer, starts
        self._found: dict[int, Chunk] = {}

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, at: int) -> Chunk: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Chunk]: ...
    def __getitem__(self, at: int | slice) -> Chunk | Sequence[Chunk]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        start = self._starts[at]
        if start not in self._found:
            self._found[start] = self._footer.chunk_at(start)
        return self._found[start]


# Of footers that were followed to their end: rows, and each row group's rows, bytes, and where its chunks begin.
_SEEN: dict[bytes, tuple[int, list[tuple[int, int, array[int]]]]] = {}
_REMEMBERED = 4096


def footer_in(data: bytes | memoryview) -> bytes:
    """The footer of a file that is in memory, with its length and magic; what there is of one that is too short."""
    return bytes(data[-PARQUET_TAIL - int.from_bytes(data[-PARQUET_TAIL:-4], "little") :])


def _number(content: Mapping[int, Any], field: int) -> int:
    value = content[field]
    if not isinstance(value, int):
        raise ValueError(f"field {field} is no number")
    return value


def _list(content: Mapping[int, Any], field: int) -> list[Any]:
    value = content[field]
    if not isinstance(value, list):
        raise ValueError(f"field {field} is no list")
    return value


def _struct(data: bytes, at: int, wanted: _Fields, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields `wanted` of the struct at `at`, by number, and where it ends; other fields are passed over.

    Raises IndexError or ValueError where bytes break off. Numbers of one byte are read in place: most are.
    """
    if depth > _DEEPEST:
        raise ValueError("structs too deep")
    found: dict[int, Any] = {}
    field = 0
    value: Any
    while head := data[at]:
        at += 1
        if head > 0x0F:
            field += head >> 4
        else:
            field, at = _zigzag(data, at)
        kind = head & 0x0F
        if kind in _NUMBERS:
            byte = data[at]
            value, at = ((byte >> 1) ^ -(byte & 1), at + 1) if byte < 0x80 else _zigzag(data, at)
        elif kind == _BINARY:
            size, at = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at)
            value, at = _bytes(data, at, size), at + size
        else:
            value, at = _value(data, at, kind, wanted.get(field) or _NOTHING, depth + 1)
        if field in wanted:
            found[field] = value
    return found, at + 1


def _value(data: bytes, at: int, kind: int, wanted: _Fields, depth: int) -> tuple[Any, int]:
    """A value of any type, and where it ends."""
    if kind == _STRUCT:
        return _struct(data, at, wanted, depth)
    if kind in (_LIST, _SET):
        return _items(data, at, wanted, depth)
    if kind in _NUMBERS:
        return _zigzag(data, at)
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, at
    if kind == _BINARY:
        size, at = _varint(data, at)
    elif kind in _SIZES:
        size = _SIZES[kind]
    else:
        raise ValueError(f"type {kind}")
    return _bytes(data, at, size), at + size


def _items(data: bytes, at: int, wanted: _Fields, depth: int) -> tuple[list[Any], int]:
    """The items of a list or set, chunks with where they begin; and where it ends."""
    head = data[at]
    count, kind, at = head >> 4, head & 0x0F, at + 1
    if count == 15:
        count, at = _varint(data, at)
    if count > len(data) - at:  # each takes a byte at least
        raise ValueError("a list beyond the end")
    if kind in (_TRUE, _FALSE):
        return list(_bytes(data, at, count)), at + count
    items: list[Any] = []
    if kind in _NUMBERS:
        for _ in range(count):
            byte = data[at]
            item, at = ((byte >> 1) ^ -(byte & 1), at + 1) if byte < 0x80 else _zigzag(data, at)
            items.append(item)
        return items, at
    for _ in range(count):
        start = at
        item, at = _value(data, at, kind, wanted, depth)
        items.append((start, item) if wanted is _CHUNK else item)
    return items, at


def _bytes(data: bytes, at: int, size: int) -> bytes:
    if size > len(data) - at:
        raise ValueError("beyond the end")
    return data[at : at + size]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number without end")


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
