"""The factors of the parametric faces, and which region owns each of them.

A factor vector holds one number in [0, 1] per name in `FACTORS`; `OWNER` names the region whose pixels the
factor alone changes, or `SCENE` for factors that move or light the whole picture. The two eyes are independent.
As in CelebAMask-HQ, left and right are the person's own: `left_eye` lies on the image's right.
"""

from __future__ import annotations

import torch

SCENE = "scene"

OWNER: dict[str, str] = {
    "left_openness": "left_eye",
    "left_gaze": "left_eye",
    "left_iris": "left_eye",
    "right_openness": "right_eye",
    "right_gaze": "right_eye",
    "right_iris": "right_eye",
    "brow_height": "brows",
    "brow_angle": "brows",
    "nose_width": "nose",
    "nose_length": "nose",
    "mouth_width": "mouth",
    "mouth_smile": "mouth",
    "mouth_opening": "mouth",
    "lip_colour": "mouth",
    "skin_tone": "skin",
    "face_size": "skin",
    "hair_colour": "hair",
    "hair_volume": "hair",
    "background": "background",
    "light": SCENE,
    "position_x": SCENE,
    "position_y": SCENE,
}
FACTORS: tuple[str, ...] = tuple(OWNER)
REGIONS: tuple[str, ...] = ("left_eye", "right_eye", "brows", "nose", "mouth", "hair", "skin", "background")

VISIBLE: dict[str, str] = {
    "left_eye": "left_openness",
    "right_eye": "right_openness",
    "brows": "brow_height",
    "nose": "nose_length",
    "mouth": "mouth_opening",
    "hair": "hair_colour",
    "skin": "skin_tone",
    "background": "background",
}
"""Of each region a factor that every face has room to change visibly, raised or lowered: what methods are told that
must be told an attribute. Of others a perfect edit stays unseen on many faces, as of the width of half the mouths."""


def factors_of(region: str) -> tuple[str, ...]:
    """Names of the factors that `region` owns, in the order of `FACTORS`."""
    return tuple(name for name, owner in OWNER.items() if owner == region)


def sample_factors(count: int, generator: torch.Generator) -> torch.Tensor:
    """Independent uniform factors, float32 (count, len(FACTORS)) in [0, 1], drawn from `generator`."""
    return torch.rand((count, len(FACTORS)), generator=generator, dtype=torch.float32)
