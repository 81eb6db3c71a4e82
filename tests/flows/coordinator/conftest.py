"""A bench with five photographs and a tiny model, and what an undisturbed run finds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flows.miner
import flows.transient
from flows.opening import open_model
from pipeline.models.contract import Denoiser
from tests.flows import tiny
from tests.flows.coordinator.bench import (
    Bench,
    content,
)


@pytest.fixture(scope="module")
def denoiser(tiny_model: Path) -> Denoiser:
    return open_model(str(tiny_model))


@pytest.fixture
def world(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with five photographs, their masks and a recipe."""
    tiny.photographs(tmp_path)
    tiny.recipe(tmp_path, tiny_model)
    return tmp_path


@pytest.fixture
def mined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every image that is mined, quickly."""
    calls: list[int] = []

    def counting(*asked: Any) -> Any:
        calls.append(1)
        return tiny.quick_mine_image(*asked)

    monkeypatch.setattr(flows.miner, "mine_image", counting)
    return calls


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits between tries are noted, not waited."""
    waits: list[float] = []
    monkeypatch.setattr(flows.transient, "time", SimpleNamespace(sleep=waits.append))
    return waits


@pytest.fixture
def bench(world: Path, denoiser: Denoiser) -> Bench:
    return Bench(world, denoiser)


@pytest.fixture
def whole(bench: Bench, mined: list[int]) -> dict[str, bytes]:
    """What an undisturbed run finds."""
    bench.mine(bench.folder / "whole")
    mined.clear()
    return content(bench.folder / "whole")
