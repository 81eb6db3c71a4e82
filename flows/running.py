"""One recipe's run, with its progress bar: which data, which model, and by which runner."""

from __future__ import annotations

from pathlib import Path

from flows.console import stage
from flows.datasets.dataset import load_dataset
from flows.miner import MiningReport
from flows.mining import chunk_count, mine, model_place, open_model, run_directly
from flows.recipe import Recipe
from flows.workers import in_processes, usable_workers


def run_mining(recipe: Recipe, out: Path, prefect: bool = False, workers: int | None = None) -> MiningReport:
    """Mine with a progress bar: as a Prefect flow, in several processes, or here where one is enough."""
    denoiser = open_model(model_place(recipe))
    data = load_dataset(recipe, denoiser.info.image_shape)
    total = data.count()
    count = 1 if prefect else usable_workers(workers, chunk_count(total), denoiser)
    with stage("mining", total) as advance:
        if prefect:
            from flows.prefect_flows import mine_with_prefect  # starting Prefect takes seconds: only when asked for

            return mine_with_prefect(recipe, out, denoiser, data, advance)
        commit = denoiser.origin.commit if denoiser.origin is not None else None
        runner = in_processes(recipe, count, out, commit) if count > 1 else run_directly
        return mine(recipe, out, denoiser, data, runner, advance)
