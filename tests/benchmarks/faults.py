"""A run that is hit at a random moment, and the same command again: is it the catalog of an undisturbed run?

`python -m tests.benchmarks.faults [--quick] [--json] [--save FILE] [--resume FILE] [--only KIND ...] [--seed N]
[--scratch FOLDER]`. Every run mines a small world by a command of its own; what hits it, when, and whom is drawn by the
seed. Then the same command is given again, without the fault, until it ends, and its catalog is compared with that of
a run that nothing disturbed. Kinds:

- `worker`, `coordinator`: SIGKILL of one of two worker processes; of the command, in one process or with workers.
- `flow`, `server`: SIGKILL of a command that is a Prefect flow; of its server, which is started again after a while.
- `dask`: SIGKILL of one of the two workers of a Dask cluster.
- `disk`: the catalog's file system, a small tmpfs where that may be mounted, is full; then it is larger. Elsewhere
  nothing can be flushed any more from some number of bytes on.
- `store`, `stall`, `distant`: a store behind fsspec, of which every nth change fails; takes longer than is waited for,
  and is made after all; whose coordinator is killed. A stalled change may be made when its run is long over, so after
  `stall` the command is given once more.
- `clock`: the wall clock of all processes jumps by up to a month, ahead and back.

`--resume FILE` keeps what was done, and goes on from there. Folders of runs that did not end so are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flows.console import stage
from tests.benchmarks.fault_driver import Plan
from tests.benchmarks.fault_world import (
    Content,
    Server,
    Verdict,
    answer_of,
    content,
    ended,
    judged,
    small_world,
    start,
)
from tests.benchmarks.harness import Clock, Target, at_most, between, document, finish, options, save_json, table
from tests.flows.orchestration.served import children

COUNTS = {"worker": 16, "coordinator": 20, "flow": 12, "server": 8, "dask": 8, "disk": 12, "store": 10, "stall": 4,
          "distant": 8, "clock": 6}  # fmt: skip
IMAGES, QUICK_IMAGES = 10, 6
LIMIT = 300  # seconds that one command may take
AGAIN = 6  # times that a command is given until it ends
STRIKES = 4  # tries to hit a run before it ends by itself
METHOD = {"inversion_steps": 2, "tolerance": 0.5, "loco": {"rank": 1, "null_rank": 1}}
TASKS = ("flow", "server", "dask")
DISTANT = ("store", "stall", "distant")


@dataclass(frozen=True)
class Outcome:
    """One run: what hit it and after how many seconds (of the command, or of its mining where `mining`), how its
    commands ended, and what is wrong with its catalog."""

    number: int
    kind: str
    how: str
    after: float
    codes: tuple[int | None, ...]
    seconds: float
    verdict: Verdict
    kept: str | None = None

    @property
    def good(self) -> bool:
        """Whether the command ended in the end, with the catalog of an undisturbed run."""
        return self.codes[-1] == 0 and self.verdict.good


@dataclass(frozen=True)
class Campaign:
    """What all runs share. `span`: seconds that mining took undisturbed, by kind of place and runner; `size`: bytes."""

    scratch: Path
    recipe: Path
    truth: Content
    span: float
    size: int
    server: Server | None
    mounts: bool


class Run:
    """One run of the campaign: its folder, its commands and its fault."""

    def __init__(self, campaign: Campaign, number: int, kind: str, seed: int) -> None:
        self.campaign, self.number, self.kind = campaign, number, kind
        self.random = random.Random(f"{seed}-{number}-{kind}")
        self.folder = campaign.scratch / f"{number:03d}-{kind}"
        self.catalog = self.folder / "disk" / "catalog"
        self.how = ""

    def outcome(self) -> Outcome:
        """Hit it, give the command again until it ends, and judge its catalog."""
        try:
            return self._outcome()
        finally:
            self._unmount()

    def _outcome(self) -> Outcome:
        begun, moment = time.monotonic(), self.random.random()
        for _ in range(STRIKES):
            self._fresh()
            code, struck, after = self._hit(moment)
            if struck:
                break
            moment /= 2  # it had ended before
        codes = [code]
        while codes[-1] != 0 and len(codes) < AGAIN:
            codes.append(ended(self._start(self._lasting(), f"again{len(codes)}"), LIMIT))
        if self.kind == "stall":
            codes.append(ended(self._start(Plan(), "after"), LIMIT))
        seconds = time.monotonic() - begun
        try:
            verdict = judged(self.catalog, self.campaign.truth, self.kind not in DISTANT)
        except Exception as error:  # whatever is wrong with a catalog is what this is to find
            verdict = Verdict(len(self.campaign.truth.sources), 0, (f"{type(error).__name__}: {error}",), False, 1.0)
        if not struck:
            self.how += " (ended before it was hit)"
        done = Outcome(self.number, self.kind, self.how, after, tuple(codes), seconds, verdict)
        if not done.good:
            if (self.folder / "disk").is_mount():
                shutil.copytree(self.folder / "disk", self.folder / "disk-as-it-was")
            return replace(done, kept=str(self.folder))
        self._unmount()
        shutil.rmtree(self.folder)
        return done

    def _fresh(self) -> None:
        self._unmount()
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "disk").mkdir(parents=True)

    # -- commands --------------------------------------------------------------------------------------------------

    @property
    def place(self) -> str:
        return f"faulty:/{self.catalog}" if self.kind in DISTANT else str(self.catalog)  # commands run at the root

    def _start(self, plan: Plan, log: str) -> subprocess.Popen[bytes]:
        runner = {
            "flow": ["prefect"], "server": ["prefect"], "dask": ["dask", "--workers", "2"],
            "worker": ["processes", "--workers", "2"], "clock": ["processes", "--workers", "2"],
        }.get(self.kind, self._either)  # fmt: skip
        url = self.campaign.server.url if self.campaign.server is not None and self.kind in TASKS else None
        arguments = ["mine", str(self.campaign.recipe), "--out", self.place, "--json", "--runner", *runner]
        return start(arguments, plan, self.folder, url, log)

    @property
    def _either(self) -> list[str]:
        return ["here"] if self.number % 2 else ["processes", "--workers", "2"]

    def _lasting(self) -> Plan:
        """The faults that stay when the command is given again: a store is as it is."""
        every = 2 + self.number % 9
        if self.kind == "store":
            return Plan(store_every=every)
        return Plan(store_every=max(every, 4), stall=1.5, patience=0.5) if self.kind == "stall" else Plan()

    # -- faults ----------------------------------------------------------------------------------------------------

    def _hit(self, moment: float) -> tuple[int | None, bool, float]:
        """How the command ended that was hit, whether it was, and when. `moment` in 0..1."""
        hit: Callable[[float], tuple[int | None, bool, float]] = {
            "disk": self._disk, "store": self._faulty, "stall": self._faulty, "clock": self._clock,
        }.get(self.kind, self._killed)  # fmt: skip
        return hit(moment)

    def _killed(self, moment: float) -> tuple[int | None, bool, float]:
        process = self._start(Plan(), "hit")
        begun = time.monotonic()
        if self.random.random() > 0.1:  # else at any moment of its start
            _until(lambda: (self.catalog / "manifest.json").exists() or process.poll() is not None)
        time.sleep(moment * self.campaign.span)
        struck = process.poll() is None and self._strike(process)
        after = time.monotonic() - begun
        if self.kind == "server" and self.campaign.server is not None:
            time.sleep(self.random.uniform(0.0, 4.0))
            self.campaign.server.start()
        return ended(process, LIMIT), struck, after

    def _strike(self, process: subprocess.Popen[bytes]) -> bool:
        if self.kind == "server" and self.campaign.server is not None:
            self.how = "SIGKILL of the Prefect server"
            self.campaign.server.kill()
        elif self.kind in ("worker", "dask"):
            _until(lambda: bool(workers_of(process.pid)) or process.poll() is not None)
            workers = workers_of(process.pid)
            if not workers:
                return False
            self.how = f"SIGKILL of one of {len(workers)} workers"
            os.kill(self.random.choice(workers), signal.SIGKILL)
        else:
            self.how = "SIGKILL of the command"
            os.kill(process.pid, signal.SIGKILL)
        return True

    def _disk(self, moment: float) -> tuple[int | None, bool, float]:
        room = round((0.1 + 0.8 * moment) * self.campaign.size)
        begun, plan = time.monotonic(), Plan()
        if self.campaign.mounts:
            self.how = f"a tmpfs of {room // 1024} KiB"
            subprocess.run(_mount(self.folder / "disk", room), check=True, capture_output=True)
        else:
            self.how = f"no flush beyond {room // 1024} KiB"
            plan = Plan(full=room, folder=str(self.folder / "disk"))
        code = ended(self._start(plan, "hit"), LIMIT)
        said = (self.folder / "hit.err").read_text(errors="replace")
        if self.campaign.mounts:
            subprocess.run(_mount(self.folder / "disk", 2**28, "remount,"), check=True, capture_output=True)
        return code, "no space left" in said, time.monotonic() - begun

    def _faulty(self, moment: float) -> tuple[int | None, bool, float]:
        begun, plan = time.monotonic(), self._lasting()
        self.how = f"every {plan.store_every}th change " + ("stalls" if plan.stall else "fails")
        return ended(self._start(plan, "hit"), LIMIT), True, time.monotonic() - begun

    def _clock(self, moment: float) -> tuple[int | None, bool, float]:
        begun, self.how = time.monotonic(), "the wall clock jumps"
        code = ended(self._start(Plan(clock=self.number), "hit"), LIMIT)
        after = time.monotonic() - begun
        told = float(answer_of(self.folder, "hit").get("seconds", -1.0))
        if code == 0 and not 0 <= told <= after:
            self.how += f", and the run says that it took {told:.0f} s of {after:.0f}"
            return None, True, after
        return code, True, after

    def _unmount(self) -> None:
        if self.kind == "disk" and self.campaign.mounts and (self.folder / "disk").is_mount():
            subprocess.run(["umount", str(self.folder / "disk")], check=True)


def _mount(folder: Path, size: int, again: str = "") -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", f"{again}size={size}", "tmpfs", str(folder)]


def _until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not look() and time.monotonic() < deadline:
        time.sleep(0.02)


def workers_of(pid: int) -> list[int]:
    """The worker processes below a process."""
    found, rest = [], [pid]
    while rest:
        below = children(rest.pop())
        rest += below
        for one in below:
            try:
                command = Path(f"/proc/{one}/cmdline").read_bytes()
            except OSError:
                continue
            if b"multiprocessing.spawn" in command:
                found.append(one)
    return sorted(found)


# -- the campaign ------------------------------------------------------------------------------------------------------


def mounts(scratch: Path) -> bool:
    """Whether a file system may be mounted here."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        try:
            subprocess.run(_mount(Path(folder), 2**20), check=True, capture_output=True)
            subprocess.run(["umount", folder], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return False
    return True


def schedule(quick: bool, kinds: Sequence[str], seed: int) -> list[str]:
    """The kind of every run, mixed."""
    every = [kind for kind, count in COUNTS.items() if kind in kinds for _ in range(1 if quick else count)]
    random.Random(seed).shuffle(every)
    return every


def undisturbed(scratch: Path, images: int) -> tuple[Path, Content, float, int]:
    """A world mined without faults: its recipe, what it holds, seconds that mining took, and its bytes on a tmpfs."""
    world = scratch / "world"
    shutil.rmtree(world, ignore_errors=True)
    world.mkdir(parents=True)
    recipe = small_world(world, images, **METHOD)
    process = start(["mine", str(recipe), "--out", str(world / "catalog"), "--json", "--runner", "here"], Plan(), world)
    code = ended(process, LIMIT)
    if code != 0:
        raise RuntimeError(f"the undisturbed run ended with {code}: see {world / 'log.err'}")
    pages = [-(-file.stat().st_size // 4096) for file in (world / "catalog").rglob("*")]
    return recipe, content(world / "catalog"), float(answer_of(world)["seconds"]), 4096 * sum(pages)


def read_state(path: Path | None, seed: int, images: int) -> dict[int, Outcome]:
    """The runs that a former campaign with the same seed has done, by number."""
    if path is None or not path.is_file():
        return {}
    state = json.loads(path.read_text())
    if (state["seed"], state["images"]) != (seed, images):
        raise SystemExit(f"{path}: of another campaign (seed {state['seed']}, {state['images']} images)")
    rows = [{**row, "codes": tuple(row["codes"]), "verdict": Verdict(**row["verdict"])} for row in state["runs"]]
    return {row["number"]: Outcome(**row) for row in rows}


def run_all(
    campaign: Campaign,
    kinds: Sequence[str],
    done: dict[int, Outcome],
    seed: int,
    keep: Callable[[], None],
    clock: Clock,
) -> None:
    """Do the runs that are not done yet."""
    with stage("faults", len(kinds)) as advance:
        for number, kind in enumerate(kinds):
            if number not in done:
                with clock.stage(kind):
                    done[number] = Run(campaign, number, kind, seed).outcome()
                keep()
                one = done[number]
                if not one.good:
                    sys.stderr.write(f"run {number} ({kind}, {one.how}): {one.codes} {one.verdict} in {one.kept}\n")
            advance(1, f"{number} {kind}: {done[number].how}")


def targets(outcomes: Sequence[Outcome]) -> list[Target]:
    """The bars."""
    good = sum(one.good for one in outcomes)
    return [
        between(
            "share of runs that end with the catalog of an undisturbed run", good / max(1, len(outcomes)), 1.0, 1.0
        ),
        at_most("images lost", sum(one.verdict.lost for one in outcomes), 0),
        at_most("images or ids doubled", sum(one.verdict.doubled for one in outcomes), 0),
        at_most("partial files left", sum(len(one.verdict.partial) for one in outcomes), 0),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--resume", type=Path, metavar="FILE", help="what was done, to go on from")
        parser.add_argument("--only", nargs="+", choices=COUNTS, default=tuple(COUNTS), metavar="KIND")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="for the runs (default: a temporary one)")

    given = options("faults", "Runs that are hit at random moments, and run again.", argv, more)
    seed, images = given.extra.seed, QUICK_IMAGES if given.quick else IMAGES
    scratch = (given.extra.scratch or Path(tempfile.mkdtemp(prefix="rhumb-faults-"))).resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    clock, kinds = Clock(), schedule(given.quick, given.extra.only, seed)
    done = read_state(given.extra.resume, seed, images)
    server = Server(scratch / "server") if {*TASKS} & {*kinds} else None
    load = os.getloadavg()[0]
    try:
        with clock.stage("undisturbed"):
            recipe, truth, span, size = undisturbed(scratch, images)
            if server is not None:
                server.start()
        campaign = Campaign(scratch, recipe, truth, span, size, server, mounts(scratch))

        def keep() -> None:
            if given.extra.resume is not None:
                runs = [asdict(one) for one in done.values()]
                save_json({"seed": seed, "images": images, "runs": runs}, given.extra.resume)

        run_all(campaign, kinds, done, seed, keep, clock)
    finally:
        if server is not None:
            server.kill()
    outcomes = [done[number] for number in range(len(kinds))]
    details = {"runs": len(outcomes), "images": images, "kinds": _by_kind(outcomes), "load_before": load,
               "worst_vector": max(one.verdict.worst for one in outcomes),
               "disk": "a small tmpfs" if campaign.mounts else "flushes that fail in the process", "seed": seed,
               "failures": [asdict(one) for one in outcomes if not one.good],
               "outcomes": [asdict(one) for one in outcomes]}  # fmt: skip
    if all(one.good for one in outcomes) and given.extra.scratch is None:
        shutil.rmtree(scratch)
    return finish(document("faults", given.quick, targets(outcomes), details, clock), given, lambda: _tables(outcomes))


def _by_kind(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(one.kind for one in outcomes):
        own = [one for one in outcomes if one.kind == kind]
        found[kind] = {
            "runs": len(own),
            "good": sum(one.good for one in own),
            "hit": sum("(ended before" not in one.how for one in own),
            "ended_at_first": sum(one.codes == (0,) for one in own),
            "commands": dict(Counter(len(one.codes) for one in own)),
        }
    return found


def _tables(outcomes: Sequence[Outcome]) -> None:
    rows = [(kind, *(str(value) for value in row.values())) for kind, row in _by_kind(outcomes).items()]
    table("runs by what hit them", ("kind", "runs", "good", "hit", "ended at first", "commands given"), rows)


if __name__ == "__main__":
    sys.exit(main())
