from __future__ import annotations

import pytest
import torch

from pipeline.errors import InputError
from pipeline.painting import painted_over


def hole(*box: int) -> torch.Tensor:
    mask = torch.zeros(24, 32, dtype=torch.bool)
    top, bottom, left, right = box
    mask[top:bottom, left:right] = True
    return mask


def test_a_gradient_of_light_runs_on_through_the_region() -> None:
    down, across = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 32), indexing="ij")
    ramp = torch.stack([across, 0.5 * down - 0.2 * across, torch.full_like(down, 0.3)])
    mask = hole(5, 15, 8, 20)
    spoiled = torch.where(mask, torch.tensor(9.0), ramp)
    torch.testing.assert_close(painted_over(spoiled, mask), ramp, atol=1e-4, rtol=0)


def test_pixels_outside_stay_and_the_paint_keeps_between_the_values_around_it() -> None:
    noise = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(0))
    for mask in (hole(5, 15, 8, 20), hole(0, 6, 0, 9), hole(5, 15, 8, 20) | hole(18, 24, 22, 32)):
        painted = painted_over(noise, mask)
        assert torch.equal(painted[:, ~mask], noise[:, ~mask])
        assert float(painted[:, mask].min()) >= -1e-4 and float(painted[:, mask].max()) <= 1 + 1e-4
        assert float(painted[:, mask].std()) < 0.5 * float(noise[:, mask].std())


def test_an_empty_region_and_a_black_picture_stay() -> None:
    noise = torch.rand(3, 24, 32)
    assert torch.equal(painted_over(noise, hole(0, 0, 0, 0)), noise)
    assert not painted_over(torch.zeros(1, 24, 32), hole(2, 9, 2, 9)).any()


@pytest.mark.parametrize("mask", [torch.ones(24, 32, dtype=torch.bool), torch.zeros(8, 8, dtype=torch.bool)])
def test_a_mask_of_everything_or_of_another_size_is_refused(mask: torch.Tensor) -> None:
    with pytest.raises(InputError, match="mask"):
        painted_over(torch.zeros(3, 24, 32), mask)
