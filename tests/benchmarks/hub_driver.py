"""One publication or pull in a process of its own, so that its time and memory are its own; what it came to, on stdout.

Run as `python -m tests.benchmarks.hub_driver WORK`, where WORK is JSON: `do` and the arguments of the function of that
name. The client of the Hub takes what it needs from the environment, see `tests.catalog.hub_server.environment`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from catalog.card import CardFields
from catalog.hub import publishing, pulling
from catalog.hub.hugging_face import HuggingFaceHub
from catalog.hub.names import PackName
from catalog.hub.parts import Part
from catalog.reader import Catalog

Told = Callable[[str, int, int], None]


def peak() -> int:
    """Most bytes that this process has held in memory; unlike `getrusage`, nothing of the one that started it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def publish(told: Told, catalog: str, repository: str, version: str) -> dict[str, Any]:
    """Publish a catalog as a version of a pack."""
    fields = CardFields(title="Directions of parametric faces", licence="cc-by-4.0")
    name = PackName.parse(repository)
    with Catalog.open(catalog) as source:
        done = publishing.publish(source, name, version, HuggingFaceHub(), fields, progress=told)
    return {"bytes": done.bytes, "new_bytes": done.new_bytes, "new_files": done.new_files, "reused": done.reused}


def pull(told: Told, name: str, out: str, regions: Sequence[str] = (), without: Sequence[str] = ()) -> dict[str, Any]:
    """Pull a version, or a part of one."""
    part = Part(regions=tuple(regions), without=tuple(without))
    done = pulling.pull(PackName.parse(name), out, part, progress=told)
    return {"bytes": done.bytes, "new_bytes": done.new_bytes}


def main() -> None:
    work = json.loads(sys.argv[1])
    peaks: dict[str, int] = {}
    begun, idle = time.monotonic(), peak()

    def told(what: str, done: int, of: int) -> None:
        """The peak so far, at the last word of each stage."""
        peaks[what.split()[0]] = peak()

    jobs: dict[str, Callable[..., dict[str, Any]]] = {"publish": publish, "pull": pull}
    answer = jobs[work.pop("do")](told, **work)
    spent = time.monotonic() - begun
    sys.stdout.write(json.dumps({**answer, "seconds": spent, "peak": peak(), "idle": idle, "peaks": peaks}) + "\n")


if __name__ == "__main__":
    main()
