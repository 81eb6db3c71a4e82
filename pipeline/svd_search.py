"""Truncated SVD of matrix-free operators, one or several masked ones at a time, by a two-sided block Davidson search.

All masked operators M_i A share one orthonormal search basis Q of the input space and the products Y = A Q, because
a mask only selects rows of Y: Rayleigh-Ritz for every M_i costs no product at all. The residuals
A^T M_i u - sigma v do need A^T. They come from a second orthonormal basis P of the output space with Z = A^T P: of all
left vectors only what P does not hold yet is multiplied, compressed to its leading directions first. Q grows by the
leading directions of the residuals not yet converged, which for one operator and one block is block Golub-Kahan with
full re-orthogonalisation (Golub and Kahan 1965; Musco and Musco 2015 for the randomised start). The start is as small
as one vector per mask: every product buys most when it deepens the Krylov space (Chen, Epperly, Meyer, Musco and Rao
2025). Later the bases grow by wide blocks, since a pass of few vectors is dear. While any residual is known to be far
from its tolerance, the others need not be known at all, which saves products with A^T. What a small start may miss, a
second copy of a multiple singular value, fresh random vectors look for before the search ends.
"""

from __future__ import annotations

import math

import torch

from pipeline.certificate import Certificate, certify
from pipeline.errors import InputError
from pipeline.operators import LinearOperator, Products

_FINE = 0.5  # share of a tolerance that the unseen part of a residual may take
_EXPAND = 0.5  # residual directions below this share of the tolerance are not worth a product
_DROP = 0.3  # directions this much weaker than the strongest one wait for a later round
_FAR = 1.3  # a residual this many times its tolerance calls for a larger basis before the others are known
_GROWTH, _SHARE = 10, 2  # directions by which a basis grows: at least so many, and so often the largest rank
_LARGE = 0.5  # masks over this share of the output are served by the common random start
_ADJOINT = 0.1  # relative difference between u^T (A v) and (A^T u)^T v over both bases that no rounding explains
_PAIR = 0.2  # the same for one random pair, in units of the standard deviation of either side
_ROUNDING = 16.0  # unit roundings of sigma_1 below which no residual is known
_RISE = 0.25  # a wanted value that fresh vectors raise by more than this share of its tolerance hides a missed one
_POWER = 2  # passes A^T, A that fresh vectors take before they are compared with what was found


class Wanted:
    """One masked operator: what is wanted of it, its projected Gram matrix and its current Ritz triplets."""

    def __init__(self, name: str, weights: torch.Tensor | None, rank: int, tolerance: float) -> None:
        self.name, self.weights, self.rank, self.tolerance = name, weights, rank, tolerance
        self.support = None if weights is None else weights.nonzero().squeeze(1)
        self.gram = torch.zeros(0, 0, dtype=torch.float64)
        self.sigma = torch.zeros(0, dtype=torch.float64)  # (rank,)
        self.coefficients = torch.zeros(0, 0, dtype=torch.float64)  # (rank, m): v = coefficients @ Q
        self.next = torch.zeros(0, dtype=torch.float64), self.coefficients  # the triplet after the wanted, if any

    def validate(self, n_in: int, n_out: int) -> None:
        rows = n_out if self.support is None else len(self.support)
        if rows == 0:
            raise InputError(f"mask {self.name}", "an empty mask", "at least one pixel", "Leave it out.")
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
        sigma = values.flip(0).clamp(min=0.0).sqrt()[: self.rank + 1]
        sigma = torch.where(sigma > null * sigma[0], sigma, 0.0)
        rows = vectors.flip(1).T
        self.sigma, self.coefficients = sigma[: self.rank], rows[: self.rank]
        self.next = sigma[self.rank :], rows[self.rank : self.rank + 1]

    def left(self, y: torch.Tensor) -> torch.Tensor:
        """Left vectors u (rank, n_out); zero for null triplets."""
        return self._left(self.sigma, self.coefficients, y)

    def next_left(self, y: torch.Tensor) -> torch.Tensor:
        """Left vector (0 or 1, n_out) of the triplet after the wanted ones."""
        return self._left(*self.next, y)

    def _left(self, sigma: torch.Tensor, coefficients: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        scale = torch.where(sigma > 0, 1.0 / sigma.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        return self.masked((coefficients * scale[:, None]).to(y.dtype) @ y)

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


def _finite(block: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Products as rows of `shape` (k, n)."""
    if block.ndim < 1 or len(block) != shape[0] or block.numel() != shape[0] * shape[1]:
        raise InputError("operator", f"products {tuple(block.shape)}", f"{shape[0]} of {shape[1]} entries each")
    if not bool(torch.isfinite(block).all()):
        raise InputError("operator", "a product with NaN or infinite entries", "finite products", "Check the model")
    return block.reshape(shape).to(dtype)


class Search:
    """The state of one search: bases Q, Y = A Q and P, Z = A^T P, the wanted operators, the budget."""

    def __init__(
        self,
        op: LinearOperator,
        wanted: list[Wanted],
        generator: torch.Generator,
        max_products: int | None,
        randoms: tuple[int, int],
        max_basis: int | None,
    ) -> None:
        self.op, self.wanted, self.generator = op, wanted, generator
        self.block, self.probes = randoms
        self.n_in, self.n_out = math.prod(op.shape_in), math.prod(op.shape_out)
        for item in wanted:
            item.validate(self.n_in, self.n_out)
        self.ranks = total = sum(item.rank for item in wanted)
        self.most = max(item.rank for item in wanted)
        self.max_basis = 64 + 2 * total if max_basis is None else max_basis
        least = total + max(2 * self.most, _POWER * self.probes * (1 + len(wanted)))
        if self.max_basis < least:
            raise InputError("max_basis", self.max_basis, f"at least {least}, the ranks together and room for a block")
        if self.block < 1 or self.probes < 0:
            raise InputError("block, probes", randoms, "at least 1 random vector to start with, 0 to check with")
        self.budget = 100 + 40 * total if max_products is None else max_products
        if self.budget < 2 * self.most:  # one block of noise through A^T, and the basis it gives through A
            raise InputError("max_products", self.budget, f"at least twice the largest rank, {2 * self.most}")
        double = op.dtype == torch.float64
        self.dtype, self.null = (torch.float64, 1e-7) if double else (torch.float32, 5e-6)
        self.spent = Products()
        empty = torch.zeros(0, max(self.n_in, self.n_out), dtype=self.dtype, device=op.device)
        self.q, self.z = empty[:, : self.n_in], empty[:, : self.n_in]
        self.y, self.p = empty[:, : self.n_out], empty[:, : self.n_out]
        self.total = Wanted("total", None, 1, 1.0)
        self.small = [w for w in wanted if w.weights is not None and float(w.weights.mean()) <= _LARGE]
        self.checked = False
        self.gain = 0.0  # estimate of ||A^T|| on left directions outside P; 0 before the first left block
        self.residual = self.unseen = torch.zeros(0)

    def _random(self, count: int, n: int) -> torch.Tensor:
        noise = torch.randn((count, n), generator=self.generator, device=self.generator.device)
        return noise.to(self.q)

    @property
    def left_over(self) -> int:
        """Products left, less those that are needed to complete the basis to the largest rank."""
        return self.budget - self.spent.total - max(0, self.most - len(self.q))

    @property
    def growth(self) -> int:
        """Directions by which Q and P grow at a time; they leave room for all wanted vectors.

        Smaller steps save products, and cost more time than they save: passes of few vectors are dear.
        """
        return min(max(_GROWTH, _SHARE * self.most), self.max_basis - self.ranks)

    def _forward(self, block: torch.Tensor) -> torch.Tensor:
        self.spent.jvp += len(block)
        image = self.op.matvec(block.to(self.op.dtype).view(-1, *self.op.shape_in))
        return _finite(image, (len(block), self.n_out), self.dtype)

    def _backward(self, block: torch.Tensor) -> torch.Tensor:
        self.spent.vjp += len(block)
        before = self.op.products.recomputed
        image = self.op.rmatvec(block.to(self.op.dtype).view(-1, *self.op.shape_out))
        self.spent.recomputed += self.op.products.recomputed - before
        return _finite(image, (len(block), self.n_in), self.dtype)

    def _add_right(self, block: torch.Tensor) -> None:
        """Append directions (b, n_in) to Q, their products to Y and to every Gram matrix."""
        room = min(self.budget - self.spent.total, min(self.n_in, self.max_basis) - len(self.q))
        if len(block := _orthonormal(block[:room], self.q)) == 0:
            return
        image = self._forward(block)
        for item in (*self.wanted, self.total):
            item.grow(self.y, image)
        self.q, self.y = torch.cat([self.q, block]), torch.cat([self.y, image])

    def _add_left(self, rows: torch.Tensor, threshold: float, left: torch.Tensor) -> bool:
        """Append to P what `rows` (j, n_out), orthogonal to P already, hold above `threshold` (units of `rows`).

        Where P is full, it shrinks to the span of the wanted `left` first. False where nothing was worth a product.
        """
        block = _leading(rows, threshold, min(self.growth, self.left_over, self.n_out - len(self.p)))
        if len(block) == 0:
            return False
        if len(self.p) + len(block) > self.max_basis:
            turn = _leading(left @ self.p.T, 1e-3, self.max_basis - len(block))
            self.p, self.z = turn @ self.p, turn @ self.z
        block = _orthonormal(block, self.p)
        image = self._backward(block)
        # Later blocks hold the weaker rest of the same vectors: their measured gain bounds the neglected part well.
        self.gain = max(1.5 * float(torch.linalg.matrix_norm(image, 2)), 0.5 * self.gain)
        self.p, self.z = torch.cat([self.p, block]), torch.cat([self.z, image])
        return True

    def _noise(self, count: int) -> list[torch.Tensor]:
        """`count` random left vectors inside each small mask, and as many over all of the output for the large ones."""
        everywhere = [self._random(count, self.n_out)] if len(self.small) < len(self.wanted) else []
        return [*everywhere, *(item.masked(self._random(count, self.n_out)) for item in self.small)]

    def _begin(self, start: torch.Tensor | None) -> None:
        """First block: the given start, or A^T of noise inside each small mask and over the whole output."""
        if start is not None:
            if start.ndim == 0 or tuple(start.shape[1:]) != tuple(self.op.shape_in):
                raise InputError("start", f"shape {tuple(start.shape)}", f"(k, *{tuple(self.op.shape_in)})")
            if not bool(torch.isfinite(start).all()):
                raise InputError("start", "NaN or infinite entries", "finite vectors")
            rows = start.flatten(1).to(device=self.op.device, dtype=self.dtype)
            self._add_right(_leading(rows, 0.0, self.max_basis // 2))
        if len(self.q) == 0:
            noise = torch.cat(self._noise(self.block))[: self.left_over // 2]
            self._add_right(_leading(self._backward(_leading(noise, 0.0, len(noise))), 0.0, self.max_basis))
        if len(self.q) == 0:  # a zero operator, as far as the noise can tell
            self._add_right(self._random(self.most, self.n_in))

    def _complete(self) -> None:
        """Random directions where the basis has stopped short of the largest rank: an operator of lower rank."""
        if len(self.q) < self.most:
            self._add_right(self._random(self.most - len(self.q), self.n_in))
            self._measure(self._rayleigh_ritz())

    def _missed(self) -> bool:
        """Take fresh random vectors through A^T and A: does a wanted value rise?"""
        known = [item.sigma for item in self.wanted]
        parts: list[Wanted | None] = [*([None] if len(self.small) < len(self.wanted) else []), *self.small]
        rows = self._noise(self.probes)
        for _ in range(_POWER):
            held = len(self.q)
            image = self._backward(torch.cat(rows)[: self.left_over // 2])
            self._add_right(_orthonormal(image, self.q))
            fresh = self.y[held:].split(self.probes)
            rows = [y if part is None else part.masked(y) for part, y in zip(parts, fresh, strict=False)]
            rows = [y / y.norm(dim=1, keepdim=True).clamp(min=1e-30) for y in rows]
            if not rows:
                break
        self._rayleigh_ritz()
        limits = [_RISE * item.tolerance * float(item.sigma[0]) for item in self.wanted]
        return any(
            bool((item.sigma - before > limit).any())
            for item, before, limit in zip(self.wanted, known, limits, strict=True)
        )

    def _measure(self, left: torch.Tensor) -> torch.Tensor:
        """Residual rows (j, n_in) outside Q in units of their tolerance; sets `residual` and `unseen` (j,)."""
        inside = left @ self.p.T
        rows = inside @ self.z
        # By Rayleigh-Ritz the true residual is orthogonal to Q, sigma v included; what remains is the residual, and
        # inside Q what the transposed products are off the forward ones: no more than rounding where both are exact.
        along = rows @ self.q.T
        mismatch = along - (inside @ self.p) @ self.y.T
        rows = rows - along @ self.q
        rows = rows - (rows @ self.q.T) @ self.q
        rows = rows * self.scale[:, None]
        self.residual = (rows.square().sum(1) + (mismatch.norm(dim=1) * self.scale).square()).sqrt()
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
        scales = [torch.full_like(item.sigma, 1.0 / unit) for item, unit in zip(self.wanted, units, strict=True)]
        self.scale = torch.cat(scales).to(self.q)
        return torch.cat([item.masked(item.left(self.y)) for item in self.wanted])

    def _cover(self, left: torch.Tensor) -> torch.Tensor:
        """Grow P until a residual is known to be far from its tolerance, or every one well enough to tell converged
        from not; returns the residual rows.
        """
        rows = self._measure(left)
        doubtful = self.unseen > torch.maximum(0.5 * self.residual, torch.full_like(self.residual, _FINE))
        while bool(doubtful.any()) and self.left_over > 0:
            gain = self.gain or self.norm
            weighted = self._outside(left[doubtful]) * (self.scale[doubtful] * gain)[:, None]
            if not self._add_left(weighted, max(_FINE, 0.2 * float(self.unseen.max())), left):
                break
            rows = self._measure(left)
            if float(self.residual.max()) > _FAR:
                break
            near = (self.residual <= 1.0) & (self.residual + self.unseen > 1.0) & (self.unseen > _FINE)
            doubtful = near | (self.unseen > self.residual.clamp(min=1.0))
        return rows

    def _restart(self, room: int) -> None:
        """Shrink Q to the span of the wanted vectors when the next block would not fit; no products."""
        if len(self.q) + room > self.max_basis:
            keep = _leading(torch.cat([item.coefficients for item in self.wanted]), 1e-3, self.max_basis - room)
            for item in (*self.wanted, self.total):
                item.gram = keep @ item.gram @ keep.T
            turn = keep.to(self.dtype)
            self.q, self.y = turn @ self.q, turn @ self.y

    def _check_pair(self) -> None:
        """Compare u^T (A v) with (A^T u)^T v for one random pair, which also sees what A^T drops for good."""
        if self.left_over < 2 * self.most + 2:
            return
        v, u = self._random(1, self.n_in), self._random(1, self.n_out)
        image, back = self._forward(v), self._backward(u)
        size = max(float(image.norm()) * float(u.norm()) / self.n_out**0.5, float(back.norm()))
        self._compare(float((u * image).sum() - (back * v).sum()), size, _PAIR)

    def _check_adjoint(self) -> None:
        """Compare u^T (A v) with (A^T u)^T v for all vectors at hand, which costs no product."""
        forth, back = self.p @ self.y.T, self.z @ self.q.T
        self._compare(float((forth - back).norm()), max(float(forth.norm()), float(back.norm())), _ADJOINT)

    def _compare(self, difference: float, size: float, limit: float) -> None:
        gap = abs(difference) / size if size > 0 else 0.0
        if gap > limit:
            raise InputError(
                "operator",
                f"transposed products that differ from the forward ones by {gap:.0%}",
                "rmatvec to be the transpose of matvec",
                "Check both on random vectors: <u, A v> = <A^T u, v>.",
            )

    def run(self, start: torch.Tensor | None) -> None:
        """The whole search; afterwards every wanted operator has its triplets, converged or not."""
        self._check_pair()
        self._begin(start)
        self._search()
        self._complete()
        self._check_adjoint()

    def _search(self) -> None:
        """Grow both bases until every wanted triplet has converged and been checked, or nothing is left to spend."""
        while True:
            left = self._rayleigh_ritz()
            rows = self._cover(left)
            unfinished = self.residual + self.unseen > 1.0
            if self.left_over <= 0:
                return
            if not bool(unfinished.any()) and len(self.q) >= self.most:
                fresh = _POWER * self.probes * (1 + len(self.small))
                if self.checked or self.probes == 0 or self.left_over < 2 * fresh or len(self.q) == self.n_in:
                    self.checked |= len(self.q) == self.n_in
                    return
                self._restart(fresh)
                self.checked = not self._missed()
                continue
            worth = max(_EXPAND, _DROP * float(self.residual.max()))
            wide = rows if len(self.q) < self.most else rows[unfinished]
            block = _leading(wide, worth, self.growth)
            if len(block) == 0 and len(self.q) < self.most:
                self._complete()
                continue
            if len(block) == 0 or len(self.q) == self.n_in:
                return
            self._restart(len(block))
            self._add_right(block)

    def certificate(self, item: Wanted, residuals: torch.Tensor) -> Certificate:
        """The certificate of one wanted operator; the triplet after its wanted ones counts as a neighbour."""
        beyond = item.next_left(self.y)
        rows = (beyond @ self.p.T) @ self.z
        rows = rows - (rows @ self.q.T) @ self.q
        error = rows.norm(dim=1) + self._outside(beyond).norm(dim=1) * (self.gain or self.norm)
        every = torch.cat([residuals.double() * float(item.sigma[0]), error.double()])
        every = every.clamp(min=_ROUNDING * torch.finfo(self.dtype).eps * float(item.sigma[0]))
        return certify(torch.cat([item.sigma, item.next[0]]), every, item.rank)

    def triplets(self, item: Wanted) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Left (rank, n_out) and right vectors (rank, n_in) of one wanted operator, residuals over sigma_1 (rank,)."""
        offset = sum(other.rank for other in self.wanted[: self.wanted.index(item)])
        residuals = (self.residual + self.unseen)[offset : offset + item.rank] * item.tolerance
        return item.left(self.y), item.coefficients.to(self.dtype) @ self.q, residuals
