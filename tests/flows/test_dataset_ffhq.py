"""FFHQ: thumbnails and large pictures, nested and flat, with ffhq-dataset-v2.json and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.datasets.contract import BrokenImageError
from flows.datasets.ffhq import FfhqDataset
from flows.datasets.listed import ListedSource
from pipeline.errors import InputError
from tests.flows.dataset_files import PACKERS, encoded, in_folder, opened, pixels

NUMBERS = [0, 1, 999, 1000, 59_999, 60_000, 69_999]
KEYS = [f"{number:05d}" for number in NUMBERS]
LARGE, SMALL = "images1024x1024", "thumbnails128x128"


def tree(folder: str, flat: bool = False, side: int = 16) -> dict[str, bytes]:
    nested = {n: f"{folder}/{n // 1000 * 1000:05d}/{n:05d}.png" for n in NUMBERS}
    names = {n: f"{folder}/{n:05d}.png" for n in NUMBERS} if flat else nested
    return {name: encoded(n, size=(side, side)) for n, name in names.items()}


def entry(number: int, category: str) -> dict[str, Any]:
    """An entry as ffhq-dataset-v2.json has it."""
    return {
        "category": category,
        "metadata": {
            "photo_url": "https://www.flickr.com/photos/x/1",
            "photo_title": "DSCF0899.JPG",
            "author": "Jeremy Frumkin",
            "country": "",
            "license": "Attribution-NonCommercial License",
            "license_url": "https://creativecommons.org/licenses/by-nc/2.0/",
            "date_uploaded": "2007-08-16",
            "date_crawled": "2018-10-10",
        },
        "image": {"file_path": f"{LARGE}/00000/{number:05d}.png", "face_landmarks": [[1.5, 2.5]] * 68},
        "thumbnail": {"file_path": f"{SMALL}/00000/{number:05d}.png"},
        "in_the_wild": {"face_rect": [667, 410, 1438, 1181], "face_quad": [[0, 0]] * 4},
    }


JSON = json.dumps({str(n): entry(n, "validation" if n == 1 else "training") for n in NUMBERS}).encode()


def ffhq(path: Path, **keys: object) -> ListedSource:
    source = opened(FfhqDataset, "ffhq", path, **keys)
    assert isinstance(source, ListedSource)
    return source


@pytest.mark.parametrize("pack", PACKERS)
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("folder", [LARGE, SMALL])
def test_faces_are_read_by_number_from_either_folder(tmp_path: Path, pack: str, flat: bool, folder: str) -> None:
    source = ffhq(PACKERS[pack](tmp_path / "ffhq", tree(folder, flat)))
    assert list(source.keys()) == KEYS
    assert (source.name, source.split, len(source), source.redistributable) == ("ffhq", "all", 7, True)
    for number, key in zip(NUMBERS, KEYS, strict=True):
        assert np.array_equal(np.asarray(source.read(key, []).picture), pixels(number, (16, 16)))
    assert source.licence is not None and "CC BY-NC-SA 4.0" in source.licence


def test_the_pictures_own_folder_may_be_named(tmp_path: Path) -> None:
    in_folder(tmp_path, tree(SMALL))
    in_folder(tmp_path, {"ffhq-dataset-v2.json": JSON})
    for keys in ({}, {"images": SMALL}):
        source = ffhq(tmp_path / SMALL, **keys)
        assert list(source.keys()) == KEYS and source.credit("00000")["author"] == "Jeremy Frumkin"


def test_the_names_of_stylegans_own_export_are_numbers_too(tmp_path: Path) -> None:
    names = {f"{n // 1000:05d}/img{n:08d}.png": encoded(n) for n in NUMBERS}
    assert list(ffhq(PACKERS["zip"](tmp_path / "ffhq.zip", names)).keys()) == KEYS


def test_large_pictures_come_first_and_either_can_be_asked_for(tmp_path: Path) -> None:
    path = in_folder(
        tmp_path / "ffhq", tree(LARGE, side=32) | tree(SMALL) | {"in-the-wild-images/00000/00000.png": b"x"}
    )
    assert ffhq(path).read("00001", []).picture.size == (32, 32)
    assert ffhq(path, images=LARGE).read("00001", []).picture.size == (32, 32)
    assert ffhq(path, images=SMALL).read("00001", []).picture.size == (16, 16)


def test_a_folder_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.images.*thumbnails128x128"):
        ffhq(in_folder(tmp_path / "ffhq", tree(SMALL)), images=LARGE)


def test_the_split_follows_the_metadata_and_without_it_the_authors_rule(tmp_path: Path) -> None:
    path = in_folder(tmp_path / "ffhq", tree(SMALL))
    assert list(ffhq(path, split="validation").keys()) == ["60000", "69999"]
    assert list(ffhq(path, split="training").keys()) == KEYS[:5]
    in_folder(path, {"ffhq-dataset-v2.json": JSON})
    source = ffhq(path, split="validation")
    assert list(source.keys()) == ["00001"] and source.split == "validation"


def test_each_picture_has_its_own_licence(tmp_path: Path) -> None:
    path = in_folder(tmp_path / "ffhq", tree(SMALL) | {"ffhq-dataset-v2.json": JSON})
    assert ffhq(path).credit("00999") == {
        "licence": "Attribution-NonCommercial License",
        "author": "Jeremy Frumkin",
        "title": "DSCF0899.JPG",
        "source": "https://www.flickr.com/photos/x/1",
    }


def test_metadata_is_not_read_until_it_is_needed(tmp_path: Path) -> None:
    source = ffhq(in_folder(tmp_path / "ffhq", tree(SMALL) | {"ffhq-dataset-v2.json": b"{"}))
    assert list(source.keys()) == KEYS
    with pytest.raises(InputError, match="cannot be read"):
        source.credit("00000")


def test_a_gap_among_pictures_is_a_broken_item_and_a_few_pictures_miss_no_others(tmp_path: Path) -> None:
    files = {f"{SMALL}/{n:05d}.png": encoded(n) for n in (0, 1, 2, 4, 5)}
    source = ffhq(in_folder(tmp_path / "ffhq", files))
    assert list(source.keys()) == [f"{n:05d}" for n in range(6)]
    with pytest.raises(BrokenImageError, match="not there"):
        source.read("00003", [])


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (JSON[:-100], "cannot be read"),
        (b"[]", "that is no object"),
        (b'{"0": 3}', "entry 0"),
        (b'{"0": {"category": "testing"}}', "entry 0"),
        (json.dumps({"\u0663": entry(3, "training")}).encode(), "entry"),
        (b'{"0": {"category": ["training"]}}', "entry 0"),
        (json.dumps({"9" * 5000: entry(3, "training")}).encode(), "entry 999"),
    ],
)
def test_metadata_of_another_form_is_told(tmp_path: Path, data: bytes, found: str) -> None:
    with pytest.raises(InputError, match=found):
        ffhq(in_folder(tmp_path / "ffhq", tree(SMALL) | {"ffhq-dataset-v2.json": data}), split="training")


def test_an_empty_split_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.split"):
        ffhq(in_folder(tmp_path / "ffhq", {"00001.png": encoded(1)}), split="validation")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, "no files in"),
        ({"ffhq-r00.tfrecords": b"x"}, "ffhq-r00"),
        ({"in-the-wild-images/00000/00000.png": b"x"}, "in-the-wild"),
        ({"portrait.png": b"x"}, "the picture portrait"),
        ({"1.png": b"x", "00001.png": b"x"}, "one picture of each number"),
    ],
)
def test_another_layout_is_told_with_what_was_found(tmp_path: Path, files: dict[str, bytes], found: str) -> None:
    (tmp_path / "ffhq").mkdir()
    with pytest.raises(InputError, match=found):
        ffhq(in_folder(tmp_path / "ffhq", files))
