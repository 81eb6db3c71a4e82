"""One GPU to a worker: claimed by a lock that a dead process does not hold."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import flows.devices
from flows.devices import pinned_device
from pipeline.errors import ConflictError


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process has no GPU yet, and none afterwards."""
    monkeypatch.setattr(flows.devices, "_held", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield
    _let_go()


def _let_go() -> None:
    if flows.devices._held is not None:
        os.close(flows.devices._held[1])
        flows.devices._held = None


@contextmanager
def other_worker(count: int, folder: Path) -> Iterator[int]:
    """The id of another process that has claimed a GPU."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, pinned_device(count, folder).encode())
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(write)
    assert os.read(read, 100)
    os.close(read)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_without_a_gpu_every_worker_has_the_processor(tmp_path: Path) -> None:
    assert pinned_device(0, tmp_path) == "cpu"
    assert list(tmp_path.iterdir()) == []


def test_a_worker_keeps_the_gpu_that_it_has_claimed(tmp_path: Path) -> None:
    assert {pinned_device(3, tmp_path) for _ in range(3)} == {"cuda:0"}


def test_two_workers_never_share_a_gpu_and_a_third_is_told_why_it_has_none(tmp_path: Path) -> None:
    with other_worker(2, tmp_path):
        assert pinned_device(2, tmp_path) == "cuda:1"
        _let_go()
        with other_worker(2, tmp_path), pytest.raises(ConflictError, match="other workers of this machine have"):
            pinned_device(2, tmp_path)


def test_a_dead_worker_gives_its_gpu_back(tmp_path: Path) -> None:
    with other_worker(1, tmp_path):
        pass
    assert pinned_device(1, tmp_path) == "cuda:0"


def test_gpus_that_were_given_different_names_are_different_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with other_worker(1, tmp_path):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
        assert pinned_device(1, tmp_path) == "cuda:0"  # the only one that it sees


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / f"rhumb-{os.getuid()}-gpu-0.lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        pinned_device(1, tmp_path)
    assert target.read_text() == "kept"
