"""A model that takes text of which everything is known: the exact posterior mean of a Gaussian for each prompt.

x0 is normal with mean `MEANS[text]` and covariance C of rank 4: two factors of variation inside the left region, one
that is half inside it and half outside, one outside it. Then f(x) = A x + (I - alpha A) mean, with A = alpha C (alpha^2
C + sigma^2 I)^-1, so that every Jacobian is A, whatever the prompt; `stretched` gives prompts covariances of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache

import torch

from pipeline.methods.contract import Subject
from pipeline.models.contract import Denoiser, DenoiserInfo
from pipeline.models.forward_mode import forward_mode_copy
from pipeline.models.prompted import PromptedDenoiser

SHAPE, STEPS = (3, 8, 8), 50
SIZE = math.prod(SHAPE)
VARIANCES = (1.0, 0.5, 0.4, 0.3)
TEXTS = ("", "a face", "a smiling face", "an old face")


def left() -> torch.Tensor:
    """The left region, bool (8, 8)."""
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[1:5, 1:4] = True
    return mask


def inside() -> torch.Tensor:
    """The left region over all numbers of a picture, (SIZE,)."""
    return left().expand(SHAPE).flatten().double()


@cache
def factors() -> torch.Tensor:
    """Orthonormal factors of variation (4, SIZE): two inside the region, one across its edge, one outside."""
    drawn = torch.randn((5, SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own, others = torch.linalg.qr((drawn[:3] * inside()).T)[0].T, torch.linalg.qr((drawn[3:] * (1 - inside())).T)[0].T
    return torch.stack([own[0], own[1], (own[2] + others[0]) / math.sqrt(2.0), others[1]])


@cache
def means() -> dict[str, torch.Tensor]:
    """Each prompt's mean (SIZE,); no words are grey."""
    drawn = 0.3 * torch.randn((len(TEXTS), SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return {text: mean if text else torch.zeros_like(mean) for text, mean in zip(TEXTS, drawn, strict=True)}


class OnePrompt(Denoiser):
    """The exact denoiser of one Gaussian: `mean` (SIZE,), variances of the `factors`."""

    def __init__(self, text: str, mean: torch.Tensor, variances: tuple[float, ...] = VARIANCES) -> None:
        self.mean, self.factors, self.variances = mean, factors(), torch.tensor(variances, dtype=torch.float64)
        self.device, self.dtype = torch.device("cpu"), torch.float64
        self.info = DenoiserInfo("Gaussian", 0, "epsilon", SHAPE, None, "linear", STEPS, f"gaussian {text}")

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        sigma = 0.0 if t < 0 else (t + 1) / (STEPS + 1)
        return math.sqrt(1.0 - sigma**2), sigma

    def matrix(self, t: int) -> torch.Tensor:
        """A, (SIZE, SIZE)."""
        return self.factors.T @ (self._shrink(t)[:, None] * self.factors)

    def _shrink(self, t: int) -> torch.Tensor:
        """The eigenvalues of A, of the factors."""
        alpha, sigma = self.alpha_sigma(t)
        return alpha * self.variances / (alpha**2 * self.variances + sigma**2)

    def posterior_mean(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        alpha, _ = self.alpha_sigma(t)
        away = x.flatten(1) - alpha * self.mean
        return (self.mean + self._shrink(t) * (away @ self.factors.T) @ self.factors).view_as(x)

    def predict_noise(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        alpha, sigma = self.alpha_sigma(t)
        return (x - alpha * self.posterior_mean(x, t)) / sigma

    def bottleneck(self, x: torch.Tensor, t: int) -> torch.Tensor:
        raise NotImplementedError

    def noise_from_bottleneck(self, x: torch.Tensor, t: int) -> Callable[[torch.Tensor], torch.Tensor]:
        raise NotImplementedError

    def differentiable(self) -> Denoiser:
        forward_mode_copy(torch.nn.Identity())  # loads torch's forward-mode rules without their warning
        return self


class Gaussians(OnePrompt, PromptedDenoiser):
    """One Gaussian a prompt. `stretched`: prompt -> variances of its own."""

    def __init__(self, stretched: Mapping[str, tuple[float, ...]] | None = None) -> None:
        super().__init__("", means()[""])
        self.stretched = dict(stretched or {})

    def prompted(self, text: str) -> OnePrompt:
        return OnePrompt(text, means()[text], self.stretched.get(text, VARIANCES))


def subject(**masks: torch.Tensor) -> Subject:
    """A picture with its left region, or other ones."""
    x_t = 0.5 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Subject("image", x_t, x_t, masks or {"left": left()})
