"""Headers of Parquet's pages: how much each unpacks to, read before anything is unpacked.

Layout: `PageHeader` and `DataPageHeader` of parquet.thrift in Thrift's compact protocol.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import CatalogError

_TYPE, _UNPACKED, _PACKED, _DATA = 1, 2, 3, 5  # fields of a page header
_VALUES, _ENCODING, _LEVELS = 1, 2, (3, 4)  # fields of its part about data
_PLAIN, _RLE, _BYTE_STREAM_SPLIT = 0, 3, 9
_DEEPEST = 3  # a page header holds one of data, which holds statistics
_LONGEST = 10  # bytes of a number


def total(chunk: bytes, name: str) -> tuple[int, int]:
    """(values, bytes unpacked with their headers) of all pages of a column chunk.

    Raises CatalogError naming `name` for anything but plain data pages that fill the chunk.
    """
    values = unpacked = at = 0
    try:
        while at < len(chunk):
            header, end = _struct(chunk, at)
            data = header[_DATA]
            sizes = (header[_UNPACKED], header[_PACKED], data[_VALUES])
            levels = [data[field] for field in _LEVELS]
            plain = header[_TYPE] == 0 and data[_ENCODING] in (_PLAIN, _BYTE_STREAM_SPLIT) and levels == [_RLE, _RLE]
            if not plain or min(sizes) < 0:
                raise ValueError("a page of another kind")
            values, unpacked = values + sizes[2], unpacked + sizes[0] + end - at
            at = end + sizes[1]
        if at != len(chunk):
            raise ValueError("a page that ends beyond its column")
    except (ValueError, LookupError, TypeError) as error:
        raise CatalogError(name, f"no readable pages ({str(error)[:80]})", "plain data pages") from error
    return values, unpacked


def _struct(data: bytes, at: int, depth: int = 1) -> tuple[dict[int, Any], int]:
    """The 32-bit numbers and structs of a struct by field, and where it ends; other fields are passed over."""
    fields: dict[int, Any] = {}
    field = 0
    while data[at]:
        head, at = data[at], at + 1
        kind = head & 15
        if head >> 4:
            field += head >> 4
        else:
            field, at = _signed(data, at)
        if kind in (4, 5, 6):
            number, at = _signed(data, at)
            if kind == 5:
                fields[field] = number
        elif kind == 8:
            length, at = _unsigned(data, at)
            at += length
        elif kind == 12 and depth < _DEEPEST:
            fields[field], at = _struct(data, at, depth + 1)
        elif kind not in (1, 2):  # true and false, which have no bytes of their own
            raise ValueError(f"a field of kind {kind}")
    return fields, at + 1


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(_LONGEST):
        byte = data[at + shift]
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise ValueError("a number without an end")


def _signed(data: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at
