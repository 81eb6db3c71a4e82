"""The families of models: from a network, its schedule and what belongs to them, all in memory, to a denoiser.

`FAMILIES` is the table of what there is: to add a family, write its adapter and a line there. `loading.py` reads the
parts of a model from its files, `in_memory.py` takes them from a pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, ModelMixin, UNet2DConditionModel, UNet2DModel

from pipeline.errors import ModelError, RhumbError
from pipeline.models.conditional import ConditionalDenoiser, OwnPrompt
from pipeline.models.contract import Denoiser
from pipeline.models.dit import DiTDenoiser
from pipeline.models.latents import LatentDenoiser
from pipeline.models.unet2d import UNet2DDenoiser


@dataclass(frozen=True)
class Parts:
    """A model in memory, on its way to an adapter.

    Attributes:
        network: in single precision, of which fingerprints are taken, whatever `dtype` is computed in.
        scheduler: of diffusers.
        device, dtype: where and how to compute.
        class_label: the class of a class-conditional network.
        prompt: what a network with cross-attention is given.
        vae: the autoencoder, in single precision, whose latents the network denoises; None for pixels.
        place: where the network's settings are, for errors.
    """

    network: Any
    scheduler: Any
    device: torch.device | str
    dtype: torch.dtype
    class_label: int | None = None
    prompt: torch.Tensor | OwnPrompt | None = None
    vae: AutoencoderKL | None = None
    place: str = "network"


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Attributes:
        network: class of the network that denoises.
        part: the network's name, and its folder, in a pipeline.
        adapter: makes the denoiser.
        others: parts of a pipeline besides network and scheduler that the adapter knows; any other part is refused.
    """

    network: type[ModelMixin]
    part: str
    adapter: Callable[[Parts], Denoiser]
    others: frozenset[str] = frozenset()

    @property
    def prompted(self) -> bool:
        """Whether its networks are given a prompt."""
        return "text_encoder" in self.others

    def check_others(self, names: set[str], place: str) -> None:
        """Raise ModelError naming parts of a pipeline that the adapter does not know."""
        known = {self.part, "scheduler"} | self.others
        if others := sorted(names - known):
            raise ModelError(
                place, f"{self.network.__name__} with {', '.join(others)}",
                f"a pipeline of {', '.join(sorted(known))} only", "This family has no adapter.",
            )  # fmt: skip

    def denoiser(self, parts: Parts) -> Denoiser:
        """The denoiser, of latents where there is an autoencoder. Raises ModelError for parts that do not fit."""
        made = self.adapter(parts)
        return made if parts.vae is None else LatentDenoiser(made, parts.vae)


def _unet2d(parts: Parts) -> Denoiser:
    denoiser = UNet2DDenoiser(
        parts.network, parts.scheduler, device=parts.device, dtype=parts.dtype, class_label=parts.class_label
    )
    times, steps = parts.network.time_proj, denoiser.info.train_timesteps
    if isinstance(times, torch.nn.Embedding) and times.num_embeddings < steps:
        raise ModelError(
            parts.place, f"learned times of {times.num_embeddings} timesteps", f"{steps}, as its scheduler has"
        )
    return denoiser


def _dit(parts: Parts) -> Denoiser:
    return DiTDenoiser(
        parts.network, parts.scheduler, device=parts.device, dtype=parts.dtype, class_label=parts.class_label
    )


def _conditional(parts: Parts) -> Denoiser:
    if parts.prompt is None:
        raise ModelError("prompt", None, "the embedding of a prompt, if only of no words")
    return ConditionalDenoiser(
        parts.network, parts.scheduler, parts.prompt,
        device=parts.device, dtype=parts.dtype, class_label=parts.class_label,
    )  # fmt: skip


FAMILIES = (
    Family(UNet2DModel, "unet", _unet2d),
    Family(
        UNet2DConditionModel, "unet", _conditional,
        frozenset({"vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"}),
    ),
    Family(DiTTransformer2DModel, "transformer", _dit, frozenset({"vae"})),
)  # fmt: skip


@contextmanager
def told(place: str) -> Iterator[None]:
    """Whatever a foreign configuration makes diffusers fail with, told as one error of the model at `place`."""
    try:
        yield
    except RhumbError:
        raise
    except Exception as error:
        raise ModelError(
            place, f"a model that cannot be run ({reason(error)})",
            "a network and a schedule whose settings fit each other",
        ) from error  # fmt: skip


def reason(error: BaseException) -> str:
    """An error of another library in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
