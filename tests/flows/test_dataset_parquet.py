"""Parquet: pictures in every type of column, files that are damaged or not alike, and what is read of them."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import flows.datasets.parquet
from flows.datasets.contract import BrokenImageError, Source
from flows.datasets.parquet import ParquetDataset
from flows.recipe import parse_recipe
from pipeline.errors import InputError
from tests.flows import tiny
from tests.flows.dataset_files import opened
from tests.flows.table_files import SIZE, hub_features, labels, mask, parquet, picture, rows

MASKS = {"eye": "eye", "mouth": "mouth"}
COLUMNS: dict[str, Any] = {"image_column": "image", "mask_columns": MASKS, "label_column": "map"}


def source(path: Path, **keys: Any) -> Source:
    return opened(ParquetDataset, "parquet", path, **{**COLUMNS, **keys})


def shown(item_source: Source, key: str) -> np.ndarray:
    return np.asarray(item_source.read(key, []).picture.convert("RGB"))


def truth(seed: int) -> np.ndarray:
    return np.asarray(tiny.photograph(seed, SIZE))


def one_column(values: list[Any], kind: pa.DataType, name: str = "image") -> pa.Table:
    return pa.table({name: pa.array(values, kind)})


def test_a_row_has_its_picture_its_masks_and_its_label_map(tmp_path: Path) -> None:
    table = source(parquet(tmp_path / "faces.parquet", rows()), labels={"left": 1, "right": 2})
    assert (table.name, list(table.keys()), len(table)) == ("faces", ["0", "1", "2"], 3)
    assert (list(table.parts), dict(table.labels)) == (["eye", "mouth"], {"left": 1, "right": 2})
    for seed in range(3):
        assert np.array_equal(shown(table, str(seed)), truth(seed))
    item = table.read("1", ["mouth"])
    assert np.array_equal(np.asarray(item.masks["mouth"]), np.asarray(tiny.box(SIZE, tiny.BOXES["mouth"])))
    assert set(item.masks) == {"mouth"} and item.missing == {}
    assert item.labels is not None and item.labels.dtype == np.int32 and set(np.unique(item.labels)) == {1, 2}


STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})
TYPES = {
    "binary": (pa.binary(), picture),
    "large binary": (pa.large_binary(), picture),
    "struct": (STRUCT, lambda seed: {"bytes": picture(seed), "path": "/etc/passwd"}),
    "struct of bytes": (pa.struct({"bytes": pa.binary()}), lambda seed: {"bytes": picture(seed)}),
    "struct without bytes": (STRUCT, lambda seed: {"bytes": None, "path": f"pictures/{seed}.png"}),
    "path": (pa.string(), lambda seed: f"pictures/{seed}.png"),
    "large path": (pa.large_string(), lambda seed: f"./pictures/{seed}.png"),
}


@pytest.mark.parametrize("kind", TYPES)
def test_pictures_are_read_from_bytes_structs_and_paths_alike(tmp_path: Path, kind: str) -> None:
    (tmp_path / "pictures").mkdir()
    for seed in range(3):
        (tmp_path / "pictures" / f"{seed}.png").write_bytes(picture(seed))
    arrow, value = TYPES[kind]
    path = parquet(tmp_path / "a.parquet", one_column([value(seed) for seed in range(3)], arrow))
    table = source(path, mask_columns={}, label_column=None)
    assert all(np.array_equal(shown(table, str(seed)), truth(seed)) for seed in range(3))


@pytest.mark.parametrize("value", ["../secret.png", "/etc/hostname", "link.png", "pictures", "no.png", "a\0b", "", "."])
def test_a_path_that_leads_out_of_the_folder_or_to_nothing_is_one_broken_item(tmp_path: Path, value: str) -> None:
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(picture(0))
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data" / "own.png").write_bytes(picture(1))
    paths = one_column([value, "own.png", str(tmp_path / "data" / "own.png")], pa.string())
    table = source(parquet(tmp_path / "data" / "a.parquet", paths), mask_columns={}, label_column=None)
    with pytest.raises(BrokenImageError, match="leads out|is not there|cannot be read") as raised:
        table.read("0", [])
    assert str(tmp_path) not in str(raised.value)
    assert all(np.array_equal(shown(table, key), truth(1)) for key in "12")


def test_null_pictures_masks_and_label_maps_are_told_apart(tmp_path: Path) -> None:
    content = [{**rows(1)[0], "image": None}, {**rows(1)[0], "eye": None, "map": None}, rows(1)[0]]
    content[2] |= {"mouth": {"bytes": b"no picture", "path": None}, "image": {"bytes": picture(2), "path": None}}
    table = source(parquet(tmp_path / "a.parquet", content))
    with pytest.raises(BrokenImageError, match="nothing in the column image"):
        table.read("0", ["eye"])
    second = table.read("1", ["eye", "mouth", "nose"])
    assert second.missing == {"eye": "no mask of eye", "nose": "no mask of nose"}
    assert second.labels is None and set(second.masks) == {"mouth"}
    assert "cannot be read as an image" in table.read("2", ["mouth"]).missing["mouth"]


def test_a_mask_of_zeros_and_ones_is_missing_with_the_reason(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.eye(SIZE[1], SIZE[0], dtype=np.uint8)).save(buffer, "PNG")
    table = source(parquet(tmp_path / "a.parquet", rows(1, eye={"bytes": buffer.getvalue(), "path": None})))
    item = table.read("0", ["eye", "mouth"])
    assert item.missing == {"eye": "mask of eye: its brightest pixel is 1; white (128 and more) is inside"}
    assert set(item.masks) == {"mouth"}


@pytest.mark.parametrize("kept", [0, 40])
def test_a_broken_label_map_is_a_broken_item(tmp_path: Path, kept: int) -> None:
    table = source(parquet(tmp_path / "a.parquet", rows(1, map={"bytes": labels()[:kept], "path": None})))
    with pytest.raises(BrokenImageError, match="label map: cannot be read"):
        table.read("0", [])


def test_a_label_map_in_colours_is_refused(tmp_path: Path) -> None:
    table = source(parquet(tmp_path / "a.parquet", rows(1, map={"bytes": picture(0), "path": None})))
    with pytest.raises(BrokenImageError, match="mode RGB, not of whole numbers"):
        table.read("0", [])


def test_a_value_beyond_the_limit_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = source(parquet(tmp_path / "a.parquet", rows(1)))
    monkeypatch.setattr("flows.datasets.columns.MAX_MEMBER", 20)
    with pytest.raises(BrokenImageError, match="more than 20 bytes"):
        table.read("0", [])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"image_column": "imge"}, r"dataset.image_column: found imge; expected .*image, eye, mouth, map, id.*'image'"),
        ({"mask_columns": {"eye": "ey"}}, r"dataset.mask_columns.eye: found ey; .*Did you mean 'eye'"),
        ({"label_column": "mapp"}, r"dataset.label_column: found mapp; .*Did you mean 'map'"),
        ({"key_column": "ids"}, r"dataset.key_column: found ids; .*Did you mean 'id'"),
        ({"image_column": "number"}, r"number in a.parquet, of the type int64; expected bytes, a struct"),
        ({"key_column": "image"}, r"image in a.parquet, of the type struct.*; expected text or whole numbers"),
        ({"image_column": None, "mask_columns": {}}, r"3 columns of pictures in a.parquet, image, eye, mouth"),
        ({"image_column": "nothing"}, r"nothing in a.parquet, of the type null"),
    ],
)
def test_a_column_that_does_not_fit_is_told_with_the_columns_that_are_there(
    tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        source(parquet(tmp_path / "a.parquet", rows(1, number=3, nothing=None)), **keys)


def test_the_only_column_of_pictures_needs_no_name(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", rows(2))
    assert np.array_equal(shown(source(path, image_column=None), "1"), truth(1))
    with pytest.raises(InputError, match="no columns of pictures in b.parquet, id"):
        source(parquet(tmp_path / "b.parquet", [{"id": "x"}]), image_column=None, mask_columns={}, label_column=None)


def test_what_the_hubs_library_wrote_says_which_columns_are_pictures(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(rows(1))
    for metadata in (hub_features(image="Image", eye="Audio"), {b"huggingface": b"{"}, {b"huggingface": b"[1]"}):
        path = parquet(tmp_path / "a.parquet", table.replace_schema_metadata({**metadata, b"license": b"CC0"}))
        keys = {"image_column": None, "mask_columns": {}, "label_column": None}
        if b"Audio" in metadata[b"huggingface"]:
            assert source(path, **keys).licence == "CC0"
        else:
            with pytest.raises(InputError, match="4 columns"):
                source(path, **keys)


def test_the_licence_of_the_schema_comes_before_the_recipes(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(rows(1))
    assert source(parquet(tmp_path / "a.parquet", table), licence="mine").licence == "mine"
    told = table.replace_schema_metadata({b"licence": b"CC BY 4.0"})
    assert source(parquet(tmp_path / "a.parquet", told), licence="mine").licence == "CC BY 4.0"


def test_keys_are_of_the_key_column_and_lead_to_their_rows(tmp_path: Path) -> None:
    for number in range(2):
        content = rows(4)[2 * number : 2 * number + 2]
        parquet(tmp_path / "set" / f"{number}.parquet", content)
    table = source(tmp_path / "set", key_column="id")
    assert list(table.keys()) == [f"face-{seed}" for seed in range(4)]
    for seed in (3, 0, 2, 1):
        assert np.array_equal(shown(table, f"face-{seed}"), truth(seed))
    for key in ("face-4", "0", ""):
        with pytest.raises(BrokenImageError, match="has no"):
            table.read(key, [])


@pytest.mark.parametrize(
    ("ids", "said"), [(["a", "b", "a"], "'a' in rows 0 and 2 of id"), (["a", None, "b"], "none in row 1 of id")]
)
def test_a_key_twice_and_a_row_without_one_are_told(tmp_path: Path, ids: list[str | None], said: str) -> None:
    content = [{**row, "id": name} for row, name in zip(rows(3), ids, strict=True)]
    with pytest.raises(InputError, match=said):
        source(parquet(tmp_path / "a.parquet", content), key_column="id")


def test_labels_need_a_label_column() -> None:
    dataset = {"kind": "parquet", "path": "a", "labels": {"left": 1}}
    with pytest.raises(InputError, match="label_column"):
        parse_recipe({"name": "a", "dataset": dataset, "regions": ["eye"]})


@pytest.mark.parametrize("where", ["set", "set/*.parquet", "set/sub/../part-?.parquet", "set/part-{0..2}.parquet"])
def test_folders_patterns_and_ranges_name_several_files(tmp_path: Path, where: str) -> None:
    for seed in range(3):
        parquet(tmp_path / "set" / f"part-{seed}.parquet", rows(3)[seed : seed + 1])
    (tmp_path / "set" / "sub").mkdir()
    recipe = ParquetDataset.model_validate({"kind": "parquet", "path": where, **COLUMNS})
    table = recipe.open(lambda text: tmp_path / text)
    assert [key.split("/")[-1] for key in list(table.keys())] == [f"part-{seed}.parquet:0" for seed in range(3)]
    assert all(np.array_equal(shown(table, key), truth(seed)) for seed, key in enumerate(table.keys()))
    for key in ("part-0.parquet:1", "part-3.parquet:0", "part-0.parquet:-1", "part-0.parquet:x", "0"):
        with pytest.raises(BrokenImageError, match="has no"):
            table.read(key, [])


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nothing", "nothing at"),
        ("empty", "no .parquet file at"),
        ("empty/*.parquet", "no .parquet file at"),
        ("set/part-{0..3}.parquet", "no part-3.parquet in"),
        ("set/part-{3..0}.parquet", "a range of 0 files"),
        ("set/part-{0..99999999}.parquet", "a range of 100,000,000 files"),
    ],
)
def test_files_that_are_not_there_are_told(tmp_path: Path, where: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    for seed in range(3):
        parquet(tmp_path / "set" / f"part-{seed}.parquet", rows(1))
    recipe = ParquetDataset.model_validate({"kind": "parquet", "path": where})
    with pytest.raises(InputError, match=said):
        recipe.open(lambda text: tmp_path / text)


def test_links_to_files_elsewhere_are_followed(tmp_path: Path) -> None:
    parquet(tmp_path / "set" / "a.parquet", rows(2))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a.parquet").symlink_to(tmp_path / "set" / "a.parquet")
    assert list(source(tmp_path / "linked").keys()) == list(source(tmp_path / "set").keys())


def test_a_table_without_rows_is_told_and_an_empty_file_among_others_is_not(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(rows(2))
    parquet(tmp_path / "set" / "a.parquet", table.slice(0, 0))
    with pytest.raises(InputError, match="not a single row"):
        source(tmp_path / "set")
    parquet(tmp_path / "set" / "b.parquet", table)
    parquet(tmp_path / "set" / "c.parquet", table.slice(0, 0))
    assert list(source(tmp_path / "set").keys()) == ["b.parquet:0", "b.parquet:1"]
    assert np.array_equal(shown(source(tmp_path / "set", key_column="id"), "face-1"), truth(1))


def test_files_of_other_columns_are_told_by_name(tmp_path: Path) -> None:
    parquet(tmp_path / "set" / "a.parquet", rows(1))
    parquet(tmp_path / "set" / "b.parquet", [{"picture": picture(0), "eye": mask("eye")}])
    with pytest.raises(InputError, match=r"found mouth; expected one of the columns of b.parquet"):
        source(tmp_path / "set")
    with pytest.raises(InputError, match=r"picture in b.parquet, image in a.parquet"):
        parquet(tmp_path / "set" / "a.parquet", [{"image": picture(0)}])
        parquet(tmp_path / "set" / "b.parquet", [{"picture": picture(0)}])
        source(tmp_path / "set", image_column=None, mask_columns={}, label_column=None)


@pytest.mark.parametrize("keep", [0, 3, 4, 8, 100, -1, -8])
def test_a_truncated_file_is_told_by_name(tmp_path: Path, keep: int) -> None:
    parquet(tmp_path / "set" / "a.parquet", rows(1))
    path = parquet(tmp_path / "set" / "b.parquet", rows(1))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"b\.parquet .*expected a whole Parquet file"):
        source(tmp_path / "set")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damage_anywhere_is_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = random.Random(seed)
    path = parquet(tmp_path_factory.getbasetemp() / "damaged.parquet", rows(2), compression="zstd")
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 30)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)
    try:
        table = source(path)
        for key in list(table.keys())[:3]:
            table.read(key, ["eye"])
    except (InputError, BrokenImageError):
        pass


def test_damage_within_a_row_group_leaves_the_others_readable(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet", rows(4), row_group_size=2, compression="none", use_dictionary=False,
        write_page_checksum=True,
    )  # fmt: skip
    data, start = bytearray(path.read_bytes()), pq.ParquetFile(path).metadata.row_group(1).column(0)
    data[start.data_page_offset : start.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(data)
    table = source(path)
    assert all(np.array_equal(shown(table, str(seed)), truth(seed)) for seed in (1, 0))
    for key in "232":
        with pytest.raises(BrokenImageError, match=r"a\.parquet is damaged"):
            table.read(key, [])
    assert np.array_equal(shown(table, "0"), truth(0))


def test_rows_are_read_in_small_batches_of_the_needed_columns_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    real = pq.ParquetFile.iter_batches

    def spy(self: pq.ParquetFile, *positional: Any, **named: Any) -> Any:
        asked.append((positional, named["row_groups"], named["columns"]))
        return real(self, *positional, **named)

    monkeypatch.setattr(flows.datasets.parquet, "BATCH", 2)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    table = source(parquet(tmp_path / "a.parquet", rows(8), row_group_size=4))
    assert asked == []
    for seed in (0, 1, 2, 3, 4, 7, 5, 0):
        assert np.array_equal(shown(table, str(seed)), truth(seed))
    columns = ["image", "eye", "mouth", "map"]
    assert asked == [((2,), [group], columns) for group in (0, 1, 1, 0)]


@settings(max_examples=25, deadline=None)
@given(order=st.lists(st.integers(0, 8), max_size=12), groups=st.integers(1, 9), batch=st.integers(1, 4))
def test_any_order_of_reading_gives_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], groups: int, batch: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"order-{groups}.parquet"
    if not path.exists():
        parquet(path, [{"image": picture(seed)} for seed in range(9)], row_group_size=groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows.datasets.parquet, "BATCH", batch)
        table = source(path, mask_columns={}, label_column=None)
        assert all(np.array_equal(shown(table, str(seed)), truth(seed)) for seed in order)


def test_a_file_that_was_replaced_by_a_shorter_one_breaks_the_rows_that_are_gone(tmp_path: Path) -> None:
    table = source(parquet(tmp_path / "a.parquet", rows(4)))
    parquet(tmp_path / "a.parquet", rows(2))
    with pytest.raises(BrokenImageError, match="row 3 is not there"):
        table.read("3", [])
    assert np.array_equal(shown(table, "1"), truth(1))


class OverError(BaseException):
    """What ends a read wherever it is."""


def broken_off(batches: Any) -> Any:
    next(batches)
    raise OverError
    yield


def test_after_a_read_that_was_broken_off_rows_are_right_again(tmp_path: Path) -> None:
    batch = flows.datasets.parquet.BATCH
    table = source(parquet(tmp_path / "faces.parquet", rows(2 * batch + 4)))
    assert np.array_equal(shown(table, "0"), truth(0))
    assert isinstance(table, flows.datasets.parquet.ParquetSource) and table._at is not None
    batches = table._at._batches
    table._at._batches = broken_off(batches)
    with pytest.raises(OverError):
        table.read(f"{batch}", [])
    table._at._batches = batches  # which is a batch further than the source knows
    table.reset()
    for seed in (batch, 2 * batch, 0):
        assert np.array_equal(shown(table, f"{seed}"), truth(seed))
