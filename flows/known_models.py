"""What a model is before it is here: the architectures of published checkpoints, for ranks, sizes and cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any

from pipeline.costs import NetworkCost, network_cost, outline_unet2d
from pipeline.models.contract import Denoiser, DenoiserInfo
from pipeline.models.guided import unet_config
from pipeline.models.guided_presets import PRESETS, flags_of

_DDPM: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "layers_per_block": 2, "attention_head_dim": None, "norm_eps": 1e-6,
    "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
}  # fmt: skip
DDPM_256: dict[str, Any] = {
    **_DDPM,
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
}
DDPM_32: dict[str, Any] = {
    **_DDPM,
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
"""Ho et al. 2020, as published on the Hub."""
_SUBJECTS = ("celebahq", "church", "bedroom", "cat")
HUB: dict[str, Mapping[str, Any]] = {
    **{f"google/ddpm-{kind}{subject}-256": DDPM_256 for kind in ("", "ema-") for subject in _SUBJECTS},
    "google/ddpm-cifar10-32": DDPM_32,
}


@dataclass(frozen=True)
class Outline:
    """A model as far as it is known without its weights; `known_by` says where from."""

    info: DenoiserInfo
    cost: NetworkCost
    known_by: str

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        """That some of the image is left at t: schedules are checked on the model itself."""
        return 1.0, 0.0


def outline_of(denoiser: Denoiser) -> Outline:
    """The outline of a loaded model. Cost: no pass."""
    return Outline(denoiser.info, network_cost(denoiser), "the model itself")


def preset_of(reference: str) -> str | None:
    """The preset that a folder of converted weights is named after, as in the built-in recipes; None for others."""
    name = PurePath(reference).name
    return name if name in PRESETS else None


def known_outline(reference: str) -> Outline | None:
    """The outline of a model that is not here, by its name alone; None where the name says nothing."""
    model = reference.partition("@")[0]
    if model in HUB:
        return _outline(model)
    preset = preset_of(reference)
    return None if preset is None else _outline(preset)


@cache
def _outline(name: str) -> Outline:
    config = HUB[name] if name in HUB else unet_config(flags_of(name)[0])
    steps = 1000 if name in HUB else flags_of(name)[0].diffusion_steps
    found = outline_unet2d(config)
    info = DenoiserInfo(
        family="diffusers UNet2DModel",
        parameters=found.parameters,
        prediction="epsilon",
        image_shape=found.image_shape,
        bottleneck_shape=found.bottleneck_shape,
        schedule="not read yet",
        train_timesteps=steps,
        fingerprint="",
    )
    return Outline(info, found.cost, f"the published architecture of {name}")
