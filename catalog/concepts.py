"""Concepts: directions of many images that mean the same, with the prototype that stands for them; see format.md.

`catalog.concept_building` makes them, `CatalogWriter.replace_concepts` stores them, `load_concepts` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from catalog.concept_files import stored_rows
from catalog.concept_tables import BUILD, EFFECT, LISTS, Form, form_of, written_form
from catalog.pictures import effect_picture, encode_png
from catalog.reader import SHORTEST_PREFIX, Catalog
from catalog.rules import check_concept, check_id
from catalog.schema import Layout, vector_column
from pipeline.errors import CatalogError, InputError, NotFoundError

AGREES = 0.5  # signed cosine of a member's effect to the others' from which its image agrees


@dataclass(frozen=True)
class Concept:
    """Directions of one region, space, kind and timestep that mean the same, and the direction that stands for them.

    `members` are direction ids, sorted; `signs` +-1 turn each the prototype's way; `cosines` are |cos| of each to the
    mean of the others, moved to one place, `effect_cosines` the same of effects, signed. `images` have a member, of
    the `of_images` that have such directions; `agreement` is their ratio. `effect_agreement`: mean signed cosine of
    the effects of members of different images. `spread`: 10, 50 and 90 % of `cosines`. `gain`, `leakage`, `strength`
    are medians over the members, measured on their own images; the ranges are 10 and 90 %. `medoid` is the member
    nearest to the mean: the prototype lies where that image (`image_id`, `region_id`) has the region. `vector` float32
    in the shape of the space, unit norm: the mean of the members, each turned and moved there. `effect` float32
    (C, h, w) likewise, both to the cosines of their codecs. `catalog`: where the members are. In a part of a pack the
    medoid is there, and other members may be missing.
    """

    concept_id: str
    region: str
    space: str
    kind: str
    timestep: int
    datasets: tuple[str, ...]
    members: tuple[str, ...]
    signs: tuple[int, ...]
    cosines: tuple[float, ...]
    effect_cosines: tuple[float, ...]
    images: int
    of_images: int
    agreement: float
    effect_agreement: float
    spread: tuple[float, float, float]
    gain: float
    gain_range: tuple[float, float]
    leakage: float
    leakage_range: tuple[float, float]
    strength: float
    medoid: str
    image_id: str
    region_id: str | None
    vector: np.ndarray
    effect: np.ndarray
    catalog: Catalog = field(repr=False, compare=False)

    def pictures(self) -> np.ndarray:
        """uint8 (H, 3 W, 3): the medoid's preview, turned the prototype's way: its image changed the minus way, as it
        is, and changed the plus way, by the medoid's own strength. Reads the medoid's row.

        Raises NotFoundError where previews are left out.
        """
        picture = self.catalog.preview(self.medoid)
        if self.signs[self.members.index(self.medoid)] > 0:
            return picture
        return np.concatenate(np.split(picture, 3, axis=1)[::-1], axis=1)


def concepts_table(concepts: Sequence[Concept], layout: Layout) -> pa.Table:
    """Concepts as the table that is stored, sorted by id. Raises CatalogError: a vector that is not of unit norm."""
    form, chosen = written_form(layout), sorted(concepts, key=lambda c: c.concept_id)
    names = [f"concept {concept.concept_id}" for concept in chosen]
    vectors: dict[str, list[np.ndarray | None]] = {
        column: [c.vector if column == vector_column(c.space) else None for c in chosen] for column in form.codecs
    }
    ready = form.columns({**vectors, EFFECT: [concept.effect for concept in chosen]}, names)
    shown = pa.table({EFFECT: ready[EFFECT]})
    rows = [_row(c, form.vector(shown, row, EFFECT, at)) for row, (c, at) in enumerate(zip(chosen, names, strict=True))]
    columns = [
        ready[f.name] if f.name in ready else pa.array([row[f.name] for row in rows], f.type) for f in form.schema
    ]
    return pa.Table.from_arrays(columns, schema=form.schema)


def _row(concept: Concept, effect: np.ndarray | None) -> dict[str, Any]:
    """The columns without vectors. `effect` (D,): as it is stored, so that a concept that is read and stored again is
    the same to the byte.
    """
    row = {name: getattr(concept, name) for name in Concept.__dataclass_fields__ if name != "catalog"}
    row |= dict(zip(("spread_q10", "spread_q50", "spread_q90"), concept.spread, strict=True))
    for name in ("gain", "leakage"):
        row[f"{name}_q10"], row[f"{name}_q90"] = row.pop(f"{name}_range")
    assert effect is not None  # only vectors of the other space are null
    row["effect"] = {"bytes": encode_png(effect_picture(effect.reshape(concept.effect.shape))), "path": None}
    return row


def read_concepts(table: pa.Table | None, catalog: Catalog, name: str = "concepts") -> list[Concept]:
    """The concepts of a stored table of a catalog, in either form, sorted by id.

    Raises CatalogError naming `name`, the concept and the field.
    """
    if table is None:
        raise CatalogError(name, "none", "a table of concepts", BUILD)
    form = form_of(table.schema, catalog.layout, name)
    try:
        table.validate(full=True)
        missing = [f.name for f in form.schema if not f.nullable and table.column(f.name).null_count]
        if missing:
            raise CatalogError(f"{name}: concepts: {missing[0]}", "null", "a value in every row", BUILD)
        concepts = [
            _concept(row, table, number, form, catalog, name)
            for number, row in enumerate(table.select(form.plain).to_pylist())
        ]
    except CatalogError:
        raise
    except (LookupError, TypeError, ValueError, pa.ArrowException) as error:
        raise CatalogError(name, f"unreadable values ({str(error)[:120]})", "a table of concepts", BUILD) from error
    return _unique(concepts, name)


def _unique(concepts: list[Concept], name: str) -> list[Concept]:
    """Concepts by id. Raises CatalogError for an id that two have."""
    ids = [concept.concept_id for concept in concepts]
    if len(set(ids)) != len(ids):
        raise CatalogError(f"{name}: concept_id", "an id twice", "ids that are unique", BUILD)
    return sorted(concepts, key=lambda concept: concept.concept_id)


def _concept(row: dict[str, Any], table: pa.Table, number: int, form: Form, catalog: Catalog, name: str) -> Concept:
    layout = catalog.layout
    at = f"{name}: concept {check_id(row['concept_id'], f'{name}: concept_id')}"
    columns = [vector_column(space) for space in layout.spaces]
    check_concept(row | {c: table.column(c)[number].is_valid or None for c in columns}, layout.spaces, at)
    vector, effect = (form.vector(table, number, c, at) for c in (vector_column(row["space"]), EFFECT))
    assert vector is not None and effect is not None  # both were just seen
    plain = ("concept_id", "region", "space", "kind", "timestep", "images", "of_images", "agreement")
    more = ("effect_agreement", "gain", "leakage", "strength", "medoid", "image_id", "region_id")
    fields: dict[str, Any] = {field: row[field] for field in plain + more}
    fields |= {field: tuple(row[field]) for field in ("datasets", *LISTS)}
    return Concept(
        **fields,
        spread=(row["spread_q10"], row["spread_q50"], row["spread_q90"]),
        gain_range=(row["gain_q10"], row["gain_q90"]),
        leakage_range=(row["leakage_q10"], row["leakage_q90"]),
        vector=vector.reshape(layout.spaces[row["space"]]),
        effect=effect.reshape(layout.effect_shape),
        catalog=catalog,
    )


def concepts_of(catalog: Catalog) -> Iterator[tuple[str, pa.Table, list[Concept]]]:
    """The concepts that a catalog holds, maybe of former directions, some at a time: the file they are in, their rows,
    and they themselves. Memory: 32 at a time. Raises CatalogError: damage.
    """
    for path, rows in stored_rows(catalog):
        yield path, rows, read_concepts(rows, catalog, path)


def load_concepts(catalog: Catalog) -> list[Concept]:
    """The concepts of a catalog, sorted by id. Cost: reads all of their files.

    Raises CatalogError: none built yet, built of other directions than the catalog holds now, or damaged.
    """
    entry = catalog.manifest.concepts
    if entry is None:
        raise CatalogError("concepts", "none in the catalog", "concepts of its directions", BUILD)
    if entry.directions_fingerprint != catalog.manifest.directions_fingerprint:
        raise CatalogError("concepts", "those built before the last commit", "concepts of these directions", BUILD)
    return _unique([one for _, _, some in concepts_of(catalog) for one in some], entry.path or "concepts")


def find_concept(concepts: Sequence[Concept], key: str) -> Concept:
    """The concept of an id, or of a prefix of at least 6 digits that is unique. Raises NotFoundError, InputError."""
    if len(key) < SHORTEST_PREFIX:
        raise InputError("concept_id", repr(key), f"at least {SHORTEST_PREFIX} digits of an id")
    found = [concept for concept in concepts if concept.concept_id.startswith(key)]
    if len(found) > 1:
        raise InputError("concept_id", f"{key}, the start of {len(found)} ids", "a longer prefix")
    if not found:
        raise NotFoundError("concept_id", key[:80], "the id of a concept", "`rhumb concepts CATALOG` lists them")
    return found[0]


def disagreeing_images(catalog: Catalog, concept: Concept) -> list[str]:
    """Ids of images that have directions of the concept's region, space, kind and timestep, and do not bear it out.

    They have no member, or none whose effect has a cosine of at least 0.5 to the mean of the other members'. Sorted;
    none where members are missing, as in a part of a pack: whose images they are of is not known.
    """
    if not all(map(catalog.holds, concept.members)):
        return []
    names = ("region", "space", "kind", "timestep")
    rows = catalog.select(**{name: getattr(concept, name) for name in names})
    images = catalog.column("image_id")
    of_all = set(images.filter(pa.array(rows)).unique().to_pylist())
    agreeing = {key for key, cosine in zip(concept.members, concept.effect_cosines, strict=True) if cosine >= AGREES}
    return sorted(of_all - {row["image_id"] for row in catalog.rows(sorted(agreeing), ["image_id"])})
