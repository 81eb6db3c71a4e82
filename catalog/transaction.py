"""The commit protocol of format.md: stage, flush, rename, replace the manifest last; recover what a crash left."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from catalog import manifest as manifests
from catalog.fs import LOCK, MANIFEST, STAGING, check_relative, flush_folder, inside, sha256_of, write_flushed
from catalog.manifest import FileEntry, Manifest
from pipeline.errors import CatalogError, ConflictError

_INTENT = "intent.json"


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
    own = {LOCK, STAGING, *(name.split("/")[0] for name in _intended(root))}
    return all(entry.name in own for entry in root.iterdir())


def recover(root: Path) -> Manifest | None:
    """Delete what an interrupted commit left and return the manifest that stands (None: there is none yet).

    Only files named in the intent that the manifest does not list are deleted, and the staging folder.
    """
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
        self._staged[final] = temporary
        self.entries[final] = FileEntry(sha256=digest, bytes=temporary.stat().st_size, rows=rows)
        return final, temporary

    def commit(self, new: Manifest, old: Manifest | None, obsolete: Iterable[str] = ()) -> None:
        """Put the staged files in place and replace the manifest. Raises ConflictError for a file in the way."""
        listed = set(old.files) if old else set()
        names = [name for name in self._staged if name not in listed]
        gone = sorted(set(obsolete) - set(new.files))
        for name in names:
            if inside(self.root, name).exists():
                raise ConflictError(str(self.root / name), "a file the catalog does not know", "no such file")
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
        draft.replace(self.root / MANIFEST)
        flush_folder(self.root)
        recover(self.root)
