"""Truncated SVD of matrix-free operators, one or several masked ones at a time, every triplet with its evidence.

The method, a two-sided block Davidson search in which all masks share every product, is that of `pipeline.svd_search`.
Memory: (m + l) * (prod(shape_in) + prod(shape_out)) numbers of 4 bytes (8 for float64 operators) for m right and l
left basis vectors, each about `max_basis` at most: 39 MB for 200 + 200 vectors of a 3x64x64 to 3x64x64 operator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipeline.certificate import Certificate
from pipeline.errors import InputError
from pipeline.operators import LinearOperator, Products
from pipeline.svd_search import Search, Wanted


@dataclass(frozen=True)
class TruncatedSVD:
    """Leading singular triplets of an operator A, strongest first, signs canonical (see `canonical_sign`).

    `u` (r, *shape_out) and `v` (r, *shape_in) have orthonormal rows, `sigma` (r,) is non-increasing.
    `residuals` (r,) is ||A^T u - sigma v|| / sigma_1: the part of A^T u computed with products, plus an estimate of
    what the rest can add at most. The other residual, ||A v - sigma u||, is zero up to rounding by construction.
    `converged` (r,) says residual <= tolerance: close to a singular triplet, not proof that no larger one was missed.
    `checked`: fresh random vectors, taken twice through A^T and A after convergence, raised no wanted value by a
    quarter of its tolerance. That finds a missed value which stands out from those below the wanted ones, such as
    another copy of a multiple one; in a flat spectrum one may still hide.
    `certificate`: what residuals and gaps prove about the vectors; values beyond rank r are known as Ritz values only.
    Where the operator has numerical rank below r, the last triplets have sigma = 0, u = 0 and `null` True.
    `products`: everything spent, one count shared by all results of a `masked_svds` call.
    """

    u: torch.Tensor
    sigma: torch.Tensor
    v: torch.Tensor
    residuals: torch.Tensor
    converged: torch.Tensor
    tolerance: float
    checked: bool
    certificate: Certificate
    products: Products

    @property
    def null(self) -> torch.Tensor:
        """Bool (r,): triplets beyond the numerical rank of the operator."""
        return self.sigma == 0


def canonical_sign(v: torch.Tensor) -> torch.Tensor:
    """k tensors (k, ...) with signs such that the largest-magnitude entry of each is positive."""
    return v * signs(v).view(-1, *[1] * (v.ndim - 1))


def signs(v: torch.Tensor) -> torch.Tensor:
    """Signs (k,) of +-1 that `canonical_sign` applies to k tensors (k, ...)."""
    flat = v.flatten(1)
    peak = flat.gather(1, flat.abs().argmax(dim=1, keepdim=True)).squeeze(1)
    return torch.where(peak < 0, -1.0, 1.0).to(v.dtype)


def truncated_svd(
    op: LinearOperator,
    rank: int,
    *,
    generator: torch.Generator,
    tolerance: float = 1e-2,
    max_products: int | None = None,
    block: int = 2,
    probes: int = 2,
    start: torch.Tensor | None = None,
) -> TruncatedSVD:
    """Leading `rank` singular triplets of `op`, randomised block Krylov with residual stopping.

    Args:
        op: the operator; its `products` keep counting too.
        rank: number of triplets, 1 to min(prod(shape_in), prod(shape_out)).
        generator: the only source of randomness (start block).
        tolerance: largest residual relative to sigma_1 that counts as converged.
        max_products: budget of JVPs + VJPs; the default is 100 + 40 * rank.
        block: random vectors in the start block.
        probes: fresh random vectors that look for missed triplets at the end; 0 leaves that out.
        start: right vectors (k, *shape_in) near the answer, weighted by their norms, instead of the random block.

    Returns:
        The triplets with their evidence; nothing is hidden when the budget runs out: `converged` is False then.

    Raises:
        InputError: rank, tolerance, budget or start do not fit, or the operator returns values that are not finite, or
            transposed products that belong to another operator.
    """
    wanted = Wanted("operator", None, rank, tolerance)
    search = Search(op, [wanted], generator, max_products, (block, probes), None)
    search.run(start)
    return _result(search, wanted)


def masked_svds(
    op: LinearOperator,
    masks: Mapping[str, torch.Tensor],
    ranks: Mapping[str, int],
    *,
    generator: torch.Generator,
    tolerance: float | Mapping[str, float] = 1e-2,
    max_products: int | None = None,
    block: int = 1,
    probes: int = 1,
    max_basis: int | None = None,
    start: torch.Tensor | None = None,
) -> dict[str, TruncatedSVD]:
    """Leading singular triplets of M_i A for several masks at once, sharing every product with A and A^T.

    Args:
        op: the unmasked operator A, `shape_out` (C, H, W).
        masks: name -> (H, W) weights in [0, 1]; regions, complements, anything that broadcasts over `shape_out`.
        ranks: name -> rank; masks without a rank are left out.
        generator: the only source of randomness (start block).
        tolerance: one for all or one per name, relative to that mask's own sigma_1.
        max_products: budget of JVPs + VJPs for all masks together; the default is 100 + 40 * (sum of ranks).
        block: random vectors in the start block for each small mask, and as many for all large ones together.
        probes: fresh random vectors, counted likewise, that look for missed triplets at the end; 0 leaves that out.
        max_basis: most right (and left) basis vectors held; the default is 64 + 2 * (sum of ranks).
        start: right vectors (k, *shape_in) near the answer, weighted by their norms, instead of the random block.

    Returns:
        One result per mask, in the order of `masks`; all hold the same `products`.

    Raises:
        InputError: names or shapes differ, an empty mask, a rank larger than the space, or non-finite products.
    """
    if not ranks or not set(ranks) <= set(masks):
        raise InputError("ranks", sorted(ranks), f"at least one of the masks, {sorted(masks)}, and no other name")
    wanted = []
    for name, mask in masks.items():
        if name not in ranks:
            continue
        size = tuple(op.shape_out[-2:])
        if tuple(mask.shape) != size:
            raise InputError(f"mask {name}", f"shape {tuple(mask.shape)}", f"shape {size}")
        limit = float(tolerance.get(name, math.nan) if isinstance(tolerance, Mapping) else tolerance)
        weights = mask.to(device=op.device, dtype=torch.float64).expand(op.shape_out).flatten()
        if not bool(((weights >= 0) & (weights <= 1)).all()):  # false for NaN too
            raise InputError(f"mask {name}", "weights that are NaN, negative or above 1", "weights in [0, 1]")
        wanted.append(Wanted(name, weights, ranks[name], limit))
    search = Search(op, wanted, generator, max_products, (block, probes), max_basis)
    search.run(start)
    return {item.name: _result(search, item) for item in wanted}


def _result(search: Search, item: Wanted) -> TruncatedSVD:
    """The triplets of one wanted operator in the shapes of the operator, signs canonical."""
    u, v, residuals = search.triplets(item)
    sign = signs(v)[:, None]
    return TruncatedSVD(
        u=(u * sign).view(-1, *search.op.shape_out),
        sigma=item.sigma.to(search.dtype),
        v=(v * sign).view(-1, *search.op.shape_in),
        residuals=residuals,
        converged=residuals <= item.tolerance,
        tolerance=item.tolerance,
        checked=search.checked,
        certificate=search.certificate(item, residuals),
        products=search.spent,
    )
