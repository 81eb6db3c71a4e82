"""What may be asked of a store of catalogs, and a local folder as one."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from catalog.fs import (
    NO_LINKS,
    create_flushed,
    disk_error,
    flush_folder,
    sha256_of,
    write_flushed,
    write_flushed_by,
)
from pipeline.errors import CatalogError, InputError, NotFoundError

_BLOCK = 2**20
_PART = re.compile(r"\.?[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def checked_name(name: str) -> str:
    """`name` if it stays within a store. Raises CatalogError."""
    if not all(_PART.fullmatch(part) and ".." not in part for part in name.split("/")):
        raise CatalogError("name in the store", repr(name)[:200], "plain names with / between them")
    return name


class Store(ABC):
    """Files by name. Raises NotFoundError for a name that is not there; StoreError for what may pass, to be retried."""

    place: str
    """Where it is, for people; without credentials."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All bytes of a file."""

    @abstractmethod
    def read_range(self, name: str, start: int, size: int) -> bytes:
        """A piece of a file; only that travels. Raises CatalogError where the file ends before the piece does."""

    @abstractmethod
    def fetch(self, name: str, target: Path) -> None:
        """Copy a file of the store to a local one that does not exist; not atomic there."""

    @abstractmethod
    def put(self, name: str, source: Path) -> None:
        """Put a local file, which was flushed, under `name`, in place of another of that name; a folder moves it."""

    @abstractmethod
    def keep(self, name: str, source: bytes | Path, sha256: str) -> None:
        """Put a copy of `source` under `name`, in place of what is there, as a file that is not to be changed any more.

        Raises CatalogError: it is not what its sha256 says.
        """

    @abstractmethod
    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create a file; False where there is one of other bytes. Of several who try, one succeeds."""

    @abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Put `data` under `name`, whether there is a file or not; readers see one of the two, whole."""

    @abstractmethod
    def copy(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Copy each first to its second within the store, in place of what is there; nothing passes through here."""

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Delete files, those that are there. Folders left empty go too, where there are folders."""

    @abstractmethod
    def tidy(self, below: str) -> None:
        """Remove empty folders from one on downwards, where there are folders."""

    @abstractmethod
    def folders(self, below: str) -> list[str]:
        """Names of the folders directly in a folder, sorted; not the hidden ones."""

    @abstractmethod
    def list(self, below: str = "") -> list[str]:
        """Names of all files below a folder, sorted; hidden ones too."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none."""

    @abstractmethod
    def sha256(self, name: str) -> str:
        """Of a file as the store holds it, read again; 64 hex digits."""

    @abstractmethod
    def drafts(self, below: str) -> AbstractContextManager[Path]:
        """A context: a local folder for files that are to be put below a folder of the store. Gone afterwards."""

    def lend(self, name: str, target: Path) -> None:
        """`fetch`, where a link will do: for a target that is not written to."""
        self.fetch(name, target)

    def link(self, pairs: Iterable[tuple[str, str]]) -> None:
        """`copy`, where a second name will do: for files that are not changed any more."""
        self.copy(pairs)

    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        """`size` of several files."""
        return {name: self.size(name) for name in names}

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self.size(name) is not None


def whole_piece(place: str, piece: bytes, start: int, size: int) -> bytes:
    """`piece` if it has the size that was asked for. Raises CatalogError."""
    if len(piece) != size:
        found = f"{len(piece)} bytes from {start} on"
        raise CatalogError(place, found, f"{size} bytes", "The file is not the one that was published, or is damaged")
    return piece


def other_bytes(source: bytes | Path, name: str) -> CatalogError:
    """The error of a file that is not what its sha256 says."""
    field = str(source) if isinstance(source, Path) else name
    return CatalogError(field, "bytes that changed while being copied", "the recorded sha256", "Verify the source")


def _copy_flushed(source: bytes | Path, target: Path) -> None:
    """A file of the same bytes, flushed to disk."""
    if isinstance(source, bytes):
        write_flushed(target, source)
        return
    with source.open("rb") as reading:
        write_flushed_by(target, lambda stream: shutil.copyfileobj(reading, stream, _BLOCK))


class LocalStore(Store):
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, str(folder)

    def path(self, name: str) -> Path:
        """Where a file is. Raises CatalogError for a symbolic link in its way."""
        target = self.folder
        for part in checked_name(name).split("/"):
            target = target / part
            if target.is_symlink():
                raise CatalogError(str(target), "a symbolic link", "a plain file or folder within the store")
        return target

    def read(self, name: str) -> bytes:
        with self.clear_errors(name):
            return self.path(name).read_bytes()

    def read_range(self, name: str, start: int, size: int) -> bytes:
        with self.clear_errors(name), self.path(name).open("rb") as stream:
            stream.seek(start)
            return whole_piece(f"{self.place}: {name}", stream.read(size), start, size)

    def fetch(self, name: str, target: Path) -> None:
        with self.clear_errors(name):
            shutil.copyfile(self.path(name), target)

    def lend(self, name: str, target: Path) -> None:
        with self.clear_errors(name):
            try:
                os.link(self.path(name), target)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                write_flushed(target, self.path(name).read_bytes())

    def put(self, name: str, source: Path) -> None:
        with self.clear_errors(name):
            target = self._parent_of(name)
            source.replace(target)
            flush_folder(target.parent)

    def keep(self, name: str, source: bytes | Path, sha256: str) -> None:
        with self.clear_errors(name):
            target = self._parent_of(name)
            draft = target.parent / f".{secrets.token_hex(8)}.tmp"
            try:
                _copy_flushed(source, draft)
                if sha256_of(draft) != sha256:
                    raise other_bytes(source, name)
                draft.chmod(0o444)
                draft.replace(target)
            finally:
                draft.unlink(missing_ok=True)
            flush_folder(target.parent)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        with self.clear_errors(name):
            target = self._parent_of(name)
            draft = self._draft(target, data)
            try:
                os.link(draft, target)
            except FileExistsError:
                return target.read_bytes() == data
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return self._created(target, data)
            finally:
                draft.unlink()
            flush_folder(target.parent)
            return True

    @staticmethod
    def _created(target: Path, data: bytes) -> bool:
        """A new file on a file system without hard links; in place, so that a crash may leave it torn."""
        try:
            create_flushed(target, data)
        except FileExistsError:
            return target.read_bytes() == data
        return True

    def replace(self, name: str, data: bytes) -> None:
        with self.clear_errors(name):
            target = self._parent_of(name)
            self._draft(target, data).replace(target)
            flush_folder(target.parent)

    def copy(self, pairs: Iterable[tuple[str, str]]) -> None:
        for name, to in pairs:
            with self.clear_errors(name):
                self._placed(to, lambda draft, name=name: shutil.copyfile(self.path(name), draft))  # type: ignore[misc]

    def link(self, pairs: Iterable[tuple[str, str]]) -> None:
        folders = set()
        for name, to in pairs:
            with self.clear_errors(name):
                folders.add(self._placed(to, lambda draft, name=name: self._linked(self.path(name), draft)))  # type: ignore[misc]
        for folder in folders:
            flush_folder(folder)

    def _placed(self, name: str, make: Callable[[Path], object]) -> Path:
        """Put a file in place that `make(draft)` makes; its folder."""
        target = self._parent_of(name)
        draft = target.parent / f".{secrets.token_hex(8)}.tmp"
        try:
            make(draft)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)  # a link that replaces one of the same file stays
        return target.parent

    @staticmethod
    def _linked(path: Path, target: Path) -> None:
        try:
            os.link(path, target)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            _copy_flushed(path, target)
            target.chmod(0o444)

    def delete(self, names: Iterable[str]) -> None:
        folders = set()
        for name in names:
            path = self.path(name)
            with suppress(FileNotFoundError):
                path.unlink()
            folders.add(path.parent)
        for folder in folders:
            while folder != self.folder:
                try:
                    folder.rmdir()
                except OSError:  # not empty, or gone
                    break
                folder = folder.parent

    def tidy(self, below: str) -> None:
        for base, _, _ in os.walk(self.path(below), topdown=False):
            with suppress(OSError):  # not empty
                Path(base).rmdir()

    def folders(self, below: str) -> list[str]:
        try:
            found = list(self.path(below).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(p.name for p in found if p.is_dir() and not p.is_symlink() and not p.name.startswith("."))

    def list(self, below: str = "") -> list[str]:
        top = self.path(below) if below else self.folder
        found = (Path(base) / name for base, _, names in os.walk(top) for name in names)
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def size(self, name: str) -> int | None:
        path = self.path(name)
        return path.stat().st_size if path.is_file() else None

    def sha256(self, name: str) -> str:
        with self.clear_errors(name):
            return sha256_of(self.path(name))

    @contextmanager
    def drafts(self, below: str) -> Iterator[Path]:
        with self.clear_errors(below):
            parent = self.path(below)
            parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".draft-", dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # what was put is in it
                parent.rmdir()

    def _parent_of(self, name: str) -> Path:
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @staticmethod
    def _draft(target: Path, data: bytes) -> Path:
        draft = target.parent / f".{secrets.token_hex(8)}.tmp"
        try:
            write_flushed(draft, data)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return draft

    @contextmanager
    def clear_errors(self, name: str) -> Iterator[None]:
        """A context whose errors of the file system are made clear; `name` is what it is about."""
        try:
            yield
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.place}: {name}", "no such file", "a file of the store") from error
        except PermissionError as error:
            found = f"{self.place}: {error.strerror}"
            raise InputError("store", found, "a folder that may be read and written") from error
        except OSError as error:
            clear = disk_error(self.folder, error)
            if clear is None:
                raise
            raise clear from error
