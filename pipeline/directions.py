"""LOCO: local directions in x_t from a region's subspace and the null space of everything else.

Chen, Zhang, Guo, Lu, Wang, Qu, "Exploring Low-Dimensional Subspaces in Diffusion Models for Controllable Image
Editing" (LOCO Edit), algorithm 1: V = right singular vectors of M J, Vn = leading right singular vectors of (1 - M) J,
v_p = (I - Vn Vn^T) v, normalised. Also the variant with the SVD taken inside the null space of Vn^T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pipeline.errors import InputError
from pipeline.operators import LinearOperator, Masked, Projected
from pipeline.svd import TruncatedSVD, canonical_sign, truncated_svd

__all__ = [
    "MINIMAL_KEPT_SHARE",
    "LocalDirections",
    "canonical_sign",
    "gain_and_leakage",
    "loco_directions",
    "loco_inside",
    "null_space_projection",
]

MINIMAL_KEPT_SHARE = 0.05  # below it, what projection leaves of a unit vector is noise


@dataclass(frozen=True)
class LocalDirections:
    """k directions of one region with their evidence.

    `vectors` (k, *shape_in): unit L2 norm, canonical sign; zero where `refused`. `effects` (k, *shape_out): J v.
    `sigma` (k,): singular value of the parent in M J (of the direction itself for the variant inside the null space).
    `kept_share` (k,): ||v - Vn Vn^T v|| of the unit parent; `refused` (k,) bool: kept share below 0.05.
    `gain` ||M J v|| and `leakage` ||(1 - M) J v|| (k,) of the direction, `gain_before` and `leakage_before` of its
    parent; NaN where there is none to measure (refused after projection, no parent inside the null space). Inside the
    null space, directions without any gain (beyond the rank of M J there) are refused too.
    """

    vectors: torch.Tensor
    effects: torch.Tensor
    sigma: torch.Tensor
    kept_share: torch.Tensor
    refused: torch.Tensor
    gain: torch.Tensor
    leakage: torch.Tensor
    gain_before: torch.Tensor
    leakage_before: torch.Tensor

    @property
    def locality(self) -> torch.Tensor:
        """(k,): leakage over gain after projection, the linear ROIR; smaller is more local, inf without any gain."""
        return _ratio(self.leakage, self.gain)

    @property
    def locality_before(self) -> torch.Tensor:
        """(k,): leakage over gain of the unprojected parents."""
        return _ratio(self.leakage_before, self.gain_before)


def _ratio(leakage: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return torch.where(gain == 0, math.inf, leakage / torch.where(gain == 0, 1.0, gain))


def null_space_projection(v: torch.Tensor, null: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Remove the span of `null` from each vector and normalise the rest. LOCO Edit, algorithm 1.

    Args:
        v: (k, *shape), or one vector (*shape,), any norm but zero.
        null: (n, *shape), orthonormal rows, n >= 0.

    Returns:
        Unit vectors like `v`, signs as they come, and the kept shares (k,) or () ||(I - Vn Vn^T) v|| / ||v||. A vector
        whose kept share is under `MINIMAL_KEPT_SHARE` comes back as zeros: normalised, it would be noise.

    Raises:
        InputError: shapes differ, a zero or non-finite vector, or `null` rows that are not orthonormal.
    """
    if v.ndim == null.ndim - 1:
        unit, kept = null_space_projection(v[None], null)
        return unit[0], kept[0]
    if v.ndim < 2 or null.shape[1:] != v.shape[1:]:
        raise InputError("null", tuple(null.shape), f"(n, *{tuple(v.shape[1:])})")
    flat, rows = v.flatten(1), null.flatten(1)
    size = flat.norm(dim=1)
    if not bool(torch.isfinite(size).all() and (size > 0).all()):
        raise InputError("v", "a zero or non-finite vector", "finite vectors that are not zero")
    gap = rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    if len(rows) and not float(gap.abs().max()) < 1e-3:  # also catches NaN
        raise InputError("null", "rows that are not orthonormal", "orthonormal rows, as a truncated SVD returns them")
    rest = flat / size[:, None]
    for _ in range(2):  # twice is enough to reach rounding level
        rest = rest - (rest @ rows.T) @ rows
    kept = rest.norm(dim=1)
    refused = kept < MINIMAL_KEPT_SHARE
    unit = torch.where(refused[:, None], 0.0, rest / torch.where(refused, 1.0, kept)[:, None])
    return unit.view_as(v), kept


def _null_rows(complement: TruncatedSVD, null_rank: int) -> torch.Tensor:
    """The leading `null_rank` right vectors of the complement that have any effect there."""
    if not 0 <= null_rank <= len(complement.v):
        raise InputError("null_rank", null_rank, f"0 to {len(complement.v)}, the rank of the complement's SVD")
    return complement.v[:null_rank][~complement.null[:null_rank]]


def gain_and_leakage(images: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """||M y|| and ||(1 - M) y||, each (k,), of k images J v (k, C, H, W) under a mask (H, W)."""
    inside = mask.to(images)
    return (images * inside).flatten(1).norm(dim=1), (images * (1 - inside)).flatten(1).norm(dim=1)


def loco_directions(
    op: LinearOperator, mask: torch.Tensor, region: TruncatedSVD, complement: TruncatedSVD, null_rank: int
) -> LocalDirections:
    """Project a region's right singular vectors onto the null space of its complement and measure both.

    Args:
        op: the unmasked Jacobian J.
        mask: (H, W), the region.
        region: SVD of M J, rank k; complement: SVD of (1 - M) J, rank at least `null_rank`.
        null_rank: how many complement directions are removed; 0 leaves the vectors as they are.

    Returns:
        k directions in the order of `region`. Cost: one block of at most 2 k JVPs (k with `null_rank` 0).

    Raises:
        InputError: null_rank or shapes do not fit; a region whose vectors have no effect (null triplets).
    """
    if bool(region.null.any()):
        expected = f"at most {int((~region.null).sum())}, the numerical rank of this region's Jacobian"
        raise InputError("rank", len(region.v), expected)
    vectors, kept = null_space_projection(region.v, _null_rows(complement, null_rank))
    refused = kept < MINIMAL_KEPT_SHARE
    vectors = canonical_sign(vectors)
    count = len(region.v)
    fresh = vectors[~refused] if null_rank else vectors[:0]
    images = op.matvec(torch.cat([region.v, fresh]).to(op.dtype))
    gain_before, leakage_before = gain_and_leakage(images[:count], mask)
    if null_rank == 0:
        vectors, effects = region.v, images
        gain, leakage = gain_before, leakage_before
    else:
        effects = images.new_zeros(images[:count].shape)
        effects[~refused] = images[count:]
        gain, leakage = gain_and_leakage(effects, mask)
        gain, leakage = (torch.where(refused, math.nan, figure) for figure in (gain, leakage))
    return LocalDirections(vectors, effects, region.sigma, kept, refused, gain, leakage, gain_before, leakage_before)


def loco_inside(
    op: LinearOperator,
    mask: torch.Tensor,
    complement: TruncatedSVD,
    rank: int,
    null_rank: int,
    *,
    generator: torch.Generator,
    tolerance: float = 1e-2,
    max_products: int | None = None,
    region: TruncatedSVD | None = None,
) -> tuple[LocalDirections, TruncatedSVD]:
    """The variant: leading right singular vectors of M J (I - Vn Vn^T), optimal inside the null space.

    Args:
        op, mask, complement, null_rank: as in `loco_directions`.
        rank: number of directions, at most prod(shape_in) less `null_rank`.
        generator, tolerance, max_products: as in `truncated_svd`.
        region: SVD of M J where there is one; its projected vectors start the search.

    Returns:
        Directions (kept share 1, figures before projection NaN) and their SVD. Cost: the SVD and `rank` JVPs.

    Raises:
        InputError: ranks do not fit the space, or what `truncated_svd` raises.
    """
    null = _null_rows(complement, null_rank)
    space = min(math.prod(op.shape_in) - len(null), math.prod(op.shape_out))
    if not 1 <= rank <= space:
        raise InputError("rank", rank, f"1 to {space}, what the null space leaves")
    start = None
    if region is not None:
        projected, kept = null_space_projection(region.v, null)
        start = projected[kept >= MINIMAL_KEPT_SHARE]
        start = start if len(start) else None
    svd = truncated_svd(
        Projected(Masked(op, mask), null),
        rank,
        generator=generator,
        tolerance=tolerance,
        max_products=max_products,
        start=start,
    )
    # Rounding and an unlucky random start may leave traces of Vn; projecting once more is free.
    vectors, kept = null_space_projection(svd.v, null)
    refused = (kept < MINIMAL_KEPT_SHARE) | svd.null
    vectors = torch.where(refused.view(-1, *[1] * (vectors.ndim - 1)), 0.0, vectors)
    effects = op.matvec(vectors.to(op.dtype))
    gain, leakage = gain_and_leakage(effects, mask)
    nothing = torch.full_like(gain, math.nan)
    gain, leakage = (torch.where(refused, nothing, figure) for figure in (gain, leakage))
    return LocalDirections(vectors, effects, svd.sigma, kept, refused, gain, leakage, nothing, nothing), svd
