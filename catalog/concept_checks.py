"""What may be wrong with the concepts of a catalog: rows, pictures, and what they say of its directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from catalog.concepts import Concept, concepts_of
from catalog.hub.parts import concepts_part, part_of_concepts
from catalog.pictures import decode_png
from catalog.reader import Catalog
from pipeline.errors import CatalogError, NotFoundError

_GROUP = ("region", "space", "kind", "timestep")  # what all members of a concept share


def concept_problems(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """What is wrong with the concepts of a catalog, which may be those of a former version: rows, pictures, joins; and
    in which of their files.

    Cost: reads these, and the columns of all directions that say what they are of. Memory: these columns, the ids of
    all concepts, and 32 concepts.
    """
    seen = dict[str, str]()
    for path, rows, concepts in concepts_of(catalog):
        said = part_of_concepts(path)
        for concept in concepts:
            if said is not None and concepts_part(concept.datasets, concept.region) != said:
                yield path, f"concept {concept.concept_id}: of another part than the name of its file says"
            if concept.concept_id in seen:
                twice = "twice" if seen[concept.concept_id] == path else "in two files"
                yield path, f"concept {concept.concept_id}: {twice}"
            seen[concept.concept_id] = path
        yield from ((path, what) for what in _problems_of(catalog, rows, concepts))


def _problems_of(catalog: Catalog, rows: pa.Table, concepts: Sequence[Concept]) -> Iterator[str]:
    """What is wrong with some concepts beyond their rows: pictures and joins."""
    pictures = [name for name in ("effect", "preview") if name in rows.column_names]
    stored = {row["concept_id"]: row for row in rows.select(["concept_id", *pictures]).to_pylist()}
    for concept in concepts:
        at, own = f"concept {concept.concept_id}", stored[concept.concept_id]
        try:
            shown = {name: decode_png(own[name]["bytes"], f"{at}: {name}").shape for name in pictures}
            if "preview" in shown and shown["preview"] != catalog.preview(concept.medoid).shape:
                yield f"{at}: preview of {shown['preview']}, not as large as its medoid's"
        except (CatalogError, NotFoundError) as error:
            yield str(error)
        yield from (f"{at}: {what}" for what in _odd_joins(catalog, concept))


def _odd_joins(catalog: Catalog, concept: Concept) -> Iterator[str]:
    """What of a concept is not as the directions it was made of have it: in a part of a pack, those that are there."""
    missing = [member for member in concept.members if not catalog.holds(member)]
    whole = catalog.manifest.part is None
    for member in missing if whole else {concept.medoid}.intersection(missing):
        yield f"member {member} is not in the catalog"
    if missing and (whole or concept.medoid in missing):
        return
    wanted = np.array(sorted(set(concept.members).difference(missing)), dtype="S32")
    places = np.searchsorted(catalog.ids(), wanted)
    of_members = {name: catalog.column(name).take(pa.array(places)) for name in (*_GROUP, "dataset", "image_id")}
    for name in _GROUP:
        if of_members[name].unique().to_pylist() != [getattr(concept, name)]:
            yield f"{name} {getattr(concept, name)} is not that of its members"
    datasets, images = set(of_members["dataset"].unique().to_pylist()), len(of_members["image_id"].unique())
    if datasets - set(concept.datasets) or (not missing and sorted(datasets) != sorted(concept.datasets)):
        yield "datasets are not those of its members"
    if images > concept.images or (not missing and images != concept.images):
        yield f"{concept.images} images, {images} with members"
    home = catalog.rows([concept.medoid], ["image_id", "region_id"])[0]
    if home != {"image_id": concept.image_id, "region_id": concept.region_id}:
        yield f"image {concept.image_id}, region {concept.region_id} are not those of its medoid"
