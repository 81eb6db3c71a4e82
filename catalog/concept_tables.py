"""The table of concepts: its columns, in the form that is written and in the former one, and its vectors.

A prototype is stored as the directions that it stands for are: its vector by the codec of its space, its effect by
`codecs.effect_codec`. In the former form both were float16, and each row repeated its members as parents and its
medoid's preview. Measured on the 64 concepts of the shipped pack: 54.3 KB each formerly, 10.1 KB as they are written
now; on 781 of 11,904 moved directions 50.6 and 11.9 KB, of which 9.8 KB are the vectors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from catalog.codecs import Codec, Float16Spec, codec_for
from catalog.manifest import Manifest
from catalog.schema import ROW_GROUP, Layout, list_of, pictures, plain, vector_column, with_features
from catalog.tables import scattered, values_of
from pipeline.errors import CatalogError

BUILD = "Run `rhumb concepts CATALOG --build`"
EFFECT = "effect_vector"
MEDIANS = ("gain", "gain_q10", "gain_q90", "leakage", "leakage_q10", "leakage_q90", "strength")
SHARES = ("agreement", "effect_agreement", "spread_q10", "spread_q50", "spread_q90")
LISTS = {"members": pa.string(), "signs": pa.int8(), "cosines": pa.float32(), "effect_cosines": pa.float32()}


@dataclass(frozen=True)
class Form:
    """One form of the table: its columns, and by name the codecs of those that hold vectors."""

    schema: pa.Schema
    codecs: Mapping[str, Codec]

    @property
    def plain(self) -> list[str]:
        """Columns without vectors."""
        own = {field.name for column, codec in self.codecs.items() for field in codec.fields(column, nullable=True)}
        return [name for name in self.schema.names if name not in own]

    def vector(self, table: pa.Table, row: int, column: str, at: str) -> np.ndarray | None:
        """float32 (D,) of unit norm within 1e-3, None for a null. Raises CatalogError: none that a writer would have
        stored. `at` names the row.
        """
        codec = self.codecs[column]
        cells = {field.name: table.column(field.name).slice(row, 1) for field in codec.fields(column, nullable=True)}
        if column != EFFECT and cells[column].null_count:
            return None
        try:
            found = codec.decode({name: values_of(cell, name) for name, cell in cells.items()})
        except CatalogError as error:
            raise CatalogError(f"{at}: {error.field}", error.found, error.expected, BUILD) from error
        return np.asarray(found[0])

    def columns(self, vectors: Mapping[str, Sequence[np.ndarray | None]], names: Sequence[str]) -> dict[str, pa.Array]:
        """The columns of vectors, float32 (D,) or None by row, of rows of these names.

        Raises CatalogError naming the row and column: not of unit norm to within 1e-3, or not finite.
        """
        found: dict[str, pa.Array] = {}
        for column, codec in self.codecs.items():
            present = np.array([vector is not None for vector in vectors[column]], dtype=bool)
            parts = [codec.encode(np.zeros((0, codec.size), np.float32), column)]
            for name, vector in zip(names, vectors[column], strict=True):
                if vector is not None:
                    parts.append(_encoded(codec, vector, column, name))
            for field in codec.fields(column, nullable=column != EFFECT):
                found[field.name] = scattered(np.concatenate([part[field.name] for part in parts]), present, field)
        return found


def _encoded(codec: Codec, vector: np.ndarray, column: str, at: str) -> dict[str, np.ndarray]:
    try:
        return codec.encode(np.asarray(vector, dtype=np.float32).reshape(1, -1), column)
    except CatalogError as error:
        raise CatalogError(f"{at}: {error.field}", error.found, error.expected, error.action) from error


def written_form(layout: Layout) -> Form:
    """The form that concepts of a catalog are written in."""
    codecs = {EFFECT: layout.effect_codec}
    codecs |= {vector_column(space): layout.stored[space] for space in sorted(layout.spaces)[::-1]}
    return _form(layout, codecs, (), ())


def former_form(layout: Layout) -> Form:
    """The form that they lie in where the manifest names no codec of their effects."""
    codecs = {EFFECT: codec_for(Float16Spec(), layout.effect_shape)}
    shapes = {vector_column(space): layout.spaces[space] for space in sorted(layout.spaces)[::-1]}
    codecs |= {column: codec_for(Float16Spec(), shape) for column, shape in shapes.items()}
    return _form(layout, codecs, ("parents",), ("preview",))


def _form(layout: Layout, codecs: Mapping[str, Codec], lists: Sequence[str], shown: Sequence[str]) -> Form:
    fields = plain(pa.string(), "concept_id", "region", "space", "kind") + plain(pa.int32(), "timestep")
    fields += plain(list_of(pa.string()), "datasets")
    fields += [pa.field(name, list_of(dtype), nullable=False) for name, dtype in LISTS.items()]
    fields += plain(pa.int64(), "images", "of_images") + plain(pa.float64(), *SHARES, *MEDIANS)
    fields += plain(pa.string(), "medoid", "image_id") + plain(pa.string(), "region_id", nullable=True)
    fields += plain(list_of(pa.string()), *lists) + pictures("effect", *shown)
    fields += [field for name, codec in codecs.items() for field in codec.fields(name, nullable=name != EFFECT)]
    return Form(with_features([field for field in fields if field.name not in layout.left_out]), codecs)


def stored_form(manifest: Manifest) -> Form:
    """The form of the concepts that a catalog holds."""
    coded = manifest.concepts is None or manifest.concepts.effect is not None
    return written_form(manifest.layout) if coded else former_form(manifest.layout)


def form_of(schema: pa.Schema, layout: Layout, name: str = "concepts") -> Form:
    """The form that has these columns. Raises CatalogError naming `name` where neither does."""
    for form in (written_form(layout), former_form(layout)):
        if schema.equals(form.schema):
            return form
    raise CatalogError(name, "other columns or types", "those of a table of concepts", BUILD)


def rewritten(table: pa.Table, former: Form, layout: Layout) -> pa.Table:
    """Rows of one form as concepts of `layout` are written, which may lack some columns. Vectors that are stored by the
    same codecs stay as they are, byte for byte.

    Raises CatalogError for a vector that no writer would have stored.
    """
    form = written_form(layout)
    if all(table.schema.field(name).equals(form.schema.field(name)) for name in form.codecs):
        return table.select(form.schema.names).replace_schema_metadata(form.schema.metadata)
    parts = [form.schema.empty_table()]
    for start in range(0, table.num_rows, ROW_GROUP):  # of which few are decoded at once
        rows = table.slice(start, ROW_GROUP)
        names = [f"concept {key}" for key in rows.column("concept_id").to_pylist()]
        vectors = {
            column: [former.vector(rows, row, column, at) for row, at in enumerate(names)] for column in form.codecs
        }
        ready = form.columns(vectors, names)
        columns = [ready[name] if name in ready else rows.column(name) for name in form.schema.names]
        parts.append(pa.Table.from_arrays(columns, schema=form.schema))
    return pa.concat_tables(parts)


def without(layout: Layout, left_out: Collection[str]) -> Layout:
    """A layout that lacks these columns too."""
    return replace(layout, left_out=layout.left_out | frozenset(left_out))
