"""Publishing a catalog: what its gates let through, and not worse than the version before unless that is overridden."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from catalog.card import CardFields
from catalog.concept_building import build_concepts
from catalog.concept_files import stored_table
from catalog.fs import RUN
from catalog.hub import publishing as packs
from catalog.hub.contract import Hub, Progress
from catalog.hub.names import PackName, Version
from catalog.hub.opening import open_hub
from catalog.hub.pack_indexes import carry_indexes
from catalog.hub.pieces import patiently
from catalog.hub.publishing import Published
from catalog.hub.snapshots import SnapshotCatalog, open_pack
from catalog.index import build_indexes
from catalog.manifest import PackInfo, Provenance
from catalog.meanwhile import replaced
from catalog.reader import Catalog
from catalog.selecting import select_into
from catalog.writer import CatalogWriter
from flows.files import write_whole
from flows.gates import Rejections, explained, gates_of, rejections
from flows.quality import Quality, quality_of, regression
from flows.watching.snapshots import runs_folder
from pipeline.errors import ConflictError, InputError, RhumbError

RECORD = "published.json"  # in the folder of a catalog's runs
_SELECTION = "selection"


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
    catalog: str | Path,
    repository: str,
    version: str,
    licence: str | None = None,
    override: bool = False,
    *,
    dry_run: bool = False,
    private: bool | None = None,
    left_out: Collection[str] = (),
    progress: Progress = packs.nothing_told,
) -> Release:
    """Publish what the gates of a catalog's recipe keep of it as `version` of `repository`.

    It is published as it stands now: what others commit meanwhile is for the next version. Where they do away with
    files of it, that begins anew. `override` publishes although figures are worse than those of the version before,
    and has the card say so.
    `private`: what a repository of the Hub is that has yet to be made. The rest is as in `catalog.hub.publishing`.

    Raises ConflictError naming the figures that are worse, with nothing published; and as `catalog.hub.publishing`.
    """
    name, number = named(repository), Version.parse(version)
    hub = open_hub(name, private=private)
    while True:
        with Catalog.open(catalog) as opened:
            try:
                release = _released(opened, name, number, hub, licence, override, dry_run, left_out, progress)
            except (RhumbError, OSError):  # files that are missing, of a version that is no longer
                if not replaced(opened.folder, opened.manifest):
                    raise
            else:
                if not dry_run:
                    _record(opened.folder, str(name), release.published, release.quality)
                return release


def _released(
    catalog: Catalog, name: PackName, number: Version, hub: Hub, licence: str | None, override: bool, dry_run: bool,
    left_out: Collection[str], progress: Progress,
) -> Release:  # fmt: skip
    """`publish_catalog` for a catalog as it was opened."""
    provenance = catalog.manifest.provenance
    found = rejections(catalog, gates_of(provenance))
    quality = quality_of(catalog, found.keep)
    former, before = quality_before(name, hub, number)
    worse = regression(quality, before) if before is not None else []
    if worse and not override:
        raise ConflictError(
            f"quality of {catalog.folder}", "; ".join(worse), f"no worse than {former} of {name}",
            "Publish it with --override if that is as it should be; nothing was published",
        )  # fmt: skip
    remarks = [*explained(found), *(f"published although worse than {former}: {figure}" for figure in worse)]
    fields = card_fields(provenance, licence or stated_licence(provenance), remarks)
    with _selected(catalog, found) as chosen:
        done = packs.publish(chosen, name, str(number), hub, fields, dry_run, left_out, progress)
    return Release(done, quality, found.counts, tuple(worse))


def named(repository: str) -> PackName:
    """The name of a repository to publish in. Raises InputError for one that says which version, too."""
    name = PackName.parse(repository)
    if name.wanted:
        raise InputError("repository", repository[:200], f"{name}, and the version apart")
    return name


def quality_before(name: PackName, hub: Hub, version: Version | None = None) -> tuple[Version | None, Quality | None]:
    """The newest published version before `version`, or of all, and its quality; (None, None) where there is none."""
    former = [v for v in patiently(lambda: hub.versions(name.repository)) if version is None or v < version]
    if not former:
        return None, None
    with published(name, max(former), hub) as pack:
        return max(former), quality_of(pack)


def published(name: PackName, version: Version, hub: Hub) -> SnapshotCatalog:
    """A published version, read in place."""
    return open_pack(PackName(name.hub, name.organisation, name.name, str(version)), hub)


def is_published(catalog: str | Path, repository: str, version: str) -> bool:
    """Whether `version` of `repository` holds just what would be published. Raises NotFoundError without it."""
    name = named(repository)
    with Catalog.open(catalog) as opened, published(name, Version.parse(version), open_hub(name)) as pack:
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
def _selected(catalog: Catalog, found: Rejections) -> Iterator[Catalog]:
    """What is to be published: the catalog itself, or for the time being one of what the gates keep of it."""
    if not len(found):
        yield catalog
        return
    with packs.workplace(catalog.folder) as place:
        folder = select_into(catalog, place / _SELECTION, found.keep)
        if catalog.manifest.indexes:
            carry_indexes(catalog, folder)
            build_indexes(folder)
        if catalog.manifest.concepts is not None:
            with CatalogWriter.open(folder) as writer, Catalog(folder, writer.manifest) as chosen:
                writer.replace_concepts(build_concepts(chosen, former=stored_table(catalog)))
        with Catalog.open(folder) as selected:
            yield selected


def stated_licence(provenance: Provenance) -> str | None:
    """The licence of packs by the recipe that a catalog was begun with; None where it says none."""
    found = provenance.recipe.get("licence")
    return found if isinstance(found, str) else None


def card_fields(provenance: Provenance, licence: str | None, remarks: Sequence[str] = ()) -> CardFields:
    """What the dataset card says about licences and sources, and about this version."""
    fields = CardFields(
        title=str(provenance.recipe.get("name", "no name")),
        summary="Local editing directions of a diffusion model, mined by Rhumb.",
        citations=(
            "Chen et al., Exploring Low-Dimensional Subspaces in Diffusion Models for Controllable Image Editing, "
            "NeurIPS 2024 (arXiv:2409.02374)",
            "Kouzelis et al., Enabling Local Editing in Diffusion Models by Joint and Individual Component Analysis, "
            "BMVC 2024 (arXiv:2408.16845)",
        ),
        remarks=tuple(remarks),
    )
    if provenance.model.get("reference") == "builtin":
        fields = replace(fields, model_licence="apache-2.0")
    return fields if licence is None else replace(fields, licence=licence)
