"""Masks of any origin, unions of annotated parts, and label maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.errors import InputError
from pipeline.regions.labels import label_masks
from pipeline.regions.masks import Mask, grown, numbered, usable
from pipeline.regions.parts import united_parts

SIZE = (9, 11)
MASKS = arrays.arrays(np.bool_, SIZE)


def dot(row: int, column: int) -> Mask:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[row, column] = True
    return mask


# --- masks --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(mask=MASKS, radius=st.floats(-4, 4))
def test_growth_is_by_the_exact_euclidean_disc_and_erosion_is_the_growth_of_the_outside(
    mask: Mask, radius: float
) -> None:
    rows, columns = np.indices(SIZE)
    source = mask if radius >= 0 else ~mask
    near = np.zeros(SIZE, dtype=np.bool_)
    for row, column in np.argwhere(source):
        near |= (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    expected = mask.copy() if mask.all() or not mask.any() else near if radius >= 0 else ~near
    assert np.array_equal(grown(mask, radius), expected)


@settings(max_examples=30, deadline=None)
@given(masks=st.lists(MASKS, min_size=1, max_size=6), seed=st.integers(0, 999))
def test_names_depend_on_the_masks_alone_and_larger_ones_come_first(masks: list[Mask], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(masks))
    shuffled = [masks[index] for index in order]
    one, two = numbered(masks), numbered(shuffled)
    assert list(one) == list(two) == [f"segment-{rank + 1}" for rank in range(len(masks))]
    assert all(np.array_equal(masks[one[name]], shuffled[two[name]]) for name in one)
    areas = [int(masks[index].sum()) for index in one.values()]
    assert areas == sorted(areas, reverse=True)


def test_masks_that_cannot_be_mined_are_named_with_the_reason() -> None:
    found = usable({"a": dot(0, 0), "none": np.zeros(SIZE, bool), "all": np.ones(SIZE, bool)}, {"b": "no mask"})
    assert list(found.masks) == ["a"]
    assert set(found.skipped) == {"b", "none", "all"}
    assert "empty" in found.skipped["none"] and "whole" in found.skipped["all"]


@pytest.mark.parametrize("wrong", [np.zeros(SIZE), np.zeros((2, *SIZE), bool), np.zeros((0, 3), bool)])
def test_what_is_no_mask_is_an_error(wrong: Mask) -> None:
    with pytest.raises(InputError, match="bool array"):
        usable({"a": wrong})
    with pytest.raises(InputError, match="bool array"):
        grown(wrong, 1)


def test_masks_of_two_sizes_are_an_error() -> None:
    with pytest.raises(InputError, match="one size"):
        usable({"a": dot(0, 0), "b": np.ones((2, 2), bool)})


# --- parts --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(parts=st.dictionaries(st.sampled_from("abcd"), MASKS), unions=st.dictionaries(
    st.sampled_from(["x", "y", "z"]), st.lists(st.sampled_from("abcd"), min_size=1, max_size=4)))  # fmt: skip
def test_a_region_is_the_union_of_the_parts_that_are_there(
    parts: dict[str, Mask], unions: dict[str, list[str]]
) -> None:
    found = united_parts(parts, unions, known="abcd")
    assert set(found.masks) | set(found.skipped) == set(unions)
    assert not set(found.masks) & set(found.skipped)
    for region, names in unions.items():
        expected = np.logical_or.reduce([parts.get(name, np.zeros(SIZE, bool)) for name in names])
        assert (region in found.masks) == bool(expected.any() and not expected.all())
        if region in found.masks:
            assert np.array_equal(found.masks[region], expected)


def test_a_missing_part_is_tolerated_and_all_of_them_missing_is_named() -> None:
    found = united_parts({"l_eye": dot(2, 2)}, {"eyes": ["l_eye", "r_eye"], "ears": ["l_ear", "r_ear"]})
    assert np.array_equal(found.masks["eyes"], dot(2, 2))
    assert found.skipped == {"ears": "none of its parts is annotated: l_ear, r_ear"}


def test_regions_are_grown_by_name_and_one_eroded_to_nothing_is_skipped() -> None:
    parts = {"a": dot(4, 4), "b": dot(4, 4)}
    found = united_parts(parts, {"one": ["a"], "two": ["a", "b"]}, grow={"one": 1})
    assert int(found.masks["one"].sum()) == 5 and int(found.masks["two"].sum()) == 1
    assert united_parts(parts, {"one": ["a"]}, grow=-1).skipped == {"one": "the mask of one is empty"}


def test_an_unknown_part_is_an_error_that_names_the_nearest_one() -> None:
    with pytest.raises(InputError, match="l_eye"):
        united_parts({}, {"eyes": ["l_eey"]}, known=["l_eye", "nose"])
    with pytest.raises(InputError, match="list of parts"):
        united_parts({}, {"eyes": []})
    with pytest.raises(InputError, match="list of parts"):
        united_parts({}, {"eyes": "l_eye"})
    with pytest.raises(InputError, match="one of the regions"):
        united_parts({}, {"eyes": ["l_eye"]}, grow={"eye": 2})


def test_parts_of_two_sizes_are_an_error() -> None:
    with pytest.raises(InputError, match="one size"):
        united_parts({"a": dot(0, 0), "b": np.ones((2, 2), bool)}, {"x": ["a", "b"]})


# --- label maps ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(labels=arrays.arrays(np.int16, SIZE, elements=st.integers(-2, 3)))
def test_every_label_but_the_background_becomes_its_pixels(labels: np.ndarray) -> None:
    found = label_masks(labels)
    for value in range(-2, 4):
        there = value != 0 and (labels == value).any()
        assert (f"label-{value}" in found.masks | found.skipped) == bool(there)
        if f"label-{value}" in found.masks:
            assert np.array_equal(found.masks[f"label-{value}"], labels == value)


def test_labels_of_one_name_are_united_and_an_absent_one_is_skipped() -> None:
    labels = np.array([[0, 1], [2, 7]], dtype=np.uint8)
    found = label_masks(labels, {1: "eyes", 2: "eyes", 5: "hat", 0: "background"})
    assert found.masks["eyes"].tolist() == [[False, True], [True, False]]
    assert found.masks["background"].tolist() == [[True, False], [False, False]]
    assert found.skipped == {"hat": "no pixel has the label 5"}


@pytest.mark.parametrize("wrong", [np.zeros((2, 2)), np.zeros((2, 2, 3), np.uint8), np.zeros((0, 2), int)])
def test_what_is_no_label_map_is_an_error(wrong: np.ndarray) -> None:
    with pytest.raises(InputError, match="label map"):
        label_masks(wrong)


def test_no_names_at_all_are_an_error() -> None:
    with pytest.raises(InputError, match="label names"):
        label_masks(np.ones((2, 2), int), {})
