"""Data sets of the Hugging Face library, from folders of every kind, whole and streamed; and from a Hub on loopback."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import flows.datasets.huggingface
from flows.datasets.contract import BrokenImageError, Source
from flows.datasets.huggingface import HuggingFaceDataset
from pipeline.errors import InputError
from tests.flows import tiny
from tests.flows.table_files import SIZE, parquet, picture, rows

PICTURE = datasets.Image()
FEATURES = {"image": PICTURE, "eye": PICTURE, "mouth": PICTURE, "map": PICTURE, "id": datasets.Value("string")}
MASKS = {"eye": "eye", "mouth": "mouth"}
BOTH = pytest.mark.parametrize("streaming", [False, True])


@pytest.fixture(autouse=True)
def library(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of one's own, and no network."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", cache / "downloads")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "hub"))


def table(count: int = 3, **changes: Any) -> datasets.Dataset:
    features = {**FEATURES, **{name: datasets.Value("int64") for name in changes}}
    return datasets.Dataset.from_list(rows(count, **changes), features=datasets.Features(features))


def folder(path: Path, count: int = 3, split: str = "train", **changes: Any) -> Path:
    """A folder of Parquet as the library writes it."""
    (path / "data").mkdir(parents=True, exist_ok=True)
    table(count, **changes).to_parquet(path / "data" / f"{split}-00000-of-00001.parquet")
    return path


def source(path: Path, **keys: Any) -> Source:
    given = {"mask_columns": MASKS, "label_column": "map", **keys}
    recipe = HuggingFaceDataset.model_validate({"kind": "huggingface", "path": path.name, **given})
    return recipe.open(lambda text: path.parent / text)


def bare(path: Path, **keys: Any) -> Source:
    return source(path, **{"mask_columns": {}, "label_column": None, **keys})


def shown(item_source: Source, key: str) -> np.ndarray:
    return np.asarray(item_source.read(key, []).picture.convert("RGB"))


def truth(seed: int) -> np.ndarray:
    return np.asarray(tiny.photograph(seed, SIZE))


def check(faces: Source, count: int = 3) -> None:
    for seed, key in enumerate(faces.keys()):
        item = faces.read(key, ["eye", "nose"])
        assert np.array_equal(np.asarray(item.picture), truth(seed))
        assert np.array_equal(np.asarray(item.masks["eye"]), np.asarray(tiny.box(SIZE, tiny.BOXES["eye"])))
        assert item.labels is not None and set(np.unique(item.labels)) == {1, 2}
        assert item.missing == {"nose": "no mask of nose"}
    assert seed + 1 == count


@BOTH
def test_a_folder_of_parquet_is_read_whole_and_streamed_without_a_network(tmp_path: Path, streaming: bool) -> None:
    faces = source(folder(tmp_path / "faces"), streaming=streaming, labels={"left": 1})
    assert (faces.name, faces.split, list(faces.parts)) == ("faces", "train", ["eye", "mouth"])
    assert (dict(faces.labels), dict(faces.origin), faces.licence) == ({"left": 1}, {}, None)
    assert list(faces.keys()) == ["0", "1", "2"]
    check(faces)


@BOTH
@pytest.mark.parametrize("several", [False, True])
def test_what_save_to_disk_wrote_is_read(tmp_path: Path, streaming: bool, several: bool) -> None:
    saved = datasets.DatasetDict({"train": table(2), "test": table(3)}) if several else table(3)
    saved.save_to_disk(tmp_path / "saved")
    faces = source(tmp_path / "saved", streaming=streaming, **({"split": "test"} if several else {}))
    assert faces.split == ("test" if several else "all")
    check(faces)
    if several:
        for split in (None, "val"):
            with pytest.raises(InputError, match="dataset.split: .*one of train, test"):
                source(tmp_path / "saved", streaming=streaming, split=split)
    with pytest.raises(InputError, match="dataset.config"):
        source(tmp_path / "saved", streaming=streaming, config="other")


@BOTH
def test_a_saved_data_set_has_its_own_split_and_no_other(tmp_path: Path, streaming: bool) -> None:
    table(2).save_to_disk(tmp_path / "saved")
    assert source(tmp_path / "saved", streaming=streaming, split="all").split == "all"
    with pytest.raises(InputError, match="dataset.split: found tst; expected all or none"):
        source(tmp_path / "saved", streaming=streaming, split="tst")


@BOTH
def test_a_saved_data_set_may_not_name_files_elsewhere(tmp_path: Path, streaming: bool) -> None:
    table(1).save_to_disk(tmp_path / "other")
    for name in ("../other/data-00000-of-00001.arrow", "/etc/hostname", ".."):
        shutil.rmtree(tmp_path / "saved", ignore_errors=True)
        table(1).save_to_disk(tmp_path / "saved")
        state = json.loads((tmp_path / "saved" / "state.json").read_text())
        state["_data_files"] = [{"filename": name}]
        (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
        with pytest.raises(InputError, match="expected files in its folder"):
            source(tmp_path / "saved", streaming=streaming)
    (tmp_path / "saved" / "state.json").write_text("[]")
    with pytest.raises(InputError, match="state.json that cannot be read"):
        source(tmp_path / "saved", streaming=streaming)


@BOTH
def test_a_truncated_arrow_file_is_told(tmp_path: Path, streaming: bool) -> None:
    table(3).save_to_disk(tmp_path / "saved")
    file = tmp_path / "saved" / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="saved .*expected a data set that the Hugging Face library can read"):
        source(tmp_path / "saved", streaming=streaming)


@BOTH
def test_a_damaged_parquet_file_is_told(tmp_path: Path, streaming: bool) -> None:
    file = folder(tmp_path / "faces") / "data" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match="faces .*expected a data set that the Hugging Face library can read"):
        source(tmp_path / "faces", streaming=streaming)


@BOTH
def test_a_card_may_name_its_licence_and_what_to_cite_and_no_files_elsewhere(tmp_path: Path, streaming: bool) -> None:
    card = folder(tmp_path / "faces") / "README.md"
    card.write_text("---\nlicense: cc-by-4.0\n---\nFaces.\n")
    assert source(tmp_path / "faces", streaming=streaming, licence="mine").licence == "cc-by-4.0"
    card.write_text("---\nlicense: [mit, cc0-1.0]\n---\n```bibtex\n@misc{faces}\n```\n")
    found = source(tmp_path / "faces", streaming=streaming)
    assert (found.licence, found.citation) == ("mit, cc0-1.0", "@misc{faces}")
    folder(tmp_path / "other")
    for elsewhere in ("../other/data/*.parquet", str(tmp_path / "other" / "data" / "*.parquet")):
        card.write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {elsewhere}\n---\n")
        with pytest.raises(InputError, match="expected files of its own"):
            source(tmp_path / "faces", streaming=streaming)


@BOTH
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, streaming: bool) -> None:
    other = folder(tmp_path / "other") / "data" / "train-00000-of-00001.parquet"
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "train.parquet").symlink_to(other)
    with pytest.raises(InputError, match="expected files of its own"):
        source(tmp_path / "faces", streaming=streaming)


@BOTH
def test_loading_scripts_are_refused_and_never_run(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "faces.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="scripts are no longer supported"):
        source(tmp_path / "faces", streaming=streaming)
    assert not (tmp_path / "ran").exists()


@BOTH
def test_folders_of_pictures_and_their_zips_are_read(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "faces").mkdir()
    for seed in range(3):
        (tmp_path / "faces" / f"{seed}.png").write_bytes(picture(seed))
    shutil.make_archive(str(tmp_path / "zipped" / "all"), "zip", tmp_path / "faces")
    for name in ("faces", "zipped"):
        faces = bare(tmp_path / name, streaming=streaming)
        assert all(np.array_equal(shown(faces, key), truth(seed)) for seed, key in enumerate(faces.keys()))


@BOTH
def test_a_row_may_not_name_a_picture_elsewhere(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "secret.png").write_bytes(picture(0))
    shutil.make_archive(str(tmp_path / "secret"), "zip", tmp_path, "secret.png")
    paths = [str(tmp_path / "secret.png"), "../secret.png", f"zip://secret.png::{tmp_path}/secret.zip",
             "https://127.0.0.1:9/a.png", "hf://datasets/a/b/c.png", "file:///etc/hostname", "own.png"]  # fmt: skip
    features = datasets.Features({"image": PICTURE})
    datasets.Dataset.from_list([{"image": rows(1)[0]["image"]}], features=features).save_to_disk(tmp_path / "f")
    content = pa.Table.from_pylist([{"image": {"bytes": None, "path": path}} for path in paths], features.arrow_schema)
    with pa.ipc.new_stream(tmp_path / "f" / "data-00000-of-00001.arrow", content.schema) as file:
        file.write_table(content)
    (tmp_path / "f" / "own.png").write_bytes(picture(3))
    faces = bare(tmp_path / "f", streaming=streaming)
    for key in list(faces.keys())[:-1]:
        with pytest.raises(BrokenImageError, match="leads out"):
            faces.read(key, [])
    assert np.array_equal(shown(faces, "6"), truth(3))


@BOTH
def test_null_and_broken_pictures_are_broken_items_alone(tmp_path: Path, streaming: bool) -> None:
    content = [*rows(2), {**rows(1)[0], "image": None}, {**rows(1)[0], "image": {"bytes": b"x", "path": None}}]
    saved = datasets.Dataset.from_list(content, features=datasets.Features(FEATURES))
    saved.save_to_disk(tmp_path / "faces")
    faces = source(tmp_path / "faces", streaming=streaming)
    with pytest.raises(BrokenImageError, match="has no"):
        faces.read("", [])
    keys = iter(faces.keys())
    assert [np.array_equal(shown(faces, next(keys)), truth(seed)) for seed in range(2)] == [True, True]
    for said in ("nothing in the column image", "cannot be read as an image"):
        with pytest.raises(BrokenImageError, match=said):
            faces.read(next(keys), [])


@BOTH
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"image_column": "imge"}, r"found imge; expected .*image, eye, mouth, map, id.*Did you mean 'image'"),
        ({"mask_columns": {}, "label_column": None}, r"4 columns of pictures in faces, image, eye, mouth, map"),
        ({"mask_columns": {"eye": "number"}}, r"dataset.mask_columns.eye: found number in faces, of the type int64"),
        ({"key_column": "eye"}, r"dataset.key_column: found eye in faces"),
        ({"split": "val"}, r"val"),
        ({"config": "large"}, r"large"),
        ({"revision": "main"}, r"dataset.revision: found main for the folder"),
    ],
)
def test_what_a_recipe_asks_for_in_vain_is_told(
    tmp_path: Path, streaming: bool, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        source(folder(tmp_path / "faces", number=1), streaming=streaming, **keys)


@BOTH
def test_one_of_several_splits_has_to_be_named(tmp_path: Path, streaming: bool) -> None:
    folder(folder(tmp_path / "faces", 2), 3, "test")
    with pytest.raises(InputError, match="dataset.split: found none; expected one of train, test"):
        source(tmp_path / "faces", streaming=streaming)
    check(source(tmp_path / "faces", streaming=streaming, split="test"))


def test_a_part_of_a_split_can_be_named_where_it_is_not_streamed(tmp_path: Path) -> None:
    faces = source(folder(tmp_path / "faces"), split="train[1:]")
    assert (len(faces), faces.split) == (2, "train[1:]")
    assert np.array_equal(shown(faces, "0"), truth(1))


@BOTH
def test_an_empty_split_is_told(tmp_path: Path, streaming: bool) -> None:
    table(1).select([]).save_to_disk(tmp_path / "saved")
    (tmp_path / "faces").mkdir()
    table(1).select([]).to_parquet(tmp_path / "faces" / "train.parquet")
    for name in ("saved", "faces"):
        with pytest.raises(InputError, match="dataset.split: .*without a single row"):
            source(tmp_path / name, streaming=streaming)


def test_keys_twice_are_told_and_followed_by_their_row_in_a_stream(tmp_path: Path) -> None:
    names = ["a", "b~5", "a", None, "a~2", "b~5", "b", "b"]
    content = [{**row, "id": name} for row, name in zip(rows(8), names, strict=True)]
    datasets.Dataset.from_list(content, features=datasets.Features(FEATURES)).save_to_disk(tmp_path / "faces")
    with pytest.raises(InputError, match="'a' in rows 0 and 2 of id"):
        source(tmp_path / "faces", key_column="id")
    stream = source(tmp_path / "faces", key_column="id", streaming=True)
    assert list(stream.keys()) == ["a", "b~5", "a~2", "~3", "a~2~4", "b~5~5", "b", "b~7"]
    check(stream, 8)


def test_keys_of_a_key_column_lead_to_their_rows_in_any_order(tmp_path: Path) -> None:
    for streaming in (False, True):
        faces = source(folder(tmp_path / "faces"), key_column="id", streaming=streaming)
        assert list(faces.keys()) == ["face-0", "face-1", "face-2"]
        for seed in (2, 0, 1):
            assert np.array_equal(shown(faces, f"face-{seed}"), truth(seed))
        for key in ("face-3", "0", ""):
            with pytest.raises(BrokenImageError, match="has no"):
                faces.read(key, [])


def test_only_a_stream_does_not_know_its_length_and_reads_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(source(folder(tmp_path / "faces"))) == 3
    stream = source(tmp_path / "faces", streaming=True)
    with pytest.raises(TypeError, match="not known"):
        len(stream)
    starts: list[int] = []
    real = datasets.IterableDataset.__iter__

    def spy(self: datasets.IterableDataset) -> Any:
        starts.append(1)
        return real(self)

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", spy)
    check(stream)
    check(stream)
    assert len(starts) == 2


def test_a_stream_that_breaks_says_that_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = source(folder(tmp_path / "faces"), streaming=True)
    first = next(iter(datasets.load_dataset("parquet", data_dir=str(tmp_path / "faces" / "data"), split="train")))

    def breaks(self: datasets.IterableDataset) -> Any:
        yield {"image": {"bytes": picture(0), "path": None}, **dict.fromkeys(first.keys() - {"image"})}
        raise ConnectionError("https://user:hf_secretsecret@hub/x?X-Amz-Signature=abc ended")

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", breaks)
    keys = stream.keys()
    assert np.array_equal(shown(stream, next(keys)), truth(0))
    with pytest.raises(InputError, match=r"ConnectionError: .*Run it again: what was mined before is kept") as raised:
        next(keys)
    assert "secret" not in str(raised.value) and "abc" not in str(raised.value)


@BOTH
def test_a_column_without_the_librarys_features_is_read_by_its_name(tmp_path: Path, streaming: bool) -> None:
    parquet(tmp_path / "faces" / "a.parquet", [{"image": picture(seed), "n": seed} for seed in range(2)])
    faces = bare(tmp_path / "faces", streaming=streaming)
    assert all(np.array_equal(shown(faces, key), truth(seed)) for seed, key in enumerate(faces.keys()))


@BOTH
def test_paths_in_json_lines_are_read_within_the_folder(tmp_path: Path, streaming: bool) -> None:
    lines = [{"file": "own/0.png", "n": 0}, {"file": "../0.png", "n": 1}, {"n": 2}]
    (tmp_path / "faces" / "own").mkdir(parents=True)
    for place in ("0.png", "faces/own/0.png"):
        (tmp_path / place).write_bytes(picture(0))
    (tmp_path / "faces" / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "faces" / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: rows.jsonl\n---\n")
    faces = bare(tmp_path / "faces", streaming=streaming, image_column="file")
    assert np.array_equal(shown(faces, "0"), truth(0))
    for key, said in (("1", "leads out"), ("2", "nothing in the column file")):
        with pytest.raises(BrokenImageError, match=said):
            faces.read(key, [])


@BOTH
def test_exif_turned_and_palette_pictures_are_decoded_here(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "faces").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    tiny.photograph(0, (30, 10)).save(tmp_path / "faces" / "a.png", exif=exif)
    faces = bare(tmp_path / "faces", streaming=streaming)
    assert faces.read(next(faces.keys()), []).picture.size == (10, 30)


@pytest.mark.parametrize("path", ["owner/name", "no/such/thing", "faces", "hf_secretsecret", "../x/y", "json", "a b/c"])
def test_what_is_neither_a_folder_nor_in_reach_is_told_without_secrets(tmp_path: Path, path: str) -> None:
    recipe = HuggingFaceDataset.model_validate({"kind": "huggingface", "path": path, "streaming": True})
    with pytest.raises(InputError, match="expected a (folder, or a Hub id|data set that)") as raised:
        recipe.open(lambda text: tmp_path / text)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("revision", ["../../x", "a b", "hf_secretsecret?"])
def test_a_revision_that_cannot_be_one_is_told(tmp_path: Path, revision: str) -> None:
    recipe = HuggingFaceDataset.model_validate({"kind": "huggingface", "path": "owner/name", "revision": revision})
    with pytest.raises(InputError, match="dataset.revision") as raised:
        recipe.open(lambda text: tmp_path / text)
    assert "secret" not in str(raised.value)


def test_a_single_file_is_told_its_own_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Say `kind: parquet`"):
        bare(parquet(tmp_path / "a.parquet", rows(1)))


@pytest.mark.parametrize("keyed", [False, True])
def test_a_stream_that_is_read_forwards_with_steps_back_reads_every_row_once(
    keyed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"streaming": True, **({"key_column": "id"} if keyed else {})}
    stream = source(folder(tmp_path / "faces", 24), **asked)
    rows_read = counting_rows(monkeypatch)
    keys = []
    for number, key in enumerate(stream.keys()):  # as a coordinator lists, and its own desk reads after it
        keys.append(key)
        if number % 4 == 3:
            assert all(np.array_equal(shown(stream, one), truth(int(one.split("-")[-1]))) for one in keys[-4:])
    assert len(rows_read) == 24
    worker = source(tmp_path / "faces", **asked)
    rows_read.clear()
    for first in (4, 0, 12, 8, 16):  # as works come to one of several
        assert all(
            np.array_equal(shown(worker, key), truth(first + n)) for n, key in enumerate(keys[first : first + 4])
        )
    assert len(rows_read) == 20


def test_a_stream_starts_again_only_for_a_row_further_back_than_those_it_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.datasets.huggingface, "_KEPT", 4)
    stream = source(folder(tmp_path / "faces", 12), streaming=True)
    rows_read = counting_rows(monkeypatch)
    for key, total in (("9", 10), ("6", 10), ("5", 16), ("5", 16), ("11", 22)):
        assert np.array_equal(shown(stream, key), truth(int(key)))
        assert len(rows_read) == total
    for key in ("12", "x"):
        with pytest.raises(BrokenImageError, match="has no"):
            stream.read(key, [])
    assert len(rows_read) == 22


def test_a_stream_keeps_no_more_of_large_rows_than_a_chunk_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.datasets.huggingface, "_KEPT_BYTES", 1)
    stream = source(folder(tmp_path / "faces", 24), streaming=True)
    rows_read = counting_rows(monkeypatch)
    shown(stream, "23")
    shown(stream, "8")
    assert len(rows_read) == 24
    shown(stream, "7")
    assert len(rows_read) == 32


def test_a_stream_that_broke_or_was_broken_off_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = source(folder(tmp_path / "faces", 6), streaming=True)
    shown(stream, "1")
    real = datasets.IterableDataset.__iter__

    def breaks(self: datasets.IterableDataset) -> Any:
        yield from itertools.islice(real(self), 3)
        raise ConnectionError("ended")

    stream.reset()
    with monkeypatch.context() as patch:
        patch.setattr(datasets.IterableDataset, "__iter__", breaks)
        with pytest.raises(InputError, match="Run it again"):
            stream.read("4", [])
    assert np.array_equal(shown(stream, "4"), truth(4))


def counting_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every row that a stream gives."""
    found: list[int] = []
    real = datasets.IterableDataset.__iter__

    def counted(self: datasets.IterableDataset) -> Any:
        for row in real(self):
            found.append(1)
            yield row

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", counted)
    return found
