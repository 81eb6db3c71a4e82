"""The files of a data set where they lie: in a folder, a zip or a tar. Nothing is ever extracted to disk.

Names are checked when a listing is made (no absolute path, no `..`, no links, none twice), sizes when a file is read.
An archive that cannot be listed is an InputError, a member that cannot be read a BrokenImageError: one of many.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Protocol, Self, TypeVar, cast

from flows.datasets.contract import BrokenImageError
from flows.datasets.pictures import shown_name
from pipeline.errors import InputError

MAX_MEMBER = 256 * 2**20
"""Bytes of one file unless a reader asks for more: no picture of 100 million pixels needs more once encoded."""
MAX_MEMBERS = 20_000_000
MAX_GROWTH = 200
"""How many times its own size a compressed tar may unpack to; pictures hardly shrink at all."""
FREE_GROWTH = 2**30
MAX_HEADER = 2**20
_BLOCK = 512  # of a tar
_Member = TypeVar("_Member")
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, ValueError)
_ZIP_DAMAGE = (*_DAMAGE, RuntimeError, OverflowError)  # also what zipfile says of versions that it does not know


class Members(ABC):
    """Files by name, `/` between folders, in a folder or an archive. Close it, or use it in `with`.

    Not for use by several threads. A compressed tar is read forwards at little cost, and from its start after a step
    back: read its files in the order of `names()`.
    """

    path: Path

    @abstractmethod
    def names(self) -> list[str]:
        """Names of all plain files, but for hidden ones (`.x`, `__MACOSX/x`), in the archive's order; a folder's are
        sorted."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes that `name` has, or says that it has. Raises BrokenImageError: it is not there."""

    @abstractmethod
    def part(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes of `name` from `start`. Raises BrokenImageError: fewer are there, or they are damaged."""

    def read(self, name: str, limit: int = MAX_MEMBER) -> bytes:
        """All of `name`. Raises BrokenImageError: it is larger than `limit`, ends early, or is damaged."""
        size = self.size(name)
        if size > limit:
            raise BrokenImageError(f"{shown_name(name)} says it has {size:,} bytes, more than {limit:,}")
        return self.part(name, 0, size)

    def close(self) -> None:
        """Let go of the file. Twice does no harm."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def open_members(path: Path, field: str = "dataset.path") -> Members:
    """The files in the folder, zip or tar (plain, gz, bz2, xz) at `path`, told by content and not by suffix.

    Raises:
        InputError: nothing there, no archive, a truncated or encrypted one, or one with an unsafe name.
    """
    if path.is_dir():
        return FolderMembers(path, field)
    if not path.is_file():
        raise InputError(field, f"nothing at {path}", "a folder, a zip or a tar")
    try:
        with path.open("rb") as file:
            start = file.read(_BLOCK)
    except OSError as error:
        raise InputError(field, f"{path} ({error.strerror})", "a file that can be read") from error
    if start.startswith(b"PK"):
        return ZipMembers(path, field)
    if _unpacker(start) is not None or start[257:262] == b"ustar":
        return TarMembers(path, field)
    raise InputError(field, f"{path}, which is {'empty' if not start else 'no archive'}", "a folder, a zip or a tar")


class FolderMembers(Members):
    """Every file below a folder. Links that its owner made there are followed; names that lead out of it are not."""

    def __init__(self, path: Path, field: str = "dataset.path") -> None:
        self.path, self._root, self._field = path, path.resolve(), field
        self._names = sorted(self._walk(self._root, "", (self._root,)))

    def _walk(self, folder: Path, prefix: str, above: tuple[Path, ...]) -> Iterator[str]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if is_hidden(name):
                        continue
                    if entry.is_dir():
                        inner = (folder / entry.name).resolve()
                        if inner in above:
                            raise InputError(
                                self._field, f"{name}, a link to a folder that it lies in", "folders without circles"
                            )
                        yield from self._walk(inner, name + "/", (*above, inner))
                    elif entry.is_file() or entry.is_symlink():
                        yield name
        except OSError as error:
            raise InputError(self._field, f"{folder} ({error.strerror})", "a folder that can be read") from error

    def names(self) -> list[str]:
        return list(self._names)

    def size(self, name: str) -> int:
        try:
            return self._file(name).stat().st_size
        except OSError as error:
            raise BrokenImageError(f"{shown_name(name)} cannot be read ({error.strerror})") from error

    def part(self, name: str, start: int, length: int) -> bytes:
        try:
            with self._file(name).open("rb") as file:
                file.seek(start)
                return _exactly(file.read(length), length, name)
        except OSError as error:
            raise BrokenImageError(f"{shown_name(name)} cannot be read ({error.strerror})") from error

    def _file(self, name: str) -> Path:
        file = self._root / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BrokenImageError(f"{shown_name(name)} leads out of the folder")
        if not file.exists():
            raise BrokenImageError(f"{shown_name(name)} is not there")
        if not file.is_file():
            raise BrokenImageError(f"{shown_name(name)} is no plain file")
        return file


class ZipMembers(Members):
    """A zip read in place."""

    def __init__(self, path: Path, field: str = "dataset.path") -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except _ZIP_DAMAGE as error:
            raise InputError(
                field,
                f"{path}, a zip that cannot be listed ({error})",
                "a whole zip",
                "It is damaged or cut: get it again.",
            ) from error
        try:
            members = self._zip.infolist()
            for member in members:
                mode = member.external_attr >> 16
                _refuse(stat.S_ISLNK(mode), member.filename, "which is a link", path, field)
                _refuse(bool(member.flag_bits & 0x41), member.filename, "which is encrypted", path, field)
            plain = (member for member in members if not member.is_dir())
            self._members = _listed(((member.filename, member) for member in plain), path, field)
        except InputError:
            self.close()
            raise

    def names(self) -> list[str]:
        return list(self._members)

    def size(self, name: str) -> int:
        return _known(self._members, name).file_size

    def part(self, name: str, start: int, length: int) -> bytes:
        # zipfile stops at the size that the header tells, and compares the checksum at the end.
        try:
            with self._zip.open(_known(self._members, name)) as file:
                if start:
                    file.seek(start)
                return _exactly(file.read(length), length, name)
        except _ZIP_DAMAGE as error:
            raise BrokenImageError(f"{shown_name(name)} cannot be unpacked ({error})") from error

    def close(self) -> None:
        if hasattr(self, "_zip"):
            self._zip.close()


class TarMembers(Members):
    """A tar read in place, compressed or not. Listing a compressed one unpacks it once, holding none of it."""

    def __init__(self, path: Path, field: str = "dataset.path") -> None:
        self.path = path
        raw = path.open("rb")
        unpack = _unpacker(raw.read(_BLOCK))
        raw.seek(0)
        allowed = max(FREE_GROWTH, MAX_GROWTH * path.stat().st_size)
        self._file: _Stream = raw if unpack is None else _Unpacked(unpack(raw), raw, allowed)
        try:
            self._members = _listed(self._walk(field), path, field)
        except (*_DAMAGE, BrokenImageError) as error:
            self.close()
            if isinstance(error, InputError):
                raise
            raise InputError(
                field, f"{path} ({error})", "a whole tar", "It is damaged, cut, or no tar: get it again."
            ) from error

    def _walk(self, field: str) -> Iterator[tuple[str, tuple[int, int]]]:
        tar = tarfile.TarFile(fileobj=cast(IO[bytes], _Headers(self._file)))
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
            _refuse(member.issym() or member.islnk(), member.name, "which is a link", self.path, field)
            _refuse(not (member.isdir() or member.isreg()), member.name, "which is no plain file", self.path, field)
            _refuse(bool(member.issparse()), member.name, "which is a sparse file", self.path, field)
            if not member.isdir():
                yield member.name, (member.offset_data, member.size)
        # tarfile takes garbage and a missing end for the end.
        self._file.seek(tar.offset)
        if self._file.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError(f"it has no end mark where its end is, {tar.offset:,} bytes in")

    def names(self) -> list[str]:
        return list(self._members)

    def size(self, name: str) -> int:
        return _known(self._members, name)[1]

    def part(self, name: str, start: int, length: int) -> bytes:
        offset, size = _known(self._members, name)
        try:
            # Not tarfile's own reader: its read-ahead would make every next read of a compressed tar a step back.
            self._file.seek(offset + start)
            return _exactly(self._file.read(max(min(length, size - start), 0)), length, name)
        except _DAMAGE as error:
            raise BrokenImageError(f"{shown_name(name)} cannot be unpacked ({error})") from error

    def close(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class _Stream(Protocol):
    """What is needed of an open file."""

    def seek(self, offset: int, whence: int = ..., /) -> int: ...
    def read(self, size: int = ..., /) -> bytes: ...
    def tell(self) -> int: ...
    def close(self) -> None: ...


class _Unpacked:
    """The unpacked stream of a compressed file; refuses to go beyond `allowed` bytes."""

    def __init__(self, stream: _Stream, raw: _Stream, allowed: int) -> None:
        self._stream, self._raw, self._allowed = stream, raw, allowed
        self.read, self.tell = stream.read, stream.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if offset > self._allowed:
            raise tarfile.ReadError(f"it would unpack to more than {self._allowed:,} bytes")
        return self._stream.seek(offset, whence)

    def close(self) -> None:
        self._stream.close()
        self._raw.close()


class _Headers:
    """What tarfile reads headers from: it would take one of any size into memory (long names, pax records)."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._stream.read(size)


def _unpacker(start: bytes) -> Callable[[IO[bytes]], _Stream] | None:
    """What unpacks a file that starts so; None where nothing needs to."""
    if start.startswith(b"\x1f\x8b"):
        return lambda raw: gzip.GzipFile(fileobj=raw, mode="rb")
    if start.startswith(b"BZh"):
        return bz2.BZ2File
    return lzma.LZMAFile if start.startswith(b"\xfd7zXZ\x00") else None


def _listed(members: Iterable[tuple[str, _Member]], path: Path, field: str) -> dict[str, _Member]:
    """Members by plain name, hidden ones left out. Raises InputError: an unsafe name, one that is there twice."""
    found: dict[str, _Member] = {}
    for raw, member in members:
        parts = re.split(r"[/\\]", raw)
        unsafe = not raw or raw[0] in "/\\" or re.match(r"[A-Za-z]:", raw) is not None or ".." in parts
        _refuse(unsafe, raw, "which leads out of the archive", path, field)
        name = "/".join(part for part in raw.split("/") if part not in ("", "."))
        _refuse(name in found, raw, "which is there twice", path, field)
        _refuse(len(found) >= MAX_MEMBERS, raw, f"one of more than {MAX_MEMBERS:,}", path, field)
        if not is_hidden(name):
            found[name] = member
    return found


def _known(members: Mapping[str, _Member], name: str) -> _Member:
    if name not in members:
        raise BrokenImageError(f"{shown_name(name)} is not there")
    return members[name]


def is_hidden(name: str) -> bool:
    """Whether a file is hidden or in a hidden folder, `/` between folders, such as what macOS leaves beside files."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _refuse(wrong: bool, name: str, what: str, path: Path, field: str) -> None:
    if wrong:
        raise InputError(
            field,
            f"{shown_name(name)!r} in {path}, {what}",
            "an archive of plain, unencrypted files, each below its root and there once",
            "Nothing was read; do not trust an archive that holds such a thing unless you made it.",
        )


def _exactly(data: bytes, length: int, name: str) -> bytes:
    if len(data) != length:
        raise BrokenImageError(f"{shown_name(name)} ends after {len(data):,} of {length:,} bytes")
    return data
