"""Runs by a real server and worker: on schedule, one at a time, told as what they were; and what kills leave."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.states import Running

from catalog.verify import verify
from catalog.writer import CatalogWriter
from flows.orchestration import jobs, stale
from flows.orchestration.jobs import BUSY
from flows.orchestration.processes import Process
from flows.watching.progress import Progress
from tests.catalog import local_hub
from tests.flows import tiny
from tests.flows.orchestration.served import (
    MANY,
    Served,
    beginning,
    deployed,
    ended,
    environment,
    logs_of,
    runs_of,
    slowly,
    started,
    until,
)
from tests.flows.test_resume import images


def state_of(run: FlowRun) -> tuple[str, str]:
    assert run.state is not None
    return run.state.type.value, str(run.state.name)


def versions(place: Path) -> list[str]:
    return local_hub.versions(place / "hub/org/pack")


@pytest.fixture
def every_twenty_seconds(place: Path, client: SyncPrefectClient) -> Iterator[str]:
    """The name of a recipe that is refreshed by cron as long as the test runs."""
    yield deployed(place, "--cron", "* * * * * */20")
    assert tiny.run("schedule", place / "recipe.yaml", "--off") == 0


def test_a_cron_schedule_fires_again_and_again_and_mines_only_what_is_new(
    every_twenty_seconds: str, place: Path, client: SyncPrefectClient
) -> None:
    def completed() -> list[FlowRun]:
        return [run for run in runs_of(client, every_twenty_seconds) if run.state and run.state.is_completed()]

    def said() -> str:  # which comes in a little after the end of a run
        return "".join(logs_of(client, run.id) for run in completed()[1:])

    first = until(completed, 150, "a first run")[0]
    assert first.auto_scheduled
    assert versions(place) == ["1.0.0"]
    tiny.box((23, 23), tiny.BOXES["eye"]).save(place / "masks" / "z_eye.png")
    tiny.photograph(77, (23, 23)).save(place / "photos" / "z.png")
    until(lambda: "1 images, 5 directions; 2 were there" in said(), 150, "a second run that mines what is new")
    assert versions(place) == ["1.0.0", "1.1.0"]
    assert verify(place / "catalog").ok
    assert images(place / "catalog") == 3


def test_a_worker_runs_a_deployment_and_its_page_has_artifacts(place: Path, client: SyncPrefectClient) -> None:
    name = deployed(place)
    run = ended(client, started(client, name, "mine"))
    assert state_of(run) == ("COMPLETED", "Completed"), logs_of(client, run.id)
    assert run.name == f"mine {name}"
    assert stale.tag_of(str(place / "catalog")) in run.tags
    assert images(place / "catalog") == 2
    events = [json.loads(line)["event"] for line in logs_of(client, run.id).splitlines() if line.startswith("{")]
    assert (events[0], events[-1], "chunk done" in events) == ("run begun", "run ended", True)
    wanted = ArtifactFilter.model_validate({"flow_run_id": {"any_": [run.id]}})
    kinds = {artifact.type for artifact in client.read_artifacts(artifact_filter=wanted)}
    assert {"progress", "table", "markdown"} <= kinds
    more = [started(client, name, "index"), started(client, name, "publish")]
    for one in more:  # at the same time
        assert state_of(ended(client, one)) == ("COMPLETED", "Completed"), logs_of(client, one)
    assert versions(place) == ["1.0.0"]


def test_bad_input_ends_a_run_as_failed_with_one_clear_message(place: Path, client: SyncPrefectClient) -> None:
    name = deployed(place)
    for path in (place / "photos").iterdir():
        path.unlink()
    asked = started(client, name, "mine"), started(client, name, "index", catalog="catalog")
    run, relative = (ended(client, one) for one in asked)
    assert state_of(run) == ("FAILED", "Failed")
    assert run.state is not None
    assert str(run.state.message).startswith("dataset")
    assert "Traceback" not in logs_of(client, run.id)
    assert "absolute path" in str(relative.state and relative.state.message)


def test_two_schedulers_do_not_run_one_recipe_twice_and_a_cancelled_run_stops_at_the_next_image(
    place: Path, client: SyncPrefectClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(place)
    name = deployed(place)
    first = started(client, name, "refresh")
    beginning(place)
    # Of the same deployment the server keeps a second one back; of another, the catalog's lock does.
    same, other = (ended(client, one) for one in (started(client, name, "refresh"), started(client, name, "mine")))
    assert state_of(same)[0] == "CANCELLED"
    assert state_of(other) == ("CANCELLED", BUSY)
    assert "another writer" in str(other.state and other.state.message)
    assert "Traceback" not in logs_of(client, other.id)
    command = [sys.executable, "-m", "prefect", "flow-run", "cancel", str(first)]
    subprocess.run(command, env=environment(served.home, served.url), check=True, capture_output=True, timeout=60)
    found = ended(client, first)
    assert state_of(found)[0] == "CANCELLED", logs_of(client, first)
    assert "Traceback" not in logs_of(client, first)
    until(lambda: not locked(place / "catalog"))
    assert verify(place / "catalog").ok
    done = images(place / "catalog")
    assert 0 < done < MANY
    monkeypatch.setattr("flows.miner.mine_image", tiny.quick_mine_image)
    assert tiny.run("refresh", place / "recipe.yaml", "--out", place / "catalog", "--runner", "here") == 0
    assert images(place / "catalog") == MANY


def locked(folder: Path) -> bool:
    try:
        CatalogWriter.open(folder).close()
    except Exception:
        return True
    return False


def test_the_run_of_a_killed_process_is_ended_with_the_reason(
    place: Path, client: SyncPrefectClient, served: Served
) -> None:
    code = (
        "from pathlib import Path; from flows.orchestration.jobs import mine_here;"
        "from flows.named_recipes import open_recipe; from flows.run_settings import RunSettings;"
        "mine_here(open_recipe(Path('recipe.yaml')), 'catalog', RunSettings(runner='here'))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=place, env=environment(served.home, served.url),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        wanted = FlowRunFilter.model_validate({"tags": {"all_": [stale.tag_of(str(place / "catalog"))]}})
        until(lambda: client.read_flow_runs(flow_run_filter=wanted), 150, "a run")
        process.kill()
    (dead,) = client.read_flow_runs(flow_run_filter=wanted)
    assert state_of(dead)[0] == "RUNNING"
    deployed(place)  # which looks for such runs, as every run of the catalog and `rhumb up` do
    found = client.read_flow_run(dead.id)
    assert state_of(found)[0] == "CRASHED"
    assert "is gone; what it had committed is kept" in str(found.state and found.state.message)


OTHER = Process("another-machine", 4, "boot", 5)
SIGHTS = {
    "a living process of this machine": (Process.this().labels(), False),
    "another machine": (OTHER.labels(), False),
    "another machine that held the lock which is held here now": ({**OTHER.labels(), "rhumb.lock": "/held"}, True),
    "another machine that held another lock": ({**OTHER.labels(), "rhumb.lock": "/other"}, False),
    "none yet, just begun": ({}, False),
    "a dead process of this machine": ({**Process.this().labels(), "rhumb.started": 1}, True),
}


@pytest.mark.parametrize("sight", SIGHTS)
def test_only_runs_whose_process_is_known_to_be_dead_are_ended(sight: str, client: SyncPrefectClient) -> None:
    labels, dead = SIGHTS[sight]
    run, own = (new_run(client, "/held") for _ in range(2))
    client.update_flow_run_labels(run.id, dict(labels))
    stale.end_stale_runs(client, "/held", own.id, lock="/held")
    assert client.read_flow_run(run.id).state_type == ("CRASHED" if dead else "RUNNING")
    assert client.read_flow_run(own.id).state_type == "RUNNING"
    for left in (run, own):
        client.delete_flow_run(left.id)


def test_a_server_that_was_away_is_told_later_that_a_run_holds_its_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    now = [0.0]

    def hold(run: object, lock: str) -> None:
        told.append(lock)
        if len(told) == 1:
            raise ConnectionError("away")

    monkeypatch.setattr(jobs, "_run_id", lambda: None)
    monkeypatch.setattr(jobs, "_end_stale_runs", lambda place, lock: None)
    monkeypatch.setattr(stale, "hold", hold)
    progress = Progress(None, "/held-2")
    page = jobs.Page("/held", lambda: now[0])
    for now[0] in (0.0, 1.0):  # at the latter it is too soon to try again
        page(progress)
        page.settle()
    assert len(told) == 1
    now[0] = 11.0
    with pytest.raises(ConnectionError):
        page(progress)
    page.settle()
    for now[0] in (22.0, 100.0):
        page(progress)
    page.settle()
    assert told == ["/held-2"] * 2
    assert len(progress.watchers) == 1


def new_run(client: SyncPrefectClient, place: str) -> FlowRun:
    """A run that looks busy with the catalog at a place."""
    from flows.orchestration.jobs import index

    return client.create_flow_run(
        index, parameters={"catalog": place}, tags=[stale.TAG, stale.tag_of(place)], state=Running()
    )
