"""Limits on how long one image may take, in whatever thread it is mined: its own, and that of a run that is to stop."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GRACE = 15.0  # seconds that an image may still take once a stop was asked: Prefect kills after 30
POLL = 2.0  # seconds between two looks at whether it was


class TookTooLongError(RuntimeError):
    """Work that was ended because it had taken longer than it may."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"longer than the {seconds:g} s it may take")


class BrokenOffError(Exception):
    """Work that was ended because the run was asked to stop: no failure of its own."""


class _Over(BaseException):
    """What ends the work; no error of its own, so that no `except Exception` on the way takes it for one."""


class _End:
    """Ends the work of a thread, once at most, and never after it is over."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.reason: Exception | None = None
        self._thread = ctypes.c_ulong(threading.get_ident())
        self._lock = threading.Lock()

    def end(self, reason: Exception) -> None:
        """Have the work's thread raise _Over. From any thread."""
        with self._lock:
            if self.reason is None and not self.over.is_set():
                self.reason = reason
                ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, ctypes.py_object(_Over))

    def close(self) -> None:
        """The work is over: what has not arrived by now must not arrive outside the block."""
        with self._lock:
            self.over.set()
            if self.reason is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, None)

    def end_soon_after(self, asked: Callable[[], bool]) -> None:
        """Wait until the run is asked to stop, and some seconds more."""
        while not self.over.wait(POLL):
            if _quietly(asked):
                if not self.over.wait(GRACE):
                    self.end(BrokenOffError("the run was asked to stop"))
                return


def _quietly(asked: Callable[[], bool]) -> bool:
    try:
        return asked()
    except Exception:  # who works asks as well, and hears of it
        return False


@contextmanager
def limited(seconds: float | None, stopping: Callable[[], bool] | None = None) -> Iterator[None]:
    """Raise TookTooLongError in this thread once the block has taken `seconds`, None being no limit; and BrokenOffError
    once `stopping` has said for `GRACE` seconds that the run is to stop.

    Python raises it between two of its own steps: a call into C, such as one product, is finished first. Not to be
    nested. Cost: a thread for each limit.
    """
    if seconds is None and stopping is None:
        yield
        return
    end = _End()
    timer = threading.Timer(seconds or 0.0, lambda: end.end(TookTooLongError(seconds or 0.0)))
    timer.daemon = True
    try:
        try:
            if seconds is not None:
                timer.start()
            if stopping is not None:
                threading.Thread(target=end.end_soon_after, args=(stopping,), daemon=True).start()
            yield
        finally:
            end.close()
            timer.cancel()
    except _Over:
        raise end.reason or BrokenOffError() from None
