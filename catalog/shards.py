"""One Parquet shard: written with a checksum of every piece that is read alone, and refused where it is not so.

Pages carry checksums of their bodies, and the manifest one of the footer; nothing covers the headers of pages, where
one changed byte reads as other numbers. The footer of a shard therefore holds the crc32 of each column chunk, headers
and all, under the key `rhumb.sums`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.footer import Chunk, Footer, footer_in
from catalog.fs import PARQUET_TAIL, footer_of
from catalog.manifest import FileEntry
from catalog.pages import total
from pipeline.errors import CatalogError, RhumbError

SUMS = "rhumb.sums"
"""Footer key: base64 of little-endian uint32, row groups x leaf columns in the order of the file."""
LONGEST_LIST = 4096
"""Items of a list of variable length (spectrum, parents, factors), on average over a row group at most."""
_UNPACKED, _SMALL = 200, 2**26  # times its size that a shard may unpack to, beyond the first bytes
# Of the values of a chunk; the others write a few bytes that unpack to any number of long strings.
_ENCODINGS = frozenset({"PLAIN", "RLE", "BIT_PACKED", "BYTE_STREAM_SPLIT"})
REPAIR = "Run `rhumb verify` and pull or mine it again"
Span = tuple[int, int]
"""First byte of a piece of a file, and its bytes."""
Fetch = Callable[[Sequence[Span]], object]
"""Called with what is about to be read of a file that may not be whole here."""
_TAIL = (2**12, 2**16)  # bytes at the end of a file that are fetched for its footer: an eighth of it, within these


class Shard:
    """An open shard: what is read of it was compared with its checksums. Close it, or use it as a context manager."""

    def __init__(
        self, path: Path, source: pa.OSFile, file: pq.ParquetFile, footer: Footer, longest: int, fetch: Fetch | None
    ) -> None:
        self.path, self.footer, self._told = path, footer, file.metadata.metadata or {}
        self._source, self._file, self._longest, self._fetch = source, file, longest, fetch

    @cached_property
    def schema_arrow(self) -> pa.Schema:
        """The columns, without the checksums among the metadata."""
        return plain_schema(self._file)

    @property
    def group_size(self) -> int:
        """Rows of every row group but the last; 1 where there are no rows."""
        return max(1, self.footer.groups[0].num_rows) if self.footer.groups else 1

    @property
    def leaves(self) -> int:
        """Leaf columns of its schema."""
        return len(self._names)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Some columns, or all, of all rows. Raises CatalogError for damage."""
        return self._read(None, columns)

    def read_row_group(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Some columns, or all, of one row group. Raises CatalogError for damage."""
        return self._read(group, columns)

    def expect(self, groups: Sequence[int], columns: Sequence[str]) -> None:
        """Tell the system what will be read soon: from a disk, or afar, many pieces come in the time of a few."""
        leaves = [leaf for name in columns for leaf in self._leaves[name]]
        spans = self._spans(groups, leaves)
        if self._fetch is not None:
            self._fetch(spans)
        elif hasattr(os, "posix_fadvise"):
            with self.path.open("rb") as file:
                for start, size in spans:
                    os.posix_fadvise(file.fileno(), start, size, os.POSIX_FADV_WILLNEED)

    def _spans(self, groups: Sequence[int], leaves: Sequence[int]) -> list[Span]:
        """Where some column chunks lie, those that lie within the file."""
        found, size = [], self._source.size()
        for number in groups:
            chunks = (self.footer.groups[number].chunks[leaf] for leaf in leaves)
            found += [(chunk.data_page_offset, chunk.total_compressed_size) for chunk in chunks]
        return [(start, length) for start, length in found if start >= 0 and 0 <= length <= size - start]

    def _read(self, group: int | None, columns: Sequence[str] | None) -> pa.Table:
        names = self.schema_arrow.names if columns is None else list(columns)
        groups = range(len(self.footer.groups)) if group is None else [group]
        try:
            self._check_chunks(groups, names)
            if group is None:
                found = self._file.read(names)
            else:  # threads cost more than they save on so few rows
                found = self._file.read_row_group(group, names, use_threads=False)
            expected = self.footer.num_rows if group is None else self.footer.groups[group].num_rows
            if found.num_rows != expected:
                raise CatalogError(str(self.path), f"{found.num_rows} rows", f"{expected}, as its footer says", REPAIR)
            _check_values(found, str(self.path))
        except RhumbError:  # of a store, which is an OSError
            raise
        except (OSError, pa.ArrowException) as error:
            raise damaged(self.path, error) from error
        ordered = found if found.column_names == names else found.select(names)
        return ordered.replace_schema_metadata(self._metadata)

    @cached_property
    def _metadata(self) -> pa.KeyValueMetadata:
        return pa.KeyValueMetadata(self.schema_arrow.metadata or {})

    def _check_chunks(self, groups: Sequence[int], names: Sequence[str]) -> None:
        """Compare the column chunks to be read with their checksums, and their sizes with what rows account for."""
        leaves = sorted(leaf for name in names for leaf in self._leaves[name])
        if self._fetch is not None:
            self._fetch(self._spans(groups, leaves))
        for number in groups:
            group = self.footer.groups[number]
            chunks = [group.chunks[leaf] for leaf in leaves]
            for leaf, chunk in zip(leaves, chunks, strict=True):
                self._check_size(leaf, chunk, group.num_rows)
            if self._sums is not None:
                sums = self._sums[number]
                for leaf, own in zip(leaves, _checksums(self._source, chunks), strict=True):
                    if own != sums[leaf]:
                        at = f"{self.path}: {self._names[leaf]}"
                        raise CatalogError(at, "changed bytes", "the shard as committed", REPAIR)

    def _check_size(self, leaf: int, chunk: Chunk, rows: int) -> None:
        at = f"{self.path}: {self._names[leaf]}"
        most = rows * self._most[leaf]
        if chunk.num_values > most:
            raise CatalogError(at, f"{chunk.num_values} values in {rows} rows", f"at most {most}", REPAIR)
        if chunk.has_dictionary_page or not _ENCODINGS.issuperset(chunk.encodings):
            raise CatalogError(at, f"encodings {chunk.encodings}", "values as they are, without a dictionary", REPAIR)

    def check_pages(self, group: int | None = None, columns: Sequence[str] | None = None) -> None:
        """Raise CatalogError where pages hold more, or other, than the footer says, whose figures all else goes by.

        For what comes from others, before any of it is unpacked. Reads some columns, or all, of a row group, or of all;
        some 10 us a page.
        """
        unpacked, groups = 0, range(len(self.footer.groups)) if group is None else (group,)
        wanted = self._leaves if columns is None else columns
        leaves = sorted(leaf for name in wanted for leaf in self._leaves[name])
        if self._fetch is not None:
            self._fetch(self._spans(groups, leaves))
        for number in groups:
            for leaf in leaves:
                name, chunk = self._names[leaf], self.footer.groups[number].chunks[leaf]
                self._check_size(leaf, chunk, self.footer.groups[number].num_rows)
                unpacked += chunk.total_uncompressed_size
                told = (chunk.num_values, chunk.total_uncompressed_size)
                start, size = chunk.data_page_offset, chunk.total_compressed_size
                if start < 0 or not 0 <= size <= self._source.size() - start:
                    raise CatalogError(f"{self.path}: {name}", "a column outside its file", "one within", REPAIR)
                found = total(self._source.read_at(size, start), f"{self.path}: {name}")
                if found != told:
                    raise CatalogError(f"{self.path}: {name}", f"pages of {found}", f"{told} values, bytes", REPAIR)
        if unpacked > most_unpacked(self._source.size()):
            raise CatalogError(str(self.path), f"{unpacked} bytes unpacked", "what its size accounts for", REPAIR)

    @cached_property
    def _sums(self) -> list[list[int]] | None:
        """The checksum of each chunk, by row group and leaf; None in shards that have none."""
        text = self._told.get(SUMS.encode())
        if text is None:
            return None
        shape = (len(self.footer.groups), len(self._names))
        try:
            sums = np.frombuffer(base64.b64decode(text, validate=True), "<u4").reshape(shape)
        except (binascii.Error, ValueError) as error:
            raise CatalogError(f"{self.path}: {SUMS}", "no such list", f"{shape} checksums", REPAIR) from error
        rows: list[list[int]] = sums.tolist()
        return rows

    @cached_property
    def _leaves(self) -> dict[str, list[int]]:
        """The leaf columns of each column."""
        leaves: dict[str, list[int]] = {}
        for leaf, name in enumerate(self._names):
            leaves.setdefault(name, []).append(leaf)
        return leaves

    @cached_property
    def _names(self) -> list[str]:
        """The column of each leaf."""
        return [field.name for field in self.schema_arrow for _ in _values_a_row(field.type, self._longest)]

    @cached_property
    def _most(self) -> list[int]:
        """Values that a row may have at most, by leaf."""
        return [most for field in self.schema_arrow for most in _values_a_row(field.type, self._longest)]

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._file.close(force=True)
        self._source.close()

    def __enter__(self) -> Shard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_shard(
    path: Path,
    entry: FileEntry,
    schema: pa.Schema | None = None,
    longest: int = LONGEST_LIST,
    fetch: Fetch | None = None,
) -> Shard:
    """A Parquet file as the manifest describes it: its footer, size, rows, and no more in it than these account for.

    `schema`: the columns it must have: names, types, nullability. `longest`: items that lists may have a row. `fetch`:
    has what is about to be read put into the file, which has its full size but may be empty in between.

    Raises CatalogError: missing, damaged, of other columns, of row groups of several sizes, or of absurd lengths.
    """
    try:
        if fetch is not None:
            _fetch_footer(path, entry.bytes, fetch)
        tail = footer_of(path)
        if entry.footer is not None and hashlib.sha256(tail).hexdigest() != entry.footer:
            raise CatalogError(str(path), "a changed footer", "the shard as committed", REPAIR)
        source = pa.OSFile(str(path))
    except RhumbError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, error) from error
    try:
        shard = _opened(path, source, Footer(tail, str(path), REPAIR), longest, fetch)
        _check_footer(shard, entry, source.size(), schema)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        source.close()
        raise damaged(path, error) from error
    except CatalogError:
        source.close()
        raise
    return shard


def _fetch_footer(path: Path, size: int, fetch: Fetch) -> None:
    """Have the end of a file fetched, which says how long the footer is, and then what is left of it."""
    first = min(size, max(_TAIL[0], min(_TAIL[1], size // 8)))
    fetch([(size - first, first)])
    with path.open("rb") as stream:
        stream.seek(max(0, size - PARQUET_TAIL))
        length = int.from_bytes(stream.read(4), "little") + PARQUET_TAIL
    if first < length <= size:
        fetch([(size - length, length)])


def _opened(path: Path, source: pa.OSFile, footer: Footer, longest: int, fetch: Fetch | None) -> Shard:
    metadata = pq.read_metadata(source)
    summed = SUMS.encode() in (metadata.metadata or {})  # checksums of whole chunks take in those of pages
    file = pq.ParquetFile(source, metadata=metadata, page_checksum_verification=not summed)
    return Shard(path, source, file, footer, longest, fetch)


def _check_footer(shard: Shard, entry: FileEntry, size: int, schema: pa.Schema | None) -> None:
    footer, at = shard.footer, str(shard.path)
    groups = footer.groups
    unpacked, most = sum(group.total_byte_size for group in groups), most_unpacked(entry.bytes)
    if size != entry.bytes:
        raise CatalogError(at, f"{size} bytes", f"{entry.bytes}", REPAIR)
    if footer.num_rows != entry.rows or unpacked > most:
        found = f"{footer.num_rows} rows of {unpacked} bytes unpacked"
        raise CatalogError(at, found, f"{entry.rows} rows of at most {most} bytes", REPAIR)
    rows = [group.num_rows for group in groups]
    even = all(n == rows[0] for n in rows[:-1]) and (len(rows) < 2 or 0 < rows[-1] <= rows[0])
    if sum(rows) != footer.num_rows or not even:
        raise CatalogError(at, "row groups of several sizes", "one size for all but the last", REPAIR)
    if schema is not None and not shard.schema_arrow.equals(schema):
        raise CatalogError(f"{at}: {differing(shard.schema_arrow, schema)}", "another column", "the schema", REPAIR)
    if any(len(group.chunks) != shard.leaves for group in groups):
        raise CatalogError(at, "row groups of other columns", "those of its schema", REPAIR)


def most_unpacked(size: int) -> int:
    """Bytes that a file of `size` bytes may unpack to."""
    return _UNPACKED * size + _SMALL


def differing(found: pa.Schema, expected: pa.Schema) -> str:
    """The first column that two schemas disagree about; what else of them differs where none does."""
    theirs: Mapping[str, pa.Field] = {field.name: field for field in expected}
    for field in found:
        if field.name not in theirs or not field.equals(theirs[field.name]):
            return str(field.name)[:80]
    other = "order of the columns" if not found.equals(expected) else "features"
    return next((name for name in theirs if name not in found.names), other)


def plain_schema(file: pq.ParquetFile) -> pa.Schema:
    """The schema of a shard as it was given to `write_shard`, metadata included."""
    return _without_sums(file.schema_arrow)


def _without_sums(schema: pa.Schema) -> pa.Schema:
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != SUMS.encode()}
    return schema.with_metadata(metadata or None)


def damaged(path: Path, error: Exception) -> CatalogError:
    """The clear form of what Arrow and the system say of a file that cannot be read."""
    return CatalogError(str(path), f"an unreadable file ({str(error)[:120]})", "a whole Parquet shard", REPAIR)


def _values_a_row(dtype: pa.DataType, longest: int) -> Iterator[int]:
    """For each leaf of a column of this type, in the order of the file, the most values it may have in one row."""
    if pa.types.is_struct(dtype):
        for child in dtype:
            yield from _values_a_row(child.type, longest)
    elif pa.types.is_fixed_size_list(dtype) or pa.types.is_list(dtype):
        items = dtype.list_size if pa.types.is_fixed_size_list(dtype) else longest
        for most in _values_a_row(dtype.value_type, longest):
            yield max(1, items) * most
    else:
        yield 1


def _check_values(rows: pa.Table, at: str) -> None:
    """Raise CatalogError for text that is not UTF-8, a list that lacks items, or a picture without its bytes."""
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        if pa.types.is_primitive(column.type) or pa.types.is_binary(column.type):
            continue
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise CatalogError(f"{at}: {name}", str(error)[:120], "valid values", REPAIR) from error
        if pa.types.is_list(column.type) and any(_hollow(chunk.flatten()) for chunk in column.chunks):
            raise CatalogError(f"{at}: {name}", "a list that lacks an item", "lists without nulls", REPAIR)
        if pa.types.is_struct(column.type) and any(_blank(chunk) for chunk in column.chunks):
            raise CatalogError(f"{at}: {name}", "no picture", "a PNG in every row", REPAIR)


def _hollow(items: pa.Array) -> bool:
    nested = items.flatten() if pa.types.is_struct(items.type) else []
    return items.null_count > 0 or any(child.null_count > 0 for child in nested)


def _blank(pictures: pa.StructArray) -> bool:
    return bool(pictures.null_count or pictures.field(0).null_count)


def _checksums(source: pa.NativeFile, chunks: Sequence[Chunk]) -> Iterator[int]:
    """The crc32 of each column chunk, headers of pages included; neighbours are read at once."""
    spans = [(chunk.data_page_offset, chunk.total_compressed_size) for chunk in chunks]
    first = 0
    while first < len(spans):
        start, size = spans[first]
        end, last = start + size, first + 1
        while last < len(spans) and spans[last][0] == end:
            end, last = end + spans[last][1], last + 1
        if start < 0 or any(length < 0 for _, length in spans[first:last]) or end > source.size():
            raise OSError("a column outside its file")
        data = memoryview(source.read_at(end - start, start))
        for at, length in spans[first:last]:
            yield zlib.crc32(data[at - start : at - start + length])
        first = last


def write_shard(rows: pa.Table, stream: BinaryIO, settings: Mapping[str, Any]) -> None:
    """Write a table as a Parquet file with the checksum of each column chunk in its footer.

    `settings`: keyword arguments of `pyarrow.parquet.write_table`; dictionaries are never used. Where the chunks lie is
    known once they are written, so that they are written twice, the same both times. Memory: twice the file.

    Raises CatalogError where the second time gives other chunks, which no Arrow should.
    """
    rows = rows.replace_schema_metadata(_without_sums(rows.schema).metadata)
    first = _parquet(rows, settings, None)
    sums = _sums_of(first)
    second = _parquet(rows, settings, base64.b64encode(sums).decode())
    if _sums_of(second) != sums:
        raise CatalogError("shard", "other bytes when written again", "the same bytes of the same rows")
    stream.write(second)


def _parquet(rows: pa.Table, settings: Mapping[str, Any], sums: str | None) -> pa.Buffer:
    sink, own = pa.BufferOutputStream(), {**settings, "use_dictionary": False}
    group = own.pop("row_group_size", None)
    with pq.ParquetWriter(sink, rows.schema, **own) as writer:
        writer.write_table(rows, row_group_size=group)
        if sums is not None:
            writer.add_key_value_metadata({SUMS: sums})
    return sink.getvalue()


def _sums_of(data: pa.Buffer) -> bytes:
    """The value of `rhumb.sums`, not yet base64, for a whole file."""
    source = pa.BufferReader(data)
    groups = Footer(footer_in(memoryview(data)), "shard", REPAIR).groups
    chunks = [chunk for group in groups for chunk in group.chunks]
    return np.array(list(_checksums(source, chunks)), dtype="<u4").tobytes()
