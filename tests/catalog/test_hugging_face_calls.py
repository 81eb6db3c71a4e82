"""Errors of the Hub's client become clear ones, without secrets; nothing is waited for without end."""

from __future__ import annotations

import errno
import os
import time
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from catalog.hub import hugging_face_calls as calls
from catalog.hub.hugging_face_calls import StaleError, clear_error, harmless, patiently
from catalog.store_calls import StoreError
from pipeline.errors import CatalogError, ConflictError, InputError, NotFoundError

SECRET = "hf_" + "topsecret" * 3


def answer(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError, **headers: str) -> HfHubHTTPError:
    request = httpx2.Request("PUT", f"https://store.example/a?X-Signature={SECRET}")
    response = httpx2.Response(status, headers=headers, request=request)
    told = f"{status} for https://store.example/a?X-Signature={SECRET} with Bearer {SECRET}"
    return kind(told, response=response, server_message=f"no: token {SECRET}\n\x1b[2J is bad")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InputError), (401, InputError), (403, InputError), (404, NotFoundError), (409, ConflictError),
     (412, StaleError), (418, CatalogError), (429, StoreError), (500, StoreError), (503, StoreError)],
)  # fmt: skip
def test_an_answer_becomes_one_clear_line_without_secrets(status: int, kind: type[Exception]) -> None:
    clear = clear_error("org/pack", RuntimeError(f"Error while uploading with {SECRET}"))
    assert SECRET not in str(clear)
    wrapped = RuntimeError(f"Error while uploading to https://x/?token={SECRET}")
    wrapped.__cause__ = answer(status)
    for error in (wrapped, answer(status)):
        clear = clear_error("org/pack", error)
        assert type(clear) is kind
        assert "org/pack" in str(clear)
        assert not any(bad in str(clear) for bad in (SECRET, "Signature", "\n", "\x1b"))


def test_what_may_pass_is_told_from_what_may_not() -> None:
    for error in (httpx2.ConnectError("refused"), httpx2.ReadTimeout("slow"), TimeoutError("stalled")):
        assert isinstance(clear_error("org/pack", error), StoreError)
    assert isinstance(clear_error("org/pack", OSError("Consistency check failed")), StoreError)
    assert isinstance(clear_error("org/pack", LocalEntryNotFoundError("not cached")), StoreError)
    full = clear_error("org/pack", OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(full, CatalogError)
    assert "no space left" in str(full)
    for number in (errno.EACCES, errno.EPERM, errno.EROFS):
        unwritable = clear_error("org/pack", OSError(number, os.strerror(number), "/cache/hub"))
        assert isinstance(unwritable, InputError)
        assert "/cache/hub" in str(unwritable) and "HF_HOME" in str(unwritable)
    assert isinstance(clear_error("org/pack", answer(404, RepositoryNotFoundError)), NotFoundError)
    assert isinstance(clear_error("org/pack", ValueError("Invalid metadata in README.md.")), InputError)


def test_the_token_of_the_environment_is_taken_out_whatever_it_looks_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "plain-password")
    assert "plain-password" not in harmless("refused plain-password for http://me:pw@hub/x")
    assert "me:pw" not in harmless("refused plain-password for http://me:pw@hub/x")


def test_a_call_that_stalls_or_fails_for_ever_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_SHORT", 0.05)
    monkeypatch.setattr(calls, "_PAUSE", 0.01)
    with pytest.raises(StoreError, match="no answer within"):
        patiently("org/pack", lambda: time.sleep(0.5), 0.0)
    tried: list[float] = []

    def fail(error: Exception) -> Any:
        tried.append(time.monotonic())
        raise error

    with pytest.raises(StoreError, match="HTTP 503"):
        patiently("org/pack", lambda: fail(answer(503)), 0.1)
    assert 2 <= len(tried) <= 6
    assert tried[-1] - tried[0] <= 0.2
    tried.clear()
    with pytest.raises(StoreError, match="HTTP 429"):
        patiently("org/pack", lambda: fail(answer(429, **{"Retry-After": "3600"})))
    with pytest.raises(InputError, match="HTTP 401"):
        patiently("org/pack", lambda: fail(answer(401)))
    assert len(tried) == 2


def test_a_server_that_says_when_to_come_again_is_believed() -> None:
    answers: list[Exception] = [answer(429, **{"Retry-After": "1"})]
    begun = time.monotonic()

    def call() -> str:
        if answers:
            raise answers.pop()
        return "done"

    assert patiently("org/pack", call, 0.0) == "done"
    assert time.monotonic() - begun >= 1
