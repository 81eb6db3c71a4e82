"""A Hub on loopback: the few answers that a client needs to resolve a revision and to fetch files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPO = "owner/name"


def commit_of(files: Mapping[str, bytes]) -> str:
    """40 hex digits that follow from what a commit holds."""
    return hashlib.sha1(b"".join(name.encode() + data for name, data in sorted(files.items()))).hexdigest()


def folder_files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its name in a repository."""
    return {str(p.relative_to(folder).as_posix()): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@dataclass
class TinyHub:
    """One repository: commits by id, branches and tags by name, and what was asked for.

    Weights are LFS files, named by their sha256; all others by their git hash.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    url: str = ""

    def commit(self, name: str, files: Mapping[str, bytes]) -> str:
        """Add a commit and let the branch or tag `name` point to it; returns its id."""
        commit = commit_of(files)
        self.commits[commit], self.names[name] = dict(files), commit
        return commit

    def find(self, revision: str) -> str | None:
        """The commit that a branch, tag or commit means; None for none."""
        return revision if revision in self.commits else self.names.get(revision)

    def tree(self, commit: str) -> list[dict[str, object]]:
        """The listing of a commit as the Hub gives it."""
        return [self._listed(path, data) for path, data in sorted(self.commits[commit].items())]

    def _listed(self, path: str, data: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": _git(data)}
        if _is_large(path):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: TinyHub

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self._reply(with_body=False)

    def do_GET(self) -> None:
        self._reply(with_body=True)

    def _reply(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(f"{self.command} {path}")
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        status, headers, body = self._answer(path)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        api, file = f"api/models/{REPO}", f"{REPO}/resolve/"
        if path.startswith(f"{api}/tree/"):
            commit = self.hub.find(path.removeprefix(f"{api}/tree/"))
            return self._json(self.hub.tree(commit)) if commit else _missing("RevisionNotFound")
        if path == api or path.startswith(f"{api}/revision/"):
            commit = self.hub.find(path.removeprefix(api).removeprefix("/revision/") or "main")
            return self._json({"id": REPO, "sha": commit}) if commit else _missing("RevisionNotFound")
        if path.startswith(file):
            revision, name = path.removeprefix(file).split("/", 1)
            commit = self.hub.find(revision)
            data = self.hub.commits[commit].get(name) if commit else None
            return _file(name, data, str(commit)) if data is not None else _missing("EntryNotFound")
        return _missing("RepoNotFound")

    def _json(self, content: object) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _missing(code: str) -> tuple[int, dict[str, str], bytes]:
    return 404, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"


def _file(name: str, data: bytes, commit: str) -> tuple[int, dict[str, str], bytes]:
    tag = hashlib.sha256(data).hexdigest() if _is_large(name) else _git(data)
    return 200, {"X-Repo-Commit": commit, "ETag": f'"{tag}"', "Content-Type": "application/octet-stream"}, data


@contextmanager
def serve() -> Iterator[TinyHub]:
    """An empty hub, reachable at its `url` until the end of the block."""
    hub = TinyHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
