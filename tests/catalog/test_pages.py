"""Page headers: what they say is compared with the footer, so that no file unpacks to more than it admits."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
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
from catalog.pages import total
from catalog.shards import open_shard
from pipeline.errors import CatalogError

ROWS = pa.table({"number": np.arange(400.0), "text": [f"{i:032x}" for i in range(400)], "list": [[1.0, 2.0]] * 400})


def stored(path: Path, **changes: Any) -> FileEntry:
    settings: dict[str, Any] = {"use_dictionary": False, "write_page_checksum": True, "compression": "zstd"}
    pq.write_table(ROWS, path, **settings | changes)
    return described(path)


def described(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(
        sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), rows=400, footer=footer_sha256(path)
    )  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{}, {"data_page_size": 256, "row_group_size": 100}, {"compression": "none"}, {"write_statistics": False}],
    ids=str,
)
def test_pages_of_a_whole_file_are_those_of_its_footer(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "s.parquet"
    with open_shard(path, stored(path, **changes)) as shard:
        shard.check_pages()
        chunk = shard.footer.groups[0].chunks[1]
        data = path.read_bytes()[chunk.data_page_offset :][: chunk.total_compressed_size]
        assert total(data, "text") == (chunk.num_values, chunk.total_uncompressed_size)


def test_a_header_that_says_more_than_the_footer_is_refused(tmp_path: Path) -> None:
    """What passes unpacks to as much as was written."""
    path = tmp_path / "s.parquet"
    entry, data = stored(path), path.read_bytes()
    metadata, size = pq.read_metadata(path).row_group(0), pq.read_table(path).nbytes
    refused = passed = 0
    for leaf, at, pattern in itertools.product(range(3), range(30), (1, 2, 4, 8, 16, 32, 64, 128, 0x12)):
        place = metadata.column(leaf).data_page_offset + at
        path.write_bytes(data[:place] + bytes([data[place] ^ pattern]) + data[place + 1 :])
        with open_shard(path, entry) as shard:
            try:
                shard.check_pages()
            except CatalogError:
                refused += 1
                continue
            passed += 1
            with contextlib.suppress(CatalogError):
                assert shard.read().nbytes == size, (leaf, at, pattern)
    assert refused > 200 and passed > 100


@pytest.mark.parametrize(
    "changes",
    [{"use_dictionary": True}, {"data_page_version": "2.0"}, {"column_encoding": {"text": "DELTA_BYTE_ARRAY"}}],
    ids=str,
)
def test_pages_of_other_kinds_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "s.parquet"
    with open_shard(path, stored(path, **changes)) as shard, pytest.raises(CatalogError):
        shard.check_pages()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80) | st.lists(st.sampled_from([0x1C, 0x15, 0x18, 0x2C, 0xFF, 0]), max_size=200).map(bytes))
def test_any_bytes_are_pages_or_a_clear_error(data: bytes) -> None:
    try:
        values, unpacked = total(data, "column")
    except CatalogError as error:
        assert error.field == "column"
    else:
        assert values >= 0 and unpacked >= 0
