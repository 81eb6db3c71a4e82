"""Which process does something, said so that it can be told later whether that very process still lives."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.lease import born

_PREFIX = "rhumb."


@dataclass(frozen=True)
class Process:
    """A process on some machine. `started` in clock ticks since the boot named by `boot`: a process id is given out
    anew, but never with the same start. Where the system has no /proc both are empty."""

    host: str
    pid: int
    boot: str = ""
    started: int = 0

    @classmethod
    def this(cls) -> Process:
        """The calling process."""
        pid = os.getpid()
        return cls(platform.node(), pid, _boot(), int(born(pid) or 0))

    @classmethod
    def of_labels(cls, labels: Mapping[str, Any]) -> Process | None:
        """The process that `labels` describe; None where they describe none."""
        try:
            return cls(
                str(labels[f"{_PREFIX}host"]),
                int(labels[f"{_PREFIX}pid"]),
                str(labels[f"{_PREFIX}boot"]),
                int(labels[f"{_PREFIX}started"]),
            )
        except (KeyError, ValueError, TypeError):
            return None

    def labels(self) -> dict[str, str | int]:
        """This process as labels of a flow run."""
        return {
            f"{_PREFIX}host": self.host,
            f"{_PREFIX}pid": self.pid,
            f"{_PREFIX}boot": self.boot,
            f"{_PREFIX}started": self.started,
        }

    def alive(self) -> bool | None:
        """Whether it lives; None where that cannot be seen from here, on another machine."""
        if self.host != platform.node():
            return None
        if self.boot != _boot():
            return False
        found = born(self.pid)
        return found is not None and self.started in (0, int(found or 0))


def children(pid: int) -> set[int]:
    """The ids of the living processes that a process has started; none where the system has no /proc."""
    fields = {entry: _fields(entry.name) for entry in Path("/proc").glob("[0-9]*")}
    return {int(entry.name) for entry, own in fields.items() if own and own[1] == str(pid) and own[0] not in "ZX"}


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _fields(pid: str) -> list[str]:
    """What the system tells of a process, from its state on; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
