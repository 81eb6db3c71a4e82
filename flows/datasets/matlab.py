"""Arrays of numbers out of MATLAB files of Level 5, in which older data sets keep their lists.

It reads no more than such lists need, and within bounds: scipy.io.loadmat ends the process with a segmentation fault on
some damaged files. The format is chapter 1 of MathWorks, "MAT-File Format".
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER = 128
MATRIX, COMPRESSED = 14, 15
NUMERIC = range(6, 16)  # classes: double, single, int8 ... uint64; before them cells, structures, objects, text, sparse
COMPLEX = 0x800
MAX_INFLATED = 1 << 20  # bytes of one variable

_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


def numbers_in(data: bytes, name: str) -> NDArray[Any]:
    """The real numbers of variable `name` of a file's content `data`, in the file's order and dtype, (N,).

    Raises:
        ValueError: another format, a damaged file, no such variable, or one of another kind or of more than 1 MiB.
    """
    orders = {b"IM": "<", b"MI": ">"}
    if len(data) < HEADER or data[HEADER - 2 : HEADER] not in orders:
        raise ValueError("not a MATLAB file of Level 5")
    order = orders[data[HEADER - 2 : HEADER]]
    for kind, body in _elements(data[HEADER:], order):
        if kind == COMPRESSED:
            kind, body = next(_elements(_inflated(body), order), (0, b""))
        if kind != MATRIX:
            continue
        parts = list(islice(_elements(body, order), 4))
        if len(parts) > 2 and parts[2][1] == name.encode():
            return _array(parts, order)
    raise ValueError(f"no variable {name}")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of one data element after the other."""
    place = 0
    while place < len(data):
        if place + 8 > len(data):
            raise ValueError("the file is cut short")
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start, padded = place + 8, size if kind == COMPRESSED else size + -size % 8
        if kind >> 16:  # small: type and size share the first four bytes, the content has the other four
            kind, size, start, padded = kind & 0xFFFF, kind >> 16, place + 4, 4
        if size > padded or start + size > len(data):
            raise ValueError("the file is cut short")
        yield kind, data[start : start + size]
        place = start + padded


def _inflated(body: bytes) -> bytes:
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(body, MAX_INFLATED)
    except zlib.error as error:
        raise ValueError(f"a variable that does not unpack ({error})") from error
    if not inflate.eof:
        raise ValueError(f"a variable that is cut short or of more than {MAX_INFLATED:,} bytes")
    return data


def _array(parts: list[tuple[int, bytes]], order: str) -> NDArray[Any]:
    """The numbers of a matrix, of its flags, dimensions, name and values."""
    (_, flags), (_, dims), _ = parts[:3]
    what = int.from_bytes(flags[:4], "little" if order == "<" else "big")
    if what & 0xFF not in NUMERIC or what & COMPLEX:
        raise ValueError("a variable that is no array of real numbers")
    if len(parts) < 4 or parts[3][0] not in _TYPES or len(dims) % 4:
        raise ValueError("a variable without numbers")
    values = np.frombuffer(parts[3][1], f"{order}{_TYPES[parts[3][0]]}")
    if math.prod(np.frombuffer(dims, f"{order}i4").tolist()) != len(values):
        raise ValueError("a variable of another size than its dimensions")
    return values
