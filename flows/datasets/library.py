"""Data sets as the Hugging Face library finds them: a folder, or one commit on the Hub. No file outside of it is read,
and nothing that it brings is run.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.datasets.archives import MAX_MEMBER
from flows.datasets.columns import files_in
from flows.datasets.contract import BrokenImageError
from flows.datasets.listed import FIELD
from flows.datasets.numbered import lies_within
from flows.datasets.pictures import MAX_NAME, shown_name
from pipeline.errors import InputError
from pipeline.models.terms import MOST_CARD, card_terms

if TYPE_CHECKING:
    import datasets

SPLIT = "dataset.split"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_REVISION = re.compile(r"\w[\w./-]*")
_SECRET = re.compile(r"hf_\w{4,}|(?<=//)[^/@\s]*(?=@)|(?<=[Bb]earer )\S+|(?<=\?)\S+")
_ADDRESS = re.compile(r"(?:(?:zip|tar|gzip|bz2|xz|zstd)://[^:]*::)*(?P<file>.+)", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """Where a data set lies: a folder, or one commit on the Hub."""

    name: str
    folder: Path | None = None
    commit: str | None = None

    @property
    def reference(self) -> str:
        """What the library is asked for; a Hub id is never taken for a folder in the working directory."""
        return str(self.folder) if self.folder is not None else f"hf://datasets/{self.name}"

    @property
    def shown(self) -> str:
        return str(self.folder) if self.folder is not None else f"{self.name} at {self.commit}"

    def holds(self, file: str) -> bool:
        """Whether a file that the library names, by path or address, belongs to the data set."""
        if self.folder is not None:
            return "://" not in file and lies_within(Path(file), self.folder)
        parts = file.removeprefix(self._address).split("/")
        if file.startswith(self._address):
            return ".." not in parts
        return "://" not in file and any(lies_within(Path(file), folder) for folder in self._caches())

    @property
    def _address(self) -> str:
        return f"hf://datasets/{self.name}@{self.commit}/"

    def _caches(self) -> list[Path]:
        import datasets
        from huggingface_hub.constants import HF_HUB_CACHE

        own = Path(HF_HUB_CACHE) / f"datasets--{self.name.replace('/', '--')}"
        return [own, Path(datasets.config.DOWNLOADED_DATASETS_PATH)]

    def fetch(self, path: str) -> bytes:
        """The content of a file that a row names. Raises BrokenImageError: it is not there, or not of the data set."""
        match = _ADDRESS.fullmatch(path)
        if self.folder is not None and "://" not in path:
            return files_in(self.folder)(path)
        if match is None or not self.holds(match["file"]):
            raise BrokenImageError(f"{shown_name(path)} leads out of the data set")
        from datasets.utils.file_utils import xopen

        try:
            with xopen(path, "rb") as file:
                return bytes(file.read(MAX_MEMBER + 1))
        except Exception as error:  # whatever a file system of fsspec raises
            raise BrokenImageError(f"{shown_name(path)} cannot be read ({type(error).__name__})") from error


def find_place(reference: str, path: Path, revision: str | None) -> Place:
    """The folder at `path`, or the Hub's data set `reference` at its commit.

    Raises:
        InputError: neither, or a revision that there cannot be.
    """
    from huggingface_hub import resolve_revision

    if path.is_dir():
        if revision is not None:
            raise InputError("dataset.revision", f"{revision} for the folder {path}", "none for a folder")
        return Place(path.resolve().name, path.resolve())
    if path.is_file():
        near = {".parquet": "parquet", ".tar": "webdataset"}.get(path.suffix)
        action = f"Say `kind: {near}`." if near else ""
        raise InputError(FIELD, f"{path}, a file", "a folder, or a Hub id such as owner/name", action)
    if not _HUB_ID.fullmatch(reference) or ".." in reference:
        found = f"{_shown(reference)}, which is no folder"
        raise InputError(FIELD, found, "a folder, or a Hub id such as owner/name")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InputError("dataset.revision", _shown(revision), "a branch, tag or commit")
    with library_errors(Place(reference, commit=revision or "its newest commit")), _quiet():
        commit = resolve_revision(reference, repo_type="dataset", revision=revision).resolved
    return Place(reference, commit=commit)


def load_table(place: Place, config: str | None, split: str | None) -> tuple[datasets.Dataset, str, str | None]:
    """The rows of one split on disk, the split's name, and the licence that the data set's card names."""
    if place.folder is not None and _is_saved(place.folder):
        return _saved(place.folder, config, split)
    builder = _builder(place, config)
    builder.download_and_prepare()
    rows = {name: info.num_examples for name, info in (builder.info.splits or {}).items()}
    split = split or _only(list(rows), place)
    if rows.get(split) == 0:
        raise no_rows(split, place.shown)
    return builder.as_dataset(split=split), split, _licence(place) or builder.info.license or None


def load_stream(
    place: Place, config: str | None, split: str | None
) -> tuple[datasets.IterableDataset, str, str | None]:
    """The rows of one split as they come, their pictures as files; the split's name, and the card's licence."""
    if place.folder is not None and _is_saved(place.folder):
        table, split, licence = _saved(place.folder, config, split)
        return table.to_iterable_dataset().decode(False), split, licence
    builder = _builder(place, config)
    streams = builder.as_streaming_dataset()
    split = split or _only(list(streams), place)
    if split not in streams:
        raise InputError(SPLIT, split, f"one of {', '.join(streams)}", "A stream has no part of a split.")
    stream = streams[split]
    if stream.features is not None:  # before anything else is done to it: it would be decoded already
        stream = stream.decode(False)
    return stream, split, _licence(place) or builder.info.license or None


def _builder(place: Place, config: str | None) -> datasets.DatasetBuilder:
    """What the library reads the data set with, once every file that it would read is known to belong to it.

    Raises:
        InputError: a file elsewhere, or nothing but other commits in the cache where the Hub cannot be asked.
    """
    from datasets import load_dataset_builder

    with _quiet():
        builder = load_dataset_builder(place.reference, name=config, revision=place.commit)
    files = [file for split in (builder.config.data_files or {}).values() for file in split]
    for file in files:
        match = _ADDRESS.fullmatch(str(file))
        if match is None or not place.holds(match["file"]):
            raise InputError(FIELD, f"{_shown(str(file))}, which {place.shown} names", "files of its own")
    if not files and builder.hash != place.commit:
        return _cached(builder, place, config)
    return builder


def _cached(other: datasets.DatasetBuilder, place: Place, config: str | None) -> datasets.DatasetBuilder:
    """The tables of a commit in the cache. Where something keeps the library from the Hub it takes the last commit that
    it has, `other`, whichever was asked for."""
    from datasets import config as settings
    from datasets import load_dataset_builder

    versions = Path(other.cache_dir).parents[2].glob(f"{glob.escape(config or '')}*/*/{place.commit}")
    found = [path for path in versions if config in (None, path.parts[-3])]
    if len(found) == 1:
        kind, version = found[0].parts[-3:-1]
        names = {"dataset_name": other.dataset_name, "repo_id": place.name, "config_name": kind}
        return type(other)(**names, version=version, hash=place.commit)
    if found:
        raise InputError("dataset.config", "none", f"one of {', '.join(sorted(path.parts[-3] for path in found))}")
    if not settings.HF_HUB_OFFLINE:
        load_dataset_builder(place.reference, name=config, revision=place.commit, cache_dir=os.devnull)  # says why
    raise InputError(
        "dataset.revision",
        f"{place.name} at {other.hash} in the cache",
        f"commit {place.commit}",
        "Name the cached commit as the revision, or run it with the network.",
    )


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _saved(folder: Path, config: str | None, split: str | None) -> tuple[datasets.Dataset, str, str | None]:
    """A data set as `save_to_disk` wrote it. Raises InputError: it names files outside of its folder."""
    from datasets import Dataset

    if config is not None:
        raise InputError("dataset.config", config, "none: a saved data set has one")
    wanted, own = split, None
    if (folder / "dataset_dict.json").is_file():
        splits = _names(folder, "dataset_dict.json", lambda content: content["splits"])
        wanted = split or _only(splits, Place(folder.name, folder))
        if wanted not in splits:
            raise InputError(SPLIT, wanted, f"one of {', '.join(splits)}")
        folder, own = folder / wanted, wanted
    if not _names(folder, "state.json", lambda content: [file["filename"] for file in content["_data_files"]]):
        raise no_rows(wanted or "all", str(folder))
    table = Dataset.load_from_disk(str(folder))
    own = own or str(table.split or "all")
    if wanted not in (None, own):
        raise InputError(SPLIT, str(wanted), f"{own} or none: {folder} has one split")
    return table, own, table.info.license or None


def _names(folder: Path, name: str, read: Any) -> list[str]:
    """Names of what lies in a saved data set's folder, from one of its JSON files."""
    try:
        names = [str(each) for each in read(json.loads((folder / name).read_text(encoding="utf-8")))]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        found = f"{folder / name} that cannot be read ({type(error).__name__})"
        raise InputError(FIELD, found, "a folder as `save_to_disk` writes it") from error
    for each in names:
        if Path(each).name != each or each == ".." or not lies_within(folder / each, folder):
            raise InputError(FIELD, f"{shown_name(each)!r}, which {folder / name} names", "files in its folder")
    return names


def no_rows(split: str, where: str) -> InputError:
    """What is wrong with an empty split."""
    return InputError(SPLIT, f"{split} of {where}, without a single row", "a split that has rows")


def _only(splits: list[str], place: Place) -> str:
    if len(splits) != 1:
        raise InputError(SPLIT, "none", f"one of {', '.join(splits) or 'no splits'}, of {place.shown}")
    return str(splits[0])


def _card(place: Place) -> Path | None:
    """The data set's card; None where it has none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if place.folder is not None:
        card = place.folder / "README.md"
        return card if card.is_file() and lies_within(card, card.parent) else None
    try:
        return Path(hf_hub_download(place.name, "README.md", repo_type="dataset", revision=place.commit))
    except (EntryNotFoundError, OSError):  # also where only the tables are in the cache
        return None


def card_citation(place: Place) -> str | None:
    """The BibTeX that the data set's card asks to be cited; None where it has no card or the card does not say."""
    card = _card(place)
    if card is None:
        return None
    with card.open("rb") as stream:
        return card_terms(stream.read(MOST_CARD)).citation


def _licence(place: Place) -> str | None:
    """The licence that the data set's card names; None where it has no card or the card does not say."""
    from huggingface_hub import metadata_load

    card = _card(place)
    data = (metadata_load(card) or {}) if card is not None else {}
    told = data.get("license_name") or data.get("license")
    return ", ".join(map(str, told)) if isinstance(told, list) else str(told) if told else None


@contextmanager
def library_errors(place: Place, action: str = "") -> Iterator[None]:
    """Whatever the library raises as one error, without addresses' queries and tokens."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            FIELD,
            f"{place.shown} ({type(error).__name__}: {_shown(str(error))})",
            "a data set that the Hugging Face library can read, here, on the Hub or in its cache",
            action or "Check the spelling, the network, and for a private data set the login.",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' remarks on what they took from their caches: that it is the right commit is checked."""
    from datasets.utils import logging as table_logging
    from huggingface_hub.utils import logging as hub_logging

    levels = [(logger, logger.get_verbosity()) for logger in (table_logging, hub_logging)]
    for logger, _ in levels:
        logger.set_verbosity_error()
    try:
        yield
    finally:
        for logger, level in levels:
            logger.set_verbosity(level)


def _shown(text: str) -> str:
    return shown_name(" ".join(_SECRET.sub("***", text).split())[:MAX_NAME])
