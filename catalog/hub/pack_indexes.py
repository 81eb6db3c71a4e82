"""The search indexes of a pack: the codes of its catalog, laid out by the pack's shards. Nothing is encoded anew."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.hub.folder import DraftFolder
from catalog.index import EFFECT, checked, shard_codes
from catalog.manifest import IndexEntry, Manifest
from catalog.places import packed_ids
from catalog.reader import Catalog
from catalog.schema import KEYS
from catalog.search import codes as coded
from catalog.search.codes import Codes
from catalog.search.quantiser import REBUILD
from catalog.writer import CatalogWriter, Stored
from pipeline.errors import CatalogError

COLUMNS = (KEYS["directions"], "space")
"""Of the rows that codes are asked for."""
_STAGED = 2**26  # bytes of codes that are held before they are committed


class PackIndexes:
    """The indexes of a catalog that are whole, on their way into a pack.

    `gathers`: whether codes of the former version can be taken over for none of its shards, but have to be made of the
    catalog's: its quantiser or type is another now, or it had no such index.
    """

    def __init__(self, source: Catalog, former: Manifest | None) -> None:
        shards = source.manifest.shards("directions")
        self._source, self._former = source, former
        self._entries = {str(n): entry for n, entry in source.manifest.indexes.items() if entry.covers(shards)}
        self._shared = {name for name, entry in self._entries.items() if self._same_as_before(name, entry)}
        self._codes: dict[str, dict[str, str]] = {name: {} for name in self._entries}

    def _same_as_before(self, name: str, entry: IndexEntry) -> bool:
        former = self._former
        before = former.indexes.get(name) if former is not None else None  # type: ignore[call-overload]
        if former is None or before is None or before.spec != entry.spec:
            return False
        return bool(before.quantiser == entry.quantiser) and before.covers(former.shards("directions"))

    @property
    def gathers(self) -> bool:
        """See above."""
        return self._shared != self._entries.keys()

    def of_shard(self, shard: str, rows: pa.Table, all_: bool = True) -> dict[str, Codes]:
        """The codes of a shard of the catalog by index; `rows` are all its own. Not `all_`: of those to be gathered.

        Raises CatalogError for codes that are not as committed.
        """
        names = self._entries if all_ else self._entries.keys() - self._shared
        found = {}
        for name in sorted(names):
            entry = self._entries[name]
            path = checked(self._source, entry.codes[shard])
            found[name] = coded.read(path, entry.spec, len(_ids(rows, name)))
        return found

    def write(self, folder: DraftFolder, shard: str, rows: pa.Table, parts: Iterable[Mapping[str, Codes]]) -> None:
        """Write the codes of a new shard, whose rows are `rows`, out of those of the shards they come from."""
        some = list(parts)
        for name, entry in self._entries.items():
            own = chosen(coded.join([part[name] for part in some], entry.spec), _ids(rows, name), f"index {name}")
            self._put(folder, shard, name, own)

    def keep(self, shard: str) -> None:
        """Take over the codes of a shard of the former version where they fit."""
        assert self._former is not None  # or there are no such shards
        for name in self._shared:
            self._codes[name][shard] = self._former.indexes[name].codes[shard]  # type: ignore[index]

    def put_gathered(self, folder: DraftFolder, shard: str, rows: int, parts: Iterable[Mapping[str, Codes]]) -> None:
        """Write codes of a shard of the former version that its own do not fit, gathered from the catalog's.

        Raises CatalogError where there are others than its `rows`.
        """
        some = list(parts)
        for name in self._entries.keys() - self._shared:
            own = coded.join([part[name] for part in some], self._entries[name].spec)
            if name == EFFECT and len(own) != rows:
                raise CatalogError(
                    shard, f"{rows} rows", f"{len(own)}, as its chunks say", "Publish under another name"
                )
            order = np.argsort(own.keys)
            self._put(folder, shard, name, Codes(own.keys[order], own.lists[order], own.codes[order]))

    def _put(self, folder: DraftFolder, shard: str, name: str, own: Codes) -> None:
        spec = self._entries[name].spec
        self._codes[name][shard] = folder.write(
            f"index/{name}-{{digest}}.parquet", lambda stream: coded.write(own, spec, stream), len(own)
        )

    def finish(self, folder: DraftFolder) -> dict[str, IndexEntry]:
        """What the manifest says of the indexes; their quantisers are copied."""
        for entry in self._entries.values():
            if entry.quantiser is not None:
                folder.copy(self._source, entry.quantiser)
        return {name: entry.model_copy(update={"codes": self._codes[name]}) for name, entry in self._entries.items()}


def carry_indexes(source: Catalog, folder: Path) -> list[str]:
    """Give the catalog in `folder`, a selection of `source`, the indexes that `source` has whole; their names.

    Quantisers and codes stay as they are, so that one selection after the other has the same codes of the same rows,
    which indexes built anew would not have. One that is too fine for so few rows is left out. Cost: reads codes;
    memory: 64 MiB of them, and 4 bytes a direction. Raises CatalogError for codes that are not as committed.
    """
    carried, shards = [], source.manifest.shards("directions")
    origin = np.zeros(len(source.ids()), np.int32)
    for number, path in enumerate(shards):
        origin[source.shard_rows(path)] = number
    with CatalogWriter.open(folder) as writer, Catalog(writer.folder, writer.manifest) as chosen_rows:
        for name, entry in source.manifest.indexes.items():
            rows = len(chosen_rows.ids()) if name == EFFECT else int(chosen_rows.select(space=name).sum())
            if not entry.covers(shards) or entry.spec.lists > rows:
                continue
            for own, files in _carried(source, str(name), entry, origin, chosen_rows):
                made = entry.model_copy(update={"codes": own, "rows": rows})
                writer.replace_indexes({**dict(writer.manifest.indexes.items()), name: made}, files)
            carried.append(str(name))
    return carried


def _carried(
    source: Catalog, name: str, entry: IndexEntry, origin: np.ndarray, selection: Catalog
) -> Iterator[tuple[dict[str, str], dict[str, Stored]]]:
    """Codes by shard of a selection, in steps to be committed: all so far, and the files that are new."""
    shards, made, files = source.manifest.shards("directions"), dict[str, str](), dict[str, Stored]()
    if entry.quantiser is not None:
        data = checked(source, entry.quantiser).read_bytes()
        files[entry.quantiser] = (data, source.manifest.files[entry.quantiser].rows)
    for path in selection.manifest.shards("directions"):
        ids = selection.ids()[selection.shard_rows(path, None if name == EFFECT else name)]
        numbers = np.unique(origin[np.searchsorted(source.ids(), ids)]).tolist()
        codes = coded.join([shard_codes(source, name, shards[number]) for number in numbers], entry.spec)
        stream = io.BytesIO()
        coded.write(chosen(codes, ids, f"index {name}"), entry.spec, stream)
        made[path] = f"index/{name}-{sha256(stream.getvalue()).hexdigest()[:16]}.parquet"
        files[made[path]] = (stream.getvalue(), len(ids))
        if sum(len(data) for data, _ in files.values()) >= _STAGED:
            yield dict(made), files
            files = {}
    yield made, files


def of_rows(codes: Mapping[str, Codes], rows: pa.Table) -> dict[str, Codes]:
    """Of the codes of a shard those of some of its rows."""
    return {name: chosen(own, _ids(rows, name), f"index {name}") for name, own in codes.items()}


def chosen(codes: Codes, ids: np.ndarray, name: str) -> Codes:
    """The codes of `ids` (n,) "S32", in their order. Raises CatalogError where one has none."""
    order = np.argsort(codes.keys)
    ranked = codes.keys[order]
    at = np.minimum(np.searchsorted(ranked, ids), max(0, len(ranked) - 1))
    if len(ids) and (not len(ranked) or not np.array_equal(ranked[at], ids)):
        raise CatalogError(name, "other ids", "codes of the directions of its shards", REBUILD)
    own = order[at] if len(ids) else np.zeros(0, np.int64)
    return Codes(codes.keys[own], codes.lists[own], codes.codes[own])


def _ids(rows: pa.Table, name: str) -> np.ndarray:
    """(n,) "S32": the ids of those rows that an index holds."""
    own = rows if name == EFFECT else rows.filter(pc.equal(rows.column("space"), name))
    return packed_ids(own.column(KEYS["directions"]), f"index {name}")
