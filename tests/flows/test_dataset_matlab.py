"""The reader of MATLAB's Level 5 against scipy's writer, and against damage."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.io import savemat

from flows.datasets.matlab import MAX_INFLATED, numbers_in

DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=5))
)


def written(variables: dict[str, object], compressed: bool = False) -> bytes:
    stream = io.BytesIO()
    savemat(stream, variables, do_compression=compressed)
    return stream.getvalue()


def big_endian(values: list[float]) -> bytes:
    def element(kind: int, body: bytes) -> bytes:
        return struct.pack(">II", kind, len(body)) + body + bytes(-len(body) % 8)

    flags, dims = struct.pack(">II", 6, 0), struct.pack(">ii", 1, len(values))
    name = struct.pack(">HH", 4, 1) + b"list"  # a small element
    body = element(6, flags) + element(5, dims) + name + element(9, struct.pack(f">{len(values)}d", *values))
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + element(14, body)


@settings(max_examples=80, deadline=None)
@given(ARRAYS, ARRAYS, st.booleans())
def test_what_scipy_writes_is_read_as_it_was(first: np.ndarray, second: np.ndarray, compressed: bool) -> None:
    data = written({"a": first, "other": np.array([["x", 1]], dtype=object), "second": second}, compressed)
    for name, array in (("a", first), ("second", second)):
        read = numbers_in(data, name)
        np.testing.assert_array_equal(read, array.ravel(order="F"))


def test_the_other_byte_order_is_read() -> None:
    assert numbers_in(big_endian([3.0, 1.0, 2.5]), "list").tolist() == [3.0, 1.0, 2.5]


@settings(max_examples=300, deadline=None)
@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=4),
    st.integers(0, 2**16),
)
def test_damage_is_a_value_error_or_leaves_numbers(compressed: bool, changes: list[tuple[int, int]], kept: int) -> None:
    data = bytearray(written({"a": np.ones((2, 3)), "list": np.arange(60.0)[None], "z": np.ones(3)}, compressed))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        assert numbers_in(bytes(data[: kept % (2 * len(data))]), "list").ndim == 1
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize("value", [{"a": 1}, np.array([["x", 1]], dtype=object), "text", np.array([[1j]])])
def test_what_is_no_array_of_real_numbers_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="no array of real numbers"):
        numbers_in(written({"list": value}), "list")


def test_a_variable_that_unpacks_to_more_than_the_limit_is_refused() -> None:
    assert len(numbers_in(written({"list": np.ones((1, 100_000))}, True), "list")) == 100_000
    data = written({"list": np.ones((1, MAX_INFLATED), dtype=np.uint8)}, True)
    assert len(data) < 5_000
    with pytest.raises(ValueError, match="of more than 1,048,576 bytes"):
        numbers_in(data, "list")


def test_dimensions_that_promise_more_than_there_is_are_refused() -> None:
    data = big_endian([3.0, 1.0])
    lying = data.replace(struct.pack(">ii", 1, 2), struct.pack(">ii", 2**31 - 1, 2**31 - 1))
    assert lying != data
    with pytest.raises(ValueError, match="another size"):
        numbers_in(lying, "list")


@pytest.mark.parametrize("data", [b"", b"\x89HDF\r\n\x1a\n" + bytes(600), zlib.compress(bytes(500)), bytes(200)])
def test_other_formats_are_told(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a MATLAB file of Level 5"):
        numbers_in(data, "list")
