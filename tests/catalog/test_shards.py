"""Shards: what is read is what was written, and what no writer would have written is refused."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.fs import footer_sha256
from catalog.manifest import FileEntry
from catalog.reader import Catalog
from catalog.schema import TABLES, parquet_settings
from catalog.shards import LONGEST_LIST, SUMS, open_shard, plain_schema, write_shard
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError
from tests.catalog.samples import chunk_of, provenance

PLAIN: dict[str, Any] = {"use_dictionary": False, "write_page_checksum": True, "row_group_size": 3}
PATTERNS = (1, 2, 4, 8, 16, 32, 64, 128, 0x12, 0xFF)  # 0x12 turns one encoding of numbers into another


def entry_of(path: Path, rows: int) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(
        sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), rows=rows, footer=footer_sha256(path)
    )  # fmt: skip


def stored(path: Path, rows: pa.Table, **changes: Any) -> FileEntry:
    with path.open("wb") as stream:
        write_shard(rows, stream, PLAIN | changes)
    return entry_of(path, rows.num_rows)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """A catalog of five directions whose shards have checksums of their columns."""
    folder = tmp_path_factory.mktemp("shards") / "c"
    with CatalogWriter.create(folder, provenance()) as writer:
        writer.commit(chunk_of("one", 1, ("mouth",)))
    with Catalog.open(folder) as catalog:
        manifest = catalog.manifest
        for table in TABLES:
            for path in manifest.shards(table):
                rows = catalog.whole_shards(table, [path])
                sizes = parquet_settings(table, rows.schema, catalog.layout) | {"row_group_size": 2}
                with (folder / path).open("wb") as stream:
                    write_shard(rows, stream, sizes)
                files = {**manifest.files, path: entry_of(folder / path, rows.num_rows)}
                manifest = manifest.model_copy(update={"files": files})
    return Catalog(folder, manifest)


def everything(catalog: Catalog, table: str) -> Iterator[Any]:
    """All columns of a table of a catalog, of a row and of all at once, to be compared."""
    with Catalog(catalog.folder, catalog.manifest) as fresh:
        keys = [key.decode() for key in fresh.ids(table)]
        yield keys
        if table == "directions":
            key = keys[fresh.shard_rows(fresh.manifest.shards(table)[0])[0]]
            yield fresh.vectors([key], "h").tobytes(), fresh.effect(key).tobytes(), fresh.preview(key).tobytes()
            yield repr(fresh.rows([key]))
        if table == "images":
            yield fresh.latent(keys[0]).tobytes(), fresh.image(keys[0]).tobytes()
        if table == "regions":
            yield fresh.mask(chunk_of("one", 1).images[0].image_id, "mouth").tobytes()
        yield fresh.whole_shards(table, fresh.manifest.shards(table))


def places(path: Path) -> list[int]:
    """Every byte that may be of a page header, and a sample of all the others."""
    metadata = pq.read_metadata(path)
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    chunks = [group.column(i) for group in itertools.islice(groups, 1) for i in range(metadata.num_columns)]
    heads = {chunk.data_page_offset + i for chunk in chunks for i in range(min(20, chunk.total_compressed_size))}
    others = np.random.default_rng(0).integers(0, path.stat().st_size, 150).tolist()
    return sorted(heads | {0, 1, *others, *range(path.stat().st_size - 12, path.stat().st_size)})


@pytest.mark.parametrize("table", TABLES)
def test_a_flipped_byte_is_refused_or_changes_nothing_that_is_read(small: Catalog, table: str) -> None:
    path = small.folder / small.manifest.shards(table)[0]
    data, wanted = path.read_bytes(), list(everything(small, table))
    refused = 0
    try:
        for at, pattern in zip(places(path), itertools.cycle(PATTERNS), strict=False):
            path.write_bytes(data[:at] + bytes([data[at] ^ pattern]) + data[at + 1 :])
            try:
                for found, expected in zip(everything(small, table), wanted, strict=True):
                    assert found == expected, (at, pattern)
            except CatalogError:
                refused += 1
    finally:
        path.write_bytes(data)
    assert refused > 200


def test_headers_of_pages_are_covered_by_the_sums_alone(tmp_path: Path) -> None:
    """Without sums one changed byte of a header is read as other numbers: the test above can fail."""
    path = tmp_path / "s.parquet"
    rows = pa.table({"number": pa.array(np.arange(1.0, 65.0))})
    summed = stored(path, rows, row_group_size=64, compression="zstd")
    data, start = path.read_bytes(), pq.read_metadata(path).row_group(0).column(0).data_page_offset
    plain = io.BytesIO()
    pq.write_table(rows, plain, **PLAIN | {"row_group_size": 64, "compression": "zstd"})
    silent = 0
    for at, pattern in itertools.product(range(start, start + 24), PATTERNS):
        for whole, refusing in ((data, True), (plain.getvalue(), False)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ pattern]) + whole[at + 1 :])
            entry = summed if refusing else entry_of(path, 64)
            try:
                with open_shard(path, entry) as shard:
                    read = shard.read()
            except CatalogError:
                continue
            assert not refusing, (at, pattern)
            silent += not read.equals(rows)
    assert silent


def test_data_is_byte_for_byte_that_of_plain_parquet(tmp_path: Path) -> None:
    rows = pa.table({"a": pa.array(range(20), pa.int32()), "b": [f"{i:032x}" for i in range(20)]})
    stored(tmp_path / "s.parquet", rows, compression="zstd")
    plain, data = io.BytesIO(), (tmp_path / "s.parquet").read_bytes()
    pq.write_table(rows, plain, **PLAIN, compression="zstd")
    last = pq.read_metadata(io.BytesIO(data)).row_group(6).column(1)
    end = last.data_page_offset + last.total_compressed_size
    assert data[:end] == plain.getvalue()[:end]
    assert pq.read_table(tmp_path / "s.parquet").equals(rows)


TEXTS = st.lists(st.text(max_size=5), max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(-(2**31), 2**31 - 1), st.none() | st.floats(width=32, allow_nan=False), TEXTS), max_size=9
    ),
    group=st.integers(1, 5),
)
def test_any_table_reads_back_whole_and_by_row_group(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, float | None, list[str]]], group: int
) -> None:
    texts = pa.list_(pa.field("element", pa.string()))
    fields = [pa.field("number", pa.int32(), nullable=False), ("real", pa.float32()), pa.field("texts", texts)]
    schema = pa.schema(fields, metadata={"huggingface": "{}"})
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
    path = tmp_path_factory.mktemp("any") / "s.parquet"
    entry = stored(path, table, row_group_size=group)
    with open_shard(path, entry, schema) as shard:
        assert shard.schema_arrow.equals(schema, check_metadata=True)
        whole = shard.read()
        assert whole.equals(table) and whole.schema.equals(schema, check_metadata=True)
        assert shard.read(["texts", "number"]).equals(table.select(["texts", "number"]))
        for i in range(len(shard.footer.groups)):
            assert shard.read_row_group(i, ["real"]).equals(table.select(["real"])[i * group : (i + 1) * group])
    with pq.ParquetFile(path) as file:
        assert plain_schema(file).equals(schema, check_metadata=True)
    again = path.with_name("again.parquet")
    stored(again, whole.replace_schema_metadata({**(whole.schema.metadata or {}), SUMS: "stale"}), row_group_size=group)
    assert again.read_bytes() == path.read_bytes()


def refused(path: Path, entry: FileEntry, schema: pa.Schema | None = None) -> str:
    with pytest.raises(CatalogError) as error, open_shard(path, entry, schema) as shard:
        shard.read()
    with pytest.raises(CatalogError), open_shard(path, entry, schema) as shard:
        for group in range(len(shard.footer.groups)):
            for name in shard.schema_arrow.names:
                shard.read_row_group(group, [name])
    return str(error.value)


def lists_of(*lengths: int) -> pa.Table:
    ends = np.cumsum([0, *lengths])
    offsets, values = pa.array(ends, pa.int32()), pa.array(np.ones(ends[-1], np.float32))
    return pa.table({"spectrum": pa.ListArray.from_arrays(offsets, values)})


def test_more_list_items_than_rows_account_for_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    assert "spectrum: found 12289 values" in refused(
        path, stored(path, lists_of(3 * LONGEST_LIST + 1, 0, 0), row_group_size=1)
    )
    with open_shard(path, stored(path, lists_of(LONGEST_LIST, 1)), None) as shard:
        assert shard.read().num_rows == 2


def test_empty_items_by_the_million_are_refused_unread(tmp_path: Path) -> None:
    path, count = tmp_path / "s.parquet", 3_000_000
    lists = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.nulls(count, pa.float32()))
    entry = stored(path, pa.table({"spectrum": lists}), compression="zstd")
    assert entry.bytes < 2**16
    assert f"{count} values in 1 rows" in refused(path, entry)


@pytest.mark.parametrize(
    "changes", [{"use_dictionary": True}, {"column_encoding": {"rank_rule": "DELTA_BYTE_ARRAY"}}], ids=str
)
def test_encodings_that_repeat_long_strings_for_nothing_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path, rows = tmp_path / "s.parquet", pa.table({"rank_rule": ["a" * 2**16] * 300})
    pq.write_table(rows, path, **PLAIN | {"row_group_size": 300, **changes})
    assert path.stat().st_size < 2**18
    assert "without a dictionary" in refused(path, entry_of(path, 300))


def test_row_groups_of_several_sizes_are_refused(tmp_path: Path) -> None:
    path, rows = tmp_path / "s.parquet", pa.table({"a": list(range(20))})
    with pq.ParquetWriter(path, rows.schema, use_dictionary=False) as writer:
        for part in (rows[:3], rows[3:10], rows[10:]):
            writer.write_table(part)
    assert "row groups of several sizes" in refused(path, entry_of(path, 20))


SCHEMA = pa.schema([pa.field("a", pa.int32(), nullable=False), pa.field("b", pa.string())])


@pytest.mark.parametrize(
    ("schema", "at"),
    [
        (SCHEMA.remove(1), "b"),
        (SCHEMA.append(pa.field("c", pa.int32())), "c"),
        (SCHEMA.set(0, pa.field("a", pa.int32())), "a"),
        (SCHEMA.set(0, pa.field("a", pa.int64(), nullable=False)), "a"),
        (SCHEMA.set(1, pa.field("b", pa.binary())), "b"),
        (pa.schema([SCHEMA.field(1), SCHEMA.field(0)]), "order"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_columns_types_or_nullability_are_refused_by_name(tmp_path: Path, schema: pa.Schema, at: str) -> None:
    path, both = tmp_path / "s.parquet", {"a": [1, 2], "b": ["x", "y"], "c": [3, 4]}
    rows = pa.table({name: both[name] for name in schema.names}, schema=schema)
    entry = stored(path, rows)
    assert f"s.parquet: {at}" in refused(path, entry, SCHEMA)
    with open_shard(path, entry, schema) as shard:
        assert shard.read().equals(rows)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path, raw = tmp_path / "s.parquet", pa.array([b"\xff\xfe", b"fine"], pa.binary())
    rows = pa.table({"region": pa.Array.from_buffers(pa.string(), 2, raw.buffers())})
    assert "s.parquet: region" in refused(path, stored(path, rows))


@pytest.mark.parametrize("items", [[[1.0, None]], [[{"name": "a", "value": None}]]], ids=["float", "struct"])
def test_lists_that_lack_an_item_are_refused(tmp_path: Path, items: list[Any]) -> None:
    path = tmp_path / "s.parquet"
    assert "lacks an item" in refused(path, stored(path, pa.table({"spectrum": items})))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"x" + data,
        lambda data: bytes(64),
    ],
    ids=["empty", "shorter", "half", "longer", "zeros"],
)
def test_a_file_of_another_size_is_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "s.parquet"
    entry = stored(path, pa.table({"a": [1, 2, 3]}))
    path.write_bytes(change(path.read_bytes()))
    for footer in (entry.footer, None):
        refused(path, entry.model_copy(update={"footer": footer}))


@pytest.mark.parametrize("text", ["", "AAAA", "not base64!", base64.b64encode(bytes(400)).decode()])
def test_sums_of_another_form_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.parquet"
    with pq.ParquetWriter(path, pa.schema([("a", pa.int64())]), use_dictionary=False) as writer:
        writer.write_table(pa.table({"a": [1, 2]}))
        writer.add_key_value_metadata({SUMS: text})
    assert SUMS in refused(path, entry_of(path, 2))


def test_shards_without_sums_are_read_by_the_checksums_of_their_pages(tmp_path: Path) -> None:
    path, rows = tmp_path / "s.parquet", pa.table({"a": np.arange(500.0)})
    pq.write_table(rows, path, **PLAIN | {"row_group_size": 500, "compression": "none"})
    entry, data = entry_of(path, 500).model_copy(update={"footer": None}), path.read_bytes()
    with open_shard(path, entry) as shard:
        assert shard.read().equals(rows)
    path.write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
    refused(path, entry)
