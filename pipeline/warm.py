"""Warm starts: singular subspaces of a similar image, moved to this image's regions, start the search.

What a search starts from decides its cost, never its answer: it stops by residuals, and fresh random vectors look for
what the start may have missed (`pipeline.svd`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.registration import registered

START = 5  # directions kept of all subspaces together; measured: more cost a product each and save less than one


class Subspace(Protocol):
    """Right singular vectors `v` (k, *shape_in) of one masked operator, strongest first, with values `sigma` (k,)."""

    @property
    def v(self) -> torch.Tensor: ...

    @property
    def sigma(self) -> torch.Tensor: ...


def nearest(image: torch.Tensor, others: torch.Tensor) -> int:
    """Index of the picture among `others` (n, C, H, W) that differs least from `image` (C, H, W), by mean square.

    Raises:
        InputError: no others, or pictures of another shape.
    """
    if others.ndim != 4 or others.shape[1:] != image.shape or len(others) == 0:
        raise InputError("others", tuple(others.shape), f"(n, {', '.join(map(str, image.shape))}), n >= 1")
    return int((others - image).square().flatten(1).mean(1).argmin())


def start_block(
    found: Mapping[str, Subspace],
    theirs: Mapping[str, torch.Tensor | np.ndarray],
    mine: Mapping[str, torch.Tensor | np.ndarray],
    count: int = START,
) -> torch.Tensor:
    """The leading `count` directions (k <= count, *shape_in) that another image's subspaces share with one another.

    Args:
        found: the subspaces by mask, as `pipeline.svd` gave them or a catalog stored them.
        theirs, mine: (H, W) masks of the image they were found on, and of this one, tensors or arrays.
        count: most directions returned, at least 1.

    Every right vector counts by its singular value over the first of its mask. Those of a mask smaller than half the
    picture are shifted to where this image has it; masks that either image lacks are left out.

    Raises:
        InputError: no mask in common, masks of two sizes, vectors without their values, vectors of two shapes, no
            direction wanted, or a shift that leaves nothing of one.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError("count", repr(count), "a whole number, at least 1")
    rows: list[torch.Tensor] = []
    for name, svd in found.items():
        if name not in theirs or name not in mine:
            continue
        _check(name, svd)
        vectors = svd.v
        home, here = (torch.as_tensor(masks[name]).bool() for masks in (theirs, mine))
        if home.ndim != 2 or home.shape != here.shape:
            raise InputError(f"mask {name}", (tuple(home.shape), tuple(here.shape)), "one size (H, W) on both images")
        if float(home.float().mean()) < 0.5:
            vectors = torch.stack([registered(v, home, here) for v in vectors])
        if rows and rows[0].shape[1] != vectors[0].numel():
            raise InputError(f"found: {name}", tuple(vectors.shape[1:]), "vectors of one space")
        rows.append(vectors.flatten(1) * (svd.sigma / svd.sigma[0].clamp(min=1e-30))[:, None])
    if not rows:
        raise InputError("found", sorted(found), f"one of the masks {sorted(mine)}")
    leading = torch.linalg.svd(torch.cat(rows), full_matrices=False)[2][:count]
    return leading.view(-1, *next(iter(found.values())).v.shape[1:])


def _check(name: str, svd: Subspace) -> None:
    if svd.sigma.shape != svd.v.shape[:1] or len(svd.sigma) == 0:
        shapes = f"vectors {tuple(svd.v.shape)} with values {tuple(svd.sigma.shape)}"
        raise InputError(f"found: {name}", shapes, "(k, *shape_in) with (k,), k >= 1")
    if not bool(svd.v.isfinite().all() and svd.sigma.isfinite().all()):
        raise InputError(f"found: {name}", "NaN or infinite entries", "finite vectors and values")
