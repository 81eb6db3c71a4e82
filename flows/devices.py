"""Which GPU a worker process uses: one each, claimed by a lock that the system frees when the process dies."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import torch

from pipeline.errors import ConflictError

_held: tuple[int, int] | None = None  # of this process: device and the descriptor of its lock


def pinned_device(count: int | None = None, folder: Path | None = None) -> str:
    """The device that this process mines on: "cuda:N" of a GPU that no other worker of this machine has, or "cpu".

    `count` of GPUs and `folder` of the locks: this machine's own if left out. Claimed once per process. GPUs are
    counted as the process sees them, so workers that are given different CUDA_VISIBLE_DEVICES need no locks, and do
    not share any.

    Raises:
        ConflictError: there are GPUs, and other workers have them all.
    """
    global _held
    gpus = torch.cuda.device_count() if count is None else count
    if gpus == 0:
        return "cpu"
    if _held is not None:
        return f"cuda:{_held[0]}"
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    for number in range(gpus):
        name = names[number].strip() if number < len(names) and names[number].strip() else str(number)
        descriptor = _claimed((folder or Path(tempfile.gettempdir())) / f"rhumb-{os.getuid()}-gpu-{name}.lock")
        if descriptor is not None:
            _held = (number, descriptor)
            return f"cuda:{number}"
    raise ConflictError(
        "GPU", f"{gpus} that other workers of this machine have", "one for each worker",
        "Start no more workers than there are GPUs (--workers), or wait for the other run",
    )  # fmt: skip


def _claimed(path: Path) -> int | None:
    """The descriptor of a lock that is now this process's, None where another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
