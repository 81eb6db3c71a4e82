"""The one operator contract: matrix-free linear maps between tensor spaces, applied to blocks of k vectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch


@dataclass
class Products:
    """How many single-vector products were spent: the cost unit of everything that follows.

    `recomputed` counts forward passes of one image made again because the graph of a VJP did not fit in memory.
    """

    jvp: int = 0
    vjp: int = 0
    recomputed: int = 0

    @property
    def total(self) -> int:
        return self.jvp + self.vjp

    def __add__(self, other: Products) -> Products:
        return Products(self.jvp + other.jvp, self.vjp + other.vjp, self.recomputed + other.recomputed)


class LinearOperator(Protocol):
    """A linear map A from tensors of `shape_in` to tensors of `shape_out`; `products` counts what was spent."""

    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    products: Products

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        """(k, *shape_in) -> (k, *shape_out): A v for each of k vectors. Cost: k JVPs."""
        ...

    def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
        """(k, *shape_out) -> (k, *shape_in): A^T u for each of k vectors. Cost: k VJPs."""
        ...


@dataclass
class Masked:
    """M A: the operator with its output multiplied by a mask (H, W) broadcast over `shape_out` (C, H, W)."""

    base: LinearOperator
    mask: torch.Tensor
    products: Products = field(init=False)

    def __post_init__(self) -> None:
        self.shape_in, self.shape_out = self.base.shape_in, self.base.shape_out
        self.dtype, self.device, self.products = self.base.dtype, self.base.device, self.base.products
        self.mask = self.mask.to(device=self.device, dtype=self.dtype)

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        return self.base.matvec(v) * self.mask

    def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
        return self.base.rmatvec(u * self.mask)


@dataclass
class Projected:
    """A (I - N N^T): the operator restricted to the orthogonal complement of the rows of `null` (n, *shape_in)."""

    base: LinearOperator
    null: torch.Tensor
    products: Products = field(init=False)

    def __post_init__(self) -> None:
        self.shape_in, self.shape_out = self.base.shape_in, self.base.shape_out
        self.dtype, self.device, self.products = self.base.dtype, self.base.device, self.base.products

    def _project(self, v: torch.Tensor) -> torch.Tensor:
        flat, null = v.flatten(1), self.null.flatten(1)
        return (flat - (flat @ null.T) @ null).view_as(v)

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        return self.base.matvec(self._project(v))

    def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
        return self._project(self.base.rmatvec(u))


@dataclass
class Dense:
    """A given matrix (prod(shape_out), prod(shape_in)) as an operator: the truth in tests, small cores in JIVE."""

    matrix: torch.Tensor
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    products: Products = field(default_factory=Products)

    def __post_init__(self) -> None:
        self.dtype, self.device = self.matrix.dtype, self.matrix.device

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        self.products.jvp += len(v)
        return (v.flatten(1) @ self.matrix.T).view(len(v), *self.shape_out)

    def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
        self.products.vjp += len(u)
        return (u.flatten(1) @ self.matrix).view(len(u), *self.shape_in)
