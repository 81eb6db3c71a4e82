"""The manifest: what belongs to a catalog and where it came from. Parsed strictly, written canonically."""

from __future__ import annotations

import hashlib
import json
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from catalog.fs import CARD, MANIFEST, check_relative
from catalog.records import content_id
from catalog.schema import TABLES, describe, table_schema, vector_column
from pipeline.errors import CatalogError, NotFoundError

FORMAT = "rhumb-catalog"
FORMAT_VERSION = "1"
KNOWN_FEATURES: frozenset[str] = frozenset()
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


def _index_path(value: str) -> str:
    if not value.startswith("index/"):
        raise ValueError("a file in the folder index")
    return value


Shape = Annotated[tuple[int, ...], AfterValidator(_shape)]
RelativePath = Annotated[str, AfterValidator(_path)]
IndexPath = Annotated[str, AfterValidator(_path), AfterValidator(_index_path)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Provenance(_Strict):
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


class FileEntry(_Strict):
    """One file: sha256, size in bytes, rows of a table (None for other files)."""

    sha256: Digest
    bytes: Count
    rows: Count | None = None


class VectorSpec(_Strict):
    """How the vectors of a space are stored."""

    column: str
    shape: Shape
    codec: Literal["float16"] = "float16"


class ChunkEntry(_Strict):
    """A chunk that is done: a digest of the ids it added, and its rows per table."""

    digest: Id
    rows: dict[Literal["directions", "images", "regions"], Count]


class FailedImage(_Strict):
    """An image that was tried and could not be mined.

    `repaired_as`: the image mined later from the same source, once its file was repaired. Such an entry is no failure
    any more; it stays because the catalog was begun without that image.
    """

    source: str
    reason: Annotated[str, Field(min_length=1)]
    chunk: ChunkId
    repaired_as: Id | None = Field(default=None, exclude_if=lambda value: value is None)


class SketchSpec(_Strict):
    """How search vectors are made from stored ones; see format.md."""

    kind: Literal["identity", "srht"]
    dimension: Annotated[int, Field(ge=1, le=65536)]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0


class IndexEntry(_Strict):
    """One search index, and the state of the directions it was built for."""

    faiss: IndexPath
    ids: IndexPath
    rows: Count
    directions_fingerprint: Id
    sketch: SketchSpec


class PackInfo(_Strict):
    """Name and version under which a catalog was published."""

    repository: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,96}/[A-Za-z0-9._-]{1,96}$")]
    version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")]


class Manifest(_Strict):
    """See format.md for every key."""

    format: Literal["rhumb-catalog"] = "rhumb-catalog"
    format_version: Literal["1"] = "1"
    required_features: tuple[str, ...] = ()
    version: Count = 0
    provenance: Provenance
    vectors: dict[Literal["x", "h"], VectorSpec]
    schemas: dict[Literal["directions", "images", "regions"], dict[str, str]]
    files: dict[RelativePath, FileEntry] = {}
    chunks: dict[ChunkId, ChunkEntry] = {}
    failed_images: dict[Id, FailedImage] = {}
    pictures: dict[str, RelativePath] = {}
    indexes: dict[Literal["x", "h", "effect"], IndexEntry] = {}
    pack: PackInfo | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if fresh(self.provenance, vectors_only=True) != (self.vectors, self.schemas):
            raise ValueError("vectors and schemas do not follow from provenance.spaces")
        named = {CARD, *self.pictures.values()}
        named |= {path for entry in self.indexes.values() for path in (entry.faiss, entry.ids)}
        named |= {shard(table, chunk) for table in TABLES for chunk in self.chunks}
        begun = self.files or len(named) > 1
        if begun and named != set(self.files):
            odd = sorted(named ^ set(self.files))[0]
            raise ValueError(f"files and their owners (chunks, indexes, pictures) disagree about {odd}")
        for table in TABLES:
            for chunk, entry in self.chunks.items():
                if self.files[shard(table, chunk)].rows != entry.rows.get(table):  # type: ignore[call-overload]
                    raise ValueError(f"rows of {shard(table, chunk)} differ from those of its chunk")
        return self

    def rows(self, table: str) -> int:
        """Rows of a table over all shards."""
        return sum(self.files[path].rows or 0 for path in self.shards(table))

    def shards(self, table: str) -> list[str]:
        """Paths of a table's shards, sorted."""
        return sorted(shard(table, chunk) for chunk in self.chunks)

    @property
    def failures(self) -> dict[str, FailedImage]:
        """The failed images that were not repaired and mined since, by id."""
        return {image: entry for image, entry in self.failed_images.items() if entry.repaired_as is None}

    @property
    def directions_fingerprint(self) -> str:
        """Content id of all direction shards, whatever the order they were committed in."""
        return content_id("directions", sorted(self.files[path].sha256 for path in self.shards("directions")))


def shard(table: str, chunk_id: str) -> str:
    """Path of one chunk's shard."""
    return f"{table}/{chunk_id}.parquet"


def fresh(provenance: Provenance, vectors_only: bool = False) -> Any:
    """The manifest of an empty catalog, or only its (vectors, schemas)."""
    vectors = {s: VectorSpec(column=vector_column(s), shape=shape) for s, shape in provenance.spaces.items()}
    schemas = {t: describe(table_schema(t, provenance.shapes, provenance.effect_shape)) for t in TABLES}
    if vectors_only:
        return vectors, schemas
    return Manifest.model_validate({"provenance": provenance, "vectors": vectors, "schemas": schemas})


def _canonical(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def dump(manifest: Manifest) -> bytes:
    """The manifest as the bytes of its file."""
    value = manifest.model_dump()  # not mode="json", which would turn NaN into null
    value["checksum"] = hashlib.sha256(_canonical(value)).hexdigest()
    return _canonical(value)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def parse(data: bytes, name: str = MANIFEST) -> Manifest:
    """The manifest in `data`. Raises CatalogError naming `name` and the first key that is wrong."""
    try:
        value = json.loads(data.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CatalogError(name, f"no readable JSON ({str(error)[:120]})", "a catalog manifest") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise CatalogError(name, "a file of another kind", f'a manifest with format "{FORMAT}"')
    if value.get("format_version") != FORMAT_VERSION:
        found = repr(value.get("format_version"))[:60]
        raise CatalogError(f"{name}: format_version", found, f'"{FORMAT_VERSION}"', "Use the release that wrote it")
    features = value.get("required_features")
    for feature in features if isinstance(features, list) else []:
        if feature not in KNOWN_FEATURES:
            raise CatalogError(
                f"{name}: required_features", repr(feature)[:80], "features known here (none)",
                "Use a newer release to read this catalog",
            )  # fmt: skip
    checksum = value.pop("checksum", None)
    try:
        bare = _canonical(value)
    except (ValueError, RecursionError) as error:
        raise CatalogError(name, f"no canonical JSON ({str(error)[:120]})", "the form of format.md") from error
    if checksum != hashlib.sha256(bare).hexdigest():
        raise CatalogError(f"{name}: checksum", "a manifest changed after it was written", "the bytes as committed")
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CatalogError(f"{name}: {place}"[:300], repr(first["input"])[:120], first["msg"][:300]) from error
    if dump(manifest) != data:  # another form of the same JSON, or values that validation had to convert
        raise CatalogError(name, "a form other than the canonical one", "the bytes as committed")
    return manifest


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
