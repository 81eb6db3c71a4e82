"""What a pack takes over from the version before it: the shards of chunks that are the same, all of whose rows stay.

It is decided by the two manifests alone, so that nothing of the former version has to be fetched. A chunk of the same
digest has the same ids, and what an id stands for never changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from catalog.hub.parts import part_of
from catalog.hub.waiting import SHARD_BYTES
from catalog.manifest import Manifest
from catalog.schema import TABLES

MANY = 32
"""Small shards of a part from which on the smallest are joined: a row then travels again once in as many versions."""
WHOLE = ""
"""The part of tables that are not cut into parts."""
Key = tuple[str, str]
"""A table and a part of it."""


def key_of(shard: str) -> Key | None:
    """Table and part that the path of a shard says; None for directions that are not named by what they hold."""
    table, part = shard.split("/")[0], part_of(shard)
    if table != "directions":
        return table, WHOLE
    return None if part is None else (table, part)


@dataclass(frozen=True)
class Reuse:
    """Of a catalog that is to be arranged: former `shards` that stand for rows of it, and which rows are written anew.

    `fresh` chunks have no row in the former version. `moved` are, for each part, other chunks whose rows are written
    anew because they lie in one shard with rows that are not the same any more, there or here.
    """

    fresh: frozenset[str]
    moved: Mapping[Key, frozenset[str]] = field(default_factory=dict)
    shards: frozenset[str] = frozenset()

    def written(self, chunk: str, table: str, part: str) -> bool:
        """Whether the rows of a chunk in a part are written anew."""
        return chunk in self.fresh or chunk in self.moved.get((table, part), ())

    def touched(self, chunk: str, table: str) -> bool:
        """Whether any rows of a chunk in a table are written anew."""
        return chunk in self.fresh or any(chunk in own for (name, _), own in self.moved.items() if name == table)


def holders(manifest: Manifest) -> dict[str, list[str]]:
    """The chunks whose rows lie in each shard."""
    found: dict[str, list[str]] = defaultdict(list)
    for chunk, entry in manifest.chunks.items():
        for path in sorted(entry.paths):
            found[path].append(chunk)
    return found


def reuse_of(source: Manifest, former: Manifest | None, exact: bool = False, apart: bool = False) -> Reuse:
    """What `source` has in common with a `former` pack of the same layout.

    Where a part has many small shards, of as many versions, the smallest are written anew as one. `exact`: take over
    only shards of directions whose very rows the source can tell, as codes that are made for them anew ask for.
    `apart`: rows of chunks in one shard of the source can be told apart. Cost: a few steps for each chunk and part.
    """
    by_key = _by_key(former) if former is not None else None
    if former is None or by_key is None:
        return Reuse(frozenset(source.chunks))
    same = {chunk for chunk in source.chunks.keys() & former.chunks.keys() if _same(source, former, chunk)}
    gone = (source.chunks.keys() | former.chunks.keys()) - same
    here, there = holders(source), holders(former)
    moved, kept = {}, set[str]()
    for (table, part), paths in by_key.items():
        seeds = set(gone)
        if exact and table == "directions":
            seeds |= _blurred(source, former, paths, here, there)
        if not apart:
            seeds |= {chunk for path in _crumbs(former, paths) for chunk in there[path]}
        together = [own for path, own in here.items() if path.startswith(f"{table}/") and not apart]
        spread = _spread(seeds, [*together, *(there[path] for path in paths)])
        moved[table, part] = frozenset(spread & same)
        kept |= {path for path in paths if not spread.intersection(there[path])}
    return Reuse(frozenset(source.chunks.keys() - same), moved, frozenset(kept))


def _by_key(former: Manifest) -> dict[Key, list[str]] | None:
    """The shards of each part; None where some are not named by what they hold."""
    found: dict[Key, list[str]] = defaultdict(list)
    for path in (path for table in TABLES for path in former.shards(table)):
        key = key_of(path)
        if key is None:
            return None
        found[key].append(path)
    return found


def _crumbs(former: Manifest, paths: Sequence[str]) -> list[str]:
    """The smallest shards of a part, where it has too many small ones to be pulled quickly."""
    small = sorted((former.files[path].bytes, path) for path in paths if former.files[path].bytes < SHARD_BYTES / 2)
    return [path for _, path in small[:MANY]] if len(small) >= MANY else []


def grown_only(source: Manifest, former: Manifest) -> bool:
    """Whether a catalog has all chunks of a former pack, and more besides."""
    return all(chunk in source.chunks and _same(source, former, chunk) for chunk in former.chunks)


def _same(source: Manifest, former: Manifest, chunk: str) -> bool:
    one, two = source.chunks[chunk], former.chunks[chunk]
    return one.digest == two.digest and one.rows == two.rows


def _spread(seeds: Iterable[str], groups: Sequence[Sequence[str]]) -> set[str]:
    """The seeds, all that are in a group with one of them, all that are in a group with one of those, and so on."""
    groups_of: dict[str, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        if len(group) > 1:
            for chunk in group:
                groups_of[chunk].append(number)
    found, waiting, done = set(seeds), list(seeds), set[int]()
    while waiting:
        for number in groups_of.get(waiting.pop(), ()):
            if number not in done:
                done.add(number)
                more = [chunk for chunk in groups[number] if chunk not in found]
                found.update(more)
                waiting += more
    return found


def _blurred(
    source: Manifest,
    former: Manifest,
    paths: Sequence[str],
    here: Mapping[str, Sequence[str]],
    there: Mapping[str, Sequence[str]],
) -> set[str]:
    """Chunks in former shards of a part whose rows the source cannot tell from rows that lie elsewhere."""
    own_shards: dict[str, int] = defaultdict(int)
    for path in paths:
        for chunk in there[path]:
            own_shards[chunk] += 1
    blurred = set[str]()
    for path in paths:
        own = set(there[path])
        known = [chunk for chunk in own if chunk in source.chunks]
        apart = all(own_shards[chunk] == 1 for chunk in own)
        shards = {shard for chunk in known for shard in source.chunks[chunk].shards.get("directions", ())}
        if not apart or not all(own.issuperset(here[shard]) for shard in shards):
            blurred |= own
    return blurred
