"""Pictures to tensors and back: the one conversion, for data sets, the command line and notebooks.

A picture is a PIL image of any mode and size. Pixels are uint8 (H, W, C) at the model's size, C 1 (grey) or 3 (RGB).
Tensors are float32 (C, H, W) in [-1, 1].
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from pipeline.errors import InputError

Resampling = Literal["lanczos", "bicubic", "bilinear", "box", "hamming", "nearest"]


@dataclass(frozen=True)
class Fit:
    """How pictures of any size become pictures of the model's size.

    `crop`: "center" is the largest middle part of the model's aspect, "none" the whole picture, stretched, and
    (left, top, right, bottom) that box, in shares of the picture, stretched. `resampling` is a filter of Pillow's.

    Raises:
        InputError: a box that is empty or reaches outside the picture, or an unknown filter.
    """

    crop: Literal["center", "none"] | tuple[float, float, float, float] = "center"
    resampling: Resampling = "lanczos"

    def __post_init__(self) -> None:
        if isinstance(self.crop, tuple):
            left, top, right, bottom = self.crop
            if not (0.0 <= left < right <= 1.0 and 0.0 <= top < bottom <= 1.0):
                raise InputError(
                    "resize.crop", list(self.crop), "[left, top, right, bottom] with 0 <= left < right <= 1"
                )
        elif self.crop not in ("center", "none"):
            raise InputError("resize.crop", self.crop, "center, none, or [left, top, right, bottom]")
        if self.resampling.upper() not in Image.Resampling.__members__:
            raise InputError("resize.filter", self.resampling, "one of Pillow's filters, such as lanczos or box")

    def apply(self, picture: Image.Image, size: tuple[int, int], resampling: Resampling | None = None) -> Image.Image:
        """The picture at `size` (width, height); `resampling` in place of this fit's own, for masks."""
        chosen = Image.Resampling[(resampling or self.resampling).upper()]
        if self.crop == "center":
            return picture if picture.size == size else ImageOps.fit(picture, size, method=chosen)
        if self.crop == "none":
            return picture if picture.size == size else picture.resize(size, chosen)
        left, top, right, bottom = self.crop
        width, height = picture.size
        return picture.resize(size, chosen, box=(left * width, top * height, right * width, bottom * height))


CENTER = Fit()

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of each EXIF orientation upright (Exif 2.32, tag 0x0112)."""
_ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Where Pillow looks for an orientation."""


def fit_image(picture: Image.Image, image_shape: tuple[int, int, int], fit: Fit = CENTER) -> NDArray[np.uint8]:
    """A picture of any mode and size as pixels (H, W, C) of the model's `image_shape` (C, H, W).

    It is turned upright (EXIF), transparency is flattened onto white, greys of more than 8 bits are scaled down
    (`eight_bits`), and `fit` crops and resizes it.

    Raises:
        InputError: a model whose images are neither grey nor RGB, or a picture of a mode that Pillow makes neither of.
    """
    channels, height, width = image_shape
    if channels not in (1, 3):
        raise InputError("model: channels", channels, "1 (grey) or 3 (RGB), as images have")
    opaque = eight_bits(upright(picture))
    try:
        if opaque.mode in ("RGBA", "LA", "PA") or "transparency" in opaque.info:
            clear = opaque.convert("RGBA")
            opaque = Image.alpha_composite(Image.new("RGBA", clear.size, (255, 255, 255, 255)), clear)
        plain = opaque.convert("L" if channels == 1 else "RGB")
    except ValueError as error:
        raise InputError("image", f"pixels of the mode {picture.mode} ({error})", "grey or RGB pixels") from error
    pixels = np.asarray(fit.apply(plain, (width, height)), dtype=np.uint8)
    return pixels[..., None] if channels == 1 else pixels


def upright(picture: Image.Image) -> Image.Image:
    """A copy turned as the picture's EXIF orientation says, and without EXIF, so that nothing turns it again. A damaged
    EXIF block says nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow's remarks on damaged blocks
            turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # Pillow meets a damaged block in many ways
        turn = None
    turned = picture.copy() if turn is None else picture.transpose(turn)
    for key in _ORIENTED:
        turned.info.pop(key, None)
    return turned


def eight_bits(picture: Image.Image) -> Image.Image:
    """Greys of more than 8 bits scaled down, and LAB, which Pillow makes no grey of, as RGB; every other mode as it is.
    Bilevel and palette pictures stay exact.

    White is 65535 in a 16-bit picture. 32-bit pictures do not say what white is, so their largest value does: 1 where
    it is at most 1 (floats only), else 255 where it is at most 255, else 65535. What is no finite number is black.
    """
    if picture.mode == "LAB":
        return picture.convert("RGB")
    if not (picture.mode in ("I", "F") or picture.mode.startswith("I;16")):
        return picture
    values = np.asarray(picture, dtype=np.float64)
    values = np.where(np.isfinite(values), values, 0.0)
    top = values.max(initial=0.0)
    if picture.mode.startswith("I;16") or top > 255.0:
        white = 65535.0
    else:
        white = 1.0 if picture.mode == "F" and top <= 1.0 else 255.0
    return Image.fromarray((values / white * 255.0).clip(0, 255).round().astype(np.uint8))


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
