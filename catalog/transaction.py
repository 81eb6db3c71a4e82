"""The commit protocol of format.md: stage, flush, rename, replace the manifest last; recover what a crash left."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from catalog import manifest as manifests
from catalog.fs import (
    LOCK,
    MANIFEST,
    NO_LINKS,
    ORIGIN,
    PRIVATE,
    STAGING,
    VERSIONS,
    check_relative,
    create_flushed,
    flush_folder,
    footer_sha256,
    inside,
    sha256_of,
    write_flushed,
    write_flushed_by,
    writing_to,
)
from catalog.manifest import FileEntry, Manifest
from catalog.store import Store
from pipeline.errors import BusyError, CatalogError, ConflictError

_INTENT = "intent.json"
_OWNER = "owner"
KEPT = 8  # claims of former versions; a writer that stands further back is told by the version it reads


class _Held:
    """An open file whose `flock` this process holds: the system frees it when the process dies."""

    _descriptor = -1

    @property
    def freed(self) -> bool:
        """Whether the lock was given back."""
        return self._descriptor < 0

    def check(self) -> None:
        """Raise ConflictError where the lock was given back."""
        if self.freed:
            raise ConflictError("writer", "one that was closed", "an open one", "Open it again")

    def free(self) -> None:
        """Give the lock back, the file stays: removing it would race with the next holder. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Lock(_Held):
    """An exclusive, non-blocking lock on a folder, freed by the system when its process dies."""

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with writing_to(folder):
            self._descriptor = os.open(path, flags, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 32).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise BusyError(
                str(folder), f"another writer (process {holder or 'unknown'})", "one writer at a time",
                "Wait for it to end, then run the same command again",
            ) from None  # fmt: skip
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())


def entry_of(path: Path, rows: int | None) -> FileEntry:
    """What a manifest says of a file; `rows` None for one that is no table."""
    footer = footer_sha256(path) if rows is not None else None
    return FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size, rows=rows, footer=footer)


def unborn(root: Path) -> bool:
    """Whether `root` holds nothing but what an interrupted first commit may have left."""
    if (root / MANIFEST).exists():
        return False
    own = {LOCK, ORIGIN, *PRIVATE, *(name.split("/")[0] for name in pending(root))}
    return all(entry.name in own for entry in root.iterdir())


def pending(root: Path) -> set[str]:
    """Files that commits under way, or cut off, are about to create or to delete. Takes no lock."""
    try:
        return {name for folder in _stagings(root) for name in _Intent.read(folder).names}
    except FileNotFoundError:  # the last commit has just ended
        return set()


def recover(root: Path) -> Manifest | None:
    """Finish or undo the commits of writers that died, and return the manifest that stands (None: there is none yet).

    A commit whose version was claimed is finished, if it follows the manifest that stands and its files are there. Of
    others, the files that were new are deleted, as are those that became obsolete with a finished one; nothing else is.
    For the holder of the lock. What a living writer has staged is left alone.
    """
    current = manifests.load(root) if (root / MANIFEST).exists() else None
    for folder in _stagings(root):
        owner = _Owner.of_dead(folder)
        if owner is None:
            continue
        intent = _Intent.read(folder)
        current = _finished(root, intent, folder, current) or current
        _delete_unlisted(root, intent, current)
        _remove(folder)
        owner.free()
    _drop_claims(root, current)
    with suppress(OSError):  # another writer stages in it
        (root / STAGING).rmdir()
    return current


def _stagings(root: Path) -> list[Path]:
    """What writers have staged, living ones and dead. Raises CatalogError for a link in their place."""
    for folder in (root / STAGING, root / VERSIONS):
        if folder.is_symlink():
            raise CatalogError(str(folder), "a symbolic link", "a plain folder")
    parent = root / STAGING
    return sorted(entry for entry in parent.iterdir() if not entry.is_symlink()) if parent.is_dir() else []


@dataclass(frozen=True)
class _Intent:
    """The version that a commit was about to make, and the files it was about to create or delete."""

    version: int = 0
    names: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> _Intent:
        """That of a staging folder; an empty one where nothing was to be changed yet."""
        try:
            value = json.loads((folder / _INTENT).read_bytes())
            return cls(int(value["version"]), tuple(check_relative(str(name)) for name in value["files"]))
        except (OSError, ValueError, KeyError, TypeError):  # it is put in place whole, before anything is changed
            return cls()

    def write(self, folder: Path) -> None:
        draft = folder / "intent.tmp"
        write_flushed(draft, json.dumps({"version": self.version, "files": list(self.names)}).encode())
        draft.replace(folder / _INTENT)
        flush_folder(folder)


class _Owner(_Held):
    """A lock within a staging folder, held while its writer lives."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def of_new(cls, folder: Path) -> _Owner:
        """Of a folder that this process has made."""
        descriptor = os.open(folder / _OWNER, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return cls(descriptor)

    @classmethod
    def of_dead(cls, folder: Path) -> _Owner | None:
        """Of a folder whose writer has died; None where it lives."""
        if not folder.is_dir():
            return cls(-1)
        try:
            return cls.of_new(folder)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            return None


def _claim(root: Path, version: int) -> Path:
    return root / VERSIONS / f"{version}.json"


def manifest_sha256(root: Path) -> str | None:
    """Of the bytes of the manifest that stands; None where there is none."""
    path = root / MANIFEST
    return sha256_of(path) if path.is_file() else None


def _finished(root: Path, intent: _Intent, staging: Path, current: Manifest | None) -> Manifest | None:
    """Put the manifest that a dead writer claimed in place; None where it had not come that far, or was overtaken."""
    claim = _claim(root, intent.version)
    if intent.version != (current.version if current is not None else 0) + 1 or not claim.is_file():
        return None
    try:
        claimed = manifests.parse(claim.read_bytes(), str(claim))
    except CatalogError:  # torn, on a file system where a claim is written in place
        return None
    whole = all(inside(root, name).is_file() for name in claimed.files)
    if claimed.previous != manifest_sha256(root) or not whole:
        return None
    draft = staging / "claimed.tmp"
    draft.unlink(missing_ok=True)
    try:  # nothing is flushed: until the staging folder is gone, this would be done again
        os.link(claim, draft)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        draft.write_bytes(claim.read_bytes())
    draft.replace(root / MANIFEST)
    return claimed


def _delete_unlisted(root: Path, intent: _Intent, current: Manifest | None) -> None:
    listed = current.files if current is not None else {}
    for name in intent.names:
        if name not in listed:
            inside(root, name).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Delete a staging folder. The intent goes last: without it, what is left to delete would be forgotten."""
    if not folder.is_dir():
        folder.unlink()
        return
    for entry in sorted(folder.iterdir(), key=lambda e: e.name in (_INTENT, _OWNER)):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    folder.rmdir()


def _drop_claims(root: Path, current: Manifest | None) -> None:
    """Delete claims that no commit needs any more: long former ones, and those of versions that never came to be."""
    now = current.version if current is not None else 0
    for claim in (root / VERSIONS).glob("*.json"):
        number = int(claim.stem) if claim.stem.isdecimal() else -1
        if not now - KEPT < number <= now and claim.is_file():
            claim.unlink()


class Transaction:
    """New files of one commit, staged; nothing is visible before `commit` replaces the manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries: dict[str, FileEntry] = {}
        self.previous = manifest_sha256(root)
        self._staged: dict[str, Path] = {}
        self._folder = root / STAGING / f"{os.getpid()}-{secrets.token_hex(6)}"
        self._folder.parent.mkdir(exist_ok=True)
        self._folder.mkdir()
        self._owner = _Owner.of_new(self._folder)

    def stage(self, name: str, write: Callable[[BinaryIO], object], rows: int | None = None) -> tuple[str, Path]:
        """Write a file through `write(stream)` and flush it; `{digest}` in `name` becomes part of its sha256.

        Returns its final name and where it is staged.
        """
        temporary = self._folder / f"{len(self._staged)}.tmp"
        write_flushed_by(temporary, write)
        entry = entry_of(temporary, rows)
        final = check_relative(name.format(digest=entry.sha256[:16]))
        self._staged[final], self.entries[final] = temporary, entry
        return final, temporary

    def take(self, name: str, entry: FileEntry, store: Store, place: str) -> None:
        """Stage a file of a store, which was checked to be what `entry` says; it stays there until it is deleted."""
        temporary = self._folder / f"{len(self._staged)}.tmp"
        store.lend(place, temporary)
        self._staged[check_relative(name)], self.entries[name] = temporary, entry

    def commit(self, new: Manifest, old: Manifest | None, obsolete: Iterable[str] = ()) -> None:
        """Put the staged files in place, claim the version, and replace the manifest.

        Raises ConflictError: a file is in the way, or another writer has committed since this transaction began. What
        it committed stands; nothing of this commit is left.
        """
        listed = set(old.files) if old else set()
        names = [name for name in self._staged if name not in listed or self._damaged(name)]
        gone = sorted(set(obsolete) - set(new.files))
        for name in names:
            if name not in listed and inside(self.root, name).exists():
                raise ConflictError(str(self.root / name), "a file the catalog does not know", "no such file")
        if manifest_sha256(self.root) != self.previous:
            raise overtaken(str(self.root), new.version)
        intent = _Intent(new.version, tuple(sorted([*names, *gone])))
        intent.write(self._folder)
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
        _delete_unlisted(self.root, intent, new)
        self.close()
        _drop_claims(self.root, new)

    def close(self) -> None:
        """Remove what is staged, and the folder where it was. Safe to call twice."""
        if self._folder.is_dir():
            _remove(self._folder)
        self._owner.free()
        with suppress(OSError):  # another writer stages in it
            self._folder.parent.rmdir()

    def abandon(self) -> Manifest | None:
        """Undo or finish a commit that failed, as the next writer would; the manifest that stands."""
        self._owner.free()
        return recover(self.root)

    def _damaged(self, name: str) -> bool:
        """Whether a listed file is not there as it was committed."""
        path = inside(self.root, name)
        return not path.is_file() or sha256_of(path) != self.entries[name].sha256

    def _claim(self, version: int, manifest: Path) -> None:
        """Put the new manifest under its version's name if no other has it: of two writers, one gets this far."""
        folder = self.root / VERSIONS
        folder.mkdir(exist_ok=True)
        try:
            os.link(manifest, _claim(self.root, version))
        except FileExistsError as error:
            raise overtaken(str(self.root), version) from error
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            _create(_claim(self.root, version), manifest.read_bytes())
        flush_folder(folder)


def _create(path: Path, data: bytes) -> None:
    """A new file, on a file system without hard links. Raises ConflictError where it exists."""
    try:
        create_flushed(path, data)
    except FileExistsError as error:
        raise overtaken(str(path.parent.parent), path.stem) from error


def overtaken(place: str, version: object) -> ConflictError:
    """The error of a writer whose version another has committed."""
    return ConflictError(
        place, f"version {version}, which another writer committed", "the version this one began from",
        "Run the same command again: it goes on from there, and nothing that was committed is lost",
    )  # fmt: skip
