"""What `faults` and `throughput` share: a small world to mine, commands in processes of their own, a Prefect server,
and whether a catalog is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from catalog.comparing import SAME_VECTOR
from catalog.reader import Catalog
from catalog.schema import TABLES
from catalog.verify import verify
from tests.benchmarks.fault_driver import PLAN, Plan
from tests.flows import tiny
from tests.flows.orchestration.served import environment, free_port

START_SECONDS = 180  # that a server may take until it answers


def small_world(folder: Path, images: int, model_size: int = 16, **method: Any) -> Path:
    """A random model, smooth pictures of its size with a mask of one region each, and the recipe: its path."""
    size = (model_size, model_size)
    for name in ("photos", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(images):
        tiny.photograph(number, size).save(folder / "photos" / f"{number:05d}.png")
        tiny.box(size, tiny.BOXES["mouth"]).save(folder / "masks" / f"{number:05d}_mouth.png")
    return tiny.recipe(folder, tiny.model(folder / "model", size=model_size), regions=["mouth"], method=method)


def start(
    arguments: list[str], plan: Plan, folder: Path, url: str | None = None, log: str = "log"
) -> subprocess.Popen[bytes]:
    """A `rhumb` command in a process group of its own; its answer goes to `folder`/`log`.out, what it says to .err."""
    own = environment(folder / "prefect", url) | {PLAN: plan.dump(), "RHUMB_CACHE": str(folder / "cache")}
    with (folder / f"{log}.out").open("wb") as out, (folder / f"{log}.err").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.fault_driver", *arguments],
            cwd="/", env=own | {"MKL_NUM_THREADS": "1"}, stdout=out, stderr=err, start_new_session=True,
        )  # fmt: skip


def ended(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """How a process ended; None for one that did not within `seconds`, which is killed with all that it started."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill_all(process)
        return None


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """End a process and the others of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def answer_of(folder: Path, log: str = "log") -> Mapping[str, Any]:
    """The JSON that a command has printed."""
    found = json.loads((folder / f"{log}.out").read_text() or "{}")
    assert isinstance(found, dict)
    return found


class Server:
    """A Prefect server with a database in a folder, killed and started again as often as asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start it anew, and wait until it answers."""
        self.kill()
        own = environment(self.folder) | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=own, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert time.monotonic() < deadline and self.process.poll() is None, f"see {self.folder / 'server.log'}"
            time.sleep(0.3)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            kill_all(self.process)


@dataclass(frozen=True)
class Content:
    """What a catalog holds: ids by table, in order and with repetitions, sources of images, vectors by id."""

    ids: dict[str, list[str]]
    sources: list[str]
    vectors: dict[str, np.ndarray]


def content(folder: Path) -> Content:
    """That of the catalog in a folder."""
    with Catalog.open(folder) as catalog:
        ids = {table: sorted(key.decode() for key in catalog.ids(table)) for table in TABLES}
        sources = catalog.images().column("source").to_pylist()
        return Content(ids, sources, {key: catalog.vector(key) for key in ids["directions"]})


@dataclass(frozen=True)
class Verdict:
    """How a catalog differs from that of an undisturbed run; `worst` is 1 - |cos| of the vector that differs most."""

    lost: int
    doubled: int
    partial: tuple[str, ...]
    same_ids: bool
    worst: float

    @property
    def good(self) -> bool:
        """Whether it is the same catalog, whole."""
        faults = self.lost or self.doubled or self.partial or not self.same_ids
        return not faults and self.worst <= SAME_VECTOR


def judged(folder: Path, truth: Content, folders: bool = True) -> Verdict:
    """A catalog against that of an undisturbed run. `folders`: empty ones count as left over too."""
    found = content(folder)
    lost = set(truth.ids["images"]) - set(found.ids["images"])
    doubled = sum(len(ids) - len(set(ids)) for ids in (*found.ids.values(), found.sources))
    partial = (*verify(folder).problems, *leftovers(folder, folders))
    same = all(set(found.ids[table]) == set(truth.ids[table]) for table in TABLES)
    both = found.vectors.keys() & truth.vectors.keys()
    worst = max((_apart(found.vectors[key], truth.vectors[key]) for key in both), default=0.0)
    return Verdict(len(lost), doubled, tuple(map(str, partial)), same, worst)


def _apart(one: np.ndarray, two: np.ndarray) -> float:
    a, b = one.ravel().astype(np.float64), two.ravel().astype(np.float64)
    return 1.0 - abs(float(a @ b)) / float(np.linalg.norm(a) * np.linalg.norm(b))


def leftovers(folder: Path, folders: bool = True) -> list[str]:
    """Files that a run which ended must not leave in a catalog."""
    paths = (path for path in folder.rglob("*") if folders or path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    private = (".incoming", ".staging")
    return [name for name in names if name.startswith(private) or name.endswith(".tmp") or "/.draft-" in name]
