"""Concepts: directions of many images that mean the same, with the prototype that stands for them; see format.md.

`catalog.concept_building` makes them, `CatalogWriter.replace_concepts` stores them, `load_concepts` reads them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.codecs import NORM_TOLERANCE
from catalog.fs import sha256_of
from catalog.hub.parts import concepts_part, part_of_concepts
from catalog.manifest import ID_BYTES, Manifest
from catalog.pictures import decode_png, effect_picture, encode_png
from catalog.reader import SHORTEST_PREFIX, Catalog
from catalog.rules import check_concept, check_id
from catalog.schema import fixed_list, list_of, pictures, plain, vector_column, with_features
from catalog.shards import open_shard
from pipeline.errors import CatalogError, InputError, NotFoundError

AGREES = 0.5  # signed cosine of a member's effect to the others' from which its image agrees
_BUILD = "Run `rhumb concepts CATALOG --build`"
_MEDIANS = ("gain", "gain_q10", "gain_q90", "leakage", "leakage_q10", "leakage_q90", "strength")
_SHARES = ("agreement", "effect_agreement", "spread_q10", "spread_q50", "spread_q90")
_GROUP = ("region", "space", "kind", "timestep")  # what all members of a concept share
_LISTS = {"members": pa.string(), "signs": pa.int8(), "cosines": pa.float32(), "effect_cosines": pa.float32()}


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
    (C, h, w) likewise. `preview` is the medoid's, a PNG: at -strength, 0 and +strength of its own; None in a catalog
    that was published without previews. In a part of a pack the medoid is there, and other members may be missing.
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
    preview: bytes | None

    def pictures(self) -> np.ndarray:
        """uint8 (H, 3 W, 3): the medoid's posterior mean, the prototype's minus way, unchanged, and its plus way.

        Raises NotFoundError where previews are left out.
        """
        if self.preview is None:
            raise NotFoundError(
                f"preview of concept {self.concept_id}", "left out of this pack", "a catalog with previews",
                "Pull it with previews if it was published with them",
            )  # fmt: skip
        return decode_png(self.preview, f"concept {self.concept_id}: preview")


def concepts_schema(
    spaces: Mapping[str, tuple[int, ...]], effect_shape: tuple[int, ...], left_out: Collection[str] = ()
) -> pa.Schema:
    """Arrow schema of the table `concepts`: one row each, vectors as float16, those of the other space null.

    `left_out`: columns that the catalog does not have, as of its other tables.
    """
    fields = plain(pa.string(), "concept_id", "region", "space", "kind") + plain(pa.int32(), "timestep")
    fields += plain(list_of(pa.string()), "datasets")
    fields += [pa.field(name, list_of(dtype), nullable=False) for name, dtype in _LISTS.items()]
    fields += plain(pa.int64(), "images", "of_images") + plain(pa.float64(), *_SHARES, *_MEDIANS)
    fields += plain(pa.string(), "medoid", "image_id") + plain(pa.string(), "region_id", nullable=True)
    fields += plain(list_of(pa.string()), "parents") + pictures("effect", "preview")
    fields.append(fixed_list("effect_vector", pa.float16(), tuple(effect_shape)))
    own = sorted(spaces)[::-1]
    fields += [fixed_list(vector_column(space), pa.float16(), spaces[space], nullable=True) for space in own]
    return with_features([field for field in fields if field.name not in left_out])


def _halves(array: np.ndarray, field: str) -> np.ndarray:
    """A unit vector as flat float16. Raises CatalogError: not finite, or a norm off by more than 1e-3."""
    with np.errstate(over="ignore"):
        halves = array.astype(np.float16).ravel()
    norm = np.linalg.norm(halves.astype(np.float64))
    if not abs(norm - 1) <= NORM_TOLERANCE:
        raise CatalogError(field, f"norm {norm:.6g}", f"unit norm within {NORM_TOLERANCE:g}")
    return halves


def concepts_table(
    concepts: Sequence[Concept],
    spaces: Mapping[str, tuple[int, ...]],
    effect_shape: tuple[int, ...],
    left_out: Collection[str] = (),
) -> pa.Table:
    """Concepts as the table that is stored, sorted by id. Raises CatalogError: a vector that is not of unit norm."""
    schema = concepts_schema(spaces, effect_shape, left_out)
    rows = [_row(concept) for concept in sorted(concepts, key=lambda c: c.concept_id)]
    return pa.Table.from_pylist(rows, schema=schema)


def _row(concept: Concept) -> dict[str, Any]:
    at = f"concept {concept.concept_id}"
    row = {name: getattr(concept, name) for name in Concept.__dataclass_fields__ if name not in ("vector", "spread")}
    row |= dict(zip(("spread_q10", "spread_q50", "spread_q90"), concept.spread, strict=True))
    for name in ("gain", "leakage"):
        row[f"{name}_q10"], row[f"{name}_q90"] = row.pop(f"{name}_range")
    row["parents"] = concept.members
    row["preview"] = {"bytes": concept.preview, "path": None}
    row["effect_vector"] = _halves(concept.effect, f"{at}: effect")
    # Of what is stored, so that a concept that is read and stored again stays the same to the byte.
    picture = effect_picture(row["effect_vector"].astype(np.float32).reshape(concept.effect.shape))
    row["effect"] = {"bytes": encode_png(picture), "path": None}
    row[f"{concept.space}_vector"] = _halves(concept.vector, f"{at}: vector")
    return row


def read_concepts(
    table: pa.Table | None,
    spaces: Mapping[str, tuple[int, ...]],
    effect_shape: tuple[int, ...],
    name: str = "concepts",
    left_out: Collection[str] = (),
) -> list[Concept]:
    """The concepts of a stored table, sorted by id. Raises CatalogError naming `name`, the concept and the field."""
    schema = concepts_schema(spaces, effect_shape, left_out)
    if table is None or not table.schema.equals(schema):
        raise CatalogError(name, "other columns or types", "those of a table of concepts", _BUILD)
    try:
        table.validate(full=True)
        missing = [f.name for f in schema if not f.nullable and table.column(f.name).null_count]
        if missing:
            raise CatalogError(f"{name}: concepts: {missing[0]}", "null", "a value in every row", _BUILD)
        vectors = [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]
        rows = table.drop_columns(vectors).to_pylist()
        shapes = {**{f"{space}_vector": shape for space, shape in spaces.items()}, "effect_vector": effect_shape}
        for i, row in enumerate(rows):
            row |= {field: _array(table.column(field)[i], shapes[field]) for field in vectors}
        concepts = [_concept(row, spaces, name) for row in rows]
    except CatalogError:
        raise
    except (LookupError, TypeError, ValueError, pa.ArrowException) as error:
        raise CatalogError(name, f"unreadable values ({str(error)[:120]})", "a table of concepts", _BUILD) from error
    ids = [concept.concept_id for concept in concepts]
    if len(set(ids)) != len(ids):
        raise CatalogError(f"{name}: concept_id", "an id twice", "ids that are unique", _BUILD)
    return sorted(concepts, key=lambda concept: concept.concept_id)


def _array(value: pa.FixedSizeListScalar, shape: tuple[int, ...]) -> np.ndarray | None:
    """float32 of a stored vector in its shape, None for a null."""
    if not value.is_valid:
        return None
    return np.asarray(value.values.to_numpy(zero_copy_only=False), dtype=np.float32).reshape(shape)


def _concept(row: dict[str, Any], spaces: Mapping[str, tuple[int, ...]], name: str) -> Concept:
    at = f"{name}: concept {check_id(row['concept_id'], f'{name}: concept_id')}"
    check_concept(row, spaces, at)
    vector, effect = row[f"{row['space']}_vector"], row["effect_vector"]
    _halves(vector, f"{at}: vector")
    _halves(effect, f"{at}: effect")
    plain = ("concept_id", "region", "space", "kind", "timestep", "images", "of_images", "agreement")
    more = ("effect_agreement", "gain", "leakage", "strength", "medoid", "image_id", "region_id")
    fields: dict[str, Any] = {field: row[field] for field in plain + more}
    fields |= {field: tuple(row[field]) for field in ("datasets", *_LISTS)}
    return Concept(
        **fields,
        spread=(row["spread_q10"], row["spread_q50"], row["spread_q90"]),
        gain_range=(row["gain_q10"], row["gain_q90"]),
        leakage_range=(row["leakage_q10"], row["leakage_q90"]),
        vector=vector,
        effect=effect,
        preview=row["preview"]["bytes"] if "preview" in row else None,
    )


def stored_table(catalog: Catalog) -> pa.Table | None:
    """The table of concepts that a catalog holds, made of its directions or of former ones; None without.

    Raises CatalogError: missing or changed file, or one of absurd lengths.
    """
    entry, layout = catalog.manifest.concepts, catalog.layout
    if entry is None:
        return None
    tables = [table for _, table in _stored_files(catalog)]
    if entry.path is not None:
        return tables[0]
    schema = concepts_schema(layout.spaces, layout.effect_shape, layout.left_out)
    return pa.concat_tables([schema.empty_table(), *tables]).sort_by("concept_id")


def most_members(manifest: Manifest) -> int:
    """Members that all concepts of one file may have together: no direction of a group is in two of them."""
    assert manifest.concepts is not None  # it is asked of theirs
    there = max(1, manifest.rows("directions"))
    if manifest.part is None:
        return there
    return max(there, sum(manifest.files[path].bytes for path in manifest.concepts.paths) // ID_BYTES)


def _stored_files(catalog: Catalog) -> Iterator[tuple[str, pa.Table]]:
    """The files of a catalog's concepts, and the rows of each.

    Nothing is unpacked before a file's bytes, footer, columns, rows and sizes are those that it may have.
    """
    entry, layout = catalog.manifest.concepts, catalog.layout
    schema = concepts_schema(layout.spaces, layout.effect_shape, layout.left_out)
    for name in entry.paths if entry is not None else ():
        path, known = catalog.file(name), catalog.manifest.files[name]
        if not path.is_file() or path.stat().st_size != known.bytes or sha256_of(path) != known.sha256:
            raise CatalogError(str(path), "a missing or changed file", "the concepts as committed", _BUILD)
        members = most_members(catalog.manifest)
        try:
            with open_shard(path, known, schema, longest=members) as file:
                check_sizes(file.metadata, schema, members, str(path))
                file.check_pages()
                table = file.read()
        except CatalogError as error:  # concepts are built anew, where shards are pulled or mined again
            raise CatalogError(error.field, error.found, error.expected, _BUILD) from error
        except (OSError, ValueError, pa.ArrowException) as error:
            found = f"an unreadable file ({str(error)[:200]})"
            raise CatalogError(str(path), found, "a whole table", _BUILD) from error
        if entry is not None and entry.path is not None and table.num_rows != entry.rows:
            raise CatalogError(str(path), f"{table.num_rows} rows", f"{entry.rows}", _BUILD)
        yield name, table


def check_sizes(metadata: pq.FileMetaData, schema: pa.Schema, members: int, path: str) -> None:
    """Raise CatalogError where the lists of a file's concepts hold more than `members` together, as its footer says."""
    rows = metadata.num_rows
    listed = {field.name for field in schema if pa.types.is_list(field.type)}
    values: Counter[str] = Counter()
    for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
        for column in (group.column(i) for i in range(group.num_columns)):
            values[column.path_in_schema.split(".")[0]] += column.num_values
    for name in sorted(listed):
        if values[name] > members + rows:
            raise CatalogError(f"{path}: {name}", f"{values[name]} values", f"at most {members} and {rows}", _BUILD)


def concept_problems(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """What is wrong with the concepts of a catalog, which may be those of a former version: rows, pictures, joins; and
    in which of their files.

    Cost: reads these, and the columns of all directions that say what they are of.
    """
    layout, seen = catalog.layout, set[str]()
    for path, table in _stored_files(catalog):
        concepts = read_concepts(table, layout.spaces, layout.effect_shape, path, layout.left_out)
        said = part_of_concepts(path)
        for concept in concepts:
            if said is not None and concepts_part(concept.datasets, concept.region) != said:
                yield path, f"concept {concept.concept_id}: of another part than the name of its file says"
            if concept.concept_id in seen:
                yield path, f"concept {concept.concept_id}: in two files"
            seen.add(concept.concept_id)
        yield from ((path, what) for what in _problems_of(catalog, table, concepts))


def _problems_of(catalog: Catalog, table: pa.Table, concepts: Sequence[Concept]) -> Iterator[str]:
    """What is wrong with the concepts of one file beyond their rows: pictures and joins."""
    keys, effects = table.column("concept_id").to_pylist(), dict[str, Any]()
    if not catalog.lacks("effect"):
        effects = dict(zip(keys, table.column("effect").to_pylist(), strict=True))
    for concept in concepts:
        at = f"concept {concept.concept_id}"
        try:
            if effects:
                decode_png(effects[concept.concept_id]["bytes"], f"{at}: effect")
            if not catalog.lacks("preview") and concept.pictures().shape != catalog.preview(concept.medoid).shape:
                yield f"{at}: preview of {concept.pictures().shape}, not as large as its medoid's"
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


def load_concepts(catalog: Catalog) -> list[Concept]:
    """The concepts of a catalog, sorted by id. Cost: reads all of their files.

    Raises CatalogError: none built yet, built of other directions than the catalog holds now, or damaged.
    """
    table, entry = stored_table(catalog), catalog.manifest.concepts
    if table is None or entry is None:
        raise CatalogError("concepts", "none in the catalog", "concepts of its directions", _BUILD)
    if entry.directions_fingerprint != catalog.manifest.directions_fingerprint:
        raise CatalogError("concepts", "those built before the last commit", "concepts of these directions", _BUILD)
    layout = catalog.layout
    name = entry.path or "concepts"
    return read_concepts(table, layout.spaces, layout.effect_shape, name, layout.left_out)


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
