"""Catalogs as a pack, or a part of one, leaves them: without some columns, and without some directions."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.concept_files import stored_table
from catalog.concept_tables import rewritten, stored_form
from catalog.manifest import ChunkEntry, PackPart
from catalog.reader import Catalog
from catalog.records import content_id
from catalog.schema import KEYS, TABLES, table_schema
from catalog.writer import CatalogWriter, stage_table

PART = PackPart(repository="org/pack", version="1.2.0", revision="a1" * 20, filters={"region": ("mouth",)})


def published(
    source: Path,
    out: Path,
    left_out: Collection[str] = (),
    part: PackPart | None = None,
    keep: Collection[str] | None = None,
) -> Path:
    """The catalog of a source's directions (those of ids `keep`), images and regions, and its concepts as they are."""
    with (
        Catalog.open(source) as catalog,
        CatalogWriter.create(out, catalog.manifest.provenance, catalog.layout.codecs, left_out, part) as writer,
    ):
        layout = writer.manifest.layout
        with writer.transaction() as transaction:
            tables = {}
            for table in TABLES:
                rows = catalog.whole_shards(table, catalog.manifest.shards(table))
                if keep is not None and table == "directions":
                    rows = rows.filter(pc.is_in(rows.column(KEYS[table]), value_set=pa.array(sorted(keep))))
                schema = table_schema(table, layout)
                tables[table] = rows.select(schema.names).replace_schema_metadata(schema.metadata)
            shards = {table: (stage_table(transaction, table, rows, layout),) for table, rows in tables.items()}
            counts = {table: rows.num_rows for table, rows in tables.items()}
            ids = [sorted(rows.column(KEYS[table]).to_pylist()) for table, rows in tables.items()]
            entry = ChunkEntry.model_validate({"digest": content_id(*ids), "rows": counts, "shards": shards})
            writer.finish(transaction, writer.manifest, {"chunks": {"all": entry}})
        stored = stored_table(catalog)
        if stored is not None:
            writer.replace_concepts(rewritten(stored, stored_form(catalog.manifest), layout))
    return out


def ids_of(folder: Path, **equals: str) -> list[str]:
    """Ids of the directions that match, sorted."""
    with Catalog.open(folder) as catalog:
        return [key.decode() for key in catalog.ids()[np.asarray(catalog.select(**equals))]]
