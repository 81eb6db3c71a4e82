"""A Hub on loopback, with what huggingface_hub asks of one for data sets, reading and writing, and faults on demand.

    with serve() as hub:                      # hub.url is for HF_ENDPOINT; the client runs in a process of its own
        hub.commit("org/pack", {"README.md": b"..."})      # by somebody else; the repository is made where it is absent
        hub.answers("commit", 503, headers={"Retry-After": "1"}, first=2, times=3)
        hub.cuts("upload", after=1000)        # the connection breaks after so many bytes of the body
        hub.loses("tag")                      # done as asked, and the connection breaks before the answer
        hub.meanwhile("commit", lambda: ...)  # something happens just before the request is answered
        pause = hub.pauses("upload")          # pause.reached.wait(), then pause.go() or pause.drop()
        hub.received["upload"], hub.sent["content"], hub.requests["commit"]   # bytes of bodies, requests, by kind
        hub.repositories.all["org/pack"].tags

Kinds of requests: create, delete, whoami, yaml, list, info, preupload, commit, branch, tag, refs, tree, paths, batch,
verify, resolve; and at the store of large files, which is another origin: upload, content. `first` counts requests of a
kind from the moment the fault was asked for, from 1. `hub.tokens` are users by token: TOKEN is of one who may write to
`org`, READER of one who may write nowhere; any other token has expired. `hub.page` is the length of a page of listings.
`hub.strangers` are tokens that came to the store, where none must come. `hub.ranges` False: ranges are ignored.

`hub.content(name, path, revision)` is a file as it is held, `hub.reset()` empties the hub, faults and counts too. A
client needs HF_ENDPOINT, HF_HUB_DISABLE_XET=1, HF_HOME and HF_TOKEN: `environment(hub, home)`. hub_client.py has one
that does what it is told.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.catalog.hub_requests import Handler, StoreHandler
from tests.catalog.hub_state import Objects, Refused, Repositories

TOKEN = "hf_" + "verysecret" * 3
READER = "hf_" + "readonly" * 3
OWNER = "tester"


class Pause:
    """A request that waits."""

    def __init__(self) -> None:
        self.reached, self._released, self.dropped = threading.Event(), threading.Event(), False

    def wait(self) -> None:
        self.reached.set()
        self._released.wait(60)

    def go(self) -> None:
        """Let it be done."""
        self._released.set()

    def drop(self) -> None:
        """Close its connection, nothing done."""
        self.dropped = True
        self._released.set()


@dataclass
class Fault:
    """What happens to the requests number `first` to `first + times - 1` of a kind."""

    kind: str
    first: int = 1
    times: int = 1
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    lost: bool = False
    before: Callable[[], None] = lambda: None
    pause: Pause | None = None
    seen: int = 0


@dataclass
class HubServer:
    """The state of a Hub; see the module."""

    repositories: Repositories
    url: str = ""
    store_url: str = ""
    tokens: dict[str, str] = field(default_factory=lambda: {TOKEN: OWNER, READER: "reader"})
    members: dict[str, set[str]] = field(default_factory=lambda: {OWNER: {"org"}})
    page: int = 1000
    ranges: bool = True
    requests: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    asked: list[str] = field(default_factory=list)
    strangers: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answers(
        self, kind: str, status: int, *, headers: Mapping[str, str] | None = None, first: int = 1, times: int = 1
    ) -> None:
        """Answer with an error."""
        self.faults.append(Fault(kind, first, times, status, headers or {}))

    def cuts(self, kind: str, after: int, *, first: int = 1, times: int = 1) -> None:
        """Break the connection within the body: of the request where it has one, else of the answer."""
        self.faults.append(Fault(kind, first, times, cut=after))

    def loses(self, kind: str, *, first: int = 1, times: int = 1) -> None:
        """Do as asked, and break the connection before the answer."""
        self.faults.append(Fault(kind, first, times, lost=True))

    def meanwhile(self, kind: str, action: Callable[[], object], *, first: int = 1) -> None:
        """Call `action` before a request is answered."""
        self.faults.append(Fault(kind, first, before=lambda: (action(), None)[1]))

    def pauses(self, kind: str, *, first: int = 1, lost: bool = False) -> Pause:
        """Let a request wait before it is done; with `lost` after it is done, before it is answered."""
        fault = Fault(kind, first, lost=lost, pause=Pause())
        self.faults.append(fault)
        assert fault.pause is not None
        return fault.pause

    def reset(self) -> None:
        """Empty again, without faults, counts and objects."""
        for fault in self.faults:
            if fault.pause is not None:
                fault.pause.drop()
        with self.repositories.lock:
            self.repositories.all.clear()
            self.repositories.objects.clear()
        for counts in (self.requests, self.received, self.sent, self.asked, self.strangers, self.faults):
            counts.clear()
        self.page, self.ranges = 1000, True

    def commit(self, name: str, files: Mapping[str, bytes], message: str = "an edit", branch: str = "main") -> str:
        """A commit by somebody else: these files over those of the branch; its id."""
        with self.repositories.lock:
            repository = self.repositories.all.get(name) or self.repositories.create(name, private=False)
            added = {path: self.repositories.file(path, data) for path, data in files.items()}
            return repository.add(branch, {**repository.files(branch), **added}, message)

    def content(self, name: str, path: str, revision: str = "main") -> bytes:
        """A file of a repository. Raises Refused, KeyError."""
        file = self.repositories.get(name).files(revision)[path]
        return file.data if file.sha256 is None else self.repositories.objects.path(file.sha256).read_bytes()

    def fault(self, kind: str) -> Fault | None:
        """Count a request of a kind; the fault that befalls it."""
        with self.lock:
            self.requests[kind] += 1
            found = None
            for fault in self.faults:
                if fault.kind == kind:
                    fault.seen += 1
                    if found is None and fault.first <= fault.seen < fault.first + fault.times:
                        found = fault
            return found

    def count(self, counter: Counter[str], kind: str, size: int) -> None:
        """Add bytes to `received` or `sent`."""
        with self.lock:
            counter[kind] += size

    def user(self, header: str) -> str | None:
        """Whose token it is; None without one. Raises Refused."""
        token = header.removeprefix("Bearer ").strip()
        if not token:
            return None
        if token not in self.tokens:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return self.tokens[token]

    def may_write(self, user: str | None, name: str) -> bool:
        organisation = name.split("/")[0]
        return user is not None and (organisation == user or organisation in self.members.get(user, set()))


def environment(hub: HubServer, home: Path, token: str = TOKEN, *, offline: bool = False) -> dict[str, str]:
    """Variables for a client of the hub whose cache lies in `home`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"}
    return {**kept, **own, **quiet, "HF_HUB_OFFLINE": str(int(offline)), **({"HF_TOKEN": token} if token else {})}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Silent: clients are killed in the middle of what they say. What a test needs to know, it asks the state."""


@contextmanager
def serve(folder: Path | None = None) -> Iterator[HubServer]:
    """An empty hub until the end of the block; large files lie in `folder`, a temporary one where None."""
    with tempfile.TemporaryDirectory(prefix="rhumb-hub-") as temporary:
        hub = HubServer(Repositories(Objects((folder or Path(temporary)) / "objects")))
        servers = [
            _Server(("127.0.0.1", 0), type("Own", (kind,), {"hub": hub})) for kind in (Handler, StoreHandler)
        ]  # fmt: skip
        hub.url, hub.store_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
        threads = [threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True) for server in servers]
        for thread in threads:
            thread.start()
        try:
            yield hub
        finally:
            for fault in hub.faults:
                if fault.pause is not None:
                    fault.pause.drop()
            for server in servers:
                server.shutdown()
                server.server_close()
            for thread in threads:
                thread.join()
