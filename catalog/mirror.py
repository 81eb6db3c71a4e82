"""A catalog in a distant store, worked on through a local folder: its mirror.

The store is the truth. The mirror holds the manifest and those files that were asked for; it may be deleted at any
time. A commit goes to the store first, by the protocol "Distant stores" of format.md, then to the mirror.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from catalog import manifest as manifests
from catalog.fs import (
    CACHE,
    CARD,
    FOLDERS,
    MANIFEST,
    ORIGIN,
    PRIVATE,
    STAGING,
    UNWRITABLE,
    VERSIONS,
    cache_folder,
    check_relative,
    inside,
    sha256_of,
    write_flushed,
    writing_to,
)
from catalog.lease import StoreLock
from catalog.manifest import FileEntry, Manifest
from catalog.store import LocalStore, Store, StoreError, UrlStore, as_url, open_store
from catalog.transaction import KEPT, Lock, Transaction, manifest_sha256, overtaken, recover
from pipeline.errors import CatalogError, ConflictError, NotFoundError

_NUMBERED = ".json"
_LEFT = 3600.0  # seconds that nothing was written to a draft, so that its reader is dead
_MADE: set[Path] = set()
"""Mirrors that this process has asked for. A folder from elsewhere that says it mirrors a URL is not believed."""


def mirror_of(url: str) -> Path:
    """The mirror of the catalog at a URL, begun if there is none: below $RHUMB_CACHE, or ~/.cache/rhumb."""
    open_store(url)  # refuses a URL that must not be written down
    plain = as_url(url) or url
    folder = _place_of(plain)
    _MADE.add(folder)
    with writing_to(folder):
        if not (folder / ORIGIN).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _put(folder / ORIGIN, plain.encode())
    return folder


def _place_of(url: str) -> Path:
    return cache_folder() / "stores" / hashlib.sha256(url.encode()).hexdigest()[:16]


def local_folder(place: str | Path) -> Path:
    """The folder to work in for a catalog at a local path or a URL; nothing is read of a store."""
    if as_url(place) is not None:
        return mirror_of(str(place))
    store = open_store(place)
    return store.folder if isinstance(store, LocalStore) else Path(place)


def refreshed(place: str | Path) -> Path:
    """`local_folder` with the manifest that stands in the store now, where there is one. Raises StoreError."""
    folder = local_folder(place)
    mirror = Mirror.at(folder)
    if mirror is not None:
        mirror.refresh()
    return folder


def opened(place: str | Path) -> Path:
    """`refreshed` for a catalog that must be there. Raises NotFoundError, which names the store."""
    folder = refreshed(place)
    mirror = Mirror.at(folder)
    if mirror is not None and not (folder / MANIFEST).is_file():
        raise NotFoundError("catalog", mirror.store.place, f"a place with {MANIFEST}", "Mine or pull one first")
    return folder


def store_of(folder: Path) -> Store:
    """Where the catalog in `folder` really lies: there, or the store that it mirrors."""
    mirror = Mirror.at(folder)
    return mirror.store if mirror is not None else LocalStore(folder)


def present(folder: Path, name: str, entry: FileEntry, anew: bool = False) -> Path:
    """A listed file of a catalog; a mirror fetches it first if it has none of that size, or in any case where `anew`.

    Raises CatalogError: a symbolic link, or other bytes in the store than were committed; StoreError.
    """
    path = inside(folder, name)
    if not anew and path.is_file() and path.stat().st_size == entry.bytes:
        return path
    mirror = Mirror.at(folder)
    if mirror is not None:
        mirror.fetch(name, entry, path)
    return path


def locked(folder: Path, patient: bool = False) -> Lock:
    """The right to write to the catalog in `folder`, or in the store that it mirrors; `patient` as in `lease.Lease`.

    Raises BusyError: another writer is at work; ConflictError: a store that holds something else.
    """
    mirror = Mirror.at(folder)
    if mirror is None:
        return Lock(folder)
    mirror.refuse_other_content()
    return StoreLock(folder, mirror.store, patient)


def start_transaction(folder: Path, standing: Manifest) -> Transaction:
    """A transaction on the catalog in `folder`, of which `standing` is the manifest; one of version 0 is none yet."""
    mirror = Mirror.at(folder)
    return Transaction(folder) if mirror is None else MirrorTransaction(mirror, standing)


def recovered(folder: Path) -> Manifest | None:
    """`transaction.recover`, or the same in the store of a mirror. For the holder of the lock."""
    mirror = Mirror.at(folder)
    return recover(folder) if mirror is None else mirror.recover()


@lru_cache(maxsize=16)
def _store_at(url: str, process: int) -> UrlStore:
    return UrlStore(url)


class Mirror:
    """A folder that mirrors the catalog in a distant store."""

    def __init__(self, folder: Path, store: UrlStore) -> None:
        self.folder, self.store = folder, store

    @classmethod
    def at(cls, folder: Path) -> Mirror | None:
        """The mirror in a folder; None for any other folder."""
        try:
            url = (folder / ORIGIN).read_text()
        except OSError as error:  # a folder that cannot be read holds none that could be used
            if error.errno not in UNWRITABLE:
                raise
            return None
        if folder.absolute() not in _MADE and folder.absolute() != _place_of(url):
            return None
        return cls(folder, _store_at(url, os.getpid()))  # what a parent has opened does not work in its fork

    def fetch(self, name: str, entry: FileEntry, path: Path) -> None:
        """Put a file of the store at `path`, whole. Raises CatalogError: missing there, or other bytes; StoreError."""
        draft = self.folder / CACHE / f"{secrets.token_hex(8)}.tmp"
        draft.parent.mkdir(exist_ok=True)
        try:
            self.store.fetch(name, draft)
            if draft.stat().st_size != entry.bytes or sha256_of(draft) != entry.sha256:
                raise CatalogError(f"{self.store.place}/{name}", "changed bytes", "the file as committed")
            path.parent.mkdir(exist_ok=True)
            draft.replace(path)
        except NotFoundError as error:
            raise CatalogError(
                f"{self.store.place}/{name}", "no such file", "a file that the manifest lists", "Open the catalog again"
            ) from error
        finally:
            draft.unlink(missing_ok=True)

    # -- what stands -----------------------------------------------------------------------------------------------

    def refresh(self) -> Manifest | None:
        """Bring in the manifest that stands; None where there is none."""
        data, manifest, _ = self._standing()
        self._bring_in(data)
        return manifest

    def _bring_in(self, data: bytes | None) -> None:
        path = self.folder / MANIFEST
        if data is None:
            path.unlink(missing_ok=True)
            self._prune(None)
        elif not path.is_file() or path.read_bytes() != data:
            _put(path, data)

    def _standing(self) -> tuple[bytes | None, Manifest | None, bool]:
        """The manifest that stands, its bytes, and whether a version follows the store's manifest.json.

        A version is committed once it is claimed. That its writer died before it replaced manifest.json, or that a
        slow one put its own over a later one, changes nothing.
        """
        data = self._read(MANIFEST)
        manifest = manifests.parse(data, f"{self.store.place}/{MANIFEST}") if data is not None else None
        follows = False
        while True:
            claim = self._read(_claim((manifest.version if manifest else 0) + 1))
            if claim is None:
                return data, manifest, follows
            try:
                claimed = manifests.parse(claim, f"{self.store.place}: claim")
            except CatalogError:
                return data, manifest, follows
            known = manifest.files if manifest is not None else {}
            new = [name for name, entry in claimed.files.items() if known.get(name) != entry]
            if claimed.previous != _sha256(data) or self.lacking({name: claimed.files[name] for name in new}):
                return data, manifest, follows
            data, manifest, follows = claim, claimed, True

    def _read(self, name: str) -> bytes | None:
        try:
            return self.store.read(name)
        except NotFoundError:
            return None

    def lacking(self, files: dict[str, FileEntry]) -> list[str]:
        """Those of some files that the store does not have in their size."""
        sizes = self.store.sizes(files)
        return [name for name, entry in files.items() if sizes[name] != entry.bytes]

    # -- for the holder of the lock ----------------------------------------------------------------------------------

    def recover(self) -> Manifest | None:
        """Finish or undo in the store what writers that died have begun, and return the manifest that stands.

        Raises ConflictError: the place holds something else; CatalogError: a store without conditional writes;
        InputError: one that cannot be written.
        """
        data, manifest, follows = self._standing()
        intents = self.store.list(STAGING)
        if manifest is None:
            self.refuse_other_content()
        self.store.check_creates()
        if data is not None and follows:
            self.store.replace(MANIFEST, data)
        if intents:
            if manifest is not None:
                data, manifest = self._fenced(manifest, data)
            self.undo(intents, manifest)
        now = manifest.version if manifest is not None else 0
        kept = {_claim(version) for version in range(now - KEPT + 1, now + 1)}
        self.store.delete(name for name in self.store.list(VERSIONS) if name not in kept)
        self._bring_in(data)
        self._prune(manifest)
        recover(self.folder)
        return manifest

    def refuse_other_content(self) -> None:
        """Raise ConflictError where the store holds no catalog, and what is not of an interrupted first commit."""
        if self.store.exists(MANIFEST):
            return
        names = [name for name in self.store.list() if name.split("/")[0] not in PRIVATE]
        own = self.pending()
        for name in names:
            if name not in own and not self.store.exists(MANIFEST):
                raise ConflictError(
                    self.store.place, f"other content ({name[:80]}) and no {MANIFEST}", "an empty place or a catalog",
                    "Choose another place; nothing was written",
                )  # fmt: skip

    def _fenced(self, manifest: Manifest, former: bytes | None) -> tuple[bytes, Manifest]:
        """Commit a version that changes nothing: whoever else has begun one from `manifest` can no longer commit it."""
        new = manifest.model_copy(update={"version": manifest.version + 1, "previous": _sha256(former)})
        data = manifests.dump(new)
        self.claim(new.version, data)
        return data, new

    def undo(self, intents: list[str], manifest: Manifest | None) -> None:
        """Delete what dead writers have put and the manifest does not list. Their intents go last."""
        listed = manifest.files if manifest is not None else {}
        self.store.delete({name for one in intents for name in self._intended(one) if name not in listed})
        self.store.delete(intents)

    def pending(self) -> set[str]:
        """Files that commits under way, or cut off, are about to create in the store or to delete there."""
        return {name for intent in self.store.list(STAGING) for name in self._intended(intent)}

    def _intended(self, intent: str) -> list[str]:
        try:
            return [check_relative(str(name)) for name in json.loads(self._read(intent) or b"[]")]
        except (ValueError, TypeError):
            return []

    def make_way(self, version: int) -> None:
        """Raise ConflictError where a version is committed; delete a claim of it that came to nothing."""
        if self.store.exists(_claim(version)):
            _, standing, _ = self._standing()
            if standing is not None and standing.version >= version:
                raise overtaken(self.store.place, version)
            self.store.delete([_claim(version)])

    def claim(self, version: int, data: bytes) -> None:
        """Commit: put a manifest under its version's name, if no other has it, and then in place of the former one.

        Raises ConflictError: another has it.
        """
        if not self.store.put_if_absent(_claim(version), data):
            raise overtaken(self.store.place, version)
        self.store.replace(MANIFEST, data)
        self.store.delete([_claim(version - KEPT)] if version > KEPT else [])

    def _prune(self, manifest: Manifest | None) -> None:
        """Delete local copies of what the catalog no longer lists, and what killed readers had begun to fetch."""
        listed = manifest.files if manifest is not None else {}
        for draft in (self.folder / CACHE).glob("*.tmp"):
            with suppress(FileNotFoundError):  # its reader has just put it in place
                if time.time() - draft.stat().st_mtime > _LEFT:
                    draft.unlink()
        for name in FOLDERS:
            folder = self.folder / name
            for path in folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ():
                if f"{name}/{path.name}" not in listed and not path.is_dir():
                    path.unlink()
            with suppress(OSError):  # not empty, or not there
                folder.rmdir()
        if not listed:
            (self.folder / CARD).unlink(missing_ok=True)


class MirrorTransaction(Transaction):
    """A commit to the store of a mirror, then to the mirror."""

    def __init__(self, mirror: Mirror, standing: Manifest) -> None:
        super().__init__(mirror.folder)
        self._mirror, self._store = mirror, mirror.store
        self.previous = _sha256(manifests.dump(standing)) if standing.version else None
        self._copies: dict[str, str] = {}
        self._intent: str | None = None

    def take(self, name: str, entry: FileEntry, store: Store, place: str) -> None:
        """Stage a file of a store: a copy within it at the commit, where it is the catalog's own."""
        if store.place != self._store.place:
            super().take(name, entry, store, place)
            return
        self._copies[check_relative(name)], self.entries[name] = place, entry

    def commit(self, new: Manifest, old: Manifest | None, obsolete: Iterable[str] = ()) -> None:
        """Put what is staged into the store, claim the version, replace its manifest, and do the same here.

        Raises ConflictError: another writer has committed since this transaction began; StoreError.
        """
        self._mirror.make_way(new.version)
        gone = sorted(set(obsolete) - set(new.files))
        files = self._new_files(old)
        if CARD in files and self._store.exists(CARD):
            raise ConflictError(f"{self._store.place}/{CARD}", "a file the catalog does not know", "no such file")
        self._intent = f"{STAGING}/{secrets.token_hex(8)}{_NUMBERED}"
        self._store.replace(self._intent, json.dumps([*files, *gone]).encode())
        for name in files:
            if name in self._staged:
                self._store.put(name, self._staged[name])
        self._store.copy((self._copies[name], name) for name in files if name in self._copies)
        if lacking := self._mirror.lacking(files):
            found = f"{len(lacking)} files that were not kept"
            raise StoreError("store", f"{self._store.place}: {found}", "all that were put", "Try again")
        data = manifests.dump(new)
        self._mirror.claim(new.version, data)
        self._store.delete(gone)
        self._store.delete([self._intent])
        self._keep(data, gone)
        self.close()

    def _new_files(self, old: Manifest | None) -> dict[str, FileEntry]:
        """What is staged and not in the store yet, or not as it was committed."""
        listed = old.files if old is not None else {}
        lacking = self._mirror.lacking({name: e for name, e in self.entries.items() if name in listed})
        return {name: entry for name, entry in self.entries.items() if name not in listed or name in lacking}

    def _keep(self, data: bytes, gone: list[str]) -> None:
        """Move what is staged into the mirror, which has the new manifest then."""
        for name, staged in self._staged.items():
            path = inside(self.root, name)
            path.parent.mkdir(exist_ok=True)
            staged.replace(path)
        _put(self.root / MANIFEST, data)
        for name in gone:
            inside(self.root, name).unlink(missing_ok=True)

    def abandon(self) -> Manifest | None:
        """Undo a commit that failed, unless it was made after all; the manifest that stands.

        Where another writer was quicker, what was put may be the other's too, and is left to the next one.
        """
        self.close()
        manifest = self._mirror.refresh()
        if self._intent is not None and self.previous == manifest_sha256(self.root):
            with suppress(StoreError):
                self._mirror.undo([self._intent], manifest)
        return manifest


def _claim(version: int) -> str:
    return f"{VERSIONS}/{version}{_NUMBERED}"


def _sha256(data: bytes | None) -> str | None:
    return hashlib.sha256(data).hexdigest() if data is not None else None


def _put(path: Path, data: bytes) -> None:
    """Put a file into a mirror's folder, atomically."""
    draft = path.parent / CACHE / f"{secrets.token_hex(8)}.tmp"
    draft.parent.mkdir(exist_ok=True)
    try:
        write_flushed(draft, data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
