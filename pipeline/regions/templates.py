"""Masks that are the same for every picture of an aligned data set: one mask picture, or built-in ones for faces.

The built-in template is for faces aligned as in CelebA-HQ and FFHQ (Karras et al. 2018, appendix C; the same square is
cut in FFHQ): with e the vector between the eyes, m that from their midpoint to the midpoint of the mouth's corners, the
side is max(4 |e|, 3.6 |m|) and the centre lies 0.1 m below the eyes' midpoint. With |m| close to |e|, as in most adult
faces seen from the front, the eyes come to lie at x = 0.5 -+ 0.125, y = 0.47 and the mouth at y = 0.73; landmarks
averaged over FFHQ, as face restoration tools align to, are eyes at (0.377, 0.469) and (0.623, 0.469), tip of the nose
at (0.501, 0.613) and corners of the mouth at (0.393, 0.725) and (0.611, 0.725). The shapes are drawn around those
points by eye and are APPROXIMATE: heads that turn, tilt or laugh leave them, and hair and chin differ most. Annotated
parts, or `generated`, are better where they can be had.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from pipeline.errors import InputError
from pipeline.regions.masks import Mask, RegionMasks, checked, usable
from pipeline.regions.shapes import Box, Ellipse, Polygon, Shape, shape_masks

# The person's left is the image's right, as in CelebAMask-HQ.
_RIGHT_EYE, _LEFT_EYE = Ellipse(0.377, 0.470, 0.075, 0.042), Ellipse(0.623, 0.470, 0.075, 0.042)
_RIGHT_BROW = Polygon(((0.275, 0.425), (0.290, 0.385), (0.380, 0.360), (0.470, 0.385), (0.465, 0.420), (0.380, 0.400)))
_LEFT_BROW = Polygon(((0.535, 0.420), (0.530, 0.385), (0.620, 0.360), (0.710, 0.385), (0.725, 0.425), (0.620, 0.400)))

ALIGNED_FACE: Mapping[str, tuple[Shape, ...]] = MappingProxyType(
    {
        "left_eye": (_LEFT_EYE,),
        "right_eye": (_RIGHT_EYE,),
        "eyes": (_LEFT_EYE, _RIGHT_EYE),
        "left_brow": (_LEFT_BROW,),
        "right_brow": (_RIGHT_BROW,),
        "brows": (_LEFT_BROW, _RIGHT_BROW),
        "nose": (
            Polygon(
                ((0.470, 0.460), (0.530, 0.460), (0.545, 0.560), (0.585, 0.625), (0.545, 0.660), (0.500, 0.668),
                 (0.455, 0.660), (0.415, 0.625), (0.455, 0.560))
            ),
        ),
        "mouth": (Ellipse(0.501, 0.735, 0.130, 0.055),),
        "chin": (Ellipse(0.500, 0.870, 0.130, 0.065),),
        "forehead": (
            Polygon(((0.290, 0.350), (0.330, 0.260), (0.420, 0.215), (0.580, 0.215), (0.670, 0.260), (0.710, 0.350))),
        ),
        "face": (Ellipse(0.500, 0.570, 0.275, 0.375),),
        "hair": (
            Polygon(
                ((0.110, 0.600), (0.100, 0.280), (0.230, 0.060), (0.500, 0.000), (0.770, 0.060), (0.900, 0.280),
                 (0.890, 0.600), (0.790, 0.600), (0.760, 0.380), (0.670, 0.240), (0.500, 0.195), (0.330, 0.240),
                 (0.240, 0.380), (0.210, 0.600))
            ),
        ),
        "upper": (Box(0.0, 0.0, 1.0, 0.440),),
        "lower": (Box(0.0, 0.560, 1.0, 1.0),),
    }
)  # fmt: skip
"""Regions of the built-in template, in shares of the picture. Left and right are the person's own."""


def template_names() -> tuple[str, ...]:
    """What the built-in template for aligned faces holds."""
    return tuple(ALIGNED_FACE)


def check_template(name: str) -> None:
    """Raise InputError unless the built-in template holds `name`."""
    if name not in ALIGNED_FACE:
        near = difflib.get_close_matches(name, template_names(), n=1)
        raise InputError(
            "template", repr(name), f"one of {', '.join(template_names())}, or a mask picture",
            f"Did you mean {near[0]!r}?" if near else "",
        )  # fmt: skip


def face_masks(size: tuple[int, int], names: Sequence[str] | None = None) -> RegionMasks:
    """Masks bool (H, W) of an aligned face at `size` (H, W): those in `names`, or all of the built-in template.

    Raises:
        InputError: a name that the template does not hold.
    """
    chosen = template_names() if names is None else tuple(names)
    for name in chosen:
        check_template(name)
    return shape_masks({name: ALIGNED_FACE[name] for name in chosen}, size)


def template_masks(pictures: Mapping[str, Mask], size: tuple[int, int]) -> RegionMasks:
    """Masks of one aligned picture at any size as masks at `size` (H, W), each pixel from where its centre falls.

    Args:
        pictures: region -> bool (h, w), of the aspect of `size`.

    Raises:
        InputError: a mask that is not bool (h, w), or of another aspect by more than a pixel of its own.
    """
    height, width = size
    masks = {}
    for region, picture in pictures.items():
        rows, columns = checked(picture, f"template of {region}").shape
        if abs(rows * width - columns * height) > max(height, width):
            raise InputError(
                f"template of {region}", f"{columns} x {rows} pixels", f"the aspect of {width} x {height}",
                "Draw it over one of the aligned pictures.",
            )  # fmt: skip
        down = ((np.arange(height) + 0.5) * rows / height).astype(np.intp)
        across = ((np.arange(width) + 0.5) * columns / width).astype(np.intp)
        masks[region] = picture[np.ix_(down, across)]
    return usable(masks)
