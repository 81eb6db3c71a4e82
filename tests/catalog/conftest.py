"""Shared by the catalog's tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fetched is kept below the test's own folder."""
    monkeypatch.setenv("RHUMB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _quick_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing guards against power cuts, which no test here can make; the tests would mostly wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Mirrors and their locks lie below the test's folder; calling this moves to another machine, which has its own."""

    def move(machine: str) -> None:
        monkeypatch.setenv("RHUMB_CACHE", str(tmp_path / "machines" / machine))

    move("first")
    return move
