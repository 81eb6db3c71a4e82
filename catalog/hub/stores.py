"""Hubs in a folder, or at a URL that fsspec knows: packs published once, never overwritten; the layout is in format.md.

Blobs, a snapshot that names them, then the tag, which is put if absent: what has no tag is invisible, so each step is
harmless if it is the last one made.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from catalog.fs import CARD, MANIFEST, check_relative
from catalog.hub.cards import front_matter
from catalog.hub.contract import Draft, FormerDamagedError, Hub, PackSummary, Progress, Snapshot, check_unpublished
from catalog.hub.names import Version, is_name
from catalog.local_store import LocalStore, checked_name
from catalog.manifest import FileEntry
from catalog.store import Store, UrlStore, open_store
from catalog.transaction import Lock
from pipeline.errors import CatalogError, NotFoundError

REVISION_DIGITS = 40
_REVISION = re.compile(r"[0-9a-f]{40}")
_CARD_BYTES = 2**20  # of a card that a search reads
_LEFTOVERS = re.compile(r"\.(staging-.*|draft-.*|[0-9a-f]{16}\.tmp)")  # of publications that died


def revision_of(manifest: bytes) -> str:
    """The revision of a pack in a hub of this kind."""
    return hashlib.sha256(manifest).hexdigest()[:REVISION_DIGITS]


class StoreSnapshot(Snapshot):
    """A version in a store. In a folder its files are there by name, elsewhere among the blobs; both are looked at."""

    def __init__(self, store: Store, repository: str, revision: str) -> None:
        self.revision, self._store = revision, store
        self._root = f"datasets/{repository}"
        self.place = f"{store.place}/{self._root}/snapshots/{revision}"

    def manifest(self, anew: bool = False) -> bytes:
        data = self._store.read(f"{self._root}/snapshots/{self.revision}/{MANIFEST}")
        if revision_of(data) != self.revision:
            found = "other bytes than were published"
            raise CatalogError(f"{self.place}/{MANIFEST}", found, f"revision {self.revision}", "Have it published anew")
        return data

    def fetch(self, name: str, entry: FileEntry, target: Path, anew: bool = False) -> None:
        self._store.fetch(self._named(name, entry), target)

    def read(self, name: str, entry: FileEntry, start: int, size: int) -> bytes:
        return self._store.read_range(self._named(name, entry), start, size)

    def _named(self, name: str, entry: FileEntry) -> str:
        """Where in the store a file is, by one request more than none where it is in the first place looked at."""
        own = f"{self._root}/snapshots/{self.revision}/{check_relative(name)}"
        blob = f"{self._root}/blobs/{entry.sha256}"
        places = [own, blob] if isinstance(self._store, LocalStore) else [blob, own]
        for place in places:
            if self._store.exists(place):
                return place
        raise NotFoundError(f"{self.place}/{name}", "missing from the pack", "the published file")


class StoreHub(Hub):
    """A folder or a URL."""

    def __init__(self, place: str | Path) -> None:
        self._store = open_store(place)
        self.place = self._store.place

    def versions(self, repository: str) -> dict[Version, str]:
        tags = f"{_root(repository)}/refs/tags"
        names = [name.rsplit("/", 1)[-1] for name in self._store.list(tags)]
        known = {name: version for name in names if (version := Version.of_tag(name)) is not None}
        return {
            version: self._store.read(f"{tags}/{name}")[:100].decode(errors="replace").strip()
            for name, version in known.items()
        }

    def snapshot(self, repository: str, version: Version, revision: str) -> Snapshot:
        if not _REVISION.fullmatch(revision):
            place = f"{self.place}/{_root(repository)}/refs/tags/{version.tag}"
            raise CatalogError(place, repr(revision)[:60], "the name of a snapshot of the repository")
        return StoreSnapshot(self._store, repository, revision)

    def publish(self, draft: Draft, progress: Progress) -> str:
        """See the contract. Cost: reads all blobs of the pack in a folder, elsewhere asks for their sizes."""
        check_unpublished(draft, self.versions(draft.repository))
        if isinstance(self._store, UrlStore):
            self._store.check_creates()
        with self._alone(draft.repository):
            check_unpublished(draft, self.versions(draft.repository))
            revision = revision_of(draft.manifest)
            self._gather(draft, progress)
            self._name(draft, revision)
            tag = f"{_root(draft.repository)}/refs/tags/{draft.version.tag}"
            if not self._store.put_if_absent(tag, revision.encode()):
                check_unpublished(draft, {**self.versions(draft.repository), draft.version: ""})
        return revision

    @contextmanager
    def _alone(self, repository: str) -> Iterator[None]:
        """In a folder, keep others out, and remove what they left; elsewhere publications do not disturb each other."""
        if not isinstance(self._store, LocalStore):
            yield
            return
        with self._store.clear_errors(repository):
            folder = self._store.path(_root(repository))
            folder.mkdir(parents=True, exist_ok=True)
            lock = Lock(folder)
        try:
            with self._store.clear_errors(repository):
                _sweep(folder)
            yield
        finally:
            lock.free()

    def _gather(self, draft: Draft, progress: Progress) -> None:
        """Have a blob of every file."""
        done, total = 0, draft.new_bytes
        blobs = {name: f"{_root(draft.repository)}/blobs/{entry.sha256}" for name, entry in draft.files.items()}
        sizes = self._store.sizes(blobs.values())
        for name, entry in draft.files.items():
            blob = blobs[name]
            if sizes[blob] == entry.bytes and self._undamaged(blob, entry):
                continue
            place = draft.places.get(name)
            if place is not None and not place.is_file():
                raise CatalogError(str(place), "missing", "the file to be published", "Publish again")
            progress(f"publishing {name}", done, total)
            self._store.keep(blob, place or self._formerly(draft, name, entry), entry.sha256)
            done += entry.bytes
        progress(f"publishing {MANIFEST}", total - len(draft.manifest), total)

    def _undamaged(self, blob: str, entry: FileEntry) -> bool:
        """Whether a blob is what its name says, in a folder, where reading costs little; elsewhere True."""
        return not isinstance(self._store, LocalStore) or self._store.sha256(blob) == entry.sha256

    def _formerly(self, draft: Draft, name: str, entry: FileEntry) -> bytes:
        """A file of the former version that is not among the blobs, or is damaged there."""
        place = f"{_root(draft.repository)}/snapshots/{draft.former}/{check_relative(name)}"
        if draft.former is None or self._store.size(place) != entry.bytes:
            raise _lost(f"{self.place}/{place}")
        data = self._store.read(place)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise _lost(f"{self.place}/{place}")
        return data

    def _name(self, draft: Draft, revision: str) -> None:
        """Make the snapshot; one that a publication has left there is completed."""
        root = _root(draft.repository)
        snapshot = f"{root}/snapshots/{revision}"
        local = isinstance(self._store, LocalStore)
        named = [name for name in draft.files if local or name == CARD]
        pairs = [(f"{root}/blobs/{draft.files[name].sha256}", f"{snapshot}/{check_relative(name)}") for name in named]
        self._store.link(pairs)
        digest = hashlib.sha256(draft.manifest).hexdigest()
        self._store.keep(f"{snapshot}/{MANIFEST}", draft.manifest, digest)

    def find(self, words: Sequence[str]) -> Iterator[PackSummary]:
        """See the contract. Cost: a card for each repository."""
        for organisation in filter(is_name, self._store.folders("datasets")):
            for name in filter(is_name, self._store.folders(f"datasets/{organisation}")):
                with suppress(CatalogError, NotFoundError):  # one that is broken must not hide the others
                    found = self._summary(f"{organisation}/{name}")
                    if found is not None and found.has(words):
                        yield found

    def _summary(self, repository: str) -> PackSummary | None:
        versions = self.versions(repository)
        if not versions:
            return None
        revision = versions[max(versions)]
        card = f"{_root(repository)}/snapshots/{revision}/{CARD}"
        size = self._store.size(card) if _REVISION.fullmatch(revision) else None
        page = self._store.read_range(card, 0, min(size, _CARD_BYTES)) if size else b""
        title, tags = front_matter(page)
        return PackSummary(repository, tuple(sorted(versions)), title, tags)


def _root(repository: str) -> str:
    return checked_name(f"datasets/{repository}")


def _lost(place: str) -> FormerDamagedError:
    expected = "the file of the former version, which the new one shares"
    return FormerDamagedError(place, "missing or damaged", expected, "Publish under another name")


def _sweep(folder: Path) -> None:
    """Remove what publications that died have left under hidden names."""
    for path in [*folder.glob(".*"), *folder.glob("[!.]*/**/.*")]:
        if _LEFTOVERS.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
