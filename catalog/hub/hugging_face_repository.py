"""A dataset repository of the Hugging Face Hub, as publications see it: references, trees, commits, its main branch.

A version is there once it has a tag. The main branch follows the newest of them, in one commit, so that who reads it
never sees what has no tag.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import GitRefs, RepoFile

from catalog.fs import CARD, FOLDERS, MANIFEST
from catalog.hub import hugging_face_calls as calls
from catalog.hub.hugging_face_calls import Result, StaleError, asked_pause, clear_error, patiently
from catalog.hub.names import Version
from catalog.store_calls import StoreError, bounded
from pipeline.errors import RhumbError

DATASET = "dataset"
MAIN = "main"
_STAGING = "staging-"
_LONGEST = 900.0  # seconds after which a commit counts as lost; its files were sent before
_ATTEMPTS = 5  # times that a head may move under a commit
_PAUSE = 1.0
Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete
Tree = Mapping[str, RepoFile]


def versions_of(refs: GitRefs) -> dict[Version, str]:
    """The versions among the tags of a repository."""
    named = ((Version.of_tag(tag.name), tag.target_commit) for tag in refs.tags)
    return {version: commit for version, commit in named if version is not None}


def head_of(refs: GitRefs, name: str = MAIN) -> str | None:
    """The last commit of a branch; None where there is none yet."""
    return next((branch.target_commit for branch in refs.branches if branch.name == name), None)


def staging_branch(version: Version) -> str:
    """The branch by which a version comes."""
    return f"{_STAGING}{version.tag}"


def deletions(tree: Tree, names: Iterable[str]) -> list[CommitOperationDelete]:
    """What takes the files of a pack out of a tree that are not among its names; all else there is left alone."""
    gone = sorted(path for path in tree if path.split("/")[0] in FOLDERS and path not in set(names))
    return [CommitOperationDelete(path) for path in gone]


def insistently(attempt: Callable[[], Result]) -> Result:
    """`attempt()`, made anew where the Hub was busy or its answer was lost, until PATIENCE has passed.

    What was asked for may have been done all the same, so an attempt has to begin by looking at what there is.
    """
    until, pause = time.monotonic() + calls.PATIENCE, _PAUSE
    while True:
        try:
            return attempt()
        except StoreError as error:
            wait = asked_pause(error) or pause
            if time.monotonic() + wait > until:
                raise
            time.sleep(wait)
            pause *= 2


class Repository:
    """One repository by its name; everything raises as `clear_error` makes it."""

    def __init__(self, api: HfApi, name: str) -> None:
        self.api, self.name = api, name

    def call(self, call: Callable[[], Result]) -> Result:
        """`patiently`, for what may be asked twice."""
        return patiently(self.name, call)

    def refs(self) -> GitRefs:
        """Its branches and tags. Raises NotFoundError: no such repository."""
        return self.call(lambda: self.api.list_repo_refs(self.name, repo_type=DATASET))

    def tree(self, revision: str | None) -> Tree:
        """The files of a commit by path; none where there is no commit."""
        if revision is None:
            return {}
        listed = self.call(lambda: list(self.api.list_repo_tree(
            self.name, recursive=True, revision=revision, repo_type=DATASET,
        )))  # fmt: skip
        return {file.path: file for file in listed if isinstance(file, RepoFile)}

    def commit(self, branch: str, parent: str | None, operations: Sequence[Operation], summary: str) -> str:
        """One commit; its id. Raises StaleError where the branch is no longer at `parent`."""
        try:
            made = bounded(lambda: self.api.create_commit(
                self.name, operations, commit_message=summary, repo_type=DATASET, revision=branch,
                parent_commit=parent,
            ), _LONGEST)  # fmt: skip
        except Exception as error:
            raise clear_error(self.name, error) from None
        return str(made.oid)

    def create_branch(self, branch: str, start: str | None) -> None:
        """A branch that begins at a commit, where there is none of that name."""
        self.call(lambda: self.api.create_branch(
            self.name, branch=branch, revision=start, repo_type=DATASET, exist_ok=True,
        ))  # fmt: skip

    # Once a version is there.

    def settle(self) -> None:
        """Bring the main branch to the newest version, and delete the branches by which published ones have come.

        The versions stand already, so nothing is raised: what fails here is made good by the next publication, or when
        one of a published version is tried again.
        """
        with suppress(RhumbError):
            self._follow()
        with suppress(RhumbError):
            self._clear_away()

    def _follow(self) -> None:
        """One commit that gives the main branch the files of the newest version; other files there are left alone.

        Large files are copied within the Hub, card and manifest travel.
        """

        def attempt() -> None:
            refs = self.refs()
            versions, head = versions_of(refs), head_of(refs)
            if not versions:
                return
            newest = max(versions)
            tree, wanted = self.tree(head), self.tree(versions[newest])
            if MANIFEST in tree and tree[MANIFEST].blob_id == wanted[MANIFEST].blob_id:
                return
            names = sorted(name for name in wanted if name in (CARD, MANIFEST) or name.split("/")[0] in FOLDERS)
            moved = [name for name in names if name not in tree or tree[name].blob_id != wanted[name].blob_id]
            copies = [CommitOperationCopy(name, name, src_revision=versions[newest]) for name in moved]
            self.commit(MAIN, head, [*deletions(tree, names), *copies], f"Version {newest}")

        for _ in range(_ATTEMPTS):
            with suppress(StaleError):
                insistently(attempt)
                return

    def _clear_away(self) -> None:
        refs = self.refs()
        published = {staging_branch(version) for version in versions_of(refs)}
        for branch in refs.branches:
            if branch.name in published:
                self.call(partial(self.api.delete_branch, self.name, branch=branch.name, repo_type=DATASET))
