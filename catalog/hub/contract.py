"""What may be asked of a hub: repositories of packs, whose published versions never change.

One file per kind of hub behind it: folders and URLs (`stores.py`), the Hugging Face Hub (`hugging_face.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from catalog.hub.names import Version
from catalog.manifest import FileEntry
from pipeline.errors import CatalogError, ConflictError

_SHOWN = 5


class FormerDamagedError(CatalogError):
    """The version before, whose files the new one shares, lacks one of them or holds another."""


Progress = Callable[[str, int, int], None]
"""Called with what is done, bytes done so far and bytes in all."""


@dataclass(frozen=True)
class Draft:
    """A version to be published: its manifest, and where the files lie that the former version does not have.

    `files` are all files of the manifest, card included; `places` those of them that are new. `former` is the revision
    that has the others; None where all are new. `summary`: a line for the history of the repository.
    """

    repository: str
    version: Version
    manifest: bytes
    files: Mapping[str, FileEntry]
    places: Mapping[str, Path]
    former: str | None
    summary: str

    @property
    def new_bytes(self) -> int:
        """Bytes that have to be sent, the manifest included."""
        return len(self.manifest) + sum(self.files[name].bytes for name in self.places)


@dataclass(frozen=True)
class PackSummary:
    """A repository that a search has found."""

    repository: str
    versions: tuple[Version, ...]
    title: str
    tags: tuple[str, ...] = ()
    private: bool = False

    def has(self, words: Sequence[str]) -> bool:
        """Whether all of some words are in its name, title or tags."""
        text = " ".join([self.repository, self.title, *self.tags]).lower()
        return all(word.lower() in text for word in words)


class Snapshot(ABC):
    """One published version, read in place: nothing that it gives was compared with a checksum yet.

    Everything raises NotFoundError for a file that is not there, StoreError for what may pass by itself.
    """

    revision: str
    place: str
    """Where it is, for people; without credentials."""

    @abstractmethod
    def manifest(self, anew: bool = False) -> bytes:
        """The bytes of its manifest. `anew`: not from a cache, which held a damaged one."""

    @abstractmethod
    def fetch(self, name: str, entry: FileEntry, target: Path, anew: bool = False) -> None:
        """Copy a whole file to a local one that does not exist. `anew`: not from a cache, which held a damaged one."""

    @abstractmethod
    def read(self, name: str, entry: FileEntry, start: int, size: int) -> bytes:
        """A piece of a file; only that travels. Not cached."""


def check_unpublished(draft: Draft, versions: Mapping[Version, str]) -> None:
    """Raise ConflictError if `versions`, those there are, hold the draft's, or one it should have been made after."""
    name, there = f"{draft.repository} {draft.version}", ", ".join(map(str, sorted(versions)[-_SHOWN:])) or "none"
    if draft.version in versions:
        raise ConflictError(
            name, "a published version", "a version that does not exist yet",
            f"Published versions never change: choose a higher one; there are {there}",
        )  # fmt: skip
    if draft.former is None:
        return
    made_after = [version for version, revision in versions.items() if revision == draft.former]
    since = [version for version in versions if made_after and max(made_after) < version < draft.version]
    if since or not made_after:
        what = f"{max(since)}, which was published since" if since else "no longer the version it was made after"
        expected = f"the versions it was made after; there are {there}"
        raise ConflictError(name, what, expected, "Run the same command again")


class Hub(ABC):
    """Repositories by `org/name`. Raises StoreError for what may pass by itself, InputError for what may not."""

    place: str
    """Where it is, for people and for what is kept of a pull; without credentials."""
    away: bool = False
    """Whether the versions that it told last are those of a cache, since it could not be asked itself."""

    @abstractmethod
    def versions(self, repository: str) -> dict[Version, str]:
        """The revision of every published version; empty where there is no such repository.

        Raises InputError: one that may not be read with the credentials at hand.
        """

    @abstractmethod
    def snapshot(self, repository: str, version: Version, revision: str) -> Snapshot:
        """A published version, of which nothing is read yet."""

    @abstractmethod
    def publish(self, draft: Draft, progress: Progress) -> str:
        """Make a draft visible, whole or not at all, and return its revision.

        Cut off at any moment it leaves no version, and another call with the same draft goes on from there.

        Raises ConflictError: the version exists, or another was published since the draft was made.
        """

    def settle(self, repository: str) -> None:
        """Finish what a publication has left to do that was cut off after its version was there, where that may be."""
        return

    @abstractmethod
    def find(self, words: Sequence[str]) -> Iterator[PackSummary]:
        """Repositories that hold packs and have all of some words in their name, title or tags."""
