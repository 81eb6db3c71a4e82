"""The network of guided-diffusion as published, in plain torch functions over its own parameter names.

Written from the architecture (arXiv:2105.05233, appendix; arXiv:2102.09672 for the first attention order), and knows
nothing of diffusers or of `pipeline.models.guided`: it walks the parameter names, and is told only what they do not
say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Network:
    """The constructor arguments of the original UNet. `attention_rates` are downsampling rates: 1, 2, 4 ..."""

    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attention_rates: frozenset[int] = frozenset({2})
    heads: int = 1
    head_channels: int = -1
    scale_shift: bool = True
    updown: bool = False
    conv_resample: bool = True
    new_order: bool = False
    classes: int | None = None
    learn_sigma: bool = False
    image_channels: int = 3

    def head_count(self, channels: int) -> int:
        return self.heads if self.head_channels == -1 else channels // self.head_channels


class _Shapes(dict[str, tuple[int, ...]]):
    """Parameter shapes of the network, in the order in which the original makes its modules."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net, self.time = net, 4 * net.channels
        self._linear("time_embed.0", net.channels, self.time)
        self._linear("time_embed.2", self.time, self.time)
        if net.classes is not None:
            self["label_emb.weight"] = (net.classes, self.time)
        width = net.channels * net.multipliers[0]
        self._conv("input_blocks.0.0", net.image_channels, width, 3)
        skips, number, rate = [width], 1, 1
        for level, multiplier in enumerate(net.multipliers):
            for _ in range(net.blocks):
                self._resnet(f"input_blocks.{number}.0", width, multiplier * net.channels)
                width = multiplier * net.channels
                if rate in net.attention_rates:
                    self._attention(f"input_blocks.{number}.1", width)
                skips.append(width)
                number += 1
            if level < len(net.multipliers) - 1:
                if net.updown:
                    self._resnet(f"input_blocks.{number}.0", width, width)
                elif net.conv_resample:
                    self._conv(f"input_blocks.{number}.0.op", width, width, 3)
                skips.append(width)
                number, rate = number + 1, rate * 2
        self._resnet("middle_block.0", width, width)
        self._attention("middle_block.1", width)
        self._resnet("middle_block.2", width, width)
        number = 0
        for level in reversed(range(len(net.multipliers))):
            for i in range(net.blocks + 1):
                self._resnet(f"output_blocks.{number}.0", width + skips.pop(), net.multipliers[level] * net.channels)
                width, at = net.multipliers[level] * net.channels, 1
                if rate in net.attention_rates:
                    self._attention(f"output_blocks.{number}.1", width)
                    at = 2
                if level and i == net.blocks:
                    if net.updown:
                        self._resnet(f"output_blocks.{number}.{at}", width, width)
                    elif net.conv_resample:
                        self._conv(f"output_blocks.{number}.{at}.conv", width, width, 3)
                    rate //= 2
                number += 1
        self._norm("out.0", width)
        self._conv("out.2", width, net.image_channels * (2 if net.learn_sigma else 1), 3)

    def _linear(self, name: str, n: int, m: int) -> None:
        self[f"{name}.weight"], self[f"{name}.bias"] = (m, n), (m,)

    def _conv(self, name: str, n: int, m: int, kernel: int) -> None:
        self[f"{name}.weight"], self[f"{name}.bias"] = (m, n, kernel, kernel), (m,)

    def _norm(self, name: str, n: int) -> None:
        self[f"{name}.weight"], self[f"{name}.bias"] = (n,), (n,)

    def _resnet(self, name: str, n: int, m: int) -> None:
        self._norm(f"{name}.in_layers.0", n)
        self._conv(f"{name}.in_layers.2", n, m, 3)
        self._linear(f"{name}.emb_layers.1", self.time, 2 * m if self.net.scale_shift else m)
        self._norm(f"{name}.out_layers.0", m)
        self._conv(f"{name}.out_layers.3", m, m, 3)
        if n != m:
            self._conv(f"{name}.skip_connection", n, m, 1)

    def _attention(self, name: str, n: int) -> None:
        self._norm(f"{name}.norm", n)
        self[f"{name}.qkv.weight"], self[f"{name}.qkv.bias"] = (3 * n, n, 1), (3 * n,)
        self[f"{name}.proj_out.weight"], self[f"{name}.proj_out.bias"] = (n, n, 1), (n,)


def original_shapes(net: Network) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of the original network."""
    return dict(_Shapes(net))


def random_state(net: Network, seed: int = 0) -> State:
    """A state dict in which no weight is zero, norms are not the identity, and the output is of order one."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, shape in _Shapes(net).items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("bias"):
            state[name] = 0.1 * values
        elif len(shape) == 1:
            state[name] = 1 + 0.2 * values
        elif "qkv" in name:
            state[name] = values * (2.0 / shape[1]) ** 0.5  # logits far enough apart that heads and orders matter
        else:
            state[name] = values * (1.0 / math.prod(shape[1:])) ** 0.5
    return state


def reference(net: Network, state: State, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    """Output of the original network, (B, 3 or 6, H, W), for x (B, 3, H, W), times (B,) and classes (B,).

    Computes in the precision that `x` and `state` share.
    """
    return _Reference(net, state).run(x, t, y)


@dataclass(frozen=True)
class _Reference:
    net: Network
    state: State

    def run(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        net = self.net
        half = net.channels // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        angles = t[:, None].float() * rates[None]
        emb = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1).to(x.dtype)  # times are float32 whatever x is
        emb = self._linear("time_embed.2", F.silu(self._linear("time_embed.0", emb)))
        if y is not None:
            emb = emb + self.state["label_emb.weight"][y]
        h = self._conv("input_blocks.0.0", x)
        skips, number, rate, last = [h], 1, 1, len(net.multipliers) - 1
        for level in range(last + 1):
            for _ in range(net.blocks):
                h = self._resnet(f"input_blocks.{number}.0", h, emb)
                h = self._attention(f"input_blocks.{number}.1", h) if rate in net.attention_rates else h
                skips.append(h)
                number += 1
            if level < last:
                h = self._down(f"input_blocks.{number}.0", h, emb)
                skips.append(h)
                number, rate = number + 1, rate * 2
        h = self._resnet("middle_block.0", h, emb)
        h = self._attention("middle_block.1", h)
        h = self._resnet("middle_block.2", h, emb)
        number = 0
        for level in range(last, -1, -1):
            for i in range(net.blocks + 1):
                h = self._resnet(f"output_blocks.{number}.0", torch.cat([h, skips.pop()], dim=1), emb)
                attends = rate in net.attention_rates
                h = self._attention(f"output_blocks.{number}.1", h) if attends else h
                if level and i == net.blocks:
                    h = self._up(f"output_blocks.{number}.{2 if attends else 1}", h, emb)
                    rate //= 2
                number += 1
        return self._conv("out.2", F.silu(self._norm("out.0", h)))

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _conv(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-5)

    def _resnet(self, name: str, x: torch.Tensor, emb: torch.Tensor, resample: str = "") -> torch.Tensor:
        h = F.silu(self._norm(f"{name}.in_layers.0", x))
        if resample:
            h, x = (_halved(h), _halved(x)) if resample == "down" else (_doubled(h), _doubled(x))
        h = self._conv(f"{name}.in_layers.2", h)
        step = self._linear(f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
        if self.net.scale_shift:
            scale, shift = step.chunk(2, dim=1)
            h = self._norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = self._norm(f"{name}.out_layers.0", h + step)
        h = self._conv(f"{name}.out_layers.3", F.silu(h))
        skip = f"{name}.skip_connection"
        return h + (self._conv(skip, x) if f"{skip}.weight" in self.state else x)

    def _attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        b, c, height, width = x.shape
        qkv = F.conv1d(
            self._norm(f"{name}.norm", x.reshape(b, c, -1)),
            self.state[f"{name}.qkv.weight"],
            self.state[f"{name}.qkv.bias"],
        )
        heads = self.net.head_count(c)
        ch = c // heads
        if self.net.new_order:  # q, k, v first, heads within each
            q, k, v = (part.reshape(b * heads, ch, -1) for part in qkv.chunk(3, dim=1))
        else:  # heads first, q, k, v within each
            q, k, v = qkv.reshape(b * heads, 3 * ch, -1).split(ch, dim=1)
        weight = torch.einsum("bct,bcs->bts", q / ch**0.25, k / ch**0.25).softmax(dim=-1)
        mixed = torch.einsum("bts,bcs->bct", weight, v).reshape(b, c, -1)
        out = F.conv1d(mixed, self.state[f"{name}.proj_out.weight"], self.state[f"{name}.proj_out.bias"])
        return x + out.reshape(b, c, height, width)

    def _down(self, name: str, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        if self.net.updown:
            return self._resnet(name, x, emb, "down")
        return self._conv(f"{name}.op", x, stride=2) if self.net.conv_resample else _halved(x)

    def _up(self, name: str, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        if self.net.updown:
            return self._resnet(name, x, emb, "up")
        return self._conv(f"{name}.conv", _doubled(x)) if self.net.conv_resample else _doubled(x)


def _halved(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 2)


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def reduced_p2(**changes: Any) -> Network:
    """The P2 models' network a quarter as wide and of two levels."""
    return replace(Network(head_channels=32, updown=True, learn_sigma=True), **changes)


def guided_settings(net: Network, image_size: int) -> dict[str, Any]:
    """The flags with which the original scripts make this network."""
    return {
        "image_size": image_size,
        "in_channels": net.image_channels,
        "num_channels": net.channels,
        "num_res_blocks": net.blocks,
        "channel_mult": ",".join(map(str, net.multipliers)),
        "attention_resolutions": ",".join(str(image_size // rate) for rate in sorted(net.attention_rates)),
        "num_heads": net.heads,
        "num_head_channels": net.head_channels,
        "use_scale_shift_norm": net.scale_shift,
        "resblock_updown": net.updown,
        "conv_resample": net.conv_resample,
        "use_new_attention_order": net.new_order,
        "class_cond": net.classes is not None,
        "num_classes": net.classes or 1000,
        "learn_sigma": net.learn_sigma,
    }
