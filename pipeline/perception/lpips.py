"""LPIPS: perceptual distance between pictures. Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric" (arXiv:1801.03924), version 0.1, with AlexNet or VGG16.

d(x, y) = sum over layers l of the mean over positions of sum_c w_lc (a_lc - b_lc)^2, where a and b are activations of a
network trained on ImageNet, of unit length over channels at every position, and w >= 0 was fitted to people's
judgements (eq. 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from pipeline.errors import InputError, ModelError
from pipeline.perception.contract import WeightFile, rgb_pair
from pipeline.perception.weights import filled, fitting, read_weights, weight_file

SMALLEST = 32  # pixels; below, AlexNet's second pooling has nothing to pool
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation for [-1, 1]
_EPSILON = 1e-10  # added to lengths, as the authors do
_BATCH = 16  # pictures at once; VGG16's first layers then take 270 MB each at 256 x 256


class Parts(NamedTuple):
    """Mean of the spatial map over the pixels inside and outside a mask, each (B,)."""

    inside: torch.Tensor
    outside: torch.Tensor


@dataclass(frozen=True)
class Trunk:
    """The convolutions of a network of torchvision's, and the numbers of the layers whose activations are compared."""

    title: str
    build: Callable[[], nn.Sequential]
    taps: tuple[int, ...]
    channels: tuple[int, ...]
    file: str


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(),
    )  # fmt: skip


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for width, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers[:-1])


Network = Literal["alex", "vgg"]
TRUNKS: dict[Network, Trunk] = {
    "alex": Trunk("AlexNet", _alexnet, (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), "alexnet-owt-7be5be79.pth"),
    "vgg": Trunk("VGG16", _vgg16, (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), "vgg16-397923af.pth"),
}


class Lpips:
    """LPIPS under one network, from its weights and the linear layers of the authors; smaller is more alike.

    Args:
        network: "alex", the authors' choice for measuring, or "vgg".
        trunk: the network's state dict, names `features.0.weight` ... as torchvision saves them; its classifier is not
            used and may be left out.
        linear: the linear layers, names `lin0.model.1.weight` ... as the authors' package `lpips` saves them.

    Raises:
        ModelError: a file that cannot be read or does not fit, or a negative weight in a linear layer.
    """

    def __init__(self, network: Network, trunk: Path, linear: Path, device: torch.device | str = "cpu") -> None:
        kind = TRUNKS[network]
        self.name = f"LPIPS ({kind.title})"
        self.files: tuple[WeightFile, ...] = (weight_file(trunk), weight_file(linear))
        self._taps = kind.taps
        built = filled(
            lambda: nn.ModuleDict({"features": kind.build()}), trunk,
            f"Give torchvision's {kind.title}, {kind.file}, or safetensors with its names.", unused="classifier.",
        )  # fmt: skip
        self._layers: Sequence[nn.Module] = list(built["features"].to(device).children())
        self._weights = [weight.to(device) for weight in _linear(linear, network, kind.channels)]
        self._shift, self._scale = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (_SHIFT, _SCALE))

    def __call__(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Distances (B,) of pictures (B, 1 or 3, H, W) in [-1, 1]: 0 where they are equal, symmetric.

        Cost: one forward pass a picture. No randomness.

        Raises:
            InputError: other shapes, pictures under 32 x 32, or pixels that are not finite.
        """
        return torch.cat(
            [torch.stack([layer.mean(dim=(1, 2)) for layer in maps]).sum(0) for maps in self._maps(before, after)]
        )

    def spatial(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The map of distances (B, H, W): each layer's, bilinearly enlarged to the pictures' size, summed.

        Its mean is not exactly the distance, since bilinear weights at the borders differ. Cost and Raises as for
        distances.
        """
        size = tuple(before.shape[-2:])
        maps = ([_enlarged(layer, size) for layer in layers] for layers in self._maps(before, after))
        return torch.cat([torch.stack(layers).sum(0) for layers in maps])

    def parts(self, before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor) -> Parts:
        """Distances inside and outside a mask (H, W) or (B, H, W), true or 1 inside: means of the spatial map.

        A change inside also reaches the map outside, as far as the layers see (the deepest about 80 to 100 pixels each
        way), so the outside figure overstates what changed there, most of all in small pictures.

        Raises:
            InputError: as for distances; a mask of another shape, empty, or over the whole picture.
        """
        if mask.shape not in (before.shape[-2:], (len(before), *before.shape[-2:])):
            raise InputError("mask", tuple(mask.shape), f"{tuple(before.shape[-2:])}, or that for each picture")
        inside = mask.to(before.device, torch.float32).expand(len(before), *mask.shape[-2:])
        shares = inside.flatten(1).mean(dim=1)
        if not bool(((shares > 0) & (shares < 1)).all()):
            raise InputError("mask", "an empty mask or one over the whole picture", "pixels inside and outside")
        distances = self.spatial(before, after)
        means = [(distances * part).flatten(1).sum(1) / part.flatten(1).sum(1) for part in (inside, 1 - inside)]
        return Parts(*means)

    @torch.no_grad()
    def _maps(self, before: torch.Tensor, after: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        """Batch by batch, each layer's weighted squared difference (b, h, w) of unit activations."""
        pairs = rgb_pair(before, after)
        if min(before.shape[-2:]) < SMALLEST:
            raise InputError("image size", tuple(before.shape[-2:]), f"at least {SMALLEST} x {SMALLEST}")
        for first, second in zip(*(pictures.split(_BATCH) for pictures in pairs), strict=True):
            layers = zip(self._activations(first), self._activations(second), self._weights, strict=True)
            yield [((a - b).square() * weight).sum(dim=1).to(before.device) for a, b, weight in layers]

    def _activations(self, pictures: torch.Tensor) -> Iterator[torch.Tensor]:
        x = (pictures.to(self._shift) - self._shift) / self._scale
        for number, layer in enumerate(self._layers):
            x = layer(x)
            if number in self._taps:
                yield x / (x.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON)


def _linear(path: Path, network: Network, channels: Sequence[int]) -> list[torch.Tensor]:
    """The weights of each layer's channels, each (1, channels, 1, 1)."""
    shapes = {f"lin{i}.model.1.weight": (1, count, 1, 1) for i, count in enumerate(channels)}
    state = fitting(path, read_weights(path), shapes, f"Give lpips/weights/v0.1/{network}.pth of the package lpips.")
    negative = [name for name, weight in state.items() if bool((weight < 0).any())]
    if negative:
        raise ModelError(str(path), f"negative weights in {negative[0]}", "none, or the figure would be no distance")
    return list(state.values())


def _enlarged(layer: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """(b, h, w) -> (b, *size), bilinear."""
    return nn.functional.interpolate(layer[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
