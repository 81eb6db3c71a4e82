"""Latent models: any denoiser whose x_t are the latents of an autoencoder, with pictures on the outside."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL

from pipeline.errors import InputError, ModelError
from pipeline.models.contract import Denoiser
from pipeline.models.fingerprints import fingerprint, known_settings
from pipeline.models.forward_mode import forward_mode_copy, shared_copy

_TOGETHER = 4  # pictures that go through the autoencoder at once: its layers at full size outweigh the network's


class LatentDenoiser(Denoiser):
    """A denoiser of latents with the autoencoder that leads there and back.

    x0 = (z - shift_factor) * scaling_factor, where z is the mode of the encoder's posterior: nothing is random. The
    given autoencoder is neither changed nor moved.

    Args:
        inner: the denoiser of latents; its `image_shape` is theirs.
        vae: any `AutoencoderKL` of that many latent channels, whose pictures go in as they come out.

    Raises:
        ModelError: an autoencoder of other latents, one that scales every latent channel by itself, or by no number.
    """

    def __init__(self, inner: Denoiser, vae: AutoencoderKL) -> None:
        config: Any = vae.config
        channels, height, width = inner.info.x_shape
        if config.latent_channels != channels:
            raise ModelError("vae: latent_channels", config.latent_channels, f"{channels}, as the denoiser has")
        if config.in_channels != config.out_channels:
            raise ModelError("vae: out_channels", config.out_channels, f"in_channels, {config.in_channels}")
        if config.get("latents_mean") is not None or config.get("latents_std") is not None:
            raise ModelError("vae: latents_mean, latents_std", "values for every channel", "one scaling_factor")
        self._inner, self.device, self.dtype = inner, inner.device, inner.dtype
        self._vae: Any = shared_copy(vae, device=self.device, dtype=self.dtype).eval()
        self._scale, self._shift = _number(config, "scaling_factor"), _number(config, "shift_factor", 0.0)
        if self._scale == 0.0:
            raise ModelError("vae: scaling_factor", 0, "a number other than 0, which latents are divided by")
        self._twin: LatentDenoiser | None = None
        factor = 2 ** (len(config.block_out_channels) - 1)
        self.info = replace(
            inner.info,
            family=f"{inner.info.family} on latents of AutoencoderKL",
            parameters=inner.info.parameters + sum(p.numel() for p in vae.parameters()),
            image_shape=(config.out_channels, height * factor, width * factor),
            latent_shape=inner.info.x_shape,
            fingerprint=fingerprint(
                [inner.info.fingerprint, type(vae).__name__, known_settings(vae)], vae.state_dict()
            ),
        )

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """x0 (B, *latent_shape) of pictures (B, *image_shape) in [-1, 1]. Raises InputError for another shape."""
        if tuple(pictures.shape[1:]) != self.info.image_shape:
            raise InputError("pictures", tuple(pictures.shape), f"(B, {', '.join(map(str, self.info.image_shape))})")
        parts = [self._vae.encode(part).latent_dist.mode() for part in pictures.split(_TOGETHER)]
        return (torch.cat(parts) - self._shift) * self._scale

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        latents = x0 / self._scale + self._shift
        return torch.cat([self._vae.decode(part).sample for part in latents.split(_TOGETHER)])

    def differentiable(self) -> LatentDenoiser:
        """The same model, weights shared, whose network and autoencoder survive forward mode; made once."""
        if self._twin is None:
            twin = copy.copy(self)
            twin._inner, twin._vae, twin._twin = self._inner.differentiable(), forward_mode_copy(self._vae), twin
            self._twin = twin
        return self._twin

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        return self._inner.alpha_sigma(t)

    def predict_noise(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        return self._inner.predict_noise(x, t, h_shift)

    def posterior_mean(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        return self._inner.posterior_mean(x, t, h_shift)

    def bottleneck(self, x: torch.Tensor, t: int) -> torch.Tensor:
        return self._inner.bottleneck(x, t)

    def noise_from_bottleneck(self, x: torch.Tensor, t: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return self._inner.noise_from_bottleneck(x, t)

    def posterior_mean_from_bottleneck(self, x: torch.Tensor, t: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return self._inner.posterior_mean_from_bottleneck(x, t)


def _number(config: Any, name: str, default: float | None = None) -> float:
    """A finite number of the autoencoder's configuration, `default` in place of null. Raises ModelError for others."""
    value = default if config.get(name) is None else config[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ModelError(f"vae: {name}", repr(value), "a finite number")
    return float(value)
