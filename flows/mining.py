"""The main job: a recipe in, a catalog out. Chunks of images are mined wherever a runner has them mined.

A killed run continues where it stopped: chunks are cut from the data set's own order and named by what they hold, so
the rerun skips what the manifest lists and what workers have deposited, and ends with the same catalog (with
`warm_start`: within the tolerance). Failed images are recorded with their reason and tried again by the next run; so
are files that could not be read, once they are repaired.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from catalog.deposits import Target
from catalog.manifest import Provenance
from catalog.secrecy import without_secrets
from catalog.writer import CatalogWriter
from flows.coordinator import Coordinator
from flows.datasets.builtin import BUILTIN_LICENCE
from flows.datasets.contract import Failure, SourceImage
from flows.datasets.dataset import Dataset
from flows.gates import adopt_gates
from flows.miner import METHOD_VERSION, Miner, MiningReport, frame_of, method_fingerprint
from flows.model_choice import BUILTIN
from flows.ranks import check_method, check_ranks
from flows.recipe import Recipe
from flows.runners.contract import Runner, run_here
from flows.stopping import Stopped, StopRequest
from flows.transient import patiently
from flows.watching.progress import Progress
from flows.work import Desk, Job
from pipeline.errors import InputError
from pipeline.models.contract import Denoiser
from pipeline.models.files import Origin

CHUNK = 4  # images inverted together and committed together
PACKAGES = ("torch", "diffusers", "numpy", "pyarrow", "faiss-cpu", "prefect", "datasets", "huggingface-hub")

Items = Sequence[SourceImage | Failure]


def _described(recipe: Recipe, denoiser: Denoiser) -> dict[str, Any]:
    """What the manifest says of the model: what it is and, for a loaded one, the commit and files it was read from,
    its licence and what to cite."""
    own = _terms(BUILTIN_LICENCE, None) if recipe.model.reference == BUILTIN else {}
    described: dict[str, Any] = {"reference": recipe.model.reference, **asdict(denoiser.info), **own}
    return described if denoiser.origin is None else described | _traced(denoiser.origin)


def _traced(origin: Origin) -> dict[str, Any]:
    """The commit and the files a model was read from, and on which terms."""
    files = {name: asdict(record) for name, record in origin.files.items()}
    return {"commit": origin.commit, "files": files, **_terms(origin.terms.licence, origin.terms.citation)}


def _terms(licence: str | None, citation: str | None) -> dict[str, str]:
    """What is known of them, without what no manifest may show."""
    known = {"licence": licence, "citation": citation}
    return {name: without_secrets(text) for name, text in known.items() if text is not None}


def provenance(recipe: Recipe, denoiser: Denoiser, data: Dataset, masks: Origin | None = None) -> Provenance:
    """Everything a reader of the catalog needs to trace or repeat it; `masks`: the mask-generation model, if any."""
    frame = frame_of(denoiser)
    spaces: dict[Any, tuple[int, ...]] = dict(frame.spaces)
    versions = {name: metadata.version(name) for name in PACKAGES}
    return Provenance(
        recipe_fingerprint=method_fingerprint(recipe),
        recipe=recipe.model_dump(mode="json"),
        model=_described(recipe, denoiser),
        data={
            "fingerprint": data.fingerprint(),
            "name": data.name,
            "split": data.split,
            "images": data.count(),
            "licence": data.source.licence,
            "redistributable": data.source.redistributable,
            **_terms(None, data.source.citation),
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
    out: Path | str,
    denoiser: Denoiser,
    data: Dataset,
    runner: Runner = run_here,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
    image_timeout: float | None = None,
) -> MiningReport:
    """Mine the images of `data` into the catalog folder `out`; continue there if it was begun.

    Images are read as they are needed. What the catalog holds already is read again, to see that it is the same: an
    image whose masks have changed counts as failed, and what was mined of it stays.

    Raises:
        InputError, ModelError: the recipe, data or model do not fit; nothing is written.
        ConflictError: `out` holds something else, or another process is writing to it.
        Stopped: `stop` was asked for; everything that was mined until then is committed.
    """
    started = time.monotonic()
    miner = Miner(recipe, denoiser, Path(out))
    check_method(recipe, denoiser)
    data = replace(data, seconds=image_timeout)
    chunks = _beginning_with_an_image(recipe, denoiser, data)
    masks = miner.finder.origin() if miner.finder is not None else None
    report, stop = MiningReport(Path(out)), stop or StopRequest()
    told = progress or Progress(data.count(), str(out))
    described = provenance(recipe, denoiser, data, masks)
    with patiently(lambda: CatalogWriter.create(out, described)) as writer:
        adopt_gates(writer, recipe.gates)
        commit = denoiser.origin.commit if denoiser.origin is not None else None
        job = Job(recipe, str(out), Target.of(writer.manifest), commit, image_timeout, run=told.run_id)
        coordinator = Coordinator(writer, Desk(job, miner, data), report, told, stop)
        try:
            coordinator.run(runner, chunks)
        finally:
            told.end("stopped" if stop.asked else "failed" if sys.exc_info()[0] is not None else "finished")
    report.seconds = time.monotonic() - started
    if stop.asked:
        raise Stopped
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
