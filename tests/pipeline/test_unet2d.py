from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, PNDMScheduler
from diffusers.models.attention_processor import Attention

from pipeline.errors import InputError, ModelError
from pipeline.models.unet2d import UNet2DDenoiser
from tests.pipeline.tiny_models import tiny_denoiser, tiny_image, tiny_scheduler, tiny_unet

T = 25
PREDICTIONS = ("epsilon", "v_prediction", "sample")
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "down-attention": {"down_attention": True},
    "non-square": {"size": (6, 10)},
    "grey": {"channels": 1},
    "centred-input": {"center_input_sample": True},
    "no-attention": {"add_attention": False},
    "no-middle": {"mid_block_type": None},
    "scale-shift": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "resnet-resampling": {"downsample_type": "resnet", "upsample_type": "resnet"},
    "learned-time": {"time_embedding_type": "learned", "num_train_timesteps": 50},
    "fourier-time": {"time_embedding_type": "fourier"},
    "skip-blocks": {
        "block_out_channels": (32, 32),
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    },
}


@pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_both_halves_together_are_the_original_network(options: dict[str, Any]) -> None:
    unet = tiny_unet(**options)
    denoiser = UNet2DDenoiser(unet, tiny_scheduler("epsilon"))
    x = tiny_image(denoiser, count=2)
    with torch.no_grad():
        expected = unet(x, T).sample
        assert torch.equal(denoiser.predict_noise(x, T), expected)
        torch.testing.assert_close(denoiser.differentiable().predict_noise(x, T), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_architecture_survives_forward_mode(options: dict[str, Any]) -> None:
    denoiser = tiny_denoiser("epsilon", dtype=torch.float64, **options)
    x, v = tiny_image(denoiser), tiny_image(denoiser, seed=1)
    twin = denoiser.differentiable()
    tangent = torch.func.jvp(lambda image: twin.predict_noise(image, T), (x,), (v,))[1]
    step = 1e-6
    slope = (denoiser.predict_noise(x + step * v, T) - denoiser.predict_noise(x - step * v, T)) / (2 * step)
    torch.testing.assert_close(tangent, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_all_predictions_agree_on_x_t_and_on_the_network_output(prediction: str) -> None:
    unet = tiny_unet().double()
    denoiser = UNet2DDenoiser(unet, tiny_scheduler(prediction))
    x = tiny_image(denoiser, count=2)
    output = unet(x, T).sample
    noise, clean = denoiser.predict_noise(x, T), denoiser.posterior_mean(x, T)
    alpha, sigma = denoiser.alpha_sigma(T)
    torch.testing.assert_close(alpha * clean + sigma * noise, x)
    named = {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - sigma * clean}
    torch.testing.assert_close(named[prediction], output)


@pytest.mark.parametrize(
    "scheduler",
    [
        tiny_scheduler(),
        DDIMScheduler(num_train_timesteps=30, beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.02),
        PNDMScheduler(num_train_timesteps=30, trained_betas=[0.01 + 0.001 * i for i in range(30)]),
        DDIMScheduler(num_train_timesteps=30, rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_the_schedule_is_the_schedulers_own(scheduler: Any) -> None:
    denoiser = UNet2DDenoiser(tiny_unet(), scheduler)
    assert denoiser.info.train_timesteps == len(scheduler.alphas_cumprod)
    assert denoiser.alpha_sigma(-1) == (1.0, 0.0)
    for t, cumulative in enumerate(scheduler.alphas_cumprod.tolist()):
        alpha, sigma = denoiser.alpha_sigma(t)
        assert alpha**2 == pytest.approx(cumulative)
        assert alpha**2 + sigma**2 == pytest.approx(1.0)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_the_posterior_mean_exists_where_no_signal_is_left(prediction: str) -> None:
    denoiser = UNet2DDenoiser(tiny_unet(), tiny_scheduler(prediction, rescale_betas_zero_snr=True))
    assert denoiser.alpha_sigma(49)[0] == 0.0
    assert bool(denoiser.posterior_mean(tiny_image(denoiser), 49).isfinite().all())


def test_without_signal_a_noise_prediction_has_no_posterior_mean() -> None:
    denoiser = UNet2DDenoiser(tiny_unet(), tiny_scheduler("epsilon", rescale_betas_zero_snr=True))
    with pytest.raises(InputError, match="smaller timestep"):
        denoiser.posterior_mean(tiny_image(denoiser), 49)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_part_behind_h_gives_the_same_noise(prediction: str) -> None:
    denoiser = tiny_denoiser(prediction, down_attention=True)
    x = tiny_image(denoiser, count=2)
    h = denoiser.bottleneck(x, T)
    assert h.shape[1:] == denoiser.info.bottleneck_shape
    shift = torch.randn(h.shape, generator=torch.Generator().manual_seed(1))
    behind = denoiser.noise_from_bottleneck(x, T)
    assert torch.equal(behind(h), denoiser.predict_noise(x, T))
    assert torch.equal(behind(h + shift), denoiser.predict_noise(x, T, shift))
    assert not torch.equal(behind(h + shift), behind(h))


def test_the_part_behind_h_runs_no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = tiny_denoiser()
    x = tiny_image(denoiser)
    h, behind = denoiser.bottleneck(x, T), denoiser.noise_from_bottleneck(x, T)
    monkeypatch.setattr(denoiser, "_encode", lambda *_: pytest.fail("the encoder ran"))
    assert behind(h).shape == x.shape


def test_many_activations_share_the_skips_of_one_image() -> None:
    denoiser = tiny_denoiser()
    x = tiny_image(denoiser)
    h = denoiser.bottleneck(x, T) + torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    behind = denoiser.noise_from_bottleneck(x, T)
    torch.testing.assert_close(behind(h), torch.cat([behind(one[None]) for one in h]), rtol=1e-4, atol=1e-5)


def test_samples_of_a_batch_are_independent() -> None:
    denoiser = tiny_denoiser(down_attention=True)
    x = tiny_image(denoiser, count=3)
    shift = torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    together = denoiser.predict_noise(x, T, shift)
    alone = torch.cat([denoiser.predict_noise(x[i : i + 1], T, shift[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_learned_variance_is_cut_to_the_mean() -> None:
    unet = tiny_unet(out_channels=6)
    denoiser = UNet2DDenoiser(unet, tiny_scheduler("epsilon"))
    x = tiny_image(denoiser)
    assert torch.equal(denoiser.predict_noise(x, T), unet(x, T).sample[:, :3])


def test_the_given_network_and_its_weights_stay_as_they_were() -> None:
    unet = tiny_unet().train()
    kinds = [type(module) for module in unet.modules()]
    processors = [type(module.processor) for module in unet.modules() if isinstance(module, Attention)]
    denoiser = UNet2DDenoiser(unet, tiny_scheduler(), dtype=torch.float64)
    denoiser.differentiable().predict_noise(tiny_image(denoiser), T)
    assert unet.training and unet.dtype == torch.float32
    assert all(parameter.requires_grad for parameter in unet.parameters())
    for network in (unet, denoiser._unet):
        assert [type(module) for module in network.modules()] == kinds
        assert [type(module.processor) for module in network.modules() if isinstance(module, Attention)] == processors


def test_the_differentiable_copy_shares_the_weights_and_is_made_once() -> None:
    denoiser = tiny_denoiser()
    twin = denoiser.differentiable()
    assert twin is denoiser.differentiable() is twin.differentiable()
    assert twin.info is denoiser.info
    mine = {p.data_ptr() for p in denoiser._unet.parameters()}
    assert {p.data_ptr() for p in twin._unet.parameters()} == mine


def test_making_a_denoiser_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_denoiser(dtype=torch.float64, down_attention=True).differentiable()
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_follows_weights_and_schedule_and_nothing_else() -> None:
    base = tiny_denoiser().info.fingerprint
    assert len(base) == 32 and base == tiny_denoiser(dtype=torch.float64).info.fingerprint
    unet = tiny_unet()
    unet.config["_name_or_path"] = "elsewhere"
    assert UNet2DDenoiser(unet, tiny_scheduler(clip_sample=True)).info.fingerprint == base
    with torch.no_grad():
        unet.conv_out.bias[0] += 1e-6
    others = {
        UNet2DDenoiser(unet, tiny_scheduler()).info.fingerprint,
        tiny_denoiser(seed=1).info.fingerprint,
        tiny_denoiser("epsilon").info.fingerprint,
        UNet2DDenoiser(tiny_unet(), tiny_scheduler(beta_schedule="linear")).info.fingerprint,
        UNet2DDenoiser(tiny_unet(), tiny_scheduler(steps=51)).info.fingerprint,
    }
    assert len(others | {base}) == 6


def test_a_class_conditional_network_needs_its_class() -> None:
    unet = tiny_unet(num_class_embeds=3)
    with pytest.raises(ModelError, match="class_label"):
        UNet2DDenoiser(unet, tiny_scheduler())
    with pytest.raises(ModelError, match=r"\[0, 3\)"):
        UNet2DDenoiser(unet, tiny_scheduler(), class_label=3)
    with pytest.raises(ModelError, match="no classes"):
        UNet2DDenoiser(tiny_unet(), tiny_scheduler(), class_label=0)
    denoiser = UNet2DDenoiser(unet, tiny_scheduler("epsilon"), class_label=2)
    x = tiny_image(denoiser)
    assert torch.equal(denoiser.predict_noise(x, T), unet(x, T, class_labels=torch.tensor([2])).sample)


def test_a_network_without_middle_block_says_so_when_h_is_asked_for() -> None:
    denoiser = UNet2DDenoiser(tiny_unet(mid_block_type=None), tiny_scheduler())
    x = tiny_image(denoiser)
    assert denoiser.info.bottleneck_shape is None
    for ask in (
        lambda: denoiser.bottleneck(x, T),
        lambda: denoiser.noise_from_bottleneck(x, T),
        lambda: denoiser.predict_noise(x, T, torch.zeros(1, 16, 4, 4)),
    ):
        with pytest.raises(ModelError, match=r"bottleneck: found none in diffusers UNet2DModel"):
            ask()


@pytest.mark.parametrize("t", [-2, 50])
def test_a_timestep_outside_the_schedule_is_an_error(t: int) -> None:
    denoiser = tiny_denoiser()
    with pytest.raises(InputError, match="timestep"):
        denoiser.alpha_sigma(t)
    with pytest.raises(InputError, match="timestep"):
        denoiser.predict_noise(tiny_image(denoiser), t)


def test_inputs_of_another_shape_are_errors() -> None:
    denoiser = tiny_denoiser()
    with pytest.raises(InputError, match="x: found"):
        denoiser.predict_noise(torch.zeros(1, 1, 8, 8), T)
    with pytest.raises(InputError, match="h_shift: found"):
        denoiser.predict_noise(torch.zeros(2, 3, 8, 8), T, torch.zeros(3, 16, 4, 4))
    with pytest.raises(InputError, match="h_shift: found"):
        denoiser.predict_noise(torch.zeros(2, 3, 8, 8), T, torch.zeros(1, 16, 1, 1))


def test_models_without_an_adapter_are_refused() -> None:
    with pytest.raises(ModelError, match="cumulative alphas"):
        UNet2DDenoiser(tiny_unet(), EDMEulerScheduler())
    with pytest.raises(ModelError, match="out_channels"):
        UNet2DDenoiser(tiny_unet(out_channels=5), tiny_scheduler())
    with pytest.raises(ModelError, match="sample_size"):
        UNet2DDenoiser(tiny_unet(size=None), tiny_scheduler())  # type: ignore[arg-type]


@pytest.mark.parametrize("size", ["8", (8, 8, 8), 8.0, 0, True, (8, -8), (8, None), ()], ids=repr)
def test_a_size_that_is_no_whole_number_of_pixels_is_refused(size: Any) -> None:
    with pytest.raises(ModelError, match=r"sample_size: found .*whole number of pixels"):
        UNet2DDenoiser(tiny_unet(size=size), tiny_scheduler())


@pytest.mark.parametrize("size", [7, (8, 7), (1, 1)])
@pytest.mark.parametrize("options", [{}, {"mid_block_type": None}], ids=["plain", "no-middle"])
def test_a_size_that_the_network_cannot_halve_is_refused_when_it_is_made(size: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"sample_size: found .*comes out of the network as it went in"):
        UNet2DDenoiser(tiny_unet(size=size, **options), tiny_scheduler())
