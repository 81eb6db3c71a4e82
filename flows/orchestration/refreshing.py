"""What is new or changed since the last version, and only that: mined, indexed, and published under the next version.

A catalog of the same recipe, model and data is continued. Another recipe or model gets a catalog of its own beside it,
a *generation*: FOLDER, FOLDER-2, FOLDER-3 and so on; the former stay as they are, and readable. The hub is told what
changed by the version: new directions of the same identity raise the minor number, another identity the major one.

Nothing is remembered between runs but the catalogs and the hub, so a run that was killed anywhere is made good by the
next one: what is mined already is kept, and what was not published yet is published.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.fs import MANIFEST
from catalog.hub.names import Version
from catalog.hub.opening import open_hub
from catalog.hub.pieces import patiently
from catalog.index import build_indexes
from catalog.manifest import Manifest, load
from catalog.mirror import local_folder
from catalog.reader import Catalog
from catalog.store import as_url
from catalog.transaction import Lock
from catalog.writer import CatalogWriter
from flows.gates import adopt_gates, gates_of, rejections
from flows.orchestration.places import absolute, folder_of
from flows.publishing import named, publish_catalog, published
from flows.recipe import Recipe
from flows.run_settings import RunSettings
from pipeline.errors import BusyError, InputError, NotFoundError

if TYPE_CHECKING:
    from flows.miner import MiningReport
    from flows.watching.progress import Progress

FIRST_VERSION = "1.0.0"


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did. `catalog`: the place of the present generation, the `generation`-th; `version`: the one it
    published, None where nothing was; `said`: why there is one, or none."""

    catalog: str
    generation: int
    images: int
    directions: int
    already_done: int
    failed: dict[str, str]
    version: str | None
    said: str


def refresh(
    recipe: Recipe,
    place: str | Path,
    repository: str | None = None,
    settings: RunSettings | None = None,
    override: bool = False,
    progress: Progress | None = None,
) -> Refreshed:
    """Mine what is new, index it, and publish a version if anything changed since the last one.

    Args:
        recipe: what is mined; paths in it are resolved by it.
        place: folder or store URL of the first generation; later ones lie beside it.
        repository: where versions are published (`catalog.hub.names`); None publishes none.
        settings: how it is mined (`flows.run_settings`).
        override: publish even where the quality is worse than the last version's.
        progress: who is told how far it is while it mines.

    Raises:
        InputError, ModelError: the recipe, model or data do not fit; nothing is written.
        BusyError: another process is refreshing or writing to the catalog; nothing is written.
        ConflictError: the quality regressed, and nothing is published.
    """
    if repository is not None:
        named(repository)
    first = absolute(place)
    with alone(first):
        return _refreshed(recipe, first, repository, settings, override, progress)


def _refreshed(
    recipe: Recipe,
    first: str,
    repository: str | None,
    settings: RunSettings | None,
    override: bool,
    progress: Progress | None,
) -> Refreshed:
    number, target = generation_for(recipe, first)
    if progress is not None:
        progress.catalog = target
    report = mine(recipe, target, settings, progress)
    if report.images or report.already_done:
        _judge(target, recipe)
        index(target)
    version, said = None, "no repository was given"
    if repository is not None:
        version, said = publish_if_changed(target, repository, override, recipe.licence)
    return Refreshed(
        target, number, report.images, report.directions, report.already_done, dict(report.failed), version, said
    )


@contextmanager
def alone(first: str) -> Iterator[None]:
    """Be the only refresh of all generations of a catalog: a recipe may have changed since another one began, and what
    that publishes must not come after what this one does.

    The lock lies beside the first generation, `.CATALOG.refresh`; of a store, beside its mirror on this machine.

    Raises:
        BusyError: another process of this machine holds it, or of one that shares the folder.
        InputError: the folder around the catalog cannot be written.
    """
    folder = local_folder(first)
    beside = folder.with_name(f".{folder.name}.refresh")
    try:
        beside.mkdir(parents=True, exist_ok=True)
        lock = Lock(beside)
    except BusyError as error:
        raise BusyError(
            first, error.found.replace("writer", "refresh"), "one refresh at a time",
            "Wait for it to end, then run the same command again",
        ) from None  # fmt: skip
    except OSError as error:
        raise InputError("catalog", f"{first} ({error.strerror})", "a place that can be written to") from error
    try:
        yield
    finally:
        lock.free()


def mine(
    recipe: Recipe, place: str, settings: RunSettings | None = None, progress: Progress | None = None
) -> MiningReport:
    """`flows.running.run_mining` into the catalog at a place."""
    from flows.running import run_mining

    return run_mining(recipe, place if as_url(place) else Path(place), settings or RunSettings(), progress)


# -- generations -------------------------------------------------------------------------------------------------------


def generations(place: str) -> Iterator[tuple[int, str, Manifest | None]]:
    """(number, place, manifest) of every generation there is, and of the next one, which has no manifest yet."""
    for number in itertools.count(1):
        own = place if number == 1 else f"{place}-{number}"
        manifest = manifest_at(own)
        yield number, own, manifest
        if manifest is None:
            return


def manifest_at(place: str) -> Manifest | None:
    """The manifest of the catalog at a place; None where no catalog was begun yet."""
    folder = folder_of(place)
    try:
        return load(folder) if (folder / MANIFEST).exists() else None
    except NotFoundError:
        return None


def generation_for(recipe: Recipe, place: str) -> tuple[int, str]:
    """(number, place) of the generation that is of this recipe, model and data: the latest such one, or a new one.

    Cost: loads the model where there is any generation, to see whether it still is the model.
    """
    found = list(generations(place))
    number, own, _ = found.pop()
    if not found:
        return number, own
    wanted = identity_of(recipe)
    same = [(n, p) for n, p, manifest in found if manifest and manifest.provenance.identity() == wanted]
    return same[-1] if same else (number, own)


def identity_of(recipe: Recipe) -> dict[str, Any]:
    """What a catalog mined of this recipe now would be identified by. Cost: loads the model and lists the data."""
    from flows.datasets.dataset import load_dataset
    from flows.mining import provenance
    from flows.opening import model_place, open_model

    denoiser = open_model(model_place(recipe), "cpu")
    return provenance(recipe, denoiser, load_dataset(recipe, denoiser.info.image_shape)).identity()


def latest(place: str) -> str:
    """The place of the latest generation. Raises NotFoundError where none was begun."""
    begun = [own for _, own, manifest in generations(place) if manifest is not None]
    if not begun:
        raise NotFoundError("catalog", place, f"a folder or store with {MANIFEST}", "Mine or pull one first")
    return begun[-1]


def _judge(place: str, recipe: Recipe) -> None:
    """Have the catalog judged by the recipe's present gates, which say what a pack holds, not what is mined."""
    folder = folder_of(place)
    if gates_of(load(folder).provenance) != recipe.gates:
        with CatalogWriter.open(folder) as writer:
            adopt_gates(writer, recipe.gates)


# -- index -------------------------------------------------------------------------------------------------------------


def index(place: str) -> dict[str, int]:
    """Index the directions of a catalog that are not indexed yet; rows by index, empty where all were."""
    folder = folder_of(place)
    with Catalog.open(folder) as catalog:
        shards, entries = catalog.manifest.shards("directions"), catalog.manifest.indexes.values()
        if not shards or (entries and all(entry.covers(shards) for entry in entries)):
            return {}
    return dict(build_indexes(folder))


# -- versions ----------------------------------------------------------------------------------------------------------


def publish_if_changed(
    place: str, repository: str, override: bool = False, licence: str | None = None
) -> tuple[str | None, str]:
    """(the version published, why) or (None, why not). Raises ConflictError where the quality regressed."""
    folder = folder_of(place)
    version, said = next_version(folder, repository)
    if version is None:
        return None, said
    publish_catalog(folder, repository, version, licence, override)
    return version, said


def next_version(folder: Path, repository: str) -> tuple[str | None, str]:
    """(the version that this catalog should be published under, why) or (None, why it should not).

    The first is 1.0.0. A catalog of another recipe, model or data than the last version raises the major number; other
    directions than it holds, the minor one.
    """
    name = named(repository)
    hub = open_hub(name)
    versions = patiently(lambda: hub.versions(name.repository))
    with Catalog.open(folder) as catalog:
        kept, identity = kept_ids(catalog), catalog.manifest.provenance.identity()
        if not len(kept):
            rejected = "the gates reject every direction" if len(catalog.ids()) else "the catalog holds no direction"
            return None, rejected
    if not versions:
        return FIRST_VERSION, "the first version"
    last = max(versions)
    with published(name, last, hub) as pack:
        former = pack.manifest.provenance.identity()
        changed = [part for part in former if former[part] != identity[part]]
        if changed:
            return str(Version(last.major + 1, 0, 0)), f"another {' and '.join(changed)} than {last} has"
        there = pack.ids()
        new, gone = len(np.setdiff1d(kept, there, assume_unique=True)), len(np.setdiff1d(there, kept, True))
        if not new and not gone:
            return None, f"nothing changed since {last}"
        said = f"{new} new directions since {last}" + (f", {gone} gone" if gone else "")
        return str(Version(last.major, last.minor + 1, 0)), said


def kept_ids(catalog: Catalog) -> np.ndarray:
    """(n,) "S32": ids of the directions that a pack of the catalog holds, those that its gates do not reject."""
    return np.asarray(catalog.ids()[rejections(catalog, gates_of(catalog.manifest.provenance)).keep])
