"""The main job: a recipe in, a catalog out. Chunks of images are mined one after the other and committed as one each.

A killed run continues where it stopped: chunks are cut from the data set's own order and named by what they hold, so
the rerun skips what the manifest lists and ends with the same catalog (with `warm_start`: within the tolerance). Failed
images are recorded with their reason and tried again by the next run; so are files that could not be read, once they
are repaired.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from catalog.manifest import Provenance
from catalog.writer import CatalogWriter
from flows.console import Advance, silent
from flows.datasets.contract import Failure, SourceImage, region_ids
from flows.datasets.dataset import Dataset
from flows.miner import METHOD_VERSION, MinedChunk, Miner, MiningReport, frame_of
from flows.model_choice import BUILTIN, ModelChoice
from flows.paths import builtin_folder
from flows.ranks import check_method, check_ranks
from flows.recipe import Recipe
from pipeline.errors import InputError
from pipeline.models.contract import Denoiser
from pipeline.models.files import Origin
from pipeline.models.loading import load_denoiser

CHUNK = 4  # images inverted together and committed together
PACKAGES = ("torch", "diffusers", "numpy", "pyarrow", "faiss-cpu", "prefect", "datasets", "huggingface-hub")

Items = Sequence[SourceImage | Failure]
MineChunk = Callable[[Items], MinedChunk]
Runner = Callable[[MineChunk, Iterable[Items]], Iterable[MinedChunk]]
"""How chunks are executed: one after the other, in processes, or as Prefect tasks; they are read as they are needed."""


def run_directly(mine_chunk: MineChunk, chunks: Iterable[Items]) -> Iterable[MinedChunk]:
    """The runner without an orchestrator: chunk by chunk, here."""
    return map(mine_chunk, chunks)


def open_model(model: str | ModelChoice) -> Denoiser:
    """The denoiser a recipe names, or a reference: "builtin", a diffusers folder, or a Hub id."""
    chosen = ModelChoice.model_construct(reference=model) if isinstance(model, str) else model
    place = builtin_folder() / "denoiser" if chosen.reference == BUILTIN else chosen.reference
    return load_denoiser(place, revision=chosen.revision, class_label=chosen.class_label)


def model_place(recipe: Recipe) -> ModelChoice:
    """A recipe's model where it lies: a folder beside the recipe before one in the working directory or on the Hub."""
    beside = recipe.resolve(recipe.model.reference)
    here = recipe.model.reference != BUILTIN and beside.is_dir()
    return recipe.model.model_copy(update={"reference": str(beside)}) if here else recipe.model


def _described(recipe: Recipe, denoiser: Denoiser) -> dict[str, Any]:
    """What the manifest says of the model: what it is and, for a loaded one, the commit and files it was read from."""
    described: dict[str, Any] = {"reference": recipe.model.reference, **asdict(denoiser.info)}
    return described if denoiser.origin is None else described | _traced(denoiser.origin)


def _traced(origin: Origin) -> dict[str, Any]:
    """The commit and the files a model was read from."""
    return {"commit": origin.commit, "files": {name: asdict(record) for name, record in origin.files.items()}}


def provenance(recipe: Recipe, denoiser: Denoiser, data: Dataset, masks: Origin | None = None) -> Provenance:
    """Everything a reader of the catalog needs to trace or repeat it; `masks`: the mask-generation model, if any."""
    frame = frame_of(denoiser)
    spaces: dict[Any, tuple[int, ...]] = dict(frame.spaces)
    versions = {name: metadata.version(name) for name in PACKAGES}
    return Provenance(
        recipe_fingerprint=recipe.fingerprint(),
        recipe=recipe.model_dump(mode="json"),
        model=_described(recipe, denoiser),
        data={
            "fingerprint": data.fingerprint(),
            "name": data.name,
            "split": data.split,
            "images": data.count(),
            "licence": data.source.licence,
            "redistributable": data.source.redistributable,
            **({"origin": dict(data.source.origin)} if data.source.origin else {}),
            **({"mask_model": {"reference": masks.reference, **_traced(masks)}} if masks else {}),
        },
        seeds={"recipe": recipe.seed},
        code_version=f"{metadata.version('rhumb')} (method {METHOD_VERSION})",
        packages={**versions, "python": platform.python_version()},
        spaces=spaces,
        effect_shape=frame.effect_shape,
    )


def chunk_count(images: int | None) -> int:
    """How many chunks so many images make; of an unknown number, more than anybody asks for."""
    return sys.maxsize if images is None else math.ceil(images / CHUNK)


@torch.no_grad()
def mine(
    recipe: Recipe,
    out: Path,
    denoiser: Denoiser,
    data: Dataset,
    runner: Runner = run_directly,
    advance: Advance = silent,
) -> MiningReport:
    """Mine the images of `data` into the catalog folder `out`; continue there if it was begun.

    Images are read as they are needed. What the catalog holds already is read again, to see that it is the same: an
    image whose masks have changed counts as failed, and what was mined of it stays.

    Raises:
        InputError, ModelError: the recipe, data or model do not fit; nothing is written.
        ConflictError: `out` holds something else, or another process is writing to it.
    """
    started = time.monotonic()
    miner = Miner(recipe, denoiser, out)
    check_method(recipe, denoiser)
    chunks = _beginning_with_an_image(recipe, denoiser, data)
    report = MiningReport(out)
    masks = miner.finder.origin() if miner.finder is not None else None
    with CatalogWriter.create(out, provenance(recipe, denoiser, data, masks)) as writer:
        known = writer.failed_images
        for mined in runner(miner.mine_chunk, _pending(chunks, writer, report, advance)):
            if any(
                record.failure is None or known.get(record.image_id) != record.failure for record in mined.chunk.images
            ):
                writer.commit(mined.chunk)  # else only images that had failed before failed again: nothing new
            report.add(mined.report)
            advance(len(mined.chunk.images), f"{report.directions} directions")
    report.seconds = time.monotonic() - started
    return report


def _beginning_with_an_image(recipe: Recipe, denoiser: Denoiser, data: Dataset) -> Iterator[Items]:
    """The chunks of a data set, once some image of it is known to be usable, and to have room for the recipe's ranks.

    Raises:
        InputError: no image is; or the ranks fit none of the first chunk that has images.
    """
    chunks = data.chunks(CHUNK)
    read: list[Items] = []
    for chunk in chunks:
        read.append(chunk)
        images = [item for item in chunk if isinstance(item, SourceImage)]
        if images:
            _check_some(recipe, denoiser, images)
            return chain(read, chunks)
    failures = [item for chunk in read for item in chunk if isinstance(item, Failure)]
    reasons = "; ".join(f"{failure.source}: {failure.reason}" for failure in failures[:3])
    raise InputError("dataset", f"no usable image in {data.name} ({reasons})", "at least one image with a mask")


def _check_some(recipe: Recipe, denoiser: Denoiser, images: Sequence[SourceImage]) -> None:
    """Raise the first image's error where the ranks fit none: one odd image among others fails alone, later."""
    errors = []
    for image in images:
        try:
            check_ranks(recipe, denoiser, image)
        except InputError as error:
            errors.append(error)
    if len(errors) == len(images):
        raise errors[0]


def _changed(image: SourceImage, masks: Mapping[tuple[str, str], str]) -> str:
    """Why a mined image is not what the catalog holds, `masks` being its region ids by (image id, region); else ""."""
    for region, region_id in region_ids(image.image_id, image.masks).items():
        mined = masks.get((image.image_id, region))
        if mined != region_id:
            what = "is new since the image was mined" if mined is None else "is another than the image was mined with"
            return f"its mask of {region} {what}; the catalog keeps what it has: mine it into another --out"
    return ""


def _pending(chunks: Iterable[Items], writer: CatalogWriter, report: MiningReport, advance: Advance) -> Iterator[Items]:
    """What is left to do of each chunk; the rest is counted in the report."""
    done, failed, masks = writer.done_images, writer.failed_images, writer.masks
    for chunk in chunks:
        left: list[SourceImage | Failure] = []
        for item in chunk:
            if isinstance(item, SourceImage) and item.skipped:
                report.skipped[item.source] = "; ".join(dict.fromkeys(item.skipped.values()))
            if isinstance(item, Failure) and item.repeats:
                report.skipped[item.source] = item.reason
            elif isinstance(item, Failure) and failed.get(item.image_id) == item.reason:
                report.failed[item.source] = item.reason
            elif item.image_id not in done:
                left.append(item)
            else:
                report.already_done += 1
                if isinstance(item, SourceImage) and (reason := _changed(item, masks)):
                    report.failed[item.source] = reason
        if len(left) < len(chunk):
            advance(len(chunk) - len(left), "already done")
        if left:
            yield left
