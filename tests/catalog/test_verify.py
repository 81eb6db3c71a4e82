"""Every kind of damage is found, and named with its file."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog import manifest as manifests
from catalog.index import IDS_SCHEMA, build_index, build_indexes
from catalog.pictures import encode_png
from catalog.reader import Catalog
from catalog.schema import parquet_settings
from catalog.verify import verify
from catalog.writer import CatalogWriter, SearchIndex
from pipeline.errors import CatalogError, NotFoundError
from tests.catalog.samples import chunk_of, provenance


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "c"
    with CatalogWriter.create(folder, provenance()) as writer:
        writer.commit(chunk_of("one", 1, ("mouth",)))
        writer.add_picture("sheet", encode_png(np.full((2, 2, 3), 9, np.uint8)))
    build_indexes(folder)
    assert verify(folder).problems == ()
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "c"))


def names_of(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


def test_a_flipped_byte_anywhere_is_found_in_its_file(whole: Path, copy: Path) -> None:
    generator = np.random.default_rng(0)
    for name in names_of(copy):
        data = (copy / name).read_bytes()
        for place in {0, len(data) - 1, *generator.integers(0, len(data), 4).tolist()}:
            changed = bytearray(data)
            changed[place] ^= 1 << int(generator.integers(0, 8))
            (copy / name).write_bytes(changed)
            assert [p.file for p in verify(copy).problems] == [name], (name, place)
        (copy / name).write_bytes(data)
    assert verify(copy).ok


def test_truncated_missing_and_extra_files_are_found(copy: Path) -> None:
    names = [name for name in names_of(copy) if name != "manifest.json"]
    for name in names:
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[:-7])
        assert [(p.file, "truncated" in p.what) for p in verify(copy).problems] == [(name, True)]
        (copy / name).unlink()
        assert [(p.file, p.what) for p in verify(copy).problems] == [(name, "missing")]
        (copy / name).write_bytes(data)
    (copy / "directions" / "extra.parquet").write_bytes(b"PAR1")
    (copy / "link").symlink_to("/etc")
    assert {p.file for p in verify(copy).problems} == {"directions/extra.parquet", "link"}
    (copy / "manifest.json").unlink()
    with pytest.raises(NotFoundError):
        verify(copy)


def test_a_file_replaced_by_a_link_is_not_followed(copy: Path) -> None:
    target = copy / "README.md"
    target.rename(copy.parent / "elsewhere.md")
    target.symlink_to(copy.parent / "elsewhere.md")
    assert any(p.file == "README.md" and "symbolic link" in p.what for p in verify(copy).problems)


def rewritten(folder: Path, table: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a shard and record its new checksum, as a hostile or careless writer would."""
    path = folder / table / "one.parquet"
    rows = pq.read_table(path, partitioning=None)
    new = change(rows)
    pq.write_table(new, path, **parquet_settings(table, rows.schema))
    value = json.loads((folder / "manifest.json").read_text())
    value.pop("checksum")
    entry = value["files"][f"{table}/one.parquet"]
    entry.update(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), bytes=path.stat().st_size, rows=new.num_rows)
    value["chunks"]["one"]["rows"][table] = new.num_rows
    (folder / "manifest.json").write_bytes(manifests.dump(manifests.Manifest.model_validate(value)))


def _set(column: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table.column(column).to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        number, field = table.schema.get_field_index(column), table.schema.field(column)
        return table.set_column(number, field, pa.array(values, type=field.type))

    return change


FORGED = {
    "norm": ("directions", _set("effect_vector", 0, lambda v: [x * 2 for x in v]), "norm 2"),
    "nan": ("directions", _set("effect_vector", 1, lambda v: [float("nan")] * len(v)), "norm nan"),
    "null": ("directions", _set("x_vector", 4, None), "not exactly in the rows"),
    "evidence": ("directions", _set("sigma", 0, None), "sigma"),
    "parents": ("directions", _set("parents", 2, ["0" * 32]), "0" * 32),
    "image": ("directions", _set("image_id", 2, "f" * 32), "f" * 32),
    "region": ("directions", _set("region", 2, "hair"), "as hair"),
    "model": ("directions", _set("model", 2, "other"), "model"),
    "id": ("directions", _set("direction_id", 0, "<script>"), "direction_id"),
    "duplicate": ("regions", lambda t: pa.concat_tables([t, t]), "is also in"),
    "picture": ("images", _set("image", 0, {"bytes": b"GIF89a", "path": None}), "no readable PNG"),
    "no picture": ("directions", _set("preview", 1, None), "preview"),
    "latent": ("images", _set("latent", 0, lambda v: [float("inf")] * len(v)), "latent"),
    "schema": ("images", lambda t: t.rename_columns(["id", *t.column_names[1:]]), "differ from the schema"),
    "removed": ("regions", lambda t: t.slice(0, 0), "not in the catalog as"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_shard_with_right_checksums_and_wrong_content_is_found(copy: Path, name: str) -> None:
    table, change, words = FORGED[name]
    try:
        rewritten(copy, table, change)
    except KeyError:  # a renamed column cannot be given its usual statistics
        pytest.fail("the forged shard could not be written")
    report = verify(copy)
    assert any(words in problem.what for problem in report.problems), report.problems
    assert all(problem.file.endswith(".parquet") for problem in report.problems)


def test_an_index_of_other_directions_is_found(copy: Path) -> None:
    with CatalogWriter.open(copy) as writer:
        writer.commit(chunk_of("two", 1))
    report = verify(copy)
    assert {p.file.split("-")[0] for p in report.problems} == {"index/x", "index/h", "index/effect"}
    assert all("rhumb index" in p.what for p in report.problems)
    build_indexes(copy)
    assert verify(copy).ok


def test_a_forged_index_with_right_checksums_is_found(copy: Path) -> None:
    with CatalogWriter.open(copy) as writer, Catalog(copy, writer.manifest) as catalog:
        import faiss

        entry = catalog.manifest.indexes["effect"]
        index = faiss.read_index(str(copy / entry.faiss))
        other = faiss.IndexIDMap2(faiss.IndexFlatIP(index.d))
        vectors = np.eye(index.ntotal, index.d, dtype=np.float32)
        other.add_with_ids(vectors, faiss.vector_to_array(index.id_map))
        ids = (copy / entry.ids).read_bytes()
        forged = SearchIndex(faiss.serialize_index(other).tobytes(), ids, entry.rows, entry.sketch)
        writer.replace_indexes({"effect": forged})
    assert ["not those of the stored directions" in p.what for p in verify(copy).problems] == [True]


LISTS = {
    "no table": b"PAR1",
    "other columns": pa.table({"id": [1]}),
    "other ids": pa.table([pa.array([1]), pa.array(["0" * 32])], schema=IDS_SCHEMA),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_forged_id_list_with_right_checksums_is_found(copy: Path, name: str) -> None:
    content = LISTS[name]
    if isinstance(content, pa.Table):
        stream = io.BytesIO()
        pq.write_table(content, stream)
        content = stream.getvalue()
    with CatalogWriter.open(copy) as writer, Catalog(copy, writer.manifest) as catalog:
        writer.replace_indexes({"x": dataclasses.replace(build_index(catalog, "x"), ids=content)})
    assert [problem.file.endswith(".parquet") for problem in verify(copy).problems] == [True]


def test_reading_a_damaged_row_group_names_the_shard(copy: Path) -> None:
    path = copy / "directions" / "one.parquet"
    data = bytearray(path.read_bytes())
    metadata = pq.ParquetFile(path).metadata.row_group(0)
    column = next(c for c in range(metadata.num_columns) if metadata.column(c).path_in_schema.startswith("effect_v"))
    start = metadata.column(column).data_page_offset
    data[start + metadata.column(column).total_compressed_size // 2] ^= 4
    path.write_bytes(data)
    with Catalog.open(copy) as catalog:
        key = catalog.directions().column("direction_id")[0].as_py()
        with pytest.raises(CatalogError, match=r"one\.parquet"):
            catalog.effect(key)
