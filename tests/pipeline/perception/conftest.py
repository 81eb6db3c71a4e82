from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def pictures() -> Callable[..., torch.Tensor]:
    """Random pictures (count, channels, size, size) in [-1, 1]."""

    def draw(count: int, size: int, seed: int = 0, channels: int = 3) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return 2 * torch.rand((count, channels, size, size), generator=generator) - 1

    return draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backbones")
