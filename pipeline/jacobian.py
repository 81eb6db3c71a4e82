"""The five Jacobians of a denoiser at one noisy image, matrix-free.

Forward products push a block of tangents through one shared primal (vmap over tangents of a JVP). Transposed products
pull a block of cotangents back through one graph that is built once and kept for the life of the operator. In h-space
both run only the part of the network behind the bottleneck.

`pipeline.routes` has cheaper, inexact products and measures them all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal

import torch

from pipeline.errors import InputError
from pipeline.memory import Blocks, blocks_within
from pipeline.models.contract import Denoiser
from pipeline.models.forward_mode import lowered, pull, push, record, tensor_cores
from pipeline.operators import Products

JacobianKind = Literal["x0/x", "eps/x", "h/x", "x0/h", "eps/h"]
KINDS: tuple[JacobianKind, ...] = ("x0/x", "eps/x", "h/x", "x0/h", "eps/h")
Precision = Literal["full", "tf32", "bfloat16"]
BLOCK = 16  # vectors per pass: a larger block gained nothing on one core
LARGEST_BLOCK = 64  # that is ever tried
_WORTH = 0.95  # share of the time per product that a larger block must not exceed to be taken

_Function = Callable[[torch.Tensor], torch.Tensor]
_chosen: dict[tuple[object, ...], Blocks] = {}  # what was measured or planned before, by everything it depends on


class JacobianOperator:
    """J of a function at a point, as a `LinearOperator`; `products` counts single-vector products.

    Args:
        function: maps (B, *shape_in) to (B, *shape_out), each image by itself, and survives forward mode and vmap.
        point: (1, *shape_in), where J is taken.
        block: vectors per network pass; memory grows with it, time per product falls with it.
        precision: of the products; "tf32" (on CUDA) and "bfloat16" take and give the dtype of `point` all the same.
    """

    def __init__(
        self, function: _Function, point: torch.Tensor, block: int | Blocks = BLOCK, precision: Precision = "full"
    ) -> None:
        if precision not in ("full", "tf32", "bfloat16") or (precision == "tf32" and point.device.type != "cuda"):
            raise InputError("precision", f"{precision!r} on {point.device.type}", "full, bfloat16, or tf32 on CUDA")
        self.blocks = block if isinstance(block, Blocks) else Blocks(block, block)
        self.function = lowered(function, point.device) if precision == "bfloat16" else function
        self.point = point.detach()
        self._leaf = self.point.clone().requires_grad_(True)
        self._output: torch.Tensor | None = None
        self._tf32 = precision == "tf32"
        self.shape_in: tuple[int, ...] = tuple(point.shape[1:])
        self.dtype, self.device = point.dtype, point.device
        with torch.no_grad(), tensor_cores(self.device, self._tf32):
            value = self.function(self.point)
        self.shape_out: tuple[int, ...] = tuple(value.shape[1:])
        self.value = value[0]  # the function at the point, (*shape_out)
        self.products = Products()

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        """(k, *shape_in) -> (k, *shape_out): J v. Cost: k JVPs, in passes of `blocks.jvp` with one primal each.

        Raises:
            InputError: vectors of another shape.
        """
        v = checked("v", v, self.shape_in, self.point)
        if len(v) == 0:
            return v.new_empty((0, *self.shape_out))
        with tensor_cores(self.device, self._tf32):
            parts = [push(self.function, self.point, part) for part in v.unsqueeze(1).split(self.blocks.jvp)]
        self.products.jvp += len(v)
        return torch.cat(parts).squeeze(1)

    def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
        """(k, *shape_out) -> (k, *shape_in): J^T u. Cost: k VJPs, and one forward pass at the first call.

        With a checkpointed graph every pass of `blocks.vjp` costs a forward pass more.

        Raises:
            InputError: vectors of another shape.
        """
        u = checked("u", u, self.shape_out, self.point)
        if len(u) == 0:
            return u.new_empty((0, *self.shape_in))
        passes = u.unsqueeze(1).split(self.blocks.vjp)
        with tensor_cores(self.device, self._tf32):
            if self._output is None:
                self._output = record(self.function, self._leaf, self.blocks.checkpoint)
            parts = [pull(self._output, self._leaf, part) for part in passes]
        self.products.vjp += len(u)
        self.products.recomputed += len(passes) * self.blocks.checkpoint
        return torch.cat(parts).squeeze(1)


def checked(name: str, vectors: torch.Tensor, shape: tuple[int, ...], point: torch.Tensor) -> torch.Tensor:
    """`vectors` (k, *shape) on the device and in the dtype of `point`; InputError for another shape."""
    if tuple(vectors.shape[1:]) != shape or vectors.ndim != len(shape) + 1:
        raise InputError(name, tuple(vectors.shape), f"shape (k, {', '.join(map(str, shape))})")
    return vectors.detach().to(point)


def jacobian(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    t: int,
    kind: JacobianKind,
    *,
    block: int | Blocks | Literal["measure"] = BLOCK,
    memory: int | None = None,
    precision: Precision = "full",
) -> JacobianOperator:
    """The Jacobian named by `kind` at one image, as a matrix-free operator.

    "x0" is the posterior mean f (LOCO Edit, eq. 2) as a picture: latent models decode it, so that masks apply (T-LOCO).
    "eps" is the noise prediction, "h" the bottleneck activation, "x" the noisy image. "x0/h" and "eps/h" hold x_t and
    every skip connection fixed and, where x_t is a noisy picture, differ by the factor -sigma/alpha.

    Args:
        x_t: (C, H, W) at timestep `t`.
        block: most vectors per network pass; "measure" times a few sizes and takes the fastest.
        memory: bytes that weights and products may take; smaller blocks, and a checkpointed graph, where it is short.
            None is no limit.
        precision: of products, see `JacobianOperator`.

    Cost of making it: one forward pass; with "measure" also a few products, counted, once per model, shape and kind.
    See `JacobianOperator` for the cost of products.

    Raises:
        InputError: an unknown kind or precision, an image of another shape, or a budget below one vector at a time.
        ModelError: an h kind for a model without a bottleneck.
    """
    if kind not in KINDS:
        raise InputError("kind", kind, f"one of {', '.join(KINDS)}")
    if x_t.ndim != 3 or x_t.shape[0] != denoiser.info.x_shape[0]:
        raise InputError("x_t", tuple(x_t.shape), f"one image, shape ({denoiser.info.x_shape[0]}, H, W)")
    if "h" in kind.split("/"):
        denoiser.need_bottleneck()
    x = x_t.detach().to(device=denoiser.device, dtype=denoiser.dtype)[None]
    function, point = _function(denoiser, x, t, kind)
    operator = JacobianOperator(function, point, LARGEST_BLOCK if block == "measure" else block, precision)
    if memory is None and block != "measure":
        return operator
    key = (denoiser.info.fingerprint, kind, point.shape, point.dtype, point.device, block, memory, precision)
    if key not in _chosen:
        if memory is not None:
            weights = denoiser.info.parameters * denoiser.dtype.itemsize
            operator.blocks = blocks_within(memory, weights, operator.function, point, operator.blocks)
        _chosen[key] = fastest_blocks(operator) if block == "measure" else operator.blocks
    operator.blocks = _chosen[key]
    return operator


def fastest_blocks(operator: JacobianOperator) -> Blocks:
    """The sizes, up to the operator's own, at which its products took least time: 1, 2, 4, ... as long as that pays.

    Cost: two passes of each size tried, counted by the operator.
    """
    largest, found = operator.blocks, []
    for product, shape, most in (
        (operator.matvec, operator.shape_in, largest.jvp),
        (operator.rmatvec, operator.shape_out, largest.vjp),
    ):
        best, least, size = 1, math.inf, 1
        while size <= most:
            operator.blocks = Blocks(size, size, largest.checkpoint)
            seconds = seconds_per_vector(product, torch.ones((size, *shape)).to(operator.point))
            if seconds > _WORTH * least:
                break
            best, least, size = size, seconds, 2 * size
        found.append(best)
    operator.blocks = largest
    return Blocks(found[0], found[1], largest.checkpoint)


def seconds_per_vector(product: Callable[[torch.Tensor], torch.Tensor], vectors: torch.Tensor) -> float:
    """Time of `product` for a block (k, ...) over k: the better of two runs.

    CPU time where one thread does all the work, so that other processes do not count; wall time elsewhere.
    """
    clock = time.process_time if vectors.device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    times = []
    for _ in range(2):
        begun = clock()
        float(product(vectors).flatten()[0])  # waits for the device
        times.append(clock() - begun)
    return min(times) / len(vectors)


def _function(denoiser: Denoiser, x: torch.Tensor, t: int, kind: JacobianKind) -> tuple[_Function, torch.Tensor]:
    """The function whose Jacobian `kind` names, and the point (1, ...) where it is taken."""
    twin = denoiser.differentiable()
    if kind == "x0/x":
        return lambda image: twin.predicted_picture(image, t), x
    if kind == "eps/x":
        return lambda image: twin.predict_noise(image, t), x
    if kind == "h/x":
        return lambda image: twin.bottleneck(image, t), x
    with torch.no_grad():
        h = twin.bottleneck(x, t)
        if kind == "eps/h":
            return twin.noise_from_bottleneck(x, t), h
        mean = twin.posterior_mean_from_bottleneck(x, t)
    return lambda activation: twin.decode(mean(activation)), h
