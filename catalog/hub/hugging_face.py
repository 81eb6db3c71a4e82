"""Packs as dataset repositories of the Hugging Face Hub, or of whatever HF_ENDPOINT names, through its client.

Versions are tags vX.Y.Z, revisions commits. Credentials, cache, and whether to be offline are the client's own
settings. Files are cached by the client, pieces of files are not.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # named in its lazy list, which mypy does not see
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    http_stream_backoff,
)

from catalog.fs import MANIFEST, check_relative, disk_error
from catalog.hub.cards import plain_fields
from catalog.hub.contract import Draft, Hub, PackSummary, Progress, Snapshot
from catalog.hub.hugging_face_calls import UnreachableError, clear_error, endpoint, patiently
from catalog.hub.hugging_face_publishing import publish
from catalog.hub.hugging_face_repository import DATASET, Repository, versions_of
from catalog.hub.names import Version, is_name
from catalog.local_store import whole_piece
from catalog.manifest import FileEntry
from catalog.store_calls import StoreError
from pipeline.errors import CatalogError, InputError, NotFoundError

TAG = "rhumb"
"""By which packs are found."""
_MOST = 1000  # packs that a search looks at
_PATIENCE = 5.0  # seconds for which those who read try again
_WAITS = 2  # times that a reader waits as long as a busy server asks for
_REVISION = re.compile(r"[0-9a-f]{40}")


class HuggingFaceSnapshot(Snapshot):
    """A commit of a dataset repository, and the tag by which it is known.

    `away`: why the Hub cannot be reached, where that is known: then all is of the client's cache, nothing waited for.
    """

    def __init__(self, repository: str, version: Version, revision: str, away: UnreachableError | None = None) -> None:
        self.revision, self._repository, self._tag, self._away = revision, repository, version.tag, away
        self.place = f"{endpoint()}/datasets/{repository}/tree/{version.tag}"

    def manifest(self, anew: bool = False) -> bytes:
        """See the contract. By its tag, so that the client's cache knows the tag too when it is offline."""
        cached = try_to_load_from_cache(self._repository, MANIFEST, revision=self._tag, repo_type=DATASET)
        if not anew and isinstance(cached, str) and Path(cached).parent.name == self.revision:
            return Path(cached).read_bytes()
        path = self._cached(MANIFEST, self._tag, anew)
        if path.parent.name != self.revision:
            raise CatalogError(
                self.place, f"commit {path.parent.name}", f"{self.revision}, which the tag named before",
                "The repository was changed by hand: published versions must not move",
            )  # fmt: skip
        return path.read_bytes()

    def fetch(self, name: str, entry: FileEntry, target: Path, anew: bool = False) -> None:
        path = self._cached(check_relative(name), self.revision, anew)
        try:
            shutil.copyfile(path, target)
        except OSError as error:
            raise disk_error(target, error) or error from None

    def read(self, name: str, entry: FileEntry, start: int, size: int) -> bytes:
        url = hf_hub_url(self._repository, check_relative(name), repo_type=DATASET, revision=self.revision)
        if self._away is not None:
            raise self._away
        wanted = {"Range": f"bytes={start}-{start + size - 1}", "Accept-Encoding": "identity"}
        try:
            piece = _piece(url, {**build_hf_headers(), **wanted}, start, size, entry.bytes) if size else b""
        except Exception as error:
            raise clear_error(self._repository, error) from None
        return whole_piece(f"{self.place}/{name}", piece, start, size)

    def _cached(self, name: str, revision: str, anew: bool) -> Path:
        """Where the client's cache has a file; fetched where it has not."""
        if self._away is not None:
            cached = try_to_load_from_cache(self._repository, name, revision=revision, repo_type=DATASET)
            if anew or not isinstance(cached, str):
                raise self._away
            return Path(cached)
        try:
            path = hf_hub_download(self._repository, name, repo_type=DATASET, revision=revision, force_download=anew)
        except Exception as error:
            raise clear_error(self._repository, error) from None
        return Path(path)


def _piece(url: str, headers: dict[str, str], start: int, size: int, whole: int) -> bytes:
    """What a server answers to a request for a range; no more of it is read than was asked for."""
    with http_stream_backoff(
        "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        max_retries=_WAITS, retry_on_exceptions=(), retry_on_status_codes=429,
    ) as response:  # fmt: skip
        hf_raise_for_status(response)
        told = response.headers.get("Content-Range", "")
        ranged = response.status_code == 206 and told.startswith(f"bytes {start}-")
        if not ranged and (start, size) != (0, whole):
            found = f"HTTP {response.status_code} with other bytes than were asked for"
            raise CatalogError("the Hub", found, "HTTP 206 with a range", "It, or a proxy before it, ignores ranges")
        data = b""
        for block in response.iter_bytes():
            data += block
            if len(data) >= size:
                break
        return data[:size]


class HuggingFaceHub(Hub):
    """The Hub. `private`: what a repository is made as; None: what its organisation has for new ones."""

    def __init__(self, private: bool | None = None) -> None:
        self.place, self._private = endpoint(), private
        self._api = HfApi(library_name="rhumb")
        self._unreachable: UnreachableError | None = None

    def versions(self, repository: str) -> dict[Version, str]:
        """See the contract. Without a connection those whose manifest is in the client's cache."""
        cached = _cached_versions(repository)
        self.away = bool(cached) and constants.is_offline_mode()
        if self.away:
            return cached
        try:
            refs = patiently(
                repository, lambda: self._api.list_repo_refs(repository, repo_type=DATASET), 0 if cached else _PATIENCE
            )
        except NotFoundError:
            return {}
        except StoreError as error:
            if not cached:
                raise
            self.away, self._unreachable = True, error if isinstance(error, UnreachableError) else None
            return cached
        self._unreachable = None
        return versions_of(refs)

    def snapshot(self, repository: str, version: Version, revision: str) -> Snapshot:
        if not _REVISION.fullmatch(revision):
            raise CatalogError(f"{repository} {version}", repr(revision)[:60], "the name of a commit")
        return HuggingFaceSnapshot(repository, version, revision, self._unreachable)

    def publish(self, draft: Draft, progress: Progress) -> str:
        """See the contract."""
        return publish(self._api, draft, progress, self._private)

    def settle(self, repository: str) -> None:
        """See the contract: brings the main branch to the newest version, and deletes branches of published ones."""
        Repository(self._api, repository).settle()

    def find(self, words: Sequence[str]) -> Iterator[PackSummary]:
        """See the contract. Cost: two requests, and one for each repository that is found."""
        patiently("search", _reach, _PATIENCE)  # without a connection the listing would try again for half a minute
        told: list[Any] = ["tags", "cardData", "private"]
        listed = patiently(
            "search", lambda: list(self._api.list_datasets(filter=TAG, expand=told, limit=_MOST)), _PATIENCE
        )
        for info in listed:
            if not all(map(is_name, info.id.split("/"))) or info.id.count("/") != 1:
                continue
            title, tags = plain_fields(getattr(info.card_data, "pretty_name", None), info.tags)
            found = PackSummary(info.id, (), title, tags, bool(info.private))
            versions = self._seen_versions(info.id) if found.has(words) else {}
            if versions:
                yield PackSummary(info.id, tuple(sorted(versions)), title, tags, bool(info.private))

    def _seen_versions(self, repository: str) -> dict[Version, str]:
        """`versions`, none of a repository that may not be looked at."""
        try:
            return self.versions(repository)
        except InputError:
            return {}


def _reach() -> None:
    """Have any answer of the Hub. Raises what the client does where there is no connection."""
    get_session().head(constants.ENDPOINT, timeout=constants.DEFAULT_REQUEST_TIMEOUT)


def _cached_versions(repository: str) -> dict[Version, str]:
    """Versions of which the client's cache has the manifest."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type=DATASET)
    found: dict[Version, str] = {}
    for path in sorted((folder / "refs").glob("v*")):
        version, revision = Version.of_tag(path.name), path.read_text()[:100].strip()
        if version and _REVISION.fullmatch(revision) and (folder / "snapshots" / revision / MANIFEST).is_file():
            found[version] = revision
    return found
