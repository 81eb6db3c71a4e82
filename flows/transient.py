"""Errors that may pass by themselves, by name, and how long to wait for that. Nothing else is ever tried again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

TRIES = 4  # of one call, the first included
LONG = 9  # of one on which hours of work hang: four minutes
FIRST_WAIT = 1.0  # seconds; doubled each time
_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})  # of HTTP: "later", in the server's own words
_NAMES = frozenset({
    # Of clients that are not imported for this, or a base of theirs: httpx and httpx2 (huggingface_hub), botocore,
    # aiohttp, requests.
    "TransportError", "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError",
    "ClientConnectionError", "ClientPayloadError", "ConnectionError", "Timeout", "IncompleteRead",
})  # fmt: skip
_WANTED = "OfflineModeIsEnabled"  # of huggingface_hub: a ConnectionError that its user has asked for


def is_transient(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, is a lost connection, a time-out, or a server that says "later"."""
    chain = list(_causes(error))
    return any(_passes(one) for one in chain) and all(type(one).__name__ != _WANTED for one in chain)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__


def _passes(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if any(cls.__name__ in _NAMES for cls in type(error).__mro__):
        return True
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(status, int) and status in _STATUSES


def patiently(call: Callable[[], T], tries: int = TRIES, wait: float = FIRST_WAIT) -> T:
    """`call()`, tried again after `wait`, 2 `wait`, 4 `wait`... seconds while its error is transient.

    Raises the last error after `tries` calls, and any other at once.
    """
    for number in range(tries - 1):
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
        time.sleep(wait * 2**number)
    return call()
