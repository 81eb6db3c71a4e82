"""A run with its settings: where its model is opened, and how patiently."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flows.running
import flows.transient
from flows.recipe import load_recipe
from flows.run_settings import RunSettings
from flows.running import run_mining


class OpenedError(Exception):
    """Where a test ends: the model was asked for."""


@pytest.mark.parametrize(
    ("runner", "gpus", "device"),
    [("here", 1, "cuda:0"), ("here", 2, "cuda:0"), ("prefect", 1, "cuda:0"), ("prefect", 2, "cuda:0"),
     ("processes", 1, "cuda:0"), ("processes", 2, "cpu"), ("dask", 1, "cpu"), ("ray", 1, "cpu")],
)  # fmt: skip
def test_the_model_is_opened_on_the_gpu_unless_other_processes_have_it(
    runner: Any, gpus: int, device: str | None, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def opening(place: object, device: str | None = None) -> None:
        asked.append(device)
        raise OpenedError

    monkeypatch.setattr(flows.running, "open_model", opening)
    monkeypatch.setattr(flows.running, "_gpus", lambda: gpus)
    monkeypatch.setattr(flows.running, "held_device", lambda: nullcontext("cuda:0"))
    with pytest.raises(OpenedError):
        run_mining(load_recipe(world / "recipe.yaml"), world / "catalog", RunSettings(runner=runner))
    assert asked == [device]


def test_a_hub_that_is_away_for_a_moment_is_asked_again(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [ConnectionResetError("reset"), TimeoutError("late"), OpenedError()]

    def opening(*_: object) -> None:
        raise answers.pop(0)

    monkeypatch.setattr(flows.running, "open_model", opening)
    monkeypatch.setattr(flows.transient, "time", SimpleNamespace(sleep=lambda seconds: None))
    with pytest.raises(OpenedError):
        run_mining(load_recipe(world / "recipe.yaml"), world / "catalog", RunSettings(runner="here"))
    assert answers == []
