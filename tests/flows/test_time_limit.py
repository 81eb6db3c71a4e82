"""A limit on one image's time: it ends the block, only the block, and in whatever thread it runs."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest

import flows.time_limit
from flows.time_limit import BrokenOffError, TookTooLongError, limited


def busy(seconds: float) -> None:
    """Python steps for so long, as mining makes between its products."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.001)


def test_work_that_takes_too_long_is_ended_and_says_how_long_it_may_take() -> None:
    begun = time.monotonic()
    with pytest.raises(TookTooLongError, match="longer than the 0.05 s it may take"), limited(0.05):
        busy(20)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("seconds", [None, 30.0])
def test_work_within_its_time_is_left_alone(seconds: float | None) -> None:
    with limited(seconds):
        busy(0.01)
    with pytest.raises(KeyError), limited(seconds):
        raise KeyError("its own error")


def test_nothing_arrives_after_the_block_however_near_the_limit_it_ended() -> None:
    ended = 0
    for number in range(60):
        try:
            with limited(0.004):
                busy(0.0035 + 0.00002 * number)
        except TookTooLongError:
            ended += 1
        busy(0.003)  # where one that was late would arrive
    assert threading.active_count() < 30
    assert 0 <= ended <= 60


def test_a_limit_reaches_the_thread_that_works_and_no_other() -> None:
    outcome: list[str] = []

    def work() -> None:
        try:
            with limited(0.05):
                busy(20)
        except TookTooLongError:
            outcome.append("ended")

    thread = threading.Thread(target=work)
    thread.start()
    busy(0.2)
    thread.join(10)
    assert outcome == ["ended"]


def test_work_that_catches_every_error_of_its_own_is_ended_all_the_same() -> None:
    def stubborn() -> None:
        while True:
            try:
                busy(0.01)
            except Exception:
                continue

    with pytest.raises(TookTooLongError), limited(0.05):
        stubborn()


def test_an_end_that_is_lost_on_the_way_neither_hangs_nor_comes_later() -> None:
    class Swallowing:
        def __del__(self) -> None:
            with suppress(BaseException):
                busy(0.05)

    with limited(0.02):
        swallowing = Swallowing()
        del swallowing
    busy(0.02)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that was asked for is heard of, and has its effect, within a tenth of a second."""
    monkeypatch.setattr(flows.time_limit, "POLL", 0.02)
    monkeypatch.setattr(flows.time_limit, "GRACE", 0.1)


@pytest.mark.parametrize("seconds", [None, 30.0])
def test_work_that_goes_on_long_after_a_stop_was_asked_is_broken_off_which_is_no_failure(
    soon: None, seconds: float | None
) -> None:
    begun = time.monotonic()
    with pytest.raises(BrokenOffError), limited(seconds, lambda: time.monotonic() > begun + 0.1):
        busy(20)
    assert 0.2 <= time.monotonic() - begun < 5
    assert not issubclass(BrokenOffError, RuntimeError)


def test_work_that_ends_soon_after_a_stop_was_asked_is_finished(soon: None) -> None:
    with limited(None, lambda: True):
        busy(0.05)
    busy(0.2)


def test_a_stop_that_nobody_asks_for_or_can_ask_about_ends_nothing(soon: None) -> None:
    def unreachable() -> bool:
        raise ConnectionError

    for stopping in (lambda: False, unreachable):
        with limited(None, stopping):
            busy(0.2)


def test_a_store_that_does_not_answer_does_not_hold_up_the_limit_of_an_image(soon: None) -> None:
    def stalling() -> bool:
        time.sleep(3)
        return False

    begun = time.monotonic()
    with pytest.raises(TookTooLongError), limited(0.2, stalling):
        busy(20)
    assert time.monotonic() - begun < 2
