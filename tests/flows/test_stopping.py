"""A run that is asked to stop: at the next image, with everything committed that was done."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import flows.miner
from catalog.reader import Catalog
from catalog.verify import verify
from flows.stopping import StopRequest, stop_on_signals
from tests.flows import tiny


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Python's own answers to signals, which a shell that started us in the background may have switched off."""
    former = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in former:
        signal.signal(number, handler)


def images(folder: Path) -> int:
    with Catalog.open(folder) as catalog:
        return catalog.images().num_rows


def at_image(patch: pytest.MonkeyPatch, number: int, happen: Callable[[], None]) -> list[int]:
    """Let something happen when an image is being mined, quickly; grows with every image."""
    calls: list[int] = []

    def call(*asked: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            happen()
        return tiny.quick_mine_image(*asked)

    patch.setattr(flows.miner, "mine_image", call)
    return calls


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_after_the_image_in_hand_and_the_rerun_does_only_the_rest(
    number: signal.Signals, world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ("mine", world / "recipe.yaml", "--out", world / "catalog", "--json")
    with monkeypatch.context() as patch:
        calls = at_image(patch, 1, lambda: os.kill(os.getpid(), number))
        assert tiny.run(*command) == 130
    assert (len(calls), images(world / "catalog")) == (1, 1)
    said = capfd.readouterr().err
    assert "stopping after the images that are being mined" in said
    assert "Traceback" not in said
    assert verify(world / "catalog").ok
    assert not (world / "catalog" / ".incoming").exists()
    with monkeypatch.context() as patch:
        calls = at_image(patch, 0, lambda: None)
        assert tiny.run(*command) == 0
    report = tiny.parsed(capfd.readouterr().out)
    assert (len(calls), report["images"], report["already_done"]) == (2, 2, 1)
    assert verify(world / "catalog").ok


def test_a_second_signal_ends_the_command_at_once_and_a_rerun_finishes(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("mine", world / "recipe.yaml", "--out", world / "catalog")

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        calls = at_image(patch, 2, twice)
        assert tiny.run(*command) == 130
    assert len(calls) == 2
    assert images(world / "catalog") == 0  # the chunk in hand was cut short
    with monkeypatch.context() as patch:
        at_image(patch, 0, lambda: None)
        assert tiny.run(*command) == 0
    assert images(world / "catalog") == 3
    assert verify(world / "catalog").ok
    assert not (world / "catalog" / ".incoming").exists()


def test_the_same_wish_told_twice_as_to_a_group_and_by_a_parent_still_finishes_what_is_in_hand() -> None:
    request, told = StopRequest(), list[str]()
    with stop_on_signals(request, told.append):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert (request.asked, len(told)) == (True, 1)


def test_who_is_told_of_a_stop_is_told_once() -> None:
    told: list[int] = []
    request = StopRequest()
    request.on_request = lambda: told.append(1)
    assert not request.asked
    request.ask()
    request.ask()
    assert (request.asked, told) == (True, [1])


def test_signals_are_answered_as_before_once_the_run_is_over() -> None:
    with stop_on_signals(StopRequest(), lambda text: None):
        pass
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_run_in_another_thread_leaves_signals_to_the_main_one() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def run() -> None:
        with stop_on_signals(StopRequest(), lambda text: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
