"""Guided sampling inside a mask: what stays, what guidance does, and that strength 0 is sampling without it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

from pipeline.errors import InputError
from pipeline.inversion import sample
from pipeline.methods.blended import BlendedDiffusion, BlendedSettings
from pipeline.methods.contract import Found, Refused, Subject
from pipeline.methods.guidance import Goal
from pipeline.metrics import rms_inside
from pipeline.models.contract import Denoiser
from pipeline.models.unet2d import UNet2DDenoiser
from tests.pipeline.tiny_latents import noise, tiny_latent_denoiser
from tests.pipeline.tiny_models import tiny_denoiser

GOALS = (Goal("left", "brightness", 0), Goal("right", "darkness", 1, -1), Goal("left", "never used", 1))
SETTINGS = BlendedSettings(timestep=0.5, steps=4, goals=GOALS)


@cache
def denoiser() -> UNet2DDenoiser:
    return tiny_denoiser(dtype=torch.float64)


def reader(pictures: torch.Tensor) -> torch.Tensor:
    """Brightness of the left and of the right half, curved so that gradients depend on the picture."""
    left, right = pictures.chunk(2, dim=3)
    return torch.stack([part.mean((1, 2, 3)) + 0.1 * part.square().mean((1, 2, 3)) for part in (left, right)], 1)


def method(settings: BlendedSettings = SETTINGS, model: Denoiser | None = None) -> BlendedDiffusion:
    return BlendedDiffusion(model or denoiser(), settings, reader)


def subject(seed: int = 0, model: Denoiser | None = None) -> Subject:
    shape = (model or denoiser()).info.image_shape
    masks = {name: torch.zeros(shape[1:], dtype=torch.bool) for name in ("left", "right")}
    masks["left"][2:6, 1:4], masks["right"][2:6, -3:] = True, True
    picture = 0.3 * noise(shape, seed=seed)[0]
    return Subject(f"image {seed}", picture.double() if model is None else picture, torch.zeros(1), masks)


def edited(region: str, *strengths: float, how: BlendedDiffusion | None = None, seed: int = 0) -> torch.Tensor:
    """One edit at several strengths, as one batch."""
    count = len(strengths)
    return (how or method()).apply([Found(region, 1.0)] * count, [subject(seed)] * count, torch.tensor(strengths))


@pytest.mark.parametrize("strength", [0.0, 50.0, -50.0])
def test_outside_the_mask_the_source_stays_exactly(strength: float) -> None:
    picture, there = edited("left", strength)[0], subject()
    outside = ~there.masks["left"]
    assert torch.equal(picture[:, outside], there.picture[:, outside])
    assert float((picture - there.picture)[:, ~outside].abs().min()) > 0


@pytest.mark.parametrize(("region", "index", "sign"), [("left", 0, 1), ("right", 1, -1)])
def test_guidance_moves_the_goals_reading_its_way_and_a_negative_strength_turns_it_round(
    region: str, index: int, sign: int
) -> None:
    plain, forth, back = sign * reader(edited(region, 0.0, 200.0, -200.0))[:, index]
    assert back < plain - 0.01 < forth - 0.02


def test_without_guidance_the_sampling_is_that_of_ddpm() -> None:
    whole = replace(subject(), masks={"left": torch.ones(8, 8, dtype=torch.bool)})
    found = method().apply([Found("left", 1.0)], [whole], torch.zeros(1))
    generator = torch.Generator().manual_seed(0)
    alpha, sigma = denoiser().alpha_sigma(25)
    begun = alpha * whole.picture + sigma * torch.randn((1, 3, 8, 8), generator=generator).double()
    expected = sample(denoiser(), begun, 25, 4, eta=1.0, eta_share=1.0, generator=generator)
    torch.testing.assert_close(found, expected)


def test_the_gradient_is_that_of_the_reading_of_the_pasted_prediction_in_x_t() -> None:
    how = method()
    batch = how._batch([Found("left", 1.0)], [subject()], torch.ones(1))
    x, step = noise((3, 8, 8), torch.float64, seed=3), 1e-5

    def read(at: torch.Tensor) -> float:
        clean = denoiser().posterior_mean(at, 20)
        return float(reader(torch.where(batch.masks, clean, batch.pictures).clamp(-1, 1))[0, 0])

    _, gradient = how._guided(x, 20, batch)
    for seed in range(3):
        way = noise((3, 8, 8), torch.float64, seed=10 + seed)
        slope = (read(x + step * way) - read(x - step * way)) / (2 * step)
        assert float((gradient * way).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_guidance_adds_scale_times_posterior_variance_times_gradient() -> None:
    whole = replace(subject(), masks={"left": torch.ones(8, 8, dtype=torch.bool)})
    how = method(replace(SETTINGS, steps=2))  # from 25 to 0, and from there to the clean picture, which is not guided
    batch = how._batch([Found("left", 1.0)], [whole], torch.tensor([30.0]))
    generator = torch.Generator().manual_seed(0)
    (alpha, sigma), (alpha_to, sigma_to) = denoiser().alpha_sigma(25), denoiser().alpha_sigma(0)
    begun = alpha * whole.picture + sigma * torch.randn((1, 3, 8, 8), generator=generator).double()
    plain = sample(denoiser(), begun, 25, 1, stop=0, eta=1.0, generator=generator)
    variance = sigma_to**2 / sigma**2 * (1 - alpha**2 / alpha_to**2)
    expected = denoiser().posterior_mean(plain + 30.0 * variance * how._guided(begun, 25, batch)[1], 0)
    torch.testing.assert_close(how.apply([Found("left", 1.0)], [whole], torch.tensor([30.0])), expected)


def test_strength_zero_asks_no_reader_and_sends_nothing_backward() -> None:
    def broken(pictures: torch.Tensor) -> torch.Tensor:
        raise AssertionError("asked")

    silent = BlendedDiffusion(denoiser(), SETTINGS, broken)
    torch.testing.assert_close(edited("left", 0.0, how=silent), edited("left", 0.0, 9.0)[:1])
    assert silent.cost.backward == 0
    guided = method()
    edited("left", 0.0, 9.0, how=guided)
    assert guided.cost.backward == 2 * 4


def test_the_reference_depends_on_the_region() -> None:
    assert BlendedDiffusion.reference_by_region
    assert not torch.allclose(edited("left", 0.0), edited("right", 0.0))


def test_each_edit_of_a_batch_is_as_it_would_be_alone() -> None:
    regions, subjects, strengths = ("left", "right", "left"), [subject(0), subject(1), subject(2)], (9.0, -50.0, 0.0)
    together = method().apply([Found(region, 1.0) for region in regions], subjects, torch.tensor(strengths))
    for i, region in enumerate(regions):
        torch.testing.assert_close(together[i], edited(region, strengths[i], seed=i)[0])


def test_the_settings_seed_is_the_only_randomness() -> None:
    before = torch.get_rng_state()
    first = edited("left", 9.0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert torch.equal(edited("left", 9.0), first)
    assert not torch.allclose(edited("left", 9.0, how=method(replace(SETTINGS, seed=1))), first)


def test_the_guess_makes_about_the_visible_change() -> None:
    there = subject()
    found = method().guessed(method().find(there), there)
    for region, edit in found.items():
        assert isinstance(edit, Found)
        plain, changed = edited(region, 0.0, edit.guess)
        rms = float(rms_inside((changed - plain)[None], there.masks[region]))
        assert 0.07 < rms < 0.3


def test_finding_samples_nothing_and_the_guess_does() -> None:
    how = method()
    found = how.find(subject())
    assert how.cost.backward == 0 and set(found) == {"left", "right"}
    how.guessed(found, subject())
    assert how.cost.backward == 2 * 2 * 4  # probes, regions, steps


def test_edits_that_do_not_fit_in_memory_together_are_sampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    how, sampled = method(), []
    together = edited("left", 9.0, -50.0, 0.0, how=how)
    real = how._sampled
    monkeypatch.setattr(how, "at_once", lambda most, backward: 2 if backward else most)
    monkeypatch.setattr(how, "_sampled", lambda batch: sampled.append(len(batch.clean)) or real(batch))
    torch.testing.assert_close(edited("left", 9.0, -50.0, 0.0, how=how), together)
    assert sampled == [2, 1]


def test_regions_without_goal_are_left_out_and_those_without_mask_or_effect_refused() -> None:
    there = subject()
    nothing = torch.zeros(8, 8, dtype=torch.bool)
    masks = {"left": nothing, "right": there.masks["right"], "other": ~nothing}
    found = method().find(replace(there, masks=masks))
    assert set(found) == {"left", "right"}
    left, right = found["left"], found["right"]
    assert isinstance(right, Found)
    assert isinstance(left, Refused) and "empty" in left.reason
    deaf = BlendedDiffusion(denoiser(), SETTINGS, lambda pictures: 0 * reader(pictures))
    assert all(isinstance(edit, Refused) for edit in deaf.guessed(deaf.find(there), there).values())


def test_what_cannot_be_guided_is_an_error() -> None:
    with pytest.raises(InputError, match="reader"):
        BlendedDiffusion(denoiser(), SETTINGS).find(subject())
    with pytest.raises(InputError, match="goals: found none for other"):
        method().apply([Found("other", 1.0)], [subject()], torch.ones(1))
    with pytest.raises(InputError, match="one of 2 readings"):
        edited("left", 1.0, how=method(replace(SETTINGS, goals=(Goal("left", "unknown", 2),))))
    with pytest.raises(InputError, match="one of each"):
        method().apply([Found("left", 1.0)], [subject()], torch.ones(2))


def test_latents_are_blended_and_the_background_is_the_source_picture() -> None:
    model = tiny_latent_denoiser("conditional")
    there = subject(model=model)
    how = method(model=model)
    batch = how._batch([Found("left", 1.0)], [there], torch.ones(1))
    cells = batch.x_masks[0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert batch.x_masks.shape == (1, 1, *model.info.x_shape[1:])
    assert bool((cells | ~there.masks["left"]).all())
    pictures = how.apply([Found("left", 1.0)] * 2, [there] * 2, torch.tensor([0.0, 200.0]))
    outside = ~there.masks["left"]
    assert torch.equal(pictures[1][:, outside], there.picture[:, outside])
    assert not torch.allclose(pictures[0], pictures[1])


def test_settings_are_written_as_json_and_the_grid_holds_the_papers() -> None:
    written = json.loads(json.dumps(SETTINGS.as_dict()))
    assert tuple(Goal(**goal) for goal in written.pop("goals")) == GOALS
    grid = BlendedDiffusion.grid(SETTINGS)
    assert grid[0] == SETTINGS
    assert (grid[-1].timestep, grid[-1].steps) == (0.75, 75)
    assert all(isinstance(chosen, BlendedSettings) and chosen.goals == GOALS for chosen in grid)
