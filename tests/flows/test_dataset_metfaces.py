"""MetFaces: its pictures with metfaces.json inside, beside or elsewhere, and without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.datasets.contract import BrokenImageError
from flows.datasets.listed import ListedSource
from flows.datasets.metfaces import MetFacesDataset
from pipeline.errors import InputError
from tests.flows.dataset_files import PACKERS, encoded, in_folder, opened, pixels

FACES = [("11713", 0), ("11713", 1), ("10057", 0)]
KEYS = ["11713-00", "11713-01", "10057-00"]
IMAGES = {f"images/{key}.png": encoded(seed) for seed, key in enumerate(KEYS)}


def entry(number: str, face: int) -> dict[str, Any]:
    """An entry as metfaces.json has it."""
    return {
        "obj_id": number,
        "meta_url": f"https://collectionapi.metmuseum.org/public/collection/v1/objects/{number}",
        "source_url": "https://images.metmuseum.org/CRDImages/ad/original/x.jpg",
        "source_path": f"unprocessed/image-{number}.png",
        "source_md5": "0" * 32,
        "image_path": f"images/{number}-{face:02d}.png",
        "image_md5": "0" * 32,
        "title": "Portrait of a Gentleman",
        "artist_display_name": "Charles Willson Peale",
        "face_spec": {"rect": [404, 238, 775, 610], "landmarks": [[1, 2]] * 68, "shrink": 2},
        "face_idx": face,
    }


JSON = json.dumps([entry(*face) for face in FACES]).encode()


def metfaces(path: Path, **keys: object) -> ListedSource:
    source = opened(MetFacesDataset, "metfaces", path, **keys)
    assert isinstance(source, ListedSource)
    return source


@pytest.mark.parametrize("pack", PACKERS)
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("top", ["", "metfaces-dataset/"])
def test_faces_are_read_from_a_folder_or_an_archive(tmp_path: Path, pack: str, inside: bool, top: str) -> None:
    files = {f"{top}{name}": data for name, data in IMAGES.items()} | ({f"{top}metfaces.json": JSON} if inside else {})
    source = metfaces(PACKERS[pack](tmp_path / "metfaces", files))
    assert list(source.keys()) == KEYS if inside else set(source.keys()) == set(KEYS)
    for seed, key in enumerate(KEYS):
        item = source.read(key, ["nose"])
        assert np.array_equal(np.asarray(item.picture), pixels(seed))
        assert "no masks" in item.missing["nose"]
    assert (source.name, source.split, len(source), source.redistributable) == ("metfaces", "all", 3, True)
    assert source.licence is not None and "CC BY-NC 2.0" in source.licence and "CC0" in source.licence


@pytest.mark.parametrize("place", ["inside", "beside", "given"])
def test_each_face_is_credited_wherever_the_metadata_lies(tmp_path: Path, place: str) -> None:
    path = in_folder(tmp_path / "images", {Path(name).name: data for name, data in IMAGES.items()})
    folder = {"inside": path, "beside": tmp_path, "given": tmp_path / "other"}[place]
    in_folder(folder, {"metfaces.json": JSON})
    source = metfaces(path, **({"metadata": "other/metfaces.json"} if place == "given" else {}))
    assert source.credit("11713-01") == {
        "licence": "CC0 1.0 (source picture, The Metropolitan Museum of Art)",
        "author": "Charles Willson Peale",
        "title": "Portrait of a Gentleman",
        "source": "https://collectionapi.metmuseum.org/public/collection/v1/objects/11713",
    }


def test_half_characters_in_the_metadata_become_text_that_can_be_stored(tmp_path: Path) -> None:
    odd = json.dumps([entry("11713", 0) | {"title": "\ud800 portrait"}]).encode()
    credit = metfaces(in_folder(tmp_path / "metfaces", {**IMAGES, "metfaces.json": odd})).credit("11713-00")
    assert credit["title"].encode() == b"? portrait"


def test_pictures_without_metadata_are_used_uncredited(tmp_path: Path) -> None:
    source = metfaces(in_folder(tmp_path / "metfaces", IMAGES))
    assert sorted(source.keys()) == sorted(KEYS) and source.credit("11713-00") == {}


def test_whole_works_of_art_are_left_out(tmp_path: Path) -> None:
    files = {**IMAGES, "unprocessed/image-11713.png": encoded(9), "metfaces.json": JSON}
    assert list(metfaces(in_folder(tmp_path / "metfaces", files)).keys()) == KEYS


def test_an_entry_without_its_picture_is_broken_and_a_picture_without_entry_is_not(tmp_path: Path) -> None:
    files = {**IMAGES, "metfaces.json": JSON, "images/99-00.png": encoded(7)}
    del files["images/11713-01.png"]
    source = metfaces(in_folder(tmp_path / "metfaces", files))
    assert list(source.keys()) == [*KEYS, "99-00"]
    with pytest.raises(BrokenImageError, match="not there"):
        source.read("11713-01", [])
    assert np.array_equal(np.asarray(source.read("99-00", []).picture), pixels(7))


def test_a_choice_of_pictures_does_not_miss_the_others(tmp_path: Path) -> None:
    files = {"images/10057-00.png": IMAGES["images/10057-00.png"], "metfaces.json": JSON}
    assert list(metfaces(in_folder(tmp_path / "metfaces", files)).keys()) == ["10057-00"]


def test_a_path_in_the_metadata_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(5))
    bad = json.dumps([*map(lambda face: entry(*face), FACES), {"image_path": "../secret.png"}]).encode()  # noqa: C417
    source = metfaces(in_folder(tmp_path / "metfaces", {**IMAGES, "metfaces.json": bad}))
    with pytest.raises(BrokenImageError, match="not there"):
        source.read("secret", [])


def test_a_truncated_picture_is_one_broken_item(tmp_path: Path) -> None:
    files = {**IMAGES, "images/11713-00.png": IMAGES["images/11713-00.png"][:50]}
    source = metfaces(in_folder(tmp_path / "metfaces", files))
    with pytest.raises(BrokenImageError, match="image"):
        source.read("11713-00", [])
    assert source.read("11713-01", []).picture.size == (12, 8)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (JSON[:-30], "cannot be read"),
        (b"", "cannot be read"),
        (b"\xff\xfe\xff", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"{}", "expected a list of faces"),
        (b"[]", "expected a list of faces"),
        (b'[{"title": "x"}]', "expected obj_id and face_idx"),
        (b'[{"obj_id": null, "face_idx": "0"}]', "expected obj_id and face_idx"),
        (b"[3]", "expected obj_id and face_idx"),
        (json.dumps([entry("1", 0), entry("1", 0)]).encode(), "twice"),
        (json.dumps([entry("1", 0)]).encode(), "no picture that metfaces.json names"),
    ],
)
def test_metadata_of_another_form_is_told(tmp_path: Path, data: bytes, found: str) -> None:
    with pytest.raises(InputError, match=found):
        metfaces(in_folder(tmp_path / "metfaces", {**IMAGES, "metfaces.json": data}))


def test_metadata_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.metadata"):
        metfaces(in_folder(tmp_path / "metfaces", IMAGES), metadata="nothing.json")


def test_one_face_in_two_files_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one picture for each face"):
        metfaces(in_folder(tmp_path / "metfaces", {**IMAGES, "copy/11713-00.png": b"x"}))


@pytest.mark.parametrize("files", [{}, {"metfaces.json": JSON}, {"unprocessed/a.png": b"x"}])
def test_a_set_without_pictures_is_told_with_what_was_found(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "metfaces").mkdir()
    with pytest.raises(InputError, match=r"expected MetFaces: images/\*\.png"):
        metfaces(in_folder(tmp_path / "metfaces", files))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda each: (
        st.lists(each, max_size=3)
        | st.dictionaries(st.sampled_from(["obj_id", "face_idx", "image_path", "title"]), each)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(value=json_values)
def test_any_json_is_used_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = in_folder(tmp_path_factory.mktemp("m") / "metfaces", {**IMAGES, "metfaces.json": json.dumps(value).encode()})
    try:
        source = metfaces(path)
    except InputError as error:
        assert error.field in ("dataset.metadata", "dataset.path")
    else:
        assert set(KEYS) <= set(source.keys())
