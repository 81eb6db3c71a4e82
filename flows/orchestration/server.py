"""The Prefect server that commands and flows talk to: found, of a version that fits, with the work pool that is asked
for. What is wrong with it is one clear error, which never holds a credential."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import httpx
import prefect
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from pipeline.errors import InputError, NotFoundError

DEFAULT_URL = "http://127.0.0.1:4200/api"  # where `rhumb up` serves unless told otherwise
POOL = "rhumb"
FIELD = "Prefect server"
_START = "Start one with `rhumb up`, or set PREFECT_API_URL to the one you have"


def plain_url(url: str) -> str:
    """A URL without user, password, query and fragment."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


@contextmanager
def client_of_server() -> Iterator[SyncPrefectClient]:
    """A client of the server at PREFECT_API_URL, by default the one that `rhumb up` starts.

    Raises:
        InputError: none answers, or it is of another version, or it refuses the credentials.
    """
    url = get_current_settings().api.url or DEFAULT_URL
    with temporary_settings({PREFECT_API_URL: url}), clear_errors(url), get_client(sync_client=True) as client:
        check_version(_version(client, url), url)
        yield client


@contextmanager
def clear_errors(url: str) -> Iterator[None]:
    """Turn what goes wrong between here and the server into one clear error."""
    try:
        yield
    except (httpx.HTTPStatusError, PrefectHTTPStatusError) as error:
        raise _refused(error.response, url) from None
    except httpx.HTTPError as error:
        found = f"none that answers at {plain_url(url)} ({type(error).__name__})"
        raise InputError(FIELD, found, "one that answers", _START) from None


def _refused(response: httpx.Response, url: str) -> InputError:
    code = response.status_code
    if code in (401, 403):
        return InputError(
            FIELD, f"credentials that {plain_url(url)} refuses (HTTP {code})", "credentials that are valid",
            "Renew PREFECT_API_KEY or PREFECT_API_AUTH_STRING in the environment",
        )  # fmt: skip
    return InputError(FIELD, f"HTTP {code} from {plain_url(url)}", "a Prefect server that works", _START)


def _version(client: SyncPrefectClient, url: str) -> str:
    response = client._client.get("/admin/version")
    if response.status_code != 200:
        raise _refused(response, url)
    try:
        return str(response.json())
    except ValueError:
        found = f"something else at {plain_url(url)}"
        raise InputError(FIELD, found, "a Prefect server", _START) from None


def check_version(found: str, url: str) -> None:
    """Raise InputError for a server of another major version than the client, or an older one."""
    own = prefect.__version__
    if _numbers(found)[:1] != _numbers(own)[:1] or _numbers(found) < _numbers(own):
        raise InputError(
            FIELD, f"version {found} at {plain_url(url)}", f"version {own}, or a later one of the same major version",
            f"Install prefect=={own} where the server runs and start it again",
        )  # fmt: skip


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:3]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)


def check_pool(client: SyncPrefectClient, pool: str) -> None:
    """Raise NotFoundError naming the server's work pools where `pool` is none of them."""
    try:
        client.read_work_pool(pool)
    except ObjectNotFound:
        names = ", ".join(sorted(found.name for found in client.read_work_pools())) or "none at all"
        raise NotFoundError(
            "--pool", f"{pool}, which is no work pool of the server", f"one of its pools ({names})",
            f"`rhumb up --pool {pool}` makes it and starts a worker of it",
        ) from None  # fmt: skip


def reach_server() -> None:
    """Find the server at PREFECT_API_URL, or start an embedded one where that is not set.

    Raises:
        InputError: as `client_of_server`; or the embedded one did not come up.
    """
    if get_current_settings().api.url is not None:
        with client_of_server():
            return
    try:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
    except (httpx.HTTPError, RuntimeError) as error:
        problem = error
    if problem is not None:
        raise InputError(
            FIELD, f"no embedded one ({type(problem).__name__})", "one that answers",
            f"Run it again (the first start fills a database). {_START}",
        ) from problem  # fmt: skip
