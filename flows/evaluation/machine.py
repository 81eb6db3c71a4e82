"""What seconds depend on besides the work: the machine, its device and its threads."""

from __future__ import annotations

import os
import platform

import torch


def machine_of(device: torch.device | str) -> str:
    """Processor family, cores, threads of this process and device, as people read them; no name of the machine."""
    cores, threads, place = os.cpu_count() or 1, torch.get_num_threads(), torch.device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else str(place)
    return f"{platform.machine()}, {_many(cores, 'core')}, {_many(threads, 'thread')}, {name}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
