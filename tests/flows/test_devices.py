"""One GPU to a worker: claimed by a lock that a dead process does not hold."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import flows.devices
from flows.devices import held_device, only, pinned_device
from pipeline.errors import ConflictError

NAMES = [f"{number}c5a1e2d-0000-4000-8000-000000000000" for number in range(3)]


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
            os.write(write, pinned_device(NAMES[:count], folder).encode())
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
    assert pinned_device([], tmp_path) == "cpu"
    assert list(tmp_path.iterdir()) == []


def test_a_worker_keeps_the_gpu_that_it_has_claimed(tmp_path: Path) -> None:
    assert {pinned_device(NAMES[:3], tmp_path) for _ in range(3)} == {"cuda:0"}


def test_two_workers_never_share_a_gpu_and_a_third_is_told_why_it_has_none(tmp_path: Path) -> None:
    with other_worker(2, tmp_path):
        assert pinned_device(NAMES[:2], tmp_path) == "cuda:1"
        _let_go()
        with other_worker(2, tmp_path), pytest.raises(ConflictError, match="other workers of this machine have"):
            pinned_device(NAMES[:2], tmp_path)


def test_a_dead_worker_gives_its_gpu_back(tmp_path: Path) -> None:
    with other_worker(1, tmp_path):
        pass
    assert pinned_device(NAMES[:1], tmp_path) == "cuda:0"


def test_a_gpu_is_the_same_one_under_any_number(tmp_path: Path) -> None:
    with other_worker(1, tmp_path):
        assert pinned_device(NAMES[1:], tmp_path) == "cuda:0"  # of those that it sees
        _let_go()
        assert pinned_device(NAMES[::-1], tmp_path) == "cuda:0"
        _let_go()
        with pytest.raises(ConflictError):
            pinned_device(NAMES[:1], tmp_path)


def test_a_run_that_holds_some_gpus_uses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with only(NAMES[1:2]):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == f"GPU-{NAMES[1]}"
        assert pinned_device(NAMES, tmp_path) == "cuda:1"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,8")
    with only(NAMES[:1]):
        pass
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7,8"


def test_no_name_of_a_gpu_leaves_the_folder_of_the_locks(tmp_path: Path) -> None:
    assert pinned_device(["MIG-GPU-1/2/../../x"], tmp_path) == "cuda:0"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_in_this_process_holds_its_gpu_as_a_worker_does_and_lets_it_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.devices, "gpu_names", lambda: NAMES[:1])
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with held_device() as device:
        assert device == "cuda:0"
        lock = os.open(next(tmp_path.iterdir()), os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(lock)
    with held_device() as device:
        assert device == "cuda:0"
    with other_worker(1, tmp_path), pytest.raises(ConflictError), held_device():
        pass


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / f"rhumb-{os.getuid()}-gpu-{NAMES[0]}.lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        pinned_device(NAMES[:1], tmp_path)
    assert target.read_text() == "kept"
