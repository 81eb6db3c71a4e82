"""Search indexes of a catalog: by vector (per space) and by effect, joined to directions by id, searched sign-blind.

What is searched, and how, is `catalog.search`; here it meets the manifest. Each directions shard has one file of codes
that never changes, all made with the index's one quantiser: a catalog that grows encodes what is new and nothing else.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from hashlib import sha256
from math import prod
from pathlib import Path

import numpy as np

from catalog.fs import CACHE, sha256_of
from catalog.manifest import IndexEntry
from catalog.places import texts
from catalog.reader import Catalog
from catalog.records import content_id
from catalog.search import codes as coded
from catalog.search.codes import Codes
from catalog.search.engine import Engine, Part, assemble, map_lists, write_lists
from catalog.search.plan import MEMORY, PROJECTION_SAMPLE, choose, outgrown, sample_for
from catalog.search.quantiser import REBUILD, Encoder, Quantiser, dump, needs_quantiser, parse, probes_for, train
from catalog.search.sketch import learn_projection, sketch
from catalog.search.spec import IndexSpec
from catalog.writer import CatalogWriter, Stored
from pipeline.errors import CatalogError

_BLOCK = 1024
_MAPPED_FROM = 2**25  # bytes of codes above which their lists are merged into one file and mapped
EFFECT = "effect"
_STAGED = 2**26  # bytes of codes that are held before they are committed
_FEWEST = 16  # lists that any index may have, however few its directions
_STRAY = 0.25  # share of a code's bytes that rounding on another machine may change


def index_names(catalog: Catalog) -> list[str]:
    """Names of the indexes a catalog has: its spaces, and `effect`."""
    return [*sorted(catalog.manifest.provenance.shapes), EFFECT]


def _space(name: str) -> str | None:
    return None if name == EFFECT else name


def _entries(catalog: Catalog, name: str) -> int:
    provenance = catalog.manifest.provenance
    return prod(provenance.effect_shape if name == EFFECT else provenance.shapes[name])


def _present(catalog: Catalog, name: str) -> np.ndarray:
    """(n,) bool: which rows of directions belong in an index."""
    return np.ones(len(catalog.ids()), dtype=bool) if name == EFFECT else catalog.select(space=name)


# -- building ----------------------------------------------------------------------------------------------------------


def search_vectors(
    catalog: Catalog, name: str, ids: Sequence[str], spec: IndexSpec, quantiser: Quantiser
) -> np.ndarray:
    """(n, dimension) float32 sketches of directions, in the order of `ids`. Reads their vectors."""
    stored = catalog.effects(ids) if name == EFFECT else catalog.vectors(ids, name)
    return sketch(stored, spec.sketch, quantiser.projection if quantiser.projection.size else None)


def _blocks(ids: np.ndarray) -> Iterator[list[str]]:
    for start in range(0, len(ids), _BLOCK):
        yield texts(ids[start : start + _BLOCK])


def _trained(catalog: Catalog, name: str, spec: IndexSpec) -> tuple[IndexSpec, Quantiser]:
    """A quantiser trained on a sample: every n-th direction by id, and ids are hashes."""
    none = np.zeros((0, 0), np.float32)
    untrained = Quantiser(none, none, none, none)
    if not needs_quantiser(spec):
        return spec, untrained
    ids = catalog.ids()[_present(catalog, name)]
    ids = ids[:: -(-len(ids) // sample_for(spec))]
    projection = None
    if spec.sketch.kind == "learned":
        few = texts(ids[:: -(-len(ids) // PROJECTION_SAMPLE)])
        stored = catalog.effects(few) if name == EFFECT else catalog.vectors(few, name)
        projection = learn_projection(stored, spec.sketch)
        untrained = Quantiser(projection, none, none, none)
    if spec.kind == "flat":
        return spec, untrained
    sketches = np.concatenate([search_vectors(catalog, name, part, spec, untrained) for part in _blocks(ids)])
    quantiser = train(spec, sketches, projection)
    return spec.model_copy(update={"probes": probes_for(spec, quantiser, sketches)}), quantiser


def _encoded(catalog: Catalog, name: str, shard: str, spec: IndexSpec, quantiser: Quantiser) -> Codes:
    encode, parts = Encoder(spec, quantiser), []
    ids = catalog.ids()[catalog.shard_rows(shard, _space(name))]
    for part in _blocks(ids):
        lists, codes = encode(search_vectors(catalog, name, part, spec, quantiser))
        parts.append(Codes(np.array(part, dtype="S32"), lists, codes))
    return coded.join(parts, spec)


def _stored(data: bytes, name: str, rows: int | None, files: dict[str, Stored]) -> str:
    path = f"index/{name}-{sha256(data).hexdigest()[:16]}.parquet"
    files[path] = (data, rows)
    return path


def build_index(
    catalog: Catalog, name: str, seed: int = 0, rebuild: bool = False, memory: int = MEMORY
) -> Iterator[tuple[IndexEntry, dict[str, Stored]]]:
    """An index of all directions, in steps to be committed one after the other.

    A step: what the manifest is to say of the index, and the files that the catalog does not have yet. An index with
    codes of some shards only is stale to whoever opens it, and what the next call goes on from. Shards that have codes
    keep them. The quantiser is trained anew only with `rebuild`, or once the catalog has outgrown its type.

    Randomness: `seed`, where something is trained. Cost: reads the vectors of new shards once, of a sample twice; holds
    the codes of one shard, and up to 64 MiB of other ones. Raises CatalogError for a damaged index.
    """
    rows = int(np.count_nonzero(_present(catalog, name)))
    spec, entry = choose(rows, _entries(catalog, name), seed, memory), catalog.manifest.indexes.get(name)  # type: ignore[call-overload]
    files: dict[str, Stored] = {}
    shards = catalog.manifest.shards("directions")
    if entry is None or rebuild or outgrown(entry.spec, spec):
        spec, quantiser = _trained(catalog, name, spec)
        stored = None
        if needs_quantiser(spec):
            stored = _stored(dump(quantiser), f"{name}-quantiser", sum(map(len, quantiser.arrays().values())), files)
        codes: dict[str, str] = {}
    else:
        spec, quantiser, stored = entry.spec, load_quantiser(catalog, name, entry), entry.quantiser
        codes = {shard: path for shard, path in entry.codes.items() if shard in shards}
    for shard in (shard for shard in shards if shard not in codes):
        own, stream = _encoded(catalog, name, shard, spec, quantiser), io.BytesIO()
        coded.write(own, spec, stream)
        codes[shard] = _stored(stream.getvalue(), name, len(own), files)
        if sum(len(data) for data, _ in files.values()) >= _STAGED:
            yield IndexEntry(spec=spec, quantiser=stored, codes=dict(codes), rows=rows), files
            files = {}
    yield IndexEntry(spec=spec, quantiser=stored, codes=codes, rows=rows), files


def _kept(catalog: Catalog, name: str, entry: IndexEntry) -> bool:
    """Whether an index is as committed and fits its catalog; one that is not is built anew."""
    _present(catalog, name)  # a damaged shard raises here: it is no fault of the index
    try:
        for path in entry.files:
            checked(catalog, path)
        load_quantiser(catalog, name, entry)
    except CatalogError:
        return False
    known, shards = catalog.manifest.files, set(catalog.manifest.shards("directions"))
    own = [(shard, path) for shard, path in entry.codes.items() if shard in shards]
    return all(_shard_codes(catalog, name, shard) == known[path].rows for shard, path in own)


def build_indexes(folder: str | Path, seed: int = 0, rebuild: bool = False) -> dict[str, int]:
    """Build or continue, and commit, all indexes of a catalog; returns entries per index. See `build_index`.

    A commit for every 64 MiB of codes, so that an interruption keeps most of what is done. Raises ConflictError while
    another writer is at work.
    """
    counts = {}
    with CatalogWriter.open(folder) as writer:
        _drop_damaged(writer)
        catalog = Catalog(writer.folder, writer.manifest)
        for name in index_names(catalog):
            for entry, files in build_index(catalog, name, seed, rebuild):
                if entry != writer.manifest.indexes.get(name):  # type: ignore[call-overload]
                    writer.replace_indexes({**dict(writer.manifest.indexes.items()), name: entry}, files)
                counts[name] = entry.rows
        catalog.close()
        with Catalog(writer.folder, writer.manifest) as built:
            _merge_lists(built)
    return counts


def _drop_damaged(writer: CatalogWriter) -> None:
    """Leave out indexes that are not as committed: a whole file could not take the place of a damaged one."""
    with Catalog(writer.folder, writer.manifest) as catalog:
        whole = {str(name): entry for name, entry in catalog.manifest.indexes.items() if _kept(catalog, name, entry)}
    if len(whole) < len(writer.manifest.indexes):
        writer.replace_indexes(whole, {})


def _cache_path(catalog: Catalog, name: str, entry: IndexEntry) -> Path:
    """Where the merged lists of an index lie: named by what their rows and codes follow from, so stale ones are never
    found. Shards are no part of it, since rows count by id: lists outlive compaction.
    """
    quantiser = entry.quantiser and catalog.manifest.files[entry.quantiser].sha256
    parts = [entry.spec.model_dump(), quantiser, entry.rows, catalog.manifest.directions_fingerprint]
    return catalog.folder / CACHE / f"{name}-{content_id(*parts)}.lists"


def _merge_lists(catalog: Catalog) -> None:
    """Write the merged lists of large indexes into the cache; delete those of former versions, and torn ones. What a
    reader is just fetching into it stays.

    Under the writer's lock, so that nobody else is writing any.
    """
    if (catalog.folder / CACHE).is_symlink():
        raise CatalogError(str(catalog.folder / CACHE), "a symbolic link", "a plain folder")
    large = {
        _cache_path(catalog, name, entry): (str(name), entry)
        for name, entry in catalog.manifest.indexes.items()
        if entry.spec.kind == "ivf-sq8" and entry.rows * entry.spec.code_size >= _MAPPED_FROM
    }
    if (catalog.folder / CACHE).is_dir():
        for path in (catalog.folder / CACHE).iterdir():
            if path not in large and ".lists" in path.suffixes:
                path.unlink()
    for path, (name, entry) in large.items():
        if not path.is_file():
            sizes = np.zeros(entry.spec.lists, np.int64)
            for shard in entry.codes:
                lists = shard_codes(catalog, name, shard, columns=("list",)).lists
                sizes += np.bincount(lists, minlength=entry.spec.lists)
            write_lists(path, entry.spec, sizes, _parts(catalog, name, entry))


# -- reading -----------------------------------------------------------------------------------------------------------


def checked(catalog: Catalog, path: str) -> Path:
    """A listed file of an index, compared with its checksum. Raises CatalogError."""
    file, known = catalog.file(path), catalog.manifest.files[path]
    if not file.is_file() or file.stat().st_size != known.bytes or sha256_of(file) != known.sha256:
        raise CatalogError(str(file), "a missing or changed file", "the index as committed", REBUILD)
    return file


def load_quantiser(catalog: Catalog, name: str, entry: IndexEntry) -> Quantiser:
    """The quantiser of an index. Raises CatalogError: missing, damaged, or not for the vectors of this catalog."""
    none = np.zeros((0, 0), np.float32)
    quantiser = Quantiser(none, none, none, none)
    if needs_quantiser(entry.spec) != (entry.quantiser is not None):
        raise CatalogError(f"index {name}: quantiser", entry.quantiser, f"what {entry.spec.kind} needs", REBUILD)
    most = max(_FEWEST, int(np.count_nonzero(_present(catalog, name))))
    if entry.spec.lists > most:  # which bounds what the quantiser may take
        raise CatalogError(f"index {name}: lists", entry.spec.lists, f"at most {most}, one a direction", REBUILD)
    if entry.quantiser is not None:
        file = checked(catalog, entry.quantiser)
        quantiser = parse(file.read_bytes(), entry.spec, str(file))
    size = _entries(catalog, name)
    probe = np.zeros((1, size), np.float32)
    try:
        fits = sketch(probe, entry.spec.sketch, quantiser.projection if quantiser.projection.size else None).shape
    except ValueError as error:
        raise CatalogError(f"index {name}: sketch", entry.spec.sketch, f"one of {size} entries", REBUILD) from error
    if fits != (1, entry.spec.sketch.dimension):
        raise CatalogError(f"index {name}: sketch", entry.spec.sketch, f"one of {size} entries", REBUILD)
    return quantiser


def _shard_codes(catalog: Catalog, name: str, shard: str) -> int:
    """How many codes a shard has in an index: as many as it has directions there."""
    if name == EFFECT:
        return catalog.manifest.files[shard].rows or 0
    return len(catalog.shard_rows(shard, name))


def shard_codes(
    catalog: Catalog, name: str, shard: str, columns: tuple[str, ...] = ("direction_id", "list", "code")
) -> Codes:
    """The codes of one shard in an index, from a file with the right checksum.

    Raises CatalogError, for a file that states more codes than the shard has directions before anything is read.
    """
    entry = catalog.manifest.indexes[name]  # type: ignore[index]
    path, rows = entry.codes[shard], _shard_codes(catalog, name, shard)
    if catalog.manifest.files[path].rows != rows:
        found = f"{catalog.manifest.files[path].rows} codes"
        raise CatalogError(str(catalog.folder / path), found, f"{rows}, as {shard} has directions", REBUILD)
    return coded.read(checked(catalog, path), entry.spec, rows, columns)


def _parts(catalog: Catalog, name: str, entry: IndexEntry) -> Iterator[Part]:
    """Codes by row, joined by id, each file with its shard. Raises CatalogError: ids other than those of the shard."""
    ids = catalog.ids()

    def joined() -> Iterator[Codes]:
        for shard, path in sorted(entry.codes.items()):
            part, own = shard_codes(catalog, name, shard), ids[catalog.shard_rows(shard, _space(name))]
            if not np.array_equal(own, part.keys) and not np.array_equal(np.sort(own), np.sort(part.keys)):
                raise CatalogError(f"{catalog.folder / path}: direction_id", "other ids", f"those of {shard}", REBUILD)
            yield part

    for part in coded.batches(joined(), entry.spec):
        yield np.searchsorted(ids, part.keys), part.lists, part.codes


def check_codes(catalog: Catalog, name: str) -> Iterator[tuple[str, str]]:
    """(code file, what is wrong) where codes are not those of the stored directions. Cost: encodes everything anew.

    Another machine rounds otherwise, so a code may differ in some of its bytes; one of another direction differs in
    most. Raises CatalogError for files that cannot be read.
    """
    entry = catalog.manifest.indexes[name]  # type: ignore[index]
    quantiser = load_quantiser(catalog, name, entry)
    for shard, path in sorted(entry.codes.items()):
        found = shard_codes(catalog, name, shard)
        wanted = _encoded(catalog, name, shard, entry.spec, quantiser)
        order, own = np.argsort(wanted.keys), np.argsort(found.keys)
        if not np.array_equal(wanted.keys[order], found.keys[own]):
            yield path, f"other ids than those of {shard}"
            continue
        one, two = wanted.codes[order].astype(np.int16), found.codes[own].astype(np.int16)
        stray = np.flatnonzero((np.abs(one - two) > 1).mean(axis=1) > _STRAY)
        if len(stray):
            yield path, f"the code of direction {wanted.keys[order][stray[0]].decode()} is not that of its vector"


class DirectionIndex:
    """One search index of a catalog, checked to belong to the version that is open."""

    def __init__(self, catalog: Catalog, name: str) -> None:
        """Raises CatalogError: no index yet, one built for other directions, or damaged files.

        Cost: reads all codes, or of an index whose merged lists are in the cache nothing but the quantiser.
        """
        entry = catalog.manifest.indexes.get(name)  # type: ignore[call-overload]
        if entry is None:
            raise CatalogError(f"index {name}", "none in the catalog", "a search index", REBUILD)
        self.entry: IndexEntry = entry
        if not entry.covers(catalog.manifest.shards("directions")):
            raise CatalogError(f"index {name}", "one built before the last commit", "one of these directions", REBUILD)
        self._ids, self._present = catalog.ids(), _present(catalog, name)
        rows = int(np.count_nonzero(self._present))
        if entry.rows != rows:
            raise CatalogError(f"index {name}: rows", entry.rows, f"{rows}, one per direction", REBUILD)
        self.quantiser = load_quantiser(catalog, name, entry)
        self.engine = self._open(catalog, name)

    def _open(self, catalog: Catalog, name: str) -> Engine:
        lists, bound = _cache_path(catalog, name, self.entry), len(self._ids)
        if lists.is_file() and not (lists.is_symlink() or lists.parent.is_symlink()):
            return map_lists(lists, self.entry.spec, self.quantiser, self.entry.rows, bound)
        engine = assemble(self.entry.spec, self.quantiser, _parts(catalog, name, self.entry), bound)
        if len(engine) != self.entry.rows:
            raise CatalogError(f"index {name}", f"{len(engine)} codes", f"{self.entry.rows}, one each", REBUILD)
        return engine

    def __len__(self) -> int:
        return self.entry.rows

    @property
    def dimension(self) -> int:
        """Entries of a search vector."""
        return self.entry.spec.sketch.dimension

    @property
    def candidates(self) -> int:
        """How many of the best are worth ranking again by stored vectors."""
        return self.entry.spec.candidates

    def search(self, vector: np.ndarray, k: int, among: np.ndarray | None = None) -> list[tuple[str, float]]:
        """The k directions of largest |cos| by sketch, with their signed score; ties by id.

        `vector` (D,) float32 as stored; `among` bool (n,) by row, as `Catalog.select` gives, restricts the answer.
        """
        projection = self.quantiser.projection if self.quantiser.projection.size else None
        query = sketch(vector.reshape(1, -1), self.entry.spec.sketch, projection)[0]
        chosen = among & self._present if among is not None else None
        rows, scores = self.engine.search(query, k, chosen)
        return [(self._ids[row].decode(), score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]
