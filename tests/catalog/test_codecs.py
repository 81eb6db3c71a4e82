"""Vector codecs: what they promise of any vector, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from pydantic import TypeAdapter, ValidationError

from catalog.codecs import (
    BLOCKS,
    LARGEST,
    Codec,
    CodecSpec,
    DctCodec,
    DctSpec,
    Float16Spec,
    codec_for,
    cosines,
    default_codec,
)
from catalog.schema import Layout, parquet_settings
from pipeline.errors import CatalogError

SPEC: TypeAdapter[Any] = TypeAdapter(CodecSpec)
SHAPES = {1: (5, 3, 7), 2: (3, 6, 10), 4: (4, 8, 12), 8: (3, 16, 24)}
COLUMN = "x_vector"


def unit(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True), dtype=np.float32)


def smooth(count: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Random vectors with more low frequencies than high ones, as directions have, each in a corner of its own."""
    noise = np.random.default_rng(seed).standard_normal((count, *shape))
    noise[:, :, shape[1] // 2 :] *= 1e-3
    return unit(noise.cumsum(axis=2).cumsum(axis=3).reshape(count, -1))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def dct(block: int = 8, channels: bool = True, cosine: float = 0.9998) -> DctCodec:
    codec = codec_for(DctSpec(block=block, channels=channels, cosine=cosine), SHAPES[block])
    assert isinstance(codec, DctCodec)
    return codec


vectors_of = st.integers(1, 4).flatmap(
    lambda exponent: arrays(
        np.float32, (2, 1152), elements=st.floats(-(10.0**exponent), 10.0**exponent, width=32)
    ).filter(lambda a: bool((np.linalg.norm(a, axis=1) > 1e-3).all()))
)


@settings(max_examples=30, deadline=None)
@given(vectors_of, st.sampled_from([0.9, 0.99, 0.999, 0.9999]), st.booleans())
def test_any_vector_comes_back_within_the_promised_cosine_and_of_unit_length(
    values: np.ndarray, least: float, channels: bool
) -> None:
    codec = dct(8, channels, least)
    vectors = unit(values)
    back = codec.decode(codec.encode(vectors, COLUMN))
    assert back.dtype == np.float32
    assert cosine(vectors, back).min() >= least
    assert np.abs(np.linalg.norm(back.astype(np.float64), axis=1) - 1).max() < 1e-5


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("channels", [False, True])
def test_every_block_size_keeps_its_promise_on_noise_single_entries_and_constants(block: int, channels: bool) -> None:
    codec = dct(block, channels, 0.9999)
    size = codec.size
    noise = np.random.default_rng(1).standard_normal((3, size))
    spread = np.logspace(0, -12, size)[None]
    vectors = unit(np.concatenate([noise, spread, np.eye(2, size), np.ones((1, size)), -np.ones((1, size))]))
    assert cosine(vectors, codec.decode(codec.encode(vectors, COLUMN))).min() >= 0.9999


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.integers(-3, 3), max_size=6),
    noise=st.floats(0, 1 / 60),
    least=st.sampled_from([0.99, 0.9999, 0.99999]),
    seed=st.integers(0, 99),
)
def test_vectors_that_are_nearly_whole_numbers_of_steps_keep_the_promise_and_those_that_are_their_bytes(
    numbers: list[int], noise: float, least: float, seed: int
) -> None:
    codec = codec_for(DctSpec(block=1, channels=False, cosine=least), (1, 24, 24))
    generator = np.random.default_rng(seed)
    wholes = generator.choice([1, *numbers], (1, codec.size))
    vectors = unit(wholes + noise * generator.choice([-1, 1], wholes.shape) * (wholes != 0))
    encoded = codec.encode(vectors, COLUMN)
    back = codec.decode(encoded)
    assert cosine(vectors, back)[0] >= least
    planes = np.frombuffer(planes_of(encoded[COLUMN][0], codec), np.uint8).reshape(-1, codec.size).astype(int)
    if np.isin(planes[0] + 256 * planes[1:].sum(axis=0), (1, 2)).any():  # as 1 and -1 are stored
        assert list(codec.encode(back, COLUMN)[COLUMN]) == list(encoded[COLUMN])


@pytest.mark.parametrize("block", BLOCKS)
def test_the_transform_keeps_lengths_and_angles(block: int) -> None:
    codec = dct(block)
    vectors = unit(np.random.default_rng(2).standard_normal((2, codec.size))).astype(np.float64)
    a, b = (codec.coefficients(vector) for vector in vectors)
    assert a @ a == pytest.approx(vectors[0] @ vectors[0], abs=1e-12)
    assert a @ b == pytest.approx(vectors[0] @ vectors[1], abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_the_cosine_basis_is_orthonormal_and_begins_with_the_mean(size: int) -> None:
    basis = cosines(size)
    assert np.abs(basis @ basis.T - np.eye(size)).max() < 1e-12
    assert np.allclose(basis[0], size**-0.5)


def test_coefficients_lie_block_after_block_and_channel_after_channel_by_rising_frequency() -> None:
    codec = dct(8, channels=False)
    picture = np.zeros((3, 16, 24))
    picture[1, 8:16, 8:16] = 1.0  # the mean of channel 1 in the second block of the second row of three
    place = np.flatnonzero(np.abs(codec.coefficients(picture.ravel())) > 1e-9)
    assert place.tolist() == [(4 * 3 + 1) * 64]
    rows, columns = np.indices((8, 8)).reshape(2, -1)[:, codec._order]
    assert (np.diff(rows**2 + columns**2) >= 0).all()


def test_a_vector_is_encoded_to_the_same_bytes_alone_in_a_batch_and_from_any_layout_in_memory() -> None:
    codec = dct()
    vectors = smooth(5, (3, 16, 24))
    together = codec.encode(vectors, COLUMN)[COLUMN]
    alone = [codec.encode(vectors[i : i + 1], COLUMN)[COLUMN][0] for i in range(5)]
    assert list(together) == alone == list(codec.encode(np.asfortranarray(vectors), COLUMN)[COLUMN])


@pytest.mark.parametrize("shape", [(3, 64, 64), (96, 16, 16)])
@pytest.mark.parametrize("space", ["x", "h"])
def test_vectors_that_were_read_go_back_as_the_bytes_they_were_read_from(
    space: str, shape: tuple[int, int, int]
) -> None:
    codec = codec_for(default_codec(space, shape), shape)
    noise = np.random.default_rng(4).standard_normal((3, codec.size))
    vectors = np.concatenate([smooth(3, shape), unit(noise), unit(noise**5)])
    encoded = codec.encode(vectors, COLUMN)
    assert {value[0] for value in encoded[COLUMN][3:6]} == {1}  # noise is not taken for multiples
    assert list(codec.encode(codec.decode(encoded), COLUMN)[COLUMN]) == list(encoded[COLUMN])


def test_the_stored_bytes_are_those_that_the_format_states() -> None:
    codec = codec_for(DctSpec(block=1, channels=False, cosine=0.9999), (1, 2, 2))
    vector = np.array([[0.8, -0.6, 0.0, 0.0]], dtype=np.float32)
    (stored,) = codec.encode(vector, COLUMN)[COLUMN]
    assert stored[0] == 1
    low = planes_of(stored, codec)
    numbers = [-(byte + 1) // 2 if byte % 2 else byte // 2 for byte in low]
    assert len(low) == 4 and numbers[2:] == [0, 0]
    assert numbers[0] / -numbers[1] == pytest.approx(0.8 / 0.6, abs=0.05)


def test_smooth_local_vectors_take_an_eighth_of_float32_and_less_than_without_a_transform() -> None:
    vectors = smooth(64, (3, 64, 64))

    def stored(spec: DctSpec) -> float:
        values = codec_for(spec, (3, 64, 64)).encode(vectors, COLUMN)[COLUMN]
        return sum(map(len, values)) / vectors.nbytes

    spec = default_codec("x", (3, 64, 64))
    assert isinstance(spec, DctSpec) and spec.block == 8 and spec.channels
    assert stored(spec) < 1 / 8
    assert stored(spec) < 0.8 * stored(DctSpec(block=1, channels=False, cosine=spec.cosine))


@pytest.mark.parametrize("spec", [Float16Spec(), DctSpec(block=8, channels=True, cosine=0.999)])
def test_vectors_survive_a_parquet_file_with_the_codecs_settings(tmp_path: Any, spec: Any) -> None:
    codec = codec_for(spec, (3, 16, 24))
    vectors = smooth(6, (3, 16, 24))
    encoded = codec.encode(vectors, COLUMN)
    (field,) = codec.fields(COLUMN, nullable=True)
    assert (field.name, field.nullable) == (COLUMN, True)
    column = pa.array(list(encoded[COLUMN]), type=field.type)
    schema = pa.schema([field])
    settings = parquet_settings("directions", schema, Layout({"x": codec.shape}, (3, 4, 4), {"x": spec}))
    pq.write_table(pa.table([column], schema=schema), tmp_path / "a.parquet", **settings | {"write_statistics": False})
    back = pq.read_table(tmp_path / "a.parquet").column(COLUMN).combine_chunks()
    values = back.flatten().to_numpy().reshape(6, -1) if spec.kind == "float16" else back.to_numpy(False)
    assert (codec.decode({COLUMN: values}) == codec.decode(encoded)).all()
    assert cosine(vectors, codec.decode(encoded)).min() >= 0.999


@pytest.mark.parametrize("spec", [Float16Spec(), DctSpec(block=4, channels=True, cosine=0.999)])
def test_no_vectors_at_all_are_encoded_and_decoded(spec: Any) -> None:
    codec = codec_for(spec, (3, 16, 24))
    encoded = codec.encode(np.zeros((0, codec.size), np.float32), COLUMN)
    assert codec.decode(encoded).shape == (0, codec.size)


@pytest.mark.parametrize("spec", [Float16Spec(), DctSpec(block=4, channels=True, cosine=0.999)])
@pytest.mark.parametrize("fault", ["nan", "inf", "dimensions", "long", "zero", "flat"])
def test_what_is_no_unit_vector_of_the_shape_is_refused_by_the_columns_name(spec: Any, fault: str) -> None:
    vectors = smooth(3, (3, 16, 24))
    bad: dict[str, Callable[[], np.ndarray]] = {
        "nan": lambda: np.where(np.arange(vectors.size).reshape(vectors.shape) == 7, np.nan, vectors),
        "inf": lambda: np.where(np.arange(vectors.size).reshape(vectors.shape) == 7, np.inf, vectors),
        "dimensions": lambda: vectors[:, 1:],
        "long": lambda: 1.01 * vectors,
        "zero": lambda: 0 * vectors,
        "flat": lambda: vectors[0],
    }
    with pytest.raises(CatalogError) as error:
        codec_for(spec, (3, 16, 24)).encode(bad[fault]().astype(np.float32), COLUMN)
    assert error.value.field == COLUMN


def planes_of(value: bytes, codec: Codec) -> bytes:
    """The planes of a stored value, unpacked."""
    return pa.decompress(value[1:], value[0] * codec.size, "zstd", asbytes=True)


def framed(planes: bytes, count: int) -> bytes:
    """A value that says it has `count` planes."""
    return bytes([count]) + pa.compress(planes, "zstd", asbytes=True)


def refused(codec: Codec, values: Any) -> CatalogError:
    column = np.empty(1, dtype=object)
    column[0] = values
    with pytest.raises(CatalogError) as error:
        codec.decode({COLUMN: column})
    assert error.value.field == COLUMN
    return error.value


@pytest.mark.parametrize("change", [-1, 1, 2])
def test_a_row_of_another_length_is_refused(change: int) -> None:
    codec = dct()
    (stored,) = codec.encode(smooth(1, (3, 16, 24)), COLUMN)[COLUMN]
    refused(codec, stored[:change] if change < 0 else stored + bytes(change))
    refused(codec, b"")
    refused(codec, framed(bytes(3 * codec.size), 2))
    refused(codec, framed(bytes(codec.size), 2))
    refused(codec, framed(b"\x01" * codec.size, 3))
    refused(codec, b"\x01" + bytes(codec.size))


def test_a_row_of_zeros_an_empty_plane_and_a_missing_row_are_refused() -> None:
    codec = dct()
    assert "zeros" in str(refused(codec, framed(bytes(codec.size), 1)))
    assert "high bytes" in str(refused(codec, framed(b"\x01" * codec.size + bytes(codec.size), 2)))
    refused(codec, None)
    refused(codec, 3.0)


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=384, max_size=384) | st.binary(min_size=768, max_size=768))
def test_any_bytes_of_a_right_length_give_a_unit_vector_or_are_refused(data: bytes) -> None:
    codec = codec_for(DctSpec(block=4, channels=True, cosine=0.999), (3, 8, 16))
    column = np.empty(1, dtype=object)
    column[0] = framed(data, len(data) // 384)
    try:
        vector = codec.decode({COLUMN: column})[0]
    except CatalogError:
        assert not any(data[384:]) and (len(data) == 768 or not any(data))
    else:
        assert abs(float(np.linalg.norm(vector.astype(np.float64))) - 1) < 1e-5


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=12, max_size=12), st.booleans())
def test_any_float16_row_is_a_unit_vector_or_refused(data: bytes, of_unit_length: bool) -> None:
    codec = codec_for(Float16Spec(), (1, 2, 3))
    values = np.frombuffer(data, dtype=np.float16)[None]
    if of_unit_length:
        values = np.array([[0.6, 0.0, -0.8, 0.0, 0.0, values[0, 0]]], dtype=np.float16)
    with np.errstate(all="ignore"):
        norm = float(np.linalg.norm(values.astype(np.float64)))
    if np.isfinite(values).all() and abs(norm - 1) <= 1e-3:
        assert (codec.decode({COLUMN: values}) == values).all()
    else:
        with pytest.raises(CatalogError):
            codec.decode({COLUMN: values})


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "pickle"},
        {},
        "float16",
        {"kind": "float16", "step": 1},
        {"kind": "dct"},
        {"kind": "dct", "block": 3, "channels": True, "cosine": 0.999},
        {"kind": "dct", "block": 10**9, "channels": True, "cosine": 0.999},
        {"kind": "dct", "block": 8.0, "channels": True, "cosine": 0.999},
        {"kind": "dct", "block": True, "channels": True, "cosine": 0.999},
        {"kind": "dct", "block": 8, "channels": 1, "cosine": 0.999},
        {"kind": "dct", "block": 8, "channels": True, "cosine": 1.0},
        {"kind": "dct", "block": 8, "channels": True, "cosine": float("nan")},
        {"kind": "dct", "block": 8, "channels": True, "cosine": 0.999, "basis": "../basis.npy"},
    ],
)
def test_a_spec_that_no_writer_made_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        SPEC.validate_python(value)


@pytest.mark.parametrize("shape", [(3, 64, 64), (96, 16, 16), (4, 30, 50), (1, 7, 9), (512,)])
@pytest.mark.parametrize("space", ["x", "h"])
def test_a_default_spec_fits_its_shape_and_survives_json(space: str, shape: tuple[int, ...]) -> None:
    spec = default_codec(space, shape)
    assert SPEC.validate_json(SPEC.dump_json(spec)) == spec
    codec = codec_for(spec, shape)
    vectors = unit(np.random.default_rng(3).standard_normal((2, codec.size)))
    encoded = codec.encode(vectors, "v")
    assert cosine(vectors, codec.decode(encoded)).min() >= 0.9998
    assert all(len(value) <= codec.row_bytes for value in encoded["v"] if isinstance(value, bytes))


@pytest.mark.parametrize("shape", [(3, 12, 16), (3, 64), (1, LARGEST, 8)])
def test_a_shape_that_blocks_do_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CatalogError):
        codec_for(DctSpec(block=8, channels=True, cosine=0.999), shape)


def test_a_vector_that_whole_numbers_cannot_hold_is_refused_not_clipped() -> None:
    shape = (1, 1024, 4096)
    vector = (0.02 / LARGEST) ** 0.5 * np.random.default_rng(5).standard_normal(LARGEST).astype(np.float32)
    vector[0] = 0.98**0.5
    codec = codec_for(DctSpec(block=1, channels=False, cosine=0.9999), shape)
    with pytest.raises(CatalogError, match="float16"):
        codec.encode(vector[None], COLUMN)
