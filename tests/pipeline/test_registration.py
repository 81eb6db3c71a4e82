"""Directions moved from one mask to another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.registration import mask_centre, registered, shift_between


def box(top: int, left: int, size: int = 32) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + 6, left : left + 8] = True
    return mask


def inner(seed: int = 0) -> torch.Tensor:
    """A unit direction that is zero near the border."""
    vector = torch.zeros(3, 32, 32)
    vector[:, 12:20, 12:20] = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


@settings(max_examples=30, deadline=None)
@given(down=st.integers(-8, 8), right=st.integers(-8, 8), seed=st.integers(0, 99))
def test_whole_pixels_move_exactly_and_back_again(down: int, right: int, seed: int) -> None:
    vector, home, target = inner(seed), box(12, 12), box(12 + down, 12 + right)
    moved = registered(vector, home, target)
    assert torch.allclose(moved, torch.roll(vector, (down, right), (1, 2)), atol=1e-5)
    assert torch.allclose(registered(moved, target, home), vector, atol=1e-5)


def test_the_bottleneck_moves_by_its_own_share_of_the_image() -> None:
    vector = torch.nn.functional.avg_pool2d(inner()[None], 4)[0]
    vector = vector / vector.norm()
    assert torch.allclose(registered(vector, box(4, 4), box(8, 12)), torch.roll(vector, (1, 2), (1, 2)), atol=1e-5)


def test_the_same_mask_changes_no_bit_and_the_norm_stays_one() -> None:
    rounded = inner().half().float()
    assert torch.equal(registered(rounded, box(9, 9), box(9, 9)), rounded)
    half = registered(inner(), box(9, 9), box(9, 9) | box(9, 10))
    assert float(half.norm()) == pytest.approx(1.0, abs=1e-5)


def test_the_shift_goes_from_home_to_target_right_and_down() -> None:
    assert shift_between(box(2, 4), box(3, 10)) == (6.0, 1.0)
    assert shift_between(box(3, 10), box(2, 4)) == (-6.0, -1.0)


def test_the_centre_is_in_pixels_from_the_corner() -> None:
    assert mask_centre(box(2, 4)) == (8.0, 5.0)


def test_bad_masks_are_named() -> None:
    with pytest.raises(InputError, match="empty mask"):
        registered(inner(), box(2, 2), torch.zeros(32, 32, dtype=torch.bool))
    with pytest.raises(InputError, match="size of the home mask"):
        registered(inner(), box(2, 2), box(2, 2, size=40))
