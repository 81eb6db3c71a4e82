"""WebDataset: samples of tar shards by offset, shards that are cut, packed or hostile, and names of every kind."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flows.datasets.webdataset
from flows.datasets.contract import BrokenImageError, Source
from flows.datasets.webdataset import WebDatasetDataset
from pipeline.errors import InputError
from tests.flows import tiny
from tests.flows.dataset_files import in_tar
from tests.flows.table_files import SIZE, mask, picture, shard


def source(root: Path, where: str = "shards", **keys: Any) -> Source:
    recipe = WebDatasetDataset.model_validate({"kind": "webdataset", "path": where, **keys})
    return recipe.open(lambda text: root / text)


def shown(item_source: Source, key: str) -> np.ndarray:
    return np.asarray(item_source.read(key, []).picture.convert("RGB"))


def truth(seed: int) -> np.ndarray:
    return np.asarray(tiny.photograph(seed, SIZE))


def plain(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return in_tar(path, files, "")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    shard(tmp_path / "shards" / "faces-000.tar", [0, 1, 2])
    shard(tmp_path / "shards" / "faces-001.tar", [3, 4])
    return tmp_path


def test_samples_have_picture_masks_factors_and_class(shards: Path) -> None:
    shard(shards / "shards" / "faces-001.tar", [3, 4], cls=b" 7\n")
    faces = source(shards)
    assert list(faces.keys()) == [f"faces-{seed // 3:03d}.tar/{seed:04d}" for seed in range(5)]
    assert (len(faces), faces.name, list(faces.parts)) == (5, "shards", ["eye", "mouth"])
    for seed, key in enumerate(faces.keys()):
        item = faces.read(key, ["mouth", "nose"])
        assert np.array_equal(np.asarray(item.picture), truth(seed))
        assert np.array_equal(np.asarray(item.masks["mouth"]), np.asarray(tiny.box(SIZE, tiny.BOXES["mouth"])))
        assert item.missing == {"nose": "no mask of nose"}
        assert item.factors == {"yaw": seed / 2, "smiling": 1.0, **({"cls": 7.0} if seed > 2 else {})}


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("shards", 5),
        ("shards/*.tar", 5),
        ("shards/faces-{000..001}.tar", 5),
        ("shards/faces-{000..000}.tar", 3),
        ("shards/faces-001.tar", 2),
        ("{1..2}/{00..01}.tar", 4),
    ],
)
def test_a_folder_a_pattern_a_range_and_one_shard_are_understood(shards: Path, where: str, count: int) -> None:
    for number in (1, 2):
        for inner in ("00", "01"):
            shard(shards / str(number) / f"{inner}.tar", [number])
    found = source(shards, where)
    assert len(found) == len(set(found.keys())) == count
    assert all(shown(found, key).shape == (20, 24, 3) for key in list(found.keys()))


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nothing", "nothing at"),
        ("nothing/*.tar", "no .tar file at"),
        ("shards/faces-{000..002}.tar", "no faces-002.tar in"),
        ("shards/faces-{002..001}.tar", "a range of 0 files"),
        ("empty", "no samples in nothing.tar"),
    ],
)
def test_shards_that_are_not_there_are_told(shards: Path, where: str, said: str) -> None:
    plain(shards / "empty" / "nothing.tar", {})
    with pytest.raises(InputError, match=said):
        source(shards, where)


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("name", ["a.tar.{}", "a.tar"])
def test_packed_shards_are_to_be_unpacked(tmp_path: Path, compression: str, name: str) -> None:
    name = name.format(compression)
    in_tar(tmp_path / name, {"a.png": picture(0)}, compression)
    with pytest.raises(InputError, match="packed with (gzip|bzip2|xz); .*Unpack it to a plain .tar"):
        source(tmp_path, name)


@pytest.mark.parametrize("data", [b"no tar" * 1000, b"\x89PNG" + bytes(1000)])
def test_a_file_that_is_no_tar_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(InputError, match="a.tar, which is no tar"):
        source(tmp_path, "a.tar")


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "webp", "PNG", "JPG"])
def test_the_picture_is_found_by_its_ending(tmp_path: Path, ending: str) -> None:
    data = picture(1)  # what a file holds is told by its content
    faces = source(plain(tmp_path / "a.tar", {f"k.{ending}": data, "k.txt": b"x", "readme": b"y"}).parent, "a.tar")
    assert list(faces.keys()) == ["a.tar/k"]
    assert np.array_equal(shown(faces, "a.tar/k"), truth(1))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"k.txt": b"x"}, "no pictures \\(txt\\)"),
        ({"k.jpg": b"", "k.png": b""}, "2 pictures \\(jpg, png\\)"),
        ({"k.jpg": b"\xff\xd8 cut"}, "k.jpg|cannot be read as an image"),
        ({"k.png": b""}, "cannot be read as an image"),
    ],
)
def test_a_sample_without_one_whole_picture_is_broken_alone(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    faces = source(plain(tmp_path / "a.tar", {**files, "whole.png": picture(0)}).parent, "a.tar")
    with pytest.raises(BrokenImageError, match=said):
        faces.read("a.tar/k", [])
    assert np.array_equal(shown(faces, "a.tar/whole"), truth(0))


def test_both_names_of_masks_are_read_and_two_of_one_part_are_none(tmp_path: Path) -> None:
    files = {"k.png": picture(0), "k.eye.png": mask("eye"), "k.mask_mouth.png": mask("mouth"), "k.nose.PNG": b"bad"}
    faces = source(plain(tmp_path / "a.tar", files).parent, "a.tar")
    assert faces.parts == ["eye", "mouth", "nose"]
    item = faces.read("a.tar/k", ["eye", "mouth", "nose"])
    assert set(item.masks) == {"eye", "mouth"} and "mask of nose: cannot be read" in item.missing["nose"]
    plain(tmp_path / "a.tar", {**files, "k.mask_eye.png": mask("mouth")})
    twice = source(tmp_path, "a.tar").read("a.tar/k", ["eye", "mouth"])
    assert set(twice.masks) == {"mouth"} and twice.missing == {"eye": "two masks of eye"}


@pytest.mark.parametrize(
    ("text", "factors"),
    [
        (b'{"a": 1, "b": -2.5, "c": true, "d": "x", "e": null, "f": [1]}', {"a": 1.0, "b": -2.5, "c": 1.0}),
        (b'{"a": NaN, "b": Infinity, "c": 1' + b"0" * 400 + b"}", {}),
        (b"[1, 2]", {}),
        (b"3", {}),
    ],
)
def test_finite_numbers_are_factors_and_nothing_else_is(tmp_path: Path, text: bytes, factors: dict[str, float]) -> None:
    files = {"k.json": text, "k.png": picture(0), "k.cls": b"cat"}
    assert source(plain(tmp_path / "a.tar", files).parent, "a.tar").read("a.tar/k", []).factors == factors


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
def test_numbers_that_cannot_be_read_break_their_sample(tmp_path: Path, text: bytes) -> None:
    faces = source(plain(tmp_path / "a.tar", {"k.png": picture(0), "k.json": text}).parent, "a.tar")
    with pytest.raises(BrokenImageError, match="k.json cannot be read"):
        faces.read("a.tar/k", [])


def test_folders_and_odd_names_are_part_of_keys(tmp_path: Path) -> None:
    names = ["a/b.c/k", "ü k", "k\nl", "x" * 300, "y" + "x" * 300]
    faces = source(
        plain(tmp_path / "a.tar", {f"{name}.png": picture(seed) for seed, name in enumerate(names)}).parent, "a.tar"
    )
    keys = list(faces.keys())
    assert keys[:3] == ["a.tar/a/b.c/k", "a.tar/ü k", "a.tar/k\\u000al"]
    assert len(set(keys)) == 5 and all(len(key) <= 200 and key.isprintable() for key in keys)
    assert all(np.array_equal(shown(faces, key), truth(seed)) for seed, key in enumerate(keys))


def test_one_key_in_two_shards_is_two_samples(tmp_path: Path) -> None:
    for number in range(2):
        shard(tmp_path / "shards" / f"{number}.tar", [7])
    assert list(source(tmp_path).keys()) == ["0.tar/0007", "1.tar/0007"]


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b"") -> tuple[Any, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(data)
    return info, data


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("../k.png", tarfile.REGTYPE, "leads out"),
        ("/k.png", tarfile.REGTYPE, "leads out"),
        ("a\\..\\k.png", tarfile.REGTYPE, "leads out"),
        ("C:k.png", tarfile.REGTYPE, "leads out"),
        ("k.png", tarfile.SYMTYPE, "a link"),
        ("k.png", tarfile.LNKTYPE, "a link"),
        ("k.png", tarfile.FIFOTYPE, "no plain file"),
        ("good.png", tarfile.REGTYPE, "there twice"),
    ],
)
def test_hostile_members_are_refused_before_anything_is_read(tmp_path: Path, name: str, kind: bytes, said: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for info, data in (member("good.png", data=picture(0)), member(name, kind, "/etc/passwd")):
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(InputError, match=said):
        source(tmp_path, "a.tar")


def test_a_member_of_gigabytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tarfile.TarInfo("k.png")
    info.size = 2**40
    (tmp_path / "a.tar").write_bytes(info.tobuf() + bytes(4096))
    with pytest.raises(BrokenImageError, match="is cut here"):
        source(tmp_path, "a.tar").read("a.tar/k", [])
    plain(tmp_path / "b.tar", {"k.png": picture(0), "k.json": b"{" + b" " * 200 + b"}"})
    monkeypatch.setattr(flows.datasets.webdataset, "MAX_TEXT", 100)
    with pytest.raises(BrokenImageError, match="more than 100"):
        source(tmp_path, "b.tar").read("b.tar/k", [])


def test_of_a_cut_shard_all_samples_but_the_last_are_read(shards: Path) -> None:
    path = shards / "shards" / "faces-000.tar"
    data = path.read_bytes()
    starts = [data.index(f"{seed:04d}.png".encode()) for seed in range(3)]
    for end in (starts[2] + 600, starts[2] + 512, starts[2] + 100 + len(picture(2)), len(data.rstrip(b"\0"))):
        path.write_bytes(data[:end])
        faces = source(shards)
        assert [key for key in list(faces.keys()) if "000.tar" in key] == [
            f"faces-000.tar/{seed:04d}" for seed in range(3)
        ]
        for seed in (0, 1, 3, 4):
            assert np.array_equal(shown(faces, f"faces-{seed // 3:03d}.tar/{seed:04d}"), truth(seed))
        with pytest.raises(BrokenImageError, match=r"faces-000.tar is cut here .*some of it may be missing"):
            faces.read("faces-000.tar/0002", [])
    path.write_bytes(data[: starts[2]])
    assert len(source(shards)) == 4
    with pytest.raises(BrokenImageError, match="is cut here"):
        source(shards).read("faces-000.tar/0001", [])


@pytest.mark.parametrize("keep", [0, 1, 511])
def test_a_shard_of_which_nothing_is_left_is_one_broken_item_among_others(shards: Path, keep: int) -> None:
    path = shards / "shards" / "faces-000.tar"
    path.write_bytes(path.read_bytes()[:keep])
    faces = source(shards)
    assert list(faces.keys()) == ["faces-000.tar", "faces-001.tar/0003", "faces-001.tar/0004"]
    with pytest.raises(BrokenImageError, match="faces-000.tar is cut here"):
        faces.read("faces-000.tar", [])
    with pytest.raises(InputError, match="no samples"):
        source(shards, "shards/faces-000.tar")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damage_anywhere_is_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = random.Random(seed)
    path = shard(tmp_path_factory.getbasetemp() / "damaged.tar", [0, 1])
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data[: rng.randrange(len(data))])
    try:
        faces = source(path.parent, path.name)
        for key in list(faces.keys()):
            faces.read(key, ["eye"])
    except (InputError, BrokenImageError):
        pass


def test_any_order_of_reading_gives_the_same_samples_with_few_files_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(7):
        shard(tmp_path / "shards" / f"{number}.tar", [2 * number, 2 * number + 1])
    faces = source(tmp_path)
    keys = list(faces.keys())
    for seed in random.Random(0).sample(range(14), 14):
        assert np.array_equal(shown(faces, keys[seed]), truth(seed))
        assert len(faces._open) <= flows.datasets.webdataset.OPEN_SHARDS  # type: ignore[attr-defined]
    listed: list[Path] = []
    real = flows.datasets.webdataset._Shard.__init__

    def spy(self: Any, path: Path) -> None:
        listed.append(path)
        real(self, path)

    monkeypatch.setattr(flows.datasets.webdataset._Shard, "__init__", spy)
    for key in keys:
        shown(faces, key)
    assert len(listed) <= 7


def test_a_shard_that_was_replaced_breaks_the_samples_that_are_gone(shards: Path) -> None:
    faces = source(shards)
    faces.close()  # type: ignore[attr-defined]
    shard(shards / "shards" / "faces-001.tar", [3])
    assert np.array_equal(shown(faces, "faces-001.tar/0003"), truth(3))
    with pytest.raises(BrokenImageError, match="has changed: 0004 is not there"):
        faces.read("faces-001.tar/0004", [])
    with pytest.raises(BrokenImageError, match="shards has no 0009"):
        faces.read("0009", [])


def test_nothing_is_written_beside_the_shards(shards: Path) -> None:
    before = sorted(shards.rglob("*"))
    faces = source(shards, name="own", licence="CC0")
    assert (faces.name, faces.licence) == ("own", "CC0")
    assert json.dumps([len(shown(faces, key)) for key in list(faces.keys())]) == "[20, 20, 20, 20, 20]"
    assert sorted(shards.rglob("*")) == before
