"""The files of one model, in a folder or on the Hub: found by name, hashed as they are read, never run.

What is read is what is recorded, so the origin of a model names every file its numbers come from and no other. A Hub
model is pinned to one commit before its first file is fetched, and every file is compared with the hash that the commit
lists for it, offline too. The model's card, of which no number comes, is read for its licence alone and not recorded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2  # what the Hub's client speaks with, and whose errors it lets through
from huggingface_hub import get_cached_repo_tree, resolve_revision, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    HFValidationError,
    RevisionResolutionError,
)
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError, safe_open

from pipeline.errors import ModelError
from pipeline.models.terms import CARD, MOST_CARD, NOTHING_SAID, Terms, card_terms, recorded_terms

CONVERSION = "rhumb_conversion.json"
_WEIGHTS = "diffusion_pytorch_model"
_LFS_HEADER = b"version https://git-lfs"
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|\?xml|!--)", re.IGNORECASE)
_HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_REVISION = re.compile(r"\w[\w./-]*")
_SMALL = ("model_index.json", CONVERSION, "*config.json", "*.index.json", CARD)
_SECRET = re.compile(r"hf_\w{4,}|(?<=//)[^/@\s]*(?=@)")


@dataclass(frozen=True)
class FileRecord:
    """One file that a model was read from."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Origin:
    """Where a model came from: as it was asked for, the commit of a Hub model, the files that were read, and on which
    terms.

    File names are relative to the model's folder. `commit` is None for a folder.
    """

    reference: str
    commit: str | None
    files: Mapping[str, FileRecord]
    terms: Terms = NOTHING_SAID


class ModelFiles:
    """A model's files by their names relative to its folder; `open_files` makes one.

    Args:
        listing: git or LFS hashes of a Hub commit's files by name; None for a folder, or where it is not known.
    """

    def __init__(
        self, reference: str, folder: Path, commit: str | None = None, listing: Mapping[str, str] | None = None
    ) -> None:
        self.reference, self.folder, self.commit = reference, folder, commit
        self._listing = listing
        self._read: dict[str, FileRecord] = {}

    @property
    def origin(self) -> Origin:
        """Everything read so far, and the terms."""
        terms = self.terms  # which may read a file that is recorded
        return Origin(self.reference, self.commit, dict(sorted(self._read.items())), terms)

    @cached_property
    def terms(self) -> Terms:
        """Licence and citation, as the record of its conversion says, or the card. Raises ModelError: a damaged record.

        A card that cannot be had says nothing: a cache may have been filled without it.
        """
        told = recorded_terms(self.json(CONVERSION)) if self.has(CONVERSION) else NOTHING_SAID
        card = self.folder / CARD
        try:
            if None not in (told.licence, told.citation) or not card.is_file():
                return told
            with card.open("rb") as stream:
                return told.or_else(card_terms(stream.read(MOST_CARD)))
        except OSError:
            return told

    def has(self, name: str) -> bool:
        """Whether the model has the file `name`, fetched already or not."""
        return (self.folder / name).is_file() or name in (self._listing or ())

    def paths(self, names: list[str]) -> list[Path]:
        """The files on disk, fetched where they are not, checked and recorded.

        Raises:
            ModelError: a file that cannot be had, or one that differs from what its commit lists.
        """
        if self.commit is not None and not all((self.folder / name).is_file() for name in names):
            _snapshot(self.reference, self.commit, names)
        for name in names:
            if name not in self._read:
                self._read[name] = self._checked(name)
        return [self.folder / name for name in names]

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in the file `name`."""
        if not self.has(name):
            raise ModelError(str(self.folder / name), "no such file", "a diffusers model folder with its configuration")
        path = self.paths([name])[0]
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(str(path), stand_in(path) or "no readable JSON", "a JSON object") from error
        if not isinstance(content, dict):
            raise ModelError(str(path), type(content).__name__, "a JSON object")
        return content

    def weights(self, part: str = "") -> list[Path]:
        """The weights in the folder `part` (default: the model's own), whole or sharded, safetensors before pickles.

        Raises:
            ModelError: none, a Git-LFS pointer, a damaged file, or an index that names files it may not name.
        """
        for suffix in ("safetensors", "bin"):
            promised = self._weight_names(part, suffix)
            if promised:
                paths = self.paths(list(promised))
                for path, names in zip(paths, promised.values(), strict=True):
                    _check_weights(path, names)
                return paths
        raise ModelError(
            str(self.folder / part),
            "no weights",
            f"{_WEIGHTS}.safetensors (or .bin)",
            "Download the whole model again.",
        )

    def _weight_names(self, part: str, suffix: str) -> dict[str, set[str]]:
        """Weight files of one kind, and the tensors that an index says each holds.

        An index comes before a whole file beside it, as in diffusers.
        """
        whole, index = (inside(part, f"{_WEIGHTS}.{suffix}{end}") for end in ("", ".index.json"))
        if not self.has(index):
            return {whole: set()} if self.has(whole) else {}
        content = self.json(index)
        if not isinstance(content.get("metadata"), dict):
            raise ModelError(
                str(self.folder / index), "no `metadata`", "an object with `metadata` and `weight_map`",
                'Add "metadata": {} to it.',
            )  # fmt: skip
        mapping = content.get("weight_map")
        mapping = mapping if isinstance(mapping, dict) else {}
        names = sorted({str(name) for name in mapping.values()})
        wrong = [name for name in names if Path(name).name != name or not self.has(inside(part, name))]
        if wrong or not names:
            raise ModelError(
                str(self.folder / index), wrong[:1] or "no files", "names of weight files in the same folder"
            )
        return {inside(part, name): {key for key, own in mapping.items() if own == name} for name in names}

    def _checked(self, name: str) -> FileRecord:
        path = self.folder / name
        expected = (self._listing or {}).get(name)
        try:
            size = path.stat().st_size
            git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            sha256 = hashlib.sha256()
            with path.open("rb") as stream:
                while piece := stream.read(2**20):
                    sha256.update(piece)
                    if expected is not None and len(expected) == 40:
                        git.update(piece)
        except OSError as error:
            raise ModelError(str(path), f"no readable file ({type(error).__name__})", "a file of the model") from error
        if expected not in (None, sha256.hexdigest(), git.hexdigest()):
            raise ModelError(
                str(path), "a file changed since it was downloaded", f"what commit {self.commit} holds",
                "Delete it from the cache and download it again.",
            )  # fmt: skip
        return FileRecord(sha256.hexdigest(), size)


def inside(part: str, name: str) -> str:
    """`name` in the folder `part` of a model, "" being the model's own."""
    return f"{part}/{name}" if part else name


def open_files(reference: str | Path, revision: str | None = None) -> ModelFiles:
    """The files of a folder, or of a Hub id "owner/name" or "owner/name@revision"; a folder comes first.

    Raises:
        ModelError: no such folder or model, or a revision where there can be none.
    """
    if reference == "":
        raise ModelError("model", "an empty name", "a model folder or a Hub id such as owner/name")
    folder = Path(reference).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelError(
                "revision", f"{revision} for the folder {folder}", "none, as only Hub models have revisions"
            )
        return ModelFiles(str(reference), folder)
    if folder.exists():
        raise ModelError("model", reference, "a folder", "Give the folder that holds model_index.json.")
    named = _HUB_ID.fullmatch(reference) if isinstance(reference, str) else None
    if named is None:
        found = _SECRET.sub("***", str(reference))
        raise ModelError("model", found, "an existing model folder or a Hub id such as owner/name")
    if revision is not None and named["revision"] not in (None, revision):
        raise ModelError("revision", f"{named['revision']} and {revision}", "one revision")
    wanted = revision if revision is not None else named["revision"]
    if wanted is not None and (not _REVISION.fullmatch(wanted) or ".." in wanted):
        raise ModelError("revision", _SECRET.sub("***", wanted), "a branch, tag or commit")
    return _open_hub(named["id"], wanted)


def _open_hub(reference: str, revision: str | None) -> ModelFiles:
    where = reference if revision is None else f"{reference} at {revision}"
    with _hub_errors(where):
        commit = resolve_revision(reference, revision=revision).resolved
    folder = _snapshot(reference, commit, list(_SMALL), where)
    try:
        tree = get_cached_repo_tree(reference, revision=commit)
    except CachedRepoTreeNotFoundError:
        return ModelFiles(reference, folder, commit)
    hashes = {file.path: file.lfs.sha256 if file.lfs is not None else file.blob_id for file in tree}
    return ModelFiles(reference, folder, commit, hashes)


def _snapshot(reference: str, commit: str, patterns: list[str], where: str = "") -> Path:
    with _hub_errors(where or f"{reference} at {commit}"):
        return Path(snapshot_download(reference, revision=commit, allow_patterns=patterns))


@contextmanager
def _hub_errors(where: str) -> Iterator[None]:
    """What the Hub's client raises as one error, by its kind alone: its text may hold addresses and headers."""
    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    except (httpx2.HTTPError, HFValidationError, RevisionResolutionError, OSError) as error:
        raise ModelError(
            "model",
            f"{where} ({type(error).__name__})",
            "a model folder here, or a model on the Hub or in its cache",
            "Check the spelling, the network, and for a private model the login.",
        ) from error
    finally:
        hub_logging.set_verbosity(level)


def stand_in(path: Path) -> str | None:
    """What lies in the place of a file that was never fetched, told by its first bytes; None for anything else."""
    with path.open("rb") as stream:
        head = stream.read(256)
    if head.startswith(_LFS_HEADER):
        return "a Git-LFS pointer"
    return "a web page" if _PAGE.match(head) else None


def refuse_stand_in(path: Path) -> None:
    """Raises ModelError for a Git-LFS pointer or a web page where weights should lie."""
    found = stand_in(path)
    if found is not None:
        pull = "Run `git lfs pull` in the model's repository, or download it again."
        raise ModelError(str(path), found, "the weights themselves", pull if "LFS" in found else "Download it again.")


def _check_weights(path: Path, names: set[str]) -> None:
    """Refuse what is no file of weights, and safetensors that are damaged or lack tensors `names` of their index.

    What a shard lacks, diffusers would leave as it was drawn at random, and say nothing.
    """
    refuse_stand_in(path)
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="pt") as tensors:
            lacking = sorted(names - set(tensors.keys()))
    except SafetensorError as error:
        raise ModelError(
            str(path),
            f"a truncated or damaged file ({' '.join(str(error).split())[:200]})",
            "a whole safetensors file",
            "Download the model again.",
        ) from error
    if lacking:
        raise ModelError(
            str(path), f"no {', '.join(lacking[:3])}", "the weights that its index names", "Download the model again."
        )
