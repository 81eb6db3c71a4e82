"""Class folders: with and without splits, all classes or some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from flows.datasets.classes import CITATION, ClassFoldersDataset, ClassFoldersSource
from pipeline.errors import InputError
from tests.flows.dataset_files import PACKERS, encoded, in_folder, opened, pixels

FILES = {
    "n01440764/n01440764_10026.JPEG": encoded(1, "JPEG"),
    "n01440764/n01440764_10027.JPEG": encoded(2, "JPEG"),
    "n02086240/images/n02086240_1.PNG": encoded(3),
}
SPLITS = {f"{split}/{name}": data for split in ("train", "val") for name, data in FILES.items()}


def classes(path: Path, **keys: object) -> ClassFoldersSource:
    source = opened(ClassFoldersDataset, "class-folders", path, **keys)
    assert isinstance(source, ClassFoldersSource)
    return source


@pytest.mark.parametrize("pack", PACKERS)
@pytest.mark.parametrize("files", [FILES, SPLITS])
def test_the_class_is_part_of_every_key(tmp_path: Path, pack: str, files: dict[str, bytes]) -> None:
    source = classes(PACKERS[pack](tmp_path / "imagenet", files))
    assert list(source.keys()) == list(files) and len(source) == len(files)
    assert source.classes == ["n01440764", "n02086240"]
    assert (source.name, source.split) == ("imagenet", "all")
    png = next(key for key in source.keys() if key.endswith("PNG"))  # noqa: SIM118
    assert np.array_equal(np.asarray(source.read(png, []).picture), pixels(3))


def test_one_split_can_be_asked_for(tmp_path: Path) -> None:
    source = classes(in_folder(tmp_path / "imagenet", SPLITS), split="val")
    assert list(source.keys()) == [name for name in SPLITS if name.startswith("val/")] and source.split == "val"


def test_a_split_of_any_name_is_taken_when_it_is_named(tmp_path: Path) -> None:
    path = in_folder(tmp_path / "set", {"sketches/cat/a.png": encoded(1), "photos/cat/a.png": encoded(2)})
    assert list(classes(path, split="sketches").keys()) == ["sketches/cat/a.png"]


def test_only_the_classes_that_were_asked_for_are_listed(tmp_path: Path) -> None:
    source = classes(in_folder(tmp_path / "imagenet", SPLITS), classes=["n02086240"])
    assert list(source.keys()) == [name for name in SPLITS if "n02086240" in name]
    assert source.classes == ["n02086240"]


def test_an_unknown_class_is_told_with_those_nearest_to_it(tmp_path: Path) -> None:
    path = in_folder(tmp_path / "set", {f"{name}/a.png": b"x" for name in ("beagle", "eagle", "tabby")})
    with pytest.raises(
        InputError, match=r"dataset\.classes: found beagel; expected one of the 3 classes, such as beagle"
    ):
        classes(path, classes=["beagel"])
    with pytest.raises(ValidationError):
        classes(path, classes=[])


def test_an_unknown_split_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.split: found test; expected .*: train, val"):
        classes(in_folder(tmp_path / "imagenet", SPLITS), split="test")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, "no files in"),
        ({"a.png": b"x", "b.png": b"x"}, r"a\.png, b\.png in"),
        ({"train/cat/a.png": b"x", "test/1.JPEG": b"x"}, r"test/1\.JPEG in"),
        ({"train/1.png": b"x"}, r"train/1\.png in"),
        ({"cat/a.txt": b"x"}, r"cat/a\.txt in"),
    ],
)
def test_another_layout_is_told_with_what_was_found(tmp_path: Path, files: dict[str, bytes], found: str) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match=f"{found}.*expected pictures in one folder per class"):
        classes(in_folder(tmp_path / "set", files))


def test_imagenet_is_not_passed_on_and_other_classes_are_the_users_own(tmp_path: Path) -> None:
    imagenet = classes(in_folder(tmp_path / "imagenet", FILES), licence="mine")
    assert not imagenet.redistributable and imagenet.licence is not None and "ImageNet" in imagenet.licence
    assert imagenet.citation == CITATION
    own = classes(in_folder(tmp_path / "own", {"cat/a.png": encoded(1)}), licence="CC0", name="pets")
    assert (own.redistributable, own.licence, own.name, own.citation) == (True, "CC0", "pets", None)


def test_keys_are_unique_printable_and_short_whatever_the_names(tmp_path: Path) -> None:
    long = "x" * 150
    odd = [
        "cat/a\n.png",
        "cat/a\\u000a.png",
        f"{long}1/{long}.png",
        f"{long}2/{long}.png",
        "кот/ё.png",
        "cat/\u202eb.png",
    ]
    source = classes(in_folder(tmp_path / "set", {name: encoded(seed) for seed, name in enumerate(odd)}))
    keys = list(source.keys())
    assert len(set(keys)) == len(odd) and all(key.isprintable() and len(key) <= 200 for key in keys)
    assert {source.read(key, []).picture.tobytes() for key in keys} == {pixels(seed).tobytes() for seed in range(6)}
