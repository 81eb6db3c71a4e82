"""Who may write to a catalog in a distant store: one process at a time, of whichever machine.

A lease is a small object of the store, which its holder changes every RENEWED seconds. Clocks of machines are never
compared: who wants it watches, by its own clock, whether it changes. See "Distant stores" in format.md.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from catalog.entries import Count, Id, Strict
from catalog.fs import LEASE
from catalog.store import Store
from catalog.transaction import Lock
from pipeline.errors import BusyError, ConflictError, NotFoundError, RhumbError

RENEWED = 20.0  # seconds between two changes of a lease that is held
STALE = 180.0  # seconds without one after which its holder counts as dead
_LOOK = 2.0  # seconds between two looks at a lease that is waited for
_HELD: set[str] = set()
"""Ids of the leases that this process holds: one whose release could not be written down is free all the same."""

_Word = Annotated[str, Field(pattern=r"^[ -~]{0,255}$")]


def born(pid: int) -> str | None:
    """When a process was started, in ticks since boot, which tells it from a later one of its number.

    None where there is no such process, or only what is left of one; "" where the system does not tell.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[19] if fields[0] not in ("Z", "X") else None
    except (OSError, IndexError):
        return ""


def _scope() -> str:
    """Within what a process id means one process: this boot of this machine, and container; "" where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


class Holder(Strict):
    """Who holds a lease. `beat` rises with every renewal; `over`: it was given back."""

    id: Id
    host: _Word
    scope: _Word
    process: Count
    born: _Word
    beat: Count = 0
    over: bool = False

    @classmethod
    def this(cls) -> Holder:
        """This process, under a new id."""
        host = socket.gethostname().encode("ascii", "replace").decode()[:255]
        pid = os.getpid()
        return cls(id=secrets.token_hex(16), host=host, scope=_scope(), process=pid, born=born(pid) or "")

    @property
    def alive(self) -> bool | None:
        """Whether it still holds its lease, as far as this machine can tell; None where it cannot."""
        if self.over or not self.scope or self.scope != _scope():
            return False if self.over else None
        if self.process == os.getpid() and self.born in ("", born(self.process)):
            return self.id in _HELD
        return self.process > 0 and born(self.process) is not None and self.born in ("", born(self.process))

    def __str__(self) -> str:
        return f"process {self.process} of {self.host}"


def _read(data: bytes) -> Holder | None:
    try:
        return Holder.model_validate_json(data)
    except ValidationError:
        return None


def _name(number: int) -> str:
    return f"{LEASE}/{number}.json"


class Lease:
    """The right to write to a store, from the moment this is made until `release`; a daemon thread renews it.

    `patient`: whether to wait, STALE seconds at most, for a holder that may be dead. One that is seen to renew its
    lease, or that is alive on this machine, is never waited for.

    Raises BusyError, which names the holder; StoreError, InputError.
    """

    def __init__(self, store: Store, patient: bool) -> None:
        self._store, self._holder = store, Holder.this()
        self._turn, self._ended = threading.Lock(), threading.Event()
        self._number = self._taken(patient)
        threading.Thread(target=self._renew, name="rhumb-lease", daemon=True).start()

    def _taken(self, patient: bool) -> int:
        """The number under which the lease was taken: of several who try to follow a holder, one gets it."""
        until, seen = time.monotonic() + STALE, self._last()
        while True:
            number, data = seen
            holder = _read(data)
            alive = holder.alive if holder is not None else False if not number else None
            if alive or (alive is None and not patient):
                raise self._busy(holder)
            if alive is False or time.monotonic() >= until:
                _HELD.add(self._holder.id)
                if self._store.put_if_absent(_name(number + 1), self._dump()):
                    self._forget(number + 1)
                    return number + 1
                _HELD.discard(self._holder.id)
            time.sleep(_LOOK)
            before, seen = seen, self._last()
            changed = _read(seen[1])
            if seen != before and not (changed is not None and changed.over):
                raise self._busy(changed)

    def _numbers(self) -> list[int]:
        stems = (name.rpartition("/")[2].removesuffix(".json") for name in self._store.list(LEASE))
        return sorted(int(stem) for stem in stems if stem.isdecimal() and len(stem) < 16)

    def _last(self) -> tuple[int, bytes]:
        """The number of the last lease, 0 for none, and what is written there."""
        number = max(self._numbers(), default=0)
        try:
            return number, self._store.read(_name(number)) if number else b""
        except NotFoundError:  # given way to a later one since
            return number, b""

    def _forget(self, number: int) -> None:
        """Remove the leases before one."""
        with suppress(RhumbError):  # they mean nothing
            self._store.delete([_name(former) for former in self._numbers() if former < number])

    def _busy(self, holder: Holder | None) -> BusyError:
        return BusyError(
            self._store.place, f"another writer ({holder or 'unknown'})", "one writer at a time",
            "Wait for it to end, then run the same command again; a run (`rhumb mine`, `rhumb refresh`) takes over "
            f"from one on another machine that has given no sign of life for {STALE:g} s",
        )  # fmt: skip

    def _dump(self) -> bytes:
        return self._holder.model_dump_json().encode()

    def _follower(self) -> str | None:
        """Who has taken over; None where nobody has."""
        number, data = self._last()
        return str(_read(data) or "another writer") if number > self._number else None

    def check(self) -> None:
        """Raise ConflictError where another has taken over, as from a machine that slept; StoreError.

        Cost: a listing of the store.
        """
        if (other := self._follower()) is not None:
            raise ConflictError(
                self._store.place, f"a lease that {other} has taken over", "the one of this writer",
                f"This one gave no sign of life for {STALE:g} s. What it committed stands, what was deposited is taken "
                "in by the other; run the same command again when that has ended",
            )  # fmt: skip

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED):
            with suppress(RhumbError), self._turn:  # before each commit it is asked for again
                if self._ended.is_set() or self._follower() is not None:
                    return
                self._write({"beat": self._holder.beat + 1})

    def _write(self, update: dict[str, object]) -> None:
        self._holder = self._holder.model_copy(update=update)
        self._store.replace(_name(self._number), self._dump())

    def release(self) -> None:
        """Give the lease back, as far as the store can be told. Safe to call twice."""
        if self._ended.is_set():
            return
        self._ended.set()
        _HELD.discard(self._holder.id)
        with self._turn, suppress(RhumbError):
            if self._follower() is None:
                self._write({"over": True})


class StoreLock(Lock):
    """The lock of the folder that mirrors a store, and the lease of that store."""

    def __init__(self, folder: Path, store: Store, patient: bool) -> None:
        super().__init__(folder)
        try:
            self._lease = Lease(store, patient)
        except BaseException:
            super().free()
            raise

    def check(self) -> None:
        """Raise ConflictError where the lock was given back, or another has taken over; StoreError."""
        super().check()
        self._lease.check()

    def free(self) -> None:
        """Give both back. Safe to call twice."""
        if not self.freed:
            try:
                self._lease.release()
            finally:
                super().free()
