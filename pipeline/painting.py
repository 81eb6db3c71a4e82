"""Painting a region over with what surrounds it: a picture that lacks the part."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from pipeline.errors import InputError

TOLERANCE = 1e-5  # residual over the right-hand side


def painted_over(picture: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The picture with the mask's pixels replaced by the smoothest surface that joins those around it.

    The discrete Laplace equation with the surroundings as boundary values, solved by conjugate gradients; the edge of
    the picture is free. A linear gradient of light runs on through the region, detail is gone.

    Args:
        picture: (C, H, W), of any range.
        mask: (H, W), true where to paint.

    Returns:
        (C, H, W), dtype and device of `picture`; pixels outside the mask are the same. No randomness.

    Raises:
        InputError: a mask of another size, or one that leaves nothing around it.
    """
    if mask.shape != picture.shape[1:] or bool(mask.all()):
        raise InputError("mask", tuple(mask.shape), f"{tuple(picture.shape[1:])} with pixels outside the mask")
    values, inside = picture.double(), mask.to(picture.device).double()
    degree = _neighbours(torch.ones_like(values))

    def laplacian(u: torch.Tensor) -> torch.Tensor:
        return (degree * u - _neighbours(u)) * inside

    solution = torch.zeros_like(values)
    residual = _neighbours(values * (1 - inside)) * inside
    search, size = residual.clone(), float(residual.square().sum())
    enough = TOLERANCE**2 * size
    for _ in range(4 * sum(mask.shape)):
        if size <= enough:
            break
        image = laplacian(search)
        step = size / float((search * image).sum())
        solution, residual = solution + step * search, residual - step * image
        before, size = size, float(residual.square().sum())
        search = residual + size / before * search
    return torch.where(mask.to(picture.device), solution.to(picture), picture)


def _neighbours(values: torch.Tensor) -> torch.Tensor:
    """Sum of the four neighbours of every pixel (C, H, W); none beyond the edge."""
    wide = pad(values, (1, 1, 1, 1))
    return wide[:, :-2, 1:-1] + wide[:, 2:, 1:-1] + wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]
