"""Several processes on one machine: each loads the model once, mines chunks on one thread, and sends records back.

Small networks leave a second core idle when one process owns both, and forward-mode differentiation keeps global state,
so processes it is. The parent alone writes the catalog; a worker whose parent died ends by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch

from flows.datasets import SourceImage
from flows.mining import MineChunk, MinedChunk, Miner, Runner, model_place, open_model
from flows.recipe import Recipe
from pipeline.errors import InputError

_WATCH_SECONDS = 1.0
_miner: Miner | None = None


def usable_workers(wanted: int | None, chunks: int) -> int:
    """How many processes to start: as asked, or one per core that this process may use; one on a GPU.

    Raises:
        InputError: fewer than one.
    """
    if wanted is not None and wanted < 1:
        raise InputError("--workers", wanted, "at least 1")
    cores = 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
    return max(1, min(wanted or cores, chunks))


def in_processes(recipe: Recipe, workers: int) -> Runner:
    """The runner that mines chunks in `workers` processes; results come in the order they are ready."""

    def run(_: MineChunk, chunks: Sequence[Sequence[SourceImage]]) -> Iterator[MinedChunk]:
        context = multiprocessing.get_context("spawn")  # a forked torch may hang in its thread pool
        pool = ProcessPoolExecutor(workers, context, _start, (recipe, os.getpid()))
        try:
            for future in as_completed([pool.submit(_mine, chunk) for chunk in chunks]):
                yield future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "--workers", f"{workers} processes, of which one died", "processes that live, which takes memory",
                "Run the same command again with fewer: what was committed is kept.",
            ) from error  # fmt: skip
        except BaseException:
            for process in list(pool._processes.values()):
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    return run


def _start(recipe: Recipe, parent: int) -> None:
    global _miner
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    _miner = Miner(recipe, open_model(model_place(recipe)))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def _mine(chunk: Sequence[SourceImage]) -> MinedChunk:
    if _miner is None:
        raise RuntimeError("a mining worker was used before it was started")
    return _miner.mine_chunk(chunk)
