"""Features for FID and KID: the Inception network of the original FID, as ported by pytorch-fid.

Heusel et al. 2017 (arXiv:1706.08500) took TensorFlow's inception-2015-12-05. It differs from torchvision's Inception v3
(Szegedy et al. 2015, arXiv:1512.00567) in its weights, its 1,008 classes, average pooling that does not count padding,
and max pooling in its last block. Figures from any other network are not FID, so the classifier's 1,008 rows must be
in the file, though features do not use them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pipeline.perception.contract import WeightFile, rgb
from pipeline.perception.weights import filled, weight_file

SIZE = 299
WIDTH = 2048
CLASSES = 1008
PUBLISHED_FILE = "pt_inception-2015-12-05-6726825d.pth"
_BATCH = 16

Kernel = int | tuple[int, int]
Step = tuple[int, Kernel]
"""Output channels and kernel of one convolution; a branch is several, `_FORK` last where its end forks in two."""

_FORK: Step = (384, (1, 3))  # and (3, 1) beside it, their outputs side by side
Pooling = Literal["average", "max"]


class _Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches side by side, and a pooled branch with a 1 x 1 convolution to `pooled` channels.

    With `pooled` 0 the block halves the picture: the last convolution of each branch and the pooling have stride 2.
    """

    def __init__(
        self, inputs: int, branches: Mapping[str, Sequence[Step]], pooled: int, pooling: Pooling = "average"
    ) -> None:
        super().__init__()
        self.pooled, self.pooling = pooled, pooling
        self.paths: list[list[tuple[str, ...]]] = []
        for branch, steps in branches.items():
            self.paths.append(self._add(branch, inputs, steps))
        if pooled:
            self.branch_pool = _Convolution(inputs, pooled, 1)

    def _add(self, branch: str, inputs: int, steps: Sequence[Step]) -> list[tuple[str, ...]]:
        """Make a branch's convolutions; their names in order, two at a fork."""
        path: list[tuple[str, ...]] = []
        for number, (outputs, kernel) in enumerate(steps, start=1):
            name = branch if len(steps) == 1 else f"{branch}_{number}"
            if (outputs, kernel) == _FORK:
                self.add_module(f"{name}a", _Convolution(inputs, outputs, (1, 3)))
                self.add_module(f"{name}b", _Convolution(inputs, outputs, (3, 1)))
                path.append((f"{name}a", f"{name}b"))
            else:
                halves = not self.pooled and number == len(steps)
                self.add_module(name, _Convolution(inputs, outputs, kernel, 2 if halves else 1, not halves))
                path.append((name,))
            inputs = outputs
        return path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        results = []
        for path in self.paths:
            y = x
            for names in path:
                y = torch.cat([self.get_submodule(name)(y) for name in names], dim=1)
            results.append(y)
        return torch.cat([*results, self._pool(x)], dim=1)

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        if not self.pooled:
            return nn.functional.max_pool2d(x, 3, 2)
        if self.pooling == "max":
            return self.branch_pool(nn.functional.max_pool2d(x, 3, 1, 1))
        return self.branch_pool(nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False))


def _a(inputs: int, pooled: int) -> _Mixed:
    """35 x 35 blocks."""
    thrice: list[Step] = [(64, 1), (96, 3), (96, 3)]
    return _Mixed(inputs, {"branch1x1": [(64, 1)], "branch5x5": [(48, 1), (64, 5)], "branch3x3dbl": thrice}, pooled)


def _c(width: int) -> _Mixed:
    """17 x 17 blocks, whose 7 x 7 convolutions are a row and a column."""
    row, column = (1, 7), (7, 1)
    once: list[Step] = [(width, 1), (width, row), (192, column)]
    twice: list[Step] = [(width, 1), (width, column), (width, row), (width, column), (192, row)]
    return _Mixed(768, {"branch1x1": [(192, 1)], "branch7x7": once, "branch7x7dbl": twice}, 192)


def _e(inputs: int, pooling: Pooling) -> _Mixed:
    """8 x 8 blocks, whose branches fork."""
    branches: dict[str, list[Step]] = {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1), _FORK],
        "branch3x3dbl": [(448, 1), (384, 3), _FORK],
    }
    return _Mixed(inputs, branches, 192, pooling)


class InceptionNetwork(nn.Module):
    """(B, 3, 299, 299) in [-1, 1] -> (B, 2048), averaged over positions; parameters by torchvision's names."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, 2, pad=False)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _Mixed(288, {"branch3x3": [(384, 3)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]}, 0)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _c(128), _c(160), _c(160), _c(192)
        seven: list[Step] = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)]
        self.Mixed_7a = _Mixed(768, {"branch3x3": [(192, 1), (320, 3)], "branch7x7x3": seven}, 0)
        self.Mixed_7b, self.Mixed_7c = _e(1280, "average"), _e(2048, "max")
        self.fc = nn.Linear(WIDTH, CLASSES)  # tells this network's file from torchvision's; see above

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(nn.functional.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(nn.functional.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))


class Inception:
    """The features that FID and KID compare.

    Args:
        weights: pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`, or safetensors with its names.

    Raises:
        ModelError: a file that cannot be read or does not fit, such as torchvision's own Inception v3.
    """

    name = "Inception (2015-12-05)"
    width = WIDTH

    def __init__(self, weights: Path, device: torch.device | str = "cpu") -> None:
        self.files: tuple[WeightFile, ...] = (weight_file(weights),)
        action = f"Give pytorch-fid's {PUBLISHED_FILE}; figures from another Inception are not FID."
        self._network = filled(InceptionNetwork, weights, action).to(device)

    @torch.no_grad()
    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features (B, 2048) of pictures (B, 1 or 3, H, W) in [-1, 1], clamped to it, as files of pictures are.

        Resized bilinearly to 299 x 299 without averaging, as pytorch-fid does. Cost: 5.7 G multiplications a picture.

        Raises:
            InputError: another shape, or pixels that are not finite.
        """
        weight = self._network.fc.weight
        results = []
        for part in rgb(pictures).split(_BATCH):
            resized = nn.functional.interpolate(
                part.to(weight.device).clamp(-1, 1), size=(SIZE, SIZE), mode="bilinear", align_corners=False
            )
            results.append(self._network(resized).to(pictures.device))
        return torch.cat(results)
