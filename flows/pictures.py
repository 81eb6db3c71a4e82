"""Pictures of edits: mask outlines, strips, maps of where a change lies, and their encoding. numpy and PIL only.

Every function takes uint8 images (H, W), (H, W, 1) or (H, W, 3) and bool masks (H, W); pictures come back as uint8
(H', W', 3). Nothing here is random or touches a file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError
from pipeline.images import as_pixels

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

PAPER = (255, 255, 255)
PIXELATED_BELOW = 160  # images smaller than this are shown with visible, unsmoothed pixels
_PNG_UP_TO = 160  # longer sides are photographs, which PNG stores at five times the size of a good JPEG

# Dark to light, monotone in luminance, so it still reads in grey and with any colour vision.
_RAMP = np.array(
    [(10, 10, 24), (58, 18, 92), (132, 32, 107), (205, 66, 71), (246, 133, 31), (252, 205, 82), (255, 253, 222)],
    dtype=np.float64,
)


def to_rgb(image: np.ndarray, name: str = "image") -> Picture:
    """A picture as (H, W, 3); grey is repeated over the channels.

    Raises:
        InputError: not uint8, an empty side, or a shape other than (H, W), (H, W, 1) and (H, W, 3).
    """
    if image.dtype != np.uint8:
        raise InputError(name, f"dtype {image.dtype}", "uint8 values in 0..255")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise InputError(name, f"shape {image.shape}", "(H, W), (H, W, 1) or (H, W, 3) with H, W > 0")
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def as_picture(image: torch.Tensor) -> Picture:
    """A tensor (C, H, W) in [-1, 1] as a picture: clamped, rounded, grey repeated."""
    return to_rgb(as_pixels(image))


def check_mask(mask: np.ndarray, image: np.ndarray, name: str = "mask") -> Mask:
    """The mask as bool (H, W) of the image's size. Raises InputError for any other size."""
    if mask.ndim != 2 or mask.shape != image.shape[:2]:
        raise InputError(name, f"shape {mask.shape}", f"the image's height and width, {image.shape[:2]}")
    return np.ascontiguousarray(mask.astype(bool))


def upscale(image: np.ndarray, factor: int) -> Picture:
    """Nearest-neighbour enlargement by a whole factor: each pixel becomes factor x factor equal pixels."""
    if factor < 1:
        raise InputError("factor", factor, "a whole number of at least 1")
    return to_rgb(image).repeat(factor, axis=0).repeat(factor, axis=1)


def shrink(image: np.ndarray, longest: int) -> Picture:
    """The picture with its longer side at most `longest` pixels (area-preserving filter), or unchanged."""
    rgb = to_rgb(image)
    height, width = rgb.shape[:2]
    if max(height, width) <= longest:
        return rgb
    scale = longest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS), dtype=np.uint8)


def shrink_mask(mask: np.ndarray, longest: int) -> Mask:
    """A mask shrunk as `shrink` does its image; a pixel stays in where at least half of it was in."""
    grey = np.where(mask, np.uint8(255), np.uint8(0))
    if max(mask.shape) <= longest:
        return mask.astype(bool)
    return np.asarray(shrink(grey, longest)[:, :, 0] >= 128)


def _grown(mask: Mask) -> Mask:
    """The mask and its four neighbours."""
    padded = np.pad(mask, 1)
    return np.asarray(
        mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:], dtype=np.bool_
    )


def outline(image: np.ndarray, mask: np.ndarray, factor: int = 1) -> Picture:
    """The picture, enlarged by `factor`, with a one-pixel contour just outside the mask.

    The contour is white with a dark rim, so it shows on any background and hides no pixel of the region itself
    (except where the region meets the image's edge, where the contour is left out).
    """
    canvas = upscale(image, factor)
    inside: Mask = check_mask(mask, image).repeat(factor, axis=0).repeat(factor, axis=1)
    line = _grown(inside)
    canvas[_grown(line) & ~line] = (20, 20, 20)
    canvas[line & ~inside] = PAPER
    return canvas


def _runs(edges: Mask) -> list[tuple[int, int, int]]:
    """(line, start, stop) of every run of True along the second axis."""
    steps = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, stops = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return [(int(a[0]), int(a[1]), int(b[1])) for a, b in zip(starts, stops, strict=True)]


def outline_path(mask: np.ndarray) -> str:
    """SVG path data of the mask's border along pixel edges, in pixel units; empty for an empty mask."""
    padded = np.pad(mask.astype(bool), 1)
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]  # (H + 1, W): borders between rows
    down = (padded[1:-1, 1:] != padded[1:-1, :-1]).T  # (W + 1, H): borders between columns
    parts = [f"M{a} {y}H{b}" for y, a, b in _runs(across)]
    parts += [f"M{x} {a}V{b}" for x, a, b in _runs(down)]
    return "".join(parts)


def close_up(mask: np.ndarray) -> tuple[slice, slice] | None:
    """A 3:2 window (rows, columns) around a small region, to show it enlarged.

    None for an empty mask, and where the window would be more than 0.7 of the image either way: nothing is gained.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    height, width = mask.shape
    tall = max(1.3 * (rows[-1] - rows[0] + 1), 1.3 * (columns[-1] - columns[0] + 1) / 1.5, 6.0)
    h, w = round(tall), round(1.5 * tall)
    if h > 0.7 * height or w > 0.7 * width:
        return None
    top = min(max(round((rows[0] + rows[-1] + 1 - h) / 2), 0), height - h)
    left = min(max(round((columns[0] + columns[-1] + 1 - w) / 2), 0), width - w)
    return slice(top, top + h), slice(left, left + w)


def strip(images: Sequence[np.ndarray], gap: int = 0, background: tuple[int, int, int] = PAPER) -> Picture:
    """Pictures side by side, top-aligned, `gap` pixels apart. Raises InputError for an empty sequence."""
    if not images:
        raise InputError("images", "none", "at least one picture")
    rgb = [to_rgb(image) for image in images]
    height = max(image.shape[0] for image in rgb)
    width = sum(image.shape[1] for image in rgb) + gap * (len(rgb) - 1)
    canvas = np.empty((height, width, 3), dtype=np.uint8)
    canvas[:] = background
    left = 0
    for image in rgb:
        canvas[: image.shape[0], left : left + image.shape[1]] = image
        left += image.shape[1] + gap
    return canvas


def change(before: np.ndarray, after: np.ndarray) -> NDArray[np.float32]:
    """Size of the change at each pixel, (H, W) in 0..255: root mean square over the channels.

    Raises:
        InputError: the two pictures differ in size.
    """
    a, b = to_rgb(before, "before").astype(np.float32), to_rgb(after, "after").astype(np.float32)
    if a.shape != b.shape:
        raise InputError("after", f"shape {b.shape}", f"the shape of the picture before, {a.shape}")
    return np.asarray(np.sqrt(((b - a) ** 2).mean(axis=2)), dtype=np.float32)


def heat_map(magnitude: np.ndarray, peak: float | None = None) -> Picture:
    """A map (H, W) >= 0 in colour: near black where nothing changed, pale yellow at `peak` and above.

    `peak` is the 99.5th percentile when not given (one stray pixel should not darken the rest); give the same peak to
    maps that stand side by side. A map without any change is all dark.
    """
    finite = np.nan_to_num(np.asarray(magnitude, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(np.percentile(finite, 99.5)) if peak is None else float(peak)
    level = np.clip(finite / top, 0.0, 1.0) if top > 0 else np.zeros_like(finite)
    stops = np.linspace(0.0, 1.0, len(_RAMP))
    channels = [np.interp(level, stops, _RAMP[:, c]) for c in range(3)]
    return np.asarray(np.rint(np.stack(channels, axis=-1)), dtype=np.uint8)


def change_maps(original: np.ndarray, *edits: np.ndarray) -> tuple[list[Picture], float]:
    """Heat maps of original -> each edit on one common scale, and that scale's peak in grey levels (0..255)."""
    sizes = [change(original, edit) for edit in edits]
    peak = max((float(np.percentile(size, 99.5)) for size in sizes), default=0.0)
    # Under one grey level there is nothing to see; without a floor, rounding noise would be shown as a bright change.
    peak = max(peak, 1.0)
    return [heat_map(size, peak) for size in sizes], peak


def signed_picture(effect: np.ndarray) -> Picture:
    """A signed effect (C, H, W), C in {1, 3}, as a picture: mid-grey is no change, scaled to its largest entry."""
    if effect.ndim != 3 or effect.shape[0] not in (1, 3):
        raise InputError("effect", f"shape {effect.shape}", "(1, H, W) or (3, H, W)")
    values = np.nan_to_num(np.asarray(effect, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(np.abs(values).max(initial=0.0))
    scaled = values / top if top > 0 else values
    return to_rgb(np.rint(127.5 + 127.5 * scaled.transpose(1, 2, 0)).astype(np.uint8))


def png(image: np.ndarray) -> bytes:
    """The picture as a PNG file, without metadata: equal pixels give equal bytes."""
    buffer = io.BytesIO()
    rgb = to_rgb(image)
    # The last few per cent are worth the search in a page of hundreds of thumbnails, not in one large sheet.
    Image.fromarray(rgb).save(buffer, format="PNG", optimize=max(rgb.shape) <= _PNG_UP_TO)
    return buffer.getvalue()


def data_uri(image: np.ndarray, longest: int = 512) -> str:
    """The picture as a `data:` address: PNG when small, JPEG (quality 92, full colour) when a longer side passes 160.

    Pictures are first shrunk to `longest` pixels.
    """
    rgb = shrink(image, longest)
    if max(rgb.shape[:2]) <= _PNG_UP_TO:
        return "data:image/png;base64," + base64.b64encode(png(rgb)).decode("ascii")
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="JPEG", quality=92, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
