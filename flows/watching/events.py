"""Structured logs: one JSON object a line, through the standard logging under the logger "rhumb".

Whoever listens to that logger sees the same events, Prefect among them: `PREFECT_LOGGING_EXTRA_LOGGERS=rhumb`, or
`flows.watching.artifacts.logged` within a flow run.

A log file is appended to and never made smaller here: rotating it is left to logrotate and its like. It is opened when
a run begins and a line is one write, so that copying and truncating (`copytruncate`) serves a run that goes on, and
renaming serves the next one.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from catalog.secrecy import without_secrets
from pipeline.errors import InputError

LOGGER = logging.getLogger("rhumb")
LOGGER.addHandler(logging.NullHandler())  # nobody listens unless asked to: the terminal has a view of its own
_LONGEST = 2000  # characters of a value


def event(name: str, /, level: int = logging.INFO, **fields: Any) -> None:
    """Log that something happened: `name` of few words, and plain values about it."""
    if not LOGGER.isEnabledFor(level):
        return
    told = {key: _plain(value) for key, value in fields.items() if value is not None}
    words = ", ".join(f"{key} {value}" for key, value in told.items())
    message = f"{name}: {words}" if words else name
    LOGGER.log(level, "%s", message, extra={"rhumb_event": name, "rhumb_fields": told})


def _plain(value: Any) -> Any:
    """A value as JSON, without secrets, and not endless."""
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key)[:200]: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return without_secrets(str(value))[:_LONGEST]


class JsonLines(logging.Handler):
    """Appends a line for each record, in one write, so that several processes may share a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)
        self._path, self._complained = path, False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a log that cannot be written is told once and stops nothing."""
        try:
            os.write(self._descriptor, line_of(record))
        except (OSError, ValueError) as error:
            if not self._complained:
                self._complained = True
                sys.stderr.write(f"the log {self._path} cannot be written: {error}\n")

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()


def line_of(record: logging.LogRecord) -> bytes:
    """A record as one line of JSON: time, level, event, then its fields."""
    fields = dict(getattr(record, "rhumb_fields", {}))
    name = getattr(record, "rhumb_event", None)
    if name is None:
        name, fields = "message", {"text": _plain(record.getMessage())}
    if record.exc_info is not None and record.exc_info[0] is not None:
        fields["error"] = _plain(f"{record.exc_info[0].__name__}: {record.exc_info[1]}")
    when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    head = {"time": when, "level": record.levelname.lower(), "event": name, "process": record.process}
    line = json.dumps({**fields, **head} if head.keys() & fields.keys() else {**head, **fields}, allow_nan=False)
    return line.encode() + b"\n"  # ASCII: a name of odd characters stays one line


@contextmanager
def log_to(path: Path | None) -> Iterator[None]:
    """Append events to a file while the block runs; None is no file. Raises InputError where it cannot be opened."""
    if path is None:
        yield
        return
    try:
        handler = JsonLines(path)
    except OSError as error:
        raise InputError(
            "--log", f"{path} ({error.strerror})", "a file that can be written", "Choose another"
        ) from error
    try:
        with heard_by(handler):
            yield
    finally:
        handler.close()


@contextmanager
def heard_by(handler: logging.Handler) -> Iterator[None]:
    """Give events of level INFO and above to a handler while the block runs; closing it is the caller's."""
    former = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(min(former or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(former)
