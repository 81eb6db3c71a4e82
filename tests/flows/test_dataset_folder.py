"""Plain folders: which files are images, which masks are whose, and what is said of masks that are nobody's."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flows.datasets.folder
from flows.datasets.contract import BrokenImageError
from flows.datasets.folder import STRAY, FolderSource, find_masks
from pipeline.errors import InputError
from tests.flows.dataset_files import encoded, in_folder


def mask(path: Path, white: int = 255) -> None:
    drawn = np.zeros((8, 12), dtype=np.uint8)
    drawn[:, :6] = white
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return in_folder(tmp_path / "photos", {"a.png": encoded(1), "b.png": encoded(2)})


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    for name in ("a_eye.png", "b/eye.png"):
        mask(tmp_path / "masks" / name)
    return tmp_path / "masks"


def reason(source: FolderSource, key: str) -> str:
    with pytest.raises(BrokenImageError) as raised:
        source.read(key, ["eye"])
    return str(raised.value)


def test_nested_images_whose_names_end_alike_are_all_listed(tmp_path: Path) -> None:
    names = [f"{top}/{'d' * 120}/{'n' * 90}.png" for top in "abc"]
    source = FolderSource(in_folder(tmp_path, {name: encoded(i) for i, name in enumerate(names)}), nested=True)
    keys = list(source.keys())
    assert len(set(keys)) == len(source) == 3 and max(map(len, keys)) <= 200
    read = [np.asarray(source.read(key, []).picture).tobytes() for key in keys]
    assert len(set(read)) == 3


def test_masks_without_an_image_are_one_broken_item_after_all_images(photos: Path, masks: Path) -> None:
    assert list(FolderSource(photos, masks).keys()) == ["a.png", "b.png"]
    mask(masks / "nobody_a.png")
    source = FolderSource(photos, masks)
    assert reason(source, STRAY) == "1 mask in masks belongs to no image here, such as nobody_a.png"
    mask(masks / "gone" / "a.png")
    mask(masks / "zone" / "deep" / "c_a.png")
    source = FolderSource(photos, masks)
    assert list(source.keys()) == ["a.png", "b.png", STRAY] and len(source) == 3
    assert reason(source, STRAY) == "3 masks in masks belong to no image here, such as nobody_a.png and gone/a.png"
    assert set(source.read("a.png", ["eye"]).masks) == {"eye"}
    assert list(source.parts) == ["eye"]


def test_many_masks_without_an_image_are_not_all_counted(
    photos: Path, masks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.datasets.folder, "MANY", 3)
    for number in range(5):
        mask(masks / f"x{number}_a.png")
    assert reason(FolderSource(photos, masks), STRAY).startswith("more than 3 masks in masks belong to no image")


def test_images_and_label_maps_among_the_masks_are_no_masks_without_an_image(photos: Path) -> None:
    root = photos.parent
    mask(root / "a_eye.png")
    mask(root / "maps" / "a.png")
    mask(root / "._a_eye.png")
    assert list(FolderSource(photos, root, label_maps=root / "maps").keys()) == ["a.png", "b.png"]
    mask(photos / "a_eye.png")
    assert list(FolderSource(photos, photos).keys()) == ["a.png", "a_eye.png", "b.png"]


def test_a_key_that_is_not_listed_is_a_broken_item(photos: Path, masks: Path) -> None:
    assert reason(FolderSource(photos, masks), "c.png") == "photos has no c.png"
    assert reason(FolderSource(photos, masks), STRAY) == f"photos has no {STRAY}"


def test_masks_and_label_maps_within_nested_images_are_no_images(photos: Path) -> None:
    mask(photos / "masks" / "a_eye.png")
    mask(photos / "maps" / "b.png")
    in_folder(photos, {"sub/c.png": encoded(3), "masksandmore/d.png": encoded(4)})
    source = FolderSource(photos, photos / "masks", nested=True, label_maps=photos / "sub" / ".." / "maps")
    assert list(source.keys()) == ["a.png", "b.png", "masksandmore/d.png", "sub/c.png"]
    assert set(source.read("a.png", ["eye"]).masks) == {"eye"}


def test_hidden_files_are_no_images_and_no_masks_and_links_are_followed(photos: Path, masks: Path) -> None:
    in_folder(photos, {"._a.png": b"x", ".thumbs/t.png": encoded(5), "__MACOSX/a.png": b"x"})
    in_folder(masks, {"._a_eye.png": b"x", "b/._eye.png": b"x", ".c/eye.png": b"x"})
    (photos / "link.png").symlink_to(photos / "a.png")
    (photos / "dead.png").symlink_to(photos / "nowhere.png")
    source = FolderSource(photos, masks, nested=True)
    assert list(source.keys()) == ["a.png", "b.png", "link.png"]
    assert list(source.parts) == ["eye"]


def test_a_mask_of_zeros_and_ones_is_missing_with_the_reason(photos: Path, masks: Path) -> None:
    mask(masks / "a_eye.png", white=1)
    item = FolderSource(photos, masks).read("a.png", ["eye"])
    assert item.missing == {"eye": "mask of eye: its brightest pixel is 1; white (128 and more) is inside"}
    assert item.broken == {"eye"} and not item.masks


def test_masks_that_are_all_jpeg_are_refused_with_the_suffixes_that_are_read(photos: Path, tmp_path: Path) -> None:
    mask(tmp_path / "jpeg" / "a_eye.jpg")
    mask(tmp_path / "jpeg" / "b" / "eye.jpeg")
    with pytest.raises(InputError, match=r"2 JPEG files, such as a_eye.jpg, .* ending in .png, .*no clean edge"):
        FolderSource(photos, tmp_path / "jpeg")
    mask(tmp_path / "jpeg" / "a_eye.png")
    assert list(FolderSource(photos, tmp_path / "jpeg").parts) == ["eye"]


def test_a_label_map_in_colours_is_a_broken_item(photos: Path, tmp_path: Path) -> None:
    source = FolderSource(photos, label_maps=in_folder(tmp_path / "maps", {"a.png": encoded(7)}))
    assert reason(source, "a.png") == "label map a.png: a label map of mode RGB, not of whole numbers"


def test_finding_masks_takes_time_in_proportion_to_the_names(tmp_path: Path) -> None:
    def seconds(folders: int) -> float:
        names = [f"n{folder}/x{number}" for folder in range(folders) for number in range(10)]
        start = time.process_time()
        find_masks(tmp_path, names)
        return time.process_time() - start

    few, many = (min(seconds(folders) for _ in range(3)) for folders in (200, 3200))
    assert many < 60 * few + 0.05
