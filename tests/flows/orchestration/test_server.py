"""A server that is away, of another version, refuses credentials or lacks the pool: one clear error each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import prefect
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.orchestration.server import check_pool, check_version, client_of_server, plain_url, reach_server
from pipeline.errors import InputError, NotFoundError
from tests.flows import tiny
from tests.flows.orchestration.served import free_port

Answer = tuple[int, bytes]


@contextmanager
def impostor(answer: Answer) -> Iterator[str]:
    """A server on loopback that answers everything alike; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer[0])
            self.end_headers()
            self.wfile.write(answer[1])

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def complaint(url: str, call: Callable[[], object]) -> str:
    with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}), pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_a_server_that_does_not_answer_is_told_without_its_password_and_with_what_to_do() -> None:
    said = complaint(f"http://user:secret@127.0.0.1:{free_port()}/api", reach_server)
    assert said.startswith("Prefect server: found none that answers at http://127.0.0.1:")
    assert "rhumb up" in said
    assert "secret" not in said


OTHERS = {
    "another major version": ((200, b'"2.20.1"'), "version 2.20.1"),
    "an older one": ((200, b'"3.0.0"'), "version 3.0.0"),
    "refused credentials": ((401, b"no"), "credentials"),
    "no Prefect server": ((200, b"<html>"), "something else"),
    "a broken server": ((500, b"sorry"), "HTTP 500"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_server_that_does_not_fit_is_one_clear_error(what: str) -> None:
    answer, expected = OTHERS[what]
    with impostor(answer) as url:
        said = complaint(url, reach_server)
    assert expected in said
    assert said.startswith("Prefect server: found ")


def test_a_later_server_of_the_same_major_version_will_do() -> None:
    check_version(prefect.__version__, "http://h/api")
    check_version(f"{prefect.__version__.split('.')[0]}.999.0+local", "http://h/api")


def test_a_real_server_is_reached_and_a_missing_pool_names_those_there_are(client: SyncPrefectClient) -> None:
    reach_server()
    with client_of_server() as found:
        check_pool(found, "rhumb")
        with pytest.raises(NotFoundError, match=r"--pool: found abyss.*\(rhumb\).*rhumb up --pool abyss"):
            check_pool(found, "abyss")


def test_nothing_is_deployed_without_a_server(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        assert tiny.run("deploy", world / "recipe.yaml", "--out", world / "catalog") == 2
    assert "rhumb deploy: Prefect server: found none" in capsys.readouterr().err
    assert not (world / "catalog").exists()


@pytest.mark.parametrize("url", ["https://a:b@h:1/api?x=1#y", "https://h:1/api"])
def test_an_address_is_shown_without_user_password_and_query(url: str) -> None:
    assert plain_url(url) == "https://h:1/api"
