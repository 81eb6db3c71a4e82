"""Identity: whether a face stays the same person, as the cosine of its ArcFace embeddings before and after.

ArcFace: Deng et al. 2019, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition" (arXiv:1801.07698), with
the residual networks of the authors' insightface (`arcface_torch`, iresnet). Faces are taken to be aligned as that
network was trained, eyes, nose and mouth at fixed places of a 112 x 112 picture. Nothing here detects or aligns faces;
other crops still give a cosine, which then is comparable only with figures of the same crops.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pipeline.perception.contract import WeightFile, rgb, rgb_pair
from pipeline.perception.weights import filled, weight_file

SIZE = 112
WIDTH = 512
Depth = Literal["r18", "r34", "r50", "r100"]
BLOCKS: dict[Depth, tuple[int, int, int, int]] = {
    "r18": (2, 2, 2, 2),
    "r34": (3, 4, 6, 3),
    "r50": (3, 4, 14, 3),
    "r100": (3, 13, 30, 3),
}
"""Residual blocks of each stage."""

_BATCH = 64


class _Block(nn.Module):
    """Norm, convolution, norm, PReLU, convolution (with the stride), norm; beside it the input, projected where its
    shape changes. (B, inputs, H, W) -> (B, width, H / stride, W / stride)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            if stride > 1
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(inner)) + self.downsample(x)


class IResNet(nn.Module):
    """insightface's residual network: (B, 3, 112, 112) -> embeddings (B, 512); parameters by its names."""

    def __init__(self, depth: Depth) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        inputs, stages = 64, []
        for width, count in zip((64, 128, 256, 512), BLOCKS[depth], strict=True):
            stages.append(nn.Sequential(_Block(inputs, width, 2), *(_Block(width, width, 1) for _ in range(count - 1))))
            inputs = width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * (SIZE // 16) ** 2, WIDTH)
        self.features = nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.bn2(x).flatten(1)))


class ArcFace:
    """Cosine of ArcFace embeddings; 1 is the same picture, about 0 are two strangers.

    Args:
        depth: which of insightface's networks the file holds.
        weights: its `backbone.pth`, or safetensors with its names.

    Raises:
        ModelError: a file that cannot be read, or does not fit the network of this depth.
    """

    width = WIDTH

    def __init__(self, depth: Depth, weights: Path, device: torch.device | str = "cpu") -> None:
        self.name = f"identity (ArcFace {depth})"
        self.files: tuple[WeightFile, ...] = (weight_file(weights),)
        action = f"Give backbone.pth of insightface's {depth}, under a name that says its depth."
        self._network = filled(lambda: IResNet(depth), weights, action).to(device)

    def __call__(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Cosines (B,) in [-1, 1] of aligned faces (B, 1 or 3, H, W) in [-1, 1]; cost one forward pass a picture.

        Raises:
            InputError: other shapes, or pixels that are not finite.
        """
        first, second = (self.features(pictures) for pictures in rgb_pair(before, after))
        return nn.functional.cosine_similarity(first, second).clamp(-1, 1)

    @torch.no_grad()
    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, 512), not normalised, of aligned faces (B, 1 or 3, H, W) in [-1, 1], RGB.

        Pictures of another size are resized bilinearly, averaging where they shrink. No randomness.
        """
        weight = self._network.fc.weight
        results = []
        for part in rgb(pictures).split(_BATCH):
            if tuple(part.shape[-2:]) != (SIZE, SIZE):
                part = nn.functional.interpolate(
                    part, size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True
                )
            results.append(self._network(part.to(weight.device)).to(pictures.device))
        return torch.cat(results)
