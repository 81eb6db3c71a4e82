"""A version published to the Hugging Face Hub: one commit, then its tag, which must not exist.

What is committed is the difference between the head and the draft, so a publication that was cut goes on where it
stopped: large files that are there are not sent again, and where nothing differs any more only the tag is missing.
Drafts that are too large for one commit, and those that are older than the newest version, go through a branch of their
own, and the tag through its last commit; the main branch follows once the tag stands.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import GitRefs, RepoFile

from catalog.fs import CARD, FOLDERS, MANIFEST
from catalog.hub import hugging_face_calls as calls
from catalog.hub.contract import Draft, FormerDamagedError, Progress, check_unpublished
from catalog.hub.hugging_face_calls import Result, StaleError, asked_pause, clear_error, patiently
from catalog.hub.names import Version
from catalog.local_store import other_bytes
from catalog.manifest import FileEntry
from catalog.store_calls import StoreError, bounded
from pipeline.errors import CatalogError, ConflictError, InputError, NotFoundError, RhumbError

DATASET = "dataset"
MAIN = "main"
FILES_PER_COMMIT = 1_000
BYTES_PER_COMMIT = 16 * 2**30
_BATCH_FILES, _BATCH_BYTES = 64, 2**26  # uploaded between two reports of progress
_LONGEST = 900.0  # seconds after which a commit counts as lost; its files were sent before
_ATTEMPTS = 5  # times that a head may move under a commit
_PAUSE = 1.0
Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete
Tree = Mapping[str, RepoFile]


def versions_of(refs: GitRefs) -> dict[Version, str]:
    """The versions among the tags of a repository."""
    named = ((Version.of_tag(tag.name), tag.target_commit) for tag in refs.tags)
    return {version: commit for version, commit in named if version is not None}


def publish(api: HfApi, draft: Draft, progress: Progress, private: bool | None) -> str:
    """Publish a draft and return its commit; see the contract of `Hub.publish`."""
    return _Publication(api, draft, progress).run(private)


class _Publication:
    def __init__(self, api: HfApi, draft: Draft, progress: Progress) -> None:
        self._api, self._draft, self._progress = api, draft, progress
        self._repository, self._sent = draft.repository, 0
        manifest = FileEntry(sha256=hashlib.sha256(draft.manifest).hexdigest(), bytes=len(draft.manifest))
        self._files: dict[str, FileEntry] = {**draft.files, MANIFEST: manifest}

    def run(self, private: bool | None) -> str:
        refs = self._opened(private)
        self._known = versions_of(refs)
        self._clear_away(refs)
        head = self._head(refs)
        older = any(version > self._draft.version for version in self._known)
        operations = self._operations(head)
        if older or len(list(self._parts(operations))) > 1:
            return self._through_branch(head, follow=not older)
        commit = self._committed(MAIN, head, operations)
        try:
            self._tag(commit)
        except ConflictError:
            self._follow(commit, self._draft.version.tag)
            raise
        return commit

    def _opened(self, private: bool | None) -> GitRefs:
        """The references of the repository, which is made where it is not there. Nothing is sent before all is well."""
        try:
            refs = self._refs()
            check_unpublished(self._draft, versions_of(refs))
        except NotFoundError:
            check_unpublished(self._draft, {})
            self._call(lambda: self._api.create_repo(
                self._repository, repo_type=DATASET, private=private, exist_ok=True,
            ))  # fmt: skip
            refs = self._refs()
        if private:
            told: Any = ["private"]
            info = self._call(lambda: self._api.dataset_info(self._repository, expand=told))
            if not info.private:
                raise InputError(
                    self._repository, "a public repository", "a private one",
                    "Make it private on its page, or publish without asking for that; nothing was sent",
                )  # fmt: skip
        return refs

    def _clear_away(self, refs: GitRefs) -> None:
        """Delete branches of versions that were published since: whoever made them was cut off after the tag."""
        for branch in refs.branches:
            version = Version.of_tag(branch.name.removeprefix("staging-"))
            if branch.name.startswith("staging-") and version in self._known:
                self._delete_branch(branch.name)

    def _refs(self) -> GitRefs:
        return self._call(lambda: self._api.list_repo_refs(self._repository, repo_type=DATASET))

    def _call(self, call: Callable[[], Result]) -> Result:
        return patiently(self._repository, call)

    @staticmethod
    def _head(refs: GitRefs, name: str = MAIN) -> str | None:
        """The last commit of a branch; None where there is none yet."""
        return next((branch.target_commit for branch in refs.branches if branch.name == name), None)

    def _tree(self, revision: str | None) -> Tree:
        if revision is None:
            return {}
        listed = self._call(lambda: list(self._api.list_repo_tree(
            self._repository, recursive=True, revision=revision, repo_type=DATASET,
        )))  # fmt: skip
        return {file.path: file for file in listed if isinstance(file, RepoFile)}

    # What has to be done.

    def _operations(self, head: str | None) -> list[Operation]:
        """What makes a head the draft; manifest and card last, lest a state between two commits pass for the draft."""
        tree = self._tree(head)
        former = tree if self._draft.former in (None, head) else self._tree(self._draft.former)
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
                    f"{self._repository}: {name}", "missing or damaged", "the file of the former version",
                    "Publish under another name",
                )  # fmt: skip
        return [*_deletions(tree, self._files), *found]

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

    def _committed(self, branch: str, head: str | None, operations: list[Operation] | None = None) -> str:
        """The last of the commits that make a branch the draft; its head where nothing differs.

        `operations`: the difference, where it is known. Where somebody commits meanwhile, that to the new head is made.
        Raises ConflictError: that was a version, or there is no end of it.
        """
        until, pause, stale = time.monotonic() + calls.PATIENCE, _PAUSE, 0
        while True:
            try:
                return self._commit_parts(branch, head, operations or self._operations(head))
            except StaleError:
                stale += 1
                if branch != MAIN or stale == _ATTEMPTS:
                    raise self._rival() from None
            except StoreError as error:  # perhaps of a commit that was made, whose answer was lost
                wait = asked_pause(error) or pause
                if time.monotonic() + wait > until:
                    raise
                time.sleep(wait)
                pause *= 2
            refs = self._refs()
            self._refuse_newer(versions_of(refs))
            head, operations = self._head(refs, branch), None

    def _refuse_newer(self, versions: Mapping[Version, str]) -> None:
        """Raise ConflictError if a version was published since this publication began."""
        check_unpublished(self._draft, versions)
        if since := set(versions) - set(self._known):
            raise ConflictError(
                f"{self._repository} {self._draft.version}", f"{max(since)}, which was published meanwhile",
                "the versions it was made after", "Run the same command again",
            )  # fmt: skip

    def _rival(self) -> ConflictError:
        return ConflictError(
            f"{self._repository} {self._draft.version}", "somebody else who commits to the repository",
            "one publication at a time", "Run the same command again later; what was sent is not lost",
        )  # fmt: skip

    def _commit_parts(self, branch: str, head: str | None, operations: list[Operation]) -> str:
        for part in self._parts(operations):
            self._upload(branch, [one for one in part if isinstance(one, CommitOperationAdd)])
            head = self._commit(branch, head, part)
        assert head is not None
        return head

    def _commit(self, branch: str, parent: str | None, operations: list[Operation]) -> str:
        try:
            made = bounded(lambda: self._api.create_commit(
                self._repository, operations, commit_message=self._draft.summary, repo_type=DATASET,
                revision=branch, parent_commit=parent,
            ), _LONGEST)  # fmt: skip
        except Exception as error:
            raise clear_error(self._repository, error) from None
        return str(made.oid)

    def _upload(self, branch: str, additions: list[CommitOperationAdd]) -> None:
        """Send large files, those that the Hub does not have yet. Raises CatalogError: one that is not as recorded."""
        batch: list[CommitOperationAdd] = []
        for number, addition in enumerate(additions):
            batch.append(addition)
            full = len(batch) >= _BATCH_FILES or sum(one.upload_info.size for one in batch) >= _BATCH_BYTES
            if not full and number < len(additions) - 1:
                continue
            try:
                self._api.preupload_lfs_files(self._repository, batch, repo_type=DATASET, revision=branch)
            except Exception as error:
                raise clear_error(self._repository, error) from None
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
                    self._repository, tag=self._draft.version.tag, revision=commit, repo_type=DATASET, exist_ok=False
                )
            except Exception as error:
                clear = clear_error(self._repository, error)
                if not isinstance(clear, ConflictError):
                    doubtful = True
                    raise
                versions = versions_of(self._api.list_repo_refs(self._repository, repo_type=DATASET))
                if not doubtful or versions.get(self._draft.version) != commit:
                    check_unpublished(self._draft, {**versions, self._draft.version: ""})

        self._call(attempt)

    # By a branch.

    def _through_branch(self, head: str | None, follow: bool) -> str:
        """Commit to a branch of the version's own, and tag its last commit; then, with `follow`, bring main there."""
        branch = f"staging-{self._draft.version.tag}"
        start = self._draft.former or head
        self._call(lambda: self._api.create_branch(
            self._repository, branch=branch, revision=start, repo_type=DATASET, exist_ok=True,
        ))  # fmt: skip
        commit = self._committed(branch, self._head(self._refs(), branch))
        self._tag(commit)
        if follow:
            self._follow(head, commit)
        self._delete_branch(branch)
        return commit

    def _follow(self, head: str | None, revision: str) -> None:
        """Bring the main branch to a published revision where it still is at `head`; nothing is sent for that.

        The version stands already: what fails here is made good by the next publication.
        """
        with suppress(RhumbError):
            tree, wanted = self._tree(head), self._tree(revision)
            names = {name for name in wanted if name in (CARD, MANIFEST) or name.split("/")[0] in FOLDERS}
            moved = [name for name in names if name not in tree or tree[name].blob_id != wanted[name].blob_id]
            ordered = sorted(moved, key=lambda name: (name in (CARD, MANIFEST), name))
            copies = [CommitOperationCopy(name, name, src_revision=revision) for name in ordered]
            for part in self._parts([*_deletions(tree, names), *copies]):
                head = self._commit(MAIN, head, part)

    def _delete_branch(self, branch: str) -> None:
        with suppress(RhumbError):  # it hinders nobody, and the next publication deletes it
            self._call(lambda: self._api.delete_branch(self._repository, branch=branch, repo_type=DATASET))


def _deletions(tree: Tree, names: Iterable[str]) -> list[CommitOperationDelete]:
    """What takes the files of a pack out of a tree that are not among its names; all else there is left alone."""
    gone = sorted(path for path in tree if path.split("/")[0] in FOLDERS and path not in set(names))
    return [CommitOperationDelete(path) for path in gone]
