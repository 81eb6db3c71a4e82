"""A denoiser that counts the images sent through it: network passes are the cost that no machine changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from pipeline.models.contract import Denoiser
from pipeline.models.prompted import PromptedDenoiser


class Counter(Protocol):
    """Whatever keeps the count."""

    passes: int


class CountingDenoiser(Denoiser):
    """`inner`, counting in `counter.passes`; products with Jacobians are counted by their operators.

    Half a pass, up to the bottleneck or behind it, counts as one.
    """

    def __init__(self, inner: Denoiser, counter: Counter) -> None:
        self._inner, self._counter = inner, counter
        self.info, self.device, self.dtype, self.origin = inner.info, inner.device, inner.dtype, inner.origin

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        return self._inner.alpha_sigma(t)

    def predict_noise(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        self._counter.passes += len(x)
        return self._inner.predict_noise(x, t, h_shift)

    def posterior_mean(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        self._counter.passes += len(x)
        return self._inner.posterior_mean(x, t, h_shift)

    def bottleneck(self, x: torch.Tensor, t: int) -> torch.Tensor:
        self._counter.passes += len(x)
        return self._inner.bottleneck(x, t)

    def noise_from_bottleneck(self, x: torch.Tensor, t: int) -> Callable[[torch.Tensor], torch.Tensor]:
        self._counter.passes += len(x)
        return self._counted(self._inner.noise_from_bottleneck(x, t))

    def posterior_mean_from_bottleneck(self, x: torch.Tensor, t: int) -> Callable[[torch.Tensor], torch.Tensor]:
        self._counter.passes += len(x)
        return self._counted(self._inner.posterior_mean_from_bottleneck(x, t))

    def _counted(self, behind: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(h: torch.Tensor) -> torch.Tensor:
            self._counter.passes += len(h)
            return behind(h)

        return run

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return self._inner.encode(pictures)

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        return self._inner.decode(x0)

    def predicted_picture(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        self._counter.passes += len(x)
        return self._inner.predicted_picture(x, t, h_shift)

    def differentiable(self) -> Denoiser:
        return self._inner.differentiable()


class CountingPromptedDenoiser(CountingDenoiser, PromptedDenoiser):
    """The same of a model that takes text: what it does under any prompt counts too."""

    def __init__(self, inner: PromptedDenoiser, counter: Counter) -> None:
        super().__init__(inner, counter)
        self._prompts = inner

    def prompted(self, text: str) -> Denoiser:
        return CountingDenoiser(self._prompts.prompted(text), self._counter)


def counting(inner: Denoiser, counter: Counter) -> CountingDenoiser:
    """`inner`, counting, and still one that takes text if it is one."""
    if isinstance(inner, PromptedDenoiser):
        return CountingPromptedDenoiser(inner, counter)
    return CountingDenoiser(inner, counter)
