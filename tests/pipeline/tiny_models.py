"""Makers of tiny random models, in memory and as diffusers folders, for every test that needs one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from pipeline.models.unet2d import UNet2DDenoiser


def tiny_unet(
    *, size: int | tuple[int, int] = 8, channels: int = 3, down_attention: bool = False, seed: int = 0, **options: Any
) -> UNet2DModel:
    """A random `UNet2DModel` of two levels (8, 16), attention in the middle block and, if asked, on the way down.

    h has shape (16, H/2, W/2). Every weight is drawn afresh, so that no layer starts at zero.
    """
    settings: dict[str, Any] = {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D" if down_attention else "DownBlock2D"),
        "up_block_types": ("AttnUpBlock2D" if down_attention else "UpBlock2D", "UpBlock2D"),
    }
    unet = UNet2DModel(**{**settings, **options}).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            scale = 0.1 if parameter.ndim < 2 else (2.0 / parameter[0].numel()) ** 0.5
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))
    return unet


def tiny_scheduler(prediction: str = "v_prediction", *, steps: int = 50, **options: Any) -> DDPMScheduler:
    """A cosine schedule of a few training timesteps."""
    settings: dict[str, Any] = {
        "num_train_timesteps": steps,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": prediction,
        "clip_sample": False,
    }
    return DDPMScheduler(**{**settings, **options})


def tiny_denoiser(
    prediction: str = "v_prediction", *, dtype: torch.dtype = torch.float32, **unet: Any
) -> UNet2DDenoiser:
    """`tiny_unet(**unet)` behind the denoiser contract."""
    return UNet2DDenoiser(tiny_unet(**unet), tiny_scheduler(prediction), dtype=dtype)


def tiny_pipeline_folder(folder: Path, prediction: str = "v_prediction", **unet: Any) -> Path:
    """A diffusers `DDPMPipeline` saved to `folder` (model_index.json, unet/, scheduler/); returns it."""
    DDPMPipeline(tiny_unet(**unet), tiny_scheduler(prediction)).save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_image(denoiser: UNet2DDenoiser, *, count: int = 1, seed: int = 0) -> torch.Tensor:
    """(count, C, H, W) standard normal, in the denoiser's dtype."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn((count, *denoiser.info.image_shape), generator=generator, dtype=torch.float64)
    return image.to(device=denoiser.device, dtype=denoiser.dtype)
