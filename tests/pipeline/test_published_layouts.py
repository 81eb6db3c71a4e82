"""Small random models laid out and configured as the published UNet2DModel pipelines are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

from pipeline.errors import ModelError
from pipeline.models.loading import load_denoiser
from pipeline.models.unet2d import UNet2DDenoiser
from tests.pipeline.tiny_models import tiny_image, tiny_unet

# google/ddpm-{celebahq,church,bedroom,cat}-256 and their EMA twins, narrower and at 32 pixels
DDPM_256: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [32, 32, 32, 32, 64, 64],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"],
}
# google/ddpm-cifar10-32, narrower
CIFAR: dict[str, Any] = {
    **DDPM_256,
    "block_out_channels": [32, 64, 64, 64],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "sample_size": 16,
}
# google/ncsnpp-{celebahq,church,bedroom}-256 (ffhq-1024 has eight levels and one layer each), narrower
NCSNPP: dict[str, Any] = {
    **DDPM_256,
    "_diffusers_version": "0.1.1",
    "block_out_channels": [32, 32, 32],
    "center_input_sample": True,
    "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1.41421356237,
    "norm_num_groups": None,
    "sample_size": 16,
    "time_embedding_type": "fourier",
    "up_block_types": ["SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"],
}
# keys that configurations of July 2022 still had
RELICS = {"resnet_act_fn": "silu", "resnet_eps": 1e-05, "resnet_num_groups": 32, "image_size": None,
          "block_channels": [224, 448], "num_res_blocks": None, "downscale_freq_shift": 0}  # fmt: skip
BETAS = {"_diffusers_version": "0.0.4", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
         "num_train_timesteps": 1000, "trained_betas": None}  # fmt: skip
DDPM = {**BETAS, "_class_name": "DDPMScheduler", "clip_sample": True, "timestep_values": None,
        "variance_type": "fixed_small"}  # fmt: skip
DDIM = {**BETAS, "_class_name": "DDIMScheduler", "clip_sample": True, "set_alpha_to_one": True, "tensor_format": "pt"}
PNDM = {**BETAS, "_class_name": "PNDMScheduler", "skip_prk_steps": False, "tensor_format": "pt"}
VE = {"_class_name": "ScoreSdeVeScheduler", "_diffusers_version": "0.1.1", "correct_steps": 1,
      "num_train_timesteps": 2000, "sampling_eps": 1e-05, "sigma_max": 348, "sigma_min": 0.01,
      "snr": 0.075}  # fmt: skip
OLD_VE = {"_class_name": "VeSdeScheduler", "_diffusers_version": "0.0.4", "sampling_eps": 1e-05, "sigma_max": 380,
          "sigma_min": 0.01, "snr": 0.075}  # fmt: skip


def unet_of(config: dict[str, Any]) -> UNet2DModel:
    known = {key: value for key, value in config.items() if not key.startswith("_") and key not in RELICS}
    unet = tiny_unet(**known)
    if config["time_embedding_type"] == "fourier":
        with torch.no_grad():  # as drawn by the original, whose scale is 16
            unet.time_proj.weight.mul_(4.0)
    return unet


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with the names that attention and the Fourier projection had when these models were published."""
    old = {}
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name, tensor in state.items():
        new = name
        for now, then in renamed.items():
            new = new.replace(f".{now}.", f".{then}.")
        old[new] = tensor
    if "time_proj.weight" in old:
        old["time_proj.W"] = old["time_proj.weight"].clone()
    return old


def at_the_root(folder: Path, config: dict[str, Any], scheduler: dict[str, Any], pipeline: str | None) -> None:
    """As google/ddpm-*: configurations and one pickle beside model_index.json."""
    write(folder / "config.json", config)
    write(folder / "scheduler_config.json", scheduler)
    torch.save(old_names(unet_of(config).state_dict()), folder / "diffusion_pytorch_model.bin")
    index(folder, scheduler, pipeline)


def in_subfolders(folder: Path, config: dict[str, Any], scheduler: dict[str, Any], pipeline: str | None) -> None:
    """As pipelines are saved since: unet/ and scheduler/; here the pickle was left beside the safetensors."""
    write(folder / "unet/config.json", config)
    write(folder / "scheduler/scheduler_config.json", scheduler)
    save_file(unet_of(config).state_dict(), folder / "unet/diffusion_pytorch_model.safetensors")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"an older pickle that nobody reads")
    index(folder, scheduler, pipeline)


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def index(folder: Path, scheduler: dict[str, Any], pipeline: str | None) -> None:
    if pipeline is not None:
        name = str(scheduler["_class_name"])
        parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", name]}
        write(folder / "model_index.json", {"_class_name": pipeline, "_diffusers_version": "0.0.4", **parts})


Layout = Callable[[Path, dict[str, Any], dict[str, Any], str | None], None]
CASES: dict[str, tuple[Layout, dict[str, Any], dict[str, Any], str | None]] = {
    "ddpm-church-256": (at_the_root, DDPM_256, DDPM, "DDPMPipeline"),
    "ddpm-ema-celebahq-256, at an early commit": (at_the_root, {**DDPM_256, **RELICS}, DDPM, "DDPMPipeline"),
    "ddpm-cifar10-32": (at_the_root, CIFAR, {**DDPM, "variance_type": "fixed_large"}, "DDPMPipeline"),
    "ddim": (in_subfolders, DDPM_256, DDIM, "DDIMPipeline"),
    "pndm": (in_subfolders, CIFAR, PNDM, "PNDMPipeline"),
    "an old class name": (at_the_root, CIFAR, {**DDPM, "clip_predicted_image": True}, "DDPM"),
    "ncsnpp-celebahq-256": (at_the_root, NCSNPP, VE, "ScoreSdeVePipeline"),
    "ncsnpp-celebahq-256, at an early commit": (at_the_root, {**NCSNPP, **RELICS}, OLD_VE, None),
    "ncsnpp in subfolders": (in_subfolders, NCSNPP, VE, "ScoreSdeVePipeline"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_published_layout_loads_as_the_network_it_holds(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    layout, config, scheduler, pipeline = CASES[case]
    layout(tmp_path, config, scheduler, pipeline)
    denoiser = load_denoiser(tmp_path, device="cpu")
    assert isinstance(denoiser, UNet2DDenoiser) and denoiser.origin is not None
    x, t, unet = tiny_image(denoiser), 300, unet_of(config)
    with torch.no_grad():
        if "sigma_max" in scheduler:
            level = denoiser.alpha_sigma(t)[1] / 2
            expected = -level * unet((x + 1) / 2, torch.tensor([level])).sample
        else:
            expected = unet(x, t).sample
        torch.testing.assert_close(denoiser.predict_noise(x, t), expected, rtol=1e-5, atol=1e-5)
    assert denoiser.info.train_timesteps == scheduler.get("num_train_timesteps", 2000)
    assert denoiser.info.bottleneck_shape is not None
    pickles = [name for name in denoiser.origin.files if name.endswith(".bin")]
    assert bool(pickles) == (layout is at_the_root)
    assert capfd.readouterr() == ("", "")


def test_layout_names_and_relics_are_no_part_of_a_models_fingerprint(tmp_path: Path) -> None:
    at_the_root(tmp_path / "root", {**CIFAR, **RELICS}, DDPM, "DDPMPipeline")
    in_subfolders(tmp_path / "folders", CIFAR, DDIM, "DDIMPipeline")
    infos = [load_denoiser(tmp_path / name).info for name in ("root", "folders")]
    assert infos[0] == infos[1]


def test_names_from_before_the_class_are_refused_by_their_name(tmp_path: Path) -> None:
    at_the_root(tmp_path, {**CIFAR, "_class_name": "UNetUnconditionalModel"}, DDPM, "DDPMPipeline")
    with pytest.raises(ModelError, match="UNetUnconditionalModel"):
        load_denoiser(tmp_path)


def test_a_second_name_of_a_weight_is_no_excuse_for_others(tmp_path: Path) -> None:
    at_the_root(tmp_path, NCSNPP, VE, None)
    path = tmp_path / "diffusion_pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "time_proj.V": state["time_proj.W"]}, path)
    with pytest.raises(ModelError, match=r"unexpected keys: time_proj\.V"):
        load_denoiser(tmp_path)


@pytest.mark.parametrize("kind", [None, "timestep"])
def test_a_class_conditional_folder_takes_its_class_by_number(tmp_path: Path, kind: str | None) -> None:
    config = {**CIFAR, "class_embed_type": kind, "num_class_embeds": 10 if kind is None else None}
    in_subfolders(tmp_path, config, DDIM, "DDIMPipeline")
    with pytest.raises(ModelError, match="class_label"):
        load_denoiser(tmp_path)
    third, fourth = (load_denoiser(tmp_path, class_label=label) for label in (3, 4))
    assert isinstance(third, UNet2DDenoiser)
    x = tiny_image(third)
    with torch.no_grad():
        expected = unet_of(config)(x, 300, class_labels=torch.tensor([3])).sample
    torch.testing.assert_close(third.predict_noise(x, 300), expected, rtol=1e-5, atol=1e-5)
    assert third.info.fingerprint != fourth.info.fingerprint
