"""The reader: hostile or damaged content with right checksums gives clear errors, and look-ups give what is stored."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from catalog.fs import footer_sha256
from catalog.manifest import FileEntry
from catalog.pictures import encode_png
from catalog.places import packed_ids
from catalog.reader import Catalog
from catalog.records import Chunk
from catalog.shards import write_shard
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, NotFoundError, RhumbError
from tests.catalog.samples import small_catalog

Change = Callable[[pa.Table], pa.Table]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Chunk]]:
    folder = tmp_path_factory.mktemp("reader") / "c"
    chunks = small_catalog(folder)
    with CatalogWriter.open(folder) as writer:
        writer.add_picture("overview", encode_png(np.arange(64, dtype=np.uint8).reshape(8, 8)))
    return folder, chunks


@pytest.fixture
def folder(whole: tuple[Path, list[Chunk]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole[0], tmp_path / "c"))


def described(path: Path, rows: int | None) -> FileEntry:
    data = path.read_bytes()
    footer = footer_sha256(path) if rows is not None else None
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), rows=rows, footer=footer)


def changed(folder: Path, table: str, change: Change) -> Catalog:
    """The catalog with the rows of one shard changed, and all checksums right."""
    with Catalog.open(folder) as catalog:
        manifest = catalog.manifest
        path = manifest.shards(table)[0]
        rows = change(pq.read_table(folder / path))
    with (folder / path).open("wb") as stream:
        write_shard(rows, stream, {"row_group_size": 16})
    files = {**manifest.files, path: described(folder / path, rows.num_rows)}
    return Catalog(folder, manifest.model_copy(update={"files": files}))


def with_column(name: str, values: Any, dtype: pa.DataType | None = None, nullable: bool | None = None) -> Change:
    """A change of the first rows of a column; the rest stays."""

    def change(rows: pa.Table) -> pa.Table:
        at = rows.schema.get_field_index(name)
        field = rows.schema.field(at)
        kept = rows.column(name).to_pylist()[len(values) :] if dtype is None else values * (rows.num_rows - 1)
        column = values if isinstance(values, pa.Array) else pa.array([*values, *kept], dtype or field.type)
        return rows.set_column(
            at, pa.field(name, column.type, field.nullable if nullable is None else nullable), column
        )

    return change


def not_utf8(name: str) -> Change:
    def change(rows: pa.Table) -> pa.Table:
        raw = [text.encode() for text in rows.column(name).to_pylist()]
        binary = pa.array([b"\xff\xfe" + raw[0][2:], *raw[1:]], pa.binary())
        return with_column(name, pa.Array.from_buffers(pa.string(), len(binary), binary.buffers()))(rows)

    return change


def everything(catalog: Catalog) -> None:
    """Read all rows and columns in every way the reader has."""
    for table in ("directions", "images", "regions"):
        catalog.ids(table)
        getattr(catalog, table)().to_pylist()
    keys = [key.decode() for key in catalog.ids()]
    catalog.rows(keys)
    catalog.select(region="mouth")
    for key in keys:
        catalog.direction(key)
    for image in (key.decode() for key in catalog.ids("images")):
        catalog.image(image), catalog.latent(image)
        for region in ("mouth", "hair"):
            catalog.mask(image, region)


NO_PICTURE = [{"bytes": None, "path": None}]
COLOUR = [{"bytes": encode_png(np.zeros((16, 16, 3), np.uint8)), "path": None}]
HOSTILE: dict[str, tuple[str, Change, str]] = {
    "region not UTF-8": ("directions", not_utf8("region"), "region"),
    "dataset not UTF-8": ("images", not_utf8("dataset"), "dataset"),
    "id not UTF-8": ("directions", not_utf8("direction_id"), "direction_id"),
    "id not ASCII": ("directions", with_column("direction_id", ["é" * 16]), "hex digits"),
    "id a path": ("images", with_column("image_id", ["../../../../../etc/passwd......."]), "hex digits"),
    "id in capitals": ("regions", with_column("region_id", ["A" * 32]), "hex digits"),
    "home of a mask no id": ("regions", with_column("image_id", ["ü" * 16]), "hex digits"),
    "id too short": ("directions", with_column("direction_id", ["abc"]), "32 digits"),
    "region null": ("directions", with_column("region", [None], nullable=True), "region"),
    "rank a text": ("directions", with_column("rank", ["x"], pa.string()), "rank"),
    "gain a float": ("directions", with_column("gain", [1.0], pa.float32(), nullable=False), "gain"),
    "column missing": ("directions", lambda rows: rows.drop_columns(["region"]), "region"),
    "column more": ("images", lambda rows: rows.append_column("more", pa.nulls(rows.num_rows)), "more"),
    "spectrum lacks an item": ("directions", with_column("spectrum", [[None]]), "spectrum"),
    "parents lack an item": ("directions", with_column("parents", [[None]]), "parents"),
    "factor without a value": ("images", with_column("factors", [[{"name": "a", "value": None}]]), "factors"),
    "preview null": ("directions", with_column("preview", [None] * 3), "preview"),
    "preview empty": ("directions", with_column("preview", NO_PICTURE), "preview"),
    "image null": ("images", with_column("image", [None]), "image"),
    "mask null": ("regions", with_column("mask", [None]), "mask"),
    "mask in colour": ("regions", with_column("mask", COLOUR), "mask"),
    "no picture but text": ("images", with_column("image", [{"bytes": b"text", "path": None}]), "image"),
    "vector null": ("directions", with_column("x_vector", [None] * 20), "x_vector"),
    "vector of other length": ("directions", with_column("x_vector", [b"abc"] * 20), "x_vector"),
    "an id twice": ("directions", lambda rows: pa.concat_tables([rows[:-1], rows[:1]]), "twice"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_content_is_a_clear_error_naming_file_or_column(folder: Path, case: str) -> None:
    table, change, named = HOSTILE[case]
    with changed(folder, table, change) as catalog, pytest.raises(RhumbError, match=named) as error:
        everything(catalog)
    assert isinstance(error.value, CatalogError)


def test_a_catalog_left_as_it_is_is_read_in_every_way(folder: Path) -> None:
    with changed(folder, "directions", lambda rows: rows) as catalog:
        everything(catalog)


def test_a_mask_is_that_of_its_image_and_region(whole: tuple[Path, list[Chunk]]) -> None:
    with Catalog.open(whole[0]) as catalog:
        for chunk in whole[1]:
            for region in chunk.regions:
                assert np.array_equal(catalog.mask(region.image_id, region.region), region.mask)
                stored = catalog.regions(image_id=region.image_id, region=region.region)
                assert stored.column("region_id").to_pylist() == [region.region_id]
            with pytest.raises(NotFoundError, match="one of hair, mouth"):
                catalog.mask(chunk.images[0].image_id[:12], "nose")


def test_each_region_keeps_its_own_mask_among_many(folder: Path) -> None:
    """Masks that differ, so that one mistaken for another shows."""

    def drawn(rows: pa.Table) -> pa.Table:
        masks = [np.full((16, 16), 0, np.uint8) for _ in range(rows.num_rows)]
        for i, mask in enumerate(masks):
            mask.flat[: i + 1] = 255
        return with_column("mask", [{"bytes": encode_png(mask), "path": None} for mask in masks])(rows)

    with changed(folder, "regions", drawn) as catalog:
        shard = pq.read_table(
            folder / catalog.manifest.shards("regions")[0], columns=["image_id", "region"]
        ).to_pylist()
        areas = [int(catalog.mask(row["image_id"], row["region"]).sum()) for row in shard]
    assert areas == list(range(1, len(shard) + 1))


def test_rows_of_a_shard_and_space_are_those_its_file_lists(whole: tuple[Path, list[Chunk]]) -> None:
    with Catalog.open(whole[0]) as catalog:
        for path in catalog.manifest.shards("directions"):
            own = pq.read_table(whole[0] / path, columns=["direction_id", "space"])
            for space in ("x", "h"):
                wanted = own.filter(pc.equal(own.column("space"), space)).column("direction_id").to_pylist()
                assert [key.decode() for key in catalog.ids()[catalog.shard_rows(path, space)]] == wanted


def test_rows_of_a_space_are_looked_for_once_whatever_the_shards(
    whole: tuple[Path, list[Chunk]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Catalog.open(whole[0]) as catalog:
        shards, looked = catalog.manifest.shards("directions"), []
        monkeypatch.setattr(catalog, "select", lambda **equals: looked.append(equals) or np.ones(40, dtype=bool))
        assert len(shards) > 1
        for path in shards * 2:
            catalog.shard_rows(path, "x")
    assert looked == [{"space": "x"}]


def test_a_picture_is_given_as_committed_or_not_at_all(folder: Path) -> None:
    with Catalog.open(folder) as catalog:
        path = folder / catalog.manifest.pictures["overview"]
        data = catalog.picture("overview")
        assert data == path.read_bytes()
        for other in (data[:-1], data + b"x", b"", bytes([*data[:40], data[40] ^ 1, *data[41:]])):
            path.write_bytes(other)
            with pytest.raises(CatalogError, match="changed bytes"):
                catalog.picture("overview")
        path.unlink()
        with pytest.raises(CatalogError, match="no readable file"):
            catalog.picture("overview")
        path.mkdir()
        with pytest.raises(CatalogError):
            catalog.picture("overview")


def test_a_missing_shard_is_named(folder: Path) -> None:
    with Catalog.open(folder) as catalog:
        path = catalog.manifest.shards("regions")[0]
        (folder / path).unlink()
        with pytest.raises(CatalogError, match=path):
            catalog.regions()


@pytest.mark.parametrize("start", [0, 3])
def test_ids_are_packed_whatever_the_chunks_of_their_column(start: int) -> None:
    keys = [hashlib.md5(bytes([i])).hexdigest() for i in range(20)]
    column = pa.chunked_array([pa.array(keys[:7]), pa.array([], pa.string()), pa.array(keys)[7:]]).slice(start)
    assert packed_ids(column, "ids").tolist() == [key.encode() for key in keys[start:]]
    assert len(packed_ids(column[:0], "ids")) == 0
