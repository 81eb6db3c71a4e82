"""Makers of tiny random transformers, conditional UNets and autoencoders, in memory and as diffusers folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel, UNet2DConditionModel
from torch import nn

from pipeline.models.conditional import ConditionalDenoiser
from pipeline.models.dit import DiTDenoiser
from pipeline.models.latents import LatentDenoiser
from tests.pipeline.tiny_models import tiny_scheduler

CLASSES = 10
Module = TypeVar("Module", bound=nn.Module)


def _drawn(module: Module, seed: int) -> Module:
    """The module with every weight drawn afresh, so that no layer starts at zero and no gate is shut."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            offset = 1.0 if "norm" in name and name.endswith("weight") and parameter.ndim == 1 else 0.0
            scale = 0.1 if parameter.ndim < 2 else (1.0 / parameter[0].numel()) ** 0.5
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def tiny_dit(*, size: int = 8, channels: int = 4, seed: int = 0, **options: Any) -> DiTTransformer2DModel:
    """A random transformer of two blocks of width 16, patches of 2, with learned variance and 10 classes."""
    settings: dict[str, Any] = {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": 2 * channels,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_embeds_ada_norm": CLASSES,
    }
    return _drawn(DiTTransformer2DModel(**{**settings, **options}), seed)


def tiny_conditional(*, size: int | tuple[int, int] = 8, seed: int = 0, **options: Any) -> UNet2DConditionModel:
    """A random conditional UNet of two levels (8, 16), cross-attention of width 6 on all but the lower way down."""
    settings: dict[str, Any] = {
        "sample_size": size,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 6,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return _drawn(UNet2DConditionModel(**{**settings, **options}), seed)


def tiny_vae(*, seed: int = 1, **options: Any) -> AutoencoderKL:
    """A random autoencoder: pictures (3, 2H, 2W), latents (4, H, W)."""
    settings: dict[str, Any] = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 2,
        "scaling_factor": 0.7,
    }
    return _drawn(AutoencoderKL(**{**settings, **options}), seed)


def tiny_prompt(seed: int = 2) -> torch.Tensor:
    """An embedding (1, 5, 6)."""
    return torch.randn((1, 5, 6), generator=torch.Generator().manual_seed(seed))


def tiny_dit_denoiser(
    prediction: str = "epsilon", *, dtype: torch.dtype = torch.float32, class_label: int | None = None, **dit: Any
) -> DiTDenoiser:
    return DiTDenoiser(tiny_dit(**dit), tiny_scheduler(prediction), dtype=dtype, class_label=class_label)


def tiny_conditional_denoiser(
    prediction: str = "epsilon", *, dtype: torch.dtype = torch.float32, **unet: Any
) -> ConditionalDenoiser:
    return ConditionalDenoiser(tiny_conditional(**unet), tiny_scheduler(prediction), tiny_prompt(), dtype=dtype)


def tiny_latent_denoiser(
    kind: str = "dit", *, dtype: torch.dtype = torch.float32, vae: dict[str, Any] | None = None, **network: Any
) -> LatentDenoiser:
    """`tiny_dit` ("dit") or `tiny_conditional` ("conditional") on the latents of `tiny_vae`."""
    make = tiny_dit_denoiser if kind == "dit" else tiny_conditional_denoiser
    return LatentDenoiser(make(dtype=dtype, **network), tiny_vae(**(vae or {})))


def tiny_dit_folder(folder: Path, **dit: Any) -> Path:
    """A diffusers `DiTPipeline` saved to `folder` (model_index.json, transformer/, vae/, scheduler/); returns it."""
    pipeline = DiTPipeline(tiny_dit(**dit), tiny_vae(), tiny_scheduler("epsilon"))
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def noise(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, count: int = 1, seed: int = 0) -> torch.Tensor:
    """(count, *shape) standard normal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, *shape), generator=generator, dtype=torch.float64).to(dtype)
