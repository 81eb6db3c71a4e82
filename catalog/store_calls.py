"""Calls to a distant store: bounded in time, their errors made clear: what may pass, and what people must mend."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TypeVar

from catalog import secrecy
from catalog.fs import FULL_DISK
from pipeline.errors import CatalogError, InputError, RhumbError

Result = TypeVar("Result")

_PASSING_NUMBERS = frozenset(
    {errno.EBUSY, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.EPIPE, errno.EAGAIN,
     errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ECONNABORTED}
)  # fmt: skip
# Classes of packages that need not be installed, by name: botocore, aiohttp, urllib3, google-auth, azure-core.
_PASSING_NAMES = frozenset(
    {"EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError", "HTTPClientError",
     "ProxyConnectionError", "ResponseStreamingError", "IncompleteReadError", "ClientConnectionError",
     "ClientPayloadError", "ServerDisconnectedError", "IncompleteRead", "ProtocolError", "TransportError",
     "ServiceRequestError", "ServiceResponseError", "gaierror"}
)  # fmt: skip
_PASSING_CODES = frozenset({"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling",
                            "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException",
                            "ConditionalRequestConflict", "OperationAborted"})  # fmt: skip
_DENIED_NAMES = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
     "UnauthorizedSSOTokenError", "SSOTokenLoadError", "ProfileNotFound", "DefaultCredentialsError", "RefreshError",
     "ClientAuthenticationError"}
)  # fmt: skip
_DENIED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired",
                           "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"})  # fmt: skip


class StoreError(RhumbError, ConnectionError):
    """A store that could not be reached, was too slow or too busy: trying again later may do."""


def bounded(call: Callable[[], Result], seconds: float) -> Result:
    """What `call` returns or raises. Raises TimeoutError after `seconds`; the call is then left to itself.

    Cost: a thread. It is a daemon, since one that stalls for ever must not keep the process.
    """
    done: list[Result] = []
    wrong: list[BaseException] = []

    def run() -> None:
        try:
            done.append(call())
        except BaseException as error:
            wrong.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if wrong:
        raise wrong[0]
    if not done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return done[0]


def clear_error(place: str, error: Exception) -> Exception:
    """The clear form of what fsspec or what is beneath it raised, without secrets; `place` must not have any.

    StoreError for what may pass; InputError for what a person must mend in settings; CatalogError for the rest.
    """
    if isinstance(error, RhumbError):
        return error
    codes = {part for one in _chain(error) for part in _codes_of(one)}
    names = {cls.__name__ for one in _chain(error) for cls in type(one).__mro__}
    found = f"{place}: {type(error).__name__} ({without_secrets(str(error))})"
    if "RequestTimeTooSkewed" in codes:
        return InputError("store", f"{found}: a clock that is wrong", "the right time", "Set the clock of this machine")
    if (denied := _denied(error, codes, names)) is not None:
        return InputError(
            "store", f"{found}: {denied}", "credentials that may write",
            "Renew them in the environment and run the same command again; nothing that was committed is lost",
        )  # fmt: skip
    if _passing(error, codes, names):
        return StoreError("store", found, "an answer", "Try again: nothing that was committed is lost")
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return CatalogError("store", f"{place}: no space left", "room for the new files", "Free some space")
    if "NoSuchBucket" in codes:
        return InputError("store", f"{place}: no such bucket", "one that exists")
    return CatalogError("store", found, "a store that can be read and written")


def _denied(error: Exception, codes: set[str], names: set[str]) -> str | None:
    """In what words access was denied; None where it was not."""
    known = codes & (_DENIED_CODES | {"401", "403"}) or names & _DENIED_NAMES
    if known or isinstance(error, PermissionError):
        return "access denied, or credentials missing or expired"
    if "400" in codes and all(code.isdecimal() for code in codes):  # of HEAD, whose answers have no body to say more
        return "a bad request and no reason, which is how S3 refuses credentials missing or expired"
    return None


def _passing(error: Exception, codes: set[str], names: set[str]) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    busy = any(code == "429" or (code.isdecimal() and len(code) == 3 and code[0] == "5") for code in codes)
    passing = codes & _PASSING_CODES or names & _PASSING_NAMES or number in _PASSING_NUMBERS
    return bool(isinstance(error, ConnectionError | TimeoutError) or passing or (busy and "501" not in codes))


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what caused it."""
    found: list[BaseException] = []
    while len(found) < 8:
        found.append(error)
        cause = error.__cause__ or error.__context__
        if cause is None or cause in found:
            break
        error = cause
    return found


def _codes_of(error: BaseException) -> list[str]:
    """Error codes and HTTP status that an error of botocore, aiohttp, gcsfs or azure carries."""
    response = getattr(error, "response", None)
    codes = [getattr(error, name, None) for name in ("status", "status_code", "code")]
    if isinstance(response, dict):
        codes += [response.get("Error", {}).get("Code"), response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
    return [str(code) for code in codes if isinstance(code, str | int)]


def without_secrets(text: str) -> str:
    """`secrecy.without_secrets`, shortened."""
    return secrecy.without_secrets(text)[:200]
