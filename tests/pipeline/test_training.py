from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.training import (
    DenoiserTraining,
    Phase,
    learning_rate,
    new_scheduler,
    new_unet,
    train_denoiser,
    training_batch,
)

PHASE: dict[str, Any] = {"steps": 2, "warmup": 2, "bfloat16_until": 0.25}
PAIRED: dict[str, Any] = {**PHASE, "antithetic": True}


def config(*phases: dict[str, Any], **changes: Any) -> DenoiserTraining:
    """A small training of the given phases; by default two steps of each kind."""
    stretches = tuple(Phase(**{**PHASE, **phase}) for phase in phases or ({}, PAIRED))
    small: dict[str, Any] = {"batch": 2, "channels": (8, 32), "phases": stretches}
    return DenoiserTraining(**{**small, **changes})


ONE_STEP: dict[str, Any] = {"steps": 1}


def nothing(step: int, loss: float) -> None:
    pass


class Cut(Exception):
    """The process dies here."""


def dies_at(step: int) -> Any:
    def progress(done: int, loss: float) -> None:
        if done == step:
            raise Cut

    return progress


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = train_denoiser(config(), tmp_path / "whole", nothing)
    with pytest.raises(Cut):
        train_denoiser(config(), tmp_path / "cut", dies_at(3), save_every=2)
    seen: list[int] = []
    resumed = train_denoiser(config(), tmp_path / "cut", lambda step, loss: seen.append(step), save_every=2)
    assert seen == [3, 4]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    losses = [json.loads((tmp_path / run / "losses.json").read_text()) for run in ("whole", "cut")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    first = train_denoiser(config(ONE_STEP), tmp_path, nothing)
    again = train_denoiser(config(ONE_STEP), tmp_path, dies_at(1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_a_checkpoint_of_other_settings_is_refused_and_kept(tmp_path: Path) -> None:
    train_denoiser(config(ONE_STEP), tmp_path, nothing)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match="training: seed: found 7; expected 0"):
        train_denoiser(config(ONE_STEP, seed=7), tmp_path, nothing)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"not a checkpoint", b"PK\x03\x04 cut"):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        with pytest.raises(InputError, match="a damaged checkpoint"):
            train_denoiser(config(), tmp_path, nothing)


def test_a_checkpoint_is_whole_or_absent_and_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_denoiser(config({}), tmp_path, nothing, save_every=1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.pt", "losses.json"]

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "checkpoint.pt").unlink()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        train_denoiser(config({}), tmp_path, nothing, save_every=1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["losses.json"]


def test_training_lowers_the_loss_of_a_batch_it_sees_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = training_batch(config(batch=4), 0)
    monkeypatch.setattr("pipeline.training.training_batch", lambda config, step: same)
    losses: list[float] = []
    chosen = config({"steps": 12, "learning_rate": 4e-3, "bfloat16_until": 0.0}, batch=4)
    train_denoiser(chosen, tmp_path, lambda step, loss: losses.append(loss))
    assert losses[-1] < 0.8 * losses[0]


@settings(max_examples=100, deadline=None)
@given(
    steps=st.integers(1, 50_000), warmup=st.integers(1, 5000), cooldown=st.floats(0.0, 1.0), share=st.floats(0.0, 1.0)
)
def test_the_learning_rate_is_positive_and_never_above_its_peak(
    steps: int, warmup: int, cooldown: float, share: float
) -> None:
    chosen = Phase(steps=steps, warmup=warmup, cooldown=cooldown)
    step = min(steps - 1, int(share * steps))
    assert 0 < learning_rate(chosen, step) <= chosen.learning_rate


def test_the_learning_rate_rises_stays_and_falls() -> None:
    chosen = Phase(steps=1000, warmup=100, cooldown=0.3)
    rates = [learning_rate(chosen, step) for step in range(1000)]
    assert rates[:100] == sorted(rates[:100])
    assert rates[0] == pytest.approx(chosen.learning_rate / 100)
    assert set(rates[100:700]) == {chosen.learning_rate}
    assert rates[700:] == sorted(rates[700:], reverse=True)
    assert rates[-1] == pytest.approx(chosen.learning_rate / 300)


@settings(max_examples=5, deadline=None)
@given(step=st.integers(0, 10**6), seed=st.integers(0, 1000), paired=st.booleans())
def test_a_batch_depends_on_seed_and_step_only(step: int, seed: int, paired: bool) -> None:
    chosen = config({"steps": 10**7, "antithetic": paired}, seed=seed)
    first = training_batch(chosen, step)
    torch.manual_seed(step + 1)
    again = training_batch(chosen, step)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = training_batch(chosen, step + 1)
    assert not torch.equal(first[0], other[0])
    images, noise, t = first
    assert images.shape == noise.shape == (2, 3, 64, 64)
    assert float(images.abs().max()) <= 1.0
    assert bool(((t >= 0) & (t < 1000)).all())


def test_an_antithetic_batch_pairs_each_noise_with_its_negative() -> None:
    images, noise, t = training_batch(config(PAIRED, batch=6), 0)
    assert torch.equal(images[:3], images[3:])
    assert torch.equal(noise[:3], -noise[3:])
    assert torch.equal(t[:3], t[3:])


@pytest.mark.parametrize("antithetic", [False, True])
def test_timesteps_fall_into_the_levels_in_their_shares(antithetic: bool) -> None:
    levels = ((0.5, 0.25), (0.75, 0.5), (1.0, 0.25))
    chosen = config({"levels": levels, "antithetic": antithetic}, batch=80, paintings=0.0)
    _, _, t = training_batch(chosen, 0)
    assert [int(((low <= t) & (t < high)).sum()) for low, high in ((0, 500), (500, 750), (750, 1000))] == [20, 40, 20]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_every_step_belongs_to_one_phase_and_no_step_lies_behind_the_last(lengths: list[int]) -> None:
    chosen = config(*({"steps": n, "learning_rate": 0.1 / n} for n in lengths))
    places = [chosen.at(step) for step in range(chosen.steps)]
    assert [within for _, within in places] == [i for n in lengths for i in range(n)]
    assert [phase.steps for phase, _ in places] == [n for n in lengths for _ in range(n)]
    with pytest.raises(InputError, match="the steps of all phases"):
        chosen.at(chosen.steps)


def test_a_phase_starts_from_the_average_of_the_one_before(tmp_path: Path) -> None:
    still: dict[str, Any] = {"steps": 1, "learning_rate": 0.0, "bfloat16_until": 0.0}
    moved = train_denoiser(config({"steps": 3, "learning_rate": 1e-2}), tmp_path / "one", nothing)
    kept = train_denoiser(config({"steps": 3, "learning_rate": 1e-2}, still), tmp_path / "two", nothing)
    for (name, one), two in zip(moved.state_dict().items(), kept.state_dict().values(), strict=True):
        assert torch.allclose(one, two, atol=1e-6), name


def test_the_network_and_schedule_are_the_built_in_ones() -> None:
    unet, scheduler = new_unet((16, 32, 96)), new_scheduler()
    assert unet.config.sample_size == 64
    assert unet.config.block_out_channels == (16, 32, 96)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.beta_schedule == "squaredcos_cap_v2"


WRONG: list[dict[str, Any]] = [
    {"steps": 0}, {"warmup": 0}, {"step": 5}, {"levels": ()}, {"levels": ((0.5, 1.0),)},
    {"levels": ((0.5, 0.5), (1.0, 0.4))}, {"levels": ((0.5, 1.0), (1.0, 0.0))}, {"levels": ((0.8, 0.5), (0.8, 0.5))},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_phase_without_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Phase(**{**PHASE, **wrong})


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"phases": ()}, {"steps": 5}])
def test_settings_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DenoiserTraining(**wrong)
