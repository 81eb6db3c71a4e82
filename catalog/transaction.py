"""The commit protocol of format.md: stage, flush, rename, replace the manifest last; recover what a crash left."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from catalog import manifest as manifests
from catalog.fs import (
    LOCK,
    MANIFEST,
    STAGING,
    VERSIONS,
    check_relative,
    flush_folder,
    footer_sha256,
    inside,
    sha256_of,
    write_flushed,
)
from catalog.manifest import FileEntry, Manifest
from pipeline.errors import CatalogError, ConflictError

_INTENT = "intent.json"
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
_KEPT = 8  # claims of former versions; a writer that stands further back is told by the version it reads


class Lock:
    """An exclusive, non-blocking lock on a folder, freed by the system when its process dies."""

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 32).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise ConflictError(
                str(folder), f"another writer (process {holder or 'unknown'})", "one writer at a time",
                "Wait for it to end, then run the same command again",
            ) from None  # fmt: skip
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())

    @property
    def freed(self) -> bool:
        """Whether the lock was given back."""
        return self._descriptor < 0

    def free(self) -> None:
        """Give the lock back; the file stays, since removing it would race with the next holder."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _intended(root: Path) -> list[str]:
    """Files that an interrupted commit was about to create or delete."""
    path = root / STAGING / _INTENT
    if not path.is_file():
        return []
    listed = json.loads(path.read_text())
    return [check_relative(str(name)) for name in listed]


def unborn(root: Path) -> bool:
    """Whether `root` holds nothing but what an interrupted first commit may have left."""
    if (root / STAGING).is_symlink() or (root / MANIFEST).exists():
        return False
    own = {LOCK, STAGING, VERSIONS, *(name.split("/")[0] for name in _intended(root))}
    return all(entry.name in own for entry in root.iterdir())


def _claim(root: Path, version: int) -> Path:
    return root / VERSIONS / f"{version}.json"


def _finish_claimed(root: Path) -> None:
    """Put the manifest of the next version in place where a commit died between claiming it and doing so."""
    if (root / VERSIONS).is_symlink():
        raise CatalogError(str(root / VERSIONS), "a symbolic link", "a plain folder")
    number = manifests.load(root).version if (root / MANIFEST).exists() else 0
    claim = _claim(root, number + 1)
    if not claim.is_file():
        return
    try:
        whole = manifests.parse(claim.read_bytes(), str(claim)).version == number + 1
    except CatalogError:
        whole = False
    if not whole:  # torn: its writer died before it could have gone on
        claim.unlink()
        return
    draft = root / STAGING / "claimed.tmp"
    draft.parent.mkdir(exist_ok=True)
    draft.unlink(missing_ok=True)
    try:  # nothing is flushed: until the next commit, the claim would finish this again
        os.link(claim, draft)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        draft.write_bytes(claim.read_bytes())
    draft.replace(root / MANIFEST)


def recover(root: Path) -> Manifest | None:
    """Finish a commit that was claimed, delete what another interrupted one left, and return the manifest that stands
    (None: there is none yet).

    Only files named in the intent that the manifest does not list are deleted, the staging folder, and old claims.
    """
    _finish_claimed(root)
    current = manifests.load(root) if (root / MANIFEST).exists() else None
    listed = set(current.files) if current else set()
    for name in _intended(root):
        if name not in listed:
            inside(root, name).unlink(missing_ok=True)
    staging = root / STAGING
    if staging.is_symlink():
        raise CatalogError(str(staging), "a symbolic link", "a plain folder")
    if staging.exists():
        # the intent goes last: without it, an interrupted clean-up would forget what is left to delete
        for entry in sorted(staging.iterdir(), key=lambda e: e.name == _INTENT):
            entry.unlink()
        staging.rmdir()
    if current is not None and (root / VERSIONS).is_dir():
        for claim in (root / VERSIONS).iterdir():
            if not claim.stem.isdecimal() or int(claim.stem) <= current.version - _KEPT:
                claim.unlink()
    return current


class Transaction:
    """New files of one commit, staged; nothing is visible before `commit` replaces the manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries: dict[str, FileEntry] = {}
        self._staged: dict[str, Path] = {}
        self._folder = root / STAGING
        self._folder.mkdir(exist_ok=True)

    def stage(self, name: str, write: Callable[[BinaryIO], object], rows: int | None = None) -> tuple[str, Path]:
        """Write a file through `write(stream)` and flush it; `{digest}` in `name` becomes part of its sha256.

        Returns its final name and where it is staged.
        """
        temporary = self._folder / f"{len(self._staged)}.tmp"
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        digest = sha256_of(temporary)
        final = check_relative(name.format(digest=digest[:16]))
        footer = footer_sha256(temporary) if rows is not None else None
        self._staged[final] = temporary
        self.entries[final] = FileEntry(sha256=digest, bytes=temporary.stat().st_size, rows=rows, footer=footer)
        return final, temporary

    def commit(self, new: Manifest, old: Manifest | None, obsolete: Iterable[str] = ()) -> None:
        """Put the staged files in place, claim the version, and replace the manifest.

        Raises ConflictError: a file is in the way, or another writer has committed since `old` was read. What it
        committed stands; nothing of this commit is left.
        """
        listed = set(old.files) if old else set()
        names = [name for name in self._staged if name not in listed]
        gone = sorted(set(obsolete) - set(new.files))
        for name in names:
            if inside(self.root, name).exists():
                raise ConflictError(str(self.root / name), "a file the catalog does not know", "no such file")
        self._refuse_overtaken(old)
        draft = self._folder / "intent.tmp"
        write_flushed(draft, json.dumps(sorted([*names, *gone])).encode())
        draft.replace(self._folder / _INTENT)
        flush_folder(self._folder)
        for name in names:
            target = inside(self.root, name)
            target.parent.mkdir(exist_ok=True)
            self._staged[name].replace(target)
        for folder in sorted({inside(self.root, name).parent for name in names} | {self.root}):
            flush_folder(folder)
        draft = self._folder / "manifest.tmp"
        write_flushed(draft, manifests.dump(new))
        self._claim(new.version, draft)
        draft.replace(self.root / MANIFEST)
        flush_folder(self.root)
        recover(self.root)

    def _refuse_overtaken(self, old: Manifest | None) -> None:
        """Raise ConflictError unless the manifest that stands is still `old`."""
        path = self.root / MANIFEST
        now = json.loads(path.read_bytes()).get("version") if path.exists() else None
        if now != (old.version if old is not None else None):
            raise _overtaken(self.root, now)

    def _claim(self, version: int, manifest: Path) -> None:
        """Put the new manifest under its version's name if no other has it: of two writers, one gets this far."""
        folder = self.root / VERSIONS
        folder.mkdir(exist_ok=True)
        try:
            os.link(manifest, _claim(self.root, version))
        except FileExistsError as error:
            raise _overtaken(self.root, version) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _create(_claim(self.root, version), manifest.read_bytes())
        flush_folder(folder)


def _create(path: Path, data: bytes) -> None:
    """A new file, on a file system without hard links. Raises ConflictError where it exists."""
    try:
        with path.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError as error:
        raise _overtaken(path.parent.parent, path.stem) from error


def _overtaken(root: Path, version: object) -> ConflictError:
    return ConflictError(
        str(root), f"version {version}, which another writer committed", "the version this one began from",
        "Run the same command again: it goes on from there, and nothing that was committed is lost",
    )  # fmt: skip
