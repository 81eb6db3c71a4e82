"""Which GPU a process mines on: one each, claimed by a lock that the system frees when the process dies."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline.errors import ConflictError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: tuple[int, int] | None = None  # of this process: device and the descriptor of its lock


def gpu_names() -> list[str]:
    """The UUIDs of the GPUs that this process sees, in its order: the same in every process, whatever number a GPU has
    there, or whatever name it was given by. Empty without any."""
    if not torch.cuda.is_available():
        return []
    devices = (torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count()))
    return [str(device.uuid).removeprefix("GPU-") for device in devices]


def pinned_device(names: Sequence[str] | None = None, folder: Path | None = None) -> str:
    """The device that this process mines on: "cuda:N" of a GPU that no other process of this user mines on, or "cpu".

    `names` of the GPUs and `folder` of the locks: this machine's own if left out. Claimed once per process.

    Raises:
        ConflictError: there are GPUs, and others have them all.
    """
    global _held
    gpus = gpu_names() if names is None else names
    if not gpus:
        return "cpu"
    if _held is not None:
        return f"cuda:{_held[0]}"
    for number, name in enumerate(gpus):
        if not _allowed(name):
            continue
        lock = f"rhumb-{os.getuid()}-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock"
        descriptor = _claimed((folder or Path(tempfile.gettempdir())) / lock)
        if descriptor is not None:
            _held = (number, descriptor)
            return f"cuda:{number}"
    raise ConflictError(
        "GPU", f"{len(gpus)} that other workers of this machine have", "one for each worker",
        "Start no more workers than there are GPUs (--workers), or wait for the other run",
    )  # fmt: skip


@contextmanager
def held_device() -> Iterator[str]:
    """`pinned_device` for as long as the block runs, in a process that does other things afterwards.

    Raises ConflictError as that does.
    """
    global _held
    before = _held
    try:
        yield pinned_device()
    finally:
        if _held is not None and before is None:
            os.close(_held[1])
            _held = None


@contextmanager
def only(names: Sequence[str]) -> Iterator[None]:
    """Let this process, and those that it starts, mine on these GPUs alone while the block runs."""
    former = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ",".join(f"GPU-{name}" for name in names)
    try:
        yield
    finally:
        if former is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = former


def _allowed(name: str) -> bool:
    """Whether this process may use a GPU: one that was looking at its GPUs before `only` goes on seeing all of them."""
    listed = [entry.strip() for entry in os.environ.get(VISIBLE, "").split(",")]
    named = [entry for entry in listed if entry.startswith("GPU-")]
    return not named or any(f"GPU-{name}".startswith(entry) for entry in named)


def _claimed(path: Path) -> int | None:
    """The descriptor of a lock that is now this process's, None where another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
