"""The main job: a recipe in, a catalog out. Chunks of images are mined one after the other and committed as one each.

A killed run continues where it stopped: chunks are cut from the data set's own order and named by what they hold, so
the rerun skips what the manifest lists and ends with the same catalog (with `warm_start`: within the tolerance). Failed
images are recorded with their reason and tried again by the next run; so are files that could not be read, once they
are repaired.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from catalog import manifest as manifests
from catalog.fs import MANIFEST
from catalog.manifest import Provenance
from catalog.records import Chunk, ImageRecord, content_id
from catalog.writer import CatalogWriter
from flows.console import Advance, silent
from flows.datasets import LoadedDataset, SourceImage
from flows.miner import METHOD_VERSION, MinedChunk, Miner, MiningReport, frame_of
from flows.paths import builtin_folder
from flows.ranks import check_ranks
from flows.recipe import Recipe
from pipeline.models.contract import Denoiser
from pipeline.models.loading import load_denoiser

CHUNK = 4  # images inverted together and committed together
PACKAGES = ("torch", "diffusers", "numpy", "pyarrow", "faiss-cpu", "prefect", "datasets", "huggingface-hub")

MineChunk = Callable[[Sequence[SourceImage]], MinedChunk]
Runner = Callable[[MineChunk, Sequence[Sequence[SourceImage]]], Iterable[MinedChunk]]
"""How chunks are executed: one after the other, in processes, or as Prefect tasks."""


def run_directly(mine_chunk: MineChunk, chunks: Sequence[Sequence[SourceImage]]) -> Iterable[MinedChunk]:
    """The runner without an orchestrator: chunk by chunk, here."""
    return map(mine_chunk, chunks)


def open_model(reference: str) -> Denoiser:
    """The denoiser a recipe names: "builtin", a diffusers folder, or a Hub id."""
    return load_denoiser(builtin_folder() / "denoiser" if reference == "builtin" else reference)


def model_place(recipe: Recipe) -> str:
    """Where a recipe's model lies: a folder beside the recipe before one in the working directory or on the Hub."""
    beside = recipe.resolve(recipe.model)
    return str(beside) if recipe.model != "builtin" and beside.is_dir() else recipe.model


def provenance(recipe: Recipe, denoiser: Denoiser, data: LoadedDataset, repaired: Collection[str] = ()) -> Provenance:
    """Everything a reader of the catalog needs to trace or repeat it.

    `repaired` sources could not be read when the catalog was begun: its data are still the same.
    """
    info = denoiser.info
    frame = frame_of(denoiser)
    spaces: dict[Any, tuple[int, ...]] = dict(frame.spaces)
    versions = {name: metadata.version(name) for name in PACKAGES}
    return Provenance(
        recipe_fingerprint=recipe.fingerprint(),
        recipe=recipe.model_dump(mode="json"),
        model={"reference": recipe.model, **asdict(info)},
        data={
            "fingerprint": data.fingerprint(repaired),
            "name": data.name,
            "split": data.split,
            "images": sum(image.source not in repaired for image in data.images),
            "unusable": [failure.source for failure in data.failures],
        },
        seeds={"recipe": recipe.seed},
        code_version=f"{metadata.version('rhumb')} (method {METHOD_VERSION})",
        packages={**versions, "python": platform.python_version()},
        spaces=spaces,
        effect_shape=frame.effect_shape,
    )


def chunks_of(images: Sequence[SourceImage]) -> list[list[SourceImage]]:
    """The data set cut into chunks of `CHUNK`, in its own order."""
    return [list(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]


@torch.no_grad()
def mine(
    recipe: Recipe,
    out: Path,
    denoiser: Denoiser,
    data: LoadedDataset,
    runner: Runner = run_directly,
    advance: Advance = silent,
) -> MiningReport:
    """Mine the images of `data` into the catalog folder `out`; continue there if it was begun.

    Raises:
        InputError, ModelError: the recipe, data or model do not fit; nothing is written.
        ConflictError: `out` holds something else, or another process is writing to it.
    """
    started = time.monotonic()
    miner = Miner(recipe, denoiser, out)
    check_ranks(recipe, denoiser, data)
    report = MiningReport(out)
    report.skipped = {image.source: "; ".join(image.skipped.values()) for image in data.images if image.skipped}
    with CatalogWriter.create(out, provenance(recipe, denoiser, data, _repaired(out, data))) as writer:
        record_unreadable(writer, data, report)
        done, known = writer.done_images, set(writer.failed_images)
        pending = [[image for image in chunk if image.image_id not in done] for chunk in chunks_of(data.images)]
        report.already_done = len(data.images) - sum(map(len, pending))
        if report.already_done:
            advance(report.already_done, "already done")
        for mined in runner(miner.mine_chunk, [chunk for chunk in pending if chunk]):
            if any(record.image_id not in known or record.failure is None for record in mined.chunk.images):
                writer.commit(mined.chunk)  # else only images that had failed before failed again: nothing new
            report.add(mined.report)
            advance(len(mined.chunk.images), f"{report.directions} directions")
    report.seconds = time.monotonic() - started
    return report


def _unreadable_id(data: LoadedDataset, source: str) -> str:
    return content_id("unreadable", data.name, source)


def _repaired(out: Path, data: LoadedDataset) -> set[str]:
    """Sources of `data` that could not be used when the catalog in `out`, if there is one, was begun."""
    unusable = manifests.load(out).provenance.data.get("unusable", []) if (out / MANIFEST).is_file() else []
    return {image.source for image in data.images} & set(unusable)


def record_unreadable(writer: CatalogWriter, data: LoadedDataset, report: MiningReport) -> None:
    """Record the files that could not become images, so that `rhumb status` shows them."""
    if not data.failures:
        return
    report.failed.update({failure.source: failure.reason for failure in data.failures})
    records = tuple(
        ImageRecord(
            image_id=_unreadable_id(data, failure.source),
            dataset=data.name,
            split=data.split,
            source=failure.source,
            image=np.zeros((0, 0, 3), np.uint8),
            timestep=0,
            latent=np.zeros((0,), np.float32),
            round_trip_psnr=float("nan"),
            failure=failure.reason,
        )
        for failure in data.failures
    )
    writer.commit(Chunk(content_id("unreadable", [[f.source, f.reason] for f in data.failures]), records, (), ()))
