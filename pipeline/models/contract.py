"""The denoiser contract: everything the rest of the pipeline may ask of a diffusion model.

A denoiser maps a noisy image x_t = alpha_t x0 + sigma_t n to its prediction. Whatever the network was trained to
output (noise, v, clean image), the contract speaks of the noise prediction `eps` and the posterior mean
f = (x_t - sigma_t eps) / alpha_t. Timesteps are integers in [0, T), T = `info.train_timesteps`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DenoiserInfo:
    """What `rhumb inspect` prints. Shapes are (C, H, W) without the batch; `bottleneck_shape` is None without one."""

    family: str
    parameters: int
    prediction: str  # "epsilon" | "v_prediction" | "sample"
    image_shape: tuple[int, int, int]
    bottleneck_shape: tuple[int, int, int] | None
    schedule: str
    train_timesteps: int
    fingerprint: str  # sha256 over weights and numerical configuration, 32 hex digits


class Denoiser(ABC):
    """One diffusion model. Tensors live on `device`, floats in `dtype`; B is the batch."""

    info: DenoiserInfo
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def alpha_sigma(self, t: int) -> tuple[float, float]:
        """(alpha_t, sigma_t) of x_t = alpha_t x0 + sigma_t n; t = -1 is the clean image, (1.0, 0.0)."""

    @abstractmethod
    def predict_noise(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        """eps(x, t), (B, C, H, W), with `h_shift` (B|1, *bottleneck_shape) added to the bottleneck activation."""

    @abstractmethod
    def bottleneck(self, x: torch.Tensor, t: int) -> torch.Tensor:
        """Bottleneck activation h (B, *bottleneck_shape): the output of the network's middle block."""

    @abstractmethod
    def noise_from_bottleneck(self, x: torch.Tensor, t: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The map h -> eps with x, t and every skip connection held fixed; runs only the part behind h."""

    def posterior_mean(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        """E[x0 | x_t = x] as the network predicts it, (B, C, H, W). LOCO Edit, eq. 2."""
        alpha, sigma = self.alpha_sigma(t)
        return (x - sigma * self.predict_noise(x, t, h_shift)) / alpha

    @abstractmethod
    def differentiable(self) -> Denoiser:
        """The same model with attention and group norm that survive forward-mode differentiation."""
