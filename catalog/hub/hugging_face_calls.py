"""Calls of the Hugging Face Hub's client: patience with what may pass, and clear errors without secrets.

The client waits and tries again by itself where it uploads, downloads and lists; not where it commits, tags or looks at
references.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from catalog.fs import disk_error
from catalog.hub.cache import READ_ONLY
from catalog.hub.cards import plain
from catalog.secrecy import guard_logs
from catalog.store_calls import StoreError, bounded, without_secrets
from pipeline.errors import CatalogError, ConflictError, InputError, NotFoundError, RhumbError

PATIENCE = 60.0  # seconds after which a call that failed is not tried again
_SHORT = 60.0  # seconds that a call may take which carries no file
_PAUSE, _LONGEST_PAUSE = 1.0, 8.0
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{6,}|(?i:bearer\s+)\S+")
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_LOG_IN = "Log in with `hf auth login`, or renew HF_TOKEN in the environment"
Result = TypeVar("Result")

guard_logs()


class UnreachableError(StoreError):
    """No connection to the Hub can be made."""


class StaleError(ConflictError):
    """Somebody committed since the head of a branch was looked at."""


def patiently(what: str, call: Callable[[], Result], patience: float | None = None) -> Result:
    """`call()`, tried again where that may help until `patience` seconds (None: PATIENCE) have passed.

    `what` is the repository, for errors. A server that says when to come again is believed, for up to PATIENCE. Raises
    what `clear_error` makes of its errors.
    """
    begun, pause = time.monotonic(), _PAUSE
    while True:
        try:
            return bounded(call, _SHORT)
        except Exception as error:
            clear, asked = clear_error(what, error), asked_pause(error)
        wait = asked or pause
        allowed = PATIENCE if asked or patience is None else min(patience, PATIENCE)
        if not isinstance(clear, StoreError) or time.monotonic() - begun + wait > allowed:
            raise clear
        time.sleep(wait)
        pause = min(2 * pause, _LONGEST_PAUSE)


def asked_pause(error: BaseException) -> float:
    """Seconds after which the server wants to be asked again; 0 where it did not say."""
    answer = _answer_of(error)
    told = str(answer.response.headers.get("Retry-After", "")).strip() if answer is not None else ""
    return float(told) if told.isdecimal() else 0.0


def _answer_of(error: BaseException) -> HfHubHTTPError | None:
    """The answer of the Hub that an error is about; None where there was none."""
    return next((one for one in _chain(error) if isinstance(one, HfHubHTTPError)), None)


def clear_error(what: str, error: BaseException) -> Exception:
    """The clear form of what the client raised: StoreError for what may pass, InputError for what people must mend."""
    answer = _answer_of(error)
    if answer is not None and answer.response.status_code == 400:  # what the client says of it is clearer
        return InputError(what, harmless(str(error)), "what the Hub accepts")
    for one in _chain(error):
        clear = _clear(what, one)
        if clear is not None:
            return clear
    if isinstance(error, EntryNotFoundError):
        return StoreError(what, "a file that is not in the client's cache", "the Hub to be reached", "Try again")
    if isinstance(error, OSError) and error.errno in READ_ONLY:
        expected = "a cache of the Hub's client that may be written to"
        return InputError(what, harmless(str(error)), expected, "Set HF_HOME to such a folder")
    if isinstance(error, OSError):  # a file that ended too soon, after the client's own attempts
        return StoreError(what, harmless(str(error)), "a whole answer", "Try again: what was done is not lost")
    if isinstance(error, ValueError):
        return InputError(what, harmless(str(error)), "what the Hub accepts")
    return CatalogError(what, f"{type(error).__name__} ({harmless(str(error))})", "an answer of the Hub")


def _clear(what: str, error: BaseException) -> Exception | None:
    if isinstance(error, RhumbError):
        return error
    if isinstance(error, HfHubHTTPError):
        return _answered(what, error)
    if isinstance(error, OfflineModeIsEnabled):
        found = "HF_HUB_OFFLINE, and something that is not in the client's cache"
        return InputError(what, found, "the Hub to be reached", "Unset HF_HUB_OFFLINE, or use a version that is cached")
    if isinstance(error, httpx2.HTTPError | TimeoutError):
        found = f"no connection to {endpoint()} ({type(error).__name__}: {harmless(str(error))})"
        kind = UnreachableError if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout) else StoreError
        return kind(what, found, "an answer of the Hub", "Try again: what was done is not lost")
    return disk_error(Path(constants.HF_HUB_CACHE), error) if isinstance(error, OSError) else None


def _answered(what: str, error: HfHubHTTPError) -> Exception:
    status = error.response.status_code
    said = harmless(error.server_message or "")
    found = f"HTTP {status} from {endpoint()}" + (f" ({said})" if said else "")
    if isinstance(error, GatedRepoError):
        page = f"{endpoint()}/datasets/{what}"
        return InputError(what, "a gated repository", "access that was granted", f"Ask for it at {page}")
    if status == 401:
        return InputError(
            what, f"{found}: the token has expired or is missing, or there is no such repository",
            "a token that is accepted", _LOG_IN,
        )  # fmt: skip
    if status == 403:
        return InputError(what, f"{found}: the token does not allow this", "a token that does", _LOG_IN)
    if isinstance(error, RepositoryNotFoundError):
        return NotFoundError(what, f"no such data set at {endpoint()}, or a private one", "one that the token may see")
    if status == 404 or isinstance(error, RevisionNotFoundError | EntryNotFoundError):
        return NotFoundError(what, found, "a version and a file that are there")
    if status == 409:
        return ConflictError(what, found, "something new")
    if status == 412:
        found = "a commit that somebody made meanwhile"
        return StaleError(what, found, "the head as it was", "Run the same command again")
    if status in _BUSY:
        return StoreError(what, found, "an answer", "Try again later: what was sent is not lost")
    return CatalogError(what, found, "an answer of the Hub to what was asked")


def harmless(text: str) -> str:
    """`text` on one line, shortened, without tokens, and without queries of URLs, which may be signed."""
    token = os.environ.get("HF_TOKEN", "").strip()
    return plain(without_secrets(_TOKEN.sub("...", text.replace(token, "...") if token else text)))


def endpoint() -> str:
    """Address of the Hub, without credentials."""
    return without_secrets(constants.ENDPOINT)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it."""
    for _ in range(8):
        yield error
        cause = error.__cause__ or error.__context__
        if cause is None:
            return
        error = cause
