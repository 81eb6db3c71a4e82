"""Moving a direction to where another image has its region: directions are bound to the pixels they were found on."""

from __future__ import annotations

import torch
from torch.nn.functional import grid_sample

from pipeline.errors import InputError


def mask_centre(mask: torch.Tensor) -> tuple[float, float]:
    """Centre of gravity (x, y) of a boolean mask (H, W), in pixels from the upper left corner.

    Raises:
        InputError: an empty mask.
    """
    rows, columns = mask.nonzero(as_tuple=True)
    if len(rows) == 0:
        raise InputError("mask", "an empty mask", "at least one pixel")
    return float(columns.double().mean()) + 0.5, float(rows.double().mean()) + 0.5


def shift_between(home: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """The way (x right, y down) from the centre of one mask (H, W) to that of another, in pixels.

    Raises:
        InputError: an empty mask, or masks of two sizes.
    """
    if home.shape != target.shape:
        raise InputError("target mask", tuple(target.shape), f"the size of the home mask, {tuple(home.shape)}")
    (x_home, y_home), (x_target, y_target) = mask_centre(home), mask_centre(target)
    return x_target - x_home, y_target - y_home


def registered(vector: torch.Tensor, home: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """`vector` shifted by the way from the centre of its own mask to that of another image's, unit L2 norm again.

    Args:
        vector: (C, h, w) in either space, on a grid of its own that covers the image evenly, as latents and h do.
        home, target: masks (H, W) of the region on the image it was found on and on the one it is to edit.

    Returns:
        (C, h, w); bicubic between pixels, zero where nothing comes in; `vector` itself where the centres coincide.
        No randomness, no network pass.

    Raises:
        InputError: an empty mask, masks of two sizes, or a shift that leaves nothing of the direction.
    """
    right, down = shift_between(home, target)
    if right == down == 0:
        return vector
    height, width = home.shape
    axes = [
        (torch.arange(count, dtype=torch.float64) + 0.5) * 2 / count - 1 - 2 * shift / size
        for count, shift, size in ((vector.shape[-1], right, width), (vector.shape[-2], down, height))
    ]
    grid = torch.stack(torch.broadcast_tensors(axes[0][None, :], axes[1][:, None]), dim=-1)[None].to(vector)
    moved = grid_sample(vector[None], grid, mode="bicubic", padding_mode="zeros", align_corners=False)[0]
    norm = float(moved.norm())
    if norm < 1e-6:
        raise InputError(
            "target mask", "a place so far away that nothing of the direction is left", "one nearer to home"
        )
    return moved / norm
