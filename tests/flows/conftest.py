"""One tiny catalog, mined once and read by many tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import flows.mining
from tests.flows import tiny


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random v-prediction model of 16 x 16 RGB pictures; not to be changed."""
    return tiny.model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session", autouse=True)
def small_chunks() -> Iterator[None]:
    """Chunks of two images, so that five images make a run with a beginning, a middle and an end. One thread, so that
    runs in this process and in others add up numbers in the same order. No more processes than a test asks for."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows.mining, "CHUNK", tiny.CHUNK)
        patch.setattr("os.sched_getaffinity", lambda process: {0})
        yield


@pytest.fixture(scope="session")
def mined(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, small_chunks: None) -> Path:
    """A folder with photos/, masks/, recipe.yaml and the catalog/ mined from them; not to be changed."""
    folder = tmp_path_factory.mktemp("world")
    tiny.photographs(folder)
    assert tiny.run("mine", tiny.recipe(folder, tiny_model), "--out", folder / "catalog", "--json") == 0
    return folder


@pytest.fixture
def world(tmp_path: Path, tiny_model: Path) -> Path:
    """A fresh folder with three photographs, masks and a recipe."""
    tiny.photographs(tmp_path, count=3)
    tiny.recipe(tmp_path, tiny_model)
    return tmp_path
