"""Pictures of any kind become what a model takes, and what it gives becomes pictures again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.errors import InputError
from pipeline.images import as_image, as_pixels, as_tensor, eight_bits, fit_image, upright


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "F", "HSV", "YCbCr", "LAB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_becomes_the_models_channels(mode: str, channels: int) -> None:
    base = Image.fromarray(np.full((20, 20, 3), 200, dtype=np.uint8))
    if mode == "I;16":
        source = Image.fromarray(np.full((20, 20), 200 * 257, dtype=np.uint16))
    elif mode == "F":
        source = Image.fromarray(np.full((20, 20), 200 / 255, dtype=np.float32))
    elif mode == "LAB":
        source = Image.merge("LAB", [base.getchannel(0).point(lambda _: 205), *[Image.new("L", base.size, 128)] * 2])
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does_and_only_once(orientation: int) -> None:
    lying = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))
    lying.getexif()[0x0112] = orientation
    once = upright(lying)
    assert np.array_equal(np.asarray(once), np.asarray(ImageOps.exif_transpose(lying)))
    assert np.array_equal(np.asarray(upright(once)), np.asarray(once))


def test_a_damaged_exif_block_turns_nothing() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    picture.info["exif"] = b"Exif\x00\x00MM\x00\xeb" + bytes(20)
    assert np.array_equal(fit_image(picture, (3, 6, 6)), np.asarray(picture))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([(np.uint16, 65535), (np.int32, 255), (np.int32, 65535), (np.float32, 1), (np.float32, 255)]))
def test_greys_of_any_depth_come_out_as_their_share_of_white(depth: tuple[type, int]) -> None:
    kind, white = depth
    shares = np.linspace(0, 1, 52).reshape(4, 13)
    picture = Image.fromarray((shares * white).round(6 if kind is np.float32 else 0).astype(kind))
    assert np.abs(np.asarray(eight_bits(picture)) - shares * 255).max() <= 1.01


def test_numbers_that_are_none_and_dark_sixteen_bit_pictures_are_black() -> None:
    odd = np.array([[np.nan, np.inf, -np.inf, -3.0, 1.0]], dtype=np.float32)
    assert np.asarray(eight_bits(Image.fromarray(odd))).tolist() == [[0, 0, 0, 0, 255]]
    dark = np.full((2, 2), 255, dtype=np.uint16)
    assert np.asarray(eight_bits(Image.fromarray(dark))).max() == 1
    assert np.asarray(eight_bits(Image.new("F", (2, 2)))).max() == 0


def test_pixels_that_are_neither_grey_nor_rgb_are_refused() -> None:
    with pytest.raises(InputError, match="pixels of the mode La"):
        fit_image(Image.new("La", (4, 4)), (3, 4, 4))


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
