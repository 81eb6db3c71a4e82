"""Around the trainings: a shorter one, where results go, what is drawn of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flows.training
from flows import paths
from flows.training import loss_curve, shortened, train
from pipeline.errors import InputError
from pipeline.training import DenoiserTraining, Phase
from tests.flows import tiny


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=5), st.integers(1, 50_000))
def test_a_shortened_training_has_the_steps_asked_for_and_each_phase_its_share(lengths: list[int], steps: int) -> None:
    config = DenoiserTraining(phases=tuple(Phase(steps=n, learning_rate=1e-3 / n) for n in lengths))
    short = shortened(config, steps)
    assert short.steps == steps
    assert DenoiserTraining.model_validate(short.model_dump()) == short
    left = {phase.learning_rate: phase.steps for phase in short.phases}
    if len(set(lengths)) == len(lengths):
        for phase in config.phases:
            share = steps * phase.steps / config.steps
            assert abs(left.get(phase.learning_rate, 0) - share) <= 1


def test_a_training_of_its_own_length_is_itself() -> None:
    assert shortened(DenoiserTraining(), DenoiserTraining().steps) == DenoiserTraining()


def test_a_checkout_is_trained_in_place() -> None:
    assert paths.training_folder() == Path(__file__).parents[2] / "data" / "builtin"


def test_an_installed_copy_is_never_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "_is_checkout", lambda folder: False)
    monkeypatch.setattr(flows.training, "DenoiserTraining", tiny.small_training)
    monkeypatch.setattr(flows.training, "sample_sheet", lambda *_: np.zeros((4, 4, 3), np.uint8))
    assert train("builtin", None, None, 1)["folder"] == "builtin/denoiser"
    assert (tmp_path / "builtin" / "denoiser" / "model_index.json").is_file()
    assert (tmp_path / "training" / "denoiser" / "checkpoint.pt").is_file()
    with pytest.raises(InputError, match="--steps: found 0"):
        train("builtin", None, None, 0)


def test_a_loss_curve_of_one_step_is_drawn() -> None:
    assert loss_curve([0.5]).size == (640, 240)
