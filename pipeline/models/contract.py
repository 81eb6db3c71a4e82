"""The denoiser contract: everything the rest of the pipeline may ask of a diffusion model.

A denoiser maps a noisy image x_t = alpha_t x0 + sigma_t n to its prediction. Whatever the network was trained to
output (noise, v, clean image), the contract speaks of the noise prediction `eps` and the posterior mean
f = (x_t - sigma_t eps) / alpha_t. Timesteps are integers in [0, T), T = `info.train_timesteps`.

The x_t and x0 of a latent model are no pictures: `encode` and `decode` lead from one to the other, and change nothing
where x0 is the picture itself. Masks, effects and all that is measured belong to pictures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline.errors import ModelError
from pipeline.models.files import Origin

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class DenoiserInfo:
    """What `rhumb inspect` prints. Shapes are (C, H, W) without the batch.

    `image_shape` is that of pictures, `latent_shape` that of x_t where the two differ; `bottleneck_shape` is None for a
    network without one.
    """

    family: str
    parameters: int
    prediction: str  # "epsilon" | "v_prediction" | "sample" | "score"
    image_shape: Shape
    bottleneck_shape: Shape | None
    schedule: str
    train_timesteps: int
    fingerprint: str  # sha256 over weights and numerical configuration, 32 hex digits
    latent_shape: Shape | None = None

    @property
    def x_shape(self) -> Shape:
        """Shape of x_t, x0 and x-space directions."""
        return self.latent_shape or self.image_shape


class Denoiser(ABC):
    """One diffusion model. Tensors live on `device`, floats in `dtype`; B is the batch."""

    info: DenoiserInfo
    device: torch.device
    dtype: torch.dtype
    origin: Origin | None = None  # the files it was loaded from; None for a model made in memory

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

    def posterior_mean_from_bottleneck(self, x: torch.Tensor, t: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The map h -> posterior mean, as `noise_from_bottleneck` is h -> eps. This one divides by alpha."""
        alpha, sigma = self.alpha_sigma(t)
        noise = self.noise_from_bottleneck(x, t)
        return lambda h: (x - sigma * noise(h)) / alpha

    def need_bottleneck(self) -> Shape:
        """Shape of h. Raises ModelError, by the model's name, where there is none."""
        if self.info.bottleneck_shape is None:
            raise ModelError(
                "bottleneck", f"none in {self.info.family}", "a network with a middle block, for h-space",
                "Only x-space exists for this model.",
            )  # fmt: skip
        return self.info.bottleneck_shape

    def posterior_mean(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        """E[x0 | x_t = x] as the network predicts it, (B, C, H, W). LOCO Edit, eq. 2."""
        alpha, sigma = self.alpha_sigma(t)
        return (x - sigma * self.predict_noise(x, t, h_shift)) / alpha

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """x0 (B, *x_shape) of pictures (B, *image_shape) in [-1, 1]; the pictures themselves without an autoencoder."""
        return pictures

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """Pictures (B, *image_shape) of x0 (B, *x_shape), not clamped; differentiable where the denoiser is."""
        return x0

    def predicted_picture(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        """The posterior mean as a picture (B, *image_shape): what the Jacobians of "x0" differentiate."""
        return self.decode(self.posterior_mean(x, t, h_shift))

    @abstractmethod
    def differentiable(self) -> Denoiser:
        """The same model with attention and group norm that survive forward-mode differentiation."""
