"""Stopping a run so that nothing done is lost: at the next image, everywhere it is being mined.

The first Ctrl-C or SIGTERM asks for it; a second one ends the process at once, which a catalog survives as well.
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
    """Ask for a stop on the first SIGINT or SIGTERM within the block. Only the main thread hears signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former: dict[signal.Signals, Any] = {}

    def hear(number: int, frame: FrameType | None) -> None:
        if request.asked:
            raise KeyboardInterrupt
        tell("stopping after the images that are being mined; again to stop at once")
        request.ask()

    try:
        for number in SIGNALS:
            former[number] = signal.signal(number, hear)
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
