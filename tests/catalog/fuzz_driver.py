"""Run by the tests in a process of its own, which a crash may end: every damage of an index's files, then searched.

python -m tests.catalog.fuzz_driver FOLDER: damages the quantiser and the codes of indexes of the catalog in FOLDER in
many ways, each with right checksums, as whoever made a pack could. Prints one JSON document: how often reading was
refused, how often the damage was harmless, so that the index was read, and how often `verify` missed what reading
refused; and whatever else was raised.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog import manifest as manifests
from catalog.index import DirectionIndex, build_indexes
from catalog.manifest import Manifest
from catalog.reader import Catalog
from catalog.search import plan
from catalog.verify import verify
from pipeline.errors import CatalogError

FLIPS = 12


def rewritten(data: bytes) -> Iterator[bytes]:
    """Whole Parquet files with other content: fewer and more rows, NaN and infinity, huge numbers, other types."""
    table = pq.read_table(pa.BufferReader(data))
    yield from (_parquet(part) for part in (table[:0], table[1:], pa.concat_tables([table, table]), table[::-1]))
    for number, field in enumerate(table.schema):
        yield _parquet(table.drop_columns([field.name]))
        yield _parquet(table.rename_columns([n if n != field.name else "other" for n in table.column_names]))
        if pa.types.is_integer(field.type):
            for value in (-1, 2**31 - 1):
                yield _parquet(table.set_column(number, field, pa.array([value] * len(table), field.type)))
        if pa.types.is_list(field.type):
            for value in (float("nan"), float("inf"), 1e30):
                rows = [[value] * len(row) for row in table.column(number).to_pylist()]
                yield _parquet(table.set_column(number, field, pa.array(rows, field.type)))
            yield _parquet(table.set_column(number, field, pa.array([[]] * len(table), field.type)))
        if pa.types.is_fixed_size_binary(field.type):
            for byte in (b"\x00", b"\xff"):
                rows = [byte * field.type.byte_width] * len(table)
                yield _parquet(table.set_column(number, field, pa.array(rows, field.type)))


def _parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def damaged(data: bytes, generator: np.random.Generator) -> Iterator[bytes]:
    """Truncated, empty, longer, of another kind, with flipped bits everywhere, sizes beyond all memory, rewritten."""
    yield from (b"", b"PAR1", b"not an index", data + data, data.replace(b"PAR1", b"PAR2"))
    for end in generator.integers(1, len(data), 8).tolist():
        yield data[:end]
    for place in [*generator.integers(0, len(data), FLIPS).tolist(), *range(len(data) - FLIPS, len(data))]:
        changed = bytearray(data)
        changed[place] ^= 1 << int(generator.integers(0, 8))
        yield bytes(changed)
    for size in (0, 2**31 - 1, 2**32 - 1):
        yield data[:-8] + struct.pack("<I", size) + data[-4:]
    yield from rewritten(data)


def tried(folder: Path, name: str) -> str:
    """What reading and searching the index gives: "refused", "read", or the type of any other error."""
    try:
        with Catalog.open(folder) as catalog:
            index = DirectionIndex(catalog, name)
            size = {"x": 768, "h": 64, "effect": 768}[name]
            index.search(np.ones(size, np.float32), 5)
        return "read"
    except CatalogError:
        return "refused"
    except Exception as error:
        return type(error).__name__


def planted(folder: Path, manifest: Manifest, name: str, path: str, data: bytes) -> None:
    """Put `data` in the place of a file of an index, and write a manifest that has it so."""
    entry = manifest.indexes[name]  # type: ignore[index]
    own = f"index/damaged-{name}.parquet"
    (folder / own).write_bytes(data)
    told = manifest.files[path].model_copy(
        update={"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "footer": None}
    )
    codes = {shard: own if at == path else at for shard, at in entry.codes.items()}
    quantiser = own if entry.quantiser == path else entry.quantiser
    changed = entry.model_copy(update={"codes": codes, "quantiser": quantiser})
    files = {at: file for at, file in manifest.files.items() if at != path} | {own: told}
    new = manifest.model_copy(update={"files": files, "indexes": {**manifest.indexes, name: changed}})
    (folder / "manifest.json").write_bytes(manifests.dump(new))


def main(folder: Path) -> None:
    """Damage one file after the other, each alone."""
    generator, counts = np.random.default_rng(0), {"missed": 0}
    manifest = manifests.load(folder)
    for name in ("x", "h"):  # with and without a stored projection
        entry = manifest.indexes[name]  # type: ignore[index]
        for path in filter(None, (entry.quantiser, sorted(entry.codes.values())[0])):
            whole = (folder / path).read_bytes()
            (folder / path).unlink()
            for number, data in enumerate(damaged(whole, generator)):
                planted(folder, manifest, name, path, data)
                outcome = tried(folder, name)
                counts[outcome] = counts.get(outcome, 0) + 1
                if outcome == "refused" and number % 20 == 0:
                    counts["missed"] += verify(folder).ok
            (folder / f"index/damaged-{name}.parquet").unlink()
            (folder / path).write_bytes(whole)
    print(json.dumps(counts))


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # no power cut is tested here
    plan.LEARNED_FROM, plan.FLAT_UP_TO = 8, 8
    build_indexes(sys.argv[1])
    main(Path(sys.argv[1]))
