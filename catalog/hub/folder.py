"""The folder in which the new files of a draft are written: each flushed, and known by what is on the disk then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from catalog.chunks import read_back
from catalog.fs import FOLDERS, check_relative, flush_folder, write_flushed_by
from catalog.manifest import FileEntry
from catalog.reader import Catalog
from catalog.selecting import copy_file
from catalog.shards import LONGEST_LIST, write_shard
from catalog.transaction import entry_of

_DRAFT = "new.tmp"


class DraftFolder:
    """Files by their names in the catalog; `{digest}` in a name becomes the first 16 digits of the file's sha256."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries: dict[str, FileEntry] = {}

    def write(self, name: str, write: Callable[[BinaryIO], object], rows: int | None = None) -> str:
        """Write a file through `write(stream)`, and return its name. `rows`: of a Parquet file."""
        draft = self.root / _DRAFT
        write_flushed_by(draft, write)
        entry = entry_of(draft, rows)
        path = check_relative(name.replace("{digest}", entry.sha256[:16]))
        (self.root / path).parent.mkdir(exist_ok=True)
        draft.replace(self.root / path)
        self.entries[path] = entry
        return path

    def write_table(self, name: str, rows: pa.Table, settings: Mapping[str, Any], longest: int = LONGEST_LIST) -> str:
        """Write a shard and read it back; its name. Raises CatalogError where the disk holds other rows than given."""
        path = self.write(name, lambda stream: write_shard(rows, stream, settings), rows.num_rows)
        read_back(self.root / path, self.entries[path], rows, path, longest)
        return path

    def copy(self, source: Catalog, path: str) -> str:
        """A file of a catalog as it is, under its own name. Raises CatalogError where it is not as committed."""
        return copy_file(source, path, self.write, self.entries)

    def flush(self) -> None:
        """Make the names of all files durable."""
        for folder in [*(self.root / name for name in FOLDERS), self.root]:
            if folder.is_dir():
                flush_folder(folder)
