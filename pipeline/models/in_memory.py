"""From a diffusers pipeline that is in memory to a denoiser, with the fingerprint of the folder it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL

from pipeline.errors import ModelError
from pipeline.models.conditional import OwnPrompt, no_words
from pipeline.models.contract import Denoiser
from pipeline.models.families import FAMILIES, Family, Parts, told
from pipeline.models.forward_mode import shared_copy


def denoiser_of(pipe: Any, *, class_label: int | None = None, prompt: torch.Tensor | None = None) -> Denoiser:
    """The denoiser of a pipeline in memory, on its device and in its precision. The pipeline is left as it is.

    Weights are shared with the pipeline and hashed as they are now, in single precision, as files are: a pipeline
    whose weights were rounded on loading has another fingerprint than its folder. Cost: about a second per gigabyte
    of weights, and as much memory again while they are not in single precision.

    Args:
        pipe: any diffusers pipeline of a family in `FAMILIES`, or its parts by name: {"unet": ..., "scheduler": ...}.
        class_label: the class of a class-conditional network.
        prompt: embedding (1, L, D) that a network with cross-attention is given; default that of no words, by the
            pipeline's own text encoder.

    Raises:
        ModelError: parts that have no adapter or do not fit each other, weights that are not finite or lie elsewhere.
    """
    parts = _parts_of(pipe)
    family, network = _family(parts)
    if parts.get("scheduler") is None:
        raise ModelError("pipe", "no scheduler", "the noise schedule the model was trained with")
    device, dtype = network.device, network.dtype
    with told(family.part):
        network = _single(network, family.part)
        vae = _autoencoder(parts) if "vae" in family.others else None
        words = _no_words(parts) if family.prompted and prompt is None else prompt
        return family.denoiser(Parts(network, parts["scheduler"], device, dtype, class_label, words, vae, family.part))


def _parts_of(pipe: Any) -> dict[str, Any]:
    """The parts of a pipeline that are there, as they were before they were compiled."""
    named = pipe if isinstance(pipe, Mapping) else getattr(pipe, "components", None)
    if not isinstance(named, Mapping):
        raise ModelError("pipe", type(pipe).__name__, "a diffusers pipeline, or its parts by name")
    return {str(name): getattr(part, "_orig_mod", part) for name, part in named.items() if part is not None}


def _family(parts: Mapping[str, Any]) -> tuple[Family, Any]:
    """The family of a pipeline, and its network."""
    for family in FAMILIES:
        network = parts.get(family.part)
        if isinstance(network, family.network):
            family.check_others(set(parts), "pipe")
            return family, network
    networks = {name: type(part).__name__ for name, part in parts.items() if isinstance(part, torch.nn.Module)}
    found = ", ".join(f"{name}: {kind}" for name, kind in sorted(networks.items())) or "no network"
    known = " or ".join(family.network.__name__ for family in FAMILIES)
    raise ModelError("pipe", found, known, "This family has no adapter.")


def _single(module: Any, name: str, device: str | None = None) -> Any:
    """The module in single precision, weights shared where they are so already."""
    if hasattr(module, "_hf_hook"):
        found = "weights that are moved while it runs"
        raise ModelError(name, found, "weights on one device", "Load the pipe without offloading.")
    for key, tensor in module.state_dict().items():
        if tensor.is_meta:
            raise ModelError(name, "weights that are not in memory", "all of them", "Load the pipe without offloading.")
        if not bool(tensor.isfinite().all()):
            raise ModelError(name, f"NaN or infinity in {key}", "finite weights", "Load the pipe again.")
    return shared_copy(module, device=device, dtype=torch.float32)


def _autoencoder(parts: Mapping[str, Any]) -> AutoencoderKL | None:
    vae = parts.get("vae")
    if vae is not None and not isinstance(vae, AutoencoderKL):
        raise ModelError("pipe: vae", type(vae).__name__, "AutoencoderKL", "No adapter for others.")
    return None if vae is None else _single(vae, "vae")


def _no_words(parts: Mapping[str, Any]) -> OwnPrompt:
    """No words, embedded by the pipeline's own text encoder."""
    tokenizer, encoder = parts.get("tokenizer"), parts.get("text_encoder")
    if tokenizer is None or type(encoder).__name__ != "CLIPTextModel":
        found = "none" if encoder is None or tokenizer is None else type(encoder).__name__
        raise ModelError("pipe: text_encoder and tokenizer", found, "those of CLIP, or the embedding of a prompt")
    return no_words(tokenizer, _single(encoder, "text_encoder", device="cpu"))
