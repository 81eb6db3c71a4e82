"""Boxes, ellipses, polygons, and templates made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.errors import InputError
from pipeline.regions.masks import Mask
from pipeline.regions.shapes import Box, Ellipse, Polygon, Shape, shape_mask, shape_masks
from pipeline.regions.templates import ALIGNED_FACE, check_template, face_masks, template_masks, template_names

SIDES = st.integers(1, 12)
SHARES = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(height=SIDES, width=SIDES, x=st.tuples(SHARES, SHARES), y=st.tuples(SHARES, SHARES))
def test_a_box_holds_the_pixels_whose_centres_it_holds_and_is_a_polygon_of_its_corners(
    height: int, width: int, x: tuple[float, float], y: tuple[float, float]
) -> None:
    (left, right), (top, bottom) = sorted(x), sorted(y)
    assume(right - left > 1e-9 and bottom - top > 1e-9)
    mask = shape_mask(Box(left, top, right, bottom), (height, width))
    for row in range(height):
        for column in range(width):
            across, down = (column + 0.5) * (1 / width), (row + 0.5) * (1 / height)
            assert mask[row, column] == (left <= across < right and top <= down < bottom)
    corners = ((left, bottom), (left, top), (right, top), (right, bottom))
    assert np.array_equal(shape_mask(Polygon(corners), (height, width)), mask)


@settings(max_examples=60, deadline=None)
@given(size=st.tuples(SIDES, SIDES), inner=st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 0.95)))
def test_triangles_about_a_point_share_no_pixel_and_leave_none_out(
    size: tuple[int, int], inner: tuple[float, float]
) -> None:
    corners = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    count = np.zeros(size, dtype=int)
    for one, two in zip(corners, [*corners[1:], corners[0]], strict=True):
        count += shape_mask(Polygon((one, two, inner)), size)
    assert (count == 1).all()


@settings(max_examples=40, deadline=None)
@given(size=st.tuples(SIDES, SIDES), angles=st.lists(st.integers(0, 359), min_size=3, max_size=8, unique=True))
def test_a_convex_polygon_is_what_lies_on_one_side_of_all_its_edges(size: tuple[int, int], angles: list[int]) -> None:
    height, width = size
    turned = [math.radians(angle) for angle in sorted(angles)]
    points = np.array([(width * (0.5 + 0.45 * math.cos(a)), height * (0.5 + 0.45 * math.sin(a))) for a in turned])
    mask = shape_mask(Polygon(tuple(map(tuple, points))), size, "pixels")
    ends = np.roll(points, -1, axis=0)
    for row in range(height):
        for column in range(width):
            to = np.array([column + 0.5, row + 0.5]) - points
            sides = (ends - points)[:, 0] * to[:, 1] - (ends - points)[:, 1] * to[:, 0]
            if np.abs(sides).min() > 1e-9:
                assert mask[row, column] == bool((sides > 0).all())


def test_an_ellipse_and_pixels_of_the_mined_size() -> None:
    mask = shape_mask(Ellipse(4.0, 4.0, 2.0, 1.0), (8, 8), "pixels")
    assert np.argwhere(mask).tolist() == [[3, 2], [3, 3], [3, 4], [3, 5], [4, 2], [4, 3], [4, 4], [4, 5]]
    assert np.argwhere(shape_mask(Box(1, 2, 3, 3), (8, 8), "pixels")).tolist() == [[2, 1], [2, 2]]


def test_a_closed_polygon_is_the_open_one() -> None:
    corners = ((0.1, 0.1), (0.9, 0.2), (0.5, 0.9))
    closed = shape_mask(Polygon((*corners, corners[0])), (16, 16))
    assert np.array_equal(closed, shape_mask(Polygon(corners), (16, 16)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Box(0.5, 0.1, 0.5, 0.9), "left < right"),
        (Box(0.1, 0.9, 0.5, 0.1), "left < right"),
        (Box(0.0, 0.0, 1.5, 1.0), "outside the picture"),
        (Box(10, 20, 30, 40), "shares of the picture"),
        (Box(0.0, 0.0, math.nan, 1.0), "finite"),
        (Ellipse(0.5, 0.5, 0.0, 0.1), "radii"),
        (Ellipse(0.5, 0.5, 0.6, 0.1), "outside the picture"),
        (Polygon(((0.1, 0.1), (0.9, 0.9))), "three different corners"),
        (Polygon(((0.1, 0.1), (0.9, 0.9), (0.1, 0.1))), "three different corners"),
        (Polygon(()), "finite numbers"),
        (Polygon(((0.1, 0.1), (0.5, 0.5), (0.9, 0.9))), "back on itself"),
        (Polygon(((0.1, 0.1), (0.1, 0.1), (0.9, 0.1), (0.5, 0.9))), "twice in a row"),
        (Polygon(((0.1, 0.1), (0.9, 0.9), (0.9, 0.1), (0.1, 0.9))), "edges 1 and 3 meet"),
        (Polygon(((0.0, 0.0), (1.0, 0.0), (0.5, 0.5), (1.0, 1.0), (0.0, 1.0), (0.5, 0.5))), "meet"),
        (Polygon(((0.1, 0.1), (0.9, 0.1), (0.5, math.inf))), "finite"),
    ],
)  # fmt: skip
def test_what_encloses_nothing_crosses_itself_or_reaches_outside_is_refused(shape: Shape, message: str) -> None:
    with pytest.raises(InputError, match=message):
        shape_masks({"it": shape}, (8, 8))


def test_regions_of_several_shapes_are_unions_and_those_between_pixel_centres_are_skipped() -> None:
    found = shape_masks(
        {"two": [Box(0, 0, 0.5, 0.5), Box(0.5, 0.5, 1, 1)], "thin": Box(0.01, 0, 0.02, 1), "all": Box(0, 0, 1, 1)},
        (2, 2),
    )
    assert found.masks["two"].tolist() == [[True, False], [False, True]]
    assert "between the pixel centres" in found.skipped["thin"] and "whole" in found.skipped["all"]
    with pytest.raises(InputError, match="no shape"):
        shape_masks({"none": []}, (2, 2))


# --- templates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 64, 256, 1024])
def test_every_region_of_the_face_template_can_be_mined_at_every_size(side: int) -> None:
    found = face_masks((side, side))
    assert tuple(found.masks) == template_names() and not found.skipped


def test_left_is_the_persons_own_and_parts_lie_where_faces_have_them() -> None:
    masks = face_masks((128, 128)).masks
    centre = {name: np.argwhere(mask).mean(0) / 128 for name, mask in masks.items()}
    for part in ("eye", "brow"):
        assert centre[f"left_{part}"][1] > 0.5 > centre[f"right_{part}"][1]
        assert np.array_equal(masks[f"left_{part}"] | masks[f"right_{part}"], masks[f"{part}s"])
        assert np.allclose(centre[f"left_{part}"][1] + centre[f"right_{part}"][1], 1.0, atol=0.02)
    order = ["hair", "forehead", "brows", "eyes", "nose", "mouth", "chin"]
    assert sorted(order, key=lambda name: centre[name][0]) == order
    inside = ("eyes", "brows", "nose", "mouth", "chin")
    assert all((masks[name] & masks["face"]).sum() > 0.95 * masks[name].sum() for name in inside)
    parts = ("left_eye", "right_eye", "left_brow", "right_brow", "nose", "mouth", "chin", "forehead", "hair")
    assert sum(masks[name].astype(int) for name in parts).max() == 1


def test_published_landmarks_of_aligned_faces_lie_in_their_parts() -> None:
    landmarks = {"right_eye": (0.377, 0.469), "left_eye": (0.623, 0.469), "nose": (0.501, 0.613)}
    masks = face_masks((256, 256), [*landmarks, "mouth"]).masks
    for name, (x, y) in [*landmarks.items(), ("mouth", (0.393, 0.725)), ("mouth", (0.611, 0.725))]:
        assert masks[name][int(y * 256), int(x * 256)], name


def test_a_misspelt_template_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(InputError, match="'left_eye'"):
        check_template("left_eey")
    with pytest.raises(InputError, match=next(iter(ALIGNED_FACE))):
        face_masks((8, 8), ["ear of corn"])


@settings(max_examples=40, deadline=None)
@given(mask=arrays.arrays(np.bool_, (6, 4)), factor=st.integers(1, 4))
def test_one_mask_picture_fits_every_size_and_goes_back_exactly(mask: Mask, factor: int) -> None:
    assume(mask.any() and not mask.all())
    large = template_masks({"a": mask}, (6 * factor, 4 * factor)).masks["a"]
    assert np.array_equal(large, np.kron(mask, np.ones((factor, factor), bool)))
    assert np.array_equal(template_masks({"a": large}, (6, 4)).masks["a"], mask)


def test_a_mask_picture_of_another_aspect_is_refused() -> None:
    with pytest.raises(InputError, match="aspect"):
        template_masks({"a": np.ones((8, 4), bool)}, (64, 64))
