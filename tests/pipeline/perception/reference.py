"""The published networks once more, written as plain functions that draw their random weights as they go.

What they leave in `state` has the names and shapes of the authors' files; what they return is what a network filled
with it must return. Nothing here is shared with `pipeline.perception`.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

IRESNETS = {"r18": [2, 2, 2, 2], "r34": [3, 4, 6, 3], "r50": [3, 4, 14, 3], "r100": [3, 13, 30, 3]}


class Drawn:
    """Layers that draw what they need on first use, of a size that keeps activations near one."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.state: dict[str, torch.Tensor] = {}

    def draw(self, name: str, *shape: int, scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
        if name not in self.state:
            self.state[name] = offset + scale * torch.randn(shape, generator=self.generator)
        return self.state[name]

    def conv(
        self, x: torch.Tensor, name: str, out: int, kernel: tuple[int, int], stride: int = 1,
        padding: tuple[int, int] = (0, 0), bias: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        inputs = x.shape[1]
        scale = math.sqrt(2 / (inputs * kernel[0] * kernel[1]))
        weight = self.draw(f"{name}.weight", out, inputs, *kernel, scale=scale)
        return F.conv2d(x, weight, self.draw(f"{name}.bias", out, scale=0.1) if bias else None, stride, padding)

    def norm(self, x: torch.Tensor, name: str, epsilon: float) -> torch.Tensor:
        width = x.shape[1]
        weight = self.draw(f"{name}.weight", width, scale=0.1, offset=1.0)
        bias = self.draw(f"{name}.bias", width, scale=0.1)
        mean = self.draw(f"{name}.running_mean", width, scale=0.1)
        if f"{name}.running_var" not in self.state:
            self.state[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=self.generator)
            self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)
        spread = (self.state[f"{name}.running_var"] + epsilon).sqrt()
        shape = (1, width, *[1] * (x.ndim - 2))
        return (x - mean.view(shape)) / spread.view(shape) * weight.view(shape) + bias.view(shape)

    def prelu(self, x: torch.Tensor, name: str) -> torch.Tensor:
        slope = self.draw(f"{name}.weight", x.shape[1], scale=0.05, offset=0.25).view(1, -1, 1, 1)
        return torch.where(x > 0, x, slope * x)


# --- LPIPS --------------------------------------------------------------------------------------------------------


def alexnet(net: Drawn, x: torch.Tensor) -> list[torch.Tensor]:
    a1 = F.relu(net.conv(x, "features.0", 64, (11, 11), 4, (2, 2), bias=True))
    a2 = F.relu(net.conv(F.max_pool2d(a1, 3, 2), "features.3", 192, (5, 5), 1, (2, 2), bias=True))
    a3 = F.relu(net.conv(F.max_pool2d(a2, 3, 2), "features.6", 384, (3, 3), 1, (1, 1), bias=True))
    a4 = F.relu(net.conv(a3, "features.8", 256, (3, 3), 1, (1, 1), bias=True))
    a5 = F.relu(net.conv(a4, "features.10", 256, (3, 3), 1, (1, 1), bias=True))
    return [a1, a2, a3, a4, a5]


def vgg16(net: Drawn, x: torch.Tensor) -> list[torch.Tensor]:
    taps = []
    for numbers, width in (
        ((0, 2), 64), ((5, 7), 128), ((10, 12, 14), 256), ((17, 19, 21), 512), ((24, 26, 28), 512),
    ):  # fmt: skip
        for number in numbers:
            x = F.relu(net.conv(x, f"features.{number}", width, (3, 3), 1, (1, 1), bias=True))
        taps.append(x)
        x = F.max_pool2d(x, 2)
    return taps


def lpips(
    net: Drawn, lins: dict[str, torch.Tensor], trunk: str, first: torch.Tensor, second: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances (B,) and maps (B, H, W)."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    layers = {"alex": alexnet, "vgg": vgg16}[trunk]
    # The authors' constants are ImageNet's mean and deviation carried from [0, 1] to [-1, 1], to three digits.
    inputs = [
        (x - (2 * mean - 1).view(1, 3, 1, 1).mul(1e3).round() / 1e3) / (2 * deviation).view(1, 3, 1, 1)
        for x in (first, second)
    ]
    total, spatial = torch.zeros(len(first)), torch.zeros(len(first), *first.shape[-2:])
    for number, (a, b) in enumerate(zip(*(layers(net, x) for x in inputs), strict=True)):
        a, b = a / a.norm(dim=1, keepdim=True).clamp(min=1e-10), b / b.norm(dim=1, keepdim=True).clamp(min=1e-10)
        layer = torch.einsum("bchw,c->bhw", (a - b) ** 2, lins[f"lin{number}.model.1.weight"].flatten())
        total = total + layer.flatten(1).mean(1)
        spatial = spatial + F.interpolate(layer[None], size=first.shape[-2:], mode="bilinear")[0]
    return total, spatial


def linear_layers(trunk: str, seed: int = 1) -> dict[str, torch.Tensor]:
    widths = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}[trunk]
    generator = torch.Generator().manual_seed(seed)
    return {f"lin{i}.model.1.weight": torch.rand((1, c, 1, 1), generator=generator) for i, c in enumerate(widths)}


# --- ArcFace ------------------------------------------------------------------------------------------------------


def iresnet(net: Drawn, x: torch.Tensor, depth: str) -> torch.Tensor:
    x = net.prelu(net.norm(net.conv(x, "conv1", 64, (3, 3), 1, (1, 1)), "bn1", 1e-5), "prelu")
    for stage, (count, width) in enumerate(zip(IRESNETS[depth], (64, 128, 256, 512), strict=True), start=1):
        for number in range(count):
            name, stride = f"layer{stage}.{number}", 2 if number == 0 else 1
            y = net.conv(net.norm(x, f"{name}.bn1", 1e-5), f"{name}.conv1", width, (3, 3), 1, (1, 1))
            y = net.prelu(net.norm(y, f"{name}.bn2", 1e-5), f"{name}.prelu")
            y = net.norm(net.conv(y, f"{name}.conv2", width, (3, 3), stride, (1, 1)), f"{name}.bn3", 1e-5)
            if number == 0:
                x = net.norm(net.conv(x, f"{name}.downsample.0", width, (1, 1), 2), f"{name}.downsample.1", 1e-5)
            x = x + y
    flat = net.norm(x, "bn2", 1e-5).flatten(1)
    weight = net.draw("fc.weight", 512, flat.shape[1], scale=flat.shape[1] ** -0.5)
    return net.norm(flat @ weight.T + net.draw("fc.bias", 512, scale=0.1), "features", 1e-5)


# --- Inception ----------------------------------------------------------------------------------------------------


def inception(net: Drawn, x: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, 299, 299) -> (B, 2048)."""

    def cbr(x: torch.Tensor, name: str, out: int, kh: int, kw: int, stride: int = 1, same: bool = True) -> torch.Tensor:
        padding = ((kh - 1) // 2, (kw - 1) // 2) if same else (0, 0)
        return F.relu(net.norm(net.conv(x, f"{name}.conv", out, (kh, kw), stride, padding), f"{name}.bn", 1e-3))

    def average(x: torch.Tensor) -> torch.Tensor:
        """3 x 3 means over the pixels that are there."""
        ones = torch.ones(1, 1, *x.shape[-2:])
        return F.avg_pool2d(x, 3, 1, 1) / F.avg_pool2d(ones, 3, 1, 1)

    def block_a(x: torch.Tensor, n: str, pool: int) -> torch.Tensor:
        one = cbr(x, f"{n}.branch1x1", 64, 1, 1)
        five = cbr(cbr(x, f"{n}.branch5x5_1", 48, 1, 1), f"{n}.branch5x5_2", 64, 5, 5)
        three = cbr(cbr(x, f"{n}.branch3x3dbl_1", 64, 1, 1), f"{n}.branch3x3dbl_2", 96, 3, 3)
        three = cbr(three, f"{n}.branch3x3dbl_3", 96, 3, 3)
        return torch.cat([one, five, three, cbr(average(x), f"{n}.branch_pool", pool, 1, 1)], 1)

    def block_c(x: torch.Tensor, n: str, c: int) -> torch.Tensor:
        one = cbr(x, f"{n}.branch1x1", 192, 1, 1)
        seven = cbr(cbr(x, f"{n}.branch7x7_1", c, 1, 1), f"{n}.branch7x7_2", c, 1, 7)
        seven = cbr(seven, f"{n}.branch7x7_3", 192, 7, 1)
        double = cbr(cbr(x, f"{n}.branch7x7dbl_1", c, 1, 1), f"{n}.branch7x7dbl_2", c, 7, 1)
        double = cbr(cbr(double, f"{n}.branch7x7dbl_3", c, 1, 7), f"{n}.branch7x7dbl_4", c, 7, 1)
        double = cbr(double, f"{n}.branch7x7dbl_5", 192, 1, 7)
        return torch.cat([one, seven, double, cbr(average(x), f"{n}.branch_pool", 192, 1, 1)], 1)

    def block_e(x: torch.Tensor, n: str, pooled: torch.Tensor) -> torch.Tensor:
        one = cbr(x, f"{n}.branch1x1", 320, 1, 1)
        stem = cbr(x, f"{n}.branch3x3_1", 384, 1, 1)
        fork = [cbr(stem, f"{n}.branch3x3_2a", 384, 1, 3), cbr(stem, f"{n}.branch3x3_2b", 384, 3, 1)]
        stem = cbr(cbr(x, f"{n}.branch3x3dbl_1", 448, 1, 1), f"{n}.branch3x3dbl_2", 384, 3, 3)
        fork += [cbr(stem, f"{n}.branch3x3dbl_3a", 384, 1, 3), cbr(stem, f"{n}.branch3x3dbl_3b", 384, 3, 1)]
        return torch.cat([one, *fork, cbr(pooled, f"{n}.branch_pool", 192, 1, 1)], 1)

    x = cbr(cbr(x, "Conv2d_1a_3x3", 32, 3, 3, 2, same=False), "Conv2d_2a_3x3", 32, 3, 3, same=False)
    x = F.max_pool2d(cbr(x, "Conv2d_2b_3x3", 64, 3, 3), 3, 2)
    x = F.max_pool2d(cbr(cbr(x, "Conv2d_3b_1x1", 80, 1, 1), "Conv2d_4a_3x3", 192, 3, 3, same=False), 3, 2)
    for name, pool in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = block_a(x, name, pool)
    y = cbr(cbr(x, "Mixed_6a.branch3x3dbl_1", 64, 1, 1), "Mixed_6a.branch3x3dbl_2", 96, 3, 3)
    y = cbr(y, "Mixed_6a.branch3x3dbl_3", 96, 3, 3, 2, same=False)
    x = torch.cat([cbr(x, "Mixed_6a.branch3x3", 384, 3, 3, 2, same=False), y, F.max_pool2d(x, 3, 2)], 1)
    for name, c in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = block_c(x, name, c)
    z = cbr(cbr(x, "Mixed_7a.branch3x3_1", 192, 1, 1), "Mixed_7a.branch3x3_2", 320, 3, 3, 2, same=False)
    y = cbr(cbr(x, "Mixed_7a.branch7x7x3_1", 192, 1, 1), "Mixed_7a.branch7x7x3_2", 192, 1, 7)
    y = cbr(cbr(y, "Mixed_7a.branch7x7x3_3", 192, 7, 1), "Mixed_7a.branch7x7x3_4", 192, 3, 3, 2, same=False)
    x = torch.cat([z, y, F.max_pool2d(x, 3, 2)], 1)
    x = block_e(x, "Mixed_7b", average(x))
    x = block_e(x, "Mixed_7c", F.max_pool2d(x, 3, 1, 1))
    net.draw("fc.weight", 1008, 2048, scale=0.02)
    net.draw("fc.bias", 1008, scale=0.1)
    return x.flatten(2).mean(2)
