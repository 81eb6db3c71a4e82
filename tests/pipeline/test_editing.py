from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.editing import DecodeSettings, Edit, apply_edits, compose, decode, interpolation_grid, invert_image
from pipeline.errors import InputError
from pipeline.images import as_image, as_tensor, fit_image
from pipeline.inversion import invert
from tests.pipeline.tiny_models import tiny_denoiser, tiny_image

T = 20
SETTINGS = DecodeSettings(steps=3)
DENOISER = tiny_denoiser(dtype=torch.float64)
X_T = tiny_image(DENOISER)[0]
Space = Literal["x", "h"]


def vector(space: Space, seed: int = 0) -> torch.Tensor:
    shape = DENOISER.info.image_shape if space == "x" else DENOISER.info.bottleneck_shape
    assert shape is not None
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.norm()


strengths = st.floats(-20, 20, allow_nan=False)
edits = st.builds(
    lambda space, seed, strength: Edit(space, vector(space, seed), strength),
    st.sampled_from(["x", "h"]), st.integers(0, 5), strengths,
)  # fmt: skip


def moved(found: list[Edit]) -> tuple[torch.Tensor, torch.Tensor]:
    """What `compose` adds to x_t and to h."""
    latent, shift = compose(DENOISER, X_T, found)
    return latent - X_T, torch.zeros_like(vector("h")) if shift is None else shift


@settings(max_examples=40, deadline=None)
@given(one=st.lists(edits, max_size=3), two=st.lists(edits, max_size=3))
def test_composing_is_additive(one: list[Edit], two: list[Edit]) -> None:
    for both, first, second in zip(moved(one + two), moved(one), moved(two), strict=True):
        torch.testing.assert_close(both, first + second, atol=1e-9, rtol=0)


@settings(max_examples=40, deadline=None)
@given(found=st.lists(edits, min_size=1, max_size=3), factor=st.floats(-3, 3, allow_nan=False))
def test_composing_is_homogeneous_in_the_strengths(found: list[Edit], factor: float) -> None:
    scaled = [dataclasses.replace(edit, strength=factor * edit.strength) for edit in found]
    for more, plain in zip(moved(scaled), moved(found), strict=True):
        torch.testing.assert_close(more, factor * plain, atol=1e-9, rtol=0)


@settings(max_examples=20, deadline=None)
@given(found=st.lists(edits, min_size=2, max_size=4), data=st.data())
def test_the_order_of_composed_edits_does_not_matter(found: list[Edit], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(found))
    for one, two in zip(moved(found), moved(shuffled), strict=True):
        torch.testing.assert_close(one, two, atol=1e-9, rtol=0)


def test_composing_leaves_its_inputs_alone() -> None:
    before = X_T.clone()
    edit = Edit("x", vector("x"), 3.0)
    latent, _ = compose(DENOISER, X_T, [edit])
    latent.zero_()
    assert torch.equal(X_T, before)
    assert float(edit.vector.norm()) == pytest.approx(1.0)


@pytest.mark.parametrize("space", ["x", "h"])
@pytest.mark.parametrize("convention", ["both", "x0"])
def test_strength_zero_is_the_plain_decoding(space: Space, convention: Literal["both", "x0"]) -> None:
    chosen = dataclasses.replace(SETTINGS, convention=convention)
    plain = decode(DENOISER, X_T[None], T, chosen)[0]
    torch.testing.assert_close(apply_edits(DENOISER, X_T, T, [Edit(space, vector(space), 0.0)], chosen), plain)
    torch.testing.assert_close(apply_edits(DENOISER, X_T, T, [], chosen), plain)
    assert not torch.allclose(apply_edits(DENOISER, X_T, T, [Edit(space, vector(space), 5.0)], chosen), plain)


@pytest.mark.parametrize("axes", [("x", "x"), ("x", "h"), ("h", "h")])
def test_a_grids_corners_are_single_edits_and_its_centre_is_the_reconstruction(axes: tuple[Space, Space]) -> None:
    down, across = Edit(axes[0], vector(axes[0], 1), 4.0), Edit(axes[1], vector(axes[1], 2), 6.0)
    grid = interpolation_grid(DENOISER, X_T, T, (down, across), 3, SETTINGS)
    assert grid.shape == (3, 3, *DENOISER.info.image_shape)
    for i, first in enumerate((-4.0, 0.0, 4.0)):
        for j, second in enumerate((-6.0, 0.0, 6.0)):
            pair = [dataclasses.replace(down, strength=first), dataclasses.replace(across, strength=second)]
            torch.testing.assert_close(grid[i, j], apply_edits(DENOISER, X_T, T, pair, SETTINGS))
    torch.testing.assert_close(grid[1, 1], decode(DENOISER, X_T[None], T, SETTINGS)[0])
    alone = dataclasses.replace(down, strength=-4.0)
    torch.testing.assert_close(grid[0, 1], apply_edits(DENOISER, X_T, T, [alone], SETTINGS))


def test_a_grid_needs_two_images_a_side() -> None:
    axis = Edit("x", vector("x"), 1.0)
    with pytest.raises(InputError, match="at least 2"):
        interpolation_grid(DENOISER, X_T, T, (axis, axis), 1, SETTINGS)


def test_transfer_is_the_same_call_with_another_images_latent() -> None:
    there = tiny_image(DENOISER, seed=9)[0]
    edit = Edit("x", vector("x"), 2.0)
    moved_there = decode(DENOISER, (there + 2.0 * edit.vector)[None], T, SETTINGS)[0]
    torch.testing.assert_close(apply_edits(DENOISER, there, T, [edit], SETTINGS), moved_there)


def test_samples_of_a_batch_with_their_own_shifts_come_out_as_they_would_alone() -> None:
    latents = tiny_image(DENOISER, count=2)
    shifts = torch.stack([3.0 * vector("h", 1), -2.0 * vector("h", 2)])
    together = decode(DENOISER, latents, T, SETTINGS, shifts)
    for i in range(2):
        torch.testing.assert_close(together[i], decode(DENOISER, latents[i : i + 1], T, SETTINGS, shifts[i : i + 1])[0])


def test_a_window_above_every_visited_timestep_shifts_nothing() -> None:
    outside = DecodeSettings(steps=3, h_window=(49, T + 1))
    shifted = apply_edits(DENOISER, X_T, T, [Edit("h", vector("h"), 9.0)], outside)
    torch.testing.assert_close(shifted, decode(DENOISER, X_T[None], T, outside)[0])


def test_stochastic_decoding_is_seeded_and_shared_by_an_edit_and_its_reconstruction() -> None:
    random = DecodeSettings(steps=5, eta=1.0, eta_share=0.6, seed=3)
    one, two = (apply_edits(DENOISER, X_T, T, [], random) for _ in range(2))
    assert torch.equal(one, two)
    torch.testing.assert_close(apply_edits(DENOISER, X_T, T, [Edit("x", vector("x"), 0.0)], random), one)
    assert not torch.allclose(apply_edits(DENOISER, X_T, T, [], dataclasses.replace(random, seed=4)), one)


def test_a_picture_of_any_size_and_mode_goes_in_and_a_picture_comes_out() -> None:
    picture = Image.linear_gradient("L").resize((30, 21)).convert("RGBA")
    x_t = invert_image(DENOISER, picture, T, steps=3)
    tensor = as_tensor(fit_image(picture, DENOISER.info.image_shape)).double()
    assert torch.equal(x_t, invert(DENOISER, tensor[None], T, 3)[0])
    assert torch.equal(x_t, invert_image(DENOISER, tensor, T, steps=3))
    edited = as_image(apply_edits(DENOISER, x_t, T, [Edit("x", vector("x"), 2.0)], SETTINGS))
    assert edited.size == DENOISER.info.image_shape[:0:-1]
    assert edited.mode == "RGB"


@pytest.mark.parametrize("space", ["x", "h"])
def test_a_direction_of_another_shape_is_refused(space: Space) -> None:
    wrong = Edit(space, torch.zeros(3, 9, 9), 1.0)
    with pytest.raises(InputError, match=f"{space}-space direction.*Use a direction of the same model"):
        apply_edits(DENOISER, X_T, T, [wrong], SETTINGS)
