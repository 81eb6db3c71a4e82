"""What the parts of a manifest are: types of its values, and the entries of files, chunks, indexes and the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from catalog.canonical import Ready
from catalog.codecs import CodecSpec
from catalog.fs import check_relative
from catalog.search.spec import IndexSpec

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


def _in_order(value: tuple[str, ...]) -> tuple[str, ...]:
    if sorted(set(value)) != list(value):
        raise ValueError("names in order, each once")
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("printable characters")
    return value


Table = Literal["directions", "images", "regions"]
Shape = Annotated[tuple[int, ...], AfterValidator(_shape)]
RelativePath = Annotated[str, AfterValidator(_path)]
IndexPath = Annotated[str, AfterValidator(_path), _in("index")]
ConceptsPath = Annotated[str, AfterValidator(_path), _in("concepts")]
LeftOut = Annotated[tuple[Literal["effect", "image", "latent", "mask", "preview"], ...], AfterValidator(_in_order)]
"""Columns that the tables do not have; see `schema.LEFT_OUT`."""
_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
Repository = Annotated[str, Field(pattern=rf"^{_NAME}/{_NAME}$")]
PackVersion = Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")]
FilterName = Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,31}$")]
FilterValue = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
FilterValues = Annotated[tuple[FilterValue, ...], Field(max_length=10_000), AfterValidator(_in_order)]


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

    repository: Repository
    version: PackVersion


class PackPart(Strict):
    """The published version that a catalog is a part of, and what was asked for.

    `revision`: what the hub calls that version. `filters`: values by name, such as regions; see format.md.
    """

    repository: Repository
    version: PackVersion
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    filters: Annotated[dict[FilterName, FilterValues], Field(max_length=16)] = {}
