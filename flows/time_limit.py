"""A limit on how long one image may take, in whatever thread it is mined."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TookTooLongError(RuntimeError):
    """Work that was ended because it had taken longer than it may."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"longer than the {seconds:g} s it may take")


class _Over(BaseException):
    """What ends the work; no error of its own, so that no `except Exception` on the way takes it for one."""


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raise TookTooLongError in this thread once the block has taken `seconds`; None is no limit.

    Python raises it between two of its own steps: a call into C, such as one product, is finished first.
    """
    if seconds is None:
        yield
        return
    thread = ctypes.c_ulong(threading.get_ident())
    lock, over, fired = threading.Lock(), False, False

    def end() -> None:
        nonlocal fired
        with lock:
            if not over:
                fired = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_Over))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        try:
            yield
        finally:
            with lock:
                over = True
                if fired:  # what has not arrived by now must not arrive outside the block
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)
            timer.cancel()
    except _Over:
        raise TookTooLongError(seconds) from None
