"""Several processes on one machine: each loads the model once and works on one thread.

Small networks leave a second core idle when one process owns both, and forward-mode differentiation keeps global state,
so processes it is. A worker whose parent died ends by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import torch

from flows.runners.contract import Runner
from flows.work import Desk, Job, Work, do_batch
from pipeline.errors import InputError

AHEAD = 2  # works waiting, per worker
DEATHS = 5  # of processes, after which a run ends: it is no single image then
_WAIT_SECONDS = 1.0
_WATCH_SECONDS = 1.0


def in_processes(workers: int) -> Runner:
    """The runner that has work done in `workers` processes.

    What goes wrong in a worker, loading the model included, is raised here as the error it is. Where a process dies,
    what was in hand is done again, one piece at a time: an image whose process dies again has failed.
    """

    def run(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
        job, rest = replace(desk.job, threads=1), iter(works)
        for _ in range(DEATHS):
            waiting: dict[Future[float], Work] = {}
            try:
                yield from _in_pool(workers, job, rest, waiting)
                return
            except BrokenProcessPool:
                yield from _alone(desk, job, list(waiting.values()))
        raise InputError(
            "--workers", f"{workers} processes, of which {DEATHS} died", "processes that live, which takes memory",
            "Run the same command again with fewer: what was mined is kept.",
        )  # fmt: skip

    return run


def _in_pool(workers: int, job: Job, works: Iterable[Work], waiting: dict[Future[float], Work]) -> Iterator[None]:
    """Have works done by new processes; `waiting` holds those that are not known to be done.

    Raises BrokenProcessPool: a process died.
    """
    context = multiprocessing.get_context("spawn")  # a forked torch may hang in its thread pool
    pool = ProcessPoolExecutor(workers, context, _start, (os.getpid(),))
    try:
        for work in works:
            waiting[pool.submit(do_batch, job, [work])] = work
            while len(waiting) >= AHEAD * workers:
                _take_done(waiting)
                yield
        while waiting:
            _take_done(waiting)
            yield
    except BrokenProcessPool:
        raise
    except BaseException:
        for process in list(pool._processes.values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _take_done(waiting: dict[Future[float], Work]) -> None:
    """Wait about a second, or until something is done, which is taken out. Raises the error of one that failed."""
    ready, _ = wait(waiting, timeout=_WAIT_SECONDS, return_when=FIRST_COMPLETED)
    for future in ready:
        future.result()
        del waiting[future]


def _alone(desk: Desk, job: Job, works: Sequence[Work]) -> Iterator[None]:
    """Have each piece of work done by a process of its own, to find the image that ends it."""
    for work in works:
        if desk.stopping():
            return
        try:
            yield from _in_pool(1, job, [work], {})
        except BrokenProcessPool:
            if len(work.items) > 1:
                yield from _alone(desk, job, [Work((item,)) for item in work.items])
            else:
                desk.give_up(work, "the process that mined it died, twice")


def _start(parent: int) -> None:
    """Prepare a worker. The model is loaded with the first work: an error here would only break the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_grad_enabled(False)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)
