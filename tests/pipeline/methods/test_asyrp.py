from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from pipeline.editing import DecodeSettings, decode, invert_pictures
from pipeline.errors import InputError, ModelError
from pipeline.inversion import timestep_grid
from pipeline.methods.asyrp import Asyrp, AsyrpSettings, HFunction
from pipeline.methods.contract import Found, Settings, Subject
from pipeline.methods.guidance import Goal
from pipeline.models.contract import Denoiser
from pipeline.models.counting import CountingDenoiser
from tests.pipeline.methods.tiny_clip import tiny_clip
from tests.pipeline.tiny_latents import tiny_dit_denoiser, tiny_latent_denoiser
from tests.pipeline.tiny_models import tiny_denoiser

DENOISER = tiny_denoiser()
GOALS = (Goal("left", "brightness", 0), Goal("right", "brightness", 1, sign=-1))
SETTINGS = AsyrpSettings(
    goals=GOALS,
    samples=6,
    epochs=3,
    batch=3,
    train_steps=3,
    steps=4,
    inversion_steps=4,
    learning_rate=0.02,
    recon=0.3,
    hold=0.0,
)


def halves(images: torch.Tensor) -> torch.Tensor:
    """A reader of the brightness of the left and of the right half, 0.5 where they are grey."""
    return 0.5 + 2.0 * torch.nn.functional.adaptive_avg_pool2d(images, (1, 2)).mean(1).flatten(1)


def subjects(count: int, denoiser: Denoiser = DENOISER, seed: int = 0, timestep: int = 20) -> list[Subject]:
    shape = denoiser.info.image_shape
    generator = torch.Generator().manual_seed(seed)
    pictures = (0.4 * torch.randn((count, *shape), generator=generator)).clamp(-1, 1)
    latents = invert_pictures(denoiser, pictures, timestep, 4)
    left = torch.zeros(shape[1:], dtype=torch.bool)
    left[:, : shape[2] // 2] = True
    masks = {"left": left, "right": ~left}
    return [Subject(f"{seed}-{i}", pictures[i], latents[i], masks) for i in range(count)]


TRAINING, OTHERS = subjects(6), subjects(4, seed=1)


def method(settings: AsyrpSettings = SETTINGS, denoiser: Denoiser = DENOISER) -> Asyrp:
    return Asyrp(denoiser, settings, halves)


@pytest.fixture(scope="module")
def trained() -> Asyrp:
    made = method()
    made.learn(TRAINING)
    return made


def edits(made: Asyrp, region: str, count: int) -> list[Found]:
    found = [made.find(subject)[region] for subject in OTHERS[:count]]
    assert all(isinstance(edit, Found) for edit in found)
    return [edit for edit in found if isinstance(edit, Found)]


# --- the function -------------------------------------------------------------------------------------------------


def test_an_untrained_function_shifts_nothing() -> None:
    function = HFunction(16, 50, torch.Generator().manual_seed(0))
    assert not function(torch.randn(2, 16, 4, 4), 7).any()


def test_a_function_depends_on_h_and_on_time_and_treats_images_apart() -> None:
    function = HFunction(16, 50, torch.Generator().manual_seed(0))
    torch.nn.init.eye_(function.out.weight.view(16, 16))
    h = torch.randn((2, 16, 4, 4), generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(function(h, 7), function(h, 8))
    torch.testing.assert_close(function(h, 7), torch.cat([function(h[:1], 7), function(h[1:], 7)]))
    assert not torch.allclose(function(h, 7)[0], function(h, 7)[1])


@pytest.mark.parametrize("channels", [1, 6, 40, 96, 512])
def test_groups_fit_any_number_of_channels(channels: int) -> None:
    function = HFunction(channels, 50, torch.Generator().manual_seed(0))
    assert function(torch.randn(1, channels, 2, 2), 3).shape == (1, channels, 2, 2)


# --- learning -----------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_images_it_has_not_seen_are_edited(trained: Asyrp) -> None:
    for region, sign, index in (("left", 1, 0), ("right", -1, 1)):
        found = edits(trained, region, 4)
        assert found[0].guess == 1.0 and found[0].vector is None
        assert found[0].evidence["last_loss"] < 0.9 * found[0].evidence["first_loss"]
        before, after = (halves(trained.apply(found, OTHERS, torch.full((4,), strength))) for strength in (0.0, 1.0))
        assert bool((sign * (after - before)[:, index] > 0.04).all())


def test_learning_depends_on_the_seed_alone(trained: Asyrp) -> None:
    state = torch.get_rng_state()
    again, other = method(), method(replace(SETTINGS, seed=1))
    with torch.no_grad():  # whatever the caller has set
        again.learn(TRAINING)
    other.learn(TRAINING)
    assert torch.equal(torch.get_rng_state(), state)
    one, same, different = trained.learned(), again.learned(), other.learned()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["left/brightness/f.out.weight"], different["left/brightness/f.out.weight"])


def test_a_learning_that_was_cut_off_goes_on_with_the_next_goal(trained: Asyrp) -> None:
    class Killed(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == total - 2:
            raise Killed

    cut, resumed = method(), method()
    with pytest.raises(Killed):
        cut.learn(TRAINING, stop)
    assert {name.split("/")[0] for name in cut.learned()} == {"left"}
    resumed.restore(cut.learned())
    resumed.learn(TRAINING)
    whole = trained.learned()
    assert whole.keys() == resumed.learned().keys()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.learned().items())


def test_progress_is_told_to_the_end_and_a_second_call_does_nothing() -> None:
    made, seen = method(replace(SETTINGS, epochs=1)), list[tuple[int, int]]()
    made.learn(TRAINING, lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]
    made.learn(TRAINING, lambda done, total: seen.append((done, total)))
    assert len(seen) == 5 and made.cost.backward == 2 * 6 * 3


@pytest.mark.parametrize("batch", [3, 4])
def test_what_learning_costs_is_counted(batch: int) -> None:
    @dataclass
    class Clock:
        passes: int = 0

    clock = Clock()
    made = method(replace(SETTINGS, batch=batch), CountingDenoiser(DENOISER, clock))
    made.learn(TRAINING)
    steps, walks = 3, 2 * 3 * 6  # goals, epochs, images
    assert (clock.passes, made.cost.backward) == (6 * steps + 3 * walks * steps, walks * steps)
    clock.passes = 0
    made.apply(edits(made, "left", 2), OTHERS[:2], torch.ones(2))
    assert clock.passes == 2 * 3 * SETTINGS.steps


def test_settings_that_the_lesson_leaves_out_change_nothing_of_what_is_learned(trained: Asyrp) -> None:
    others = replace(SETTINGS, steps=9, boost=0.2, eta=1.0, eta_share=0.5, tolerance=0.5)
    assert others.lesson() == SETTINGS.lesson() != replace(SETTINGS, train_steps=4).lesson()
    made = method(others)
    made.learn([replace(subject, masks={}) for subject in TRAINING])
    for name, tensor in trained.learned().items():
        assert torch.equal(made.learned()[name], tensor), name


def test_only_steps_of_the_editing_interval_are_learned_from() -> None:
    made = method(replace(SETTINGS, epochs=1, train_steps=20, window=(0.3, 0.2), goals=GOALS[:1]))
    made.learn(TRAINING)
    inside = [t for t in timestep_grid(20, 20) if 10 <= t <= 15]
    assert made.cost.backward == 6 * len(inside) < 6 * 20


def test_a_heavier_reconstruction_keeps_the_edit_smaller(trained: Asyrp) -> None:
    heavy = method(replace(SETTINGS, recon=3.0))
    heavy.learn(TRAINING)
    sizes = []
    for made in (trained, heavy):
        one, none = (made.apply(edits(made, "left", 4), OTHERS, torch.full((4,), strength)) for strength in (1.0, 0.0))
        sizes.append(float((one - none).norm()))
    assert sizes[1] < 0.5 * sizes[0]


def test_clip_can_be_the_guide(tmp_path: Path) -> None:
    goal = Goal("left", "smile", source="a face", target="a face with a smile")
    settings = replace(SETTINGS, goals=(goal,), clip=str(tiny_clip(tmp_path)), epochs=5, recon=0.1)
    made = Asyrp(DENOISER, settings)
    made.learn(TRAINING)
    evidence = edits(made, "left", 1)[0].evidence
    assert evidence["last_loss"] < 0.9 * evidence["first_loss"]


def test_latent_models_are_guided_by_their_pictures() -> None:
    denoiser = tiny_latent_denoiser("conditional")
    made = method(replace(SETTINGS, epochs=2), denoiser)
    training = subjects(3, denoiser)
    made.learn(training)
    found = made.find(training[0])["left"]
    assert isinstance(found, Found)
    before, after = (made.apply([found], training[:1], torch.tensor([s])) for s in (0.0, 1.0))
    assert after.shape == (1, *denoiser.info.image_shape) and not torch.allclose(before, after)


# --- applying -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["x0", "both"])
def test_strength_zero_is_the_reconstruction(trained: Asyrp, convention: str) -> None:
    made = method(replace(SETTINGS, convention=convention))  # type: ignore[arg-type]
    made.restore(trained.learned())
    latents = torch.stack([subject.x_t for subject in OTHERS])
    plain = decode(DENOISER, latents, made.timestep, DecodeSettings(steps=SETTINGS.steps))
    torch.testing.assert_close(made.apply(edits(made, "left", 4), OTHERS, torch.zeros(4)), plain, atol=1e-5, rtol=0)


def test_every_edit_of_a_batch_is_as_it_would_be_alone(trained: Asyrp) -> None:
    found = [trained.find(s)[region] for s, region in zip(OTHERS, ("left", "right", "left", "right"), strict=True)]
    batch = [edit for edit in found if isinstance(edit, Found)]
    strengths = torch.tensor([1.0, -0.5, 2.0, 1.5])
    together = trained.apply(batch, OTHERS, strengths)
    alone = [trained.apply([batch[i]], [OTHERS[i]], strengths[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_the_boosting_interval_is_stochastic_and_equal_for_edit_and_reconstruction(trained: Asyrp) -> None:
    pictures = []
    for boost, seed in ((0.0, 0), (0.3, 0), (0.3, 0), (0.3, 1)):
        made = method(replace(SETTINGS, boost=boost, seed=seed))
        made.restore(trained.learned())
        pictures.append(made.apply(edits(made, "left", 1), OTHERS[:1], torch.zeros(1)))
    assert torch.equal(pictures[1], pictures[2])
    assert not torch.allclose(pictures[0], pictures[1]) and not torch.allclose(pictures[1], pictures[3])


def test_restored_functions_edit_as_those_that_were_learned(trained: Asyrp) -> None:
    made = method()
    made.restore(trained.learned())
    assert edits(made, "right", 1) == edits(trained, "right", 1)
    for region in ("left", "right"):
        one, other = (m.apply(edits(m, region, 2), OTHERS[:2], torch.ones(2)) for m in (trained, made))
        assert torch.equal(one, other)


# --- what does not fit --------------------------------------------------------------------------------------------


def test_a_region_without_a_goal_is_left_out_and_a_goal_not_learned_is_an_error(trained: Asyrp) -> None:
    made = method(replace(SETTINGS, goals=GOALS[:1]))
    with pytest.raises(InputError, match="goal left/brightness: found not learned"):
        made.find(OTHERS[0])
    made.learn(TRAINING)
    answers = made.find(OTHERS[0])
    assert set(answers) == {"left"} and isinstance(answers["left"], Found)
    with pytest.raises(InputError, match="a goal of 1"):
        made.apply([Found("right", 1.0, index=1)], OTHERS[:1], torch.ones(1))
    with pytest.raises(InputError, match="one image and strength for each edit"):
        trained.apply(edits(trained, "left", 1), OTHERS[:2], torch.ones(2))


def test_learned_tensors_of_other_goals_or_models_are_refused(trained: Asyrp) -> None:
    tensors = trained.learned()
    with pytest.raises(InputError, match="goals among left/brightness"):
        method(replace(SETTINGS, goals=GOALS[:1])).restore(tensors)
    with pytest.raises(InputError, match="f of"):
        method(denoiser=tiny_denoiser(block_out_channels=(8, 24))).restore(tensors)
    with pytest.raises(InputError, match="f of"):
        method().restore({name: value for name, value in tensors.items() if not name.endswith("losses")})


def test_nothing_to_learn_from_or_by_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one image and one goal"):
        method().learn([])
    with pytest.raises(InputError, match="at least one image and one goal"):
        method(replace(SETTINGS, goals=())).learn(TRAINING)
    with pytest.raises(InputError, match="an attribute reader, or the folder of a CLIP model"):
        Asyrp(DENOISER, SETTINGS).learn(TRAINING)
    with pytest.raises(InputError, match="each attribute of a region once"):
        method(replace(SETTINGS, goals=(GOALS[0], GOALS[0])))
    with pytest.raises(InputError, match="an interval in which a step begins"):
        method(replace(SETTINGS, window=(0.9, 0.8))).learn(TRAINING)
    with pytest.raises(InputError, match="at least 1 each"):
        replace(SETTINGS, epochs=0)
    with pytest.raises(InputError, match="AsyrpSettings"):
        Asyrp(DENOISER, Settings(), halves)


def test_a_model_without_a_bottleneck_is_named() -> None:
    with pytest.raises(ModelError, match="bottleneck"):
        Asyrp(tiny_dit_denoiser(class_label=0), SETTINGS, halves)


def test_settings_are_json_and_the_grid_holds_the_papers_intervals() -> None:
    assert json.loads(json.dumps(SETTINGS.as_dict()))["goals"][1]["sign"] == -1
    tried = Asyrp.grid(SETTINGS)
    assert tried[0] == SETTINGS and 2 <= len(tried) <= 6
    assert any(isinstance(s, AsyrpSettings) and s.timestep == 1.0 and s.boost > 0 for s in tried)
    assert all(Asyrp(DENOISER, settings, halves).timestep < 50 for settings in tried)
