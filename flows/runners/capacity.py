"""How many workers there is room for on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook

from pipeline.errors import InputError
from pipeline.models.contract import Denoiser

_BARE_BYTES = 512 * 2**20  # a process with torch and diffusers loaded: 0.42 GB measured
_LAYERS = 400  # largest layer outputs held at a peak of mining: 170 to 360 measured on four networks, and SVD bases
_FREE_SHARE = 0.8  # of the memory that is free
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container


def usable_workers(wanted: int | None, chunks: int, denoiser: Denoiser) -> int:
    """How many processes to start, no more than chunks.

    As asked, or one per core that this process may use and that the free memory has room for; one per GPU.

    Raises:
        InputError: fewer than one.
    """
    if wanted is not None and wanted < 1:
        raise InputError("--workers", wanted, "at least 1")
    if wanted is not None:
        return max(1, min(wanted, chunks))
    if torch.cuda.is_available():
        return min(torch.cuda.device_count(), chunks)
    most = min(len(os.sched_getaffinity(0)), chunks)
    if most < 2:
        return 1
    return max(1, min(most, int(_FREE_SHARE * free_bytes() / worker_bytes(denoiser))))


@torch.no_grad()
def worker_bytes(denoiser: Denoiser) -> int:
    """An estimate, on the safe side, of the memory one worker takes at its peak: from the largest layer output of one
    image, since products and previews run over blocks of vectors. Cost: one forward pass.
    """
    largest = 0

    def note(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, output.numel() * output.element_size())

    handle = register_module_forward_hook(note)
    try:
        x_t = torch.zeros((1, *denoiser.info.x_shape), device=denoiser.device, dtype=denoiser.dtype)
        denoiser.predicted_picture(x_t, denoiser.info.train_timesteps // 2)
    finally:
        handle.remove()
    return _BARE_BYTES + 2 * denoiser.info.parameters * denoiser.dtype.itemsize + _LAYERS * largest


def free_bytes() -> int:
    """Memory that new processes may take: what the system says is available, within the limit of a container."""
    limits = [int(text) for text in (_text(path) for path in _LIMITS) if text.isdigit()]
    lines = _text(Path("/proc/meminfo")).splitlines()
    available = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return min([*available, *limits, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")])


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
