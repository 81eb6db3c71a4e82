"""The one process that writes a catalog while others mine for it: hands out work, takes in deposits, keeps count."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from catalog.deposits import Deposit, clean, discard, whole_deposits
from catalog.fs import INCOMING
from catalog.writer import CatalogWriter
from flows.console import complain
from flows.datasets.contract import Failure, SourceImage, region_ids
from flows.miner import MiningReport
from flows.runners.contract import Runner
from flows.stopping import StopRequest
from flows.transient import LONG, is_transient, patiently
from flows.watching.events import event
from flows.watching.progress import Progress
from flows.work import Desk, Work, stop_marker
from pipeline.errors import CatalogError

AT_ONCE = 512  # deposits in one commit, at most: all their receipts are in memory then
COMMIT_SHARE = 0.02  # of the time, at most, that goes into commits
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds until a store that is away is asked again; doubled each time
ROUNDS = 3  # in which work that came to nothing is handed out again


class Coordinator:
    """Runs one job to its end, or until it is asked to stop. Holds the catalog's writer; call `run` once."""

    def __init__(
        self, writer: CatalogWriter, desk: Desk, report: MiningReport, progress: Progress, stop: StopRequest
    ) -> None:
        self.writer, self.desk, self.report, self.progress, self.stop = writer, desk, report, progress, stop
        self.store = desk.store
        self.job_id = desk.job.job_id
        self._open: dict[str, Work] = {}  # handed out and not yet in the catalog
        self._next = 0.0  # when the next commit is due
        self._pause = FIRST_PAUSE
        self._stop_told = False  # to workers

    def run(self, runner: Runner, chunks: Iterable[Sequence[SourceImage | Failure]]) -> None:
        """Mine what the catalog does not hold.

        Raises what went wrong with a worker; what had been mined until then is committed. CatalogError: work came to
        nothing, round after round.
        """
        patiently(lambda: self._adopt(counted=False), LONG)  # what a killed run left
        patiently(self._clean, LONG)  # and its waste: half deposits, a stop marker
        self.stop.on_request = self._tell_stop
        self._sweeping(runner, self._works(chunks))
        for _ in range(ROUNDS - 1):
            again = [] if self.stop.asked else self._unfinished()
            if again:
                self._sweeping(runner, again)
        if not self.stop.asked and (lost := self._unfinished()):
            keys = ", ".join(key for work in lost for key, _ in work.items)[:200]
            again_later = "Run the same command again: what was mined is kept"
            raise CatalogError("work", f"no result for {keys}", "one from every worker", again_later)
        patiently(self._clean, LONG)  # not after an error: workers may still be at it

    def _clean(self) -> None:
        """Remove all that is incoming, but for whole deposits."""
        clean(self.store, self.job_id)
        self.store.tidy(INCOMING)

    def _sweeping(self, runner: Runner, works: Iterable[Work]) -> None:
        """Have works done, and commit what is deposited meanwhile and, whatever ends it, at the end."""
        try:
            for _ in runner(self.desk, works):
                if self.stop.asked and not self._stop_told:
                    self._tell_stop()
                if time.monotonic() >= self._next:
                    self._sweep_or_put_off()
                self.progress.beat()
        except BaseException:
            self._sweep_or_put_off()
            raise
        patiently(self._sweep, LONG)

    def _tell_stop(self) -> None:
        """Have workers stop. Where the store is away, the next beat tries again: a signal handler must not wait."""
        try:
            self.store.replace(stop_marker(self.job_id), b"")
            self._stop_told = True
        except Exception as error:
            if not is_transient(error):
                raise

    def _sweep(self) -> None:
        """Commit all deposits in one version. The next is due when commits have had their share of the time."""
        started = time.monotonic()
        self._adopt()
        ended = time.monotonic()
        self._next = ended + (ended - started) * (1 / COMMIT_SHARE - 1)
        if self._pause > FIRST_PAUSE:
            self._pause = FIRST_PAUSE
            event("store back", catalog=self.progress.catalog)

    def _sweep_or_put_off(self) -> None:
        """`_sweep`, unless what is in its way may pass: deposits are safe where they are, and workers go on."""
        try:
            self._sweep()
        except Exception as error:
            if not is_transient(error):
                raise
            if self._pause == FIRST_PAUSE:
                event("store away", level=logging.WARNING, catalog=self.progress.catalog, error=str(error))
                complain(f"commits are put off until the store answers again: {error}")
            self._next = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _adopt(self, counted: bool = True) -> None:
        """Take in what lies in the store; `counted`: as what this run has done."""
        deposits = whole_deposits(self.store, self.job_id)
        while some := list(islice(deposits, AT_ONCE)):
            self._adopt_some(some, counted)

    def _adopt_some(self, deposits: Sequence[Deposit], counted: bool) -> None:
        known = self.writer.failed_images
        old: list[Deposit] = []
        new: list[Deposit] = []
        for one in deposits:
            repeats = not one.images and all(known.get(i) == failed.reason for i, failed in one.failed.items())
            (old if repeats else new).append(one)
        if new:
            adopted = {one.work_id for one in self.writer.adopt(new, self.store).adopted}
            self._taken((one for one in new if one.work_id in adopted or self._was_committed(one)), counted)
        if old:  # only images that had failed before failed again, and nothing is new
            discard(self.store, *old)
            self._taken(old, counted)

    def _taken(self, deposits: Iterable[Deposit], counted: bool) -> None:
        for deposit in deposits:
            self._open.pop(deposit.work_id, None)
            if counted:
                self._count(deposit)

    def _was_committed(self, deposit: Deposit) -> bool:
        """Whether a deposit that was dropped is in the catalog by a commit of which no answer came."""
        done = self.writer.known()["images"]
        mined = deposit.images
        return deposit.work_id in self._open and bool(mined) and all(image in done for image in mined)

    def _count(self, deposit: Deposit) -> None:
        note = deposit.note
        self.report.images += len(deposit.images)
        self.report.directions += len(deposit.directions)
        self.report.failed.update(note.get("failed", {}))
        self.report.skipped.update(note.get("skipped", {}))
        self.report.refused += note.get("refused", 0)
        for kind, count in note.get("products", {}).items():
            self.report.products[kind] += count
        size = sum(entry.bytes for entry in deposit.files.values())
        self.progress.add({**note, "bytes": size, "chunk": deposit.chunk_id})

    # -- what is handed out ----------------------------------------------------------------------------------------

    def _works(self, chunks: Iterable[Sequence[SourceImage | Failure]]) -> Iterator[Work]:
        """What is left to do of each chunk, as long as nobody asks to stop; the rest is counted."""
        for left in self._pending(chunks):
            if self.stop.asked:
                return
            work = Work(tuple((item.source, item.image_id) for item in left))
            self._open[work.work_id] = work
            yield work

    def _pending(self, chunks: Iterable[Sequence[SourceImage | Failure]]) -> Iterator[Sequence[SourceImage | Failure]]:
        done, failed, masks = self.writer.known()["images"], self.writer.failed_images, self.writer.masks
        for chunk in chunks:
            left: list[SourceImage | Failure] = []
            before: dict[str, str] = {}
            skipped: dict[str, str] = {}
            for item in chunk:
                if isinstance(item, SourceImage) and item.skipped:
                    skipped[item.source] = "; ".join(dict.fromkeys(item.skipped.values()))
                if isinstance(item, Failure) and item.repeats:
                    skipped[item.source] = item.reason
                elif isinstance(item, Failure) and failed.get(item.image_id) == item.reason:
                    before[item.source] = item.reason
                elif item.image_id not in done:
                    left.append(item)
                else:
                    self.report.already_done += 1
                    if isinstance(item, SourceImage) and (reason := changed(item, masks)):
                        before[item.source] = reason
            self.report.failed.update(before)
            self.report.skipped.update(skipped)
            if len(left) < len(chunk) or skipped:
                self.progress.skip(len(chunk) - len(left) - len(before), before, skipped)
            if left:
                yield left

    def _unfinished(self) -> list[Work]:
        """Work that was handed out and left no deposit, or one that clashed, but for images that are over by now."""
        done, failed = self.writer.known()["images"], self.report.failed
        items = [work.items for work in self._open.values()]
        left = [tuple((key, one) for key, one in own if one not in done and key not in failed) for own in items]
        works = [Work(items) for items in left if items]
        self._open = {work.work_id: work for work in works}
        return works


def changed(image: SourceImage, masks: Mapping[tuple[str, str], str]) -> str:
    """Why a mined image is not what the catalog holds, `masks` being its region ids by (image id, region); else ""."""
    for region, region_id in region_ids(image.image_id, image.masks).items():
        mined = masks.get((image.image_id, region))
        if mined != region_id:
            what = "is new since the image was mined" if mined is None else "is another than the image was mined with"
            return f"its mask of {region} {what}; the catalog keeps what it has: mine it into another --out"
    return ""
