"""A contact sheet of edits that were tried on one picture: what it was, what it became, and where it changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from flows.pictures import PAPER, Picture, as_picture, change_maps, outline, shrink, shrink_mask, strip, upscale

_LONGEST = 256
_TEXT, _LINE, _GAP, _WORDS = 13, 18, 8, 360  # pixels; the last is the width of a caption


def transfer_sheet(pictures: torch.Tensor, mask: np.ndarray, captions: Sequence[Sequence[str]]) -> Picture:
    """One row per edit: the picture with its region outlined, the edit, the map of its change, and lines of ASCII text.

    Args:
        pictures: (1 + n, C, H, W) in [-1, 1], the unedited one first.
        mask: bool (H, W).
        captions: lines for each of the n edits.

    All maps share one scale, so that rows can be compared.
    """
    small = [shrink(as_picture(picture), _LONGEST) for picture in pictures]
    region = shrink_mask(mask, _LONGEST)
    factor = max(1, min(3, 160 // max(small[0].shape[:2])))
    maps, _ = change_maps(small[0], *small[1:])
    before = outline(small[0], region, factor)
    rows = [
        strip([before, upscale(after, factor), upscale(change, factor), _words(lines)], _GAP)
        for after, change, lines in zip(small[1:], maps, captions, strict=True)
    ]
    return np.concatenate([np.pad(row, ((_GAP, 0), (_GAP, _GAP), (0, 0)), constant_values=PAPER[0]) for row in rows])


def _words(lines: Sequence[str]) -> Picture:
    canvas = Image.new("RGB", (_WORDS, _LINE * len(lines)), PAPER)
    pen = ImageDraw.Draw(canvas)
    for place, line in enumerate(lines):
        pen.text((0, place * _LINE), line, fill=(28, 28, 26), font=ImageFont.load_default(_TEXT))
    return np.asarray(canvas, dtype=np.uint8)
