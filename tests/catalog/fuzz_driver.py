"""Run by the tests in a process of its own, which a crash may end: every damage of an index file, read and searched.

python -m tests.catalog.fuzz_driver FOLDER: damages each index of the catalog in FOLDER in many ways, each with right
checksums, as whoever made a pack could. Prints one JSON document: how often reading was refused and how often the
damage lay in the vectors alone, so that the index was read; and whatever else was raised.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from catalog.index import DirectionIndex, build_index, build_indexes
from catalog.reader import Catalog
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError

FLIPS = 60


def damaged(data: bytes, generator: np.random.Generator) -> Iterator[bytes]:
    """Truncated, empty, longer, of another kind, with flipped bits everywhere, and with sizes beyond all memory."""
    yield b""
    yield b"IxM2"
    yield b"not an index"
    yield data + data
    yield data.replace(b"IxFI", b"IxF2")
    yield data.replace(b"IxM2", b"IHNf")
    for end in generator.integers(1, len(data), 10).tolist():
        yield data[:end]
    for place in [*range(90), *generator.integers(0, len(data), FLIPS).tolist(), len(data) - 1]:
        changed = bytearray(data)
        changed[place] ^= 1 << int(generator.integers(0, 8))
        yield bytes(changed)
    for place in (4, 8, 41, 45, 74, 82):
        for size in (-1, 2**31 - 1, 2**40):
            changed = bytearray(data)
            changed[place : place + 8] = struct.pack("<q", size)
            yield bytes(changed)
    yield data.replace(struct.pack("<f", np.frombuffer(data, "<f4", 1, 82)[0]), struct.pack("<f", float("nan")), 1)


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


def main(folder: Path) -> None:
    generator, counts = np.random.default_rng(0), {"verified": 0}
    with Catalog.open(folder) as catalog:
        whole = {name: build_index(catalog, name) for name in ("x", "h", "effect")}
    for name, built in whole.items():
        for number, data in enumerate(damaged(built.faiss, generator)):
            with CatalogWriter.open(folder) as writer:
                writer.replace_indexes({name: dataclasses.replace(built, faiss=data)})
            outcome = tried(folder, name)
            counts[outcome] = counts.get(outcome, 0) + 1
            if outcome == "refused" and number % 10 == 0:
                counts["verified"] += not verify(folder).ok
    build_indexes(folder)
    print(json.dumps(counts))


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # no power cut is tested here
    main(Path(sys.argv[1]))
