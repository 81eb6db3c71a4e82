"""Regions from the Jacobian: merging of neighbours, planted segments found again, and a real denoiser's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage.measure import label

from pipeline.errors import InputError
from pipeline.mining import check_masks
from pipeline.operators import Dense
from pipeline.regions.merging import merged_segments
from pipeline.regions.segments import SegmentSettings, jacobian_segments, operator_segments, segments_of
from tests.pipeline.tiny_models import tiny_denoiser, tiny_image

FEATURES = arrays.arrays(np.float64, (4, 5, 2), elements=st.integers(0, 20).map(float))


def same_partition(one: np.ndarray, two: np.ndarray) -> bool:
    pairs = {(int(a), int(b)) for a, b in zip(one.ravel(), two.ravel(), strict=True)}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def scatter(features: np.ndarray, labels: np.ndarray) -> float:
    """Sum of squared distances of features from their segment's mean."""
    parts = [features[labels == value] for value in np.unique(labels)]
    return float(sum(((part - part.mean(0)) ** 2).sum() for part in parts))


# --- merging ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(features=FEATURES, count=st.integers(1, 20), smallest=st.integers(1, 6))
def test_segments_are_connected_of_the_asked_size_and_no_more_than_asked_for(
    features: np.ndarray, count: int, smallest: int
) -> None:
    labels = merged_segments(features, count, smallest)
    values, areas = np.unique(labels, return_counts=True)
    assert values.tolist() == list(range(len(values))) and len(values) <= count
    assert areas.min() >= min(smallest, labels.size)
    assert all(label(labels == value, connectivity=1).max() == 1 for value in values)
    assert smallest > 1 or len(values) == count


@settings(max_examples=12, deadline=None)
@given(features=FEATURES)
def test_every_merge_is_the_cheapest_of_all_pairs_of_neighbours(features: np.ndarray) -> None:
    for count in range(features.shape[0] * features.shape[1] - 1, 0, -1):
        before, after = merged_segments(features, count + 1), merged_segments(features, count)
        beside = {tuple(sorted(pair)) for pair in zip(before[:-1].ravel(), before[1:].ravel(), strict=True)}
        beside |= {tuple(sorted(pair)) for pair in zip(before[:, :-1].ravel(), before[:, 1:].ravel(), strict=True)}
        unions = [np.where(before == b, a, before) for a, b in beside if a != b]
        cheapest = min(scatter(features, union) for union in unions)
        assert scatter(features, after) == pytest.approx(cheapest, abs=1e-9)


@pytest.mark.parametrize(
    ("features", "count"), [(np.zeros((3, 3)), 2), (np.full((2, 2, 1), np.nan), 2), (np.zeros((2, 2, 1)), 0)]
)
def test_what_cannot_be_merged_is_an_error(features: np.ndarray, count: int) -> None:
    with pytest.raises(InputError):
        merged_segments(features, count)


# --- planted segments ---------------------------------------------------------------------------------------------


def planted(size: int = 16) -> np.ndarray:
    """Four patches, 1 to 4, that together cover a picture but for its right edge, which is 0."""
    patches = np.zeros((size, size), dtype=int)
    half = size // 2
    patches[:half, :half], patches[:half, half:-2] = 1, 2
    patches[half:, :half], patches[half:, half:-2] = 3, 4
    return patches


def moving(patches: np.ndarray, seed: int = 0) -> Dense:
    """An operator each of whose directions moves one patch, in random signs and colours, two directions a patch."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, *patches.shape)
    columns = []
    for value in range(1, int(patches.max()) + 1):
        inside = torch.from_numpy(patches == value).expand(shape)
        columns += [torch.randn(shape, generator=generator) * inside for _ in range(2)]
    return Dense(torch.stack([column.flatten() for column in columns], dim=1), (8, 1, 1), shape)


SHARP = SegmentSettings(count=5, rank=8, smoothing=0.0, tolerance=1e-3, min_share=0.05)


@pytest.mark.parametrize("seed", [0, 1])
def test_patches_that_move_together_are_found_whatever_the_signs_and_colours(seed: int) -> None:
    patches = planted()
    found = operator_segments(moving(patches), replace(SHARP, smoothing=0.03, seed=seed))
    overlaps = [
        max(
            float((mask & (patches == v)).sum() / (mask | (patches == v)).sum())
            for mask in found.regions.masks.values()
        )
        for v in range(1, 5)
    ]
    assert min(overlaps) > 0.8
    assert found.rank == found.converged == 8
    assert 0 < found.products.total <= 8 * 8


def test_pixels_that_do_not_move_are_left_out_or_one_region_of_their_own() -> None:
    patches = planted()
    lengths = np.stack([(patches == value).astype(float) for value in range(1, 5)])
    regions, labels = segments_of(lengths, SHARP)
    assert same_partition(labels, patches)
    assert [int(mask.sum()) for mask in regions.masks.values()] == [64, 64, 48, 48]
    assert all(np.array_equal(labels == int(name[-1]), mask) for name, mask in regions.masks.items())
    assert list(regions.skipped) == ["segment-5"] and "hardly moves" in regions.skipped["segment-5"]
    kept, _ = segments_of(lengths, replace(SHARP, keep_inert=True))
    assert np.array_equal(kept.masks["inert"], patches == 0)


def test_a_segment_that_is_too_large_is_named() -> None:
    lengths = np.stack([(planted() == value).astype(float) for value in range(1, 5)])
    regions, _ = segments_of(lengths, replace(SHARP, max_share=0.2))
    assert set(regions.skipped) == {"segment-1", "segment-2", "segment-5"}
    assert "25%" in regions.skipped["segment-1"]


@pytest.mark.parametrize("size", [(130, 100), (65, 64)])
def test_large_pictures_are_cut_in_blocks_of_pixels_and_masks_have_the_pictures_size(size: tuple[int, int]) -> None:
    block = -(-max(size) // 64)
    top, left = 20 * block, 15 * block
    patches = np.zeros(size, dtype=int)
    patches[:top, :left], patches[top:, :left] = 1, 2
    lengths = np.stack([(patches == value).astype(float) + 1e-9 for value in range(3)])
    _, labels = segments_of(lengths, replace(SHARP, count=3, min_share=0.0))
    assert labels.shape == size and same_partition(labels, patches)


@settings(max_examples=20, deadline=None)
@given(
    lengths=arrays.arrays(np.float64, (3, 8, 10), elements=st.integers(0, 9).map(float)).filter(np.any),
    count=st.integers(1, 8),
    keep=st.booleans(),
)
def test_every_segment_can_be_mined_or_is_skipped_with_its_reason(lengths: np.ndarray, count: int, keep: bool) -> None:
    regions, labels = segments_of(lengths, SegmentSettings(count=count, keep_inert=keep, max_share=0.9))
    named = {f"segment-{value}" for value in np.unique(labels)}
    assert labels.min() == 1 and len(named) <= count
    assert named == (set(regions.masks) | set(regions.skipped)) - {"inert"}
    assert all(mask.dtype == np.bool_ and mask.any() and not mask.all() for mask in regions.masks.values())
    areas = [int((labels == value).sum()) for value in range(1, len(named) + 1)]
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"rank": 0},
        {"min_share": 0.5, "max_share": 0.5},
        {"tolerance": 0.0},
        {"floor": 0.0},
        {"inert": -1.0},
    ],
)
def test_settings_out_of_range_are_errors(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="segments"):
        SegmentSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 4, 4)), np.ones((4, 4)), -np.ones((1, 4, 4)), np.full((1, 4, 4), np.inf)]
)
def test_movements_that_are_none_are_an_error(wrong: np.ndarray) -> None:
    with pytest.raises(InputError, match="movements"):
        segments_of(wrong, SegmentSettings())


# --- a denoiser ---------------------------------------------------------------------------------------------------


def test_a_denoisers_segments_repeat_exactly_by_seed_and_are_masks_for_mining() -> None:
    denoiser = tiny_denoiser(size=16)
    x_t = tiny_image(denoiser)[0]
    chosen = SegmentSettings(count=4, rank=6, max_share=0.9)
    one, two = (jacobian_segments(denoiser, x_t, 20, chosen) for _ in range(2))
    assert np.array_equal(one.labels, two.labels)
    assert one.products.total == two.products.total <= 8 * 6
    check_masks({name: torch.from_numpy(mask) for name, mask in one.regions.masks.items()}, (16, 16))
    assert one.movement.shape == (16, 16) and one.movement.min() >= 0


def test_a_rank_beyond_the_space_is_cut_to_it() -> None:
    assert operator_segments(moving(planted(8)), replace(SHARP, rank=50)).rank == 8
