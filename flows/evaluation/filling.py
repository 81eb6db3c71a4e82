"""Cells measured by several processes: each opens the model once, and leaves cells where everybody reads them."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from flows.console import stage
from flows.evaluation.captions import NO_CAPTIONS, Captions
from flows.evaluation.cells import Cells
from flows.evaluation.comparison import Comparison, Size, Task
from flows.evaluation.machine import machine_of
from flows.evaluation.world import World, shipped_folder
from flows.image_errors import RunError
from flows.recipe import Recipe

_comparison: Comparison | None = None  # of a worker


def open_comparison(
    recipe: Recipe, folder: Path, size: Size, backbones: Path | None = None, captions: Captions = NO_CAPTIONS
) -> Comparison:
    """A comparison whose cells and latents lie in `folder`."""
    world = World(recipe, folder, backbones=backbones, captions=captions)
    return Comparison(world, open_cells(world), size)


def open_cells(world: World) -> Cells:
    """The cells in a world's folder, and those that travel with the package."""
    machine = machine_of(world.denoiser.device)
    return Cells(world.folder / "cells", lambda: world.counter.passes, [shipped_folder() / "cells"], machine)


def fill(comparison: Comparison, tasks: Sequence[Task], workers: int, title: str) -> None:
    """Measure the cells that are missing, by `workers` processes of one thread each, or in this one.

    Raises:
        RunError: a process died; what was measured is kept.
    """
    missing = comparison.missing(list(dict.fromkeys(tasks)))
    if not missing:
        return
    with stage(title, len(missing)) as advance:
        if workers == 1 or len(missing) == 1:
            for task in missing:
                comparison.cell(task)
                advance(1, task.method)
            return
        world = comparison.world
        regions = None if world.found is None else world.found.depends()
        begin = (world.recipe, world.folder, comparison.size, world.backbones_folder, world.captions, regions)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(missing)), context, _begin, begin) as pool:
            waiting = {pool.submit(_measure, task): task for task in missing}
            try:
                for done in as_completed(waiting):
                    done.result()
                    advance(1, waiting[done].method)
            except BrokenProcessPool as error:
                raise RunError(
                    "evaluation", "a process that died, perhaps for want of memory", "processes that live",
                    "Run the same command again, with fewer --workers; what was measured is kept.",
                ) from error  # fmt: skip
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _begin(
    recipe: Recipe,
    folder: Path,
    size: Size,
    backbones: Path | None,
    captions: Captions,
    regions: Mapping[str, Any] | None,
) -> None:
    global _comparison
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever waits for the cells stops for all
    torch.set_num_threads(1)
    _comparison = open_comparison(recipe, folder, size, backbones, captions)
    if _comparison.world.found is not None and regions is not None:
        _comparison.world.found.trust(regions)


def _measure(task: Task) -> None:
    assert _comparison is not None
    _comparison.cell(task)
