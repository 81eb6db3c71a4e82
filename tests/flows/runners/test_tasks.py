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
from typing import Any

import pytest

import flows.miner
from catalog.verify import verify
from flows.run_settings import RunSettings
from flows.work import Work
from pipeline.errors import InputError
from tests.benchmarks.fault_driver import Plan
from tests.benchmarks.fault_world import Content, Server, answer_of, content, ended, judged, small_world, start
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

    def __init__(self, recipe: Path, folder: Path, server: Server, *arguments: str) -> None:
        self.folder, self.catalog = folder, folder / "catalog"
        command = ["mine", str(recipe), "--out", str(self.catalog), "--json", *arguments]
        self.process = start(command, Plan(), folder, server.url)

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


def test_ray_mines_the_same_catalog(server: Server, recipe: Path, truth: Content, tmp_path: Path) -> None:
    run = Running(recipe, tmp_path, server, "--runner", "ray", "--workers", "2")
    run.end(truth)


@pytest.mark.parametrize(
    ("seconds", "most", "sizes"),
    [(1.0, None, [2, 10, 10, 8]), (1.0, 4, [2, 4, 4, 4]), (60.0, None, [2, 2, 2, 2]), (0.0, 40, [2, 28])],
)
def test_tasks_grow_until_they_take_long_enough_and_leave_some_for_every_worker(
    seconds: float, most: int | None, sizes: list[int]
) -> None:
    from flows.runners.tasks import _Batches

    works = [Work(((f"{number}.png", f"{number:032x}"),)) for number in range(30)]
    grouped, found = _Batches(works, 2, most), []
    for batch in grouped:
        found.append(batch)
        grouped.took(seconds)
    assert [len(batch) for batch in found][: len(sizes)] == sizes
    assert [work for batch in found for work in batch] == works


@pytest.mark.parametrize(("runner", "package"), [("dask", "prefect_dask"), ("ray", "prefect_ray")])
def test_a_runner_whose_packages_are_missing_says_how_to_install_them(
    runner: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.runners.tasks import _opened

    real = builtins.__import__

    def importing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith(package):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(InputError, match=f"whose packages are not installed.*pip install 'rhumb\\[{runner}\\]'"):
        _opened(RunSettings(runner=runner), 1)
