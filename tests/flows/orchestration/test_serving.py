"""`rhumb up`: what keeps running, what is refused, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from catalog.verify import verify
from flows.orchestration.processes import children
from flows.orchestration.serving import Child, Service, Serving, answers, check_port, database_name, database_url
from pipeline.errors import InputError
from tests.flows import tiny
from tests.flows.orchestration.served import (
    MANY,
    Served,
    beginning,
    deployed,
    environment,
    serve,
    slowly,
    started,
    until,
)
from tests.flows.test_resume import images


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield int(listener.getsockname()[1])


def test_a_port_in_use_is_told_before_anything_is_started(taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.run("up", "--port", taken) == 2
    said = capsys.readouterr().err
    assert f"rhumb up: --port: found {taken}, which is in use" in said
    assert tiny.run("up", "--port", 0) == 2
    assert tiny.run("up", "--workers", 0) == 2
    assert "--workers: found 0" in capsys.readouterr().err


def test_a_port_of_another_prefect_server_is_told_with_the_way_to_use_that(served: Served) -> None:
    port = int(served.url.split(":")[2].split("/")[0])
    with pytest.raises(InputError, match=rf"a Prefect server .*PREFECT_API_URL={served.url}"):
        check_port(Serving(port=port))


def test_a_host_that_is_not_of_this_machine_is_refused() -> None:
    with pytest.raises(InputError, match="--host"):
        check_port(Serving(host="no such host"))


def test_a_database_gets_the_driver_it_needs_and_its_password_is_never_shown(tmp_path: Path) -> None:
    url = "postgresql://rhumb:secret@db.example/prefect"
    assert database_url(url) == "postgresql+asyncpg://rhumb:secret@db.example/prefect"
    assert database_url("sqlite:////a/b.db") == "sqlite+aiosqlite:////a/b.db"
    environment = Serving(database=url).environment()
    assert database_name(environment) == "postgresql://db.example/prefect"
    service = Service(Serving(database=url), print)
    assert not any("secret" in word for child in (service.server, service.worker) for word in child.command)
    assert "secret" not in repr(Serving(database=url))
    for wrong in ("mysql://u:secret@h/d", "secret", "postgresql://"):
        with pytest.raises(InputError, match="--database") as caught:
            database_url(wrong)
        assert "secret" not in str(caught.value)


def test_the_environment_names_the_database_by_either_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://u:secret@h/d")
    assert database_name(Serving().environment()) == "postgresql://h/d"


def child(tmp_path: Path, code: str) -> Child:
    return Child("server", [sys.executable, "-c", code], os.environ, tmp_path / "log")


def test_a_child_that_dies_is_started_again_and_one_that_dies_at_once_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.orchestration.serving._LONGEST_WAIT", 0.01)
    told: list[str] = []
    one = child(tmp_path, "print('no database'); raise SystemExit(3)")
    one.start()
    with pytest.raises(InputError, match=r"ended 6 times in a row \(no database\)"):
        until(lambda: one.watch(told.append), 60)
    assert told == ["the server ended (exit code 3); starting it again"] * 5


def test_a_child_ends_when_it_is_told_to_and_one_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    one = child(tmp_path, deaf)
    one.start()
    until(lambda: "up" in one.last_words())
    assert one.process is not None
    one.stop(0.2)
    assert one.process.poll() == -signal.SIGKILL


def test_last_words_that_hold_an_address_are_not_repeated(tmp_path: Path) -> None:
    one = child(tmp_path, "")
    one.log.write_text("fine\ncannot connect to postgresql://u:secret@h/d\n")
    assert one.last_words() == "see its log"


def test_a_run_outlives_a_killed_server_and_the_end_stops_it_and_leaves_nothing_behind(
    tmp_path: Path, place: Path
) -> None:
    slowly(place)
    home = tmp_path / "home"
    home.mkdir()
    with serve(home, "--pool", "own") as up:
        assert httpx.get(f"{up.url}/work_pools/own", trust_env=False).json()["type"] == "process"
        with temporary_settings({PREFECT_API_URL: up.url}), get_client(sync_client=True) as client:
            run = started(client, deployed(place, "--pool", "own"), "refresh")
            beginning(place)
            first = up.child("server")
            os.kill(first, signal.SIGKILL)
            until(lambda: not answers(up.url) and not Path(f"/proc/{first}").exists())
            until(lambda: answers(up.url))
            assert up.child("server") != first
            assert client.read_flow_run(run).state_type == "RUNNING"
        left = children(up.process.pid) | children(up.child("worker"))
        assert len(left) == 3
    assert up.process.returncode == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    said = (home / "up.log").read_text()
    assert "the server ended (exit code -9); starting it again" in said
    assert said.strip().endswith("server and worker ended; what was committed is kept")
    assert "Finished in state Cancelled('stopped; what was committed is kept" in up.worker_log
    assert verify(place / "catalog").ok
    assert 0 < images(place / "catalog") < MANY


PARENT = """
import os, sys, time
from pathlib import Path
from flows.orchestration.serving import Child, Service, Serving, answers, check_port, database_name, database_url
child = Child("server", [sys.executable, "-c", "import time; time.sleep(60)"], os.environ, Path(sys.argv[1]))
child.start()
print(child.process.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_service_takes_its_children_along(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(tmp_path)) as parent:
        assert parent.stdout is not None
        left = Path(f"/proc/{int(parent.stdout.readline())}")
        assert left.exists()
        parent.kill()
        until(lambda: not left.exists())
