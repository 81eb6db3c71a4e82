"""Pictures of an evaluation: kept in cells as text, drawn as sheets of before and after."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image

from pipeline.images import as_image


def encoded(picture: torch.Tensor) -> str:
    """A picture (C, H, W) in [-1, 1] as a PNG in base64."""
    buffer = io.BytesIO()
    as_image(picture).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decoded(text: str) -> Image.Image:
    """The picture that `encoded` gave."""
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
