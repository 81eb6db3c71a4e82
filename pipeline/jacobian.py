"""The five Jacobians of a denoiser at one noisy image, matrix-free.

Forward products push a block of tangents through one shared primal (vmap over tangents of a JVP). Transposed products
pull a block of cotangents back through one graph that is built once and kept for the life of the operator. In h-space
both run only the part of the network behind the bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from pipeline.errors import InputError, ModelError
from pipeline.models.contract import Denoiser
from pipeline.operators import Products

JacobianKind = Literal["x0/x", "eps/x", "h/x", "x0/h", "eps/h"]
KINDS: tuple[JacobianKind, ...] = ("x0/x", "eps/x", "h/x", "x0/h", "eps/h")

_Function = Callable[[torch.Tensor], torch.Tensor]


class JacobianOperator:
    """J of a function at a point, as a `LinearOperator`; `products` counts single-vector products.

    Args:
        function: maps (1, *shape_in) to (1, *shape_out) and survives forward mode and vmap.
        point: (1, *shape_in), where J is taken.
        block: vectors per network pass; memory grows with it, time per product falls with it.
    """

    def __init__(self, function: _Function, point: torch.Tensor, block: int = 16) -> None:
        if block < 1:
            raise InputError("block", block, "at least 1")
        self._function, self._point, self._block = function, point.detach(), block
        self._leaf = self._point.clone().requires_grad_(True)
        self._output: torch.Tensor | None = None
        self.shape_in: tuple[int, ...] = tuple(point.shape[1:])
        with torch.no_grad():
            value = function(self._point)
        self.shape_out: tuple[int, ...] = tuple(value.shape[1:])
        self.value = value[0]  # the function at the point, (*shape_out)
        self.dtype, self.device = point.dtype, point.device
        self.products = Products()

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        """(k, *shape_in) -> (k, *shape_out): J v. Cost: k JVPs, in passes of `block` with one primal each.

        Raises:
            InputError: vectors of another shape.
        """
        v = self._checked("v", v, self.shape_in)
        if len(v) == 0:
            return v.new_empty((0, *self.shape_out))
        with torch.no_grad():
            parts = [torch.vmap(self._push)(part) for part in v.unsqueeze(1).split(self._block)]
        self.products.jvp += len(v)
        return torch.cat(parts).squeeze(1)

    def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
        """(k, *shape_out) -> (k, *shape_in): J^T u. Cost: k VJPs, and one forward pass at the first call.

        Raises:
            InputError: vectors of another shape.
        """
        u = self._checked("u", u, self.shape_out)
        if len(u) == 0:
            return u.new_empty((0, *self.shape_in))
        output = self._graph()
        parts = [
            torch.autograd.grad(output, self._leaf, part, retain_graph=True, is_grads_batched=True)[0]
            for part in u.unsqueeze(1).split(self._block)
        ]
        self.products.vjp += len(u)
        return torch.cat(parts).squeeze(1)

    def _push(self, tangent: torch.Tensor) -> torch.Tensor:
        """(1, *shape_in) -> (1, *shape_out); vmapped over tangents only, so the primal is computed once per block."""
        return torch.func.jvp(self._function, (self._point,), (tangent,))[1]

    def _graph(self) -> torch.Tensor:
        if self._output is None:
            with torch.enable_grad():
                self._output = self._function(self._leaf)
        return self._output

    def _checked(self, name: str, vectors: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        if tuple(vectors.shape[1:]) != shape or vectors.ndim != len(shape) + 1:
            raise InputError(name, tuple(vectors.shape), f"shape (k, {', '.join(map(str, shape))})")
        return vectors.detach().to(device=self.device, dtype=self.dtype)


def jacobian(denoiser: Denoiser, x_t: torch.Tensor, t: int, kind: JacobianKind, *, block: int = 16) -> JacobianOperator:
    """The Jacobian named by `kind` at one image, as a matrix-free operator.

    "x0" is the posterior mean f (LOCO Edit, eq. 2), "eps" the noise prediction, "h" the bottleneck activation, "x" the
    noisy image. "x0/h" and "eps/h" hold x_t and every skip connection fixed and differ by the factor -sigma/alpha.

    Args:
        x_t: (C, H, W) at timestep `t`.
        block: vectors per network pass.

    Cost of making it: one forward pass. See `JacobianOperator` for the cost of products.

    Raises:
        InputError: an unknown kind, or an image of another shape.
        ModelError: an h kind for a model without a bottleneck.
    """
    if kind not in KINDS:
        raise InputError("kind", kind, f"one of {', '.join(KINDS)}")
    if x_t.ndim != 3 or x_t.shape[0] != denoiser.info.image_shape[0]:
        raise InputError("x_t", tuple(x_t.shape), f"one image, shape ({denoiser.info.image_shape[0]}, H, W)")
    if "h" in kind.split("/") and denoiser.info.bottleneck_shape is None:
        raise ModelError("bottleneck", None, f"a model with a bottleneck for the Jacobian {kind}", "Use x0/x or eps/x.")
    twin = denoiser.differentiable()
    x = x_t.detach().to(device=denoiser.device, dtype=denoiser.dtype)[None]
    if kind == "x0/x":
        return JacobianOperator(lambda image: twin.posterior_mean(image, t), x, block)
    if kind == "eps/x":
        return JacobianOperator(lambda image: twin.predict_noise(image, t), x, block)
    if kind == "h/x":
        return JacobianOperator(lambda image: twin.bottleneck(image, t), x, block)
    with torch.no_grad():
        noise = twin.noise_from_bottleneck(x, t)
        h = twin.bottleneck(x, t)
    if kind == "eps/h":
        return JacobianOperator(noise, h, block)
    alpha, sigma = denoiser.alpha_sigma(t)
    return JacobianOperator(lambda activation: (x - sigma * noise(activation)) / alpha, h, block)
