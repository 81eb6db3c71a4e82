"""The folder into which a version is pulled: what it says that it was pulled from, and what may be put there."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from catalog import manifest as manifests
from catalog.fs import (
    FOLDERS,
    LOCK,
    MANIFEST,
    PULLED,
    STAGING,
    disk_error,
    flush_folder,
    inside,
    sha256_of,
    write_flushed,
)
from catalog.manifest import Digest, Manifest, PackPart
from pipeline.errors import CatalogError, ConflictError

BUILT = "part"  # a part while it is being made
_DRAFT = "pull.tmp"
_LARGEST_RECORD = 2**24
_BY_CONTENT = re.compile(r"(?:.*-)?[0-9a-f]{16}\.[a-z]+")  # how files are named that hold what their name says


class PulledFrom(PackPart):
    """What a folder was pulled from, as `.pulled.json` says: `hub` as in a `PackName`, `place` as people call it.

    `manifest`: sha256 of the manifest that is put there last.
    """

    hub: str | None
    place: str
    manifest: Digest

    def is_of(self, asked: PackPart) -> bool:
        """Whether it is of this version and part."""
        return all(getattr(self, name) == getattr(asked, name) for name in PackPart.model_fields)

    def is_like(self, asked: PackPart, hub: str | None) -> bool:
        """Whether it is of this part of the same pack, in whatever version."""
        return (self.hub, self.repository, self.filters) == (hub, asked.repository, asked.filters)

    def __str__(self) -> str:
        filters = "; ".join(f"{name} {', '.join(values)}" for name, values in sorted(self.filters.items()))
        return f"{self.repository} {self.version}" + (f" ({filters})" if filters else "")


def pulled_from(folder: str | Path) -> PulledFrom | None:
    """What a catalog was pulled from; None for one that was not, or where nothing readable says it."""
    path = Path(folder) / PULLED
    try:
        if path.is_symlink() or path.stat().st_size > _LARGEST_RECORD:
            return None
        return PulledFrom.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def without_retired(manifest: Manifest) -> Manifest:
    """What is worth fetching: not the files that only a former format needed."""
    files = {name: entry for name, entry in manifest.files.items() if name not in manifest.retired}
    return manifest.model_copy(update={"files": files, "retired": ()})


def is_whole(target: Path, wanted: PackPart) -> bool:
    """Whether `target` holds the finished pull that is wanted, every file of it as it should be."""
    known, path = pulled_from(target), target / MANIFEST
    if known is None or not known.is_of(wanted) or path.is_symlink() or not path.is_file():
        return False
    return sha256_of(path) == known.manifest and not missing(target, manifests.load(target))


def missing(target: Path, manifest: Manifest) -> list[str]:
    """Files of `manifest` that `target` does not hold as they should be."""
    return [
        name for name, entry in manifest.files.items()
        if not inside(target, name).is_file() or sha256_of(inside(target, name)) != entry.sha256
    ]  # fmt: skip


def refuse_other_content(target: Path, wanted: PackPart, hub: str | None, manifest: Manifest) -> None:
    """Raise ConflictError unless `target` is new or empty, or holds this part of the pack and nothing else, in whatever
    version, finished or not.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ConflictError(str(target), "a file", "a new or empty folder", "Choose another --out")
    known, path = pulled_from(target), target / MANIFEST
    found = "a folder with other content"
    if known is not None:
        grown = path.is_file() and sha256_of(path) != known.manifest
        same = not grown and (known.is_of(wanted) or known.is_like(wanted, hub))
        found = f"{known}, changed since it was pulled" if grown else str(known)
    elif path.is_file():
        same = not wanted.filters and manifests.load(target) == without_retired(manifest)
    else:
        left = [entry.name for entry in target.iterdir() if entry.name != LOCK]
        same = not left or (left == [STAGING] and {p.name for p in (target / STAGING).iterdir()} <= {_DRAFT, BUILT})
    if not same:
        raise ConflictError(
            str(target), found, "a new or empty folder, or this very part of the pack in some version",
            "Choose another --out; nothing was written",
        )  # fmt: skip


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """A context in which a full disk becomes a CatalogError."""
    try:
        yield
    except OSError as error:
        clear = disk_error(where, error)
        if clear is None:
            raise
        raise clear from error


@contextmanager
def made(target: Path) -> Iterator[None]:
    """The folder, for as long as something is put there: one that was made for nothing goes again."""
    new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if new and all(entry.name == LOCK for entry in target.iterdir()):
            shutil.rmtree(target)


@contextmanager
def staging_in(target: Path) -> Iterator[Path]:
    """A folder for what is not in place yet, gone afterwards."""
    folder = target / STAGING
    if folder.is_symlink():
        raise CatalogError(str(folder), "a symbolic link", "a plain folder")
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Keeper:
    """Keeps in `target` what it is being pulled from, and ends the pull."""

    target: Path
    asked: PackPart
    hub: str | None
    place: str

    def begin(self, staging: Path, manifest: bytes) -> None:
        """Say what the folder will hold; the version that it held before, if it was another, is none from here on.

        `manifest`: the bytes of the one that is put there last.
        """
        digest, path = hashlib.sha256(manifest).hexdigest(), self.target / MANIFEST
        if path.is_file() and sha256_of(path) != digest:
            path.unlink()
            flush_folder(self.target)
        record = PulledFrom(**self.asked.model_dump(), hub=self.hub, place=self.place, manifest=digest)
        _put(staging, self.target / PULLED, record.model_dump_json(indent=1).encode())

    def finish(self, staging: Path, manifest: Manifest) -> None:
        """Put the manifest of what is all in place; files of former versions go before."""
        for folder in {inside(self.target, name).parent for name in manifest.files}:
            flush_folder(folder)
        for folder in filter(Path.is_dir, (self.target / name for name in FOLDERS)):
            for path in folder.iterdir():
                if f"{folder.name}/{path.name}" not in manifest.files and _BY_CONTENT.fullmatch(path.name):
                    path.unlink()
            if not any(folder.iterdir()):
                folder.rmdir()
        _put(staging, self.target / MANIFEST, manifests.dump(manifest))


def _put(staging: Path, path: Path, data: bytes) -> None:
    """Put a file in place, atomically."""
    write_flushed(staging / _DRAFT, data)
    (staging / _DRAFT).replace(path)
    flush_folder(path.parent)
