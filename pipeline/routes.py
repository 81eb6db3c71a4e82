"""Other ways to a product than the exact ones, and what every way costs, measured.

Exact products (`pipeline.jacobian`) are the default and the final word: a difference of two network passes is a route
only where its measured error allows it, and triplets found with it are as good as their last exact residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.errors import InputError
from pipeline.jacobian import JacobianOperator, checked, seconds_per_vector
from pipeline.memory import Blocks

Scheme = Literal["central", "forward"]
_VECTORS = 4  # random vectors that an error is measured on


class Difference:
    """J v by differences of the network over a step along v; J^T u stays the exact operator's. A `LinearOperator`.

    The step is `step` * ||point|| / ||v|| for each v. Rounding and curvature decide the error, which is measured at
    the start: `error` is the largest ||J v - found|| / ||J v|| over fresh normal vectors.

    Args:
        exact: the operator that it stands in for; its `products` go on counting, a difference as one JVP.
        tolerance: largest measured error that is accepted.
        generator: of the vectors the error is measured on.
        scheme: "central", two passes a product, or "forward", one.
        step: relative to the point's norm; the default balances rounding and curvature for the scheme and dtype.

    Cost of making it: 4 products each way.

    Raises:
        InputError: the measured error exceeds the tolerance, or the step is not positive.
    """

    def __init__(
        self,
        exact: JacobianOperator,
        tolerance: float,
        *,
        generator: torch.Generator,
        scheme: Scheme = "central",
        step: float | None = None,
    ) -> None:
        self._exact, self._central = exact, scheme == "central"
        self._step = torch.finfo(exact.dtype).eps ** (1 / 3 if self._central else 1 / 2) if step is None else step
        if not self._step > 0:
            raise InputError("step", step, "a positive number")
        self.shape_in, self.shape_out = exact.shape_in, exact.shape_out
        self.dtype, self.device, self.products = exact.dtype, exact.device, exact.products
        v = torch.randn((_VECTORS, *self.shape_in), generator=generator, device=generator.device).to(exact.point)
        truth = exact.matvec(v).flatten(1)
        errors = (self.matvec(v).flatten(1) - truth).norm(dim=1) / truth.norm(dim=1)
        self.error = float(errors.nan_to_num(torch.inf).max())
        if not self.error <= tolerance:
            raise InputError(
                f"{scheme} difference", f"a measured error of {self.error:.2g}", f"at most {tolerance:g}",
                "Use exact products here.",
            )  # fmt: skip

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        """(k, *shape_in) -> (k, *shape_out): J v. Cost: one pass a vector, two with the central scheme."""
        v = checked("v", v, self.shape_in, self._exact.point)
        norms = v.flatten(1).norm(dim=1).view(-1, *(1 for _ in self.shape_in))
        unit = v / norms.clamp(min=torch.finfo(self.dtype).tiny)
        length = self._step * self._exact.point.norm()
        ends = self._values(self._exact.point + length * unit)
        starts = self._values(self._exact.point - length * unit) if self._central else self._exact.value
        self.products.jvp += len(v)
        return (ends - starts) * (norms.view(-1, *(1 for _ in self.shape_out)) / ((1 + self._central) * length))

    def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
        """(k, *shape_out) -> (k, *shape_in): J^T u, exact."""
        return self._exact.rmatvec(u)

    @torch.no_grad()
    def _values(self, points: torch.Tensor) -> torch.Tensor:
        """The function at points (k, *shape_in)."""
        if len(points) == 0:
            return points.new_empty((0, *self.shape_out))
        return torch.cat([self._exact.function(part) for part in points.split(self._exact.blocks.jvp)])


@dataclass(frozen=True)
class Route:
    """One way to a product: vectors a pass, seconds a product, and its error relative to exact products (0: exact)."""

    name: str
    block: int
    seconds: float
    error: float


def measured_routes(
    operator: JacobianOperator, *, generator: torch.Generator, sizes: Sequence[int] = (1, 4, 16)
) -> list[Route]:
    """Time and error of every route at several block sizes, on this machine.

    Cost: two passes of every route and size, and 8 products a scheme for the errors, counted by the operator.
    """
    own, routes = operator.blocks, []
    differences = {
        f"{scheme} difference": Difference(operator, float("inf"), generator=generator, scheme=scheme)
        for scheme in ("central", "forward")
    }
    products = {"JVP": (operator.matvec, 0.0), "VJP": (operator.rmatvec, 0.0)}
    products |= {name: (route.matvec, route.error) for name, route in differences.items()}
    for name, (product, error) in products.items():
        for size in sizes:
            operator.blocks = Blocks(size, size, own.checkpoint)
            shape = operator.shape_out if name == "VJP" else operator.shape_in
            vectors = torch.randn((size, *shape), generator=generator, device=generator.device).to(operator.point)
            routes.append(Route(name, size, seconds_per_vector(product, vectors), error))
    operator.blocks = own
    return routes
