"""The benchmark of vector codecs: its transforms, bytes and bits must be right, whatever the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from catalog.codecs import DctSpec, codec_for, default_codec
from tests.benchmarks import vector_storage
from tests.benchmarks.vector_codecs import compare, cosine, haar, lists, parquet_bytes, shared_basis, spectrum
from tests.benchmarks.vector_codecs import whole_picture as whole

SHAPE = (3, 16, 16)


def random_units(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, 768)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.mark.parametrize("transform", [whole, haar])
def test_the_other_transforms_keep_lengths_and_are_undone(transform: object) -> None:
    run = transform(SHAPE)  # type: ignore[operator]
    vectors = random_units(3)
    there = run(vectors, False)
    assert np.allclose(np.linalg.norm(there, axis=1), 1, atol=1e-6)
    assert np.abs(run(there, True) - vectors).max() < 1e-6


def test_a_constant_picture_is_one_coefficient_a_channel_of_the_whole_transform() -> None:
    assert np.allclose(whole(SHAPE)(np.ones((1, 768)), False)[0], [16.0] * 3 + [0.0] * 765, atol=1e-9)


def test_every_way_that_promises_a_cosine_keeps_it_and_ways_are_sorted_by_bytes() -> None:
    vectors = random_units(8)
    rows = compare(vectors, SHAPE, 0.999, shared_basis(random_units(5, seed=1)))
    assert [row.bytes for row in rows] == sorted(row.bytes for row in rows)
    assert len(rows) == 14
    for row in rows:
        assert row.cosine_median >= row.cosine_min >= 0.999 - 1e-6, row.way
        assert row.smaller == pytest.approx(4 * 768 / row.bytes)


def test_a_direction_in_the_span_of_the_shared_basis_is_its_weights() -> None:
    basis = shared_basis(random_units(5))
    inside = np.random.default_rng(2).standard_normal((4, 5)).astype(np.float32) @ basis
    inside /= np.linalg.norm(inside, axis=1, keepdims=True)
    (row,) = [row for row in compare(inside, SHAPE, 0.999, basis) if row.way.startswith("shared")]
    assert row.cosine_min > 0.99999


def test_white_vectors_need_the_bits_of_a_white_source_in_every_basis() -> None:
    found = spectrum(random_units(2000), SHAPE, 0.999)
    for bits in found["bits_an_entry"].values():
        assert bits == pytest.approx(found["bits_an_entry_if_white"], abs=0.02)
    assert sum(found["energy_by_eighth_of_frequency"]) == pytest.approx(1.0, abs=1e-5)
    assert sum(found["entries_by_eighth_of_frequency"]) == 768


def test_bytes_are_those_of_the_column_and_grow_with_what_is_in_it() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 1000)).astype(np.uint8)
    assert parquet_bytes({"v": lists(noise)}, 64) == pytest.approx(1000, rel=0.35)
    assert parquet_bytes({"v": lists(0 * noise)}, 64) < 50


def test_shards_hold_moved_directions_and_every_read_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_storage, "SHARD", 32)
    monkeypatch.setattr(vector_storage, "READS", 4)
    vectors, spec = random_units(4), default_codec("x", SHAPE)
    paths = vector_storage.write(tmp_path, vectors, SHAPE, spec, 144)
    assert len(paths) == 5
    found = vector_storage.measure(paths, SHAPE, spec, 144)
    assert (found.rows, found.shards) == (144, 5)
    assert min(*found.first_ms, *found.kept_ms, found.raw_rate, found.float32_rate) > 0


def test_a_moved_direction_is_the_same_blocks_in_other_places() -> None:
    spec = DctSpec(block=8, channels=True, cosine=0.999)
    codec = codec_for(spec, SHAPE)
    encoded = list(codec.encode(random_units(1), "v")["v"])
    first, second, around = (vector_storage.moved(encoded, row, codec.size, 192) for row in (0, 1, 4))
    assert first == around == encoded[0] != second
    values = np.empty(2, dtype=object)
    values[:] = [first, second]
    a, b = codec.decode({"v": values}).reshape(2, 3, 2, 8, 2, 8).transpose(0, 2, 4, 1, 3, 5).reshape(2, 4, -1)
    assert cosine(np.roll(a, 1, axis=0), b).min() > 1 - 1e-6
