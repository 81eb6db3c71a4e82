"""A pipeline in memory is the model of its folder: the same fingerprint, the same numbers, or one clear error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DiTPipeline, PNDMScheduler
from diffusers.utils import logging as diffusers_logging

from pipeline.errors import ModelError
from pipeline.models.in_memory import denoiser_of
from pipeline.models.loading import load_denoiser
from tests.pipeline.tiny_latents import tiny_conditional, tiny_dit_folder, tiny_prompt, tiny_vae
from tests.pipeline.tiny_models import tiny_denoiser, tiny_image, tiny_pipeline_folder, tiny_scheduler, tiny_unet


@pytest.fixture(autouse=True)
def without_bars() -> Any:
    diffusers_logging.disable_progress_bar()
    yield
    diffusers_logging.enable_progress_bar()


def loaded(folder: Path, **options: Any) -> Any:
    return DDPMPipeline.from_pretrained(tiny_pipeline_folder(folder), **options)


def test_a_pipe_is_the_model_of_the_folder_it_came_from(tmp_path: Path) -> None:
    pipe = loaded(tmp_path)
    denoiser, folder = denoiser_of(pipe), load_denoiser(tmp_path, device="cpu")
    assert denoiser.info == folder.info
    x = tiny_image(tiny_denoiser())
    assert torch.equal(denoiser.predict_noise(x, 7), folder.predict_noise(x, 7))
    assert denoiser_of({"unet": tiny_unet(), "scheduler": tiny_scheduler()}).info == folder.info


@pytest.mark.parametrize("scheduler", [DDIMScheduler, PNDMScheduler])
def test_a_sampler_changes_no_fingerprint_and_neither_do_steps_that_were_set(scheduler: Any, tmp_path: Path) -> None:
    pipe = loaded(tmp_path)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe.scheduler.set_timesteps(7)
    assert denoiser_of(pipe).info.fingerprint == tiny_denoiser().info.fingerprint


def test_weights_are_shared_and_the_pipe_stays_as_it_was(tmp_path: Path) -> None:
    pipe = loaded(tmp_path)
    pipe.unet.train()
    denoiser: Any = denoiser_of(pipe)
    assert pipe.unet.training
    assert pipe.unet.conv_in.weight.requires_grad
    assert denoiser._unet.conv_in.weight.data_ptr() == pipe.unet.conv_in.weight.data_ptr()


def test_half_precision_is_computed_in_and_keeps_the_fingerprint_of_weights_that_were_half(tmp_path: Path) -> None:
    tiny_pipeline_folder(tmp_path)
    rounded = DDPMPipeline.from_pretrained(tmp_path, dtype=torch.float16)
    denoiser = denoiser_of(rounded)
    assert denoiser.dtype == torch.float16
    assert denoiser.info.fingerprint != tiny_denoiser().info.fingerprint
    rounded.save_pretrained(tmp_path / "half")
    assert load_denoiser(tmp_path / "half", device="cpu").info == denoiser.info
    assert rounded.unet.dtype == torch.float16


def test_changed_weights_are_seen_however_they_were_changed(tmp_path: Path) -> None:
    pipe = loaded(tmp_path)
    before = denoiser_of(pipe).info.fingerprint
    pipe.unet.conv_in.weight.data[0, 0, 0, 0] += 1e-3
    assert denoiser_of(pipe).info.fingerprint != before


def test_a_transformer_with_its_autoencoder(tmp_path: Path) -> None:
    pipe: Any = DiTPipeline.from_pretrained(tiny_dit_folder(tmp_path))
    assert denoiser_of(pipe, class_label=3).info == load_denoiser(tmp_path, device="cpu", class_label=3).info


def test_prompts_come_from_the_pipes_own_encoder_in_any_precision(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    from tests.pipeline.test_conditional import text_folder
    from tests.pipeline.test_latents import stable_folder

    stable_folder(text_folder(tmp_path), tiny_conditional(), tiny_vae())
    parts = {
        "unet": tiny_conditional(),
        "vae": tiny_vae(),
        "scheduler": tiny_scheduler("epsilon"),
        "tokenizer": transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer"),
        "text_encoder": transformers.CLIPTextModel.from_pretrained(tmp_path / "text_encoder"),
        "safety_checker": None,
    }
    expected = load_denoiser(tmp_path, device="cpu").info
    assert denoiser_of(parts).info == expected
    with pytest.raises(ModelError, match="text_encoder and tokenizer: found none"):
        denoiser_of({**parts, "text_encoder": None})
    assert denoiser_of({**parts, "text_encoder": None}, prompt=tiny_prompt()).info.fingerprint != expected.fingerprint


def _without_scheduler(pipe: Any) -> Any:
    return {"unet": pipe.unet}


def _with_a_stranger(pipe: Any) -> Any:
    return {**pipe.components, "image_encoder": torch.nn.Linear(1, 1)}


def _offloaded(pipe: Any) -> Any:
    pipe.unet.to("meta")
    return pipe


def _hooked(pipe: Any) -> Any:
    pipe.unet._hf_hook = object()
    return pipe


def _broken(pipe: Any) -> Any:
    pipe.unet.conv_in.bias.data[0] = torch.nan
    return pipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_scheduler, "no scheduler"),
        (_with_a_stranger, "UNet2DModel with image_encoder"),
        (_offloaded, "weights that are not in memory"),
        (_hooked, "weights that are moved while it runs"),
        (_broken, "NaN or infinity in conv_in.bias"),
        (lambda pipe: {**pipe.components, "scheduler": object()}, "a model that cannot be run"),
        (lambda pipe: {"unet": torch.nn.Linear(1, 1), "scheduler": pipe.scheduler}, "found unet: Linear"),
        (lambda pipe: pipe.unet, "found UNet2DModel; expected a diffusers pipeline"),
        (lambda pipe: "org/model", "found str"),
    ],
)
def test_what_is_no_model_is_one_clear_error(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        denoiser_of(change(loaded(tmp_path)))
