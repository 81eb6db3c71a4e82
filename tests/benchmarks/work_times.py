"""What the parts of a run take, as its processes note it: every piece of work, every commit, and the run itself.

Moments are of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Part:
    """One part: what (`work`, `deposit`, `commit`, `run`), by which process, from when to when, for how many images.

    `cpu` seconds that its thread had the processor meanwhile: less than the rest where other threads of the process, or
    other processes, had it.
    """

    what: str
    process: int
    begin: float
    end: float
    images: int = 0
    cpu: float = 0.0

    @property
    def seconds(self) -> float:
        return self.end - self.begin


def note_parts(path: Path) -> None:
    """Let this process, from now on, add its parts to the file at `path`."""
    import flows.work
    from catalog.writer import CatalogWriter
    from flows.coordinator import Coordinator

    def timed(what: str, real: Callable[..., Any], images: Callable[..., int] = lambda *_: 0) -> Callable[..., Any]:
        def call(*asked: Any, **options: Any) -> Any:
            begin, used = time.monotonic(), time.thread_time()
            try:
                return real(*asked, **options)
            finally:
                used = time.thread_time() - used
                _add(path, Part(what, os.getpid(), begin, time.monotonic(), images(*asked), used))

        return call

    def images_of(desk: Any, work: Any) -> int:
        return len(work.items)

    flows.work.Desk.do = timed("work", flows.work.Desk.do, images_of)  # type: ignore[method-assign]
    flows.work.write_deposit = timed("deposit", flows.work.write_deposit)
    CatalogWriter.adopt = timed("commit", CatalogWriter.adopt)  # type: ignore[method-assign]
    Coordinator.run = timed("run", Coordinator.run)  # type: ignore[method-assign]


def _add(path: Path, part: Part) -> None:
    with path.open("a") as file:  # one write each: lines of several processes do not mix
        file.write(json.dumps(asdict(part)) + "\n")


def read_parts(path: Path) -> list[Part]:
    """All parts that were noted."""
    return [Part(**json.loads(line)) for line in path.read_text().splitlines()]


def total(parts: Sequence[Part], what: str) -> float:
    """Seconds of all parts of one kind together."""
    return sum(part.seconds for part in parts if part.what == what)


def steady_rate(parts: Sequence[Part]) -> float:
    """Images a second from when every worker had done its first work until one had done its last: without starts."""
    works = [part for part in parts if part.what == "work"]
    by_worker = {one.process: [part.end for part in works if part.process == one.process] for one in works}
    begin = max(min(ends) for ends in by_worker.values())
    end = min(max(ends) for ends in by_worker.values())
    images = sum(part.images for part in works if begin < part.end <= end)
    return images / (end - begin) if end > begin else 0.0
