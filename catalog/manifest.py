"""The manifest: what belongs to a catalog and where it came from. Parsed strictly, written canonically."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from catalog.canonical import Ready, check_seal, read_json, sealed
from catalog.codecs import CodecSpec, default_codec
from catalog.former import upgraded
from catalog.fs import CARD, MANIFEST, check_relative
from catalog.records import content_id
from catalog.schema import TABLES, Layout, describe, table_schema, vector_column
from catalog.search.spec import IndexSpec
from pipeline.errors import CatalogError, NotFoundError

FORMAT = "rhumb-catalog"
FORMAT_VERSION = "2"
READABLE = ("1", FORMAT_VERSION)
KNOWN_FEATURES: frozenset[str] = frozenset({"codec-dct"})
"""What a catalog may require of those who read it; a codec other than float16 is required as codec-KIND."""
KNOWN_WRITER_FEATURES: frozenset[str] = frozenset()
"""What a catalog may require of those who add to it, and readers may ignore."""
ID_BYTES = 16  # what an id takes at least, however it is packed
_LARGEST = 256 * 2**20  # bytes; a manifest of a million files stays below

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
ChunkId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]


def _shape(value: tuple[int, ...]) -> tuple[int, ...]:
    if not 1 <= len(value) <= 4 or any(n < 1 for n in value) or prod(value) > 2**26:
        raise ValueError("1 to 4 positive sizes, at most 2^26 entries together")
    return value


def _path(value: str) -> str:
    return check_relative(value)  # CatalogError is a ValueError, so pydantic reports it with its place


def _in(folder: str) -> AfterValidator:
    """A path must lie in its owner's folder, lest an index pass for rows."""

    def check(value: str) -> str:
        if not value.startswith(f"{folder}/"):
            raise ValueError(f"a file in the folder {folder}")
        return value

    return AfterValidator(check)


Table = Literal["directions", "images", "regions"]
Shape = Annotated[tuple[int, ...], AfterValidator(_shape)]
RelativePath = Annotated[str, AfterValidator(_path)]
IndexPath = Annotated[str, AfterValidator(_path), _in("index")]
ConceptsPath = Annotated[str, AfterValidator(_path), _in("concepts")]


class Strict(BaseModel):
    """Frozen, without unknown keys, finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Provenance(Strict):
    """Where a catalog comes from. `model` and `data` hold at least a `fingerprint`; everything is JSON.

    `spaces` maps "x" (and "h" where the model has a bottleneck) to the shape of its vectors; `effect_shape` is the
    shape of the small change pictures.
    """

    recipe_fingerprint: Annotated[str, Field(min_length=1, max_length=200)]
    recipe: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    seeds: dict[str, int]
    code_version: str
    packages: dict[str, str]
    spaces: dict[Literal["x", "h"], Shape]
    effect_shape: Shape = (3, 16, 16)

    @model_validator(mode="after")
    def _complete(self) -> Provenance:
        if "x" not in self.spaces:
            raise ValueError("spaces must hold the shape of x, the latent")
        for name, part in (("model", self.model), ("data", self.data)):
            if not isinstance(part.get("fingerprint"), str) or not part["fingerprint"]:
                raise ValueError(f"{name} must hold a fingerprint")
        return self

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """`spaces` with plain names."""
        return {str(name): shape for name, shape in self.spaces.items()}

    def identity(self) -> dict[str, Any]:
        """What two runs must share to write into one catalog."""
        return {
            "recipe": self.recipe_fingerprint,
            "model": self.model["fingerprint"],
            "data": self.data["fingerprint"],
            "spaces": {name: list(shape) for name, shape in self.spaces.items()},
        }


class _Lasting(Strict):
    """An entry that goes from version to version as it is, and is written out once."""

    @cached_property
    def ready(self) -> Ready:
        """Its canonical form."""
        return Ready(self.model_dump())

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Of pydantic; the copy is written out anew."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("ready", None)
        return copy


class FileEntry(_Lasting):
    """One file: sha256, size in bytes; for a Parquet file its rows, and the sha256 of its footer.

    The footer is what says where each value lies; it is compared whenever the file is opened. Pages carry checksums of
    their own. Shards of version "1" have no `footer`.
    """

    sha256: Digest
    bytes: Count
    rows: Count | None = None
    footer: Digest | None = None


class VectorSpec(Strict):
    """How the vectors of a space are stored."""

    column: str
    shape: Shape
    codec: CodecSpec


class ChunkEntry(_Lasting):
    """A chunk that is done: a digest of the ids it added, its rows per table, and the shards they lie in.

    A table that it adds no row to has no shard. A compacted shard holds the rows of several chunks, and a merged
    catalog is one chunk with several shards.
    """

    digest: Id
    rows: dict[Table, Count]
    shards: dict[Table, tuple[RelativePath, ...]]

    @model_validator(mode="after")
    def _consistent(self) -> ChunkEntry:
        if set(self.shards) != {table for table, count in self.rows.items() if count}:
            raise ValueError("shards for exactly the tables that have rows")
        for table, paths in self.shards.items():
            if not paths or sorted(set(paths)) != list(paths):
                raise ValueError(f"shards of {table} in order, each once")
            if not all(path.startswith(f"{table}/") for path in paths):
                raise ValueError(f"shards of {table} in the folder {table}")
        return self

    def moved(self, places: Mapping[str, str]) -> ChunkEntry:
        """The same chunk with its rows in other shards, by former path."""
        shards = {t: tuple(sorted({places.get(p, p) for p in paths})) for t, paths in self.shards.items()}
        return self.model_copy(update={"shards": shards})

    @property
    def paths(self) -> set[str]:
        """All its shards."""
        return {path for paths in self.shards.values() for path in paths}


class FailedImage(Strict):
    """An image that was tried and could not be mined.

    `repaired_as`: the image mined later from the same source, once its file was repaired. Such an entry is no failure
    any more; it stays because the catalog was begun without that image.
    """

    source: str
    reason: Annotated[str, Field(min_length=1)]
    chunk: ChunkId
    repaired_as: Id | None = Field(default=None, exclude_if=lambda value: value is None)


class IndexEntry(Strict):
    """One search index: its type, the quantiser that all its codes share, and the codes of every shard.

    It belongs to a version of the catalog where `codes` covers that version's shards; see `covers`.
    """

    spec: IndexSpec
    quantiser: IndexPath | None = None
    codes: dict[RelativePath, IndexPath]
    rows: Count

    def covers(self, shards: Collection[str]) -> bool:
        """Whether it has codes of exactly these directions shards."""
        return set(self.codes) == set(shards)

    @property
    def files(self) -> list[str]:
        """Paths of everything the index consists of."""
        return [*([self.quantiser] if self.quantiser is not None else []), *self.codes.values()]


class ConceptsEntry(Strict):
    """The concepts that were made of the directions, and of which directions."""

    path: ConceptsPath
    rows: Count
    directions_fingerprint: Id


class PackInfo(Strict):
    """Name and version under which a catalog was published."""

    repository: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,96}/[A-Za-z0-9._-]{1,96}$")]
    version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")]


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
    files: dict[RelativePath, FileEntry] = {}
    chunks: dict[ChunkId, ChunkEntry] = {}
    failed_images: dict[Id, FailedImage] = {}
    pictures: dict[str, RelativePath] = {}
    indexes: dict[Literal["x", "h", "effect"], IndexEntry] = {}
    concepts: ConceptsEntry | None = None
    retired: tuple[RelativePath, ...] = ()
    pack: PackInfo | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.vectors.keys() != self.provenance.spaces.keys():
            raise ValueError("vectors and provenance.spaces name different spaces")
        layout = self.layout
        if self.vectors != _vectors(self.provenance, layout.codecs):
            raise ValueError("vectors do not follow from provenance.spaces")
        if self.schemas != {table: describe(table_schema(table, layout)) for table in TABLES}:
            raise ValueError("schemas do not follow from vectors")
        if missing := sorted(set(_features(layout.codecs)) - set(self.required_features)):
            raise ValueError(f"required_features leaves out {missing[0]}")
        named = {CARD, *self.pictures.values(), *self.retired}
        named |= {path for entry in self.indexes.values() for path in entry.files}
        named |= {self.concepts.path} if self.concepts is not None else set()
        named |= {path for chunk in self.chunks.values() for path in chunk.paths}
        begun = self.files or len(named) > 1
        if begun and named != set(self.files):
            odd = sorted(named ^ set(self.files))[0]
            raise ValueError(f"files and their owners (chunks, indexes, concepts, pictures) disagree about {odd}")
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
        return Layout(self.provenance.shapes, self.provenance.effect_shape, codecs)

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


def _features(codecs: Mapping[str, CodecSpec]) -> list[str]:
    """What readers must know to decode the vectors."""
    return sorted({f"codec-{codec.kind}" for codec in codecs.values() if codec.kind != "float16"})


def fresh(provenance: Provenance, codecs: Mapping[str, CodecSpec] | None = None) -> Manifest:
    """The manifest of an empty catalog whose vectors are stored by `codecs`, by space; the default ones where None."""
    chosen = {space: default_codec(space, shape) for space, shape in provenance.shapes.items()} | dict(codecs or {})
    layout = Layout(provenance.shapes, provenance.effect_shape, chosen)
    return Manifest.model_validate(
        {
            "required_features": tuple(_features(chosen)),
            "provenance": provenance,
            "vectors": _vectors(provenance, chosen),
            "schemas": {table: describe(table_schema(table, layout)) for table in TABLES},
        }
    )


def dump(manifest: Manifest) -> bytes:
    """The manifest as the bytes of its file."""
    value = manifest.model_dump(exclude={"files", "chunks"})  # not mode="json", which would turn NaN into null
    value["files"] = {path: entry.ready for path, entry in manifest.files.items()}
    value["chunks"] = {name: entry.ready for name, entry in manifest.chunks.items()}
    return sealed(value)


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
