"""Parts of a pack: how the shards of one data set and region are named, and what may be asked for by itself."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from catalog.rules import KINDS, check_name
from catalog.schema import LEFT_OUT
from pipeline.errors import CatalogError, InputError

_LONGEST, _MARK = 40, 6
_OTHER = re.compile(r"[^a-z0-9]+")
_SHARD = re.compile(r"directions/([a-z0-9-]+\.[a-z0-9-]+)-[0-9a-f]{16}\.parquet")
_CONCEPTS = re.compile(r"concepts/((?:[a-z0-9-]+\.)?[a-z0-9-]+)-[0-9a-f]{16}\.parquet")
_ONLY = ("only",)


def part_name(dataset: str, region: str) -> str:
    """How the shards of a data set's region are called in a pack: `celebahq.left-eye-1f03ab`.

    Of each name its lower-case letters, digits and '-', 40 at most; where that is not the name itself, it ends in 6 hex
    digits of the name's sha256, so that two names hardly ever share one.
    """
    return f"{_slug(dataset)}.{_slug(region)}"


def _slug(name: str) -> str:
    plain = _OTHER.sub("-", name.lower()).strip("-")[:_LONGEST].strip("-")
    if plain == name:
        return plain
    mark = hashlib.sha256(name.encode()).hexdigest()[:_MARK]
    return f"{plain[: _LONGEST - _MARK - 1].strip('-')}-{mark}".lstrip("-")


def part_of(shard: str) -> str | None:
    """The `part_name` that the path of a directions shard says; None for one that is not named by what it holds."""
    found = _SHARD.fullmatch(shard)
    return found[1] if found is not None else None


def concepts_part(datasets: Sequence[str], region: str) -> str:
    """How the shard of a region's concepts whose members are of these data sets is called: as shards of its directions,
    or by the region alone where there are several data sets.
    """
    return part_name(datasets[0], region) if len(datasets) == 1 else _slug(region)


def part_of_concepts(shard: str) -> str | None:
    """The `concepts_part` that the path of a file of concepts says; None for one that may hold any."""
    found = _CONCEPTS.fullmatch(shard)
    return found[1] if found is not None else None


@dataclass(frozen=True)
class Part:
    """Which directions of a pack are asked for, and which columns are not. Nothing given: no restriction.

    `prototypes`: only the directions that concepts are named after. `without`: columns out of effect, image, latent,
    mask and preview. Raises InputError for values that no direction can have.
    """

    regions: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    spaces: tuple[str, ...] = ()
    prototypes: bool = False
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("kinds", KINDS), ("spaces", ("x", "h")), ("without", LEFT_OUT)):
            if unknown := sorted(set(getattr(self, name)) - set(known)):
                raise InputError(name, unknown[0][:60], f"some of {', '.join(known)}")
        for name in ("regions", "datasets"):
            for value in getattr(self, name):
                try:
                    check_name(value, name)
                except CatalogError as error:
                    raise InputError(name, error.found, error.expected) from error

    @property
    def filters(self) -> dict[str, tuple[str, ...]]:
        """What was asked for, as a manifest records it; empty where that is the whole pack."""
        given = {field.name: getattr(self, field.name) for field in fields(self)} | {"prototypes": ()}
        found = {name: tuple(sorted(set(values))) for name, values in given.items() if values}
        return {**found, "prototypes": _ONLY} if self.prototypes else found

    def takes(self, dataset: str, region: str, space: str, kind: str) -> bool:
        """Whether a direction of these belongs to it, prototype or not."""
        asked = ((self.datasets, dataset), (self.regions, region), (self.spaces, space), (self.kinds, kind))
        return all(not wanted or value in wanted for wanted, value in asked)

    def may_hold(self, shard: str) -> bool:
        """Whether the path of a shard, of directions or concepts, leaves it open that it holds rows of the part."""
        own = part_of(shard) or part_of_concepts(shard)
        if own is None:
            return True
        dataset, dot, region = own.rpartition(".")
        asked = ((self.datasets, dataset, bool(dot)), (self.regions, region, True))
        return all(not wanted or not said or slug in map(_slug, wanted) for wanted, slug, said in asked)
