"""Directions learned by contrast: what the loss rewards, what learning leaves, and which direction a region gets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch

from pipeline.editing import DecodeSettings, decode
from pipeline.errors import InputError, ModelError
from pipeline.jacobian import jacobian
from pipeline.methods.contract import Found, Subject
from pipeline.methods.noise_clr import NoiseClr, NoiseClrSettings, contrast
from pipeline.models.contract import Denoiser
from pipeline.models.counting import CountingDenoiser
from pipeline.models.unet2d import UNet2DDenoiser
from tests.pipeline.tiny_latents import noise, tiny_dit_denoiser, tiny_latent_denoiser
from tests.pipeline.tiny_models import tiny_denoiser

SETTINGS = NoiseClrSettings(
    timestep=0.5, steps=3, directions=4, learning_steps=40, batch=3, drawn=3, learning_images=5
)  # fmt: skip


@dataclass
class Passes:
    passes: int = 0


@cache
def denoiser() -> UNet2DDenoiser:
    return tiny_denoiser()


def subjects(count: int, model: Denoiser | None = None, seed: int = 0) -> list[Subject]:
    info = (model or denoiser()).info
    pictures = 0.3 * noise(info.image_shape, count=count, seed=seed)
    latents = noise(info.x_shape, count=count, seed=seed + 1)
    masks = {"corner": torch.zeros(info.image_shape[1:], dtype=torch.bool), "rest": torch.ones(info.image_shape[1:])}
    masks["corner"][:3, :3] = True
    masks["rest"] = ~masks["corner"]
    return [Subject(f"image {i}", pictures[i], latents[i], masks) for i in range(count)]


def learned(settings: NoiseClrSettings = SETTINGS) -> NoiseClr:
    method = NoiseClr(denoiser(), settings)
    method.learn(subjects(5))
    return method


@cache
def one() -> NoiseClr:
    return learned()


def test_settings_that_the_lesson_leaves_out_and_noisy_images_change_nothing_of_what_is_learned() -> None:
    settings = replace(SETTINGS, learning_steps=3)
    others = replace(settings, timestep=0.3, levels=(0.5, 0.0), steps=9, eta=1.0, tolerance=0.5, inversion_steps=7)
    assert others.lesson() == settings.lesson() != replace(settings, timestep=0.3).lesson()
    blind = NoiseClr(denoiser(), others)
    blind.learn([Subject(one.name, one.picture, torch.empty(0), {}) for one in subjects(5)])
    assert torch.equal(blind.learned()["directions"], learned(settings).learned()["directions"])


@pytest.mark.parametrize("mean", [False, True])
def test_passes_up_to_the_bottleneck_and_behind_it_are_counted(mean: bool) -> None:
    clock = Passes()
    counting = CountingDenoiser(denoiser(), clock)
    x = noise(denoiser().info.x_shape, count=1)
    behind = (counting.posterior_mean_from_bottleneck if mean else counting.noise_from_bottleneck)(x, 5)
    h = counting.bottleneck(x, 5)
    assert clock.passes == 2
    own = denoiser().posterior_mean(x, 5) if mean else denoiser().predict_noise(x, 5)
    torch.testing.assert_close(behind(h.expand(3, -1, -1, -1)), own.expand(3, -1, -1, -1))
    assert clock.passes == 5


def fresh_loss(vectors: torch.Tensor) -> float:
    """The loss on images that were never learned from."""
    method = NoiseClr(denoiser(), replace(SETTINGS, seed=9))
    generator = torch.Generator().manual_seed(3)
    clean = torch.stack([subject.picture for subject in subjects(5, seed=50)])
    losses = []
    for _ in range(10):
        noisy, t = method._noised(clean, generator)
        with torch.no_grad():
            losses.append(float(contrast(method._changes(noisy, t, vectors), SETTINGS.temperature)))
    return sum(losses) / len(losses)


def test_changes_alike_over_images_and_unlike_over_directions_are_what_the_loss_rewards() -> None:
    apart = torch.eye(3).expand(2, 3, 3)
    assert float(contrast(apart, 0.5)) == pytest.approx(-2.0)
    assert float(contrast(5.0 * apart, 0.25)) == pytest.approx(-4.0)
    same = torch.ones(2, 3, 7)
    assert float(contrast(same, 0.5)) == pytest.approx(0.0, abs=1e-6)
    swapped = torch.stack([torch.eye(3), torch.eye(3).roll(1, 0)])
    assert float(contrast(swapped, 0.5)) > float(contrast(apart, 0.5))


def test_the_loss_is_the_papers_formula_written_out() -> None:
    changes = torch.randn((3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def like(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.exp(torch.cosine_similarity(a, b, dim=0) / 0.3))

    terms = []
    for k in range(4):
        alike = [like(changes[a, k], changes[b, k]) for a in range(3) for b in range(a)]
        others = [like(changes[a, k], changes[a, i]) for a in range(3) for i in range(4) if i != k]
        terms.append(-torch.tensor(sum(alike) / len(alike) / (sum(others) / len(others))).log())
    assert float(contrast(changes, 0.3)) == pytest.approx(float(sum(terms)) / 4, rel=1e-5)


def test_a_change_is_the_difference_of_two_noise_predictions() -> None:
    method, x = NoiseClr(denoiser(), SETTINGS), noise(denoiser().info.x_shape, count=2)
    shifts = noise((16, 4, 4), count=3, seed=4)
    changes = method._changes(x, 20, shifts)
    for b in range(2):
        plain = denoiser().predict_noise(x[b : b + 1], 20)
        for d in range(3):
            moved = denoiser().predict_noise(x[b : b + 1], 20, shifts[d : d + 1])
            torch.testing.assert_close(changes[b, d], (moved - plain).flatten(), atol=1e-5, rtol=1e-4)


def test_learning_lowers_the_loss_on_images_it_never_saw() -> None:
    vectors = one().learned()["directions"]
    norm = SETTINGS.radius * one()._typical_norm(noise(denoiser().info.x_shape), torch.Generator().manual_seed(0))
    drawn = noise(tuple(vectors.shape[1:]), count=4, seed=77)
    random = drawn / drawn.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert fresh_loss(norm * vectors) < fresh_loss(norm * random) - 0.2
    losses = one().learned()["losses"]
    assert losses.shape == (40,)
    assert float(losses[-10:].mean()) < float(losses[:10].mean()) - 0.2


def test_the_seed_alone_decides_what_is_learned() -> None:
    short = replace(SETTINGS, learning_steps=3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = learned(short).learned()["directions"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(learned(short).learned()["directions"], first)
    assert not torch.allclose(learned(replace(short, seed=1)).learned()["directions"], first)


def test_learning_again_from_the_same_images_changes_nothing_and_costs_nothing() -> None:
    method = learned(replace(SETTINGS, learning_steps=2))
    cost, directions = method.cost.backward, method.learned()["directions"]
    assert cost == 2 * 3 * 3
    method.learn(subjects(5))
    assert method.cost.backward == cost
    method.learn(subjects(5, seed=1)[::-1])
    assert not torch.equal(method.learned()["directions"], directions)


def test_what_was_learned_can_be_restored_and_finds_the_same() -> None:
    tensors = one().learned()
    norms = tensors["directions"].flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(4))
    other = NoiseClr(denoiser(), SETTINGS)
    assert other.learned() == {}
    other.restore(tensors)
    here, there = (method.find(subjects(1)[0])["corner"] for method in (one(), other))
    assert isinstance(here, Found) and isinstance(there, Found)
    assert (here.index, here.guess, here.evidence) == (there.index, there.guess, there.evidence)
    assert torch.equal(other.learned()["losses"], tensors["losses"])


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({}, "none"),
        ({"directions": torch.zeros(3, 16, 4, 4)}, "shape"),
        ({"directions": torch.ones(4, 16, 4, 4)}, "other norms"),
        ({"directions": torch.full((4, 16, 4, 4), torch.nan)}, "other norms"),
    ],
)
def test_what_does_not_fit_is_not_restored(tensors: dict[str, torch.Tensor], found: str) -> None:
    method = NoiseClr(denoiser(), SETTINGS)
    with pytest.raises(InputError, match=f"learned: directions: found .*{found}"):
        method.restore(tensors)
    with pytest.raises(InputError, match="Call learn"):
        method.find(subjects(1)[0])


def test_each_region_gets_the_direction_with_the_largest_share_inside_it() -> None:
    subject = subjects(1)[0]
    operator = jacobian(denoiser(), subject.x_t, one().timestep, "x0/h")
    dense = operator.matvec(torch.eye(256).view(256, 16, 4, 4)).flatten(1).T
    effects = (dense @ one().learned()["directions"].flatten(1).T).T.view(4, *denoiser().info.image_shape)
    spent = one().cost.jvp
    found = one().find(subject)
    assert one().cost.jvp == spent + 4
    for region, mask in subject.masks.items():
        edit = found[region]
        assert isinstance(edit, Found) and edit.vector is not None
        shares = (effects * mask).flatten(1).norm(dim=1) / effects.flatten(1).norm(dim=1)
        assert edit.index == int(shares.argmax())
        assert edit.evidence["share"] == pytest.approx(float(shares.max()), rel=1e-3)
        assert torch.equal(edit.vector, one().learned()["directions"][edit.index])


def test_a_direction_too_weak_to_be_seen_is_passed_over_and_no_effect_is_refused() -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:3, :3] = True
    effects = torch.zeros(3, 3, 8, 8)
    effects[0, :, :3, :3] = 1e-9  # all of it inside, and never visible
    effects[1] = 0.1
    effects[2, :, :4, :4] = 0.1
    best = NoiseClr(denoiser(), SETTINGS)
    best.restore({"directions": one().learned()["directions"]})
    edit = best._best("corner", mask, effects)
    assert isinstance(edit, Found)
    assert edit.index == 2
    weak = best._best("corner", mask, 1e-9 * effects)
    assert isinstance(weak, Found)
    assert weak.guess == best.limit
    assert not isinstance(best._best("corner", mask, 0 * effects), Found)


def test_strength_zero_is_the_reconstruction_and_a_batch_is_as_each_alone() -> None:
    here, there = subjects(2)
    edits = [one().find(here)["corner"], one().find(there)["rest"]]
    found = [edit for edit in edits if isinstance(edit, Found)]
    assert len(found) == 2
    plain = decode(denoiser(), torch.stack([here.x_t, there.x_t]), one().timestep, DecodeSettings(steps=3))
    torch.testing.assert_close(one().apply(found, [here, there], torch.zeros(2)), plain)
    strengths = torch.tensor([20.0, -30.0])
    together = one().apply(found, [here, there], strengths)
    assert not torch.allclose(together, plain)
    for i, subject in enumerate((here, there)):
        alone = one().apply(found[i : i + 1], [subject], strengths[i : i + 1])
        torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=1e-4)


def test_timesteps_are_drawn_from_the_levels() -> None:
    clean, generator = noise(denoiser().info.x_shape), torch.Generator().manual_seed(0)

    def drawn(**changes: Any) -> set[int]:
        method = NoiseClr(denoiser(), replace(SETTINGS, **changes))
        return {method._noised(clean, generator)[1] for _ in range(300)}

    assert drawn() == set(range(26))
    assert drawn(window=(0.4, 0.2)) == set(range(10, 21))
    assert drawn(window=(0.4, 0.2), levels=(1.0, 0.9)) == set(range(45, 50))


def test_latent_models_are_learned_from_pictures_too() -> None:
    model = tiny_latent_denoiser("conditional")
    method = NoiseClr(model, replace(SETTINGS, learning_steps=2))
    told: list[tuple[int, int]] = []
    method.learn(subjects(5, model), lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]
    assert method.learned()["directions"].shape == (4, *model.need_bottleneck())
    assert isinstance(method.find(subjects(1, model)[0])["corner"], Found)


def test_a_model_without_a_bottleneck_and_too_few_images_are_refused() -> None:
    with pytest.raises(ModelError, match="bottleneck"):
        NoiseClr(tiny_dit_denoiser(class_label=0), SETTINGS).learn([])
    with pytest.raises(InputError, match="subjects: found 4; expected 5"):
        NoiseClr(denoiser(), SETTINGS).learn(subjects(4))


@pytest.mark.parametrize(
    "wrong",
    [{"directions": 1}, {"drawn": 5}, {"batch": 6}, {"batch": 1}, {"temperature": 0.0}, {"levels": (0.1, 0.5)}],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        replace(SETTINGS, **wrong)


def test_the_grid_begins_with_the_settings_given_and_holds_the_papers() -> None:
    grid = NoiseClr.grid(NoiseClrSettings(seed=5))
    assert grid[0] == NoiseClrSettings(seed=5)
    assert len(set(map(repr, grid))) == len(grid) >= 2
    paper = grid[-1].as_dict()
    assert (paper["directions"], paper["drawn"], paper["batch"], paper["temperature"]) == (100, 21, 6, 0.5)
    assert all(setting.seed == 5 for setting in grid)
