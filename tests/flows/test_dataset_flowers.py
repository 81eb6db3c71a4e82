"""Flowers-102 in its archives' own layout, small: JPEG segmentations on blue, .mat files, whole and damaged."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from scipy.io import savemat

from flows.datasets.contract import BrokenImageError
from flows.datasets.flowers import FlowersDataset, FlowersSource, flower_mask
from flows.regions import check_regions, open_regions
from pipeline.errors import InputError

SIZE = (120, 90)
PETALS = {
    "white": (245, 245, 245),
    "black": (10, 10, 10),
    "violet": (90, 60, 200),
    "blue": (50, 45, 215),
    "yellow": (250, 220, 20),
}


def petals(size: tuple[int, int] = SIZE) -> np.ndarray:
    """A flower of five petals, bool (H, W)."""
    y, x = np.mgrid[: size[1], : size[0]]
    y, x = y - size[1] / 2, x - size[0] / 2
    return np.hypot(x, y) < size[1] * (0.3 + 0.1 * np.cos(5 * np.arctan2(y, x)))


def segmentation(inside: np.ndarray, colour: Sequence[int] = (250, 220, 20), seed: int = 0) -> Image.Image:
    """A textured flower on the flat blue of the data set."""
    noise = np.random.default_rng(seed).normal(0.0, 3.0, (*inside.shape, 3))
    flower = (np.array(colour) + noise).clip(0, 255)
    return Image.fromarray(np.where(inside[..., None], flower, (0, 0, 254)).astype(np.uint8))


def through_jpeg(picture: Image.Image, quality: int, subsampling: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality, subsampling=subsampling)
    return Image.open(stream)


def save(root: Path, number: int, image: bool = True, mask: bool = True) -> None:
    for folder, name, wanted in (("jpg", "image", image), ("segmim", "segmim", mask)):
        if wanted:
            (root / folder).mkdir(parents=True, exist_ok=True)
            segmentation(petals(), seed=number).save(root / folder / f"{name}_{number:05d}.jpg", quality=90)


def save_lists(root: Path, labels: Sequence[float] = (77, 3, 102), compressed: bool = True) -> None:
    savemat(root / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)}, do_compression=compressed)
    sets = {"trnid": [[3]], "valid": [[1]], "tstid": [[2]]}
    savemat(root / "setid.mat", {k: np.array(v, dtype=np.uint16) for k, v in sets.items()}, do_compression=compressed)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        save(tmp_path, number)
    save_lists(tmp_path)
    return tmp_path


def opened(path: Path, **keys: object) -> FlowersSource:
    source = FlowersDataset.model_validate({"kind": "flowers102", "path": "data", **keys}).open(lambda _: path)
    assert isinstance(source, FlowersSource)
    return source


def test_images_come_in_order_with_their_flower_and_category(root: Path) -> None:
    source = opened(root)
    assert list(source.keys()) == ["image_00001.jpg", "image_00002.jpg", "image_00003.jpg"]
    assert (len(source), source.name, source.split, tuple(source.parts)) == (3, "flowers102", "all", ("flower",))
    for key, category in zip(source.keys(), (77, 3, 102), strict=True):
        item = source.read(key, ["flower"])
        assert item.picture.size == SIZE
        assert item.factors == {"category": category}
        mask = np.asarray(item.masks["flower"])
        assert mask.dtype == bool
        assert (mask & petals()).sum() / (mask | petals()).sum() > 0.85
        assert source.read(key, []).masks == {}


def test_the_user_says_the_licence_since_the_source_does_not_and_pictures_are_not_published(root: Path) -> None:
    assert opened(root).licence is None
    assert opened(root, licence="mine", name="blooms").licence == "mine"
    assert opened(root, name="blooms").name == "blooms"
    assert not opened(root).redistributable


def test_the_splits_are_those_that_the_lists_name(root: Path) -> None:
    found = {split: list(opened(root, split=split).keys()) for split in ("train", "val", "test")}
    assert found == {"train": ["image_00003.jpg"], "val": ["image_00001.jpg"], "test": ["image_00002.jpg"]}
    assert opened(root, split="train").split == "train"
    with pytest.raises(ValidationError):
        opened(root, split="trnid")


def test_the_folder_that_torchvision_makes_is_found(tmp_path: Path) -> None:
    save(tmp_path / "flowers-102", 1)
    assert list(opened(tmp_path).keys()) == ["image_00001.jpg"]


@pytest.mark.parametrize(("quality", "subsampling"), [(95, 0), (90, 2), (75, 2)])
@pytest.mark.parametrize("colour", PETALS.values(), ids=PETALS)
def test_the_flower_survives_compression_whatever_its_colour(
    colour: tuple[int, int, int], quality: int, subsampling: int
) -> None:
    inside = petals((400, 300))
    mask = flower_mask(through_jpeg(segmentation(inside, colour), quality, subsampling))
    assert (mask & inside).sum() / (mask | inside).sum() > 0.94
    assert mask[inside].mean() > 0.99


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(60, 95), st.sampled_from([0, 1, 2]))
def test_no_speck_of_compression_is_left_far_from_the_flower(seed: int, quality: int, subsampling: int) -> None:
    rng = np.random.default_rng(seed)
    inside = np.zeros((96, 128), dtype=bool)
    inside[24:64, 40:88] = True
    mask = flower_mask(through_jpeg(segmentation(inside, rng.integers(0, 120, 3), seed), quality, subsampling))
    far = np.ones_like(inside)
    far[8:80, 24:104] = False  # further than an edge's own blocks of 16 x 16
    assert not mask[far].any()
    assert mask[inside].mean() > 0.97


@pytest.mark.parametrize(("colour", "side"), [((25, 20, 230), 24), ((0, 0, 254), 6)])
def test_what_is_nearly_blue_or_a_speck_inside_the_flower_stays(colour: tuple[int, int, int], side: int) -> None:
    picture = np.array(segmentation(petals((400, 300))))
    picture[144 : 144 + side, 192 : 192 + side] = colour
    assert flower_mask(Image.fromarray(picture))[144 : 144 + side, 192 : 192 + side].all()


def test_a_blue_petal_stays_and_a_hole_between_petals_is_background() -> None:
    inside = petals((400, 300))
    inside[140:160, 190:210] = False
    picture = np.array(segmentation(inside))
    picture[100:130, 180:220] = (45, 30, 240)
    mask = flower_mask(through_jpeg(Image.fromarray(picture), 90, 2))
    assert mask[100:130, 180:220].mean() > 0.97
    assert not mask[145:155, 195:205].any()


def test_a_segmentation_without_background_or_without_a_flower_is_told_apart(root: Path) -> None:
    Image.new("L", SIZE, 200).save(root / "segmim" / "segmim_00001.jpg")
    Image.new("RGB", SIZE, (0, 0, 254)).save(root / "segmim" / "segmim_00002.jpg")
    source = opened(root)
    assert "no background of flat blue" in source.read("image_00001.jpg", ["flower"]).missing["flower"]
    assert not np.asarray(source.read("image_00002.jpg", ["flower"]).masks["flower"]).any()


def test_a_segmentation_that_is_missing_or_broken_is_a_missing_part(root: Path) -> None:
    (root / "segmim" / "segmim_00001.jpg").unlink()
    (root / "segmim" / "segmim_00002.jpg").write_bytes(b"no picture")
    source = opened(root)
    assert source.read("image_00001.jpg", ["flower"]).missing == {"flower": "not annotated"}
    assert "cannot be read" in source.read("image_00002.jpg", ["flower"]).missing["flower"]


def test_a_segmentation_without_its_image_and_a_gap_are_items_that_fail(tmp_path: Path) -> None:
    for number in (1, 2, 4):
        save(tmp_path, number, mask=False)
    save(tmp_path, 7, image=False)
    source = opened(tmp_path)
    assert list(source.keys()) == [f"image_{n:05d}.jpg" for n in (1, 2, 3, 4, 7)]
    for key in ("image_00003.jpg", "image_00007.jpg"):
        with pytest.raises(BrokenImageError, match=f"jpg/{key} is not there"):
            source.read(key, [])


def test_images_alone_are_enough_where_no_mask_is_asked_for(tmp_path: Path) -> None:
    save(tmp_path, 1, mask=False)
    source = opened(tmp_path)
    assert tuple(source.parts) == ()
    item = source.read("image_00001.jpg", [])
    assert (item.masks, item.missing, item.factors) == ({}, {}, {})
    with pytest.raises(InputError, match="no segmim in .*: unpack 102segmentations.tgz there"):
        check_regions(open_regions(("flower",), Path), source)


def test_an_unknown_part_and_a_key_that_is_not_listed_are_errors(root: Path) -> None:
    with pytest.raises(InputError, match="the one part flower"):
        opened(root).read("image_00001.jpg", ["../petal"])
    with pytest.raises(KeyError):
        opened(root).read("../jpg/image_00001.jpg", [])


def test_links_to_pictures_and_folders_elsewhere_are_followed(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    plain = opened(root).read("image_00003.jpg", ["flower"])
    (root / "jpg" / "image_00003.jpg").rename(outside / "a.jpg")
    (root / "jpg" / "image_00003.jpg").symlink_to(outside / "a.jpg")
    (root / "segmim").rename(outside / "moved")
    (root / "segmim").symlink_to(outside / "moved")
    linked = opened(root).read("image_00003.jpg", ["flower"])
    assert linked.picture.tobytes() == plain.picture.tobytes()
    assert np.array_equal(np.asarray(linked.masks["flower"]), np.asarray(plain.masks["flower"]))


@pytest.mark.parametrize("folder", ["jpg", "segmim"])
def test_another_layout_is_told_with_what_was_expected_and_found(tmp_path: Path, folder: str) -> None:
    expected = r"jpg/image_NNNNN\.jpg and, for masks, segmim/segmim_NNNNN\.jpg"
    with pytest.raises(InputError, match=f"holds nothing; expected .*{expected}"):
        opened(tmp_path)
    save(tmp_path, 1)
    for file in (tmp_path / folder).iterdir():
        file.rename(file.with_name("rose 1.jpg"))
    with pytest.raises(InputError, match=rf"{folder}, which holds rose 1\.jpg; expected .*{expected}"):
        opened(tmp_path)


def test_odd_names_are_no_items(root: Path) -> None:
    for name in ("image_4.jpg", "._image_00004.jpg", "image_000004.jpg", "image_٠٠٠٠٤.jpg", "image_00004.jpg~"):
        (root / "jpg" / name).write_bytes(b"")
    assert len(opened(root)) == 3


def test_a_split_without_its_list_or_without_images_is_an_error(root: Path) -> None:
    savemat(root / "setid.mat", {"trnid": np.array([[900]]), "tstid": np.zeros((1, 0))})
    for split, match in {"train": "no image of train", "test": "no image of test", "val": "no variable valid"}.items():
        with pytest.raises(InputError, match=match):
            opened(root, split=split)
    (root / "setid.mat").unlink()
    with pytest.raises(InputError, match=r"setid\.mat: found no such file"):
        opened(root, split="train")


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (np.array([[1.5, 2.0]]), "values that are not"),
        (np.array([[np.nan, 2.0]]), "values that are not"),
        (np.array([[0, 2]]), "values that are not"),
        (np.array([[1j, 2.0]]), "no array of real numbers"),
        (np.array([["a", 1]], dtype=object), "no array of real numbers"),
        ("text", "no array of real numbers"),
        ({"a": 1}, "no array of real numbers"),
    ],
)
def test_labels_that_are_no_categories_are_refused(root: Path, labels: object, match: str) -> None:
    savemat(root / "imagelabels.mat", {"labels": labels})
    with pytest.raises(InputError, match=rf"imagelabels\.mat: found .*{match}"):
        opened(root)


def test_a_file_that_would_fill_the_memory_is_refused_unread(root: Path) -> None:
    savemat(root / "imagelabels.mat", {"labels": np.ones((1, 10_000_000), dtype=np.uint8)}, do_compression=True)
    assert (root / "imagelabels.mat").stat().st_size < 100_000
    with pytest.raises(InputError, match="of more than 1,048,576 bytes"):
        opened(root)
    savemat(root / "imagelabels.mat", {"labels": np.ones((1, 100_000))})
    with pytest.raises(InputError, match="800,.* bytes"):
        opened(root)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), compressed=st.booleans())
def test_lists_cut_anywhere_are_an_error_or_read_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, compressed: bool
) -> None:
    root = tmp_path_factory.mktemp("cut")
    save(root, 1, mask=False)
    save_lists(root, compressed=compressed)
    whole = (root / "imagelabels.mat").read_bytes()
    (root / "imagelabels.mat").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        source = opened(root)
    except InputError as error:
        assert error.field == "dataset.path: imagelabels.mat"
    else:
        assert source.read("image_00001.jpg", []).factors == {"category": 77.0}
