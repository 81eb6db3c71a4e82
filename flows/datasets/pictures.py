"""Reading pictures that come from outside: every way in which one can be broken is a `BrokenImageError`."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from flows.datasets.contract import BrokenImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".pgm", ".ppm")
JPEG_SUFFIXES = (".jpg", ".jpeg")
MASK_SUFFIXES = (".png", ".webp", ".bmp", ".tif", ".tiff", ".pgm")  # lossless: a JPEG mask has no clean edge
LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")
MAX_PIXELS = 100_000_000  # refuse decompression bombs
MAX_NAME = 200
MASK_THRESHOLD = 128


def shown_name(name: str) -> str:
    """A name as people and the catalog may see it: at most 200 characters, unprintable ones as escapes."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in name)[-MAX_NAME:]


def open_image(file: Path) -> Image.Image:
    """The decoded picture, upright. Raises BrokenImageError: Pillow reports a damaged file in many ways."""
    return _decoded(file, str(file), file.name)


def image_from_bytes(data: bytes, name: str) -> Image.Image:
    """The decoded picture of encoded `data`, upright; `name` is what errors call it. Raises BrokenImageError."""
    return _decoded(io.BytesIO(data), "", name)


def grey_mask(mask: Image.Image) -> np.ndarray:
    """A mask picture as bool (h, w): white is inside, threshold 128, an alpha channel is ignored."""
    return np.asarray(_greys(mask)) >= MASK_THRESHOLD


def mask_picture(mask: Image.Image) -> Image.Image:
    """A mask picture in greys (mode L), for `grey_mask`. One that is all black is the mask of nothing.

    Raises:
        BrokenImageError: it has something on it, such as values 0 and 1, but nothing bright enough to be inside.
    """
    greys = _greys(mask)
    brightest = int(np.asarray(greys).max(initial=0))
    if 0 < brightest < MASK_THRESHOLD:
        raise BrokenImageError(f"its brightest pixel is {brightest}; white ({MASK_THRESHOLD} and more) is inside")
    return greys


def label_values(picture: Image.Image) -> np.ndarray:
    """The values of a label map as int32 (h, w). Raises BrokenImageError: its pixels are no whole numbers."""
    if picture.mode not in LABEL_MODES:
        raise BrokenImageError(f"a label map of mode {picture.mode}, not of whole numbers")
    return np.asarray(picture).astype(np.int32)


def _greys(mask: Image.Image) -> Image.Image:
    from pipeline.images import eight_bits  # with torch behind it

    plain = mask.convert("RGBA").convert("RGB") if mask.mode in ("RGBA", "LA", "PA") else eight_bits(mask)
    return plain.convert("L")


def _decoded(file: Path | IO[bytes], path: str, name: str) -> Image.Image:
    from pipeline.images import upright  # with torch behind it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is our own
            warnings.simplefilter("ignore", UserWarning)  # remarks on metadata, which name no file
            with Image.open(file) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise BrokenImageError(f"{picture.width} x {picture.height} pixels, more than {MAX_PIXELS:,}")
                picture.load()
                return upright(picture)
    except (BrokenImageError, MemoryError):
        raise
    except Exception as error:  # whatever a decoder of Pillow's does with a damaged file
        raise BrokenImageError(f"cannot be read as an image ({_reason(error, path, name)})") from error


def _reason(error: Exception, path: str, name: str) -> str:
    """Why a picture cannot be decoded, in the same words on every run: no address in memory, no folder."""
    if isinstance(error, UnidentifiedImageError):
        return "of no format that is known"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS:,} pixels"
    message = str(error).replace(path, name) if path else str(error)
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", message) or type(error).__name__
