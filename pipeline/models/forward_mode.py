"""A network that survives forward-mode differentiation, with the same weights and the same answers, and the passes.

Fused attention has no forward-mode rule, and the fused group norm refuses non-contiguous tangents. The copy made here
replaces both by plain formulas, and takes the weights out of layer norm. Its group norm carries hand-written
derivatives: the automatic ones of the plain formula cost about a third more per product. Its convolutions have no
derivative in their weights, for which torch's own forward mode convolves the primal with a zero kernel once more.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn.grad import conv2d_input
from torch.utils.checkpoint import checkpoint

from pipeline.errors import ModelError

_checkpointing: ContextVar[bool] = ContextVar("checkpointing", default=False)


def push(function: Callable[[torch.Tensor], torch.Tensor], point: torch.Tensor, tangents: torch.Tensor) -> torch.Tensor:
    """J v for tangents (k, *point.shape) -> (k, *value.shape); vmapped over tangents only: one primal for all."""
    with torch.no_grad():
        return torch.vmap(lambda tangent: torch.func.jvp(function, (point,), (tangent,))[1])(tangents)


def record(
    function: Callable[[torch.Tensor], torch.Tensor], leaf: torch.Tensor, checkpointed: bool = False
) -> torch.Tensor:
    """The function at `leaf` with the graph that `pull` needs; `checkpointed`, blocks keep their inputs alone."""
    token = _checkpointing.set(checkpointed)
    try:
        with torch.enable_grad():
            return function(leaf)
    finally:
        _checkpointing.reset(token)


def pull(output: torch.Tensor, leaf: torch.Tensor, cotangents: torch.Tensor) -> torch.Tensor:
    """J^T u for cotangents (k, *output.shape) -> (k, *leaf.shape), through the graph of `output`, which stays."""
    return torch.vmap(lambda u: torch.autograd.grad(output, leaf, u, retain_graph=True)[0])(cotangents)


def lowered(
    function: Callable[[torch.Tensor], torch.Tensor], device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """`function` with convolutions and matrix products in bfloat16; what goes in and comes out keeps its dtype."""

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return function(x).to(x.dtype)

    return run


@contextmanager
def tensor_cores(device: torch.device, allowed: bool) -> Iterator[None]:
    """TF32 on CUDA exactly where `allowed`: torch allows it in convolutions by itself. Nothing on other devices."""
    if device.type != "cuda":
        yield
        return
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


class _GroupNorm(torch.autograd.Function):
    """Group norm of (B, C, ...) with forward- and reverse-mode rules that reshape instead of viewing.

    Returns (y, normalised, rate); the last two, (B, G, n) and (B, G, 1), are only saved for the derivatives.
    The Jacobian is symmetric up to the channel weights: d y = w * (I - 1 1^T/n - z z^T/n) d x * rate.
    Statistics are taken in float32 or better, as by the fused norm: the square of 256 is no float16.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        grouped = x.reshape(x.shape[0], groups, -1).to(torch.promote_types(x.dtype, torch.float32))
        centred = grouped - grouped.mean(-1, keepdim=True)
        rate = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)
        normalised = centred * rate
        return (normalised.reshape(x.shape) * weight + bias).to(x.dtype), normalised.to(x.dtype), rate

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        _, normalised, rate = output
        ctx.mark_non_differentiable(normalised, rate)
        ctx.save_for_backward(inputs[1], normalised, rate)
        ctx.save_for_forward(inputs[1], normalised, rate)

    @staticmethod
    def jvp(ctx: Any, dx: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None, None]:
        weight, normalised, rate = ctx.saved_tensors
        return _normalise_tangent(dx, normalised, rate) * weight, None, None

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        weight, normalised, rate = ctx.saved_tensors
        return _normalise_tangent(grads[0] * weight, normalised, rate), None, None, None, None


def _normalise_tangent(dx: torch.Tensor, normalised: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """(I - 1 1^T/n - z z^T/n) dx * rate, in the shape and dtype of `dx`, by way of the dtype of `rate`."""
    grouped = dx.reshape(normalised.shape).to(rate.dtype)
    along = (grouped * normalised).mean(-1, keepdim=True)
    return ((grouped - grouped.mean(-1, keepdim=True) - normalised * along) * rate).reshape(dx.shape).to(dx.dtype)


class ReshapeSafeGroupNorm(nn.Module):
    """Group norm over (B, C, ...) with the parameters of `norm`; differentiable in x only, in both modes."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.num_groups, self.num_channels, self.eps, self.affine = (
            norm.num_groups,
            norm.num_channels,
            norm.eps,
            norm.affine,
        )
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight is not None:
            x = x.to(self.weight.dtype)  # bfloat16 comes out of an autocast layer; statistics keep their precision
        shape = (1, -1) + (1,) * (x.ndim - 2)
        weight = x.new_ones(shape) if self.weight is None else self.weight.view(shape)
        bias = x.new_zeros(shape) if self.bias is None else self.bias.view(shape)
        y = _GroupNorm.apply(x, weight, bias, self.num_groups, self.eps)
        return cast(torch.Tensor, y[0])


class OutsideWeightsLayerNorm(nn.Module):
    """Layer norm whose weights are applied after the fused kernel: with them in it, fake tensors do not run it."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.shape, self.eps, self.weight, self.bias = norm.normalized_shape, norm.eps, norm.weight, norm.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.layer_norm(x, self.shape, eps=self.eps)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


class _Convolution(torch.autograd.Function):
    """conv2d, differentiable in x only, in both modes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *settings: Any) -> torch.Tensor:
        return F.conv2d(x, weight, bias, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.shape, ctx.dtype, ctx.settings = inputs[0].shape, inputs[0].dtype, inputs[3:]
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def jvp(ctx: Any, dx: torch.Tensor, *_: Any) -> torch.Tensor:
        return F.conv2d(dx, ctx.saved_tensors[0], None, *ctx.settings)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight = ctx.saved_tensors[0].to(grads[0].dtype)  # autocast is over by now
        dx = conv2d_input(ctx.shape, weight, grads[0], *ctx.settings)
        return dx.to(ctx.dtype), None, None, *(None for _ in ctx.settings)


class FrozenConvolution(nn.Module):
    """A 2-D convolution with the parameters of `conv`, differentiable in x only, in both modes."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.settings = (conv.stride, conv.padding, conv.dilation, conv.groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, _Convolution.apply(x, self.weight, self.bias, *self.settings))


class MatmulAttention:
    """Attention of diffusers' `Attention` by plain matrix products, (B, C, H, W) or (B, N, C) in and out.

    Across to `encoder_hidden_states` (B, L, D) where they are given; masks have no place here.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        shape = hidden_states.shape
        x = hidden_states.flatten(2).transpose(1, 2) if hidden_states.ndim == 4 else hidden_states
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        context = x if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross is not None:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = (
            part(source).reshape(*source.shape[:2], attn.heads, -1).transpose(1, 2)
            for part, source in ((attn.to_q, x), (attn.to_k, context), (attn.to_v, context))
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        scores = (query * attn.scale) @ key.transpose(-1, -2)
        if attn.upcast_softmax and scores.dtype in (torch.float16, torch.bfloat16):
            scores = scores.float()
        mixed = scores.softmax(-1).to(value.dtype) @ value
        y = attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)))
        if hidden_states.ndim == 4:
            y = y.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            y = y + hidden_states
        return cast(torch.Tensor, y / attn.rescale_output_factor)


def shared_copy(
    network: nn.Module, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """A copy of the module tree with frozen parameters; the original is untouched.

    Numbers are shared with the original where neither `device` nor `dtype` (of floating-point tensors) differs. With
    `device="meta"` the copy holds none at all: shapes can be found by running it for nothing.
    """

    def frozen(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(device=device, dtype=dtype if tensor.is_floating_point() else None)

    memo: dict[int, Any] = {id(p): nn.Parameter(frozen(p), requires_grad=False) for p in network.parameters()}
    memo.update({id(b): frozen(b) for b in network.buffers()})
    return copy.deepcopy(network, memo)


def _part(module: nn.Module, *inputs: Any) -> torch.Tensor:
    """What diffusers' blocks call for each block inside them while gradients are recorded."""
    if not _checkpointing.get():
        return cast(torch.Tensor, module(*inputs))
    token = _checkpointing.set(False)  # blocks inside this one stay whole, as they do when it is run again
    try:
        return cast(torch.Tensor, checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False))
    finally:
        _checkpointing.reset(token)


@cache
def _load_forward_rules() -> None:
    """Load torch's forward-mode rules, which happens at the first use and warns of an interface torch itself uses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


def forward_mode_copy(network: nn.Module) -> nn.Module:
    """A `shared_copy` of `network` with norms and attention of this module in place of the fused ones.

    Its convolutions are differentiated in x alone, and its blocks keep little for the way back where `record` says so.

    Raises:
        ModelError: attention with parts that plain matrix products leave out.
    """
    _load_forward_rules()
    twin = shared_copy(network)
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, ReshapeSafeGroupNorm(child))
            if type(child) is nn.LayerNorm:
                setattr(module, name, OutsideWeightsLayerNorm(child))
            if isinstance(child, nn.Conv2d) and child.padding_mode == "zeros":
                setattr(module, name, FrozenConvolution(child))
        if hasattr(module, "gradient_checkpointing"):
            block: Any = module
            block.gradient_checkpointing, block._gradient_checkpointing_func = True, _part
        if isinstance(module, Attention):
            if module.spatial_norm is not None or module.added_kv_proj_dim is not None or module.fused_projections:
                raise ModelError(
                    "attention", "spatial norm, added or fused projections", "queries, keys and values of its own",
                    "This kind has no Jacobians.",
                )  # fmt: skip
            module.set_processor(MatmulAttention())
    return twin
