"""Pulling: a published version, or a part of one, as a catalog in a folder, with every checksum and row verified.

The manifest is put last: what was cut off is no catalog, and another call goes on with what has come so far.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from catalog import manifest as manifests
from catalog.fs import CARD, LOCK, MANIFEST, PULLED, STAGING, disk_error, flush_folder, inside, sha256_of, write_flushed
from catalog.hub.card_safety import check_card
from catalog.hub.contract import Hub, Progress
from catalog.hub.names import BUILTIN, PackName
from catalog.hub.opening import open_hub
from catalog.hub.part_building import build_part
from catalog.hub.parts import Part
from catalog.hub.pieces import ANEW, patiently
from catalog.hub.snapshots import SnapshotCatalog, open_pack
from catalog.manifest import Digest, Manifest, PackPart
from catalog.store import as_url
from catalog.transaction import Lock
from catalog.verify import check_content
from pipeline.errors import BusyError, CatalogError, ConflictError, NotFoundError

_ABREAST = 4  # files at once
_DRAFT = "pull.tmp"
_BUILT = "part"  # a part while it is being made
_LARGEST_RECORD = 2**24


class PulledFrom(PackPart):
    """What a folder was pulled from, as `.pulled.json` says: `hub` as in a `PackName`, `place` as people call it.

    `manifest`: sha256 of the manifest that is put there last.
    """

    hub: str | None
    place: str
    manifest: Digest

    def is_of(self, asked: PackPart) -> bool:
        """Whether it is of this version and part."""
        return all(getattr(self, name) == getattr(asked, name) for name in PackPart.model_fields)


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
    that shares rows with it, nothing comes twice. A pull that was cut off continues, a finished one changes nothing.
    Cost: reads every row twice, as `verify` does. Memory: one shard, and what `verify` takes.

    Raises ConflictError (`out` has other content), NotFoundError (no such version, or nothing in it is asked for),
    CatalogError (the pack is damaged or hostile, or the disk is full: no catalog is left in `out`), InputError,
    StoreError (the hub cannot be reached: run it again).
    """
    target, part = Path(out), part if part is not None and part.filters else None
    done = _finished_before(name, target, part)
    if done is not None:
        return done
    hub = hub if hub is not None else open_hub(name)
    with open_pack(name, hub) as source:
        wanted = _asked(source, part)
        _refuse_other_content(target, wanted, source.manifest)
        with _disk_errors(target), _made(target):
            lock = Lock(target)
            try:
                _refuse_other_content(target, wanted, source.manifest)
                if _is_whole(target, wanted):
                    shutil.rmtree(target / STAGING, ignore_errors=True)
                    return _pulled(target, wanted, 0)
                keep = _Keeper(target, wanted, _where(name), hub.place)
                if part is None:
                    new = _pull_whole(source, target, keep, progress)
                else:
                    new = _pull_part(source, target, keep, part, progress)
                return _pulled(target, wanted, new)
            finally:
                lock.free()


def pulled_from(folder: str | Path) -> PulledFrom | None:
    """What a catalog was pulled from; None for one that was not, or where nothing readable says it."""
    path = Path(folder) / PULLED
    try:
        if path.is_symlink() or path.stat().st_size > _LARGEST_RECORD:
            return None
        return PulledFrom.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


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


def _without_retired(manifest: Manifest) -> Manifest:
    """What is worth fetching: not the files that only a former format needed."""
    files = {name: entry for name, entry in manifest.files.items() if name not in manifest.retired}
    return manifest.model_copy(update={"files": files, "retired": ()})


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
    if not _is_whole(target, known):
        return None
    if (target / STAGING).exists():  # of a pull that was killed at its very end
        with suppress(BusyError):
            lock = Lock(target)
            shutil.rmtree(target / STAGING, ignore_errors=True)
            lock.free()
    return _pulled(target, known, 0)


def _is_whole(target: Path, wanted: PackPart) -> bool:
    """Whether `target` holds the finished pull that is wanted, every file of it as it should be."""
    known, path = pulled_from(target), target / MANIFEST
    if known is None or not known.is_of(wanted) or path.is_symlink() or not path.is_file():
        return False
    return sha256_of(path) == known.manifest and not _missing(target, manifests.load(target))


def _missing(target: Path, manifest: Manifest) -> list[str]:
    """Files of `manifest` that `target` does not hold as they should be."""
    return [
        name for name, entry in manifest.files.items()
        if not inside(target, name).is_file() or sha256_of(inside(target, name)) != entry.sha256
    ]  # fmt: skip


def _refuse_other_content(target: Path, wanted: PackPart, manifest: Manifest) -> None:
    """Raise ConflictError unless `target` is new or empty, or holds this very pull, finished or not."""
    if not target.exists():
        return
    if not target.is_dir():
        raise ConflictError(str(target), "a file", "a new or empty folder", "Choose another --out")
    known = pulled_from(target)
    if known is not None:
        path = target / MANIFEST
        same = known.is_of(wanted) and (not path.is_file() or sha256_of(path) == known.manifest)
    elif (target / MANIFEST).is_file():
        same = not wanted.filters and manifests.load(target) == _without_retired(manifest)
    else:
        left = [entry.name for entry in target.iterdir() if entry.name != LOCK]
        same = not left or (left == [STAGING] and {p.name for p in (target / STAGING).iterdir()} <= {_DRAFT, _BUILT})
    if not same:
        raise ConflictError(
            str(target), "a folder with other content", "a new or empty folder, or this very version and part",
            "Choose another --out; nothing was written",
        )  # fmt: skip


def _pulled(target: Path, record: PackPart, new_bytes: int) -> Pulled:
    manifest = manifests.load(target)
    size = sum(entry.bytes for entry in manifest.files.values()) + (target / MANIFEST).stat().st_size
    return Pulled(target, record.repository, record.version, record.revision, size, new_bytes)


@contextmanager
def _disk_errors(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        clear = disk_error(where, error)
        if clear is None:
            raise
        raise clear from error


@contextmanager
def _made(target: Path) -> Iterator[None]:
    """The folder, for as long as something is put there: one that was made for nothing goes again."""
    new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if new and all(entry.name == LOCK for entry in target.iterdir()):
            shutil.rmtree(target)


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder for what is not in place yet, gone afterwards."""
    folder = target / STAGING
    if folder.is_symlink():
        raise CatalogError(str(folder), "a symbolic link", "a plain folder")
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(staging: Path, path: Path, data: bytes) -> None:
    """Put a file in place, atomically."""
    write_flushed(staging / _DRAFT, data)
    (staging / _DRAFT).replace(path)
    flush_folder(path.parent)


@dataclass(frozen=True)
class _Keeper:
    """Keeps in `target` what it is being pulled from."""

    target: Path
    asked: PackPart
    hub: str | None
    place: str

    def put(self, staging: Path, manifest: bytes) -> None:
        """Say so, before any file is put there. `manifest`: the bytes of the one that is put there last."""
        digest = hashlib.sha256(manifest).hexdigest()
        record = PulledFrom(**self.asked.model_dump(), hub=self.hub, place=self.place, manifest=digest)
        _put(staging, self.target / PULLED, record.model_dump_json(indent=1).encode())


# -- a whole version ---------------------------------------------------------------------------------------------------


def _pull_whole(source: SnapshotCatalog, target: Path, keep: _Keeper, progress: Progress) -> int:
    """Fetch what is missing or changed, and verify all; bytes fetched."""
    wanted = _without_retired(source.manifest)
    total, new, data = sum(entry.bytes for entry in wanted.files.values()), 0, manifests.dump(wanted)
    with _staging(target) as staging:
        keep.put(staging, data)
        missing = _missing(target, wanted)
        done = total - sum(wanted.files[name].bytes for name in missing)
        for name, fetched in _fetched(source, missing, staging, target):
            new, done = new + fetched, done + wanted.files[name].bytes
            progress(f"pulling {name}", done, total)
        progress("verifying", total, total)
        _check(target, wanted, source)
        _flush(target, wanted)
        _put(staging, target / MANIFEST, data)
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


def _flush(target: Path, manifest: Manifest) -> None:
    for folder in {inside(target, name).parent for name in manifest.files}:
        flush_folder(folder)


# -- a part ------------------------------------------------------------------------------------------------------------


def _pull_part(source: SnapshotCatalog, target: Path, keep: _Keeper, part: Part, progress: Progress) -> int:
    """Make the part by the pieces that it takes, verify it, and put it in place; bytes fetched."""
    with _staging(target) as staging:
        built = staging / _BUILT
        shutil.rmtree(built, ignore_errors=True)
        build_part(source, built, part, keep.asked, progress)
        manifest = manifests.load(built)
        _check(built, manifest, source)
        keep.put(staging, manifests.dump(manifest))
        for name in manifest.files:
            path = inside(target, name)
            path.parent.mkdir(exist_ok=True)
            inside(built, name).replace(path)
        _flush(target, manifest)
        _put(staging, target / MANIFEST, manifests.dump(manifest))
    return source.fetched
