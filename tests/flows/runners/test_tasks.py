"""The same job as tasks of Prefect, of Dask and of Ray, with real servers and clusters, and without any."""

from __future__ import annotations

import builtins
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

import flows.miner
import flows.runners.tasks
from catalog.verify import verify
from flows.run_settings import RunSettings
from flows.runners.tasks import AHEAD, BATCH, MOST_TASKS, SHARE, TEAMS, Batches, Team, _submitted, in_tasks
from flows.work import Job, Work
from pipeline.errors import InputError
from tests.benchmarks.fault_driver import Plan
from tests.benchmarks.fault_world import (
    Content,
    Server,
    answer_of,
    content,
    ended,
    judged,
    leftovers,
    small_world,
    start,
)
from tests.benchmarks.faults import METHOD, workers_of
from tests.flows import tiny

ROOT = Path(__file__).parents[3]
# A database on a slow disk takes a minute to be made.
IN_MEMORY = "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true&check_same_thread=false"
IMAGES = 8
LIMIT = 240  # seconds of a command


def driven(world: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """`rhumb mine` in a process of its own, where mining is quick and chunks are small."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(world / "prefect"), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "tests.flows.driver", "quick", "mine", "recipe.yaml", *arguments, "--json"]
    return subprocess.run(
        command, cwd=world, env=environment | settings, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_prefect_run_with_an_embedded_server_mines_the_same_catalog(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = driven(world, "--out", "catalog", "--runner", "prefect", PREFECT_SERVER_DATABASE_CONNECTION_URL=IN_MEMORY)
    assert done.returncode == 0, done.stderr
    report = tiny.parsed(done.stdout)
    assert (report["images"], report["failed"]) == (3, {})
    assert done.stderr.count("Finished in state Completed()") >= 2  # a task at least, and the flow
    assert "images from a.png" in done.stderr
    assert verify(world / "catalog").ok
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)
    assert tiny.run("mine", world / "recipe.yaml", "--out", world / "direct") == 0
    assert tiny.direction_ids(world / "direct") == tiny.direction_ids(world / "catalog")


def test_without_a_server_that_answers_there_is_one_clear_error_and_nothing_is_written(world: Path) -> None:
    done = driven(world, "--out", "catalog", "--runner", "prefect", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("rhumb")]
    assert len(said) == 1
    assert "Prefect server" in said[0]
    assert "127.0.0.1:9" in said[0]
    assert not (world / "catalog").exists()


# -- workers in other processes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Prefect server that answers."""
    up = Server(tmp_path_factory.mktemp("prefect"))
    up.start()
    yield up
    up.kill()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("distributed") / "world", IMAGES, **METHOD)


@pytest.fixture(scope="module")
def truth(recipe: Path) -> Content:
    """What a run in this process finds."""
    assert tiny.run("mine", recipe, "--out", recipe.parent / "catalog", "--runner", "here") == 0
    return content(recipe.parent / "catalog")


class Running:
    """A command in a process of its own, and its catalog."""

    def __init__(self, recipe: Path, folder: Path, server: Server, *arguments: str, plan: Plan = Plan()) -> None:  # noqa: B008
        self.folder, self.catalog = folder, folder / "catalog"
        command = ["mine", str(recipe), "--out", str(self.catalog), "--json", *arguments]
        self.process = start(command, plan, folder, server.url)

    def until(self, look: Callable[[], Any]) -> None:
        deadline = time.monotonic() + LIMIT
        while not look():
            assert self.process.poll() is None, (self.folder / "log.err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def end(self, truth: Content) -> None:
        """It ends well, with the catalog of an undisturbed run."""
        assert ended(self.process, LIMIT) == 0, (self.folder / "log.err").read_text()
        report = answer_of(self.folder)
        assert (report["images"], report["failed"]) == (IMAGES, {})
        verdict = judged(self.catalog, truth)
        assert verdict.good, verdict


def test_a_dask_worker_that_is_killed_amid_its_work_is_replaced_and_the_catalog_is_the_same(
    server: Server, recipe: Path, truth: Content, tmp_path: Path
) -> None:
    run = Running(recipe, tmp_path, server, "--runner", "dask", "--workers", "2")
    run.until(lambda: list(run.catalog.glob(".incoming/*/*/receipt.json")) or list(run.catalog.glob("directions/*")))
    workers = workers_of(run.process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    run.end(truth)


@pytest.mark.parametrize("runner", ["prefect", "dask"])
def test_a_catalog_at_a_url_is_mined_there_and_nowhere_else(
    runner: str, server: Server, recipe: Path, truth: Content, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    command = ["mine", str(recipe), "--out", f"faulty:/{store}", "--runner", runner, "--workers", "1"]
    assert ended(start(command, Plan(), tmp_path, server.url), LIMIT) == 0, (tmp_path / "log.err").read_text()
    assert judged(store, truth, folders=False).good
    assert not list(Path("/").glob("faulty*"))  # where the command ran


def test_an_image_that_kills_its_dask_worker_fails_alone_and_the_run_goes_on(
    server: Server, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Busy machines take longer than Dask waits for a worker to be back, after which it would end the new one too.
    monkeypatch.setenv("DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT", "1s")
    run = Running(recipe, tmp_path, server, "--runner", "dask", "--workers", "2", plan=Plan(poison="00002.png"))
    assert ended(run.process, LIMIT) == 1, (tmp_path / "log.err").read_text()
    report = answer_of(tmp_path)
    assert (report["images"], report["failed"]) == (IMAGES - 1, {"00002.png": "the process that mined it died, twice"})
    assert verify(run.catalog).ok
    assert leftovers(run.catalog) == []


POISON = "5.png"


def deadly_batch(job: Any, batch: list[Work]) -> float:
    """In place of `do_batch`: an image ends its worker."""
    if any(key == POISON for work in batch for key, _ in work.items):
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def test_an_image_that_kills_its_ray_worker_fails_alone_and_the_run_goes_on(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.runners.tasks, "do_batch", deadly_batch)
    works = [Work(tuple((f"{number + more}.png", "0" * 32) for more in (0, 1))) for number in range(0, 12, 2)]
    failed: list[str] = []
    desk = cast(Any, SimpleNamespace(
        job=Job(cast(Any, None), "store", cast(Any, None)), miner=SimpleNamespace(denoiser=None),
        stopping=lambda: False, give_up=lambda work, reason: failed.extend(key for key, _ in work.items),
    ))  # fmt: skip

    @flow
    def run() -> int:
        return sum(1 for _ in in_tasks(RunSettings(runner="ray", workers=2, retries=0), len(works))(desk, works))

    with temporary_settings({PREFECT_API_URL: server.url}):
        assert run() > len(works)
    assert failed == [POISON]


def test_ray_mines_the_same_catalog(server: Server, recipe: Path, truth: Content, tmp_path: Path) -> None:
    run = Running(recipe, tmp_path, server, "--runner", "ray", "--workers", "2")
    run.end(truth)


def sizes(works: int, workers: int, known: bool, seconds: float) -> list[int]:
    """Of the tasks that so many works make, each of which takes so many seconds."""
    own = [Work(((f"{number}.png", f"{number:032x}"),)) for number in range(works)]
    batches, found = Batches(own, workers, works if known else None), []
    for batch in batches:
        found.append(batch)
        batches.took(seconds)
    assert [work for batch in found for work in batch] == own
    return [len(batch) for batch in found]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("seconds", [0.0, 1.0, 60.0])
@pytest.mark.parametrize("works", [3, 2500, 10_000])
def test_there_are_hundreds_of_tasks_at_most_and_every_worker_gets_some(
    works: int, seconds: float, known: bool
) -> None:
    found, workers = sizes(works, 2, known, seconds), 2
    assert len(found) < 1000
    for number, size in enumerate(found):
        share = (works if known else sum(found[:number])) // (SHARE * workers)
        assert size <= max(share, 1 if known else BATCH, sum(found[:number]) // MOST_TASKS)


def test_tasks_grow_until_they_take_long_enough_and_not_at_a_bound() -> None:
    assert sizes(2500, 2, True, 0.1)[:5] == [13, 26, 52, 100, 100]
    assert sizes(30, 1, True, 60.0)[:3] == [1, 1, 1]
    assert max(sizes(10_000, 1, False, 0.0)[:10]) < 40  # the next works may not be as quick


@pytest.mark.parametrize(("runner", "package"), [("dask", "prefect_dask"), ("ray", "prefect_ray")])
def test_a_runner_whose_packages_are_missing_says_how_to_install_them(
    runner: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def importing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith(package):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(InputError, match=f"whose packages are not installed.*pip install 'rhumb\\[{runner}\\]'"):
        opened(RunSettings(runner=runner))


def opened(settings: RunSettings, room: int = 1) -> Team:
    """The workers of a setting, of which this machine would have room for so many; they are let go again."""
    with TEAMS[settings.runner](settings, lambda: room) as team:
        return team


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nonsense", "127.0.0.1:port"])
@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_an_address_where_nothing_answers_is_one_clear_error(
    runner: Any, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.runners.tasks, "_PROBE_SECONDS", 1.0)
    with pytest.raises(InputError, match=f"--address: found {address}, where nothing answers"):
        opened(RunSettings(runner=runner, address=address))


def test_a_cluster_at_an_address_says_how_many_workers_it_has() -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=7, processes=False, threads_per_worker=1, dashboard_address=None) as cluster:
        there = RunSettings(runner="dask", address=cluster.scheduler_address)
        assert opened(there).count == 7
        assert opened(there.model_copy(update={"workers": 3})).count == 3


class Told:
    """In place of a task and its future: over when a test says so."""

    def __init__(self) -> None:
        self.listeners: list[Any] = []

    def add_done_callback(self, call: Any) -> None:
        self.listeners.append(call)

    def result(self, raise_on_failure: bool) -> float:
        return 60.0


class Tasks:
    """In place of a task runner: remembers what was submitted."""

    def __init__(self) -> None:
        self.given: list[Told] = []

    def submit(self, task: Any, parameters: dict[str, Any]) -> Told:
        self.given.append(Told())
        return self.given[-1]


def test_a_free_worker_gets_its_next_task_at_once_and_each_task_is_listened_to_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flows.runners.tasks, "_WAIT_SECONDS", 0.01)
    tasks, works = Tasks(), [Work(((f"{number}.png", f"{number:032x}"),)) for number in range(50)]
    running = _submitted(Team(tasks, 2), cast(Any, None), cast(Any, None), None, works)
    assert [next(running) for _ in range(10)] == [False] * 10
    assert len(tasks.given) == AHEAD * 2
    (over,) = tasks.given[1].listeners
    over(tasks.given[1])
    assert next(running)
    assert not next(running)
    assert len(tasks.given) == AHEAD * 2 + 1
    assert [len(task.listeners) for task in tasks.given] == [1] * len(tasks.given)
