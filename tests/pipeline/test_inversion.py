from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.inversion import BottleneckShift, Convention, invert, predict, round_trip_psnr, sample, timestep_grid
from pipeline.models.contract import Denoiser
from pipeline.models.unet2d import UNet2DDenoiser
from tests.pipeline.tiny_models import tiny_denoiser, tiny_image, tiny_scheduler, tiny_unet


@pytest.fixture(scope="module")
def denoiser() -> UNet2DDenoiser:
    return tiny_denoiser(dtype=torch.float64)


class Counting:
    """A stand-in that counts the network calls of a denoiser."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, denoiser: UNet2DDenoiser) -> None:
        self.calls: list[tuple[int, bool]] = []
        output = denoiser._output

        def counted(x: torch.Tensor, t: int, shift: torch.Tensor | None) -> torch.Tensor:
            self.calls.append((t, shift is not None))
            return output(x, t, shift)

        monkeypatch.setattr(denoiser, "_output", counted)


@settings(max_examples=200, deadline=None)
@given(st.integers(-1, 500), st.integers(1, 1000), st.integers(1, 1200))
def test_a_grid_goes_strictly_from_stop_to_t_in_growing_intervals(stop: int, length: int, steps: int) -> None:
    t = stop + length
    grid = timestep_grid(t, steps, stop)
    gaps = [b - a for a, b in pairwise(grid)]
    assert (grid[0], grid[-1], len(gaps)) == (stop, t, min(steps, length))
    assert min(gaps) >= 1
    inner = gaps[1:] if stop == -1 and len(gaps) > 1 else gaps
    assert all(later >= earlier - 1 for earlier, later in pairwise(inner))  # up to rounding
    assert stop >= 0 or len(gaps) == 1 or grid[1] == 0


@pytest.mark.parametrize(("t", "steps", "stop"), [(5, 0, -1), (5, 3, 5), (-1, 3, -1), (4, 3, -2)])
def test_a_grid_that_cannot_be_is_an_error(t: int, steps: int, stop: int) -> None:
    with pytest.raises(InputError):
        timestep_grid(t, steps, stop)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_round_trip_closes_as_the_grid_gets_finer(prediction: str) -> None:
    unet = tiny_unet(size=4)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.startswith("conv_out"):
                parameter.mul_(0.1)  # a smooth vector field, as a trained network's
    denoiser = UNet2DDenoiser(unet, tiny_scheduler(prediction, steps=400), dtype=torch.float64)
    x0 = tiny_image(denoiser, count=2).clamp(-1, 1)
    errors = []
    for steps in (6, 18, 54):
        x_t = invert(denoiser, x0, 200, steps)
        errors.append(float((sample(denoiser, x_t, 200, steps) - x0).norm() / x0.norm()))
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]


class ConstantNoise(UNet2DDenoiser):
    """A network that always predicts the same noise, for which DDIM is exact at any number of steps."""

    def predict_noise(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        noise = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).view(1, *x.shape[1:])
        return noise.expand_as(x) if h_shift is None else noise + h_shift.mean((1, 2, 3), keepdim=True)

    def posterior_mean(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        return Denoiser.posterior_mean(self, x, t, h_shift)


@pytest.fixture
def exact() -> ConstantNoise:
    return ConstantNoise(tiny_unet(), tiny_scheduler(), dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_ddim_is_exact_where_the_noise_is_constant(exact: ConstantNoise, steps: int) -> None:
    x0 = tiny_image(exact, count=2)
    alpha, sigma = exact.alpha_sigma(30)
    x_t = invert(exact, x0, 30, steps)
    torch.testing.assert_close(x_t, alpha * x0 + sigma * exact.predict_noise(x0, 0))
    torch.testing.assert_close(sample(exact, x_t, 30, steps), x0)


def test_a_way_cut_in_two_is_the_whole_way(exact: ConstantNoise) -> None:
    x_t = tiny_image(exact)
    halfway = sample(exact, x_t, 40, 10, stop=20)
    torch.testing.assert_close(sample(exact, halfway, 20, 10), sample(exact, x_t, 40, 20))


def test_each_way_costs_one_call_per_step(denoiser: UNet2DDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch, denoiser)
    seen: list[tuple[int, int]] = []
    x_t = invert(denoiser, tiny_image(denoiser), 30, 10, progress=lambda done, total: seen.append((done, total)))
    up, counting.calls[:] = list(counting.calls), []
    sample(denoiser, x_t, 30, 10)
    assert (len(up), len(counting.calls)) == (10, 10)
    assert seen == [(i, 10) for i in range(1, 11)]


def test_more_steps_than_timesteps_visit_each_once(denoiser: UNet2DDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch, denoiser)
    sample(denoiser, tiny_image(denoiser), 6, 100)
    assert [t for t, _ in counting.calls] == [6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(("convention", "extra"), [("both", 0), ("x0", 1)])
def test_the_shift_acts_inside_its_window_only(
    denoiser: UNet2DDenoiser, monkeypatch: pytest.MonkeyPatch, convention: str, extra: int
) -> None:
    counting = Counting(monkeypatch, denoiser)
    shift = BottleneckShift(torch.ones(1, 16, 4, 4), high=20, low=10, convention=convention)  # type: ignore[arg-type]
    sample(denoiser, tiny_image(denoiser), 22, 23, shift=shift)
    shifted = [t for t, with_shift in counting.calls if with_shift]
    plain = [t for t, with_shift in counting.calls if not with_shift]
    assert shifted == list(range(20, 9, -1))
    assert len(plain) == 23 - 11 + 11 * extra


def test_the_conventions_differ_in_the_direction_to_x_t_only(exact: ConstantNoise) -> None:
    x_t = tiny_image(exact)
    delta = torch.full((1, 16, 4, 4), 0.3, dtype=torch.float64)
    (alpha, sigma), (alpha_to, sigma_to) = exact.alpha_sigma(20), exact.alpha_sigma(10)
    plain = sample(exact, x_t, 20, 1, stop=10)
    both = sample(exact, x_t, 20, 1, stop=10, shift=BottleneckShift(delta, 20))
    asymmetric = sample(exact, x_t, 20, 1, stop=10, shift=BottleneckShift(delta, 20, convention="x0"))
    torch.testing.assert_close(asymmetric - plain, torch.full_like(x_t, -0.3 * alpha_to * sigma / alpha))
    torch.testing.assert_close(both - asymmetric, torch.full_like(x_t, 0.3 * sigma_to))


def test_a_zero_shift_changes_nothing(denoiser: UNet2DDenoiser) -> None:
    x_t = tiny_image(denoiser)
    zero = torch.zeros(1, 16, 4, 4)
    plain = sample(denoiser, x_t, 30, 5)
    conventions: tuple[Convention, ...] = ("both", "x0")
    for convention in conventions:
        shift = BottleneckShift(zero, 30, convention=convention)
        torch.testing.assert_close(sample(denoiser, x_t, 30, 5, shift=shift), plain)


def test_a_shift_that_is_a_function_is_told_h_and_t_of_every_step_in_the_window(
    denoiser: UNet2DDenoiser,
) -> None:
    x_t, told = tiny_image(denoiser, count=2), list[int]()

    def shift(h: torch.Tensor, t: int) -> torch.Tensor:
        told.append(t)
        return 0.1 * h

    x = sample(denoiser, x_t, 22, 23, shift=BottleneckShift(shift, high=20, low=18))
    assert told == [20, 19, 18]
    expected = x_t
    for t in range(22, -1, -1):
        constant = BottleneckShift(0.1 * denoiser.bottleneck(expected, t), high=20, low=18)
        expected = sample(denoiser, expected, t, 1, stop=t - 1, shift=constant)
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("convention", ["both", "x0"])
def test_a_constant_function_is_its_constant(denoiser: UNet2DDenoiser, convention: Convention) -> None:
    x_t, delta = tiny_image(denoiser, count=2), torch.full((1, 16, 4, 4), 0.3)
    one, other = (
        sample(denoiser, x_t, 30, 5, shift=BottleneckShift(given, 20, convention=convention))
        for given in (delta, lambda h, t: delta)
    )
    assert torch.equal(one, other)


def test_a_step_can_be_differentiated_in_its_shift(denoiser: UNet2DDenoiser) -> None:
    scale = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    x = tiny_image(denoiser)

    def clean(size: torch.Tensor) -> torch.Tensor:
        return predict(denoiser, x, 20, BottleneckShift(lambda h, t: size * h, 20, convention="x0"))[0].sum()

    assert torch.autograd.gradcheck(clean, scale)


def test_a_batch_comes_out_as_its_samples_would_alone(denoiser: UNet2DDenoiser) -> None:
    x_t = tiny_image(denoiser, count=3)
    delta = torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(0))

    def run(rows: slice) -> torch.Tensor:
        shift = BottleneckShift(delta[rows], 20, 5)
        generator = torch.Generator().manual_seed(7)
        return sample(denoiser, x_t[rows], 30, 6, shift=shift, eta=1.0, eta_share=0.5, generator=generator)

    torch.testing.assert_close(run(slice(0, 3)), torch.cat([run(slice(i, i + 1)) for i in range(3)]))


def test_equal_seeds_give_equal_samples_and_others_do_not(denoiser: UNet2DDenoiser) -> None:
    x_t = tiny_image(denoiser)
    one, same, other = (
        sample(denoiser, x_t, 30, 10, eta=1.0, eta_share=0.5, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, sample(denoiser, x_t, 30, 10))


@pytest.mark.parametrize(("share", "random"), [(0.0, 0), (0.2, 1), (0.5, 4), (1.0, 9)])
def test_noise_enters_in_the_last_share_of_the_steps_but_never_in_the_very_last(
    exact: ConstantNoise, monkeypatch: pytest.MonkeyPatch, share: float, random: int
) -> None:
    drawn: list[int] = []
    draw = torch.randn

    def counted(*shape: object, **options: object) -> torch.Tensor:
        drawn.append(1)
        return draw(*shape, **options)  # type: ignore[call-overload, no-any-return]

    x_t, generator = tiny_image(exact), torch.Generator().manual_seed(0)
    monkeypatch.setattr("pipeline.inversion.torch.randn", counted)
    sample(exact, x_t, 30, 10, eta=1.0, eta_share=share, generator=generator)
    assert len(drawn) == random


def test_stochastic_steps_keep_the_noise_level() -> None:
    """With a network that predicts x0 = 0 exactly, samples at level t have standard deviation sigma_t."""

    class Nothing(ConstantNoise):
        def predict_noise(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
            return x / self.alpha_sigma(t)[1]

    denoiser = Nothing(tiny_unet(size=32), tiny_scheduler())
    x_t = denoiser.alpha_sigma(40)[1] * tiny_image(denoiser)
    generator = torch.Generator().manual_seed(0)
    low = sample(denoiser, x_t, 40, 5, stop=10, eta=1.0, generator=generator)
    assert float(low.std()) == pytest.approx(denoiser.alpha_sigma(10)[1], rel=0.05)


def test_sampling_from_pure_noise_is_finite() -> None:
    denoiser = UNet2DDenoiser(tiny_unet(), tiny_scheduler("v_prediction", rescale_betas_zero_snr=True))
    assert bool(sample(denoiser, tiny_image(denoiser), 49, 10).isfinite().all())


def test_psnr_is_per_image_over_data_range_two() -> None:
    x0 = torch.zeros(3, 1, 4, 4)
    x0_hat = torch.stack([torch.full((1, 4, 4), value) for value in (0.0, 0.02, 2.0)])
    psnr = round_trip_psnr(x0, x0_hat)
    assert torch.isinf(psnr[0])
    assert psnr[1:].tolist() == pytest.approx([40.0, 0.0], abs=1e-5)


def test_nothing_is_recorded_for_gradients(denoiser: UNet2DDenoiser) -> None:
    x0 = tiny_image(denoiser).requires_grad_()
    assert not invert(denoiser, x0, 10, 2).requires_grad


def test_bad_arguments_are_named(denoiser: UNet2DDenoiser) -> None:
    x = tiny_image(denoiser)
    with pytest.raises(InputError, match="image"):
        invert(denoiser, x[0], 10, 2)
    with pytest.raises(InputError, match="timestep"):
        sample(denoiser, x, 50, 2)
    with pytest.raises(InputError, match="generator"):
        sample(denoiser, x, 10, 2, eta=1.0)
    with pytest.raises(InputError, match="eta"):
        sample(denoiser, x, 10, 2, eta=1.5)
    with pytest.raises(InputError, match="eta_share"):
        sample(denoiser, x, 10, 2, eta_share=-0.1)
    with pytest.raises(InputError, match="convention"):
        BottleneckShift(torch.zeros(1), 5, convention="neither")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="h_window"):
        BottleneckShift(torch.zeros(1), 5, 6)
