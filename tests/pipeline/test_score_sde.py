"""Models of score-sde behind the contract: what they mean by noise, pictures and time is what diffusers means by it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.deprecated import ScoreSdeVpScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ModelError
from pipeline.inversion import invert, sample
from pipeline.jacobian import JacobianKind, JacobianOperator, jacobian
from pipeline.models.fingerprints import fingerprint
from pipeline.models.schedules import schedule_of
from pipeline.models.unet2d import UNet2DDenoiser
from tests.conformance.operator_suite import OperatorSuite
from tests.pipeline.tiny_models import tiny_image, tiny_unet

STEPS = 40
T = 15
# The blocks, time embedding and scale factors of google/ncsnpp-celebahq-256, two of its seven levels.
NCSNPP: dict[str, Any] = {
    "block_out_channels": (32, 32),
    "center_input_sample": True,
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "attention_head_dim": None,
    "mid_block_scale_factor": 1.41421356237,
    "norm_eps": 1e-6,
    "norm_num_groups": None,
    "time_embedding_type": "fourier",
}


def exploding(steps: int = STEPS, **options: Any) -> ScoreSdeVeScheduler:
    return ScoreSdeVeScheduler(**{"num_train_timesteps": steps, "sigma_max": 348.0, "snr": 0.075, **options})


@cache
def ncsnpp(dtype: torch.dtype = torch.float64, **options: Any) -> UNet2DDenoiser:
    return UNet2DDenoiser(tiny_unet(**{**NCSNPP, **options}), exploding(), dtype=dtype)


def pictures(denoiser: UNet2DDenoiser, t: int, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_t in the contract's range, the same in [0, 1] plus noise as diffusers has it)."""
    y0, noise = tiny_image(denoiser, count=count).sigmoid(), tiny_image(denoiser, count=count, seed=1)
    y = y0 + float(exploding().discrete_sigmas[t]) * noise
    return 2 * y - 1, y


@pytest.mark.parametrize("t", [0, 1, T, STEPS - 1])
@pytest.mark.parametrize("centred", [True, False])
def test_the_noise_is_what_the_schedulers_step_implies(t: int, centred: bool) -> None:
    """`step_pred` moves the mean by (s_t^2 - s_{t-1}^2) times the score, and the score is -noise / s_t."""
    denoiser, scheduler = ncsnpp(center_input_sample=centred), exploding()
    unet = tiny_unet(**{**NCSNPP, "center_input_sample": centred}).double()
    x, y = pictures(denoiser, t)
    levels = scheduler.discrete_sigmas.double()
    with torch.no_grad():
        score = unet(y, levels[t].expand(len(y))).sample
    step = scheduler.step_pred(score, (t + 0.5) / (STEPS - 1), y, generator=torch.Generator().manual_seed(0))
    below = levels[t - 1] ** 2 if t > 0 else 0.0
    noise = (y - step.prev_sample_mean) / (levels[t] ** 2 - below) * levels[t]
    torch.testing.assert_close(denoiser.predict_noise(x, t), noise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("t", [0, T, STEPS - 1])
def test_the_posterior_mean_is_tweedies_in_the_pictures_own_range(t: int) -> None:
    """E[y0 | y_t] = y_t + s_t^2 score; at t = 0 that is the mean of the sampler's last step, which ends at no noise."""
    denoiser, scheduler = ncsnpp(), exploding()
    x, y = pictures(denoiser, t)
    level = scheduler.discrete_sigmas.double()[t]
    with torch.no_grad():
        score = tiny_unet(**NCSNPP).double()(y, level.expand(len(y))).sample
    clean = denoiser.posterior_mean(x, t)
    torch.testing.assert_close((clean + 1) / 2, y + level**2 * score, rtol=1e-5, atol=1e-4)
    alpha, sigma = denoiser.alpha_sigma(t)
    torch.testing.assert_close(alpha * clean + sigma * denoiser.predict_noise(x, t), x)
    if t == 0:
        last = scheduler.step_pred(score, 0.0, y, generator=torch.Generator().manual_seed(0)).prev_sample_mean
        torch.testing.assert_close((clean + 1) / 2, last, rtol=1e-5, atol=1e-6)


def test_the_pipeline_ends_where_the_adapter_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last picture of `ScoreSdeVePipeline` is the posterior mean of its last noisy one, as a picture in [0, 1]."""
    unet, scheduler = tiny_unet(**NCSNPP), exploding(4, correct_steps=0, sampling_eps=1e-6)
    asked: list[tuple[torch.Tensor, torch.Tensor]] = []
    forward = unet.forward

    def watched(y: torch.Tensor, level: torch.Tensor, *more: Any, **options: Any) -> Any:
        asked.append((y.clone(), level.clone()))
        return forward(y, level, *more, **options)

    monkeypatch.setattr(unet, "forward", watched)
    pipeline = ScoreSdeVePipeline(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    (picture,) = pipeline(
        1, num_inference_steps=4, output_type="np", generator=torch.Generator().manual_seed(0), return_dict=False
    )
    denoiser = UNet2DDenoiser(tiny_unet(**NCSNPP), exploding(4))
    for t, (_, level) in zip((3, 2, 1, 0), asked, strict=True):
        assert float(level) == pytest.approx(denoiser.alpha_sigma(t)[1] / 2, rel=1e-4)
    clean = (denoiser.posterior_mean(2 * asked[-1][0] - 1, 0) + 1) / 2
    found = torch.from_numpy(picture).permute(0, 3, 1, 2)
    torch.testing.assert_close(clean.clamp(0, 1), found, rtol=1e-3, atol=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 3000), st.floats(1e-3, 1.0), st.floats(2.0, 1e6))
def test_noise_levels_are_the_schedulers_own_doubled(steps: int, low: float, ratio: float) -> None:
    scheduler = ScoreSdeVeScheduler(num_train_timesteps=steps, sigma_min=low, sigma_max=low * ratio)
    schedule = schedule_of(scheduler)
    assert set(schedule.alphas) == {1.0} and len(schedule) == steps
    torch.testing.assert_close(
        torch.tensor(schedule.sigmas), 2 * scheduler.discrete_sigmas.to(torch.float32), rtol=1e-4, atol=0.0
    )


def test_a_noisy_picture_is_the_schedulers_own() -> None:
    denoiser, scheduler = ncsnpp(), exploding()
    y0, noise = torch.rand(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    y = scheduler.add_noise(y0, noise, torch.tensor([T]))
    alpha, sigma = denoiser.alpha_sigma(T)
    torch.testing.assert_close(alpha * (2 * y0 - 1) + sigma * noise, 2 * y - 1, rtol=1e-4, atol=1e-5)


def smooth(**options: Any) -> UNet2DDenoiser:
    """A random NCSN++ with a vector field as tame as a trained network's."""
    unet = tiny_unet(**{**NCSNPP, "size": 4, **options})
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.startswith("conv_out") or ".skip_conv" in name:
                parameter.mul_(0.1)
    return UNet2DDenoiser(unet, exploding(400), dtype=torch.float64)


def test_the_ddim_round_trip_closes_as_the_grid_gets_finer() -> None:
    denoiser = smooth()
    x0 = tiny_image(denoiser, count=2).clamp(-1, 1)
    errors = []
    for steps in (6, 18, 54):
        x_t = invert(denoiser, x0, 200, steps)
        errors.append(float((sample(denoiser, x_t, 200, steps) - x0).norm() / x0.norm()))
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]
    assert errors[2] < 0.05


def test_stochastic_steps_keep_the_level_of_exploding_noise() -> None:
    """With a network that predicts x0 = 0 exactly, samples at level t have standard deviation sigma_t."""

    class Nothing(UNet2DDenoiser):
        def predict_noise(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
            return x / self.alpha_sigma(t)[1]

        def posterior_mean(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
            return torch.zeros_like(x)

    denoiser = Nothing(tiny_unet(**{**NCSNPP, "size": 32}), exploding())
    x_t = denoiser.alpha_sigma(30)[1] * tiny_image(denoiser)
    drawn = [sample(denoiser, x_t, 30, 5, stop=10, eta=1.0, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    assert float(drawn[0].std()) == pytest.approx(denoiser.alpha_sigma(10)[1], rel=0.05)
    assert not torch.equal(*drawn)


def test_the_part_behind_h_gives_the_same_noise() -> None:
    denoiser = ncsnpp()
    x, _ = pictures(denoiser, T)
    h = denoiser.bottleneck(x, T)
    assert h.shape[1:] == denoiser.info.bottleneck_shape
    behind = denoiser.noise_from_bottleneck(x, T)
    torch.testing.assert_close(behind(h + 1.0), denoiser.predict_noise(x, T, torch.ones_like(h)))


@cache
def operator_of(kind: JacobianKind, dtype: torch.dtype) -> JacobianOperator:
    denoiser = ncsnpp(dtype, size=4)
    return jacobian(denoiser, pictures(denoiser, T)[0][0], T, kind, block=2)


@cache
def truth(kind: JacobianKind, dtype: torch.dtype) -> torch.Tensor:
    """The dense Jacobian by reverse mode through the unmodified network."""
    denoiser = ncsnpp(dtype, size=4)
    x = pictures(denoiser, T)[0][:1]
    h = denoiser.bottleneck(x, T)

    def function(point: torch.Tensor) -> torch.Tensor:
        if kind == "h/x":
            return denoiser.bottleneck(point, T)
        if kind.endswith("/x"):
            return (denoiser.posterior_mean if kind == "x0/x" else denoiser.predict_noise)(point, T)
        return (denoiser.posterior_mean if kind == "x0/h" else denoiser.predict_noise)(x, T, point - h)

    point = x if kind.endswith("/x") else h
    rows = torch.autograd.functional.jacobian(function, point)  # type: ignore[no-untyped-call]
    return rows.reshape(-1, point.numel())


def test_the_fingerprint_follows_the_noise_levels_and_not_how_they_are_sampled() -> None:
    def of(**options: Any) -> str:
        return UNet2DDenoiser(tiny_unet(**NCSNPP), exploding(**options)).info.fingerprint

    base = of()
    assert of(snr=0.3, correct_steps=3, sampling_eps=1e-3) == base
    assert len({base, of(sigma_max=300.0), of(sigma_min=0.02), of(steps=41)}) == 4


VP = {"num_train_timesteps": 1000, "beta_min": 0.1, "beta_max": 20, "sampling_eps": 1e-3}


@pytest.mark.parametrize("t", [0, 400, 999])
def test_a_variance_preserving_step_is_the_schedulers_own(t: int) -> None:
    """`step_pred` drifts by -beta (x / 2 + score) / N with score = -noise / sigma; the network is told 999 s."""
    scheduler, unet = ScoreSdeVpScheduler(**VP), tiny_unet().double()
    denoiser = UNet2DDenoiser(unet, scheduler)
    scheduler.set_timesteps(1000)
    time = scheduler.timesteps.flip(0)[t].double()
    x = tiny_image(denoiser)
    with torch.no_grad():
        output = unet(x, (time * 999).expand(1)).sample
    mean = scheduler.step_pred(output, x, time.expand(1), generator=torch.Generator().manual_seed(0))[1]
    beta = 0.1 + float(time) * 19.9
    score = (mean - x) * 1000 / beta - x / 2
    alpha, sigma = denoiser.alpha_sigma(t)
    assert alpha**2 + sigma**2 == pytest.approx(1.0)
    torch.testing.assert_close(denoiser.predict_noise(x, t), -sigma * score, rtol=1e-4, atol=1e-5)
    assert denoiser.info.schedule == "variance preserving 0.1-20"


@pytest.mark.parametrize(
    ("scheduler", "name"),
    [
        (EDMEulerScheduler(), "EDM"),
        (EDMDPMSolverMultistepScheduler(), "EDM"),
        (FlowMatchEulerDiscreteScheduler(), "flow matching"),
        (UniPCMultistepScheduler(use_flow_sigmas=True), "flow matching"),
        (DDIMScheduler(prediction_type="v_prediction").from_config({"prediction_type": "flow"}), "prediction_type"),
        (CMStochasticIterativeScheduler(), "consistency"),
        (exploding(1), "2 timesteps"),
        (ScoreSdeVpScheduler(beta_min=3, beta_max=2), "beta_min"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_a_family_without_an_adapter_is_refused_by_its_name(scheduler: Any, name: str) -> None:
    with pytest.raises(ModelError, match=name):
        schedule_of(scheduler)


@pytest.mark.parametrize(
    "options",
    [
        {"beta_start": float("nan")},
        {"beta_start": -0.5},
        {"beta_end": 3.0},
        {"trained_betas": [0.1, -0.05, 0.1]},
        {"num_train_timesteps": 0},
        {"trained_betas": []},
    ],
    ids=str,
)
def test_betas_that_make_no_schedule_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="scheduler: found DDPMScheduler "):
        schedule_of(DDPMScheduler(**options))


def test_schedulers_of_other_alphas_have_other_fingerprints_under_the_same_betas() -> None:
    betas = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    no_signal = {**betas, "rescale_betas_zero_snr": True}
    same = [DDPMScheduler(**betas), DDIMScheduler(**betas), CogVideoXDDIMScheduler(**betas, snr_shift_scale=1.0)]
    others = [
        CogVideoXDDIMScheduler(**betas),
        CogVideoXDDIMScheduler(**betas, snr_shift_scale=2.0),
        DDIMScheduler(**no_signal),
        EulerDiscreteScheduler(**no_signal),  # whose last alpha is not 0
    ]
    fingerprints = [fingerprint([schedule_of(scheduler).numerical], {}) for scheduler in same + others]
    assert len(set(fingerprints[:3])) == 1
    assert len(set(fingerprints)) == 5


def test_alphas_that_no_setting_gives_are_refused() -> None:
    scheduler = DDPMScheduler()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    with pytest.raises(ModelError, match="alphas of its own"):
        schedule_of(scheduler)


def test_how_a_model_is_sampled_is_no_part_of_its_schedule() -> None:
    schedulers = DDIMScheduler(), EulerDiscreteScheduler(), EulerDiscreteScheduler(use_karras_sigmas=True)
    assert len({schedule_of(scheduler).alphas for scheduler in schedulers}) == 1
    assert schedule_of(schedulers[1]) == schedule_of(schedulers[2])


@pytest.mark.parametrize("kind", ["x0/x", "eps/x", "h/x", "x0/h", "eps/h"])
class TestJacobian(OperatorSuite):
    @pytest.fixture
    def operator(self, kind: JacobianKind) -> JacobianOperator:
        return operator_of(kind, torch.float64)

    @pytest.fixture
    def dense(self, kind: JacobianKind) -> torch.Tensor:
        return truth(kind, torch.float64)
