"""`rhumb up` in a process of its own, on a free port and a home of its own; and what tests ask of its server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort

from flows.orchestration.processes import children
from flows.orchestration.serving import STOP_SECONDS
from tests.flows import tiny

ROOT = Path(__file__).parents[3]
T = TypeVar("T")
MANY = 96  # images of which each takes about a second: time enough to interfere, on a busy machine too


@dataclass(frozen=True)
class Served:
    """A running `rhumb up`: its process, where its server answers, its PREFECT_HOME."""

    process: subprocess.Popen[str]
    url: str
    home: Path

    @property
    def worker_log(self) -> str:
        """What its worker, and the runs of that, have said."""
        return (self.home / "rhumb" / "worker.log").read_text()

    def child(self, name: str) -> int:
        """The process id of its "server" or its "worker"."""
        for pid in children(self.process.pid):
            if name in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                return pid
        raise LookupError(name)


def environment(home: Path, url: str | None = None) -> dict[str, str]:
    """That of a process which knows no other Prefect than this one."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    own |= {
        "PREFECT_HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_WORKER_PREFETCH_SECONDS": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    }
    return own if url is None else {**own, "PREFECT_API_URL": url}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(home: Path, *arguments: str) -> Iterator[Served]:
    """`rhumb up` until the end of the block; it answers when the block begins."""
    command = [sys.executable, "-m", "flows.cli", "up", "--port", str(free_port()), *arguments, "--json"]
    with (home / "up.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=home, env=environment(home), stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        lines = []
        while (line := process.stdout.readline()) and line != "}\n":  # type: ignore[union-attr]
            lines.append(line)
        assert line == "}\n", (home / "up.log").read_text()
        yield Served(process, json.loads("".join([*lines, line]))["url"], home)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(3 * STOP_SECONDS + 30)  # what it allows its runs, its worker and its server to end in, and more
        process.stdout.close()  # type: ignore[union-attr]


def until(look: Callable[[], T], seconds: float = 60.0, what: str = "") -> T:
    """What `look` gives, once it gives something true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what or look} not in {seconds:.0f} s"
        time.sleep(0.2)
    return found


def runs_of(client: SyncPrefectClient, deployment: str, flow: str = "refresh") -> list[FlowRun]:
    """The runs of `rhumb-FLOW/DEPLOYMENT`, oldest first."""
    chosen = client.read_deployment_by_name(f"rhumb-{flow}/{deployment}")
    return client.read_flow_runs(
        deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [chosen.id]}}),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
    )


def started(client: SyncPrefectClient, deployment: str, flow: str = "refresh", **parameters: Any) -> UUID:
    """Ask for a run of `rhumb-FLOW/DEPLOYMENT` now."""
    chosen = client.read_deployment_by_name(f"rhumb-{flow}/{deployment}")
    return client.create_flow_run_from_deployment(chosen.id, parameters=parameters).id


def ended(client: SyncPrefectClient, run: UUID, seconds: float = 150.0) -> FlowRun:
    """A run once it is over."""

    def look() -> FlowRun | None:
        found = client.read_flow_run(run)
        return found if found.state is not None and found.state.is_final() else None

    found = until(look, seconds, f"the end of run {run}")
    assert found is not None
    return found


def logs_of(client: SyncPrefectClient, run: UUID) -> str:
    """What a run has logged."""
    from prefect.client.schemas.filters import LogFilter

    wanted = LogFilter.model_validate({"flow_run_id": {"any_": [run]}})
    return "\n".join(log.message for log in client.read_logs(log_filter=wanted, limit=200))


# -- recipes of their own ---------------------------------------------------------------------------------------------


def name_of(place: Path) -> str:
    return str(yaml.safe_load((place / "recipe.yaml").read_text())["name"])


def asked_for(place: Path) -> tuple[object, ...]:
    """`rhumb deploy` of the recipe there, mined by the process of the run alone."""
    command = ("deploy", place / "recipe.yaml", "--out", place / "catalog", "--repo", place / "hub/org/pack")
    return (*command, "--runner", "here")


def deployed(place: Path, *more: object) -> str:
    """Deploy the recipe there; its name."""
    assert tiny.run(*asked_for(place), *more) == 0
    return name_of(place)


def slowly(place: Path) -> None:
    """Let a run of the recipe there take its time."""
    content = yaml.safe_load((place / "recipe.yaml").read_text())
    content["method"]["inversion_steps"] = 500
    (place / "recipe.yaml").write_text(yaml.safe_dump(content))
    for number in range(MANY - 2):
        tiny.photograph(100 + number, (16, 16)).save(place / "photos" / f"n{number}.png")
        for region, corners in tiny.BOXES.items():
            tiny.box((16, 16), corners).save(place / "masks" / f"n{number}_{region}.png")


def beginning(place: Path) -> None:
    """Wait until a run has begun to mine."""
    until(lambda: (place / "catalog" / ".run" / "progress.json").is_file(), 150, "a beginning")
