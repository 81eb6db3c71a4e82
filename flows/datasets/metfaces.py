"""MetFaces (Karras et al. 2020): faces cut from works of art, `images/OBJECT-FACE.png` with metfaces.json.

A folder or an archive of the pictures, with metfaces.json inside or beside it. The entries of metfaces.json that are
used: `obj_id`, `face_idx`, `image_path`, and for credit `title`, `artist_display_name` and `meta_url`. The pictures
under `unprocessed/`, whole works of art, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field

from flows.datasets.archives import open_members
from flows.datasets.config import DatasetConfig, Resolve, quiet
from flows.datasets.listed import FIELD, ListedSource, metadata, pictures, plain, wrong_layout
from flows.datasets.pictures import shown_name
from pipeline.errors import InputError

LAYOUT = "MetFaces: images/*.png, and metfaces.json with them or beside them"
PICTURE_LICENCE = "CC0 1.0 (source picture, The Metropolitan Museum of Art)"
CITATION = """\
@inproceedings{Karras2020ada,
  title={Training Generative Adversarial Networks with Limited Data},
  author={Tero Karras and Miika Aittala and Janne Hellsten and Samuli Laine and Jaakko Lehtinen and Timo Aila},
  booktitle={Proc. NeurIPS},
  year={2020}
}"""


class MetFacesDataset(DatasetConfig):
    """`metadata`: where metfaces.json is, if neither in `path` nor beside it; without it pictures are not credited."""

    kind: Literal["metfaces"]
    path: str = Field(min_length=1)
    metadata: str | None = quiet(None, min_length=1)

    def open(self, resolve: Resolve) -> MetFacesSource:
        return MetFacesSource(self, resolve)


class MetFacesSource(ListedSource):
    """Keys are OBJECT-FACE, such as `11713-00`: those of metfaces.json in its order, then pictures that it has not.

    An entry without its picture is an item that cannot be read, where most entries have theirs: where fewer have,
    somebody has chosen some of the pictures.
    """

    licence = "CC BY-NC 2.0 (NVIDIA Corporation); source pictures CC0 1.0 (The Metropolitan Museum of Art)"
    citation = CITATION

    def __init__(self, config: MetFacesDataset, resolve: Resolve) -> None:
        path = resolve(config.path)
        members = open_members(path)
        files = _by_stem(name for name in pictures(members.names()) if "unprocessed" not in name.split("/")[:-1])
        if not files:
            wrong_layout(path, members.names(), LAYOUT)
        entries = metadata(members, "metfaces.json", resolve(config.metadata) if config.metadata else None)
        credits = {} if entries is None else _credits(entries)
        if credits and not credits.keys() & files.keys():
            some = ", ".join(list(files)[:3])
            raise InputError(
                FIELD,
                f"no picture that metfaces.json names in {path}, but {some}",
                f"{LAYOUT}: {next(iter(credits))}.png",
            )
        here = len(credits.keys() & files.keys())
        named = {key: files.get(key, f"{key}.png") for key in credits if key in files or 2 * here > len(credits)}
        super().__init__(config, "metfaces", members, {**named, **files}, credits)


def _by_stem(names: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        key = shown_name(PurePosixPath(name).stem)
        if key in found:
            raise InputError(FIELD, f"{shown_name(found[key])} and {shown_name(name)}", "one picture for each face")
        found[key] = name
    return found


def _credits(entries: Any) -> dict[str, Mapping[str, str]]:
    """What metfaces.json says of each face, by key. Raises InputError: it has another form, or a face twice."""
    if not isinstance(entries, list) or not entries:
        raise InputError("dataset.metadata", f"metfaces.json with {_kind(entries)}", "a list of faces")
    found: dict[str, Mapping[str, str]] = {}
    for place, entry in enumerate(entries):
        key = _entry_key(entry)
        if key is None:
            raise InputError(
                "dataset.metadata", f"entry {place} of metfaces.json: {_kind(entry)}", "obj_id and face_idx"
            )
        if key in found:
            raise InputError("dataset.metadata", f"face {key} twice in metfaces.json", "every face once")
        known = {"author": "artist_display_name", "title": "title", "source": "meta_url"}
        texts = {what: plain(entry[name]) for what, name in known.items() if entry.get(name)}
        found[key] = {"licence": PICTURE_LICENCE, **texts}
    return found


def _entry_key(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return None
    if isinstance(file := entry.get("image_path"), str) and PurePosixPath(file).stem:
        return shown_name(PurePosixPath(file).stem)
    number, face = entry.get("obj_id"), entry.get("face_idx")
    if not isinstance(number, str | int) or not isinstance(face, int):
        return None
    return shown_name(f"{number}-{face:02d}")


def _kind(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | dict | str) else repr(value)[:40]
