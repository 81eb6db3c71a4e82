"""AFHQ: splits and animals in the original layout of both versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from flows.datasets.afhq import AfhqDataset
from flows.datasets.contract import BrokenImageError, Source
from pipeline.errors import InputError
from tests.flows.dataset_files import PACKERS, encoded, in_folder, opened, pixels

FILES = {
    f"{split}/{animal}/flickr_{animal}_{number:06d}.{suffix}": encoded(number)
    for split, suffix in (("test", "png"), ("train", "png"), ("val", "png"))
    for animal in ("cat", "dog", "wild")
    for number in (2, 3)
}


def afhq(path: Path, **keys: object) -> Source:
    return opened(AfhqDataset, "afhq", path, **keys)


@pytest.mark.parametrize("pack", PACKERS)
@pytest.mark.parametrize("top", ["", "afhq/", "data/afhq_v2/"])
def test_pictures_are_read_by_split_and_animal(tmp_path: Path, pack: str, top: str) -> None:
    source = afhq(PACKERS[pack](tmp_path / "afhq", {top + name: data for name, data in FILES.items()}))
    assert list(source.keys()) == sorted(FILES) and len(source) == 18
    for key in source.keys():  # noqa: SIM118
        assert np.array_equal(np.asarray(source.read(key, []).picture), pixels(int(key[-10:-4])))
    assert (source.name, source.split, source.licence) == ("afhq", "all", "CC BY-NC 4.0 (NAVER Corporation)")
    assert source.redistributable


def test_one_split_and_one_animal_can_be_asked_for(tmp_path: Path) -> None:
    source = afhq(in_folder(tmp_path / "afhq", FILES), split="train", animal="dog")
    assert list(source.keys()) == ["train/dog/flickr_dog_000002.png", "train/dog/flickr_dog_000003.png"]
    assert (source.name, source.split) == ("afhq-dog", "train")


def test_what_is_not_there_is_told_with_what_is(tmp_path: Path) -> None:
    path = in_folder(tmp_path / "afhq", {name: data for name, data in FILES.items() if "val" not in name})
    with pytest.raises(InputError, match=r"dataset\.split: found val.*test/cat"):
        afhq(path, split="val")
    with pytest.raises(InputError, match=r"dataset\.animal: found val, dog"):
        afhq(path, split="val", animal="dog")
    with pytest.raises(ValidationError):
        afhq(path, animal="horse")


def test_two_sets_in_one_folder_are_told(tmp_path: Path) -> None:
    path = in_folder(tmp_path / "both", {f"{top}/train/cat/a.png": b"x" for top in ("afhq", "afhq_v2")})
    with pytest.raises(InputError, match="several sets.*afhq, afhq_v2"):
        afhq(path)


@pytest.mark.parametrize("files", [{}, {"cat/a.png": b"x"}, {"train/horse/a.png": b"x"}, {"train/cat/a.txt": b"x"}])
def test_another_layout_is_told(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "afhq").mkdir()
    with pytest.raises(InputError, match="expected AFHQ's {train,val,test}/{cat,dog,wild}"):
        afhq(in_folder(tmp_path / "afhq", files))


def test_broken_and_missing_pictures_are_broken_items_and_links_are_followed(tmp_path: Path) -> None:
    path = in_folder(tmp_path / "afhq", {"train/cat/a.jpg": encoded(1, "JPEG"), "train/cat/b.jpg": b"\xff\xd8\xff"})
    (tmp_path / "secret.jpg").write_bytes(encoded(2, "JPEG"))
    (path / "train/cat/c.jpg").symlink_to(tmp_path / "secret.jpg")
    source = afhq(path)
    for key in ("train/cat/a.jpg", "train/cat/c.jpg"):
        assert source.read(key, []).picture.size == (12, 8)
    for key in ("train/cat/b.jpg", "train/cat/d.jpg"):
        with pytest.raises(BrokenImageError):
            source.read(key, [])
