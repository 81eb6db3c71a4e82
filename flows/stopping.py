"""Stopping a run so that nothing done is lost: at the next image, everywhere it is being mined.

The first Ctrl-C or SIGTERM asks for it; a Ctrl-C after that ends the process at once, which a catalog survives as well.
A second SIGTERM does not: one wish comes twice where both a process group and the parent of a run are told to end.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop and did, with everything committed that was done."""


class StopRequest:
    """Whether a run was asked to stop. `on_request` is called once, with nothing, when it is."""

    def __init__(self) -> None:
        self.asked = False
        self.on_request: Callable[[], None] = lambda: None

    def ask(self) -> None:
        """Ask the run to stop."""
        if not self.asked:
            self.asked = True
            self.on_request()


@contextmanager
def stop_on_signals(request: StopRequest, tell: Callable[[str], None]) -> Iterator[None]:
    """Ask for a stop on a SIGINT or SIGTERM within the block; a SIGINT once asked is a KeyboardInterrupt.

    Only the main thread hears signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former: dict[signal.Signals, Any] = {}

    def hear(number: int, frame: FrameType | None) -> None:
        if not request.asked:
            tell("stopping after the images that are being mined; Ctrl-C to stop at once")
            request.ask()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    try:
        for number in SIGNALS:
            former[number] = signal.signal(number, hear)
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def leave_stopping_to_the_parent() -> None:
    """Let this process, a worker, go on at SIGINT and SIGTERM: they reach the whole group, and its parent, which hears
    them too, has what is in hand finished. A worker ends by the word of its parent, or by SIGKILL."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
