"""What the footer of a Parquet file says of its column chunks, read by ourselves.

Arrow ends the process, where it should raise, over some of what a damaged or hostile footer may say of a chunk
(encryption, histograms of the wrong length), as soon as it is asked for that chunk; readers of whole files do raise.
A footer is a struct of Thrift's compact protocol: FileMetaData of Apache Parquet's parquet.thrift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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


@dataclass(frozen=True)
class Chunk:
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


@dataclass(frozen=True)
class Group:
    """One row group."""

    num_rows: int
    total_byte_size: int
    chunks: Sequence[Chunk]


class Footer:
    """The row groups of a file, parsed when first asked for. `data`: the footer, with its length and magic.

    Cost: about 10 microseconds for each column of a row group.
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
        try:
            content = _Reader(self._data).struct(_FILE)
            return _number(content, 3), [self._group(group) for group in _list(content, 4)]
        except CatalogError:
            raise
        except (IndexError, KeyError, ValueError, TypeError, AttributeError) as error:
            found = "a footer that cannot be followed"
            raise CatalogError(self._name, found, "a whole Parquet file", self._action) from error

    def _group(self, content: Mapping[int, Any]) -> Group:
        return Group(_number(content, 3), _number(content, 2), [self._chunk(chunk) for chunk in _list(content, 1)])

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


class _Reader:
    """Reads structs; what nobody asks for is passed over. Raises IndexError or ValueError where bytes break off."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def struct(self, wanted: _Fields, depth: int = 0) -> dict[int, Any]:
        """The fields `wanted` of a struct, by number."""
        if depth > _DEEPEST:
            raise ValueError("structs too deep")
        found: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._zigzag()
            value = self._value(head & 0x0F, wanted.get(field) or {}, depth + 1)
            if field in wanted:
                found[field] = value
        return found

    def _value(self, kind: int, wanted: _Fields, depth: int) -> Any:
        if kind in _NUMBERS:
            return self._zigzag()
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind == _STRUCT:
            return self.struct(wanted, depth)
        if kind in (_LIST, _SET):
            return self._items(wanted, depth)
        if kind in _SIZES:
            return self._bytes(_SIZES[kind])
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        raise ValueError(f"type {kind}")

    def _items(self, wanted: _Fields, depth: int) -> list[Any]:
        head = self._byte()
        count, kind = head >> 4, head & 0x0F
        if count == 15:
            count = self._varint()
        if count > len(self.data) - self.at:  # each takes a byte at least
            raise ValueError("a list beyond the end")
        if kind in (_TRUE, _FALSE):
            return list(self._bytes(count))
        return [self._value(kind, wanted, depth) for _ in range(count)]

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _bytes(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self.data):
            raise ValueError("beyond the end")
        return self.data[self.at - size : self.at]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number without end")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
