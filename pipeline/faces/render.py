"""Renderer of the parametric faces: factor vectors in, anti-aliased images and exact part masks out.

Shapes are signed-distance fields in a face-centred frame, composited back to front. Every edge is a smooth ramp of
`EDGE` pixels, so images depend smoothly on their factors. All functions are batched over B faces and deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.faces.factors import FACTORS, REGIONS

SIZE = 64
EDGE = 1.6  # width of an edge ramp in pixels
STYLES: tuple[str, ...] = ("faces64", "paintings64")

_EYE = (8.0, -2.2)  # centre of the eye on the image's right, in the face frame
_MOUTH_Y = 13.0


@dataclass(frozen=True)
class Rendering:
    """A batch of faces: `images` float32 (B, 3, 64, 64) in [-1, 1]; `masks` bool (B, 8, 64, 64) in `REGIONS` order.

    The masks are a partition: each pixel belongs to exactly one region. The mask of an eye, the brows, the nose or
    the mouth is the whole patch that the part's own factors can change, so it is never empty.
    """

    images: torch.Tensor
    masks: torch.Tensor


class _Frame:
    """Factors by name, each (B, 1, 1), and pixel coordinates (B, 64, 64) in the face's own frame."""

    def __init__(self, factors: torch.Tensor) -> None:
        self.f = {name: factors[:, i, None, None] for i, name in enumerate(FACTORS)}
        axis = torch.arange(SIZE, dtype=factors.dtype, device=factors.device) + 0.5
        self.scale = 0.93 + 0.14 * self.f["face_size"]
        self.u = (axis[None, None, :] - 32.0 - 4.0 * (self.f["position_x"] - 0.5)) / self.scale
        self.v = (axis[None, :, None] - 34.0 - 4.0 * (self.f["position_y"] - 0.5)) / self.scale

    def fill(self, distance: torch.Tensor) -> torch.Tensor:
        """Coverage in [0, 1] of the shape whose signed distance (negative inside) is given in face units."""
        ramp = (0.5 - distance * self.scale / EDGE).clamp(0.0, 1.0)
        return ramp * ramp * (3.0 - 2.0 * ramp)


def _ellipse(u: torch.Tensor, v: torch.Tensor, ru: torch.Tensor | float, rv: torch.Tensor | float) -> torch.Tensor:
    """First-order signed distance to an axis-aligned ellipse at the origin."""
    k = torch.sqrt((u / ru) ** 2 + (v / rv) ** 2 + 1e-6)
    gradient = torch.sqrt((u / ru**2) ** 2 + (v / rv**2) ** 2 + 1e-6)
    return k * (k - 1.0) / gradient


def _lerp(low: tuple[float, float, float], high: tuple[float, float, float], w: torch.Tensor) -> torch.Tensor:
    """Colour (B, 3, H, W) between two colours at weight w (B, 1, 1) in [0, 1]."""
    a, b = (torch.tensor(c, dtype=w.dtype, device=w.device)[None, :, None, None] for c in (low, high))
    return a + (b - a) * w[:, None]


def _over(image: torch.Tensor, colour: torch.Tensor, coverage: torch.Tensor) -> torch.Tensor:
    """Paint `colour` (B|1, 3, H|1, W|1) over `image` where `coverage` (B, H, W) is 1."""
    return image + (colour - image) * coverage[:, None]


def _plain(colour: tuple[float, float, float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(colour, dtype=like.dtype, device=like.device)[None, :, None, None]


def _head_shapes(frame: _Frame) -> dict[str, torch.Tensor]:
    """Coverage of hair behind the head, neck, face and fringe."""
    u, v, volume = frame.u, frame.v, frame.f["hair_volume"]
    hair = torch.minimum(
        _ellipse(u, v + 5.0, 18.5 + 5.5 * volume, 20.5 + 5.5 * volume),
        _ellipse(u, v - 6.0, 18.0 + 4.5 * volume, 16.0 + 5.0 * volume),
    )
    face = _ellipse(u, v, 16.5, 21.5)
    hairline = v + 16.8 - 0.014 * u**2
    return {
        "hair": frame.fill(hair),
        "neck": frame.fill(torch.maximum(u.abs() - 7.0, 14.0 - v)),
        "face": frame.fill(face),
        "fringe": frame.fill(torch.maximum(face - 0.8, hairline)),
    }


def _paint_head(frame: _Frame, shapes: dict[str, torch.Tensor]) -> torch.Tensor:
    f = frame.f
    background = _lerp((-0.45, -0.15, 0.2), (0.35, 0.1, -0.3), f["background"])
    image = background + 0.10 * (frame.v[:, None] / 32.0)
    light = 0.5 * (f["light"] - 0.5) * (frame.u / 16.0).clamp(-1.5, 1.5)
    hair = _lerp((-0.65, -0.75, -0.85), (0.2, -0.1, -0.45), f["hair_colour"]) + 0.6 * light[:, None]
    skin = _lerp((0.1, -0.2, -0.4), (0.7, 0.45, 0.25), f["skin_tone"])
    image = _over(image, hair, shapes["hair"])
    image = _over(image, skin - 0.22 + light[:, None], shapes["neck"])
    image = _over(image, skin + light[:, None], shapes["face"])
    return _over(image, hair + 0.06, shapes["fringe"])


def _paint_eye(frame: _Frame, image: torch.Tensor, side: str) -> torch.Tensor:
    sign = 1.0 if side == "left" else -1.0
    opening, gaze, iris = (frame.f[f"{side}_{name}"] for name in ("openness", "gaze", "iris"))
    u, v = frame.u - sign * _EYE[0], frame.v - _EYE[1]
    lid = (1.0 - (u / 5.6) ** 2).clamp(-1.0, 1.0)
    upper, lower = (1.1 + 3.1 * opening) * lid, (0.8 + 1.3 * opening) * lid
    aperture = frame.fill(torch.maximum(-(v + upper), v - lower))
    image = _over(image, _plain((0.85, 0.85, 0.82), image), aperture)
    offset = u - 3.4 * (gaze - 0.5)
    disk = frame.fill(_ellipse(offset, v + 0.5, 2.7, 2.7)) * aperture
    image = _over(image, _lerp((-0.35, -0.6, -0.75), (-0.15, 0.25, 0.5), iris), disk)
    image = _over(image, _plain((-0.9, -0.9, -0.9), image), frame.fill(_ellipse(offset, v + 0.5, 1.1, 1.1)) * aperture)
    lash = frame.fill(torch.maximum((v + upper).abs() - 0.55, u.abs() - 5.6))
    return _over(image, _plain((-0.6, -0.7, -0.75), image), 0.9 * lash)


def _paint_brows(frame: _Frame, image: torch.Tensor) -> torch.Tensor:
    u = frame.u.abs() - _EYE[0]
    slope = 0.6 * (frame.f["brow_angle"] - 0.5)
    v = frame.v + 9.3 + 3.0 * frame.f["brow_height"] - slope * u + 0.03 * u**2
    brow = frame.fill(torch.maximum(v.abs() - 1.25, u.abs() - 5.2))
    return _over(image, _plain((-0.5, -0.6, -0.68), image), 0.9 * brow)


def _paint_nose(frame: _Frame, image: torch.Tensor) -> torch.Tensor:
    width = 2.3 + 2.4 * frame.f["nose_width"]
    tip = 3.2 + 3.4 * frame.f["nose_length"]
    u, v = frame.u, frame.v
    ridge = frame.fill(torch.maximum(u.abs() - 1.3, torch.maximum(0.6 - v, v - tip)))
    image = image + 0.16 * ridge[:, None]
    base = frame.fill(_ellipse(u, v - tip, width, 1.7))
    image = image - 0.42 * base[:, None] * _plain((0.8, 1.0, 1.0), image)
    nostril = frame.fill(_ellipse(u.abs() - 0.6 * width, v - tip - 0.4, 0.9, 0.7))
    return _over(image, _plain((-0.6, -0.75, -0.8), image), 0.85 * nostril)


def _paint_mouth(frame: _Frame, image: torch.Tensor) -> torch.Tensor:
    f, half = frame.f, 5.8 + 3.0 * frame.f["mouth_width"]
    across = frame.u / half
    bow = (1.0 - across**2).clamp(-1.0, 1.0)
    centre = frame.v - _MOUTH_Y + (5.2 * f["mouth_smile"] - 2.0) * (across**2 - 0.35).clamp(max=0.9)
    gap = 2.4 * f["mouth_opening"] * bow
    ends = (frame.u.abs() - half) * 0.9
    lips = frame.fill(torch.maximum(centre.abs() - (gap + 1.9 * bow.clamp(min=0.0) + 0.3), ends))
    image = _over(image, _lerp((0.15, -0.35, -0.4), (0.65, -0.85, -0.55), f["lip_colour"]), 0.95 * lips)
    inside = frame.fill(torch.maximum(centre.abs() - gap + 0.2, ends + 0.8))
    return _over(image, _plain((-0.75, -0.85, -0.85), image), 0.95 * inside)


def _masks(frame: _Frame, shapes: dict[str, torch.Tensor]) -> torch.Tensor:
    """Bool (B, 8, 64, 64): a partition of the image in `REGIONS` order, small parts first."""
    u, v = frame.u, frame.v
    side = (u.abs() - _EYE[0], v - _EYE[1] + 1.1)
    eye = _ellipse(side[0], side[1], 6.4, 4.4) < 0
    part = {
        "left_eye": eye & (u > 0),
        "right_eye": eye & (u < 0),
        "brows": (side[0].abs() < 6.4) & (v > -14.8) & (v < -5.6),
        "nose": (u.abs() < 5.8) & (v > -0.4) & (v < 8.6),
        "mouth": _ellipse(u, v - _MOUTH_Y, 10.2, 6.0) < 0,
        "hair": (shapes["fringe"] >= 0.5) | ((shapes["hair"] >= 0.5) & (shapes["face"] < 0.5) & (shapes["neck"] < 0.5)),
        "skin": (shapes["face"] >= 0.5) | (shapes["neck"] >= 0.5),
    }
    free = torch.ones_like(eye)
    masks = []
    for name in REGIONS[:-1]:
        masks.append(part[name] & free)
        free = free & ~part[name]
    return torch.stack([*masks, free], dim=1)


def _as_painting(frame: _Frame, image: torch.Tensor) -> torch.Tensor:
    """The same anatomy in oil: a muted warm palette, brush strokes that follow the form, canvas grain, a vignette."""
    mix = torch.tensor(
        [[0.62, 0.22, 0.02], [0.14, 0.60, 0.04], [0.10, 0.18, 0.46]], dtype=image.dtype, device=image.device
    )
    image = torch.einsum("ij,bjhw->bihw", mix, image) + _plain((0.02, -0.10, -0.28), image)
    u, v = frame.u, frame.v
    form = torch.sin(0.55 * u + 0.95 * v + 1.2 * torch.sin(0.18 * u)) + 0.6 * torch.sin(0.9 * v - 0.6 * u)
    axis = torch.arange(SIZE, dtype=image.dtype, device=image.device)
    weave = torch.cos(torch.pi * axis / 2)
    grain = weave[:, None] + weave[None, :]
    radius = ((axis[:, None] - 31.5) ** 2 + (axis[None, :] - 31.5) ** 2) / 32.0**2
    return image + 0.045 * form[:, None] + 0.03 * grain - 0.16 * radius


def render(factors: torch.Tensor, style: str = "faces64") -> Rendering:
    """Draw faces.

    Args:
        factors: (B, 22) floats in [0, 1], columns in `FACTORS` order.
        style: "faces64" or "paintings64"; both share anatomy, masks and factors.

    Returns:
        Images (B, 3, 64, 64) in [-1, 1] and masks (B, 8, 64, 64). No randomness.

    Raises:
        ValueError: wrong number of factors or an unknown style.
    """
    if factors.ndim != 2 or factors.shape[1] != len(FACTORS):
        raise ValueError(f"factors: found shape {tuple(factors.shape)}, expected (B, {len(FACTORS)})")
    if style not in STYLES:
        raise ValueError(f"style: found {style!r}, expected one of {', '.join(STYLES)}")
    frame = _Frame(factors)
    shapes = _head_shapes(frame)
    image = _paint_head(frame, shapes)
    image = _paint_brows(frame, image)
    for side in ("left", "right"):
        image = _paint_eye(frame, image, side)
    image = _paint_nose(frame, image)
    image = _paint_mouth(frame, image)
    if style == "paintings64":
        image = _as_painting(frame, image)
    return Rendering(images=image.clamp(-1.0, 1.0), masks=_masks(frame, shapes))
