"""What a worker does, wherever it is: reads the images of one piece of work, mines them, and leaves a deposit.

Work travels as keys and ids; pictures and vectors do not. A worker loads the model once and keeps it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from catalog.deposits import Target, folder_of, has_deposit, write_deposit
from catalog.records import Chunk, content_id
from catalog.store import Store, open_store
from flows.console import complain
from flows.datasets.contract import Failure, SourceImage
from flows.datasets.dataset import Dataset, load_dataset
from flows.devices import pinned_device
from flows.image_errors import DeviceLostError
from flows.miner import Miner, MiningReport
from flows.opening import model_place, open_model
from flows.quality import evidence_of
from flows.recipe import Recipe
from flows.transient import LONG, patiently

STOP = "stop"


@dataclass(frozen=True)
class Work:
    """Images to be mined together: (key in the data set, id) of each. An item that could not be read has the id of its
    failure."""

    items: tuple[tuple[str, str], ...]

    @property
    def work_id(self) -> str:
        """32 hex digits: what is mined, whoever does it."""
        return content_id("work", [list(item) for item in self.items])


@dataclass(frozen=True)
class Job:
    """What a worker must know to do any work of one run. Small: it travels with every task.

    `store`: the catalog's place, where deposits go; `target`: what they must fit. `commit` pins a model of the Hub to
    the coordinator's. `threads` that torch may use, None for its own choice. `run`: which run it is of, since what the
    data set holds may change from one to the next.
    """

    recipe: Recipe
    store: str
    target: Target
    commit: str | None = None
    image_timeout: float | None = None
    threads: int | None = None
    run: str = ""

    @property
    def job_id(self) -> str:
        """32 hex digits over the recipe's numbers, model, data and method: a run continues what a former one left."""
        return self.target.catalog


class Desk:
    """One job, with its model and data open. One piece of work at a time, whatever thread asks."""

    def __init__(self, job: Job, miner: Miner, data: Dataset) -> None:
        self.job, self.miner, self.data = job, miner, data
        self.store: Store = open_store(job.store)
        self._lock = threading.Lock()

    def do(self, work: Work) -> None:
        """Mine what has no deposit yet, and leave one; less of it, or nothing, where the run was asked to stop."""
        with self._lock, torch.no_grad():
            if self.stopping() or patiently(lambda: has_deposit(self.store, self.job.job_id, work.work_id), LONG):
                return
            started = time.monotonic()
            self._leave(work, [self._item(key, image_id) for key, image_id in work.items], started)

    def give_up(self, work: Work, reason: str) -> None:
        """Leave a deposit that says why none of its images can be mined."""
        data = self.data
        failed = [Failure(data.name, data.split, key, reason) for key, _ in work.items]
        with self._lock:
            self._leave(work, failed, time.monotonic())

    def _leave(self, work: Work, items: Sequence[SourceImage | Failure], started: float) -> None:
        """Mine items, and leave a deposit of what there is."""
        report = MiningReport(Path())
        chunk = self.miner.mine(items, report, self.stopping, self.job.image_timeout)
        if not chunk.images:
            return
        note = note_of(chunk, report, self.job.recipe) | {"seconds": time.monotonic() - started}
        place = self.store, self.job.job_id, work.work_id
        patiently(lambda: write_deposit(*place, chunk, self.job.target, note), LONG)

    def stopping(self) -> bool:
        """Whether the run was asked to stop."""
        return patiently(lambda: self.store.exists(stop_marker(self.job.job_id)), LONG)

    def _item(self, key: str, image_id: str) -> SourceImage | Failure:
        item = self.data.read(key)
        if item.image_id != image_id and isinstance(item, SourceImage) and not _was_unreadable(item, image_id):
            reason = "its pixels changed while the run was going on; the next run mines it as it is then"
            return Failure(item.dataset, item.split, key, reason)
        return item


def _was_unreadable(item: SourceImage, image_id: str) -> bool:
    """Whether the id is that of the failure of an item that can be read by now."""
    return Failure(item.dataset, item.split, item.source, "").image_id == image_id


def stop_marker(job_id: str) -> str:
    """The file of a store that asks all workers of a job to stop."""
    return f"{folder_of(job_id)}/{STOP}"


def note_of(chunk: Chunk, report: MiningReport, recipe: Recipe) -> dict[str, Any]:
    """What mining a chunk took and how good it is, for `Progress`: JSON values.

    `passes`: steps of inversion, there and back, and products, each of which takes about one pass of the network;
    previews and strengths are not in it.
    """
    mined = sum(record.failure is None for record in chunk.images)
    return {
        "images": mined,
        "directions": len(chunk.directions),
        "failed": report.failed,
        "skipped": report.skipped,
        "refused": report.refused,
        "products": report.products,
        "passes": 2 * recipe.method.inversion_steps * mined + sum(report.products.values()),
        **evidence_of(chunk, recipe.gates),
    }


# -- the desk of a worker process --------------------------------------------------------------------------------------

_desk: Desk | None = None
_own = False  # the desk was opened here, for a worker, and not by a coordinator
_opening = threading.Lock()


def keep(desk: Desk) -> None:
    """Let this process's tasks use the model of a desk that is open already.

    They run in another thread than the one that lists the data set, which is opened once more for them: sources are
    not for several threads, and go forward for one reader only.
    """
    global _desk, _own
    _own = False
    _desk = Desk(desk.job, desk.miner, _opened_data(desk.job, desk.miner))


def desk_of(job: Job) -> Desk:
    """This process's desk for a job: opened for its first work, kept until another job comes.

    The model is kept as well when another run of the same job comes; the data set is opened anew.
    """
    global _desk, _own
    with _opening:
        if _desk is None or replace(_desk.job, run=job.run) != job:
            if job.threads is not None:
                torch.set_num_threads(job.threads)
            device = pinned_device()
            place = model_place(job.recipe).pinned(job.commit)
            miner = Miner(job.recipe, patiently(lambda: open_model(place, device)), Path(job.store))
            _desk, _own = Desk(job, miner, _opened_data(job, miner)), True
        elif _desk.job != job:
            _desk = Desk(job, _desk.miner, _opened_data(job, _desk.miner))
        return _desk


def _opened_data(job: Job, miner: Miner) -> Dataset:
    data = patiently(lambda: load_dataset(job.recipe, miner.denoiser.info.image_shape))
    return replace(data, seconds=job.image_timeout)


def do_batch(job: Job, batch: Sequence[Work]) -> float:
    """Do some pieces of work, one after the other; seconds for each. What runs in a task.

    A worker whose GPU is gone ends: what it was doing is done again by another process, as when it is killed.
    """
    desk = desk_of(job)
    started = time.monotonic()
    try:
        for work in batch:
            desk.do(work)
    except DeviceLostError as error:
        if not _own:
            raise
        complain(f"this worker ends: {error}")
        os._exit(1)
    return (time.monotonic() - started) / len(batch)
