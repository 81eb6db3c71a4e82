"""Files that survive a crash: flushed writes, checksums, and paths that cannot leave their folder."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from pipeline.errors import CatalogError, InputError

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
FOLDERS: tuple[str, ...] = ("directions", "images", "regions", "index", "concepts", "pictures")
CARD = "README.md"
MANIFEST = "manifest.json"
LOCK = ".lock"
STAGING = ".staging"
VERSIONS = ".versions"
CACHE = ".cache"
INCOMING = ".incoming"
RUN = ".run"
ORIGIN = ".origin"
PROBE = ".probe"
RECEIPTS = ".receipts"
LEASE = ".lease"
PULLED = ".pulled.json"
PRIVATE: tuple[str, ...] = (STAGING, VERSIONS, CACHE, INCOMING, RUN, PROBE, RECEIPTS, LEASE, PULLED)  # no part of it
PARQUET_TAIL = 8  # bytes after the footer: its length and the magic
FULL_DISK: frozenset[int] = frozenset({errno.ENOSPC, errno.EDQUOT})
UNWRITABLE: frozenset[int] = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
)
NO_LINKS: frozenset[int] = frozenset(
    {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
)


def cache_folder() -> Path:
    """Where what may be fetched again is kept: $RHUMB_CACHE, else ~/.cache/rhumb."""
    return Path(os.environ.get("RHUMB_CACHE") or Path.home() / ".cache" / "rhumb").absolute()


def check_relative(path: str) -> str:
    """`path` if it is a file name that a catalog may list. Raises CatalogError for anything else."""
    parts = path.split("/")
    plain = all(_PART.fullmatch(part) and ".." not in part for part in parts)
    if path != CARD and not (plain and len(parts) == 2 and parts[0] in FOLDERS):
        raise CatalogError("file name", repr(path)[:200], f"{CARD} or a plain name in one of {', '.join(FOLDERS)}")
    return path


def check_part(part: str) -> str:
    """`part` if it is the plain name of one file or folder. Raises CatalogError."""
    if not _PART.fullmatch(part) or ".." in part:
        raise CatalogError("name", repr(part)[:200], "letters, digits, . _ and -, beginning with no . or -")
    return part


def inside(root: Path, path: str) -> Path:
    """`root / path` for a listed file, with no symbolic link below `root`. Raises CatalogError."""
    target = root
    for part in check_relative(path).split("/"):
        target = target / part
        if target.is_symlink():
            raise CatalogError(str(target), "a symbolic link", "a plain file or folder within the catalog")
    return target


def sha256_of(path: Path) -> str:
    """sha256 of a file, 64 hex digits, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def footer_of(path: Path, action: str = "Pull or mine it again") -> bytes:
    """A Parquet file's footer, with its length and magic. Raises CatalogError for what cannot be one."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(0, size - PARQUET_TAIL))
        tail = stream.read()
        length = int.from_bytes(tail[:4], "little") + PARQUET_TAIL
        if tail[4:] != b"PAR1" or length > size:
            raise CatalogError(str(path), "no Parquet footer", "a whole Parquet shard", action)
        stream.seek(size - length)
        return stream.read(length)


def footer_sha256(path: Path) -> str:
    """sha256 of `footer_of` a Parquet file."""
    return hashlib.sha256(footer_of(path)).hexdigest()


def flush_folder(folder: Path) -> None:
    """Make renames and unlinks within `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_flushed(path: Path, data: bytes) -> None:
    """Write `data` and flush it to disk; not atomic, for files under a temporary name."""
    write_flushed_by(path, lambda stream: stream.write(data))


def create_flushed(path: Path, data: bytes) -> None:
    """`write_flushed` to a file that is new, in place: a crash may leave it torn. Raises FileExistsError."""
    write_flushed_by(path, lambda stream: stream.write(data), "xb")


def write_flushed_by(path: Path, write: Callable[[BinaryIO], object], mode: Literal["wb", "xb"] = "wb") -> None:
    """`write_flushed` for what writes itself to a stream."""
    with path.open(mode) as stream:
        write(stream)
        stream.flush()
        os.fsync(stream.fileno())


def disk_error(where: Path, error: OSError) -> CatalogError | None:
    """The clear form of a full disk or quota, None for any other error."""
    if error.errno not in FULL_DISK:
        return None
    return CatalogError(
        str(where), f"no space left ({error.strerror})", "room for the new files",
        "The former version is intact; free some space and run the same command again",
    )  # fmt: skip


@contextmanager
def writing_to(where: str | Path) -> Iterator[None]:
    """A context whose errors of the file system are made clear: CatalogError for a full disk, InputError for a folder
    that cannot be written to, or not be made."""
    try:
        yield
    except OSError as error:
        clear = disk_error(Path(where), error)
        if clear is not None:
            raise clear from error
        if error.errno not in UNWRITABLE:
            raise
        raise InputError(
            "folder", f"{str(where)[:200]} ({error.strerror})", "one that can be made and written to",
            "Choose another by --out (RHUMB_CACHE for mirrors of stores), or see to who may write there",
        ) from error  # fmt: skip
