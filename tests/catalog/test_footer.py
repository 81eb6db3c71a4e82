"""Footers: what they say of chunks, as Arrow says it where it can, and what Arrow ends the process over."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.footer import Footer, footer_in
from catalog.search.quantiser import parse
from pipeline.errors import CatalogError
from tests.catalog.test_search import TINY, TINY_FILE

FIELDS = ("path_in_schema", "num_values", "total_compressed_size", "total_uncompressed_size", "data_page_offset",
          "has_dictionary_page")  # fmt: skip
HISTOGRAM = 667  # the byte of TINY_FILE after which Arrow takes a histogram for another


def parquet(**options: object) -> bytes:
    """Three row groups of columns of many types, nested ones and nulls among them."""
    out, rows = io.BytesIO(), 7
    table = pa.table(
        {
            "text": [f"{i}" * i for i in range(rows)],
            "number": pa.array([i if i % 2 else None for i in range(rows)], pa.float64()),
            "list": [[i] * i for i in range(rows)],
            "struct": [{"a": i, "b": {"c": b"x"}} for i in range(rows)],
            "flag": [bool(i % 2) for i in range(rows)],
            "time": pa.array(range(rows), pa.timestamp("us", tz="UTC")),
            "decimal": pa.array(range(rows), pa.decimal128(20, 3)),
        }
    ).replace_schema_metadata({"key": "value" * 50})
    pq.write_table(table, out, row_group_size=3, write_page_index=True, **options)
    return out.getvalue()


def footer(data: bytes) -> Footer:
    return Footer(footer_in(data), "file", "again")


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False, "write_statistics": False}, {"version": "1.0"}])
def test_a_footer_says_what_arrow_says(options: dict[str, object]) -> None:
    data = parquet(**options)
    own, theirs = footer(data), pq.read_metadata(pa.BufferReader(data))
    assert (own.num_rows, len(own.groups)) == (theirs.num_rows, theirs.num_row_groups) == (7, 3)
    for number, group in enumerate(own.groups):
        other = theirs.row_group(number)
        assert (group.num_rows, group.total_byte_size) == (other.num_rows, other.total_byte_size)
        assert len(group.chunks) == other.num_columns
        for leaf, chunk in enumerate(group.chunks):
            column = other.column(leaf)
            assert [getattr(chunk, name) for name in FIELDS] == [getattr(column, name) for name in FIELDS]
            assert chunk.encodings == column.encodings
            if column.path_in_schema == "text" and column.is_stats_set:
                assert chunk.ends == (column.statistics.min.encode(), column.statistics.max.encode())


def test_a_footer_seen_before_says_the_same_of_the_chunks_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalog.footer._SEEN", {})
    data = parquet()
    first, parsed = footer(data), list[int]()
    whole = [list(group.chunks) for group in first.groups]
    parse = Footer.chunk_at
    monkeypatch.setattr(Footer, "chunk_at", lambda self, start: parsed.append(start) or parse(self, start))
    again = footer(data)
    assert again.num_rows == first.num_rows and [g[:2] for g in again.groups] == [g[:2] for g in first.groups]
    assert parsed == []
    assert again.groups[1].chunks[2] == again.groups[1].chunks[2] == whole[1][2]
    assert len(parsed) == 1
    assert [list(group.chunks) for group in again.groups] == whole
    assert again.groups[0].chunks[-2:] == whole[0][-2:] and len(again.groups[0].chunks) == len(whole[0])


def test_footers_seen_are_few_and_none_that_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[bytes, object] = {}
    monkeypatch.setattr("catalog.footer._SEEN", seen)
    monkeypatch.setattr("catalog.footer._REMEMBERED", 3)
    for rows in range(1, 6):
        out = io.BytesIO()
        pq.write_table(pa.table({"a": list(range(rows))}), out)
        assert footer(out.getvalue()).num_rows == rows
        assert len(seen) <= 3
    seen.clear()
    for _ in range(2):
        with pytest.raises(CatalogError, match="encrypted"):
            _ = Footer(chunk_of(b"\x5c\x00"), "file", "again").groups
    assert seen == {}


def test_what_arrow_ends_the_process_over_is_an_error_that_names_the_file() -> None:
    data = bytearray(TINY_FILE)
    assert footer(bytes(data)).groups
    data[HISTOGRAM] = 0x60
    with pytest.raises(CatalogError, match=r"q\.parquet.*rhumb index"):
        parse(bytes(data), TINY, "q.parquet")


def chunk_of(*fields: bytes) -> bytes:
    """A footer of one row group of one column chunk: its bytes after the fields of a sound one."""
    data = b"\x29\x15\x00" + b"\x19\x18\x01a" + b"\x26\x02\x16\x04\x16\x06\x26\x08" + b"\x00"
    chunk = b"\x3c" + data + b"".join(fields) + b"\x00"
    group = b"\x19\x1c" + chunk + b"\x16\x0a\x16\x02" + b"\x00"
    return b"\x36\x02" + b"\x19\x1c" + group + b"\x00"


def test_encrypted_columns_are_refused() -> None:
    sound = Footer(chunk_of(), "file", "again")
    (group,) = sound.groups
    assert (group.num_rows, group.total_byte_size, sound.num_rows) == (1, 5, 1)
    (chunk,) = group.chunks
    assert (chunk.path_in_schema, chunk.encodings, chunk.num_values) == ("a", ("PLAIN",), 1)
    assert (chunk.total_uncompressed_size, chunk.total_compressed_size, chunk.data_page_offset) == (2, 3, 4)
    for crypto in (b"\x5c\x00", b"\x68\x01x"):  # fields 8 and 9 of a column chunk
        with pytest.raises(CatalogError, match=r"file: found encrypted columns.*again"):
            _ = Footer(chunk_of(crypto), "file", "again").groups


@pytest.mark.parametrize("cut", [9, 60, 200, 400])
def test_a_footer_that_breaks_off_is_refused(cut: int) -> None:
    with pytest.raises(CatalogError, match=r"cannot be followed.*again"):
        _ = Footer(footer_in(TINY_FILE)[:-cut], "file", "again").groups


@pytest.mark.parametrize("text", [b"\x1c" * 200, b"\x19\xfc\xff\xff\xff\x7f" + b"\x1c" * 99, b"\x06" + b"\xff" * 99])
def test_a_footer_that_would_take_long_is_refused(text: bytes) -> None:
    with pytest.raises(CatalogError, match="cannot be followed"):
        _ = Footer(text, "file", "again").groups


@settings(deadline=None)
@given(data=st.binary(max_size=400))
def test_whatever_the_bytes_reading_ends(data: bytes) -> None:
    try:
        _ = Footer(data, "file", "again").groups
    except CatalogError as error:
        assert "again" in str(error)
