"""The main job as a Prefect 3 flow: one task per chunk of images, never one per product.

Prefect gives the run a page, logs and retries; the catalog's manifest stays the truth about what is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.console import Advance, silent
from flows.datasets import LoadedDataset, SourceImage
from flows.mining import MiningReport, Work, mine
from flows.recipe import Recipe
from pipeline.models.contract import Denoiser


def mine_with_prefect(
    recipe: Recipe, out: Path, denoiser: Denoiser, data: LoadedDataset, advance: Advance = silent
) -> MiningReport:
    """Mine a recipe into a catalog under Prefect; see `flows.mining.mine` for what it does and raises.

    Flow and task take names only as parameters, which Prefect stores and shows: the model and the images stay here.
    """

    @flow(name="rhumb mine", persist_result=False)
    def mine_flow(recipe_settings: dict[str, Any], catalog: str) -> MiningReport:
        report = mine(recipe, out, denoiser, data, run_as_task, advance)
        logger = get_run_logger()
        logger.info("%d images, %d directions, %.0f s", report.images, report.directions, report.seconds)
        for source, reason in report.failed.items():
            logger.warning("%s failed: %s", source, reason)
        return report

    return mine_flow(recipe.model_dump(mode="json"), str(out))


def run_as_task(work: Work, chunk: Sequence[SourceImage]) -> None:
    """The runner that makes one Prefect task of each chunk."""

    @task(name="mine chunk", task_run_name="chunk of {sources[0]}", cache_policy=NO_CACHE, persist_result=False)
    def mine_chunk(sources: list[str]) -> int:
        work(chunk)
        return len(sources)

    mine_chunk([image.source for image in chunk])
