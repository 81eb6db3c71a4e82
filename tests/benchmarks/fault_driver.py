"""Run by `faults` and `throughput` in a process of its own: one `rhumb` command in a small world, with faults if asked.

python -m tests.benchmarks.fault_driver COMMAND...; RHUMB_FAULTS holds a `Plan` as JSON. What is prepared here is
prepared in worker processes too, since they import the main module of their parent.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, tzinfo
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.jacobian import jacobian
from pipeline.mined import MinedImage, MiningSettings
from pipeline.models.contract import Denoiser

PLAN = "RHUMB_FAULTS"
DAYS = 30 * 86400.0  # a jump of the clock, at most
FEW = 0.02  # how often it jumps, of the times that it is read


@dataclass(frozen=True)
class Plan:
    """Faults of a process and of its workers.

    `store_every`: every so many changes of a `faulty://` store fail, or, with `stall`, take so many seconds where
    `patience` is all that a call may take. `clock`: seed of the jumps of the wall clock. `full`: bytes below `folder`
    from which on nothing can be flushed, as on a full disk. `chunk`: images of one. `times`: where to note what parts
    take. `poison`: key of an image that ends the worker process that reads it. `rounds`: instead of a search, so
    many rounds of power iteration on the Jacobian.
    """

    store_every: int | None = None
    stall: float = 0.0
    patience: float | None = None
    clock: int | None = None
    full: int | None = None
    folder: str = ""
    chunk: int = 2
    times: str | None = None
    poison: str | None = None
    rounds: int | None = None

    def dump(self) -> str:
        """As it is passed on."""
        return json.dumps(asdict(self))


def prepare(plan: Plan, worker: bool) -> None:
    """Let this process live by a plan; `worker`: it is one of those that mine for another."""
    import flows.miner
    import flows.mining
    from tests.benchmarks.work_times import note_parts
    from tests.catalog import faulty

    torch.set_num_threads(1)
    flows.mining.CHUNK = plan.chunk
    if plan.rounds is not None:
        flows.miner.mine_image = partial(brief_mine_image, plan.rounds)
    if plan.times is not None:
        note_parts(Path(plan.times))
    if plan.store_every is not None:
        error = ConnectionResetError(errno.ECONNRESET, "reset by peer") if not plan.stall else None
        faulty.FaultyFileSystem.before = staticmethod(faulty.EveryNth(plan.store_every, error, plan.stall))
    if plan.poison is not None and worker:
        _poison(plan.poison)
    if plan.patience is not None:
        _hurry(plan.patience)
    if plan.clock is not None:
        _jump(plan.clock)
    if plan.full is not None:
        _fill(Path(plan.folder), plan.full)


def brief_mine_image(
    rounds: int, denoiser: Denoiser, x_t: torch.Tensor, masks: Mapping[str, torch.Tensor], settings: MiningSettings,
    start: Any = None,
) -> MinedImage:  # fmt: skip
    """In place of `mine_image`: one x-space direction per region, after `rounds` products either way."""
    from tests.flows import tiny

    operator, vector = jacobian(denoiser, x_t, settings.timestep, "x0/x"), x_t[None]
    for _ in range(rounds):
        vector = operator.rmatvec(operator.matvec(vector))
    found = tiny.quick_mine_image(denoiser, vector[0] / vector.norm(), masks, settings)
    return replace(found, products=operator.products)


def _poison(key: str) -> None:
    from flows.datasets.dataset import Dataset

    real = Dataset.read

    def read(self: Dataset, wanted: str) -> Any:
        if wanted == key:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, wanted)

    Dataset.read = read  # type: ignore[method-assign]


def _hurry(patience: float) -> None:
    import catalog.store

    catalog.store.open_store.__defaults__ = (patience,)
    catalog.store.UrlStore.__init__.__defaults__ = (patience,)


def _jump(seed: int) -> None:
    """The wall clock is stepped by up to a month, ahead and back; monotonic clocks are left alone."""
    import flows.watching.progress
    import flows.watching.snapshots

    real, moments, offset = time.time, random.Random(seed), 0.0

    def now() -> float:
        nonlocal offset
        if moments.random() < FEW:
            offset += moments.uniform(-DAYS, DAYS)
        return real() + offset

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.fromtimestamp(now(), tz)

    time.time = now
    for module in (flows.watching.progress, flows.watching.snapshots):
        module.datetime = Jumping  # type: ignore[attr-defined]


def _fill(folder: Path, most: int) -> None:
    real = os.fsync

    def flush(descriptor: int) -> None:
        if sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) > most:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    os.fsync = flush  # type: ignore[assignment]


if PLAN in os.environ and __name__ in ("__main__", "__mp_main__"):
    prepare(Plan(**json.loads(os.environ[PLAN])), worker=__name__ == "__mp_main__")

if __name__ == "__main__":
    from flows.cli import main

    sys.exit(main(sys.argv[1:]))
