"""Where pulled packs are kept, so that each is fetched once: below $RHUMB_CACHE, or ~/.cache/rhumb."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from catalog import fs
from catalog import manifest as manifests
from catalog.fs import MANIFEST
from catalog.hub.contract import Hub
from catalog.hub.names import BUILTIN, PackName, Version, chosen_version
from catalog.hub.parts import Part
from catalog.records import content_id
from catalog.store import StoreError, as_url
from pipeline.errors import CatalogError, InputError, NotFoundError


def cache_folder() -> Path:
    """Where packs are kept."""
    return fs.cache_folder() / "pulled"


def cached_pack(name: PackName, part: Part) -> tuple[Path, Version]:
    """The folder of a published pack, or of a part of it, pulled first where it is not in the cache; and its version.

    A version that is named exactly, of a hub that is elsewhere, is taken from the cache unasked: it never changes.
    Otherwise the hub says which is the newest that is meant, or the cache where the hub cannot be reached.

    Raises:
        NotFoundError: no such version.
        StoreError: the hub cannot be reached, and nothing that is meant is in the cache.
    """
    home, kept = _home(name), content_id("part", sorted(part.filters.items()))[:16]
    known, exact = _known(home, kept), Version.of_tag("v" + name.wanted.removeprefix("v"))
    if exact in known and _is_elsewhere(name):
        return known[exact], exact
    hub, there = _asked(name, bool(known))
    version = chosen_version(there or known, name.wanted, str(name))
    if hub is None or version not in there:
        return known[version], version
    folder = home / f"{version}-{there[version][:40]}" / kept
    if not _is_whole(folder):
        _pull(PackName(name.hub, name.organisation, name.name, str(version)), folder, part, hub)
    return folder, version


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


def _is_elsewhere(name: PackName) -> bool:
    """Whether its hub is on another machine: one here may be asked at no cost."""
    return name.hub is None or as_url(name.hub) is not None


def _home(name: PackName) -> Path:
    """The folder of all versions of a pack. Packs of two hubs never share one."""
    if name.hub is None:
        place = os.environ.get("HF_ENDPOINT") or "the Hugging Face Hub"
    else:
        place = name.hub if name.hub == BUILTIN or _is_elsewhere(name) else str(Path(name.hub).expanduser().resolve())
    return cache_folder() / hashlib.sha256(place.encode()).hexdigest()[:16] / name.organisation / name.name


def _known(home: Path, kept: str) -> dict[Version, Path]:
    """The versions of which a part is in the cache, whole."""
    found: dict[Version, Path] = {}
    for folder in sorted(home.glob(f"*/{kept}"), key=lambda path: path.stat().st_mtime):
        version = Version.of_tag("v" + folder.parent.name.rpartition("-")[0])
        if version is not None and _is_whole(folder):
            found[version] = folder
    return found


def _is_whole(folder: Path) -> bool:
    """Whether a pull was finished and every file is as long as it was; what is in them is checked when it is read."""
    try:
        files = manifests.load(folder).files
        return all((folder / name).stat().st_size == entry.bytes for name, entry in files.items())
    except (OSError, NotFoundError, CatalogError):
        return False


def _pull(name: PackName, folder: Path, part: Part, hub: Hub) -> None:
    """Pull into the cache; who comes second waits, and finds it there."""
    from catalog.hub.pulling import pull

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"{folder.parent}, which cannot be made ({error.strerror})"
        raise InputError("RHUMB_CACHE", found, "a folder that may be written to") from error
    with _alone(folder.with_name(f"{folder.name}.lock")):
        if not _is_whole(folder):
            if (folder / MANIFEST).exists():  # damaged since, and only a copy
                shutil.rmtree(folder)
            pull(name, folder, part if part.filters else None, hub)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # the lock goes with it
