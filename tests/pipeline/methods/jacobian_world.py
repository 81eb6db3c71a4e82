"""A tiny model, images and masks on which every method of singular directions can be compared with the dense truth."""

from __future__ import annotations

import functools
from typing import Any

import torch

from pipeline.jacobian import JacobianKind, jacobian
from pipeline.methods.contract import Found, Method, Refused, Subject
from tests.pipeline.tiny_models import tiny_denoiser, tiny_image

ONE_LEVEL = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
DENOISER = tiny_denoiser(dtype=torch.float64, **ONE_LEVEL)
TIGHT: dict[str, Any] = {"tolerance": 1e-4, "steps": 2}


def masks() -> dict[str, torch.Tensor]:
    left, right = torch.zeros(8, 8, dtype=torch.bool), torch.zeros(8, 8, dtype=torch.bool)
    left[1:4, 1:4] = True
    right[4:7, 3:7] = True
    return {"left": left, "right": right}


def subject(seed: int = 0) -> Subject:
    x_t = 0.3 * tiny_image(DENOISER, seed=seed)[0]
    return Subject(f"image {seed}", x_t, x_t, masks())


def found(method: Method, one: Subject | None = None) -> dict[str, Found]:
    """All edits of one image; a refusal fails the test."""
    edits = method.find(one or subject())
    assert set(edits) == set((one or subject()).masks)
    kept = {region: edit for region, edit in edits.items() if not isinstance(edit, Refused)}
    assert len(kept) == len(edits), edits
    return kept


def vector(edit: Found) -> torch.Tensor:
    """Its vector, flat."""
    assert edit.vector is not None
    return edit.vector.flatten()


@functools.cache
def dense(kind: JacobianKind, t: int) -> torch.Tensor:
    """The Jacobian at `subject()` as a matrix (out, in)."""
    operator = jacobian(DENOISER, subject().x_t, t, kind)
    size = torch.Size(operator.shape_in).numel()
    return operator.matvec(torch.eye(size, dtype=torch.float64).view(-1, *operator.shape_in)).flatten(1).T


def rows(mask: torch.Tensor) -> torch.Tensor:
    """The mask over all numbers of a picture, (C * H * W,)."""
    return mask.expand(3, 8, 8).flatten().double()


def first_right(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svd(matrix, full_matrices=False)[2][0]


def share(matrix: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> float:
    """||M J v|| / ||J v||."""
    effect = matrix @ v
    return float((effect * rows(mask)).norm() / effect.norm())
