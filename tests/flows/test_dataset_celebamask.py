"""CelebAMask-HQ in its archive's own layout, small: whole, in part, and damaged."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from flows.datasets.celebamask import PARTS, CelebaMaskDataset, CelebaMaskSource, read_table
from flows.datasets.contract import BrokenImageError
from flows.regions import check_regions, open_regions
from pipeline.errors import InputError

FACE = ("skin", "nose", "l_eye", "r_eye", "mouth", "hair")


def face(seed: int, size: int = 64) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def part_mask(box: tuple[int, int, int, int], mode: str = "RGB", size: int = 32) -> Image.Image:
    mask = Image.new("L", (size, size), 0)
    mask.paste(255, box)
    return mask.convert(mode)


def save_mask(root: Path, number: int, part: str, mask: Image.Image) -> Path:
    file = root / "CelebAMask-HQ-mask-anno" / str(number // 2000) / f"{number:05d}_{part}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    mask.save(file)
    return file


def save_image(root: Path, number: int, size: int = 64) -> Path:
    file = root / "CelebA-HQ-img" / f"{number}.jpg"
    file.parent.mkdir(parents=True, exist_ok=True)
    face(number, size).save(file, quality=95)
    return file


def table(names: str, rows: Mapping[int, str], count: int | None = None) -> str:
    lines = [str(len(rows) if count is None else count), names, *(f"{n}.jpg  {row}" for n, row in rows.items())]
    return "\n".join(lines) + "\n"


def save_partition(root: Path, splits: Mapping[int, int], csv: bool = False) -> None:
    """Original files from 100 on: as in the data set, the index counts from 0 and the file's name from 1."""
    mapping = ["idx        orig_idx   orig_file"]
    mapping += [f"{n:<10d} {n + 99:<10d} {n + 100:06d}.jpg" for n in splits]
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(mapping) + "\n")
    lines = [f"{n + 100:06d}.jpg{',' if csv else ' '}{code}" for n, code in splits.items()]
    if csv:
        (root / "list_eval_partition.csv").write_text("\n".join(["image_id,partition", *lines]))
    else:
        (root / "list_eval_partition.txt").write_text("\n".join(lines))


def make(root: Path, numbers: Iterable[int] = range(4), parts: Iterable[str] = FACE) -> Path:
    for number in numbers:
        save_image(root, number)
        for place, part in enumerate(parts):
            save_mask(root, number, part, part_mask((place, place, place + 5, place + 7)))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make(tmp_path / "CelebAMask-HQ")


def opened(path: Path, **keys: object) -> CelebaMaskSource:
    source = CelebaMaskDataset.model_validate({"kind": "celebamask-hq", "path": "data", **keys}).open(lambda _: path)
    assert isinstance(source, CelebaMaskSource)
    return source


def test_the_18_parts_are_those_of_the_data_set() -> None:
    assert len(PARTS) == len(set(PARTS)) == 18
    assert {"eye_g", "ear_r", "neck_l", "u_lip", "l_lip", "cloth"} < set(PARTS)


def test_the_folder_and_the_one_above_it_are_the_same_data_set(root: Path) -> None:
    for path in (root, root.parent):
        source = opened(path)
        assert list(source.keys()) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
        assert (len(source), source.name, source.split, source.parts) == (4, "celebamask-hq", "all", PARTS)
    assert opened(root, name="faces").name == "faces"


def test_its_licence_is_told_and_its_pictures_are_not_published(root: Path) -> None:
    source = opened(root, licence="mit")
    assert source.licence is not None
    assert "non-commercial" in source.licence
    assert not source.redistributable


def test_keys_are_in_the_order_of_the_numbers_and_not_of_the_names(tmp_path: Path) -> None:
    make(tmp_path, [10, 9, 8, 7, 6, 11])
    assert list(opened(tmp_path).keys()) == [f"{n}.jpg" for n in range(6, 12)]


@pytest.mark.parametrize("size", [64, 32])  # in the data set 1024 and 512
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA"])
def test_masks_are_grey_of_their_own_size_and_white_inside(tmp_path: Path, size: int, mode: str) -> None:
    save_image(tmp_path, 0, size)
    save_mask(tmp_path, 0, "nose", part_mask((3, 4, 9, 12), mode))
    item = opened(tmp_path).read("0.jpg", ["nose"])
    inside = np.asarray(item.masks["nose"])
    assert item.picture.size == (size, size)
    assert inside.shape == (32, 32)
    expected = np.zeros((32, 32), dtype=np.uint8)
    expected[4:12, 3:9] = 255
    np.testing.assert_array_equal(inside, expected)


def test_only_parts_that_were_asked_for_are_read_and_a_missing_one_says_so(root: Path) -> None:
    save_mask(root, 1, "hat", part_mask((0, 0, 9, 9))).write_bytes(b"no picture")
    item = opened(root).read("1.jpg", ["l_eye", "eye_g", "hat"])
    assert set(item.masks) == {"l_eye"}
    assert item.missing["eye_g"] == "not annotated"
    assert "cannot be read" in item.missing["hat"]
    assert opened(root).read("1.jpg", []).masks == {}


def test_no_part_is_tied_to_a_side_of_the_picture(tmp_path: Path) -> None:
    boxes = {0: (20, 8, 28, 14), 1: (4, 8, 12, 14)}  # image 1 is mirrored together with its masks
    for number, box in boxes.items():
        save_image(tmp_path, number)
        save_mask(tmp_path, number, "l_eye", part_mask(box))
    source = opened(tmp_path)
    for number, (left, _, right, _) in boxes.items():
        inside = np.flatnonzero(np.asarray(source.read(f"{number}.jpg", ["l_eye"]).masks["l_eye"]).any(axis=0))
        assert (inside[0], inside[-1]) == (left, right - 1)


def test_masks_lie_two_thousand_images_to_a_folder(tmp_path: Path) -> None:
    make(tmp_path, [1999, 2000])
    assert {p.parent.name for p in tmp_path.rglob("*_nose.png")} == {"0", "1"}
    source = opened(tmp_path)
    assert all(source.read(key, ["nose"]).masks for key in source.keys())  # noqa: SIM118


def test_an_image_without_any_mask_is_told_from_one_without_this_part(root: Path) -> None:
    save_image(root, 4)
    item = opened(root).read("4.jpg", ["nose", "hair"])
    assert item.missing == dict.fromkeys(("nose", "hair"), "the image has no mask of any part")


def test_a_folder_of_masks_that_was_not_copied_is_named(root: Path) -> None:
    save_image(root, 4100)
    item = opened(root).read("4100.jpg", ["nose"])
    assert item.missing["nose"] == "CelebAMask-HQ-mask-anno/2 is not there: the data set was copied in part"


def test_masks_without_an_image_are_an_item_that_fails(root: Path) -> None:
    save_mask(root, 7, "nose", part_mask((0, 0, 9, 9)))
    source = opened(root)
    assert list(source.keys()) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "7.jpg"]
    with pytest.raises(BrokenImageError, match="CelebA-HQ-img/7.jpg is not there, though it has masks"):
        source.read("7.jpg", ["nose"])


def test_an_image_missing_in_the_middle_fails_and_a_selection_of_images_does_not(tmp_path: Path) -> None:
    for number in (0, 1, 3):
        save_image(tmp_path / "hole", number)
    for number in (5, 900, 20_000):
        save_image(tmp_path / "selection", number)
    source = opened(tmp_path / "hole")
    assert list(source.keys()) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    with pytest.raises(BrokenImageError, match="2.jpg is not there, though images before and after it are"):
        source.read("2.jpg", [])
    assert list(opened(tmp_path / "selection").keys()) == ["5.jpg", "900.jpg", "20000.jpg"]


def test_without_the_folder_of_masks_there_are_no_parts_and_asking_for_one_names_it(root: Path) -> None:
    shutil.rmtree(root / "CelebAMask-HQ-mask-anno")
    source = opened(root)
    assert source.parts == ()
    assert source.read("0.jpg", []).picture.size == (64, 64)
    with pytest.raises(InputError, match="no CelebAMask-HQ-mask-anno in .*: copy it there"):
        check_regions(open_regions(("nose",), Path), source)


@pytest.mark.parametrize("part", ["../../CelebA-HQ-img/0", "Nose", "eyes"])
def test_an_unknown_part_is_an_error_and_never_a_path(root: Path, part: str) -> None:
    with pytest.raises(InputError, match="one of the parts skin, nose"):
        opened(root).read("0.jpg", [part])


@pytest.mark.parametrize("key", ["9.jpg", "../CelebA-HQ-img/0.jpg", "00.jpg"])
def test_a_key_that_is_not_listed_is_no_item(root: Path, key: str) -> None:
    with pytest.raises(KeyError):
        opened(root).read(key, [])


def test_a_truncated_image_is_broken_and_the_others_are_not(root: Path) -> None:
    file = root / "CelebA-HQ-img" / "2.jpg"
    file.write_bytes(file.read_bytes()[:300])
    source = opened(root)
    with pytest.raises(BrokenImageError, match="cannot be read"):
        source.read("2.jpg", [])
    assert source.read("3.jpg", ["nose"]).masks


def test_an_image_that_went_away_since_it_was_listed_is_broken(root: Path) -> None:
    source = opened(root)
    (root / "CelebA-HQ-img" / "2.jpg").unlink()
    with pytest.raises(BrokenImageError, match="CelebA-HQ-img/2.jpg is not there"):
        source.read("2.jpg", [])


@pytest.mark.parametrize("inner", ["CelebA-HQ-img", "CelebAMask-HQ-mask-anno", "CelebA-HQ-img/0.jpg"])
def test_links_to_files_and_folders_elsewhere_are_followed(root: Path, inner: str) -> None:
    plain = opened(root).read("0.jpg", ["skin"]).picture.tobytes()
    (root / inner).rename(root.parent / "moved")
    (root / inner).symlink_to(root.parent / "moved")
    assert opened(root).read("0.jpg", ["skin"]).picture.tobytes() == plain


def test_a_link_to_nowhere_is_a_broken_image(root: Path) -> None:
    (root / "CelebA-HQ-img" / "4.jpg").symlink_to("nowhere.jpg")
    (root / "CelebA-HQ-img" / "5.jpg").symlink_to("5.jpg")
    source = opened(root)
    for key in ("4.jpg", "5.jpg"):
        with pytest.raises(BrokenImageError, match="is not there"):
            source.read(key, [])


def test_odd_names_are_no_items(root: Path) -> None:
    images, masks = root / "CelebA-HQ-img", root / "CelebAMask-HQ-mask-anno"
    for name in ("._0.jpg", "007.jpg", "0 (1).jpg", "-1.jpg", "٣.jpg", "4.jpg.part", "4.jpeg", "1e3.jpg", "4.jpg\n"):
        shutil.copy(images / "0.jpg", images / name)
    for name in ("0/4_nose.png", "0/00004_nosy.png", "0/00004_nose.png~", "1/00004_nose.png", "00004_nose.png"):
        (masks / name).parent.mkdir(exist_ok=True)
        shutil.copy(masks / "0" / "00000_nose.png", masks / name)
    assert list(opened(root).keys()) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


def test_another_layout_is_told_with_what_was_expected_and_found(tmp_path: Path) -> None:
    expected = r"CelebA-HQ-img/N\.jpg and, for masks, CelebAMask-HQ-mask-anno/K/NNNNN_part\.png"
    with pytest.raises(InputError, match=f"not a folder; expected .*{expected}"):
        opened(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"holds nothing; expected .*{expected}"):
        opened(tmp_path)
    (tmp_path / "CelebA-HQ-img").mkdir()
    with pytest.raises(InputError, match="CelebA-HQ-img, which holds nothing"):
        opened(tmp_path)
    for number in range(6):
        face(number).save(tmp_path / "CelebA-HQ-img" / f"{number:05d}.png")
    with pytest.raises(InputError, match=r"holds 00000\.png, 00001\.png, 00002\.png, 00003\.png and 2 more"):
        opened(tmp_path)


@pytest.mark.parametrize("file", ["00000_nose.png", "1/00000_nose.png", "0/0_nose.png", None])
def test_masks_in_another_layout_are_told(tmp_path: Path, file: str | None) -> None:
    save_image(tmp_path, 0)
    masks = tmp_path / "CelebAMask-HQ-mask-anno"
    masks.mkdir()
    if file:
        (masks / file).parent.mkdir(exist_ok=True)
        part_mask((0, 0, 5, 5)).save(masks / file)
    with pytest.raises(InputError, match="CelebAMask-HQ-mask-anno, which holds .*expected the layout"):
        opened(tmp_path)


def test_attributes_come_as_0_and_1_and_pose_in_degrees_by_the_number_of_the_image(root: Path) -> None:
    rows = {3: "1 -1", 0: "-1 1"}
    (root / "CelebAMask-HQ-attribute-anno.txt").write_text(table("Smiling 5_o_Clock_Shadow ", rows))
    (root / "CelebAMask-HQ-pose-anno.txt").write_text(table("Yaw Pitch Raw", {0: "1.02 -14.5 2.2375"}))
    source = opened(root)
    pose = {"yaw": 1.02, "pitch": -14.5, "roll": 2.2375}
    assert source.read("0.jpg", []).factors == {"Smiling": 0.0, "5_o_Clock_Shadow": 1.0, **pose}
    assert source.read("3.jpg", []).factors == {"Smiling": 1.0, "5_o_Clock_Shadow": 0.0}
    assert source.read("1.jpg", []).factors == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2\n",
        "Smiling Male\n0.jpg 1 1\n1.jpg 1 1\n",
        table("Smiling Male", {0: "1 1", 1: "1 1"}, count=30000),
        table("Smiling Male", {0: "1 1", 1: "1"}),
        table("Smiling Male", {0: "1 1", 1: "1 1 1"}),
        table("Smiling Male", {0: "1 x"}),
        table("Smiling Male", {0: "1 nan"}),
        table("Smiling Male", {0: "1 2"}),
        table("Smiling Male", {0: "1 0"}),
        table("Smiling Smiling", {0: "1 1"}),
        table("Smiling", {0: "1"}).replace("0.jpg", "../0.jpg"),
        "2\nSmiling\n0.jpg 1\n0.jpg -1\n",
    ],
)
def test_a_damaged_attribute_file_is_named(root: Path, text: str) -> None:
    (root / "CelebAMask-HQ-attribute-anno.txt").write_text(text)
    with pytest.raises(InputError, match="CelebAMask-HQ-attribute-anno.txt: found .*Copy it again"):
        opened(root)


def test_annotations_of_other_columns_or_that_are_no_text_are_refused(root: Path) -> None:
    pose = root / "CelebAMask-HQ-pose-anno.txt"
    pose.write_text(table("Yaw Pitch Height", {0: "1 2 3"}))
    with pytest.raises(InputError, match="header 'Yaw Pitch Height'"):
        opened(root)
    pose.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as text"):
        opened(root)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["Smiling", "Male", "Young"]), min_size=1, unique=True),
    st.dictionaries(st.integers(0, 99_999), st.lists(st.floats(-90, 90), min_size=3, max_size=3), max_size=5),
)
def test_a_table_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], rows: dict[int, list[float]]
) -> None:
    file = tmp_path_factory.mktemp("table") / "anno.txt"
    wanted = {number: dict(zip(names, values, strict=False)) for number, values in rows.items()}
    text = {number: " ".join(map(repr, row.values())) for number, row in wanted.items()}
    file.write_text(table(" ".join(names), text))
    read = read_table(file)
    assert {number: read.row(number) for number in rows} == wanted


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_table_cut_anywhere_is_an_error_or_loses_only_its_last_line_end(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("cut") / "anno.txt"
    text = table("Smiling Male", dict.fromkeys(range(3), "-1 -1"))
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    file.write_text(cut)
    if cut == text.rstrip("\n"):
        assert len(read_table(file).places) == 3
    else:
        with pytest.raises(InputError):
            read_table(file)


@pytest.mark.parametrize("csv", [False, True])
def test_a_split_is_celebas_by_the_name_of_the_original_file(root: Path, csv: bool) -> None:
    save_partition(root, {0: 0, 1: 1, 2: 2, 3: 0}, csv)
    assert {split: list(opened(root, split=split).keys()) for split in ("train", "val", "test")} == {
        "train": ["0.jpg", "3.jpg"],
        "val": ["1.jpg"],
        "test": ["2.jpg"],
    }
    assert opened(root, split="val").split == "val"
    assert len(opened(root)) == 4


def test_celebas_own_place_for_the_partition_and_the_given_folder_are_looked_in(root: Path) -> None:
    save_partition(root, {n: n % 2 for n in range(4)})
    for place in (root / "Eval", root.parent):
        place.mkdir(exist_ok=True)
        next(root.parent.rglob("list_eval_partition.txt")).rename(place / "list_eval_partition.txt")
        assert list(opened(root.parent, split="val").keys()) == ["1.jpg", "3.jpg"]


def test_a_split_that_nothing_tells_of_is_an_error_that_names_the_file(root: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.split: found test, and no list_eval_partition\.txt"):
        opened(root, split="test")
    save_partition(root, dict.fromkeys(range(4), 0))
    with pytest.raises(InputError, match="no image of test"):
        opened(root, split="test")
    (root / "CelebA-HQ-to-CelebA-mapping.txt").unlink()
    with pytest.raises(InputError, match=r"no CelebA-HQ-to-CelebA-mapping\.txt"):
        opened(root, split="test")
    with pytest.raises(ValidationError):
        opened(root, split="valid")


@pytest.mark.parametrize(
    ("name", "cut", "match"),
    [
        ("CelebA-HQ-to-CelebA-mapping.txt", 5, "mapping.txt: found no index, original index and file in line 5"),
        ("CelebA-HQ-to-CelebA-mapping.txt", 40, "mapping.txt: found nothing on image 3"),
        ("list_eval_partition.txt", 5, r"partition.txt: found no split of 000103\.jpg"),
    ],
)
def test_a_partition_that_was_cut_short_is_told(root: Path, name: str, cut: int, match: str) -> None:
    save_partition(root, dict.fromkeys(range(4), 0))
    text = (root / name).read_text().rstrip("\n")
    (root / name).write_text(text[:-cut] if cut < 40 else text[: text.rindex("\n")])
    with pytest.raises(InputError, match=match):
        opened(root, split="train")
