"""The manifest: what belongs to a catalog and where it came from. Parsed strictly, written canonically."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from catalog.canonical import check_seal, read_json, sealed
from catalog.codecs import CodecSpec, default_codec, effect_codec
from catalog.entries import (
    ChunkEntry,
    ChunkId,
    ConceptsEntry,
    Count,
    Digest,
    FailedImage,
    FileEntry,
    Id,
    IndexEntry,
    LeftOut,
    PackInfo,
    PackPart,
    Provenance,
    RelativePath,
    Shape,
    Strict,
    Table,
    VectorSpec,
)
from catalog.former import LATER, upgraded
from catalog.fs import CARD, MANIFEST
from catalog.records import content_id
from catalog.schema import TABLES, Layout, describe, table_schema, vector_column
from pipeline.errors import CatalogError, NotFoundError

__all__ = [
    "ID_BYTES", "ChunkEntry", "ChunkId", "ConceptsEntry", "Count", "Digest", "FailedImage", "FileEntry", "Id",
    "IndexEntry", "LeftOut", "Manifest", "PackInfo", "PackPart", "Provenance", "RelativePath", "Shape", "Strict",
    "Table", "VectorSpec", "check_writable", "dump", "fresh", "load", "parse", "validated", "with_concepts",
]  # fmt: skip
FORMAT = "rhumb-catalog"
FORMAT_VERSION = "2"
READABLE = ("1", FORMAT_VERSION)
WITH_LEFT_OUT, WITH_PART, WITH_SHARDS, WITH_CODED = "left-out", "part", "concept-shards", "concept-codecs"
_OPTIONAL = frozenset({WITH_LEFT_OUT, WITH_PART, WITH_SHARDS, WITH_CODED})
KNOWN_FEATURES: frozenset[str] = _OPTIONAL | {"codec-dct"}
"""What a catalog may require of those who read it; a codec other than float16 is required as codec-KIND."""
KNOWN_WRITER_FEATURES: frozenset[str] = frozenset()
"""What a catalog may require of those who add to it, and readers may ignore."""
ID_BYTES = 16  # what an id takes at least, however it is packed
_LARGEST = 256 * 2**20  # bytes; a manifest of a million files stays below


class Manifest(Strict):
    """See format.md for every key."""

    format: Literal["rhumb-catalog"] = "rhumb-catalog"
    format_version: Literal["2"] = "2"
    required_features: tuple[str, ...] = ()
    writer_features: tuple[str, ...] = ()
    version: Count = 0
    previous: Digest | None = None
    provenance: Provenance
    vectors: dict[Literal["x", "h"], VectorSpec]
    schemas: dict[Table, dict[str, str]]
    files: dict[RelativePath, FileEntry] = Field(default_factory=dict)
    chunks: dict[ChunkId, ChunkEntry] = Field(default_factory=dict)
    failed_images: dict[Id, FailedImage] = Field(default_factory=dict)
    pictures: dict[str, RelativePath] = Field(default_factory=dict)
    indexes: dict[Literal["x", "h", "effect"], IndexEntry] = Field(default_factory=dict)
    concepts: ConceptsEntry | None = None
    retired: tuple[RelativePath, ...] = ()
    pack: PackInfo | None = None
    left_out: LeftOut = Field(default=(), exclude_if=lambda value: not value)
    part: PackPart | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.vectors.keys() != self.provenance.spaces.keys():
            raise ValueError("vectors and provenance.spaces name different spaces")
        layout = self.layout
        if self.vectors != _vectors(self.provenance, layout.codecs):
            raise ValueError("vectors do not follow from provenance.spaces")
        _check_schemas(self.schemas, layout)
        _check_required(self.required_features, _features(layout, self.part, self.concepts))
        named = {CARD, *self.pictures.values(), *self.retired}
        named |= {path for entry in self.indexes.values() for path in entry.files}
        named |= set(self.concepts.paths) if self.concepts is not None else set()
        named |= {path for chunk in self.chunks.values() for path in chunk.paths}
        begun = self.files or len(named) > 1
        if begun and named != set(self.files):
            odd = sorted(named ^ set(self.files))[0]
            raise ValueError(f"files and their owners (chunks, indexes, concepts, pictures) disagree about {odd}")
        coded = self.concepts.effect if self.concepts is not None else None
        if coded not in (None, effect_codec(layout.effect_shape)):
            raise ValueError("concepts.effect does not follow from provenance.effect_shape")
        if self.concepts is not None and self.concepts.shards is not None and begun:
            counts = [self.files[path].rows or 0 for path in self.concepts.paths]
            if sum(counts) != self.concepts.rows or 0 in counts:
                raise ValueError(f"{self.concepts.rows} concepts, {counts} in their shards"[:300])
        for table in TABLES:
            shards = self.shards(table)
            for path in shards:
                if (self.files[path].rows or 0) * ID_BYTES > self.files[path].bytes:
                    raise ValueError(f"{path}: {self.files[path].rows} rows, whose ids alone take more than its bytes")
            told = sum(chunk.rows.get(table, 0) for chunk in self.chunks.values())  # type: ignore[call-overload]
            held = sum(self.files[path].rows or 0 for path in shards)
            if begun and told != held:
                raise ValueError(f"{told} rows of {table} in the chunks, {held} in their files")
        return self

    @property
    def layout(self) -> Layout:
        """What decides the schemas of the tables."""
        codecs = {str(space): spec.codec for space, spec in self.vectors.items()}
        return Layout(self.provenance.shapes, self.provenance.effect_shape, codecs, frozenset(self.left_out))

    def rows(self, table: str) -> int:
        """Rows of a table over all shards."""
        return sum(self.files[path].rows or 0 for path in self.shards(table))

    def shards(self, table: str) -> list[str]:
        """Paths of a table's shards, sorted."""
        return sorted(path for path in self.files if path.startswith(f"{table}/") and path not in self.retired)

    @property
    def failures(self) -> dict[str, FailedImage]:
        """The failed images that were not repaired and mined since, by id."""
        return {image: entry for image, entry in self.failed_images.items() if entry.repaired_as is None}

    @property
    def directions_fingerprint(self) -> str:
        """Content id of all chunks: of which directions there are, whatever the order of commits and the shards."""
        return content_id("directions", sorted(chunk.digest for chunk in self.chunks.values()))


def _vectors(provenance: Provenance, codecs: Mapping[str, CodecSpec]) -> dict[str, VectorSpec]:
    return {
        space: VectorSpec(column=vector_column(space), shape=shape, codec=codecs[space])
        for space, shape in provenance.shapes.items()
        if space in codecs
    }


def _features(layout: Layout, part: PackPart | None, concepts: ConceptsEntry | None = None) -> set[str]:
    """What readers must know: how vectors are decoded, what they may not look for, and how and where concepts lie."""
    found = {f"codec-{codec.kind}" for codec in layout.codecs.values() if codec.kind != "float16"}
    has = {
        WITH_LEFT_OUT: bool(layout.left_out),
        WITH_PART: part is not None,
        WITH_SHARDS: concepts is not None and concepts.shards is not None,
        WITH_CODED: concepts is not None and concepts.effect is not None,
    }
    return found | {name for name, there in has.items() if there}


def with_concepts(manifest: Manifest, concepts: ConceptsEntry | None) -> dict[str, Any]:
    """The changes that give a manifest other concepts."""
    needed = _features(manifest.layout, manifest.part, concepts)
    others = set(manifest.required_features) - {WITH_SHARDS, WITH_CODED}
    return {"concepts": concepts, "required_features": tuple(sorted(others | needed))}


def _check_required(listed: Collection[str], needed: Collection[str]) -> None:
    if missing := sorted(set(needed) - set(listed)):
        raise ValueError(f"required_features leaves out {missing[0]}")
    if idle := sorted(_OPTIONAL & set(listed) - set(needed)):
        raise ValueError(f"required_features names {idle[0]}, of which there is nothing")


def _check_schemas(schemas: Mapping[Any, Mapping[str, str]], layout: Layout) -> None:
    """Raise ValueError naming the first column that does not follow from vectors and left_out."""
    for table in TABLES:
        found, expected = schemas.get(table, {}), describe(table_schema(table, layout))
        if found != expected:
            odd = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            raise ValueError(f"schemas.{table}.{odd[0]} does not follow from vectors and left_out"[:300])
    if set(schemas) != set(TABLES):
        raise ValueError(f"schemas of exactly {', '.join(TABLES)}")


def fresh(
    provenance: Provenance,
    codecs: Mapping[str, CodecSpec] | None = None,
    left_out: Collection[str] = (),
    part: PackPart | None = None,
) -> Manifest:
    """The manifest of an empty catalog whose vectors are stored by `codecs`, by space; the default ones where None.

    `left_out`: names of columns that its tables do not have, out of `schema.LEFT_OUT`; `part`: what it is a part of.
    """
    chosen = {space: default_codec(space, shape) for space, shape in provenance.shapes.items()} | dict(codecs or {})
    layout = Layout(provenance.shapes, provenance.effect_shape, chosen, frozenset(left_out))
    return Manifest.model_validate(
        {
            "required_features": tuple(sorted(_features(layout, part))),
            "provenance": provenance,
            "vectors": _vectors(provenance, chosen),
            "schemas": {table: describe(table_schema(table, layout)) for table in TABLES},
            "left_out": tuple(sorted(layout.left_out)),
            "part": part,
        }
    )


def dump(manifest: Manifest) -> bytes:
    """The manifest as the bytes of its file."""
    value = manifest.model_dump(exclude={"files", "chunks"})  # not mode="json", which would turn NaN into null
    return sealed({**value, "files": manifest.files, "chunks": manifest.chunks})


def parse(data: bytes, name: str = MANIFEST) -> Manifest:
    """The manifest in `data`. Raises CatalogError naming `name` and the first key that is wrong."""
    value = read_json(data, name)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise CatalogError(name, "a file of another kind", f'a manifest with format "{FORMAT}"')
    version = value.get("format_version")
    if version not in READABLE:
        found = repr(version)[:60]
        raise CatalogError(f"{name}: format_version", found, " or ".join(READABLE), "Use the release that wrote it")
    _check_features(name, value.get("required_features"), KNOWN_FEATURES, "required_features", "read")
    if version != FORMAT_VERSION and (odd := sorted(LATER & value.keys())):
        raise CatalogError(f"{name}: {odd[0]}", "a key of a later version", f"the keys of version {version}")
    check_seal(value, data, name)
    manifest = validated(upgraded(value) if version == "1" else value, name)
    if version == FORMAT_VERSION and dump(manifest) != data:  # values that validation had to convert
        raise CatalogError(name, "a form other than the canonical one", "the bytes as committed")
    return manifest


def validated(value: Mapping[str, Any], name: str = MANIFEST) -> Manifest:
    """The manifest of these keys. Raises CatalogError naming `name` and the first key that breaks a rule."""
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        field, found = (f"{name}: {place}", repr(first["input"])) if place else (name, "parts that do not fit together")
        raise CatalogError(field[:300], found[:120], first["msg"][:300]) from error


def _check_features(name: str, features: Any, known: frozenset[str], field: str, what: str) -> None:
    """Raise CatalogError naming the first feature that is not known here."""
    for feature in features if isinstance(features, list | tuple) else []:
        if not isinstance(feature, str) or feature not in known:
            raise CatalogError(
                f"{name}: {field}", repr(feature)[:80], f"features known here ({', '.join(sorted(known)) or 'none'})",
                f"Use a newer release to {what} this catalog",
            )  # fmt: skip


def check_writable(manifest: Manifest, name: str = MANIFEST) -> None:
    """Raise CatalogError where the catalog asks more of a writer than is known here."""
    _check_features(name, manifest.writer_features, KNOWN_WRITER_FEATURES, "writer_features", "write to")


def load(folder: Path) -> Manifest:
    """The manifest of the catalog in `folder`. Raises NotFoundError (no catalog) or CatalogError."""
    path = folder / MANIFEST
    if path.is_symlink():
        raise CatalogError(str(path), "a symbolic link", "a plain file")
    if not path.is_file():
        raise NotFoundError("catalog", str(folder), f"a folder with {MANIFEST}", "Mine or pull one first")
    if path.stat().st_size > _LARGEST:
        raise CatalogError(str(path), f"{path.stat().st_size} bytes", f"at most {_LARGEST}")
    return parse(path.read_bytes(), str(path))
