"""Where pulled packs are kept, so that each is fetched once: below $RHUMB_CACHE, or ~/.cache/rhumb."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from catalog import fs
from catalog import manifest as manifests
from catalog.fs import MANIFEST
from catalog.hub.cache import writable_cache
from catalog.hub.contract import Hub
from catalog.hub.names import BUILTIN, PackName, Version, chosen_version
from catalog.hub.parts import Part
from catalog.manifest import FileEntry
from catalog.records import content_id
from catalog.store import StoreError, as_url
from pipeline.errors import CatalogError, InputError, NotFoundError, RhumbError

_PULLED = "pulled"
_YES = frozenset({"1", "ON", "YES", "TRUE"})  # as the Hub's client reads its variables


def cache_folder() -> Path:
    """Where packs are kept."""
    return fs.cache_folder() / _PULLED


@dataclass(frozen=True)
class CachedPack:
    """A version of a published pack, or a part of it, in a folder of the cache."""

    name: PackName
    version: Version
    part: Part
    folder: Path

    def mend(self) -> None:
        """Compare all files with their checksums, and where one is damaged have it fetched anew.

        Raises CatalogError, which names the folder, where that cannot be done.
        """
        from catalog.hub.opening import open_hub

        try:
            if not _is_sound(self.folder):
                _pull(self, open_hub(self.name), _is_sound)
        except (RhumbError, OSError) as error:
            raise CatalogError(
                str(self.folder), f"a damaged copy of {self.name} {self.version}", "the files as they were published",
                f"They could not be fetched again: {error}",
            ) from error  # fmt: skip


def cached_pack(name: PackName, part: Part) -> CachedPack:
    """A published pack, or a part of it, pulled first where it is not in the cache.

    A version that is named exactly, of a hub that is elsewhere, is taken from the cache unasked: it never changes.
    Otherwise the hub says which is the newest that is meant; or the cache does, where the client is offline or the hub
    cannot be reached, with a warning where it is lost while that version is pulled. What a cache lacks that can only be
    read is kept for as long as this process lives.

    Raises:
        NotFoundError: no such version.
        StoreError: the hub cannot be reached, and nothing that is meant is in the cache.
    """
    kept = content_id("part", sorted(part.filters.items()))[:16]
    found = {version: CachedPack(name, version, part, folder) for version, folder in _known(name, kept).items()}
    exact, best = Version.of_tag("v" + name.wanted.removeprefix("v")), _newest(found, name)
    if best is not None and ((exact and _is_elsewhere(name)) or (name.hub is None and _is_offline())):
        return best
    hub, there = _asked(name, bool(found))
    if best is not None and (hub is None or hub.away):
        return best
    version = chosen_version(there or found, name.wanted, str(name))
    if hub is None or version not in there:
        return found[version]
    places = [home / f"{version}-{there[version][:40]}" / kept for home in _homes(name)]
    here = CachedPack(name, version, part, next(filter(_is_whole, places), places[-1]))
    try:
        _pull(here, hub, _is_whole)
    except StoreError as error:
        if best is None:
            raise
        warnings.warn(f"{name}: {version} could not be pulled, so {best.version} is used ({error})", stacklevel=3)
        return best
    return here


def _newest(found: Mapping[Version, CachedPack], name: PackName) -> CachedPack | None:
    """The newest that is meant of what was found."""
    try:
        return found[chosen_version(found, name.wanted, str(name))]
    except NotFoundError:
        return None


def _asked(name: PackName, kept: bool) -> tuple[Hub | None, dict[Version, str]]:
    """The hub and the revisions of its versions; neither where it cannot be reached and something is `kept`."""
    from catalog.hub.opening import open_hub  # what a hub needs is not needed for what is in the cache

    try:
        hub = open_hub(name)
        return hub, hub.versions(name.repository)
    except (StoreError, NotFoundError):
        if not kept:
            raise
        return None, {}


def _is_offline() -> bool:
    """Whether the Hub's client is told not to ask anybody."""
    told = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return told.upper() in _YES


def _is_elsewhere(name: PackName) -> bool:
    """Whether its hub is on another machine: one here may be asked at no cost."""
    return name.hub is None or as_url(name.hub) is not None


def _homes(name: PackName) -> list[Path]:
    """The folders of all versions of a pack; in the last of them more may be put. Packs of two hubs never share one."""
    if name.hub is None:
        place = os.environ.get("HF_ENDPOINT") or "the Hugging Face Hub"
    else:
        place = name.hub if name.hub == BUILTIN or _is_elsewhere(name) else str(Path(name.hub).expanduser().resolve())
    own = Path(_PULLED, hashlib.sha256(place.encode()).hexdigest()[:16], name.organisation, name.name)
    return [root / own for root in dict.fromkeys((fs.cache_folder(), writable_cache()))]


def _known(name: PackName, kept: str) -> dict[Version, Path]:
    """The versions of which a part is in the cache, whole."""
    found: dict[Version, Path] = {}
    folders = [folder for home in _homes(name) for folder in home.glob(f"*/{kept}")]
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime):
        version = Version.of_tag("v" + folder.parent.name.rpartition("-")[0])
        if version is not None and _is_whole(folder):
            found[version] = folder
    return found


def _is_whole(folder: Path) -> bool:
    """Whether a pull was finished and every file is as long as it was; what is in them is checked when it is read."""
    return _agrees(folder, lambda path, entry: path.stat().st_size == entry.bytes)


def _is_sound(folder: Path) -> bool:
    """Whether a pull was finished and every file holds what it did. Cost: reads all of them."""
    return _agrees(folder, lambda path, entry: fs.sha256_of(path) == entry.sha256)


def _agrees(folder: Path, right: Callable[[Path, FileEntry], bool]) -> bool:
    try:
        return all(right(folder / name, entry) for name, entry in manifests.load(folder).files.items())
    except (OSError, NotFoundError, CatalogError):
        return False


def _pull(pack: CachedPack, hub: Hub, right: Callable[[Path], bool]) -> None:
    """Pull a pack into its folder unless that is `right`; who comes second waits, and finds it there."""
    from catalog.hub.pulling import pull

    name, folder = replace(pack.name, wanted=str(pack.version)), pack.folder
    if right(folder):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"{folder.parent}, which cannot be made ({error.strerror})"
        raise InputError("RHUMB_CACHE", found, "a folder that may be written to") from error
    with _alone(folder.with_name(f"{folder.name}.lock")):
        if not right(folder):
            if (folder / MANIFEST).exists():  # damaged since, and only a copy
                shutil.rmtree(folder)
            pull(name, folder, pack.part if pack.part.filters else None, hub)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # the lock goes with it
