"""Publishing a catalog: what its gates let through, and not worse than the version before unless that is overridden."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from catalog import hub
from catalog.card import CardFields
from catalog.concept_building import build_concepts
from catalog.concepts import stored_table
from catalog.fs import RUN
from catalog.hub import Published
from catalog.index import build_indexes
from catalog.manifest import PackInfo, Provenance
from catalog.reader import Catalog
from catalog.selecting import select_into
from catalog.writer import CatalogWriter
from flows.files import write_whole
from flows.gates import Rejections, explained, gates_of, rejections
from flows.quality import Quality, quality_of, regression
from flows.watching.snapshots import born, runs_folder
from pipeline.errors import ConflictError, RhumbError

RECORD = "published.json"  # in the folder of a catalog's runs
_SELECTION = "selection-"


class LastPublished(PackInfo):
    """The version a catalog was last published under, where, and how good it was."""

    place: str
    quality: Quality


@dataclass(frozen=True)
class Release:
    """What `publish_catalog` did: the pack, its quality, directions left out by reason, and what was overridden."""

    published: Published
    quality: Quality
    rejected: dict[str, int]
    overridden: tuple[str, ...] = ()


def publish_catalog(
    catalog: str | Path, repository: str, version: str, licence: str | None = None, override: bool = False
) -> Release:
    """Publish what the gates of a catalog's recipe keep of it as `version` of `repository`.

    `override` publishes although figures are worse than those of the version before, and has the card say so.

    Raises ConflictError naming the figures that are worse, with nothing published; and as `hub.publish`.
    """
    hub.check_version(version)
    with Catalog.open(catalog) as opened:
        found = rejections(opened, gates_of(opened.manifest.provenance))
        quality = quality_of(opened, found.keep)
        former, before = quality_before(repository, version)
        worse = regression(quality, before) if before is not None else []
        if worse and not override:
            raise ConflictError(
                f"quality of {opened.folder}", "; ".join(worse), f"no worse than {former} of {repository}",
                "Publish it with --override if that is as it should be; nothing was published",
            )  # fmt: skip
        remarks = [*explained(found), *(f"published although worse than {former}: {figure}" for figure in worse)]
        fields = card_fields(opened.manifest.provenance, licence, remarks)
        with _selected(opened, found) as folder:
            done = hub.publish(folder, repository, version, card=fields)
        _record(opened.folder, repository, done, quality)
    return Release(done, quality, found.counts, tuple(worse))


def quality_before(repository: str, version: str | None = None) -> tuple[str | None, Quality | None]:
    """The newest published version before `version`, or of all, and its quality; (None, None) where there is none."""
    number = None if version is None else _number(version)
    former = [name for name in hub.list_versions(repository) if number is None or _number(name) < number]
    if not former:
        return None, None
    with Catalog.open(hub.find_snapshot(repository, former[-1])) as pack:
        return former[-1], quality_of(pack)


def _number(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def is_published(catalog: str | Path, repository: str, version: str) -> bool:
    """Whether `version` of `repository` holds just what would be published. Raises NotFoundError without it."""
    with Catalog.open(catalog) as opened, Catalog.open(hub.find_snapshot(repository, version)) as pack:
        found = rejections(opened, gates_of(opened.manifest.provenance))
        return np.array_equal(opened.ids()[found.keep], pack.ids())


def last_published(folder: Path) -> LastPublished | None:
    """What is known of the last publication of the catalog in `folder`; None where there was none."""
    try:
        return LastPublished.model_validate_json((folder / RUN / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def _record(folder: Path, repository: str, done: Published, quality: Quality) -> None:
    record = LastPublished(repository=done.repository, version=done.version, place=repository, quality=quality)
    with suppress(OSError, RhumbError):  # a catalog that may only be read can be published too
        write_whole(runs_folder(folder) / RECORD, record.model_dump_json(indent=1).encode())


@contextmanager
def _selected(catalog: Catalog, found: Rejections) -> Iterator[Path]:
    """The folder of what is to be published: the catalog's own, or for the time being one of what the gates keep."""
    if not len(found):
        yield catalog.folder
        return
    runs = runs_folder(catalog.folder)
    for left in runs.glob(f"{_SELECTION}*"):  # of publications that were killed
        owner = left.name.removeprefix(_SELECTION)
        if owner.isdecimal() and born(int(owner)) is None:
            shutil.rmtree(left, ignore_errors=True)
    folder = runs / f"{_SELECTION}{os.getpid()}"
    try:
        select_into(catalog, folder, found.keep)
        if catalog.manifest.indexes:
            build_indexes(folder)
        if catalog.manifest.concepts is not None:
            with CatalogWriter.open(folder) as writer, Catalog(folder, writer.manifest) as chosen:
                writer.replace_concepts(build_concepts(chosen, former=stored_table(catalog)))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def card_fields(provenance: Provenance, licence: str | None, remarks: Sequence[str] = ()) -> CardFields:
    """What the dataset card says about licences and sources, and about this version."""
    builtin_data = provenance.recipe.get("dataset", {}).get("kind") == "builtin"
    builtin_model = provenance.model.get("reference") == "builtin"
    own = "apache-2.0"
    fields = {
        "title": str(provenance.recipe.get("name", "no name")),
        "summary": "Local editing directions of a diffusion model, mined by Rhumb.",
        "citations": (
            "Chen et al., Exploring Low-Dimensional Subspaces in Diffusion Models for Controllable Image Editing, "
            "NeurIPS 2024 (arXiv:2409.02374)",
            "Kouzelis et al., Enabling Local Editing in Diffusion Models by Joint and Individual Component Analysis, "
            "BMVC 2024 (arXiv:2408.16845)",
        ),
        "remarks": tuple(remarks),
    }
    if builtin_model:
        fields["model_licence"] = own
    if builtin_data:
        fields["data_licence"] = own
    if licence or (builtin_data and builtin_model):
        fields["licence"] = licence or own
    return CardFields(**fields)  # type: ignore[arg-type]
