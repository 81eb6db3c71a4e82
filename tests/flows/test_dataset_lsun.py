"""LSUN: databases in the original format and exported pictures, and every way in which either can be something else."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import lmdb
import numpy as np
import pytest

from flows.datasets.contract import BrokenImageError, Source
from flows.datasets.lsun import LsunDataset, original_name
from pipeline.errors import InputError
from tests.flows.dataset_files import PACKERS, encoded, in_folder, opened, pixels

NAME = "church_outdoor_train_lmdb"


def key_of(seed: int) -> str:
    return hashlib.sha1(str(seed).encode()).hexdigest()


def database(path: Path, entries: Mapping[bytes, bytes]) -> Path:
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=2**28) as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key, value)
    return path


def churches(path: Path, count: int = 5, form: str = "WEBP") -> Path:
    return database(path, {key_of(seed).encode(): encoded(seed, form, (48, 32)) for seed in range(count)})


def lsun(path: Path, **keys: object) -> Source:
    return opened(LsunDataset, "lsun", path, **keys)


def test_pictures_come_out_of_the_database_by_its_keys(tmp_path: Path) -> None:
    source = lsun(churches(tmp_path / NAME))
    assert list(source.keys()) == sorted(key_of(seed) for seed in range(5))
    assert len(source) == 5
    for seed in range(5):
        item = source.read(key_of(seed), ["door"])
        assert np.array_equal(np.asarray(item.picture.convert("RGB")), pixels(seed, (48, 32)))
        assert item.masks == {} and "no masks" in item.missing["door"]


def test_jpeg_values_are_read_as_webp_ones_are(tmp_path: Path) -> None:
    assert lsun(churches(tmp_path / NAME, 1, "JPEG")).read(key_of(0), []).picture.size == (48, 32)


def test_keys_beyond_one_batch_come_once_each_and_pictures_can_be_read_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.datasets.lsun._BATCH", 3)
    source = lsun(churches(tmp_path / NAME, 10))
    keys = [key for key in source.keys() if source.read(key, [])]  # noqa: SIM118
    assert keys == sorted(key_of(seed) for seed in range(10))


def test_the_database_is_neither_locked_nor_written(tmp_path: Path) -> None:
    path = churches(tmp_path / NAME)
    (path / "lock.mdb").unlink()
    (path / "data.mdb").chmod(0o444)
    before = (path / "data.mdb").read_bytes()
    source = lsun(path)
    assert all(source.read(key, []) for key in source.keys())  # noqa: SIM118
    assert [file.name for file in path.iterdir()] == ["data.mdb"]
    assert (path / "data.mdb").read_bytes() == before


def test_two_sources_of_one_database_can_be_read_side_by_side(tmp_path: Path) -> None:
    path = churches(tmp_path / NAME)
    one, two = lsun(path), lsun(path)
    for left, right in zip(one.keys(), two.keys(), strict=True):
        assert one.read(left, []).picture.tobytes() == two.read(right, []).picture.tobytes()


def test_the_data_file_may_be_named_instead_of_its_folder(tmp_path: Path) -> None:
    churches(tmp_path / NAME)
    source = LsunDataset.model_validate({"kind": "lsun", "path": f"{NAME}/data.mdb"}).open(lambda text: tmp_path / text)
    assert (source.name, source.split, len(source)) == ("lsun-church_outdoor", "train", 5)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("church_outdoor_train_lmdb", ("church_outdoor", "train")),
        ("bedroom_val_lmdb", ("bedroom", "val")),
        ("bedroom_val", ("bedroom", "val")),
        ("tower_train_lmdb.zip", ("tower", "train")),
        ("test_lmdb", (None, "test")),
        ("cat", ("cat", "all")),
        ("tv-monitor", ("tv-monitor", "all")),
        ("new_kitchen_train_lmdb", ("new_kitchen", "train")),
        ("my_train", (None, "all")),
        ("pictures", (None, "all")),
        ("train", (None, "all")),
    ],
)
def test_category_and_split_are_read_from_original_names_only(name: str, told: tuple[str | None, str]) -> None:
    assert original_name(name) == told


def test_no_licence_is_claimed_and_pictures_are_not_passed_on(tmp_path: Path) -> None:
    source = lsun(churches(tmp_path / NAME))
    assert source.licence is None and not source.redistributable
    own = lsun(tmp_path / NAME, name="my-churches", licence="by letter of 2026")
    assert (own.name, own.licence, own.redistributable) == ("my-churches", "by letter of 2026", False)


@pytest.mark.parametrize("lock", [True, False])
def test_an_lmdb_without_data_is_told(tmp_path: Path, lock: bool) -> None:
    path = churches(tmp_path / NAME)
    (path / "data.mdb").unlink()
    if not lock:
        (path / "lock.mdb").unlink()
    with pytest.raises(InputError, match="without data.mdb" if lock else "no files in"):
        lsun(path)


def test_an_lmdb_without_entries_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without a single entry"):
        lsun(database(tmp_path / NAME, {}))


@pytest.mark.parametrize("keep", [1, 63, 64, 4096, 8191, 8192, 12288, -4096, -1])
def test_a_truncated_database_is_told_instead_of_ending_the_process(tmp_path: Path, keep: int) -> None:
    path = churches(tmp_path / NAME)
    data = (path / "data.mdb").read_bytes()
    (path / "data.mdb").write_bytes(data[:keep])
    with pytest.raises(InputError, match="truncated|no lmdb"):
        lsun(path)


def test_a_database_cut_while_it_is_in_use_is_told(tmp_path: Path) -> None:
    path = churches(tmp_path / NAME)
    source = lsun(path)
    os.truncate(path / "data.mdb", 8192)
    with pytest.raises(InputError, match="truncated"):
        source.read(key_of(0), [])


@pytest.mark.parametrize(
    ("data", "found"), [(b"", "empty data.mdb"), (b"hello" * 9000, "no lmdb"), (bytes(65536), "no lmdb")]
)
def test_a_data_file_that_is_no_lmdb_is_told(tmp_path: Path, data: bytes, found: str) -> None:
    with pytest.raises(InputError, match=found):
        lsun(in_folder(tmp_path / NAME, {"data.mdb": data}))


@pytest.mark.parametrize("pack", ["zip", "tar"])
def test_a_packed_lmdb_is_to_be_unpacked(tmp_path: Path, pack: str) -> None:
    data = (churches(tmp_path / NAME) / "data.mdb").read_bytes()
    path = PACKERS[pack](tmp_path / f"{NAME}.zip", {f"{NAME}/data.mdb": data})
    with pytest.raises(InputError, match="Unpack it"):
        lsun(path)
    with pytest.raises(InputError, match="Unpack the zip"):
        lsun(in_folder(tmp_path / "downloads", {f"{NAME}.zip": path.read_bytes()}))


def test_a_folder_around_the_database_is_told_with_the_one_to_name(tmp_path: Path) -> None:
    churches(tmp_path / "lsun" / NAME)
    with pytest.raises(InputError, match=f"Name .*lsun/{NAME}"):
        lsun(tmp_path / "lsun")


@pytest.mark.parametrize("key", [b"\xff\xfe", b"\x00\x00\x00\x01", "é".encode(), b"k" * 300])
def test_keys_of_another_database_are_told(tmp_path: Path, key: bytes) -> None:
    with pytest.raises(InputError, match="LSUN's keys"):
        lsun(database(tmp_path / NAME, {key: b"x"}))


def test_a_broken_value_is_one_broken_item(tmp_path: Path) -> None:
    whole = encoded(0, "WEBP", (48, 32))
    source = lsun(database(tmp_path / NAME, {b"a": whole[:60], b"b": whole, b"c": b"", b"d": b"\x80\x04pickle"}))
    assert list(source.keys()) == ["a", "b", "c", "d"]
    assert source.read("b", []).picture.size == (48, 32)
    for key in "acd":
        with pytest.raises(BrokenImageError, match="image"):
            source.read(key, [])
    for key in ("nothing", "é"):
        with pytest.raises(BrokenImageError, match="no "):
            source.read(key, [])


def test_a_value_of_gigabytes_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.datasets.lsun.MAX_MEMBER", 100)
    source = lsun(churches(tmp_path / NAME, 1))
    with pytest.raises(BrokenImageError, match="more than 100"):
        source.read(key_of(0), [])


def test_verification_passes_a_whole_database_and_finds_damage_within(tmp_path: Path) -> None:
    path = churches(tmp_path / NAME, 8)
    assert len(lsun(path, verify=True)) == 8
    data = bytearray((path / "data.mdb").read_bytes())
    leaf = next(at for at in range(8192, len(data), 4096) if data[at + 10] == 2)
    data[leaf + 12 : leaf + 16] = b"\xff\x7f\xff\x7f"
    (path / "data.mdb").write_bytes(data)
    with pytest.raises(InputError, match="undamaged lmdb"):
        lsun(path, verify=True)


@pytest.mark.parametrize("pack", PACKERS)
def test_exported_pictures_are_read_from_their_nested_folders(tmp_path: Path, pack: str) -> None:
    files = {"/".join([*key_of(seed)[:6], f"{key_of(seed)}.webp"]): encoded(seed, "WEBP") for seed in range(4)}
    source = lsun(PACKERS[pack](tmp_path / "bedroom_val", files))
    assert set(source.keys()) == set(files) and len(source) == 4
    assert (source.name, source.split, source.redistributable) == ("lsun-bedroom", "val", False)
    for seed, key in enumerate(files):
        assert np.array_equal(np.asarray(source.read(key, []).picture.convert("RGB")), pixels(seed))


def test_jpeg_bytes_under_the_webp_name_of_the_authors_export_are_read(tmp_path: Path) -> None:
    source = lsun(in_folder(tmp_path / "out", {"0/a.webp": encoded(1, "JPEG")}))
    assert source.read("0/a.webp", []).picture.size == (12, 8)
    assert (source.name, source.split) == ("lsun", "all")


def test_a_folder_of_something_else_is_told_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"notes\.txt.*expected an LSUN lmdb"):
        lsun(in_folder(tmp_path / "lsun", {"notes.txt": b"x"}))
    with pytest.raises(InputError, match="nothing at"):
        lsun(tmp_path / "absent")


def test_lmdb_is_imported_only_by_those_who_open_a_database() -> None:
    code = "import sys, flows.datasets.lsun; sys.exit('lmdb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
