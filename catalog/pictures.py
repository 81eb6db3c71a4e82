"""PNG in and out, and how an effect is shown to people."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipeline.errors import CatalogError

_LARGEST = 2**26  # pixels; a picture is refused before it is unpacked


def encode_png(array: np.ndarray) -> bytes:
    """PNG of uint8 (H, W), (H, W, 1) or (H, W, 3)."""
    squeezed = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(squeezed)).save(buffer, "PNG")
    return buffer.getvalue()


def decode_png(data: bytes, name: str) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) of a PNG. Raises CatalogError naming `name`."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > _LARGEST or image.mode not in ("L", "RGB"):
                raise CatalogError(name, f"{image.mode} {image.width}x{image.height}", "a grey or RGB picture")
            return np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, CatalogError):
            raise
        raise CatalogError(name, f"no readable PNG ({str(error)[:100]})", "a PNG") from error


def effect_picture(effect: np.ndarray, zoom: int = 4) -> np.ndarray:
    """uint8 (zoom H, zoom W, 3|1) of an effect (C, H, W): mid-grey is no change, the largest change is full range."""
    top = float(np.abs(effect).max())
    grey = 127.5 + 127.5 * (effect / top if top > 0 else effect)
    picture = np.clip(np.rint(grey), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    if picture.shape[2] not in (1, 3):
        picture = picture[..., :1]
    return np.repeat(np.repeat(picture, zoom, axis=0), zoom, axis=1)
