"""A version published to the Hugging Face Hub: a branch of its own, then its tag, which must not exist; main follows.

What is committed is the difference between the head of that branch and the draft, so a publication that was cut goes on
where it stopped: large files that are there are not sent again, and where nothing differs any more only the tag is
missing. Up to the tag nobody sees anything, whoever reads the main branch included; cut off after it, the version is
there, and only the main branch may be behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, HfApi
from huggingface_hub.hf_api import GitRefs, RepoFile

from catalog.fs import CARD, MANIFEST
from catalog.hub.contract import Draft, FormerDamagedError, Progress, check_unpublished
from catalog.hub.hugging_face_calls import StaleError, clear_error
from catalog.hub.hugging_face_repository import (
    DATASET,
    Operation,
    Repository,
    deletions,
    head_of,
    insistently,
    staging_branch,
    versions_of,
)
from catalog.hub.names import Version
from catalog.local_store import other_bytes
from catalog.manifest import FileEntry
from pipeline.errors import CatalogError, ConflictError, InputError, NotFoundError

FILES_PER_COMMIT = 1_000
BYTES_PER_COMMIT = 16 * 2**30
_BATCH_FILES, _BATCH_BYTES = 64, 2**26  # uploaded between two reports of progress


def publish(api: HfApi, draft: Draft, progress: Progress, private: bool | None) -> str:
    """Publish a draft and return its commit; see the contract of `Hub.publish`."""
    return _Publication(api, draft, progress).run(private)


class _Publication:
    def __init__(self, api: HfApi, draft: Draft, progress: Progress) -> None:
        self._repository = Repository(api, draft.repository)
        self._api, self._draft, self._progress = api, draft, progress
        self._name, self._sent = draft.repository, 0
        manifest = FileEntry(sha256=hashlib.sha256(draft.manifest).hexdigest(), bytes=len(draft.manifest))
        self._files: dict[str, FileEntry] = {**draft.files, MANIFEST: manifest}

    def run(self, private: bool | None) -> str:
        try:
            refs = self._opened(private)
            self._known = versions_of(refs)
            older = any(version > self._draft.version for version in self._known)
            start = self._draft.former if older else None
            commit = self._staged(start or head_of(refs))
            self._refuse_newer(versions_of(self._repository.refs()))
            self._tag(commit)
        except ConflictError:  # a version is there, whose publication may have been cut off
            self._repository.settle()
            raise
        self._repository.settle()
        return commit

    def _opened(self, private: bool | None) -> GitRefs:
        """The references of the repository, which is made where it is not there. Nothing is sent before all is well."""
        try:
            refs = self._repository.refs()
        except NotFoundError:
            check_unpublished(self._draft, {})
            self._repository.call(lambda: self._api.create_repo(
                self._name, repo_type=DATASET, private=private, exist_ok=True,
            ))  # fmt: skip
            refs = self._repository.refs()
        check_unpublished(self._draft, versions_of(refs))
        if private:
            told: Any = ["private"]
            info = self._repository.call(lambda: self._api.dataset_info(self._name, expand=told))
            if not info.private:
                raise InputError(
                    self._name, "a public repository", "a private one",
                    "Make it private on its page, or publish without asking for that; nothing was sent",
                )  # fmt: skip
        return refs

    # What has to be done.

    def _operations(self, head: str | None) -> list[Operation]:
        """What makes a head the draft; manifest and card last, lest a state between two commits pass for the draft."""
        tree = self._repository.tree(head)
        former = tree if self._draft.former in (None, head) else self._repository.tree(self._draft.former)
        found: list[Operation] = []
        for name in sorted(self._files, key=lambda name: (name in (CARD, MANIFEST), name)):
            origin = self._origin(name)
            if self._is_there(tree.get(name), name, origin, former.get(name)):
                continue
            if origin is not None:
                found.append(self._addition(name, origin))
            elif self._is_there(former.get(name), name, None, former.get(name)):
                found.append(CommitOperationCopy(name, name, src_revision=self._draft.former))
            else:
                raise FormerDamagedError(
                    f"{self._name}: {name}", "missing or damaged", "the file of the former version",
                    "Publish under another name",
                )  # fmt: skip
        return [*deletions(tree, self._files), *found]

    def _origin(self, name: str) -> bytes | Path | None:
        return self._draft.manifest if name == MANIFEST else self._draft.places.get(name)

    def _is_there(self, file: RepoFile | None, name: str, origin: bytes | Path | None, former: RepoFile | None) -> bool:
        """Whether a file of a tree is that of the draft: by sha256, or where git has it by git's own name."""
        entry = self._files[name]
        if file is None or file.size != entry.bytes:
            return False
        if file.lfs is not None:
            return bool(file.lfs.sha256 == entry.sha256)
        if origin is None:
            return former is not None and former.blob_id == file.blob_id
        data = origin if isinstance(origin, bytes) else origin.read_bytes()
        return bool(file.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())

    @staticmethod
    def _addition(name: str, origin: bytes | Path) -> CommitOperationAdd:
        try:
            return CommitOperationAdd(name, origin)
        except (ValueError, OSError):
            raise CatalogError(str(origin), "missing", "the file to be published", "Publish again") from None

    def _parts(self, operations: Iterable[Operation]) -> Iterator[list[Operation]]:
        """Operations in commits of which none is too large."""
        part: list[Operation] = []
        size = 0
        for operation in operations:
            more = operation.upload_info.size if isinstance(operation, CommitOperationAdd) else 0
            if part and (len(part) >= FILES_PER_COMMIT or size + more > BYTES_PER_COMMIT):
                yield part
                part, size = [], 0
            part.append(operation)
            size += more
        if part:
            yield part

    # Doing it.

    def _staged(self, start: str | None) -> str:
        """The last of the commits that make the branch of the version the draft; its head where nothing differs.

        Raises ConflictError: another version was published meanwhile, or somebody else is at this one.
        """
        branch = staging_branch(self._draft.version)

        def attempt() -> str:
            refs = self._repository.refs()
            self._refuse_newer(versions_of(refs))
            head = head_of(refs, branch)
            if head is None:
                self._repository.create_branch(branch, start)
            return self._commit_parts(branch, head or start)

        try:
            return insistently(attempt)
        except StaleError:
            self._refuse_newer(versions_of(self._repository.refs()))
            raise self._rival() from None

    def _refuse_newer(self, versions: Mapping[Version, str]) -> None:
        """Raise ConflictError if a version was published since this publication began."""
        check_unpublished(self._draft, versions)
        if since := set(versions) - set(self._known):
            raise ConflictError(
                f"{self._name} {self._draft.version}", f"{max(since)}, which was published meanwhile",
                "the versions it was made after", "Run the same command again",
            )  # fmt: skip

    def _rival(self) -> ConflictError:
        return ConflictError(
            f"{self._name} {self._draft.version}", "somebody else who commits to the repository",
            "one publication at a time", "Run the same command again later; what was sent is not lost",
        )  # fmt: skip

    def _commit_parts(self, branch: str, head: str | None) -> str:
        for part in self._parts(self._operations(head)):
            try:
                self._upload(branch, [one for one in part if isinstance(one, CommitOperationAdd)])
                head = self._repository.commit(branch, head, part, self._draft.summary)
            except NotFoundError:  # who published the version deletes its branch
                raise StaleError(self._name, f"no branch {branch} any more", "the branch", "Run it again") from None
        assert head is not None
        return head

    def _upload(self, branch: str, additions: list[CommitOperationAdd]) -> None:
        """Send large files, those that the Hub does not have yet. Raises CatalogError: one that is not as recorded."""
        batch: list[CommitOperationAdd] = []
        for number, addition in enumerate(additions):
            batch.append(addition)
            full = len(batch) >= _BATCH_FILES or sum(one.upload_info.size for one in batch) >= _BATCH_BYTES
            if not full and number < len(additions) - 1:
                continue
            try:
                self._api.preupload_lfs_files(self._name, batch, repo_type=DATASET, revision=branch)
            except Exception as error:
                raise clear_error(self._name, error) from None
            for one in batch:
                name = one.path_in_repo
                if one.upload_info.sha256.hex() != self._files[name].sha256:
                    raise other_bytes(self._draft.places.get(name, b""), name)
                self._sent += one.upload_info.size
            self._progress(f"sending {batch[-1].path_in_repo}", self._sent, max(self._sent, self._draft.new_bytes))
            batch = []

    def _tag(self, commit: str) -> None:
        """Make the draft's version visible. Raises ConflictError: another was quicker."""
        doubtful = False  # whether an attempt of this very call may have succeeded

        def attempt() -> None:
            nonlocal doubtful
            try:
                self._api.create_tag(
                    self._name, tag=self._draft.version.tag, revision=commit, repo_type=DATASET, exist_ok=False
                )
            except Exception as error:
                clear = clear_error(self._name, error)
                if not isinstance(clear, ConflictError):
                    doubtful = True
                    raise
                versions = versions_of(self._api.list_repo_refs(self._name, repo_type=DATASET))
                if not doubtful or versions.get(self._draft.version) != commit:
                    check_unpublished(self._draft, {**versions, self._draft.version: ""})

        self._repository.call(attempt)
