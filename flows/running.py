"""One recipe's run: which data, which model, by which runner, and who is told of it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch

from catalog.mirror import local_folder
from flows.console import complain
from flows.datasets.dataset import load_dataset
from flows.devices import held_device
from flows.miner import MiningReport
from flows.mining import chunk_count, mine
from flows.opening import model_place, open_model
from flows.recipe import Recipe
from flows.run_settings import RunSettings
from flows.runners.capacity import usable_workers
from flows.runners.contract import Runner, run_here
from flows.runners.processes import in_processes
from flows.stopping import Stopped, StopRequest, stop_on_signals
from flows.transient import patiently
from flows.watching import run_report
from flows.watching.live import live
from flows.watching.progress import Progress, kept_in
from pipeline.models.contract import Denoiser

DEFAULT = RunSettings()
ELSEWHERE = ("dask", "ray")  # runners whose workers are other processes, whatever their number


def run_mining(
    recipe: Recipe,
    out: Path | str,
    settings: RunSettings = DEFAULT,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> MiningReport:
    """Mine a recipe into a catalog, a folder or the URL of a store, and show how far it is.

    `progress`: who else is told; its `total` is set here. Runners of tasks need a Prefect flow around them.

    Raises:
        Stopped: asked for by `stop`, SIGINT or SIGTERM; what was done is committed.
        InputError, ModelError, ConflictError: as `flows.mining.mine`.
    """
    others = settings.runner in ELSEWHERE or (settings.runner == "processes" and _gpus() > 1)
    with ExitStack() as stack:
        device = "cpu" if others else stack.enter_context(held_device())  # workers have the GPUs
        denoiser = patiently(lambda: open_model(model_place(recipe), device))
        data = patiently(lambda: load_dataset(recipe, denoiser.info.image_shape))
        total = data.count()
        asked = stop or StopRequest()
        told = progress or Progress(total, str(out), name=recipe.name)
        told.total = total
        told.watchers += [stack.enter_context(live("mining", total)), kept_in(local_folder(out))]
        stack.enter_context(stop_on_signals(asked, complain))
        runner = _runner(settings, total, denoiser)
        try:
            report = mine(recipe, out, denoiser, data, runner, told, asked, settings.image_timeout)
        except Stopped:
            _write_report(told, out)
            raise
        _write_report(told, out)
        return report


def _write_report(progress: Progress, out: Path | str) -> None:
    folder = local_folder(out)
    run_report.record(folder, progress)


def _runner(settings: RunSettings, total: int | None, denoiser: Denoiser) -> Runner:
    chunks = chunk_count(total)
    if settings.runner == "here":
        return run_here
    if settings.runner == "processes":
        count = usable_workers(settings.workers, chunks, denoiser)
        return in_processes(count) if count > 1 or _gpus() > 1 else run_here
    from flows.runners.tasks import in_tasks  # starting Prefect takes seconds: only when asked for

    return in_tasks(settings, chunks, known=total is not None)


def _gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
