"""Publishing: a catalog that is whole, arranged as the next version of a pack, with its card, into a hub."""

from __future__ import annotations

import errno
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from catalog import manifest as manifests
from catalog.card import CardFields
from catalog.fs import CARD, RUN, disk_error, sha256_of
from catalog.hub.arranging import SHOWING, Arranged, arrange
from catalog.hub.card import MOST_CARD, CardContent, figures_in, pack_card
from catalog.hub.card_safety import check_card
from catalog.hub.citations import citations_of
from catalog.hub.contract import Draft, FormerDamagedError, Hub, Progress
from catalog.hub.figures import Figures, Group, Key, figures_of
from catalog.hub.licences import NOT_STATED, carried_over, may_be_passed_on, sources_of, stated
from catalog.hub.names import PackName, Version
from catalog.hub.pieces import patiently
from catalog.hub.portable import portable, portable_fields
from catalog.hub.sheets import sheets
from catalog.hub.snapshots import SnapshotCatalog, open_version
from catalog.manifest import Manifest, PackInfo, Provenance
from catalog.reader import Catalog
from catalog.schema import LEFT_OUT
from catalog.transaction import Lock
from catalog.verify import verify_version
from pipeline.errors import BusyError, CatalogError, ConflictError, InputError

_DRAFT = "publication-"
_SHOWN = 5


@dataclass(frozen=True)
class Published:
    """What was published, or would be: `bytes` of the whole pack, manifest included, of which `new_bytes` in
    `new_files` files (the manifest is one) are sent; `reused` files the version before has. `revision` is None where
    nothing was sent.
    """

    repository: str
    version: str
    revision: str | None
    bytes: int
    new_bytes: int
    new_files: int
    reused: int
    left_out: tuple[str, ...] = ()


def nothing_told(what: str, done: int, of: int) -> None:
    """A `Progress` that nobody looks at."""


def publish(
    source: Catalog,
    name: PackName,
    version: str,
    hub: Hub,
    card: CardFields,
    dry_run: bool = False,
    left_out: Collection[str] = (),
    progress: Progress = nothing_told,
) -> Published:
    """Publish a catalog as a version of a pack; visible only when complete, and never changed afterwards.

    It is published as it was opened, whatever others commit meanwhile; where they do away with files of it
    (`catalog.meanwhile.replaced`), that fails, as for files that are missing.

    What the highest version below has, its directions and their codes above all, is not sent again. Sources whose
    pictures may not be passed on are published without everything that shows them. `left_out`: columns to do without
    in any case. `dry_run`: everything but sending. Run again after a cut, it goes on with what has arrived. Where the
    version below turns out to be damaged, nothing is shared with it.

    Raises InputError (no licence, or a name that no version can have), ConflictError (the version exists),
    CatalogError (the catalog fails verification or has no directions, the version before is damaged, a full disk),
    StoreError (the hub cannot be reached).
    """
    number, repository = Version.parse(version), name.repository
    pack = PackInfo(repository=repository, version=version)
    fields = with_licences(card, source.manifest.provenance)
    versions = hub.versions(repository)
    if number in versions and not dry_run:
        hub.settle(repository)
    _refuse_published(name, number, versions)
    former = _below(hub, repository, number, versions)
    _refuse_damaged(source)
    before = former.manifest if former is not None else None
    for shared in (former, None):
        with workplace(source.folder) as folder:
            figures = _figures_before(former, folder)
            content = partial(CardContent, fields=fields, former=before, before=figures, hub=name.hub)
            arranged = _arranged(source, content, pack, shared, folder, left_out, progress)
            draft = _draft(arranged, number, shared.snapshot.revision if shared is not None else None)
            try:
                revision = None if dry_run else hub.publish(draft, progress)
            except FormerDamagedError:
                if shared is None:
                    raise
            else:
                break
    files = draft.files.values()
    return Published(
        repository, version, revision, sum(entry.bytes for entry in files) + len(draft.manifest), draft.new_bytes,
        len(draft.places) + 1, len(arranged.reused), arranged.manifest.left_out,
    )  # fmt: skip


def with_licences(card: CardFields, provenance: Provenance) -> CardFields:
    """The fields with the licences that model and data sets state, what these ask to be cited, and the licence of the
    pack: the one given, or theirs. No text in them holds a secret or a local path.

    Raises InputError where nobody has named one, or with a word that names none.
    """
    card, provenance = portable_fields(card), portable(provenance)
    if card.licence != NOT_STATED and stated(card.licence) is None:
        raise InputError(
            "licence", repr(card.licence)[:60], "the name of a licence, such as cc-by-4.0, or its words",
            "Leave it out to have that of its sources; nothing was published",
        )  # fmt: skip
    data = stated(card.data_licence)
    known = [text for source in sources_of(provenance) if (text := stated(source.get("licence"))) is not None]
    data = data or "; ".join(dict.fromkeys(known)) or None
    model = stated(card.model_licence) or stated(provenance.model.get("licence"))
    own = stated(card.licence) or carried_over(provenance, model, data)
    if own is None:
        told = f"model: {model or NOT_STATED}, data: {data or NOT_STATED}"
        raise InputError(
            "licence", f"none, and none that follows from the sources ({told})", "a licence for the pack",
            "Name one, such as --licence cc-by-4.0; nothing was published",
        )  # fmt: skip
    cited = tuple(dict.fromkeys((*citations_of(provenance), *card.citations)))
    return replace(
        card, licence=own, model_licence=model or NOT_STATED, data_licence=data or NOT_STATED, citations=cited
    )


def _refuse_published(name: PackName, version: Version, versions: Collection[Version]) -> None:
    if version in versions:
        there = ", ".join(map(str, sorted(versions)[-_SHOWN:]))
        raise ConflictError(
            f"{name} {version}", "a published version", "a version that does not exist yet",
            f"Published versions never change: choose a higher one; there are {there}",
        )  # fmt: skip


def _refuse_damaged(catalog: Catalog) -> None:
    source = catalog.folder
    report = verify_version(source, catalog.manifest)
    pa.default_memory_pool().release_unused()  # which had held every row once
    if not report.ok:
        first = report.problems[0]
        raise CatalogError(
            f"{source}/{first.file}", first.what, "a catalog that passes `rhumb verify`",
            f"{len(report.problems)} problems in all; nothing was published",
        )  # fmt: skip
    if not report.rows["directions"]:
        raise CatalogError(str(source), "no directions", "a catalog with directions to publish", "Mine some first")


def _below(hub: Hub, repository: str, version: Version, versions: Mapping[Version, str]) -> SnapshotCatalog | None:
    """The highest version below another. Raises CatalogError where its manifest is damaged, or of another pack."""
    below = max((known for known in versions if known < version), default=None)
    return None if below is None else open_version(hub, repository, below, versions[below])


def _figures_before(former: SnapshotCatalog | None, folder: Path) -> dict[Key, Group] | None:
    """The figures that the card of the version before keeps; None where it keeps none. Fetches it into `folder`."""
    if former is None or former.manifest.files[CARD].bytes > MOST_CARD:
        return None
    place, entry = folder / "former.tmp", former.manifest.files[CARD]
    try:
        patiently(lambda: former.snapshot.fetch(CARD, entry, place))
        return figures_in(place.read_bytes()) if sha256_of(place) == entry.sha256 else None
    finally:
        place.unlink(missing_ok=True)


def _arranged(
    source: Catalog, content: Callable[[Manifest, Figures], CardContent], pack: PackInfo,
    former: SnapshotCatalog | None, folder: Path, left_out: Collection[str], progress: Progress,
) -> Arranged:  # fmt: skip
    """The pack with its pictures and its card."""
    lacking = set(left_out) | (set() if may_be_passed_on(source.manifest.provenance) else set(LEFT_OUT))
    if unknown := sorted(lacking - set(LEFT_OUT)):
        raise InputError("left_out", unknown[0][:60], f"some of {', '.join(LEFT_OUT)}")
    figures = figures_of(source)
    pictures = {} if lacking & SHOWING else sheets(source, figures)
    before = former.manifest if former is not None else None
    images = partial(former.ids, "images") if former is not None else None
    arranged = arrange(source, pack, before, folder, lacking, pictures, images, partial(progress, "arranging"))
    page = pack_card(content(arranged.manifest, figures))
    try:
        check_card(page, CARD)
    except CatalogError as error:
        raise InputError("card", error.found, "names and texts that hold no markup", "Nothing was published") from error
    return arranged.with_card(page)


def _draft(arranged: Arranged, version: Version, former: str | None) -> Draft:
    manifest = arranged.manifest
    assert manifest.pack is not None  # it was arranged as one
    counts = f"{manifest.rows('directions'):,} directions of {manifest.rows('images'):,} images"
    summary = f"{manifest.pack.version}: {counts}"
    data = manifests.dump(manifest)
    return Draft(manifest.pack.repository, version, data, manifest.files, arranged.places, former, summary)


@contextmanager
def workplace(source: Path) -> Iterator[Path]:
    """A folder to lay out a pack in, beside the runs of a catalog, and deleted afterwards.

    Those of publications that were killed are deleted first. Where nothing may be written beside the catalog, it is one
    for temporary files. Raises CatalogError for a full disk.
    """
    runs = source / RUN
    if runs.is_symlink():
        raise CatalogError(str(runs), "a symbolic link", "a plain folder")
    try:
        runs.mkdir(exist_ok=True)
        _sweep(runs)
        folder, lock = _held_folder(runs)
    except PermissionError:
        folder, lock = _held_folder(Path(tempfile.gettempdir()))
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        folder, lock = _held_folder(Path(tempfile.gettempdir()))
    try:
        yield folder
    except OSError as error:
        clear = disk_error(folder, error)
        if clear is None:
            raise
        raise clear from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.free()


def _held_folder(parent: Path) -> tuple[Path, Lock]:
    """A new folder, and the lock by which others see that its process lives."""
    name = f"{_DRAFT}{secrets.token_hex(8)}"
    hidden = parent / f".{name}"  # until it is locked
    hidden.mkdir(mode=0o700)
    lock = Lock(hidden)
    hidden.rename(parent / name)
    return parent / name, lock


def _sweep(runs: Path) -> None:
    """Delete what publications that were killed have left."""
    for left in sorted(runs.glob(f"{_DRAFT}*")):
        with suppress(BusyError, OSError):
            lock = Lock(left)
            shutil.rmtree(left, ignore_errors=True)
            lock.free()
