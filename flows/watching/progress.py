"""How far a run is, how fast, what failed and how good it is: told to whoever watches, in memory that does not grow."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from catalog.lease import born
from catalog.secrecy import without_secrets
from flows.console import complain
from flows.watching.events import event
from flows.watching.samples import Reservoir
from flows.watching.snapshots import FILE, Snapshot, Spread, State, runs_folder
from pipeline.errors import CatalogError

if TYPE_CHECKING:
    from flows.watching.run_report import RunReport

SECONDS = 1.0  # between two calls of the watchers, at least
LISTED = 200  # failures that are kept by name; more are only counted, by reason
KINDS = 40  # reasons that are told apart
OTHER = "other reasons"
_WINDOW = 64  # moments at which images came in, over which the present rate is taken
_LONGEST = 300

# What differs from image to image in a reason: quoted text, paths, ids, numbers.
_VARIABLE = (
    (re.compile(r"'[^']*'|\"[^\"]*\""), "'...'"),
    (re.compile(r"(?<![\w.])[\w.-]*/[^\s:,;)]+"), "PATH"),
    (re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b"), "ID"),
    (re.compile(r"(?<![A-Za-z_])\d+(?:\.\d+)?(?:e[+-]?\d+)?"), "#"),
)


def folded(reason: str) -> str:
    """A reason without what differs from image to image, so that like failures are counted together."""
    text = " ".join(reason.split())[:_LONGEST]
    for pattern, sign in _VARIABLE:
        text = pattern.sub(sign, text)
    return text or "no reason given"


class Note(BaseModel):
    """What one deposit says of how it was mined; everything may be left out, `chunk`, its id, too.

    `failed`, `skipped`: reason by source. `psnr`, `residual`, `leakage_ratio`: one number an image, the latter two its
    median. `rejected`: how many directions fail the recipe's gates, by reason. `seconds` of the worker; `passes` of the
    network; `bytes` of the shards.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    chunk: str | None = None
    images: int = Field(default=0, ge=0)
    directions: int = Field(default=0, ge=0)
    refused: int = Field(default=0, ge=0)
    failed: dict[str, str] = {}
    skipped: dict[str, str] = {}
    rejected: dict[str, int] = {}
    products: dict[Literal["jvp", "vjp"], int] = {}
    seconds: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    passes: int = Field(default=0, ge=0)
    bytes: int = Field(default=0, ge=0)
    psnr: tuple[float | None, ...] = ()
    residual: tuple[float | None, ...] = ()
    leakage_ratio: tuple[float | None, ...] = ()


QUALITY = ("psnr", "residual", "leakage_ratio")


Watcher = Callable[["Progress"], None]


class Progress:
    """What a run has done so far. Not for several threads.

    Watchers are called at most once a second and at the end; one that raises is told once and called again later:
    looking at a run must not end it. What happens is an `event` too.
    """

    def __init__(
        self,
        total: int | None,
        catalog: str,
        watchers: Sequence[Watcher] = (),
        clock: Callable[[], float] = time.monotonic,
        name: str = "",
        run_id: str | None = None,
    ) -> None:
        self.total, self.catalog, self.name = total, _utf8(catalog), _utf8(name)
        self.watchers = list(watchers)
        self.state: State = "running"
        now = datetime.now(UTC)
        self.started = now.isoformat(timespec="seconds")
        self.run_id = run_id or f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self.pid, self.host = os.getpid(), socket.gethostname()
        self.images = self.already_done = self.directions = self.refused = self.passes = self.bytes = 0
        self.failed_images = 0
        self.failed: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.failures: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.products: dict[str, int] = {"jvp": 0, "vjp": 0}
        self.worker_seconds = 0.0
        self.report: RunReport | None = None  # of a run that is over, once it was recorded
        self._samples = {name: Reservoir(seed) for seed, name in enumerate(QUALITY)}
        self._clock = clock
        self._begun = clock()
        self._ended: float | None = None
        self._told: float | None = None
        self._moments: deque[tuple[float, int]] = deque([(self._begun, 0)], maxlen=_WINDOW)
        self._complained: set[str] = set()
        event("run begun", run_id=self.run_id, catalog=self.catalog, recipe=self.name or None)

    # -- what happens ----------------------------------------------------------------------------------------------

    def add(self, note: Mapping[str, Any]) -> None:
        """Count what one deposit says of itself. Raises CatalogError for a note that is none."""
        try:
            one = Note.model_validate(_utf8(note))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise CatalogError(f"note of a deposit: {place}", repr(first["input"])[:80], first["msg"]) from error
        self.images += one.images
        self.directions += one.directions
        self.refused += one.refused
        self.passes += one.passes
        self.bytes += one.bytes
        self.worker_seconds += one.seconds
        for kind, count in one.products.items():
            self.products[kind] += count
        for reason, count in one.rejected.items():
            self.rejected[_bounded(self.rejected, reason)] += count
        for name, samples in self._samples.items():
            samples.add(getattr(one, name))
        counts = {name: getattr(one, name) for name in ("images", "directions", "seconds", "passes", "bytes")}
        event("chunk done", run_id=self.run_id, chunk=one.chunk, **counts)
        self._fail(one.failed, one.chunk)
        _take(self.skipped, one.skipped)
        if one.images or one.failed:
            self._moments.append((self._clock(), self.images + self.failed_images))
        self._tell()

    def skip(
        self, images: int = 1, failed: Mapping[str, str] | None = None, skipped: Mapping[str, str] | None = None
    ) -> None:
        """Count images that need no mining: those the catalog holds already, or that failed before as they would now.

        `failed`: why some of them count as failed, by source; `skipped`: regions that are left out, by source.
        """
        self.already_done += images
        self._fail(_utf8(failed or {}))
        _take(self.skipped, _utf8(skipped or {}))
        self._tell()

    def beat(self) -> None:
        """Nothing came in, but time has passed."""
        self._tell()

    def end(self, state: Literal["finished", "stopped", "failed"]) -> None:
        """The run is over; watchers are called a last time."""
        self.state = state
        self._ended = self._clock()
        names = ("catalog", "seconds", "images", "already_done", "failed_images", "directions")
        event("run ended", run_id=self.run_id, state=state, **{name: getattr(self, name) for name in names})
        self._tell(last=True)

    def _fail(self, failed: Mapping[str, str], chunk: str | None = None) -> None:
        self.failed_images += len(failed.keys() - self.failed.keys())
        for source, reason in failed.items():
            if source not in self.failed:
                self.failures[_bounded(self.failures, folded(without_secrets(reason)))] += 1
                event("image failed", logging.WARNING, run_id=self.run_id, chunk=chunk, image=source, reason=reason)
        _take(self.failed, failed)

    def _tell(self, last: bool = False) -> None:
        now = self._clock()
        if not last and self._told is not None and 0 <= now - self._told < SECONDS:
            return
        self._told = now
        for watcher in self.watchers:
            try:
                watcher(self)
            except Exception as error:  # a server that is away or a full disk is no reason to stop mining
                what = f"{type(error).__name__}: {error}"
                if what not in self._complained and len(self._complained) < KINDS:
                    self._complained.add(what)
                    event("progress not shown", logging.WARNING, run_id=self.run_id, reason=what)
                    complain(f"progress could not be shown: {without_secrets(what)}")

    # -- what follows ----------------------------------------------------------------------------------------------

    @property
    def done(self) -> int:
        """Images that are over: mined, failed, or there already."""
        done = self.images + self.failed_images + self.already_done
        return done if self.total is None else min(done, self.total)

    @property
    def seconds(self) -> float:
        """Since the run began, until it ended."""
        return max(0.0, (self._clock() if self._ended is None else self._ended) - self._begun)

    @property
    def rate(self) -> float | None:
        """Images a second over the whole run; those there already are not counted."""
        tried = self.images + self.failed_images
        return tried / self.seconds if tried and self.seconds > 0 else None

    @property
    def recent_rate(self) -> float | None:
        """Images a second since the oldest of the last moments at which some came in; it falls while none do."""
        first, before = self._moments[0]
        end = self._clock() if self._ended is None else self._ended
        gained = self.images + self.failed_images - before
        return gained / (end - first) if gained > 0 and end > first else None

    @property
    def left(self) -> float | None:
        """Seconds still to go at the present rate; None where the total or the rate is not known."""
        if self.total is None:
            return None
        rest = self.total - self.done
        rate = self.recent_rate or self.rate
        return 0.0 if rest <= 0 else None if rate is None else rest / rate

    @property
    def products_per_image(self) -> float | None:
        """Jacobian products that an image took, on average."""
        return sum(self.products.values()) / self.images if self.images else None

    @property
    def quality(self) -> dict[str, Spread]:
        """Quartiles of what is known of QUALITY."""
        found = {name: (samples.seen, samples.quartiles()) for name, samples in self._samples.items()}
        return {
            name: Spread(count=seen, low=quartiles[0], median=quartiles[1], high=quartiles[2])
            for name, (seen, quartiles) in found.items()
            if quartiles is not None
        }

    def snapshot(self) -> Snapshot:
        """The run as it is now."""
        same = ("run_id", "name", "catalog", "state", "pid", "host", "started", "seconds", "total", "done", "images",
                "already_done", "directions", "refused", "products_per_image", "passes", "bytes", "worker_seconds",
                "rate", "recent_rate", "left", "quality")  # fmt: skip
        return Snapshot(
            **{name: getattr(self, name) for name in same},
            born=born(self.pid),
            updated=datetime.now(UTC).isoformat(timespec="seconds"),
            failed=self.failed_images,
            failures=dict(self.failures.most_common()),
            failed_sources=dict(self.failed),
            skipped=dict(self.skipped),
            rejected=dict(self.rejected.most_common()),
            products=dict(self.products),
        )

    def as_json(self) -> str:
        """The present snapshot as one JSON document."""
        return self.snapshot().model_dump_json(indent=1)


def _utf8(value: Any) -> Any:
    """A value whose texts can be written: half characters, of file names that are no UTF-8, become question marks."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_utf8(key): _utf8(item) for key, item in value.items()}
    return value


def _bounded(counts: Mapping[str, int], reason: str) -> str:
    """The reason under which to count: its own, or OTHER where there are too many already."""
    return reason if reason in counts or len(counts) < KINDS else OTHER


def _take(into: dict[str, str], found: Mapping[str, str]) -> None:
    for source, reason in found.items():
        if source in into or len(into) < LISTED:
            into[source] = without_secrets(reason)[:_LONGEST]


def kept_in(catalog: Path) -> Watcher:
    """A watcher that keeps the present snapshot in the catalog's folder, whole at any moment."""

    def keep(progress: Progress) -> None:
        path = runs_folder(catalog) / FILE
        draft = path.with_name(f".{FILE}.{os.getpid()}.tmp")
        try:  # not flushed: after a power cut the file is stale at worst, and the catalog is the truth
            draft.write_text(progress.as_json(), encoding="utf-8")
            os.replace(draft, path)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    return keep
