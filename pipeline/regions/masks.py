"""What every provider of regions returns, and what several of them do to masks.

A mask is bool (H, W) at the mined size, neither empty nor the whole picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from skimage.morphology import isotropic_dilation, isotropic_erosion

from pipeline.errors import InputError

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class RegionMasks:
    """Masks by region, bool (H, W), none of them empty or the whole picture; `skipped` regions with the reason."""

    masks: dict[str, Mask]
    skipped: dict[str, str] = field(default_factory=dict)


def usable(masks: Mapping[str, Mask], skipped: Mapping[str, str] | None = None) -> RegionMasks:
    """The masks that can be mined; those that are empty or cover everything join `skipped`.

    Raises:
        InputError: a mask that is not bool (H, W), or masks of two sizes.
    """
    kept, reasons = {}, dict(skipped or {})
    sizes = {checked(mask, f"mask of {region}").shape for region, mask in masks.items()}
    if len(sizes) > 1:
        raise InputError("masks", f"sizes {sorted(sizes)}", "one size (H, W), that of the picture")
    for region, mask in masks.items():
        if not mask.any():
            reasons[region] = f"the mask of {region} is empty"
        elif mask.all():
            reasons[region] = f"the mask of {region} covers the whole picture"
        else:
            kept[region] = mask
    return RegionMasks(kept, reasons)


def checked(mask: Mask, name: str = "mask") -> Mask:
    """The mask itself, if it is bool (H, W); InputError otherwise."""
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InputError(name, found, "a bool array (H, W)")
    return mask


def grown(mask: Mask, pixels: float) -> Mask:
    """The mask dilated by a disc of radius `pixels`, or eroded by one where it is negative.

    The disc is Euclidean and exact: a pixel joins when the centre of a mask pixel lies within the radius of its own
    centre, and leaves when that of an outside pixel does. What lies beyond the picture counts as neither, so a mask is
    not eroded from the picture's edge.

    Raises:
        InputError: a mask that is not bool (H, W), or a radius that is not finite.
    """
    checked(mask)
    if not np.isfinite(pixels):
        raise InputError("dilation", pixels, "a number of pixels, negative to erode")
    if pixels == 0 or not mask.any() or mask.all():
        return mask.copy()
    moved: Mask = isotropic_dilation(mask, pixels) if pixels > 0 else isotropic_erosion(mask, -pixels)
    return moved


def numbered(masks: Sequence[Mask], prefix: str = "segment") -> dict[str, int]:
    """Names for masks (H, W) of one size that have none: name -> position in `masks`, from `prefix`-1 on.

    The larger mask comes first; of equal areas the one whose first pixel in reading order comes first; then the bytes
    decide. So names depend on the masks alone, never on the order in which they were found.
    """

    def key(index: int) -> tuple[int, int, bytes]:
        mask = masks[index]
        return -int(mask.sum()), int(mask.argmax()), np.packbits(mask).tobytes()

    return {f"{prefix}-{rank + 1}": index for rank, index in enumerate(sorted(range(len(masks)), key=key))}
