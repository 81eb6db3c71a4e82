"""The golden catalog of the present format version: `python -m tests.catalog.make_golden FOLDER`, once per version.

It is made before a version is released and never again: what is kept is what that release wrote.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from catalog.concept_building import build_concepts
from catalog.index import build_indexes
from catalog.pictures import encode_png
from catalog.reader import Catalog
from catalog.writer import CatalogWriter
from tests.catalog.samples import chunk_of, failed_chunk, provenance

CHUNKS = (chunk_of("chunk-0", 1), chunk_of("chunk-1", 1, ("mouth",)))
FAILED = failed_chunk("chunk-2", "broken.png")
RECORDS = tuple(direction for chunk in CHUNKS for direction in chunk.directions)


def make(folder: Path) -> None:
    with CatalogWriter.create(folder, provenance()) as writer:
        for chunk in (*CHUNKS, FAILED):
            writer.commit(chunk)
        writer.add_picture("sheet", encode_png(np.full((4, 4, 3), 9, np.uint8)))
    build_indexes(folder)
    with CatalogWriter.open(folder) as writer, Catalog(folder, writer.manifest) as catalog:
        writer.replace_concepts(build_concepts(catalog, least=1))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
