"""What is tried again, after how long, and what never is."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import SimpleNamespace

import httpx
import httpx2
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

import flows.transient
from catalog.store import StoreError
from flows.transient import is_transient, patiently
from pipeline.errors import InputError

REQUEST = httpx.Request("GET", "https://example.org")


def answered(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("", request=REQUEST, response=httpx.Response(status, request=REQUEST))


def caused(error: BaseException) -> RuntimeError:
    outer = RuntimeError("a model could not be loaded")
    outer.__cause__ = error
    return outer


def of_name(name: str) -> Exception:
    found = type(name, (Exception,), {})("")
    assert isinstance(found, Exception)
    return found


PASSING = [
    ConnectionResetError(errno.ECONNRESET, ""), TimeoutError(), httpx.ReadTimeout("", request=REQUEST), answered(429),
    answered(503), StoreError("store", "busy", "an answer"), of_name("EndpointConnectionError"),
    caused(answered(502)), caused(caused(TimeoutError())),
    httpx2.ConnectError(""), httpx2.PoolTimeout(""), httpx2.RemoteProtocolError(""), caused(httpx2.ReadError("")),
]  # fmt: skip
LASTING = [
    answered(404), answered(401), FileNotFoundError(), OSError(errno.ENOSPC, ""), InputError("x", 1, "2"),
    ValueError("429"), MemoryError(), RuntimeError("out of memory"), KeyboardInterrupt(), PermissionError(),
    OfflineModeIsEnabled(), caused(OfflineModeIsEnabled()), httpx2.InvalidURL(""),
]  # fmt: skip


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_lost_connection_a_time_out_and_a_server_that_says_later_pass(error: BaseException) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_nothing_else_passes(error: BaseException) -> None:
    assert not is_transient(error)


def test_an_error_that_causes_itself_is_looked_at_once() -> None:
    one, two = RuntimeError(), RuntimeError()
    one.__cause__, two.__cause__ = two, one
    assert not is_transient(one)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, in order; nothing is."""
    found: list[float] = []
    monkeypatch.setattr(flows.transient, "time", SimpleNamespace(sleep=found.append))
    return found


def failing(times: int, error: Exception) -> tuple[Callable[[], str], list[int]]:
    """A call that fails so many times first, and what counts its calls."""
    calls: list[int] = []

    def call() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    return call, calls


def test_what_passes_is_tried_again_after_twice_as_long_each_time(waits: list[float]) -> None:
    call, calls = failing(3, TimeoutError())
    assert patiently(call) == "done"
    assert (len(calls), waits) == (4, [1.0, 2.0, 4.0])


def test_in_the_end_the_last_error_is_raised(waits: list[float]) -> None:
    call, calls = failing(9, answered(503))
    with pytest.raises(httpx.HTTPStatusError):
        patiently(call)
    assert (len(calls), waits) == (4, [1.0, 2.0, 4.0])


def test_what_does_not_pass_is_raised_at_once(waits: list[float]) -> None:
    call, calls = failing(1, OSError(errno.ENOSPC, "full"))
    with pytest.raises(OSError, match="full"):
        patiently(call)
    assert (len(calls), waits) == (1, [])
