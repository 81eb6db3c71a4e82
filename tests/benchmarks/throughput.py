"""What orchestration costs: time and memory of one long flow, and what a second worker brings.

`python -m tests.benchmarks.throughput [--quick] [--json] [--save FILE] [--only PART ...] [--scratch FOLDER]`. Parts:

- `flow`: many small images by a tiny model in one Prefect flow, its server a process of its own. An image takes one
  round of power iteration instead of a search, about a tenth of a second: real ones take seconds to minutes, of which
  the same overhead is a smaller share. Overhead is the share of the run, from when the catalog is open until the last
  commit, in which the thread that reads, mines and writes pieces of work did not have the processor: commits and
  Prefect's own threads take it away from it, even where they run beside it. Memory is what the command holds, sampled
  all along.
- `dask`: a Dask cluster of two single-threaded workers against one single-threaded process, both on the same two cores,
  from when every worker has the model until the first has nothing left.

What else ran on the machine is seen from its load before each part.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catalog.reader import Catalog
from catalog.verify import verify
from flows.console import stage
from tests.benchmarks.fault_driver import Plan
from tests.benchmarks.fault_world import Server, answer_of, kill_all, small_world, start
from tests.benchmarks.harness import Clock, Target, at_least, at_most, document, finish, options, table
from tests.benchmarks.work_times import Part, read_parts, steady_rate, total

PARTS = ("flow", "dask")
IMAGES, QUICK_IMAGES = 10_000, 400  # of the flow
WORKED, QUICK_WORKED = 1_200, 160  # of each side of the comparison
CHUNK = 4  # the project's own
ROUNDS = 1  # of power iteration for an image
METHOD: dict[str, Any] = {"inversion_steps": 2, "loco": {"rank": 1, "null_rank": 1}}
OVERHEAD, GAIN, GROWTH, COMMITS = 0.05, 1.6, 5.0, 0.05
LIMIT, QUICK_LIMIT = 7200, 900  # seconds of one command
EVERY = 0.5  # seconds between two looks at its memory
PAGE = os.sysconf("SC_PAGE_SIZE")


class Command:
    """One measured command: its parts, and its resident memory as (images done, bytes)."""

    def __init__(self, folder: Path, recipe: Path, runner: Sequence[str], images: int, url: str | None) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.images, self.load = folder, images, os.getloadavg()[0]
        self._times = folder / "times"
        arguments = ["mine", str(recipe), "--out", str(folder / "catalog"), "--json", "--runner", *runner]
        self._process = start(arguments, Plan(chunk=CHUNK, times=str(self._times), rounds=ROUNDS), folder, url)
        self.memory: list[tuple[float, int]] = []

    def wait(self, limit: float) -> list[Part]:
        """Its parts, once it has ended. Raises RuntimeError where it failed or mined something else."""
        deadline = time.monotonic() + limit
        with stage(self.folder.name, self.images) as advance:
            shown = 0
            while self._process.poll() is None:
                if time.monotonic() > deadline:
                    kill_all(self._process)
                    raise RuntimeError(f"not done in {limit:.0f} s: see {self.folder / 'log.err'}")
                self.memory.append((time.monotonic(), _resident(self._process)))
                done = self._done()
                advance(done - shown, "")
                shown = done
                time.sleep(EVERY)
        if self._process.returncode != 0 or answer_of(self.folder)["images"] != self.images:
            raise RuntimeError(f"ended with {self._process.returncode}: see {self.folder / 'log.err'}")
        return read_parts(self._times)

    def _done(self) -> int:
        if not self._times.is_file():
            return 0
        return CHUNK * self._times.read_text().count('"work"')


def _resident(process: subprocess.Popen[bytes]) -> int:
    try:
        return PAGE * int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def growth(memory: Sequence[tuple[float, int]], parts: Sequence[Part]) -> float:
    """MiB that memory grew for a thousand images in the second half of the works, by least squares."""
    ends = sorted((part.end, part.images) for part in parts if part.what == "work")
    moments, done = np.array([end for end, _ in ends]), np.cumsum([images for _, images in ends])
    half = moments[len(moments) // 2]
    late = [(float(np.interp(at, moments, done)), held) for at, held in memory if half <= at <= moments[-1] and held]
    if len(late) < 2:
        return float("nan")
    images, held = np.array(late).T
    return float(np.polyfit(images / 1000, held / 2**20, 1)[0])


def flow(scratch: Path, images: int, limit: float, clock: Clock) -> tuple[list[Target], dict[str, Any]]:
    """Overhead, memory and commits of one flow."""
    recipe = _world(scratch / "flow-world", images)
    server = Server(scratch / "server")
    try:
        with clock.stage("flow"):
            server.start()
            command = Command(scratch / "flow", recipe, ["prefect"], images, server.url)
            parts = command.wait(limit)
    finally:
        server.kill()
    run, worked = total(parts, "run"), sum(part.cpu for part in parts if part.what == "work")
    commits = sum(part.what == "commit" for part in parts)
    with Catalog.open(command.folder / "catalog") as catalog:
        held = catalog.images().num_rows
    problems = verify(command.folder / "catalog").problems
    slope = growth(command.memory, parts)
    details = {
        "images": images,
        "images_in_the_catalog": held,
        "problems": list(problems),
        "run_seconds": run,
        "seconds_by_part": {what: total(parts, what) for what in ("work", "deposit", "commit")},
        "seconds_that_the_mining_thread_ran": worked,
        "images_per_second": images / run,
        "overhead_ms_per_image": 1e3 * (run - worked) / images,
        "commits": commits,
        "works": sum(part.what == "work" for part in parts),
        "command_seconds": float(answer_of(command.folder)["seconds"]),
        "memory_mib": {"half": _at_half(command, parts), "end": command.memory[-1][1] / 2**20,
                       "most": max(held for _, held in command.memory) / 2**20},
        "load_before": command.load,
    }  # fmt: skip
    targets = [
        at_most("share of the run in which the thread that mines did not run", 1 - worked / run, OVERHEAD),
        at_most("MiB that memory grows for 1,000 images in the second half", slope, GROWTH),
        at_most("share of the run that goes into commits", total(parts, "commit") / run, COMMITS),
        at_most("images lost or doubled in the flow", abs(images - held), 0),
    ]
    return targets, details


def _at_half(command: Command, parts: Sequence[Part]) -> float:
    ends = sorted(part.end for part in parts if part.what == "work")
    half = ends[len(ends) // 2]
    return min(command.memory, key=lambda one: abs(one[0] - half))[1] / 2**20


def dask(scratch: Path, images: int, limit: float, clock: Clock) -> tuple[list[Target], dict[str, Any]]:
    """Rates of one process and of two workers, and their ratio."""
    recipe = _world(scratch / "dask-world", images)
    server = Server(scratch / "server")
    rates: dict[str, float] = {}
    details: dict[str, Any] = {"images": images, "cores": sorted(os.sched_getaffinity(0))}
    try:
        server.start()
        for name, runner in (("one process", ["here"]), ("two Dask workers", ["dask", "--workers", "2"])):
            with clock.stage(name):
                command = Command(scratch / name.replace(" ", "-"), recipe, runner, images, server.url)
                parts = command.wait(limit)
            rates[name] = steady_rate(parts)
            details[name] = {
                "images_per_second": rates[name],
                "whole_run_images_per_second": images / total(parts, "run"),
                "workers": len({part.process for part in parts if part.what == "work"}),
                "seconds_by_part": {what: total(parts, what) for what in ("work", "deposit", "commit", "run")},
                "cpu_seconds_of_works": sum(part.cpu for part in parts if part.what == "work"),
                "load_before": command.load,
            }
    finally:
        server.kill()
    gain = rates["two Dask workers"] / rates["one process"]
    return [at_least("images a second of two Dask workers against one process", gain, GAIN)], details


def _world(folder: Path, images: int) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return small_world(folder, images, **METHOD)


def main(argv: Sequence[str] | None = None) -> int:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
        parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="for the runs (default: a temporary one)")

    given = options("throughput", "What orchestration costs.", argv, more)
    scratch = (given.extra.scratch or Path(tempfile.mkdtemp(prefix="rhumb-throughput-"))).resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    clock, limit = Clock(), QUICK_LIMIT if given.quick else LIMIT
    targets: list[Target] = []
    details: dict[str, Any] = {}
    sizes = {
        "flow": (flow, QUICK_IMAGES if given.quick else IMAGES),
        "dask": (dask, QUICK_WORKED if given.quick else WORKED),
    }
    for name in given.extra.only:
        measure, images = sizes[name]
        own, details[name] = measure(scratch, images, limit, clock)
        targets += own
    if given.extra.scratch is None:
        shutil.rmtree(scratch)
    return finish(document("throughput", given.quick, targets, details, clock), given, lambda: _tables(details))


def _tables(details: dict[str, Any]) -> None:
    if "flow" in details:
        found = details["flow"]
        rows = [(name, round(seconds, 2)) for name, seconds in found["seconds_by_part"].items()]
        table(f"one flow of {found['images']:,} images, {found['run_seconds']:.0f} s", ("part", "seconds"), rows)
    if "dask" in details:
        names = ("one process", "two Dask workers")
        rows = [
            (name, details["dask"][name]["images_per_second"], details["dask"][name]["load_before"]) for name in names
        ]
        table("images a second", ("by", "images a second", "load before"), rows)


if __name__ == "__main__":
    sys.exit(main())
