"""The files that a catalog's concepts lie in: read a row group at a time, after what others could have put there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa

from catalog.concept_tables import BUILD, stored_form
from catalog.footer import Footer
from catalog.fs import sha256_of
from catalog.manifest import ID_BYTES, Manifest
from catalog.reader import Catalog
from catalog.shards import open_shard
from pipeline.errors import CatalogError


def stored_table(catalog: Catalog) -> pa.Table | None:
    """The table of concepts that a catalog holds, made of its directions or of former ones; None without.

    Vectors are as they are stored, in which all take little memory. Raises CatalogError: missing or changed file, or
    one of absurd lengths.
    """
    if catalog.manifest.concepts is None:
        return None
    parts = [rows for _, rows in stored_rows(catalog)]
    return pa.concat_tables([stored_form(catalog.manifest).schema.empty_table(), *parts]).sort_by("concept_id")


def most_members(manifest: Manifest) -> int:
    """Members that all concepts of one file may have together: no direction of a group is in two of them."""
    assert manifest.concepts is not None  # it is asked of theirs
    there = max(1, manifest.rows("directions"))
    if manifest.part is None:
        return there
    return max(there, sum(manifest.files[path].bytes for path in manifest.concepts.paths) // ID_BYTES)


def stored_rows(catalog: Catalog, columns: Sequence[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
    """The files of a catalog's concepts and their rows, all columns or some, one row group after the other.

    Nothing is unpacked before a file's bytes, footer, columns, rows and sizes are those that it may have. Memory: a row
    group. Raises CatalogError.
    """
    entry, schema = catalog.manifest.concepts, stored_form(catalog.manifest).schema
    for name in entry.paths if entry is not None else ():
        path, known = catalog.file(name), catalog.manifest.files[name]
        if not path.is_file() or path.stat().st_size != known.bytes or sha256_of(path) != known.sha256:
            raise CatalogError(str(path), "a missing or changed file", "the concepts as committed", BUILD)
        members = most_members(catalog.manifest)
        try:
            with open_shard(path, known, schema, longest=members) as file:
                check_sizes(file.footer, schema, members, str(path))
                file.check_pages(columns=columns)
                if entry is not None and entry.path is not None and file.footer.num_rows != entry.rows:
                    raise CatalogError(str(path), f"{file.footer.num_rows} rows", f"{entry.rows}", BUILD)
                for group in range(len(file.footer.groups)):
                    yield name, file.read_row_group(group, columns)
        except CatalogError as error:  # concepts are built anew, where shards are pulled or mined again
            raise CatalogError(error.field, error.found, error.expected, BUILD) from error
        except (OSError, ValueError, pa.ArrowException) as error:
            found = f"an unreadable file ({str(error)[:200]})"
            raise CatalogError(str(path), found, "a whole table", BUILD) from error


def check_sizes(footer: Footer, schema: pa.Schema, members: int, path: str) -> None:
    """Raise CatalogError where the lists of a file's concepts hold more than `members` together, as its footer says."""
    rows = footer.num_rows
    listed = {field.name for field in schema if pa.types.is_list(field.type)}
    values: Counter[str] = Counter()
    for chunk in (chunk for group in footer.groups for chunk in group.chunks):
        values[chunk.path_in_schema.split(".")[0]] += chunk.num_values
    for name in sorted(listed):
        if values[name] > members + rows:
            raise CatalogError(f"{path}: {name}", f"{values[name]} values", f"at most {members} and {rows}", BUILD)
