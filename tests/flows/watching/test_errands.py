"""What a run tells others beside itself."""

from __future__ import annotations

import contextvars
import threading

import pytest

from flows.watching.errands import Errand

HERE = contextvars.ContextVar("HERE", default="nowhere")


def test_one_thing_is_done_at_a_time_and_who_sends_it_waits_for_nothing() -> None:
    errand, go, done = Errand(), threading.Event(), list[str]()

    def slow() -> None:
        assert go.wait(60)
        done.append(HERE.get())

    HERE.set("in the flow")
    assert errand.send(slow)
    assert not errand.send(lambda: done.append("never"))
    with pytest.raises(TimeoutError, match=r"no answer in 0 s"):
        errand.wait(0.01)
    go.set()
    errand.wait(60)
    assert done == ["in the flow"]
    assert errand.send(lambda: done.append("next"))
    errand.wait(60)
    assert done == ["in the flow", "next"]


def test_an_error_is_told_once_with_the_next_errand_which_is_done_all_the_same() -> None:
    errand, done = Errand(), list[str]()

    def broken() -> None:
        raise ConnectionError("away")

    errand.wait(0)  # nothing sent: nothing to wait for
    errand.send(broken)
    errand.wait(60)
    with pytest.raises(ConnectionError, match="away"):
        errand.send(lambda: done.append("done"))
    errand.wait(60)
    assert done == ["done"]
    assert errand.send(lambda: None)
    errand.wait(60)
