"""The denoiser contract over diffusers' `DiTTransformer2DModel`: class-conditional, and without a bottleneck."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from diffusers import DiTTransformer2DModel

from pipeline.errors import InputError, ModelError
from pipeline.models.unet2d import UNet2DDenoiser


class DiTDenoiser(UNet2DDenoiser):
    """A `DiTTransformer2DModel` with the schedule of a diffusers scheduler: x-space only.

    Schedule, prediction type and learned variance are treated as those of a UNet are.

    Args:
        transformer: any `DiTTransformer2DModel`.
        scheduler: any diffusers scheduler with `alphas_cumprod`.
        device, dtype: where and how to compute; default the network's own.
        class_label: a class in [0, N), N = `num_embeds_ada_norm`, 1000 for ImageNet. N itself, also meant by None, is
            the null class, which the network was trained with as its unconditional one.

    Raises:
        ModelError: no cumulative alphas, an unknown prediction type, or a class that does not exist.
    """

    family: ClassVar[str] = "diffusers DiTTransformer2DModel"

    def __init__(
        self,
        transformer: DiTTransformer2DModel,
        scheduler: Any,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        class_label: int | None = None,
    ) -> None:
        super().__init__(cast(Any, transformer), scheduler, device=device, dtype=dtype, class_label=class_label)

    def _output(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None) -> torch.Tensor:
        """The network's own output (B, C, H, W) without the learned variance."""
        if tuple(x.shape[1:]) != self.info.image_shape:
            raise InputError("x", tuple(x.shape), f"(B, {', '.join(map(str, self.info.image_shape))})")
        if h_shift is not None:
            self.need_bottleneck()
        timesteps = self._times(x, t)
        labels = torch.full_like(timesteps, cast(int, self._class_label))
        output = self._unet(x, timestep=timesteps, class_labels=labels).sample
        return cast(torch.Tensor, output[:, : x.shape[1]])

    def _whole_pass(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self._output(x, 0, None), None

    def _checked_label(self, config: dict[str, Any], label: int | None) -> int:
        null = int(config["num_embeds_ada_norm"])
        chosen = null if label is None else label
        if not 0 <= chosen <= null:
            raise ModelError("class_label", chosen, f"a class in [0, {null}), or {null} for none")
        return chosen
