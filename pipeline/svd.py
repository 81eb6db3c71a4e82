"""Truncated SVD of matrix-free operators, one or several masked ones at a time, by a two-sided block Davidson search.

All masked operators M_i A share one orthonormal search basis Q of the input space and the products Y = A Q, because
a mask only selects rows of Y: Rayleigh-Ritz for every M_i costs no product at all. The residuals
A^T M_i u - sigma v do need A^T. They come from a second orthonormal basis P of the output space with Z = A^T P: of all
left vectors only what P does not hold yet is multiplied, compressed to its leading directions first. Q grows by the
leading directions of the residuals not yet converged, which for one operator and one block is block Golub-Kahan with
full re-orthogonalisation (Golub and Kahan 1965; Musco and Musco 2015 for the randomised start).

Memory: (m + l) * (prod(shape_in) + prod(shape_out)) numbers of 4 bytes (8 for float64 operators) for m right and l
left basis vectors, each about `max_basis` at most: 39 MB for 200 + 200 vectors of a 3x64x64 to 3x64x64 operator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipeline.errors import InputError
from pipeline.operators import LinearOperator, Products

_FINE = 0.5  # share of a tolerance that the unseen part of a residual may take
_EXPAND = 0.5  # residual directions below this share of the tolerance are not worth a product
_DROP = 0.3  # directions this much weaker than the strongest one wait for a later round
_LARGE = 0.5  # masks over this share of the output are served by the common random start


@dataclass(frozen=True)
class TruncatedSVD:
    """Leading singular triplets of an operator A, strongest first, signs canonical (see `canonical_sign`).

    `u` (r, *shape_out) and `v` (r, *shape_in) have orthonormal rows, `sigma` (r,) is non-increasing.
    `residuals` (r,) is ||A^T u - sigma v|| / sigma_1: the part of A^T u computed with products, plus an estimate of
    what the rest can add at most. The other residual, ||A v - sigma u||, is zero up to rounding by construction.
    `converged` (r,) says residual <= tolerance: close to a singular triplet, not proof that no larger one was missed.
    Where the operator has numerical rank below r, the last triplets have sigma = 0, u = 0 and `null` True.
    `products`: everything spent, one count shared by all results of a `masked_svds` call.
    """

    u: torch.Tensor
    sigma: torch.Tensor
    v: torch.Tensor
    residuals: torch.Tensor
    converged: torch.Tensor
    tolerance: float
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
    oversample: int = 2,
    start: torch.Tensor | None = None,
) -> TruncatedSVD:
    """Leading `rank` singular triplets of `op`, randomised block Krylov with residual stopping.

    Args:
        op: the operator; its `products` keep counting too.
        rank: number of triplets, 1 to min(prod(shape_in), prod(shape_out)).
        generator: the only source of randomness (start block).
        tolerance: largest residual relative to sigma_1 that counts as converged.
        max_products: budget of JVPs + VJPs; the default is 100 + 40 * rank.
        oversample: extra random vectors in the start block.
        start: optional right vectors (k, *shape_in) expected to be near the answer, e.g. of a neighbouring timestep.

    Returns:
        The triplets with their evidence; nothing is hidden when the budget runs out: `converged` is False then.

    Raises:
        InputError: rank, tolerance, budget or start do not fit, or the operator returns values that are not finite.
    """
    wanted = _Wanted("operator", None, rank, tolerance)
    search = _Search(op, [wanted], generator, max_products, oversample, None)
    search.run(start)
    return search.result(wanted)


def masked_svds(
    op: LinearOperator,
    masks: Mapping[str, torch.Tensor],
    ranks: Mapping[str, int],
    *,
    generator: torch.Generator,
    tolerance: float | Mapping[str, float] = 1e-2,
    max_products: int | None = None,
    oversample: int = 2,
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
        oversample: extra random vectors per small mask in the start block.
        max_basis: most right (and left) basis vectors held; the default is 64 + 2 * (sum of ranks).
        start: optional right vectors (k, *shape_in) expected to be near the answer.

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
        limit = tolerance if isinstance(tolerance, int | float) else tolerance.get(name, math.nan)
        weights = mask.to(device=op.device, dtype=torch.float64).expand(op.shape_out).flatten()
        wanted.append(_Wanted(name, weights, ranks[name], limit))
    search = _Search(op, wanted, generator, max_products, oversample, max_basis)
    search.run(start)
    return {item.name: search.result(item) for item in wanted}


class _Wanted:
    """One masked operator: what is wanted of it, its projected Gram matrix and its current Ritz triplets."""

    def __init__(self, name: str, weights: torch.Tensor | None, rank: int, tolerance: float) -> None:
        self.name, self.weights, self.rank, self.tolerance = name, weights, rank, tolerance
        self.support = None if weights is None else weights.nonzero().squeeze(1)
        self.gram = torch.zeros(0, 0, dtype=torch.float64)
        self.sigma = torch.zeros(0, dtype=torch.float64)  # (rank,)
        self.coefficients = torch.zeros(0, 0, dtype=torch.float64)  # (rank, m): v = coefficients @ Q

    def validate(self, n_in: int, n_out: int) -> None:
        rows = n_out if self.support is None else len(self.support)
        if rows == 0:
            raise InputError(f"mask {self.name}", "an empty mask", "at least one pixel")
        if not 1 <= self.rank <= min(n_in, rows):
            raise InputError(f"rank of {self.name}", self.rank, f"1 to {min(n_in, rows)}, the smaller dimension")
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise InputError(f"tolerance of {self.name}", self.tolerance, "a positive number")

    def select(self, y: torch.Tensor) -> torch.Tensor:
        """Masked rows (k, support) of y (k, n_out) in float64."""
        if self.support is None or self.weights is None:
            return y.double()
        return y[:, self.support].double() * self.weights[self.support]

    def grow(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """Extend the Gram matrix of M Q-images by those of `new` (b, n_out)."""
        selected = self.select(new)
        side, corner = self.select(old) @ selected.T, selected @ selected.T
        self.gram = torch.cat([torch.cat([self.gram.to(side), side], 1), torch.cat([side.T, corner], 1)])

    def ritz(self, null: float) -> None:
        """Rayleigh-Ritz on the basis; values under `null` * sigma_1 are rounding and become exact zeros."""
        values, vectors = torch.linalg.eigh(self.gram)
        sigma = values.flip(0).clamp(min=0.0).sqrt()[: self.rank]
        self.sigma = torch.where(sigma > null * sigma[0], sigma, 0.0)
        self.coefficients = vectors.flip(1).T[: self.rank]

    def left(self, y: torch.Tensor) -> torch.Tensor:
        """Left vectors u (rank, n_out); zero for null triplets."""
        scale = torch.where(self.sigma > 0, 1.0 / self.sigma.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        return self.masked((self.coefficients * scale[:, None]).to(y.dtype) @ y)

    def masked(self, rows: torch.Tensor) -> torch.Tensor:
        """M rows (k, n_out)."""
        return rows if self.weights is None else rows * self.weights.to(rows.dtype)


def _leading(rows: torch.Tensor, threshold: float, most: int) -> torch.Tensor:
    """Orthonormal directions (k <= most, n) of `rows` (j, n) with singular value over `threshold`, strongest first."""
    wide = rows.double()
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    values, vectors = values.flip(0)[:most].clamp(min=0.0).sqrt(), vectors.flip(1)[:, :most]
    # 1e-6: below it a direction of float32 rows is rounding, and normalising it would add noise to the basis.
    keep = (values > threshold) & (values > 1e-6 * values[:1])
    return ((vectors[:, keep] / values[keep]).T @ wide).to(rows.dtype)


def _orthonormal(block: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Rows of `block` (b, n) made orthonormal and orthogonal to the rows of `basis`; twice is enough."""
    for _ in range(2):
        block = torch.linalg.qr((block - (block @ basis.T) @ basis).T)[0].T
    return block.contiguous()


def _finite(block: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not bool(torch.isfinite(block).all()):
        raise InputError("operator", "a product with NaN or infinite entries", "finite products", "Check the model")
    return block.flatten(1).to(dtype)


class _Search:
    """The state of one search: bases Q, Y = A Q and P, Z = A^T P, the wanted operators, the budget."""

    def __init__(
        self,
        op: LinearOperator,
        wanted: list[_Wanted],
        generator: torch.Generator,
        max_products: int | None,
        oversample: int,
        max_basis: int | None,
    ) -> None:
        self.op, self.wanted, self.generator, self.oversample = op, wanted, generator, oversample
        self.n_in, self.n_out = math.prod(op.shape_in), math.prod(op.shape_out)
        for item in wanted:
            item.validate(self.n_in, self.n_out)
        total = sum(item.rank for item in wanted)
        self.most = max(item.rank for item in wanted)
        self.max_basis = 64 + 2 * total if max_basis is None else max_basis
        if self.max_basis < 2 * self.most or oversample < 0:
            raise InputError("max_basis, oversample", (self.max_basis, oversample), f"at least {2 * self.most} and 0")
        self.budget = 100 + 40 * total if max_products is None else max_products
        if self.budget < 2 * self.most:  # one block of noise through A^T, and the basis it gives through A
            raise InputError("max_products", self.budget, f"at least twice the largest rank, {2 * self.most}")
        double = op.dtype == torch.float64
        self.dtype, self.null = (torch.float64, 1e-7) if double else (torch.float32, 5e-6)
        self.spent = Products()
        empty = torch.zeros(0, max(self.n_in, self.n_out), dtype=self.dtype, device=op.device)
        self.q, self.z = empty[:, : self.n_in], empty[:, : self.n_in]
        self.y, self.p = empty[:, : self.n_out], empty[:, : self.n_out]
        self.total = _Wanted("total", None, 1, 1.0)
        self.gain = 0.0  # estimate of ||A^T|| on left directions outside P; 0 before the first left block
        self.residual = self.unseen = torch.zeros(0)

    def _random(self, count: int, n: int) -> torch.Tensor:
        noise = torch.randn((count, n), generator=self.generator, device=self.generator.device)
        return noise.to(self.q)

    @property
    def left_over(self) -> int:
        return self.budget - self.spent.total

    def _forward(self, block: torch.Tensor) -> torch.Tensor:
        self.spent.jvp += len(block)
        return _finite(self.op.matvec(block.to(self.op.dtype).view(-1, *self.op.shape_in)), self.dtype)

    def _backward(self, block: torch.Tensor) -> torch.Tensor:
        self.spent.vjp += len(block)
        return _finite(self.op.rmatvec(block.to(self.op.dtype).view(-1, *self.op.shape_out)), self.dtype)

    def _add_right(self, block: torch.Tensor) -> None:
        """Append directions (b, n_in) to Q, their products to Y and to every Gram matrix."""
        if len(block := _orthonormal(block[: min(self.left_over, self.n_in - len(self.q))], self.q)) == 0:
            return
        image = self._forward(block)
        for item in (*self.wanted, self.total):
            item.grow(self.y, image)
        self.q, self.y = torch.cat([self.q, block]), torch.cat([self.y, image])

    def _add_left(self, rows: torch.Tensor, threshold: float) -> None:
        """Append to P what `rows` (j, n_out), orthogonal to P already, hold above `threshold` (units of `rows`)."""
        block = _orthonormal(_leading(rows, threshold, min(self.left_over, self.n_out - len(self.p))), self.p)
        if len(block) == 0:
            return
        image = self._backward(block)
        # Later blocks hold the weaker rest of the same vectors: their measured gain bounds the neglected part well.
        self.gain = max(1.5 * float(torch.linalg.matrix_norm(image, 2)), 0.5 * self.gain)
        self.p, self.z = torch.cat([self.p, block]), torch.cat([self.z, image])

    def _begin(self, start: torch.Tensor | None) -> None:
        """First block: the given start, and A^T of noise inside each small mask and over the whole output."""
        if start is not None:
            if tuple(start.shape[1:]) != tuple(self.op.shape_in) or not bool(torch.isfinite(start).all()):
                raise InputError("start", f"shape {tuple(start.shape)}", f"finite, (k, *{tuple(self.op.shape_in)})")
            rows = start.flatten(1).to(device=self.op.device, dtype=self.dtype)
            self._add_right(_leading(rows, 0.0, self.max_basis // 2))
        common, blocks = 0, []
        for item in self.wanted:
            count = self.oversample + (item.rank if start is None else 0)
            if item.weights is None or float(item.weights.mean()) > _LARGE:
                common = max(common, count)
            else:
                blocks.append(item.masked(self._random(count, self.n_out)))
        noise = torch.cat([self._random(common, self.n_out), *blocks])[: self.left_over // 2]
        if len(noise):
            image = self._backward(_leading(noise, 0.0, len(noise)))
            image = image - (image @ self.q.T) @ self.q
            self._add_right(_leading(image, 0.0, self.max_basis))
        # A rank-deficient operator may leave fewer directions than asked for: random ones complete the basis.
        if len(self.q) < self.most:
            self._add_right(self._random(self.most - len(self.q), self.n_in))

    def _measure(self, left: torch.Tensor) -> torch.Tensor:
        """Residual rows (j, n_in) outside Q in units of their tolerance; sets `residual` and `unseen` (j,)."""
        inside = left @ self.p.T
        rows = inside @ self.z
        # By Rayleigh-Ritz the true residual is orthogonal to Q, sigma v included; what remains is the residual.
        for _ in range(2):
            rows = rows - (rows @ self.q.T) @ self.q
        rows = rows * self.scale[:, None]
        self.residual = rows.norm(dim=1)
        self.unseen = self._outside(left).norm(dim=1) * self.scale * (self.gain or self.norm)
        return rows

    def _outside(self, left: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            left = left - (left @ self.p.T) @ self.p
        return left

    def _rayleigh_ritz(self) -> torch.Tensor:
        """Ritz triplets of every wanted operator; returns the masked left vectors M u (j, n_out)."""
        for item in (*self.wanted, self.total):
            item.ritz(self.null)
        self.norm = 1.1 * float(self.total.sigma[0])
        units = [item.tolerance * float(item.sigma[0]) or math.inf for item in self.wanted]
        scales = [torch.full((item.rank,), 1.0 / unit) for item, unit in zip(self.wanted, units, strict=True)]
        self.scale = torch.cat(scales).to(self.q)
        return torch.cat([item.masked(item.left(self.y)) for item in self.wanted])

    def _cover(self, left: torch.Tensor) -> torch.Tensor:
        """Grow P until every residual is known well enough to tell converged from not; returns the residual rows."""
        rows = self._measure(left)
        doubtful = self.unseen > torch.maximum(0.5 * self.residual, torch.full_like(self.residual, _FINE))
        while bool(doubtful.any()) and self.left_over > 0:
            gain = self.gain or self.norm
            weighted = self._outside(left[doubtful]) * (self.scale[doubtful] * gain)[:, None]
            before = len(self.p)
            self._add_left(weighted, max(_FINE, 0.2 * float(self.unseen.max())))
            if len(self.p) == before:
                break
            rows = self._measure(left)
            near = (self.residual <= 1.0) & (self.residual + self.unseen > 1.0) & (self.unseen > _FINE)
            doubtful = near | (self.unseen > self.residual.clamp(min=1.0))
        return rows

    def _restart(self, left: torch.Tensor, room: int) -> None:
        """Shrink both bases to the span of the wanted vectors when the next block would not fit; no products."""
        if len(self.q) + room > self.max_basis:
            keep = _leading(torch.cat([item.coefficients for item in self.wanted]), 1e-3, self.max_basis - room)
            for item in (*self.wanted, self.total):
                item.gram = keep @ item.gram @ keep.T
            turn = keep.to(self.dtype)
            self.q, self.y = turn @ self.q, turn @ self.y
        if len(self.p) > self.max_basis:
            turn = _leading(left @ self.p.T, 1e-3, self.max_basis // 2)
            self.p, self.z = turn @ self.p, turn @ self.z

    def run(self, start: torch.Tensor | None) -> None:
        """Search until every wanted triplet has converged, the budget is spent or nothing is left to add."""
        self._begin(start)
        while True:
            left = self._rayleigh_ritz()
            rows = self._cover(left)
            unfinished = self.residual + self.unseen > 1.0
            if not bool(unfinished.any()) or self.left_over <= 0:
                return
            worth = max(_EXPAND, _DROP * float(self.residual.max()))
            block = _leading(rows[unfinished], worth, min(self.max_basis // 2, self.most * 2))
            if len(block) == 0 or len(self.q) == self.n_in:
                return
            self._restart(left, len(block))
            self._add_right(block)

    def result(self, item: _Wanted) -> TruncatedSVD:
        """The triplets of one wanted operator in the shapes of the operator."""
        offset = sum(other.rank for other in self.wanted[: self.wanted.index(item)])
        u, v = item.left(self.y), item.coefficients.to(self.dtype) @ self.q
        sign = signs(v)[:, None]
        residuals = (self.residual + self.unseen)[offset : offset + item.rank] * item.tolerance
        return TruncatedSVD(
            u=(u * sign).view(-1, *self.op.shape_out),
            sigma=item.sigma.to(self.dtype),
            v=(v * sign).view(-1, *self.op.shape_in),
            residuals=residuals,
            converged=residuals <= item.tolerance,
            tolerance=item.tolerance,
            products=self.spent,
        )
