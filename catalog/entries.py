"""What the parts of a manifest are: types of its values, and the entries of files, chunks, indexes and the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from math import prod
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import SchemaValidator

from catalog.canonical import Ready, form_of
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


@lru_cache(1024)  # one text for a chunk's shards and its files, which are read from a receipt one after the other
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


@lru_cache(1024)
def _one_of_each(rows: tuple[tuple[Table, int], ...]) -> dict[Table, int]:
    return dict(rows)


def _shared(rows: dict[Table, int]) -> dict[Table, int]:
    """The same counts, in one dictionary for all chunks that have them."""
    return _one_of_each(tuple(rows.items()))


class _Entry(Ready):
    """An entry of which a catalog has thousands: a `Strict` without a dictionary of its own, nor the set of keys that
    models keep. Whatever it is made of is checked.
    """

    __slots__ = ()
    __pydantic_validator__: ClassVar[SchemaValidator]

    @classmethod
    def model_validate(cls, value: Any) -> Self:
        """The entry of these keys. Raises ValidationError."""
        entry: Self = cls.__pydantic_validator__.validate_python(value)
        return entry

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """The entry with other values. Raises ValidationError."""
        return self.model_validate({**self._keys(), **update})

    def _keys(self) -> dict[str, Any]:
        names: tuple[str, ...] = self.__slots__
        return {name: getattr(self, name) for name in names}

    @property
    def text(self) -> str:
        """Its canonical form."""
        return form_of(self._keys())


_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class FileEntry(_Entry):
    """One file: sha256, size in bytes; for a Parquet file its rows, and the sha256 of its footer.

    The footer is what says where each value lies; it is compared whenever the file is opened. Pages carry checksums of
    their own. Shards of version "1" have no `footer`.
    """

    sha256: Digest
    bytes: Count
    rows: Count | None = None
    footer: Digest | None = None

    @property
    def text(self) -> str:
        """Its canonical form, written out since a commit needs that of every file: nothing in it has to be escaped."""
        footer = "null" if self.footer is None else f'"{self.footer}"'
        rows = "null" if self.rows is None else self.rows
        parts = f'"bytes": {self.bytes}', f'"footer": {footer}', f'"rows": {rows}', f'"sha256": "{self.sha256}"'
        return "{\n   " + ",\n   ".join(parts) + "\n  }"


class VectorSpec(Strict):
    """How the vectors of a space are stored."""

    column: str
    shape: Shape
    codec: CodecSpec


@dataclass(frozen=True, slots=True, config=_CONFIG)
class ChunkEntry(_Entry):
    """A chunk that is done: a digest of the ids it added, its rows per table, and the shards they lie in.

    A table that it adds no row to has no shard. A compacted shard holds the rows of several chunks, and a merged
    catalog is one chunk with several shards.
    """

    digest: Id
    rows: Annotated[dict[Table, Count], AfterValidator(_shared)]
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
    """The concepts that were made of the directions, and of which: in one file, or in shards, as a pack has them.

    `effect`: the codec of their effects; None in the former form, see `concept_tables`.
    """

    path: ConceptsPath | None = Field(default=None, exclude_if=lambda value: value is None)
    shards: tuple[ConceptsPath, ...] | None = Field(default=None, exclude_if=lambda value: value is None)
    rows: Count
    directions_fingerprint: Id
    effect: CodecSpec | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _consistent(self) -> ConceptsEntry:
        if (self.path is None) == (self.shards is None):
            raise ValueError("either path or shards")
        if self.shards is not None and sorted(set(self.shards)) != list(self.shards):
            raise ValueError("shards in order, each once")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """All its files; none where there are no concepts."""
        return self.shards if self.path is None else (self.path,)  # type: ignore[return-value]


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
