"""Pulling: a published version, or a part of one, as a catalog in a folder, with every checksum and row verified.

The manifest is put last: what was cut off is no catalog, and another call goes on with what has come so far.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from catalog import manifest as manifests
from catalog.fs import CARD, MANIFEST, STAGING, inside, sha256_of
from catalog.hub.card_safety import check_card
from catalog.hub.contract import Hub, Progress
from catalog.hub.names import BUILTIN, PackName, Version, chosen_version
from catalog.hub.opening import open_hub
from catalog.hub.part_building import build_part
from catalog.hub.parts import Part
from catalog.hub.pieces import ANEW, patiently
from catalog.hub.pulled import (
    BUILT,
    Keeper,
    disk_errors,
    is_whole,
    made,
    missing,
    pulled_from,
    refuse_other_content,
    staging_in,
    without_retired,
)
from catalog.hub.snapshots import SnapshotCatalog, open_version
from catalog.manifest import Manifest, PackPart
from catalog.store import StoreError, as_url
from catalog.transaction import Lock
from catalog.verify import check_content
from pipeline.errors import BusyError, CatalogError, InputError, NotFoundError

_ABREAST = 4  # files at once


@dataclass(frozen=True)
class Pulled:
    """What `pull` did: `bytes` that the catalog in `folder` takes, `new_bytes` that the hub was asked for (whose client
    may have had them already).
    """

    folder: Path
    repository: str
    version: str
    revision: str
    bytes: int
    new_bytes: int


def pull(
    name: PackName,
    out: str | Path,
    part: Part | None = None,
    hub: Hub | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Pulled:
    """Put a published version, or a part of it, into the folder `out`: a catalog like any other.

    Of a part only what is needed travels, and what has come once is kept in the cache: pulled again, or another part
    that shares rows with it, nothing comes twice. A pull that was cut off continues, a finished one changes nothing. A
    folder that holds the same part in another version, finished or not, is brought to this one, unless it was changed
    since. Where the hub cannot be reached, the newest of the versions meant is taken that the caches have.
    Cost: reads every row twice, as `verify` does. Memory: one shard, and what `verify` takes.

    Raises ConflictError (`out` has other content, which is named), NotFoundError (no such version, or nothing in it is
    asked for), CatalogError (the pack is damaged or hostile, or the disk is full: no half catalog is left in `out`),
    InputError, StoreError (the hub cannot be reached: run it again).
    """
    target, part = Path(out), part if part is not None and part.filters else None
    done = _finished_before(name, target, part)
    if done is not None:
        return done
    hub, refusals = hub if hub is not None else open_hub(name), list[StoreError | InputError]()
    for version, revision in _meant(name, hub):
        try:
            with open_version(hub, name.repository, version, revision) as source:
                return _pull(name, source, hub, target, part, progress)
        except (StoreError, InputError) as error:
            refusals.append(error)
    raise refusals[0]


def _meant(name: PackName, hub: Hub) -> list[tuple[Version, str]]:
    """The newest version that is meant. Where the hub is away all of them, the newest first: of which the cache has
    everything is not known yet. Raises NotFoundError.
    """
    versions = patiently(lambda: hub.versions(name.repository))
    first = chosen_version(versions, name.wanted, str(name))
    found, left = [(first, versions[first])], {v: revision for v, revision in versions.items() if v != first}
    with suppress(NotFoundError):
        while hub.away:
            version = chosen_version(left, name.wanted, str(name))
            found.append((version, left.pop(version)))
    return found


def _pull(
    name: PackName, source: SnapshotCatalog, hub: Hub, target: Path, part: Part | None, progress: Progress
) -> Pulled:
    """`pull` of a version that is known."""
    wanted, where = _asked(source, part), _where(name)
    refuse_other_content(target, wanted, where, source.manifest)
    with disk_errors(target), made(target):
        lock = Lock(target)
        try:
            refuse_other_content(target, wanted, where, source.manifest)
            if is_whole(target, wanted):
                shutil.rmtree(target / STAGING, ignore_errors=True)
                return _pulled(target, wanted, 0)
            keep = Keeper(target, wanted, where, hub.place)
            if part is None:
                new = _pull_whole(source, target, keep, progress)
            else:
                new = _pull_part(source, target, keep, part, progress)
            return _pulled(target, wanted, new)
        finally:
            lock.free()


def _asked(source: SnapshotCatalog, part: Part | None) -> PackPart:
    """What is to be pulled."""
    pack = source.manifest.pack
    assert pack is not None  # open_pack has refused others
    filters = part.filters if part is not None else {}
    revision = source.snapshot.revision
    return PackPart(repository=pack.repository, version=pack.version, revision=revision, filters=filters)


def _where(name: PackName) -> str | None:
    """The hub of a name, wherever it is asked from."""
    if name.hub in (None, BUILTIN) or as_url(str(name.hub)) is not None:
        return name.hub
    return str(Path(str(name.hub)).expanduser().absolute())


# -- the target --------------------------------------------------------------------------------------------------------


def _finished_before(name: PackName, target: Path, part: Part | None) -> Pulled | None:
    """What is in `target` already, where that is this very version and part, whole: no hub has to be asked then."""
    known = pulled_from(target)
    asked = part.filters if part is not None else {}
    exact = known is not None and name.wanted.removeprefix("v") == known.version
    if known is None or not exact or known.hub != _where(name):
        return None
    if (known.repository, known.filters) != (name.repository, asked):
        return None
    if not is_whole(target, known):
        return None
    if (target / STAGING).exists():  # of a pull that was killed at its very end
        with suppress(BusyError):
            lock = Lock(target)
            shutil.rmtree(target / STAGING, ignore_errors=True)
            lock.free()
    return _pulled(target, known, 0)


def _pulled(target: Path, record: PackPart, new_bytes: int) -> Pulled:
    manifest = manifests.load(target)
    size = sum(entry.bytes for entry in manifest.files.values()) + (target / MANIFEST).stat().st_size
    return Pulled(target, record.repository, record.version, record.revision, size, new_bytes)


# -- a whole version ---------------------------------------------------------------------------------------------------


def _pull_whole(source: SnapshotCatalog, target: Path, keep: Keeper, progress: Progress) -> int:
    """Fetch what is missing or changed, and verify all; bytes fetched.

    Where another version stands in the folder, it stands until all has come but what takes the place of a file of it.
    """
    wanted = without_retired(source.manifest)
    total, new, data = sum(entry.bytes for entry in wanted.files.values()), 0, manifests.dump(wanted)
    with staging_in(target) as staging:
        lacking, stands = missing(target, wanted), (target / MANIFEST).is_file()
        beside = [name for name in lacking if stands and not inside(target, name).exists()]
        done = total - sum(wanted.files[name].bytes for name in lacking)
        for names in (beside, [name for name in lacking if name not in set(beside)]):
            if names is not beside:
                keep.begin(staging, data)
            for name, fetched in _fetched(source, names, staging, target):
                new, done = new + fetched, done + wanted.files[name].bytes
                progress(f"pulling {name}", done, total)
        progress("verifying", total, total)
        _check(target, wanted, source)
        keep.finish(staging, wanted)
    return new


def _fetched(source: SnapshotCatalog, names: Sequence[str], staging: Path, target: Path) -> Iterator[tuple[str, int]]:
    """(name, bytes fetched) of some files, each in its place in `target` once it has come.

    Several at once: over a network each takes a while to begin. Where one fails, the others that are under way stay.
    """

    def one(number: int) -> int:
        draft, path = staging / f"{number}.tmp", inside(target, names[number])
        fetched = _fetch(source, names[number], draft)
        path.parent.mkdir(exist_ok=True)
        draft.replace(path)
        return fetched

    pool = ThreadPoolExecutor(_ABREAST)
    try:
        yield from zip(names, pool.map(one, range(len(names))), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch(source: SnapshotCatalog, name: str, draft: Path) -> int:
    """A file of the pack as it was published; bytes fetched. Raises CatalogError: missing, or other bytes, twice."""
    entry, place = source.manifest.files[name], f"{source.snapshot.place}/{name}"
    new = 0
    for anew in (False, True):

        def fetch(anew: bool = anew) -> None:
            draft.unlink(missing_ok=True)
            source.snapshot.fetch(name, entry, draft, anew)

        try:
            patiently(fetch)
        except NotFoundError as error:
            raise CatalogError(place, "missing from the pack", "the published file", ANEW) from error
        new += draft.stat().st_size
        if draft.stat().st_size == entry.bytes and sha256_of(draft) == entry.sha256:
            if name == CARD:
                check_card(draft.read_bytes(), place)
            with draft.open("rb") as stream:
                os.fsync(stream.fileno())
            return new
    raise CatalogError(place, "changed bytes", "the published sha256", ANEW)


def _check(folder: Path, manifest: Manifest, source: SnapshotCatalog) -> None:
    """Raise CatalogError, which names the pack, for the first rule that what was pulled breaks."""
    for problem in check_content(folder, manifest):
        place = f"{source.snapshot.place}: {problem.file}"
        raise CatalogError(place, problem.what, "a pack that passes `rhumb verify`", ANEW)


# -- a part ------------------------------------------------------------------------------------------------------------


def _pull_part(source: SnapshotCatalog, target: Path, keep: Keeper, part: Part, progress: Progress) -> int:
    """Make the part by the pieces that it takes, verify it, and put it in place; bytes fetched."""
    with staging_in(target) as staging:
        built = staging / BUILT
        shutil.rmtree(built, ignore_errors=True)
        build_part(source, built, part, keep.asked, progress)
        manifest = manifests.load(built)
        _check(built, manifest, source)
        keep.begin(staging, manifests.dump(manifest))
        for name in manifest.files:
            path = inside(target, name)
            path.parent.mkdir(exist_ok=True)
            inside(built, name).replace(path)
        keep.finish(staging, manifest)
    return source.fetched
