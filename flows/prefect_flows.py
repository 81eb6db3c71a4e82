"""The main job as a Prefect 3 flow: one task per chunk of images, never one per product.

Prefect gives the run a page, logs and retries; the catalog's manifest stays the truth about what is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.console import Advance, silent
from flows.datasets import LoadedDataset, SourceImage
from flows.mining import MiningReport, Work, mine
from flows.recipe import Recipe
from pipeline.models.contract import Denoiser


@task(name="mine chunk", cache_policy=NO_CACHE, persist_result=False)
def mine_chunk(work: Work, chunk: Sequence[SourceImage]) -> int:
    """Mine and commit one chunk; returns how many images it holds."""
    work(chunk)
    return len(chunk)


def _run_as_task(work: Work, chunk: Sequence[SourceImage]) -> None:
    mine_chunk.with_options(task_run_name=f"chunk of {chunk[0].source}")(work, chunk)


@flow(name="rhumb mine", validate_parameters=False, persist_result=False)
def mine_flow(
    recipe: Recipe, out: Path, denoiser: Denoiser, data: LoadedDataset, advance: Advance = silent
) -> MiningReport:
    """Mine a recipe into a catalog under Prefect; see `flows.mining.mine` for what it does and raises."""
    report = mine(recipe, out, denoiser, data, _run_as_task, advance)
    logger = get_run_logger()
    logger.info("%d images, %d directions, %.0f s", report.images, report.directions, report.seconds)
    for source, reason in report.failed.items():
        logger.warning("%s failed: %s", source, reason)
    return report
