"""Pictures to tensors and back: the one conversion, for data sets, the command line and notebooks.

A picture is a PIL image of any mode and size. Pixels are uint8 (H, W, C) at the model's size, C 1 (grey) or 3 (RGB).
Tensors are float32 (C, H, W) in [-1, 1].
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.errors import InputError


def fit_image(picture: Image.Image, image_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A picture of any mode and size as pixels (H, W, C) of the model's `image_shape` (C, H, W).

    It is turned upright (EXIF), transparency is flattened onto white, 16-bit and float greys are scaled to 8 bits, the
    centre is cropped to the model's aspect, and the crop is resized (Lanczos).

    Raises:
        InputError: a model whose images are neither grey nor RGB.
    """
    channels, height, width = image_shape
    if channels not in (1, 3):
        raise InputError("model: channels", channels, "1 (grey) or 3 (RGB), as images have")
    upright = eight_bits(ImageOps.exif_transpose(picture))
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, upright)
    plain = upright.convert("L" if channels == 1 else "RGB")
    if plain.size != (width, height):
        plain = ImageOps.fit(plain, (width, height), method=Image.Resampling.LANCZOS)
    pixels = np.asarray(plain, dtype=np.uint8)
    return pixels[..., None] if channels == 1 else pixels


def eight_bits(picture: Image.Image) -> Image.Image:
    """Greys of more than 8 bits scaled down; every other mode as it is. Bilevel and palette pictures stay exact."""
    if picture.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(picture, dtype=np.float64)
        top = 1.0 if picture.mode == "F" and values.size and values.max() <= 1.0 else 65535.0
        return Image.fromarray((values / top * 255.0).clip(0, 255).round().astype(np.uint8))
    return picture


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Pixels uint8 (H, W, C) as a float32 tensor (C, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).to(torch.float32) / 127.5 - 1.0


def as_pixels(image: torch.Tensor) -> NDArray[np.uint8]:
    """A tensor (C, H, W) in [-1, 1] as pixels uint8 (H, W, C): clamped and rounded."""
    levels = ((image.detach().to("cpu", torch.float32).clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return levels.permute(1, 2, 0).numpy()


def as_image(image: torch.Tensor) -> Image.Image:
    """A tensor (C, H, W) in [-1, 1] as a PIL image: mode L with one channel, RGB with three."""
    return Image.fromarray(as_pixels(image).squeeze(2) if image.shape[0] == 1 else as_pixels(image))
