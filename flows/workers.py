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
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook

from flows.miner import MinedChunk, Miner
from flows.mining import Items, MineChunk, Runner, model_place, open_model
from flows.recipe import Recipe
from pipeline.errors import InputError
from pipeline.models.contract import Denoiser

AHEAD = 2  # chunks read and waiting, per worker
_WATCH_SECONDS = 1.0
_BARE_BYTES = 512 * 2**20  # a process with torch and diffusers loaded: 0.42 GB measured
_LAYERS = 400  # largest layer outputs held at a peak of mining: 170 to 360 measured on four networks, and SVD bases
_FREE_SHARE = 0.8  # of the memory that is free
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container

_job: tuple[Recipe, Path | None, str | None] | None = None
_miner: Miner | None = None


def usable_workers(wanted: int | None, chunks: int, denoiser: Denoiser) -> int:
    """How many processes to start, no more than chunks.

    As asked, or one per core that this process may use and that the free memory has room for; one on a GPU.

    Raises:
        InputError: fewer than one.
    """
    if wanted is not None and wanted < 1:
        raise InputError("--workers", wanted, "at least 1")
    if wanted is not None:
        return max(1, min(wanted, chunks))
    if torch.cuda.is_available():
        return 1
    most = min(len(os.sched_getaffinity(0)), chunks)
    if most < 2:
        return 1
    return max(1, min(most, int(_FREE_SHARE * free_bytes() / worker_bytes(denoiser))))


@torch.no_grad()
def worker_bytes(denoiser: Denoiser) -> int:
    """An estimate, on the safe side, of the memory one worker takes at its peak: from the largest layer output of one
    image, since products and previews run over blocks of vectors. Cost: one forward pass.
    """
    largest = 0

    def note(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, output.numel() * output.element_size())

    handle = register_module_forward_hook(note)
    try:
        x_t = torch.zeros((1, *denoiser.info.x_shape), device=denoiser.device, dtype=denoiser.dtype)
        denoiser.predicted_picture(x_t, denoiser.info.train_timesteps // 2)
    finally:
        handle.remove()
    return _BARE_BYTES + 2 * denoiser.info.parameters * denoiser.dtype.itemsize + _LAYERS * largest


def free_bytes() -> int:
    """Memory that new processes may take: what the system says is available, within the limit of a container."""
    limits = [int(text) for text in (_text(path) for path in _LIMITS) if text.isdigit()]
    lines = _text(Path("/proc/meminfo")).splitlines()
    available = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return min([*available, *limits, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")])


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def in_processes(recipe: Recipe, workers: int, catalog: Path | None = None, commit: str | None = None) -> Runner:
    """The runner that mines chunks in `workers` processes; results come in the order they are ready.

    `catalog` is where the parent commits them, for warm starts; `commit` pins a model of the Hub to the parent's. What
    goes wrong in a worker, loading the model included, is raised here as the error it is.
    """

    def run(_: MineChunk, chunks: Iterable[Items]) -> Iterator[MinedChunk]:
        context = multiprocessing.get_context("spawn")  # a forked torch may hang in its thread pool
        pool = ProcessPoolExecutor(workers, context, _start, (recipe, catalog, commit, os.getpid()))
        try:
            waiting: set[Future[MinedChunk]] = set()
            for chunk in chunks:
                if len(waiting) >= AHEAD * workers:
                    ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in ready)
                waiting.add(pool.submit(_mine, chunk))
            for future in as_completed(waiting):
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


def _start(recipe: Recipe, catalog: Path | None, commit: str | None, parent: int) -> None:
    """Prepare a worker. The model is loaded with the first chunk: an error here would only break the pool."""
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    _job = recipe, catalog, commit


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def _mine(chunk: Items) -> MinedChunk:
    global _miner
    if _job is None:
        raise RuntimeError("a mining worker was used before it was started")
    if _miner is None:
        recipe, catalog, commit = _job
        _miner = Miner(recipe, open_model(model_place(recipe).pinned(commit)), catalog)
    return _miner.mine_chunk(chunk)
