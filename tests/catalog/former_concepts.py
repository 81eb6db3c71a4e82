"""Concepts as they were stored before their vectors had codecs: float16, with parents and previews of their own."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from catalog import manifest as manifests
from catalog.concept_files import stored_table
from catalog.concept_tables import EFFECT, former_form
from catalog.concepts import read_concepts
from catalog.manifest import ConceptsEntry
from catalog.pictures import encode_png
from catalog.reader import Catalog
from catalog.schema import parquet_settings, vector_column
from catalog.writer import CatalogWriter, stage_read_back


def formerly(table: pa.Table, catalog: Catalog) -> pa.Table:
    """A table of concepts in the former form."""
    form, concepts = former_form(catalog.layout), read_concepts(table, catalog)
    vectors = {
        column: [c.vector if vector_column(c.space) == column else None for c in concepts] for column in form.codecs
    }
    ready = form.columns({**vectors, EFFECT: [c.effect for c in concepts]}, [c.concept_id for c in concepts])
    ready["parents"] = table.column("members")
    if "preview" in form.schema.names:
        shown = [{"bytes": encode_png(concept.pictures()), "path": None} for concept in concepts]
        ready["preview"] = pa.array(shown, form.schema.field("preview").type)
    columns = [ready[name] if name in ready else table.column(name) for name in form.schema.names]
    return pa.Table.from_arrays(columns, schema=form.schema)


def made_former(folder: Path) -> pa.Table:
    """Put the concepts of a catalog in the former form, as an earlier release had written them; the table."""
    with CatalogWriter.open(folder) as writer, Catalog(folder, writer.manifest) as catalog:
        stored, former = stored_table(catalog), catalog.manifest.concepts
        assert stored is not None and former is not None
        table = formerly(stored, catalog)
        settings = parquet_settings("concepts", table.schema, catalog.layout)
        with writer.transaction() as transaction:
            path = stage_read_back(transaction, "concepts/{digest}.parquet", table, settings)
            entry = ConceptsEntry(path=path, rows=table.num_rows, directions_fingerprint=former.directions_fingerprint)
            writer.finish(
                transaction, writer.manifest, manifests.with_concepts(writer.manifest, entry), [*former.paths]
            )
    return table
