"""Models that take text: a denoiser under any prompt, and classifier-free guidance by several prompts at once.

Ho and Salimans 2022, "Classifier-Free Diffusion Guidance". An adapter gives one thing, `PromptedDenoiser.prompted`;
what it returns is a denoiser like any other, of latents too, and guidance is a weighted sum of such denoisers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce

import torch

from pipeline.errors import InputError, ModelError
from pipeline.models.contract import Denoiser
from pipeline.models.fingerprints import fingerprint


class PromptedDenoiser(Denoiser):
    """A model that takes text. By itself it is the model under no words, as images are inverted by it."""

    @abstractmethod
    def prompted(self, text: str) -> Denoiser:
        """The same model under a prompt, "" being no words: the same weights, x_shape, schedule, device and dtype.

        Asked for often: what is slow, such as embedding a text, belongs in a cache. Raises ModelError for a text that
        the model cannot take.
        """


class GuidedDenoiser(Denoiser):
    """The sum of weight * prediction over one model under several prompts; weights sum to 1. x-space only: every
    prompt has a bottleneck of its own.

    Args:
        parts: prompt -> its weight and the model under it; at least one, all of one shape and schedule.
    """

    def __init__(self, parts: Mapping[str, tuple[float, Denoiser]]) -> None:
        total = sum(weight for weight, _ in parts.values())
        if not parts or not abs(total - 1.0) < 1e-6:
            raise InputError("parts: weights", total, "a sum of 1")
        self._parts = dict(parts)
        self._first = next(iter(self._parts.values()))[1]
        self.device, self.dtype, self.origin = self._first.device, self._first.dtype, self._first.origin
        settings = [[text, weight, part.info.fingerprint] for text, (weight, part) in sorted(self._parts.items())]
        self.info = replace(
            self._first.info,
            family=f"{self._first.info.family} under guidance",
            bottleneck_shape=None,
            fingerprint=fingerprint(["guidance", settings], {}),
        )
        self._twin: GuidedDenoiser | None = None

    @property
    def networks(self) -> int:
        """Network passes of one prediction, and of one product with its Jacobian."""
        return len(self._parts)

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        return self._first.alpha_sigma(t)

    def predict_noise(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        """eps(x, t), (B, C, H, W). Cost: `networks` passes. Raises ModelError for an `h_shift`."""
        return self._mixed(lambda part: part.predict_noise(x, t), h_shift)

    def posterior_mean(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        """E[x0 | x_t = x], (B, C, H, W), which is mixed as eps is since the weights sum to 1."""
        return self._mixed(lambda part: part.posterior_mean(x, t), h_shift)

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return self._first.encode(pictures)

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        return self._first.decode(x0)

    def bottleneck(self, x: torch.Tensor, t: int) -> torch.Tensor:
        """Raises ModelError: there is none."""
        raise self._no_bottleneck()

    def noise_from_bottleneck(self, x: torch.Tensor, t: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Raises ModelError: there is none."""
        raise self._no_bottleneck()

    def differentiable(self) -> GuidedDenoiser:
        """The same of parts that survive forward mode; made once."""
        if self._twin is None:
            parts = {text: (weight, part.differentiable()) for text, (weight, part) in self._parts.items()}
            self._twin = GuidedDenoiser(parts)
            self._twin._twin = self._twin
        return self._twin

    def _mixed(self, predict: Callable[[Denoiser], torch.Tensor], h_shift: torch.Tensor | None) -> torch.Tensor:
        if h_shift is not None:
            raise self._no_bottleneck()
        return reduce(torch.add, (weight * predict(part) for weight, part in self._parts.values()))

    def _no_bottleneck(self) -> ModelError:
        return ModelError(
            "bottleneck", "one for each prompt of the guidance", "one prompt, for h-space",
            "Ask the model under a single prompt, without guidance.",
        )  # fmt: skip


def guided(model: PromptedDenoiser, scales: Mapping[str, float]) -> Denoiser:
    """Classifier-free guidance: eps_0 + the sum of scale * (eps_text - eps_0), eps_0 being under no words.

    Cost of a prediction: a pass for every prompt of another weight than 0, no words included; a single prompt at
    scale 1 is the model under it, without guidance.
    """
    weights = {"": 1.0 - sum(scales.values())}
    for text, scale in scales.items():
        weights[text] = weights.get(text, 0.0) + scale
    kept = {text: weight for text, weight in weights.items() if weight != 0.0}
    if list(kept.values()) == [1.0]:
        return model.prompted(next(iter(kept)))
    return GuidedDenoiser({text: (weight, model.prompted(text)) for text, weight in kept.items()})


def networks(denoiser: Denoiser) -> int:
    """Network passes of one prediction of a denoiser: several under guidance."""
    return denoiser.networks if isinstance(denoiser, GuidedDenoiser) else 1
