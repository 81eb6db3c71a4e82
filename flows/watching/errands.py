"""What a run tells others, in a thread beside it: who waits for the one that is told is not the run."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable


class Errand:
    """One thing to be done at a time, in a thread of its own that sees the context variables of who sent it.

    A server that hangs keeps Prefect's client waiting for minutes, through all its retries; a run that told it directly
    would neither go on nor hear that it is to stop.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def send(self, work: Callable[[], None]) -> bool:
        """Have `work` done, unless the former is still under way; whether it will be.

        Raises:
            Exception: what the former work raised; `work` is done all the same.
        """
        if self._thread is not None and self._thread.is_alive():
            return False
        error, self._error = self._error, None
        arguments = (contextvars.copy_context(), work)
        self._thread = threading.Thread(target=self._run, args=arguments, name="rhumb-errand", daemon=True)
        self._thread.start()
        if error is not None:
            raise error
        return True

    def wait(self, seconds: float) -> None:
        """Return once nothing is under way, whatever came of it.

        Raises:
            TimeoutError: something still is.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                raise TimeoutError(f"no answer in {seconds:.0f} s")

    def _run(self, context: contextvars.Context, work: Callable[[], None]) -> None:
        try:
            context.run(work)
        except Exception as error:
            self._error = error
