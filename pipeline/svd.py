"""Truncated SVD of matrix-free operators, one or several masked ones at a time, every triplet with its evidence.

The method, a two-sided block Davidson search in which all masks share every product, is that of `pipeline.svd_search`.
Memory: (m + l) * (prod(shape_in) + prod(shape_out)) numbers of 4 bytes (8 for float64 operators) for m right and l
left basis vectors, each `max_basis` at most: 39 MB for 200 + 200 vectors of a 3x64x64 to 3x64x64 operator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
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
    `products`: everything spent, passes recomputed for want of memory too; one count shared by all results of a
    `masked_svds` call.
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
        max_products: budget of JVPs + VJPs; the default is 100 + 40 * rank. Recomputed passes come on top.
        block: random vectors in the start block.
        probes: fresh random vectors that look for missed triplets at the end; 0 leaves that out.
        start: right vectors (k, *shape_in) near the answer, weighted by their norms, instead of the random block.

    Returns:
        The triplets with their evidence; nothing is hidden when the budget runs out: `converged` is False then.

    Raises:
        InputError: rank, tolerance, budget, start or generator do not fit, or the operator returns values that are not
            finite, products of another shape, or transposed products that belong to another operator.
    """
    wanted = Wanted("operator", None, _whole("rank", rank), _number("tolerance", tolerance))
    return _result(_run(op, [wanted], generator, max_products, (block, probes), None, start), wanted)


def masked_svds(
    op: LinearOperator,
    masks: Mapping[str, torch.Tensor | np.ndarray],
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
        masks: name -> (H, W) weights in [0, 1], tensors or arrays, bool or numbers; regions, complements, anything.
        ranks: name -> rank, a whole number of any integer type; masks without a rank are left out.
        generator: the only source of randomness (start block).
        tolerance: one for all or one per name, relative to that mask's own sigma_1.
        max_products: budget of JVPs + VJPs for all masks together; the default is 100 + 40 * (sum of ranks).
        block: random vectors in the start block for each small mask, and as many for all large ones together.
        probes: fresh random vectors, counted likewise, that look for missed triplets at the end; 0 leaves that out.
        max_basis: most right (and left) basis vectors ever held; the default is 64 + 2 * (sum of ranks).
        start: right vectors (k, *shape_in) near the answer, weighted by their norms, instead of the random block.

    Returns:
        One result per mask, in the order of `masks`; all hold the same `products`.

    Raises:
        InputError: names or shapes differ, a mask that is empty or no weights, a rank that is no whole number or larger
            than the space, or what `truncated_svd` refuses.
    """
    for field, given in (("masks", masks), ("ranks", ranks)):
        if not isinstance(given, Mapping):
            raise InputError(field, type(given).__name__, "a mapping from names")
    if not ranks or not set(ranks) <= set(masks):
        known = sorted(map(str, masks))
        raise InputError("ranks", sorted(map(str, ranks)), f"at least one of the masks, {known}, and no other name")
    wanted = []
    for name in (name for name in masks if name in ranks):
        limit = tolerance.get(name, math.nan) if isinstance(tolerance, Mapping) else tolerance
        rank, limit = _whole(f"rank of {name}", ranks[name]), _number(f"tolerance of {name}", limit)
        wanted.append(Wanted(name, _weights(name, masks[name], op), rank, limit))
    search = _run(op, wanted, generator, max_products, (block, probes), max_basis, start)
    return {item.name: _result(search, item) for item in wanted}


def _run(
    op: LinearOperator,
    wanted: list[Wanted],
    generator: torch.Generator,
    max_products: int | None,
    randoms: tuple[int, int],
    max_basis: int | None,
    start: torch.Tensor | None,
) -> Search:
    """The search, done, with arguments of the right types."""
    if not isinstance(generator, torch.Generator):
        raise InputError("generator", type(generator).__name__, "a torch.Generator")
    budget = None if max_products is None else _whole("max_products", max_products)
    room = None if max_basis is None else _whole("max_basis", max_basis)
    block, probes = _whole("block", randoms[0]), _whole("probes", randoms[1])
    search = Search(op, wanted, generator, budget, (block, probes), room)
    search.run(None if start is None else _tensor("start", start))
    return search


def _whole(field: str, value: Any) -> int:
    """A whole number of any integer type; truth values and floats are none."""
    if not isinstance(value, bool) and getattr(value, "dtype", None) not in (torch.bool, np.dtype(bool)):
        try:
            return index(value)
        except TypeError:
            pass
    raise InputError(field, repr(value), "a whole number")


def _number(field: str, value: Any) -> float:
    if not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    raise InputError(field, repr(value), "a positive number")


def _tensor(field: str, value: Any) -> torch.Tensor:
    """A tensor of real numbers or truth values from anything that holds them."""
    if isinstance(value, torch.Tensor) and not value.is_complex():
        return value.detach()
    try:
        array = np.asarray(None if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError):  # lists of several lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise InputError(field, getattr(value, "dtype", type(value).__name__), "a tensor or array of real numbers")
    return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))


def _weights(name: str, mask: Any, op: LinearOperator) -> torch.Tensor:
    """Float64 weights (prod(shape_out),) of a mask (H, W)."""
    found, size = _tensor(f"mask {name}", mask), tuple(op.shape_out[-2:])
    if tuple(found.shape) != size:
        raise InputError(f"mask {name}", f"shape {tuple(found.shape)}", f"shape {size}")
    weights = found.to(device=op.device, dtype=torch.float64).expand(op.shape_out).flatten()
    if not bool(((weights >= 0) & (weights <= 1)).all()):  # false for NaN too
        raise InputError(f"mask {name}", "weights that are NaN, negative or above 1", "weights in [0, 1]")
    return weights


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
