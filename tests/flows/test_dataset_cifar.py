"""CIFAR-10: the binary version in a folder and in its tar.gz, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.datasets.cifar import BATCHES, META, RECORD, CifarDataset
from flows.datasets.contract import BrokenImageError, Source
from pipeline.errors import InputError
from tests.flows.dataset_files import PACKERS, in_folder, in_tar, opened

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FOLDER = "cifar-10-batches-bin"


def record(label: int, seed: int) -> bytes:
    planes = np.random.default_rng(seed).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    return bytes([label]) + planes.tobytes()


def batches(count: int = 4) -> dict[str, bytes]:
    """Every batch of the original, `count` records each, labels and pixels counted on."""
    every = [*BATCHES["train"], *BATCHES["test"]]
    each = {
        name: b"".join(record((count * at + i) % 10, count * at + i) for i in range(count))
        for at, name in enumerate(every)
    }
    return {META: "\n".join([*CLASSES, "", ""]).encode(), **each, "readme.html": b"<html>"}


def cifar(path: Path, **keys: object) -> Source:
    return opened(CifarDataset, "cifar10", path, **keys)


def packed(pack: str, path: Path, files: dict[str, bytes]) -> Path:
    return PACKERS[pack](path, {f"{FOLDER}/{name}": data for name, data in files.items()})


@pytest.mark.parametrize("pack", PACKERS)
def test_pictures_and_labels_are_those_of_the_records(tmp_path: Path, pack: str) -> None:
    source = cifar(packed(pack, tmp_path / "cifar", batches()))
    keys = list(source.keys())
    assert len(keys) == len(source) == 24
    assert keys[0] == "train/00000-airplane" and keys[19] == "train/00019-truck" and keys[20] == "test/00000-airplane"
    for seed, key in [*enumerate(keys), *reversed([*enumerate(keys)])]:
        planes = np.random.default_rng(seed).integers(0, 256, (3, 32, 32), dtype=np.uint8)
        item = source.read(key, ["wing"])
        assert np.array_equal(np.asarray(item.picture), planes.transpose(1, 2, 0))
        assert key.endswith(CLASSES[seed % 10]) and "no masks" in item.missing["wing"]
    assert (source.name, source.split, source.licence, source.redistributable) == ("cifar10", "all", None, False)


def test_the_first_1024_bytes_are_red_row_by_row(tmp_path: Path) -> None:
    red = bytes([6]) + bytes(range(32)) + bytes(992) + bytes(2048)
    source = cifar(in_folder(tmp_path / FOLDER, batches() | {"test_batch.bin": red}), split="test")
    assert list(source.keys()) == ["test/00000-frog"]
    picture = np.asarray(source.read("test/00000-frog", []).picture)
    assert picture[0, :, 0].tolist() == list(range(32)) and picture[1:].sum() == 0 and picture[..., 1:].sum() == 0


@pytest.mark.parametrize(("split", "count"), [("train", 20), ("test", 4)])
def test_one_split_needs_only_its_own_batches(tmp_path: Path, split: str, count: int) -> None:
    files = {name: data for name, data in batches().items() if name in (*BATCHES[split], META)}
    source = cifar(in_folder(tmp_path / FOLDER, files), split=split)
    assert len(source) == count and source.split == split


def test_the_archives_own_order_does_not_change_the_keys(tmp_path: Path) -> None:
    files = batches()
    shuffled = dict(sorted(files.items(), reverse=True))
    one, two = (cifar(in_tar(tmp_path / f"{i}.tar.gz", each)) for i, each in enumerate((files, shuffled)))
    assert list(one.keys()) == list(two.keys())
    assert all(
        one.read(key, []).picture.tobytes() == two.read(key, []).picture.tobytes() for key in list(one.keys())[::5]
    )


def test_the_python_version_is_refused_and_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    files = {
        f"cifar-10-batches-py/{name}": pickle.dumps(Trap()) for name in ("batches.meta", "data_batch_1", "test_batch")
    }
    for path in (in_folder(tmp_path / "py", files), in_tar(tmp_path / "cifar-10-python.tar.gz", files)):
        with pytest.raises(InputError, match=r"the Python version.*pickles.*cifar-10-binary\.tar\.gz"):
            cifar(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"batches.meta.mat": b"x", "data_batch_1.mat": b"x"}, "MATLAB version"),
        ({"train.bin": b"x", "test.bin": b"x", "fine_label_names.txt": b"x"}, "CIFAR-100"),
        ({}, "no files in"),
        ({"pictures.bin": b"x"}, r"pictures\.bin in"),
    ],
)
def test_other_versions_and_sets_are_told_with_the_name_of_the_binary_one(
    tmp_path: Path, files: dict[str, bytes], found: str
) -> None:
    (tmp_path / "cifar").mkdir()
    with pytest.raises(InputError, match=rf"{found}.*cifar-10-binary\.tar\.gz"):
        cifar(in_folder(tmp_path / "cifar", files))


@pytest.mark.parametrize("missing", [META, "data_batch_3.bin", "test_batch.bin"])
def test_a_missing_part_is_named(tmp_path: Path, missing: str) -> None:
    files = batches()
    del files[missing]
    with pytest.raises(InputError, match=f"no {missing} in"):
        cifar(in_folder(tmp_path / FOLDER, files))


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 4 * RECORD - 1))
def test_a_truncated_batch_is_told_unless_whole_records_are_left(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    files = batches()
    files["data_batch_2.bin"] = files["data_batch_2.bin"][:-cut]
    path = in_folder(tmp_path_factory.mktemp("c") / FOLDER, files)
    if cut % RECORD:
        with pytest.raises(InputError, match=r"data_batch_2\.bin of .*a multiple of 3,073"):
            cifar(path)
    else:
        assert len(cifar(path)) == 24 - cut // RECORD


def test_a_truncated_archive_is_told(tmp_path: Path) -> None:
    path = in_tar(tmp_path / "cifar-10-binary.tar.gz", batches())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="get it again"):
        cifar(path)


def test_a_batch_that_shrinks_after_it_was_listed_gives_broken_items(tmp_path: Path) -> None:
    path = in_folder(tmp_path / FOLDER, batches())
    source = cifar(path, split="test")
    (path / "test_batch.bin").write_bytes(b"")
    with pytest.raises(BrokenImageError, match="ends after"):
        source.read("test/00000-airplane", [])
    with pytest.raises(BrokenImageError, match="has no"):
        source.read("test/00000-frog", [])


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("test_batch.bin", record(10, 0), "label 10 in"),
        (META, b"airplane\nbird\n", "2 different names"),
        (META, b"same\n" * 10, "1 different names"),
        (META, b"\xff\xfe", "cannot be read"),
        (META, b"x" * 20_000, "cannot be read"),
    ],
)
def test_labels_that_make_no_sense_are_told(tmp_path: Path, name: str, data: bytes, found: str) -> None:
    with pytest.raises(InputError, match=found):
        cifar(in_folder(tmp_path / FOLDER, batches() | {name: data}))


def test_batches_without_a_record_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no picture in the batches"):
        cifar(in_folder(tmp_path / FOLDER, batches(0)))


def test_two_copies_in_one_folder_are_told(tmp_path: Path) -> None:
    files = {f"{top}/{name}": data for top in ("a", "b") for name, data in batches(1).items()}
    with pytest.raises(InputError, match="Name one of them"):
        cifar(in_folder(tmp_path / "both", files))
