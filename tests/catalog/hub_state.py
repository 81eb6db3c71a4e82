"""What a Hub on loopback holds: dataset repositories with commits, branches and tags, and a store of large files."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

LARGE = (".parquet", ".png", ".jpg", ".bin", ".safetensors")
LARGEST_REGULAR = 10 * 2**20
_ATTRIBUTES = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE).encode()


class Refused(Exception):
    """An answer that is an error: HTTP status, the Hub's code and message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def git_sha1(data: bytes) -> str:
    """The name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of a commit: its bytes, or the sha256 and size of a large one."""

    data: bytes = b""
    sha256: str | None = None
    large_size: int = 0

    @property
    def size(self) -> int:
        return self.large_size if self.sha256 is not None else len(self.data)

    @property
    def pointer(self) -> bytes:
        """What git holds of it."""
        if self.sha256 is None:
            return self.data
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.large_size}\n"
        return text.encode()

    @property
    def tag(self) -> str:
        """Its ETag, and what `preupload` calls its oid."""
        return self.sha256 or git_sha1(self.data)

    def listed(self, path: str) -> dict[str, Any]:
        """Its line in a listing."""
        line: dict[str, Any] = {"type": "file", "path": path, "size": self.size, "oid": git_sha1(self.pointer)}
        if self.sha256 is not None:
            line["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": len(self.pointer)}
        return line


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    files: Mapping[str, File]
    parent: str | None
    message: str


@dataclass
class Repository:
    """Commits by id, branches and tags by name."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> str:
        """The commit that a branch, tag or commit means. Raises Refused."""
        known = self.branches.get(revision) or self.tags.get(revision.removeprefix("refs/tags/"))
        if known is None and revision in self.commits:
            known = revision
        if known is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return known

    def files(self, revision: str = "main") -> Mapping[str, File]:
        """The files of a revision by path. Raises Refused."""
        return self.commits[self.find(revision)].files

    def card(self, revision: str = "main") -> dict[str, Any]:
        """The YAML of the card; empty where there is none."""
        readme = self.files(revision).get("README.md", File()).data
        parts = readme.split(b"---\n")
        content = yaml.safe_load(parts[1]) if len(parts) > 2 else None
        return content if isinstance(content, dict) else {}

    def history(self, revision: str = "main") -> list[str]:
        """Messages of its commits, the newest first."""
        messages, commit = [], self.branches.get(revision) or self.tags.get(revision)
        while commit is not None:
            messages.append(self.commits[commit].message)
            commit = self.commits[commit].parent
        return messages

    def add(self, branch: str, files: Mapping[str, File], message: str) -> str:
        """A new commit at the end of a branch; its id."""
        parent = self.branches.get(branch)
        tree = "".join(f"{path} {file.tag}\n" for path, file in sorted(files.items()))
        told = f"{self.name} {parent} {message} {len(self.commits)}\n{tree}"
        commit = hashlib.sha1(told.encode()).hexdigest()
        self.commits[commit] = Commit(dict(files), parent, message)
        self.branches[branch] = commit
        return commit


class Objects:
    """Large files of all repositories by sha256, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def take(self, draft: Path, sha256: str) -> bool:
        """Keep a received file if it is what its name says."""
        with draft.open("rb") as stream:
            right = hashlib.file_digest(stream, "sha256").hexdigest() == sha256
        if right:
            draft.replace(self.path(sha256))
        else:
            draft.unlink()
        return right

    def put(self, data: bytes) -> File:
        """Keep bytes."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.path(sha256).write_bytes(data)
        return File(sha256=sha256, large_size=len(data))

    def clear(self) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()


class Repositories:
    """All of them by `org/name`, and the changes that are made to them, one at a time."""

    def __init__(self, objects: Objects) -> None:
        self.all: dict[str, Repository] = {}
        self.objects = objects
        self.lock = threading.RLock()

    def get(self, name: str) -> Repository:
        """Raises Refused."""
        if name not in self.all:
            raise Refused(404, "RepoNotFound", "Repository not found")
        return self.all[name]

    def create(self, name: str, private: bool) -> Repository:
        """A repository with a first commit, as the Hub makes one. Raises Refused."""
        with self.lock:
            if name in self.all:
                raise Refused(409, "Conflict", "You already created this dataset repo")
            repository = self.all[name] = Repository(name, private)
            repository.add("main", {".gitattributes": File(_ATTRIBUTES)}, "initial commit")
            return repository

    def file(self, path: str, data: bytes) -> File:
        """A file as the Hub would keep it."""
        return self.objects.put(data) if is_large(path, len(data)) else File(data)

    def apply(self, repository: Repository, branch: str, lines: Iterable[bytes]) -> str:
        """A commit as the client sends it, all of it or nothing. Raises Refused."""
        with self.lock:
            items = [json.loads(line) for line in lines if line.strip()]
            header = items[0]["value"]
            if branch not in repository.branches:
                raise Refused(404, "RevisionNotFound", f"Invalid rev id: {branch}")
            head = repository.branches[branch]
            if header.get("parentCommit", head) != head:
                raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
            files = dict(repository.commits[head].files)
            for item in items[1:]:
                self._apply_one(files, item["key"], item["value"])
            return repository.add(branch, files, header["summary"])

    def _apply_one(self, files: dict[str, File], key: str, value: Mapping[str, Any]) -> None:
        path = value["path"]
        if path.startswith("/") or ".." in path.split("/"):
            raise Refused(400, "", f"invalid path {path}")
        if key == "file":
            files[path] = File(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            held = self.objects.path(value["oid"])
            if not held.is_file():
                raise Refused(400, "", f"LFS pointer pointed to a file that does not exist: {path}")
            files[path] = File(sha256=value["oid"], large_size=held.stat().st_size)
        elif key in ("deletedFile", "deletedFolder"):
            gone = [p for p in files if p == path or (key == "deletedFolder" and p.startswith(path.rstrip("/") + "/"))]
            if not gone:
                raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
            for name in gone:
                del files[name]
        else:
            raise Refused(400, "", f"unknown operation {key}")


def is_large(path: str, size: int) -> bool:
    """Whether the Hub keeps such a file apart from git."""
    return path.endswith(LARGE) or size > LARGEST_REGULAR


def tree_of(files: Mapping[str, File], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """The listing of a folder ("" for all). Raises Refused."""
    start = f"{folder}/" if folder else ""
    lines: dict[str, dict[str, Any]] = {}
    for path, file in sorted(files.items()):
        if not path.startswith(start):
            continue
        parts = path.removeprefix(start).split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            parent = start + "/".join(parts[:depth])
            lines.setdefault(parent, {"type": "directory", "path": parent, "oid": git_sha1(parent.encode()), "size": 0})
        if recursive or len(parts) == 1:
            lines[path] = file.listed(path)
    if folder and not lines:
        raise Refused(404, "EntryNotFound", f"{folder} does not exist")
    return list(lines.values())
