"""Published checkpoints of guided-diffusion's family: their flags, as their authors print them, and their origin."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.models.guided import GuidedFlags

CUSTOM = "custom"
WITHOUT_EFFECT = frozenset({
    "dropout", "use_fp16", "use_checkpoint", "use_kl", "rescale_learned_sigmas", "timestep_respacing", "sigma_small",
    "p2_gamma", "p2_k",
})  # fmt: skip
"""Flags of the scripts that training or sampling needs and a trained network does not: accepted, so that a printed
command line can be given as it is."""


@dataclass(frozen=True)
class Preset:
    """One published checkpoint: `file` at `source`; `licence` is what its authors say of the weights and the images."""

    flags: Mapping[str, Any] = field(repr=False)
    file: str
    source: str
    citation: str
    licence: str


_P2_FLAGS = {
    "image_size": 256, "num_channels": 128, "num_res_blocks": 1, "attention_resolutions": (16,),
    "num_head_channels": 64, "resblock_updown": True, "use_scale_shift_norm": True, "learn_sigma": True,
    "diffusion_steps": 1000, "noise_schedule": "linear", "class_cond": False,
}  # fmt: skip
_ADM_FLAGS = {**_P2_FLAGS, "num_channels": 256, "num_res_blocks": 2, "attention_resolutions": (32, 16, 8)}
_IMPROVED_FLAGS = {"learn_sigma": True, "num_channels": 128}

_P2 = "Choi et al., Perception Prioritized Training of Diffusion Models, CVPR 2022 (arXiv:2204.00227)"
_ILVR = (
    "Choi et al., ILVR: Conditioning Method for Denoising Diffusion Probabilistic Models, ICCV 2021 (arXiv:2108.02938)"
)
_ADM = "Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, NeurIPS 2021 (arXiv:2105.05233)"
_IMPROVED = "Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, ICML 2021 (arXiv:2102.09672)"

_UNSTATED = "Weights: no licence stated beside the download; ask the authors before redistribution. Images: "
_OPENAI = "Weights: published with MIT-licensed code; the model card asks for research use only. Images: "
_FFHQ = "FFHQ, CC BY-NC-SA 4.0."
_AFHQ = "AFHQ, CC BY-NC 4.0."
_LSUN = "LSUN, scraped from the internet, for research."
_IMAGENET = "ImageNet (ILSVRC 2012), for non-commercial research."
_BLOB = "https://openaipublic.blob.core.windows.net/diffusion"


def _p2(file: str, images: str) -> Preset:
    return Preset(_P2_FLAGS, file, "https://github.com/jychoi118/P2-weighting", _P2, _UNSTATED + images)


def _ilvr(file: str, images: str) -> Preset:
    return Preset(_P2_FLAGS, file, "https://github.com/jychoi118/ilvr_adm", _ILVR, _UNSTATED + images)


def _adm(file: str, images: str, **flags: Any) -> Preset:
    return Preset({**_ADM_FLAGS, **flags}, file, f"{_BLOB}/jul-2021/{file}", _ADM, _OPENAI + images)


def _improved(file: str, images: str, **flags: Any) -> Preset:
    return Preset({**_IMPROVED_FLAGS, **flags}, file, f"{_BLOB}/march-2021/{file}", _IMPROVED, _OPENAI + images)


PRESETS: dict[str, Preset] = {
    "ffhq-p2": _p2("ffhq_p2.pt", _FFHQ),
    "metfaces-p2": _p2("metface_p2.pt", "MetFaces, CC BY-NC 2.0."),
    "afhq-dog-p2": _p2("afhq_p2.pt", _AFHQ),
    "flowers-p2": _p2("flower_p2.pt", "Oxford Flowers 102, for research; no licence stated."),
    "cub-p2": _p2("cub_p2.pt", "CUB-200-2011, for non-commercial research and education."),
    "celebahq-p2": _p2("celebahq_p2.pt", "CelebA-HQ, for non-commercial research."),
    "ffhq-10m": _ilvr("ffhq_10m.pt", _FFHQ),
    "afhq-dog-4m": _ilvr("afhq_dog_4m.pt", _AFHQ),
    "lsun-bedroom-adm": _adm("lsun_bedroom.pt", _LSUN),
    "lsun-cat-adm": _adm("lsun_cat.pt", _LSUN),
    "lsun-horse-adm": _adm("lsun_horse.pt", _LSUN),
    "imagenet256-adm-uncond": _adm("256x256_diffusion_uncond.pt", _IMAGENET),
    "imagenet256-adm": _adm("256x256_diffusion.pt", _IMAGENET, class_cond=True),
    "imagenet64-adm": _adm(
        "64x64_diffusion.pt", _IMAGENET, image_size=64, num_channels=192, num_res_blocks=3, noise_schedule="cosine",
        use_new_attention_order=True, class_cond=True,
    ),
    "lsun-bedroom-improved": _improved(
        "lsun_uncond_100M_2400K_bs64.pt", _LSUN, image_size=256, num_res_blocks=2, num_heads=1,
        use_scale_shift_norm=False, attention_resolutions=(16,),
    ),
    "cifar10-improved": _improved(
        "cifar10_uncond_50M_500K.pt", "CIFAR-10; no licence stated.", image_size=32, num_res_blocks=3,
        diffusion_steps=4000, noise_schedule="cosine", rescale_timesteps=True,
    ),
}  # fmt: skip
"""Flags as printed in the READMEs of jychoi118/P2-weighting, jychoi118/ilvr_adm, openai/guided-diffusion and
openai/improved-diffusion (where `rescale_timesteps` is on unless switched off)."""


def flags_of(name: str, settings: Sequence[str] = ()) -> tuple[GuidedFlags, Preset | None]:
    """The flags of a preset with some changed, and the preset; `custom` has guided-diffusion's defaults and no preset.

    Args:
        settings: KEY=VALUE under the scripts' names, such as "num_channels=128"; leading dashes are allowed.

    Raises:
        InputError: an unknown preset or flag (the nearest right name is given), or a value that does not fit.
    """
    names = [*PRESETS, CUSTOM]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        raise InputError("--preset", name, f"one of {', '.join(names)}", f"Did you mean {near[0]!r}?" if near else "")
    preset = PRESETS.get(name)
    values: dict[str, Any] = dict(preset.flags) if preset else {}
    for setting in settings:
        key, separator, value = setting.lstrip("-").partition("=")
        key = key.strip()
        if not separator:
            raise InputError("--set", setting, "KEY=VALUE, such as num_channels=128")
        if key in WITHOUT_EFFECT:
            continue
        if key not in GuidedFlags.model_fields:
            near = difflib.get_close_matches(key, GuidedFlags.model_fields, n=1, cutoff=0.5)
            action = f"Did you mean {near[0]!r}?" if near else ""
            raise InputError(
                "--set", f"the unknown flag {key!r}", f"one of {', '.join(GuidedFlags.model_fields)}", action
            )
        values[key] = value.strip()
    try:
        return GuidedFlags.model_validate(values), preset
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"][:1]) or "the flags together"
        expected = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        found = values.get(where, ", ".join(f"{key}={value}" for key, value in values.items()) or "defaults")
        raise InputError(f"--set {where}", found, expected) from error
