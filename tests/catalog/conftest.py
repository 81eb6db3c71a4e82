"""Shared by the catalog's tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _quick_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing guards against power cuts, which no test here can make; the tests would mostly wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
