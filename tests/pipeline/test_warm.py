"""What one image's subspaces offer the search on another."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.warm import START, nearest, start_block


class Found(NamedTuple):
    """Vectors and values as `start_block` takes them from anywhere."""

    v: torch.Tensor
    sigma: torch.Tensor


def box(top: int, left: int) -> torch.Tensor:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[top : top + 4, left : left + 4] = True
    return mask


def found(mask: torch.Tensor, *sigma: float, seed: int = 0) -> Found:
    """Orthonormal vectors (k, 3, 16, 16) inside a mask, with the given values."""
    rows = torch.randn(len(sigma), 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * mask
    rows = torch.linalg.qr(rows.flatten(1).T)[0].T.view(-1, 3, 16, 16)
    return Found(rows, torch.tensor(sigma))


def outside(v: torch.Tensor, span: torch.Tensor) -> float:
    """Largest part of orthonormal vectors `v` outside the span of others."""
    rows, basis = v.flatten(1), span.flatten(1)
    return float((rows - (rows @ basis.T) @ basis).norm(dim=1).max())


@settings(max_examples=30, deadline=None)
@given(top=st.integers(0, 12), left=st.integers(0, 12), seed=st.integers(0, 99))
def test_vectors_of_a_region_move_to_where_this_image_has_it(top: int, left: int, seed: int) -> None:
    home = found(box(6, 6), 3.0, 2.0, seed=seed)
    start = start_block({"eye": home}, {"eye": box(6, 6)}, {"eye": box(top, left)})
    assert start.shape == (2, 3, 16, 16)
    assert outside(start, torch.roll(home.v, (top - 6, left - 6), (2, 3))) < 1e-4


def test_vectors_of_a_mask_over_half_the_picture_stay_where_they_are() -> None:
    rest = ~box(2, 2)
    home = found(rest, 3.0, 2.0)
    assert outside(start_block({"rest": home}, {"rest": rest}, {"rest": ~box(9, 9)}), home.v) < 1e-5


def test_strong_vectors_come_first_and_masks_count_alike_whatever_their_gain() -> None:
    places = {"weak": box(0, 0), "loud": box(8, 8)}
    subspaces = {"weak": found(places["weak"], 1.0, 0.1), "loud": found(places["loud"], 100.0, 10.0, seed=1)}
    first = start_block(subspaces, places, places, count=2)
    assert outside(first, torch.stack([svd.v[0] for svd in subspaces.values()])) < 1e-4
    every = start_block(subspaces, places, places)
    assert len(every) == 4
    assert torch.allclose(every.flatten(1) @ every.flatten(1).T, torch.eye(4), atol=1e-5)


def test_what_masks_share_counts_more_than_what_one_of_them_has() -> None:
    places = {name: box(0, 0) for name in ("one", "two")}
    own = found(box(0, 0), 1.0, 1.0, 1.0)
    subspaces = {"one": Found(own.v[:2], torch.ones(2)), "two": Found(own.v[1:], torch.ones(2))}
    assert outside(start_block(subspaces, places, places, count=1), own.v[1:2]) < 1e-4


def test_masks_that_one_image_lacks_are_left_out_and_no_more_directions_come_than_measured_best() -> None:
    places = {name: box(i, i) for i, name in enumerate(("eye", "mouth", "nose"))}
    subspaces = {name: found(mask, 4.0, 3.0, 2.0, 1.0, seed=i) for i, (name, mask) in enumerate(places.items())}
    assert len(start_block(subspaces, places, places)) == START
    mine = {"mouth": places["mouth"]}
    assert outside(start_block(subspaces, places, mine), subspaces["mouth"].v) < 1e-4
    assert outside(start_block(subspaces, mine, places), subspaces["mouth"].v) < 1e-4


def test_bad_subspaces_are_named() -> None:
    here = {"eye": box(2, 2)}
    good = found(here["eye"], 2.0, 1.0)
    with pytest.raises(InputError, match=r"found: found \['eye'\]; expected one of the masks \['mouth'\]"):
        start_block({"eye": good}, here, {"mouth": box(2, 2)})
    for wrong in (Found(good.v, good.sigma[:1]), Found(good.v[:0], good.sigma[:0])):
        with pytest.raises(InputError, match=r"found: eye: .* expected \(k, \*shape_in\) with \(k,\)"):
            start_block({"eye": wrong}, here, here)
    for wrong in (Found(good.v * torch.nan, good.sigma), Found(good.v, good.sigma * torch.inf)):
        with pytest.raises(InputError, match="found: eye: found NaN or infinite"):
            start_block({"eye": wrong}, here, here)


def test_masks_may_be_arrays_and_must_be_of_one_size() -> None:
    home = found(box(6, 6), 3.0, 2.0)
    theirs, mine = box(6, 6), box(2, 3)
    one = start_block({"eye": home}, {"eye": theirs}, {"eye": mine})
    assert torch.equal(one, start_block({"eye": home}, {"eye": theirs.numpy()}, {"eye": mine.numpy()}))
    with pytest.raises(InputError, match="mask eye: .* one size"):
        start_block({"eye": home}, {"eye": box(6, 6)}, {"eye": torch.ones(8, 8)})
    with pytest.raises(InputError, match="found: nose: .* one space"):
        other = Found(torch.ones(1, 3, 8, 8), torch.ones(1))
        start_block(
            {"eye": home, "nose": other}, {"eye": box(6, 6), "nose": box(6, 6)}, {"eye": box(6, 6), "nose": box(6, 6)}
        )


@pytest.mark.parametrize("count", [0, -1, 2.0, True, None])
def test_a_count_that_is_no_whole_number_is_named(count: object) -> None:
    here = {"eye": box(2, 2)}
    with pytest.raises(InputError, match="count: .* at least 1"):
        start_block({"eye": found(here["eye"], 2.0)}, here, here, count)  # type: ignore[arg-type]


@given(st.integers(0, 4), st.integers(0, 99))
def test_the_nearest_picture_is_the_one_that_differs_least(index: int, seed: int) -> None:
    others = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    assert nearest(others[index] + 1e-3, others) == index
    farther = others.clone()
    farther[index] += 2.0
    assert nearest(others[index], farther) != index


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 8, 9), (3, 8, 8)])
def test_pictures_that_cannot_be_compared_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"others: found .* expected \(n, 3, 8, 8\), n >= 1"):
        nearest(torch.zeros(3, 8, 8), torch.zeros(shape))
