"""Several processes on one machine: each loads the model once and works on one thread.

Small networks leave a second core idle when one process owns both, and forward-mode differentiation keeps global state,
so processes it is. A worker whose parent died ends by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial

import torch

from flows.runners.contract import Runner
from flows.runners.deaths import WorkerDied, surviving
from flows.stopping import leave_stopping_to_the_parent
from flows.work import Desk, Job, Work, do_batch

AHEAD = 2  # works waiting, per worker
_WAIT_SECONDS = 1.0
_WATCH_SECONDS = 1.0


def in_processes(workers: int) -> Runner:
    """The runner that has work done in `workers` processes.

    What goes wrong in a worker, loading the model included, is raised here as the error it is.
    """

    def run(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
        job = replace(desk.job, threads=1)
        return surviving(desk, works, workers, partial(_in_pool, workers, job), partial(_in_pool, 1, job))

    return run


def _in_pool(workers: int, job: Job, works: Iterable[Work]) -> Iterator[bool]:
    """Have works done by new processes; an `Attempt`."""
    context = multiprocessing.get_context("spawn")  # a forked torch may hang in its thread pool
    pool = ProcessPoolExecutor(workers, context, _start, (os.getpid(),))
    futures: dict[Future[float], Work] = {}
    in_hand: list[Work] = []
    try:
        for work in works:
            in_hand.append(work)
            futures[pool.submit(do_batch, job, [work])] = work
            while len(futures) >= AHEAD * workers:
                yield _take_done(futures, in_hand)
        while futures:
            yield _take_done(futures, in_hand)
    except BaseException as error:
        for process in list(pool._processes.values()):
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise WorkerDied(in_hand) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _take_done(futures: dict[Future[float], Work], in_hand: list[Work]) -> bool:
    """Wait about a second, or until something is done, which is taken out. Raises the error of one that failed."""
    ready, _ = wait(futures, timeout=_WAIT_SECONDS, return_when=FIRST_COMPLETED)
    for future in ready:
        future.result()
        in_hand.remove(futures.pop(future))
    return bool(ready)


def _start(parent: int) -> None:
    """Prepare a worker. The model is loaded with the first work: an error here would only break the pool."""
    leave_stopping_to_the_parent()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_grad_enabled(False)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)
