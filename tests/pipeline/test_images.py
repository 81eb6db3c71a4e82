"""Pictures of any kind become what a model takes, and what it gives becomes pictures again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import InputError
from pipeline.images import as_image, as_pixels, as_tensor, fit_image


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "F", "HSV", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_becomes_the_models_channels(mode: str, channels: int) -> None:
    base = Image.fromarray(np.full((20, 20, 3), 200, dtype=np.uint8))
    if mode == "I;16":
        source = Image.fromarray(np.full((20, 20), 200 * 257, dtype=np.uint16))
    elif mode == "F":
        source = Image.fromarray(np.full((20, 20), 200 / 255, dtype=np.float32))
    elif mode in ("LA", "1"):
        source = base.convert("L").convert(mode)
    else:
        source = base.quantize(4) if mode == "P" else base.convert(mode)
    pixels = fit_image(source, (channels, 16, 16))
    assert pixels.shape == (16, 16, channels)
    if mode != "1":
        assert np.abs(pixels.astype(int) - 200).max() <= 2


def test_transparency_is_flattened_onto_white() -> None:
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    assert (fit_image(clear, (3, 16, 16)) == 255).all()
    palette = Image.new("P", (16, 16), 3)
    palette.putpalette([0, 0, 0] * 256)
    palette.info["transparency"] = 3
    assert (fit_image(palette, (3, 16, 16)) == 255).all()


def test_a_rotated_picture_is_turned_upright() -> None:
    upright = Image.new("RGB", (16, 16), "black")
    upright.paste("white", (0, 0, 16, 8))
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6
    assert np.array_equal(fit_image(lying, (3, 16, 16)), np.asarray(upright))


def test_the_centre_is_cropped_and_never_squeezed() -> None:
    wide = Image.new("L", (48, 16), 0)
    wide.paste(255, (16, 0, 32, 16))
    assert (fit_image(wide, (1, 16, 16)) == 255).all()


def test_a_model_of_other_channels_is_refused() -> None:
    with pytest.raises(InputError, match="1 .grey. or 3"):
        fit_image(Image.new("RGB", (4, 4)), (4, 4, 4))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_pixels_survive_the_way_to_a_tensor_and_back(channels: int, height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    tensor = as_tensor(pixels)
    assert tensor.shape == (channels, height, width)
    assert float(tensor.abs().max()) <= 1.0
    assert np.array_equal(as_pixels(tensor), pixels)
    assert np.array_equal(fit_image(as_image(tensor), (channels, height, width)), pixels)


def test_tensors_have_their_documented_scale_and_are_clamped() -> None:
    pixels = np.array([[[0, 128, 255]]], dtype=np.uint8)
    assert as_tensor(pixels).flatten().tolist() == pytest.approx([-1, 128 / 127.5 - 1, 1], abs=1e-6)
    assert as_pixels(torch.tensor([-3.0, 0.0, 7.0]).view(3, 1, 1)).flatten().tolist() == [0, 128, 255]
    assert as_image(torch.zeros(1, 2, 5)).mode == "L"
    assert as_image(torch.zeros(3, 2, 5)).size == (5, 2)
