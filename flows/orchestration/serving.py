"""A Prefect server and a worker on one machine, kept running: both are started, watched, started again when they die,
and ended together.

The server listens on loopback unless told otherwise, sends nothing anywhere, and keeps its database in PREFECT_HOME or
in the PostgreSQL it is given. Who holds which concurrency slot is written to disk too: in memory, as is Prefect's
default, a killed server would forget it, and a schedule under a limit would never fire again.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.orchestration import stale
from flows.orchestration.gpus import make_limits
from flows.orchestration.processes import children
from flows.orchestration.server import POOL, client_of_server
from flows.watching.errands import Errand
from pipeline.errors import InputError

DATABASE_SETTINGS = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
HEALTHY_SECONDS = 180.0  # the first start fills a database, on a slow disk a minute's work
SWEEP_SECONDS = 60.0  # between looks for runs of dead processes
STOP_SECONDS = 45.0  # that a run has to stop at its next image, and a process to end
_LASTING_SECONDS = 60.0  # a child that lived so long has started well
_GIVE_UP = 6  # deaths in a row soon after the start
_LONGEST_WAIT = 30.0
_TICK = 0.2
_DRIVERS = {"postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}


@dataclass(frozen=True)
class Serving:
    """What `rhumb up` serves: `host` and `port` of the server, `pool` and how many runs its worker takes at once,
    `database` URL where not the embedded one."""

    host: str = "127.0.0.1"
    port: int = 4200
    workers: int = 1
    database: str | None = field(default=None, repr=False)
    pool: str = POOL

    @property
    def url(self) -> str:
        """Where flows and commands find the server."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/api"

    @property
    def guarded(self) -> bool:
        """Whether only this machine reaches the server, or those who know its password."""
        own = self.host in ("localhost", "::1") or self.host.startswith("127.")
        return own or bool(os.environ.get("PREFECT_SERVER_API_AUTH_STRING"))

    def environment(self) -> dict[str, str]:
        """The settings of both processes. The database's URL goes this way, since arguments can be seen by others."""
        found = {
            **os.environ,
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PYTHONUNBUFFERED": "1",
        }
        found.setdefault(
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "prefect.server.concurrency.lease_storage.filesystem"
        )
        if self.database is not None:
            found |= {DATABASE_SETTINGS[0]: database_url(self.database)}
            found.pop(DATABASE_SETTINGS[1], None)
        return found


def database_url(url: str) -> str:
    """A database's URL with the driver that the server needs.

    Raises:
        InputError: it is none of PostgreSQL or SQLite; a password in it is not repeated.
    """
    scheme, separator, rest = url.partition("://")
    driver = _DRIVERS.get(scheme, scheme)
    if not separator or not rest or driver not in _DRIVERS.values():
        raise InputError(
            "--database", f"a URL of {scheme!r}"[:60] if separator else "no URL",
            "postgresql://USER@HOST/NAME or sqlite:///FILE",
            f"Or set {DATABASE_SETTINGS[0]} in the environment, which hides a password from other users",
        )  # fmt: skip
    return f"{driver}://{rest}"


def database_name(environment: Mapping[str, str]) -> str:
    """Which database a server with these settings uses, without user and password."""
    url = next((environment[name] for name in DATABASE_SETTINGS if environment.get(name)), "")
    if not url:
        return str(Path(PREFECT_HOME.value()).expanduser() / "prefect.db")
    parts = urlsplit(url)
    return f"{parts.scheme.partition('+')[0]}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass
class Child:
    """One process that is kept running; its output is added to `log`."""

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(repr=False)
    log: Path
    process: subprocess.Popen[bytes] | None = None
    deaths: int = 0
    born: float = 0.0
    due: float = 0.0

    def start(self) -> None:
        """Start it, in a session of its own: a Ctrl-C at the terminal is not for it to hear."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=dict(self.environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip
        self.born = time.monotonic()

    def watch(self, tell: Callable[[str], None]) -> None:
        """Start it again if it has died, after a wait that doubles with every death soon after its start.

        Raises:
            InputError: it dies again and again; with its last words.
        """
        now = time.monotonic()
        if self.process is not None and (code := self.process.poll()) is not None:
            self.deaths = 1 if now - self.born > _LASTING_SECONDS else self.deaths + 1
            self.process = None
            if self.deaths >= _GIVE_UP:
                raise InputError(
                    f"the {self.name}", f"one that ended {self.deaths} times in a row ({self.last_words()})",
                    "one that keeps running", f"Read {self.log}",
                )  # fmt: skip
            self.due = now + min(_LONGEST_WAIT, 2.0 ** (self.deaths - 1))
            tell(f"the {self.name} ended (exit code {code}); starting it again")
        if self.process is None and now >= self.due:
            self.start()

    def stop(self, seconds: float) -> None:
        """End it: by SIGTERM, and by SIGKILL where it does not listen in time."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        """The last line of its log that says something, without what may be a URL with a password."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - 4096))
                lines = stream.read().decode(errors="replace").splitlines()
        except OSError:
            return "no log"
        said = [line.strip() for line in lines if line.strip()]
        words = said[-1] if said else "it said nothing"
        return "see its log" if "://" in words else words[:200]


def _die_with_parent() -> None:
    """Have the kernel end this process when its parent dies, however it dies. Linux; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


@dataclass
class Service:
    """The server and the worker of one `Serving`; `run` until `stop` or a signal."""

    serving: Serving
    tell: Callable[[str], None]
    stopping: threading.Event = field(default_factory=threading.Event)
    errand: Errand = field(default_factory=Errand)

    def __post_init__(self) -> None:
        self.environment = self.serving.environment()
        self.logs = Path(PREFECT_HOME.value()).expanduser() / "rhumb"
        prefect = [sys.executable, "-m", "prefect"]
        place = ["--host", self.serving.host, "--port", str(self.serving.port)]
        worker = ["--pool", self.serving.pool, "--type", "process", "--limit", str(self.serving.workers)]
        name = ["--name", f"rhumb-{platform.node()}-{os.getpid()}"]
        self.server = self._child("server", [*prefect, "server", "start", *place])
        self.worker = self._child("worker", [*prefect, "worker", "start", *worker, *name])

    def _child(self, name: str, command: list[str]) -> Child:
        return Child(name, command, self.environment, self.logs / f"{name}.log")

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until told to stop; `ready` is called once everything runs.

        Raises:
            InputError: the port is in use, the server or the worker does not keep running.
        """
        check_port(self.serving)
        self.logs.mkdir(parents=True, exist_ok=True)
        former = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.server.start()
            if self._wait_until_healthy():
                self._prepare()
                self.worker.start()
                ready()
                self._watch()
        finally:
            self._stop_runs()
            self.worker.stop(STOP_SECONDS)
            self.server.stop(STOP_SECONDS)
            for number, handler in former.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.stopping.set()

    def _stop_runs(self) -> None:
        """Have the worker's runs stop at their next image: a worker that ends would kill them where they are."""
        if self.worker.process is None:
            return
        asked: set[int] = set()
        deadline = time.monotonic() + STOP_SECONDS
        while (left := children(self.worker.process.pid)) and time.monotonic() < deadline:
            for pid in left - asked:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            asked |= left
            time.sleep(_TICK)

    def _wait_until_healthy(self) -> bool:
        """Whether the server answers; not, where it is told to stop before."""
        deadline = time.monotonic() + HEALTHY_SECONDS
        while not self.stopping.wait(_TICK):
            if self.server.process is None or self.server.process.poll() is not None:
                raise InputError(
                    "the server", f"one that did not start ({self.server.last_words()})", "one that runs",
                    f"Read {self.server.log}; its database is {database_name(self.environment)}",
                )  # fmt: skip
            if answers(self.serving.url):
                return True
            if time.monotonic() > deadline:
                raise InputError(
                    "the server", f"no answer in {HEALTHY_SECONDS:.0f} s", "one that answers",
                    f"Read {self.server.log}",
                )  # fmt: skip
        return False

    def _prepare(self) -> None:
        """What a worker needs of a server: its pool and the limits of the GPUs; and no dead runs that look busy."""
        with temporary_settings({PREFECT_API_URL: self.serving.url}), client_of_server() as client:
            try:
                client.read_work_pool(self.serving.pool)
            except ObjectNotFound:
                with suppress(ObjectAlreadyExists):  # another machine makes it too
                    client.create_work_pool(WorkPoolCreate(name=self.serving.pool, type="process"))
            make_limits(client)
        self._sweep()

    def _watch(self) -> None:
        swept = time.monotonic()
        while not self.stopping.wait(_TICK):
            for child in (self.server, self.worker):
                child.watch(self.tell)
            if time.monotonic() - swept > SWEEP_SECONDS:
                self.errand.send(self._sweep)
                swept = time.monotonic()

    def _sweep(self) -> None:
        """End the runs of dead processes; a server that is just being started again is asked the next time."""
        try:
            with temporary_settings({PREFECT_API_URL: self.serving.url}), get_client(sync_client=True) as client:
                ended = stale.end_stale_runs(client)
        except (httpx.HTTPError, RuntimeError):
            return
        for name in ended:
            self.tell(f"ended {name}, whose process is dead")


def check_port(serving: Serving) -> None:
    """Raise InputError where nothing can listen at the host and port, saying who does."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(serving.host, serving.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except socket.gaierror as error:
        raise InputError("--host", repr(serving.host)[:80], "a host name or address of this machine") from error
    except (OSError, OverflowError) as error:
        version = version_at(serving.url)
        by = f"in use by a Prefect server {version}" if version is not None else "in use, or not allowed"
        action = "Name another with --port"
        if version is not None:
            action += f", or use that server: PREFECT_API_URL={serving.url}"
        raise InputError("--port", f"{serving.port}, which is {by}", "a free port", action) from error


def answers(url: str) -> bool:
    """Whether a server at a URL says that it is well; it says so to everyone."""
    try:
        return httpx.get(f"{url}/health", timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def version_at(url: str) -> str | None:
    """The version of the Prefect server at a URL; None where none answers."""
    try:
        response = httpx.get(f"{url}/admin/version", timeout=2.0, trust_env=False)
        found = response.json() if response.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        return None
    return found if isinstance(found, str) else None
