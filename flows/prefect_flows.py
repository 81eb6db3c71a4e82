"""The main job as a Prefect 3 flow: one task per chunk of images, never one per product.

Prefect gives the run a page, logs and retries; the catalog's manifest stays the truth about what is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client

from flows.console import Advance, silent
from flows.datasets.dataset import Dataset
from flows.miner import MinedChunk, MiningReport
from flows.mining import Items, MineChunk, mine
from flows.recipe import Recipe
from pipeline.errors import InputError
from pipeline.models.contract import Denoiser


def mine_with_prefect(
    recipe: Recipe, out: Path, denoiser: Denoiser, data: Dataset, advance: Advance = silent
) -> MiningReport:
    """Mine a recipe into a catalog under Prefect; see `flows.mining.mine` for what it does and raises.

    Flow and task take names only as parameters, which Prefect stores and shows: the model and the images stay here.

    Raises:
        InputError: no Prefect server answers; nothing is written.
    """
    reach_server()

    @flow(name="rhumb mine", persist_result=False)
    def mine_flow(recipe_settings: dict[str, Any], catalog: str) -> MiningReport:
        report = mine(recipe, out, denoiser, data, run_as_tasks, advance)
        logger = get_run_logger()
        logger.info("%d images, %d directions, %.0f s", report.images, report.directions, report.seconds)
        for source, reason in report.failed.items():
            logger.warning("%s failed: %s", source, reason)
        return report

    return mine_flow(recipe.model_dump(mode="json"), str(out))


def reach_server() -> None:
    """Start the embedded server, or find the one at PREFECT_API_URL. Raises InputError where none answers."""
    try:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
    except (httpx.HTTPError, RuntimeError) as error:  # the embedded server did not come up
        problem = error
    if problem is not None:
        raise InputError(
            "--prefect", f"no Prefect server ({type(problem).__name__}: {problem})", "one that answers",
            "Run it again (the first start fills a database), set PREFECT_API_URL, or leave --prefect out.",
        ) from problem  # fmt: skip


def run_as_tasks(mine_chunk: MineChunk, chunks: Iterable[Items]) -> Iterator[MinedChunk]:
    """The runner that makes one Prefect task of each chunk."""
    for chunk in chunks:
        yield _run_as_task(mine_chunk, chunk)


def _run_as_task(mine_chunk: MineChunk, chunk: Items) -> MinedChunk:
    @task(name="mine chunk", task_run_name="chunk of {sources[0]}", cache_policy=NO_CACHE, persist_result=False)
    def mine_one(sources: list[str]) -> MinedChunk:
        return mine_chunk(chunk)

    return mine_one([image.source for image in chunk])
