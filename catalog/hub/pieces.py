"""Pieces of published files: what was read of each, kept in a sparse file of the cache, so that it travels once.

A piece is recorded only once it is on disk. Nothing of it is compared with a checksum here: who reads it does, and has
it dropped where it is wrong. Pieces may be deleted at any time.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from catalog.fs import disk_error, flush_folder, sha256_of, write_flushed
from catalog.hub.cache import writable_cache
from catalog.hub.contract import Snapshot
from catalog.manifest import FileEntry
from catalog.shards import Span
from catalog.store import StoreError
from pipeline.errors import CatalogError, InputError, NotFoundError

Range = tuple[int, int]
"""The first byte of a piece, and the one after its last."""
AGAIN = (0.5, 2.0, 8.0)  # seconds before a call is tried again that may pass by itself
ANEW = "Have it published anew"
_GAP = 2**14  # bytes between two pieces that are fetched along, rather than asked for apart
_LARGEST = 2**23  # bytes of one request: what a cut connection loses
_BATCH = 2**26  # bytes after which what has come is recorded
_ABREAST = 8  # requests at once
_DRAFT = ".tmp"
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP})
Result = TypeVar("Result")


def patiently(call: Callable[[], Result]) -> Result:
    """`call()`, tried again where a StoreError says that it may help."""
    for pause in AGAIN:
        try:
            return call()
        except StoreError:
            time.sleep(pause)
    return call()


def pieces_folder(origin: str) -> Path:
    """Where the pieces of the files of one repository lie: below $RHUMB_CACHE, or ~/.cache/rhumb, if that is writable.

    Each repository has its own: one that names the files of another could otherwise leave wrong pieces of them.
    """
    return writable_cache() / "pieces" / hashlib.sha256(origin.encode()).hexdigest()[:16]


def joined(ranges: Iterable[Range], gap: int = 0) -> list[Range]:
    """Ranges in order, those as one that meet, or lie less than `gap` bytes apart; empty ones left out."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if end <= start:
            continue
        if found and (start <= found[-1][1] or start - found[-1][1] < gap):
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def without(ranges: Sequence[Range], others: Sequence[Range]) -> list[Range]:
    """What of joined ranges is in none of some others, which are joined too."""
    found, number = [], 0
    for start, end in ranges:
        while number < len(others) and others[number][1] <= start:
            number += 1
        at, following = start, number
        while following < len(others) and others[following][0] < end:
            if others[following][0] > at:
                found.append((at, others[following][0]))
            at, following = max(at, others[following][1]), following + 1
        if at < end:
            found.append((at, end))
    return found


class Pieces:
    """What is here of one published file. Several processes may fill it at once; not for several threads.

    `fetched`: bytes that came through it so far.
    """

    def __init__(self, folder: Path, snapshot: Snapshot, name: str, entry: FileEntry) -> None:
        self.path, self.fetched = folder / entry.sha256, 0
        self._record = folder / f"{entry.sha256}.held"
        self._snapshot, self._name, self._entry = snapshot, name, entry
        self._place = f"{snapshot.place}/{name}"
        self._held: list[Range] = []
        self._asked: list[Range] = []

    def need(self, spans: Sequence[Span]) -> None:
        """Have some pieces, (first byte, bytes) each, here: those that are not are fetched, neighbours together.

        What has come is kept whatever happens to the rest. Raises CatalogError: no such file or piece there, no space
        left; StoreError.
        """
        wanted = joined((start, start + size) for start, size in spans)
        self._asked += wanted
        if not without(wanted, self._held):
            return
        with self._locked() as descriptor:
            self._held = self._recorded()
            missing = without(wanted, self._held)
            self._fill(descriptor, without(joined(missing, _GAP), self._held))

    def mark(self) -> None:
        """Forget what was asked for so far: it proved right."""
        self._asked = []

    def drop(self) -> None:
        """Forget the pieces that were asked for since the last `mark`: one of them is damaged."""
        with self._locked():
            self._keep(without(self._recorded(), joined(self._asked)))
        self.mark()

    def whole(self) -> Path:
        """The file, whole and compared with its sha256; what is not here is fetched, and all once more if it differs.

        Raises CatalogError: damaged in the hub, or missing; StoreError.
        """
        with self._locked() as descriptor:
            self._held = self._recorded()
            if self._held:
                self._fill(descriptor, without([(0, self._entry.bytes)], self._held))
                if sha256_of(self.path) == self._entry.sha256:
                    return self.path
                self._keep([])
            for anew in (False, True):
                if self._fetch_whole(anew):
                    self._keep([(0, self._entry.bytes)])
                    return self.path
        raise CatalogError(self._place, "changed bytes", "the published sha256", ANEW)

    # -- fetching --------------------------------------------------------------------------------------------------

    def _fetch_whole(self, anew: bool) -> bool:
        """Put the file in place as the hub has it, if it is what was published."""
        draft = self.path.with_name(f"{self._entry.sha256}{_DRAFT}")

        def fetch() -> None:
            draft.unlink(missing_ok=True)
            self._snapshot.fetch(self._name, self._entry, draft, anew)

        try:
            self._ask(fetch)
            self.fetched += draft.stat().st_size
            if draft.stat().st_size != self._entry.bytes or sha256_of(draft) != self._entry.sha256:
                return False
            with draft.open("rb") as stream:
                os.fsync(stream.fileno())
            draft.replace(self.path)
            return True
        finally:
            draft.unlink(missing_ok=True)

    def _fill(self, descriptor: int, ranges: Iterable[Range]) -> None:
        """Fetch ranges into the file and record them, a batch at a time."""
        parts = [(at, min(at + _LARGEST, end)) for start, end in ranges for at in range(start, end, _LARGEST)]
        while parts:
            size, batch = 0, list[Range]()
            while parts and size < _BATCH:
                batch.append(parts.pop(0))
                size += batch[-1][1] - batch[-1][0]
            self._fill_batch(descriptor, batch)

    def _fill_batch(self, descriptor: int, batch: Sequence[Range]) -> None:
        done: list[Range] = []

        def fill(part: Range) -> None:
            data = memoryview(self._ask(lambda: self._piece(part)))
            at = part[0]
            while data:
                written = os.pwrite(descriptor, data, at)
                data, at = data[written:], at + written
            done.append(part)

        pool = ThreadPoolExecutor(min(_ABREAST, len(batch)))
        try:
            for finished in [pool.submit(fill, part) for part in batch]:
                finished.result()
        finally:
            pool.shutdown(cancel_futures=True)
            self.fetched += sum(end - start for start, end in done)
            os.fsync(descriptor)
            self._keep(joined([*self._held, *done]))

    def _piece(self, part: Range) -> bytes:
        start, size = part[0], part[1] - part[0]
        data = self._snapshot.read(self._name, self._entry, start, size)
        if len(data) != size:
            raise CatalogError(self._place, f"{len(data)} bytes from byte {start} on", f"{size}", ANEW)
        return data

    def _ask(self, call: Callable[[], Result]) -> Result:
        try:
            return patiently(call)
        except NotFoundError as error:
            raise CatalogError(self._place, "missing from the pack", "the published file", ANEW) from error

    # -- what is here ----------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The file, of its full size, which no other process fills in the meantime; its descriptor."""
        descriptor = -1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while descriptor < 0:
                descriptor = self._lock()
            if os.fstat(descriptor).st_size != self._entry.bytes:
                self._record.unlink(missing_ok=True)
                os.ftruncate(descriptor, self._entry.bytes)
            yield descriptor
        except OSError as error:
            if error.errno in _REFUSED:
                found = f"{self.path.parent}: {error.strerror}"
                raise InputError("cache", found, "a folder that can be written", "Set RHUMB_CACHE to one") from error
            if error.errno in (errno.EFBIG, errno.EINVAL):
                raise CatalogError(self._name, f"{self._entry.bytes} bytes", "a file that a disk can hold") from error
            clear = disk_error(self.path.parent, error)
            if clear is None:
                raise
            raise clear from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _lock(self) -> int:
        """A descriptor of the file that holds its lock; -1 where another took its place before the lock was had."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), self.path.stat()):
                return descriptor
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, FileNotFoundError):
                return -1
            raise
        os.close(descriptor)
        return -1

    def _recorded(self) -> list[Range]:
        """The ranges that are here, as they were recorded; none where that cannot be told."""
        try:
            found = [(int(start), int(end)) for start, end in json.loads(self._record.read_bytes())["held"]]
        except (OSError, ValueError, LookupError, TypeError):
            return []
        right = all(0 <= start < end <= self._entry.bytes for start, end in found)
        return joined(found) if right else []

    def _keep(self, held: list[Range]) -> None:
        """Record which ranges are here, which are on disk."""
        draft = self._record.with_name(f"{self._record.name}{_DRAFT}")
        write_flushed(draft, json.dumps({"held": held}).encode())
        draft.replace(self._record)
        flush_folder(self._record.parent)
        self._held = held
