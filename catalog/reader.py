"""Typed access to a catalog: metadata as Arrow tables, vectors and pictures one by one or in batches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog import manifest as manifests
from catalog.fs import footer_sha256, inside
from catalog.manifest import FileEntry, Manifest
from catalog.pictures import decode_png
from catalog.places import Places
from catalog.records import DirectionRecord
from catalog.schema import KEYS, TABLES, light_columns, table_schema
from catalog.tables import SORTED, decoded, effects_of, to_direction, values_of
from pipeline.errors import CatalogError, InputError, NotFoundError

SHORTEST_PREFIX = 6
_OPEN_FILES = 32
_CORE = ("image_id", "dataset", "region", "space", "kind", "rank", "timestep")
_UNPACKED, _SMALL = 200, 2**26  # times its size that a shard may unpack to, beyond the first bytes
_REPAIR = "Run `rhumb verify` and pull or mine it again"


class Catalog:
    """One version of a catalog, as its manifest stood when it was opened. Reading takes no lock.

    Ids may be given by a unique prefix of at least 6 digits. Not for use by several threads at once. Whatever is read
    is checked: the footer of a shard against the manifest, pages against their checksums, vectors by their norm.
    Memory: some 60 bytes per direction once an id is asked for, some 40 more once rows are selected.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest, self.layout = folder, manifest, manifest.layout
        self._light: dict[str, pa.Table] = {}
        self._columns: dict[str, pa.Array] = {}
        self._found: dict[str, Places] = {}
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    @classmethod
    def open(cls, folder: str | Path) -> Catalog:
        """Raises NotFoundError (no catalog there) or CatalogError (manifest damaged or of an unknown format)."""
        return cls(Path(folder), manifests.load(Path(folder)))

    def chunk(self, chunk_id: str) -> Catalog:
        """The shards of one committed chunk as a catalog: looking into it reads no others. Raises NotFoundError.

        A compacted shard holds other chunks too.
        """
        if chunk_id not in self.manifest.chunks:
            raise NotFoundError("chunk", chunk_id[:100], f"one of the {len(self.manifest.chunks)} of {self.folder}")
        chunks = {chunk_id: self.manifest.chunks[chunk_id]}
        other = {path for table in TABLES for path in self.manifest.shards(table)} - chunks[chunk_id].paths
        files = {path: entry for path, entry in self.manifest.files.items() if path not in other}
        return Catalog(self.folder, self.manifest.model_copy(update={"chunks": chunks, "files": files}))

    def close(self) -> None:
        """Close the shards that are held open."""
        while self._files:
            self._files.popitem()[1].close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- metadata --------------------------------------------------------------------------------------------------

    def directions(self, **equals: str | int | bool | Sequence[str]) -> pa.Table:
        """Metadata of directions without vectors and pictures, sorted by id; `.to_pandas()` for a data frame.

        `equals` filters by column: a value, or a sequence of which one must match; `region="mouth", kind="local"`.
        """
        return _filtered(self._table("directions"), equals)

    def images(self, **equals: str | int | bool | Sequence[str]) -> pa.Table:
        """Metadata of mined images, sorted by id; filters as in `directions`."""
        return _filtered(self._table("images"), equals)

    def regions(self, **equals: str | int | bool | Sequence[str]) -> pa.Table:
        """Region masks without the masks: ids, names and areas, sorted by id; filters as in `directions`."""
        return _filtered(self._table("regions"), equals)

    def ids(self, table: str = "directions") -> np.ndarray:
        """(n,) "S32": all ids of a table, sorted. The place of an id here is its row."""
        return self._places(table).ids

    def column(self, name: str) -> pa.Array:
        """One column of all directions without vectors and pictures, by row; strings dictionary-encoded."""
        if name not in self._columns:
            core = name in _CORE and "directions" not in self._light
            read = self._sorted("directions", list(_CORE)) if core else self._table("directions")
            for own in _CORE if core else (name,):
                whole = read.column(own).combine_chunks()
                self._columns[own] = whole.dictionary_encode() if pa.types.is_string(whole.type) else whole
        return self._columns[name]

    def select(self, **equals: str | int | bool | Sequence[str] | Sequence[int]) -> np.ndarray:
        """(n,) bool: which rows of directions match; filters as in `directions`."""
        chosen = np.ones(len(self.ids()), dtype=bool)
        known = light_columns(self._schema("directions"))
        for column, wanted in equals.items():
            if column not in known:
                raise InputError("filter", column, f"one of {', '.join(known)}")
            if column == KEYS["directions"]:
                chosen &= np.isin(self.ids(), np.array(_listed(wanted), dtype="S32"))
            else:
                chosen &= np.asarray(_matches(self.column(column), wanted))
        return chosen

    def rows(self, ids: Sequence[str], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Some directions without vectors and pictures, in the order of `ids`. Reads one row group for each."""
        names = list(columns) if columns is not None else light_columns(self._schema("directions"))
        out: list[dict[str, Any]] = [{}] * len(ids)
        for path, group, rows in self._groups("directions", ids):
            part = self._read(path, group, names).take([row for _, row in rows]).to_pylist()
            for (position, _), row in zip(rows, part, strict=True):
                out[position] = row
        return out

    def shard_rows(self, path: str, space: str | None = None) -> np.ndarray:
        """(m,) int64: the rows of the directions that a shard holds, in its order; only those of a space."""
        rows = self._places("directions").of_shard(path)
        if space is None:
            return rows
        names = self.column("space")
        wanted = np.asarray(pc.equal(names, space), dtype=bool)
        return np.asarray(rows[wanted[rows]])

    def column_bytes(self, names: Collection[str]) -> int:
        """Bytes that columns of directions take as stored, compressed, over all shards. Reads footers only."""
        total = 0
        for path in self.manifest.shards("directions"):
            metadata = self._file(path).metadata
            for group in range(metadata.num_row_groups):
                columns = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
                total += sum(c.total_compressed_size for c in columns if c.path_in_schema.split(".")[0] in names)
        return total

    def whole_shards(self, table: str, paths: Sequence[str]) -> pa.Table:
        """All columns of some shards of a table as one, in the order that a writer gives rows."""
        rows = pa.concat_tables([self._read(path, None, self._schema(table).names) for path in paths])
        order = [(name, "ascending") for name in (SORTED if table == "directions" else (KEYS[table],))]
        return rows.take(pc.sort_indices(rows.select([name for name, _ in order]), sort_keys=order))

    def _schema(self, table: str) -> pa.Schema:
        return table_schema(table, self.layout)

    def _places(self, table: str) -> Places:
        if table not in self._found:
            shards = self.manifest.shards(table)
            read = ((self._read(path, None, [KEYS[table]]).column(0), self._group_size(path)) for path in shards)
            self._found[table] = Places.of(shards, read, str(self.folder))
        return self._found[table]

    def _sorted(self, table: str, columns: list[str]) -> pa.Table:
        """Columns of all rows, strings dictionary-encoded, by row."""
        schema = pa.schema([self._schema(table).field(name) for name in columns])
        parts = [schema.empty_table()]
        parts += [self._read(path, None, columns).cast(schema) for path in self.manifest.shards(table)]
        return pa.concat_tables(parts).take(pa.array(self._places(table).order))

    def _table(self, table: str) -> pa.Table:
        if table not in self._light:
            self._light[table] = self._sorted(table, light_columns(self._schema(table)))
        return self._light[table]

    def _file(self, path: str) -> pq.ParquetFile:
        file = self._files.pop(path, None)
        if file is None:
            file = open_shard(inside(self.folder, path), self.manifest.files[path])
        self._files[path] = file
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        return file

    def _group_size(self, path: str) -> int:
        """Rows of every row group of a shard but the last."""
        metadata = self._file(path).metadata
        return int(metadata.row_group(0).num_rows) if metadata.num_row_groups else 1

    def _read(self, path: str, group: int | None, columns: Sequence[str]) -> pa.Table:
        file = self._file(path)
        try:
            if group is None:
                found = file.read(list(columns))
            else:  # threads cost more than they save on so few rows
                found = file.read_row_group(group, list(columns), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(self.folder / path, error) from error
        if found.column_names != list(columns):
            return found.select(list(columns))
        return found

    # -- ids -------------------------------------------------------------------------------------------------------

    def resolve(self, key: str, table: str = "directions") -> str:
        """The full id of a direction, image or region given by a prefix of at least 6 digits.

        Raises NotFoundError naming the nearest ids, or InputError for a prefix that is short or not unique.
        """
        places, what = self._places(table), KEYS[table]
        if places.row(key) is not None:
            return key
        if len(key) < SHORTEST_PREFIX:
            raise InputError(what, repr(key)[:80], f"at least {SHORTEST_PREFIX} digits of an id")
        matches, near = places.beginning(key)
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise InputError(what, f"{key}, the start of several ids", "a longer prefix", ", ".join(matches[:3]))
        nearest = ", ".join(near) or "none: the catalog is empty"
        raise NotFoundError(what, key[:80], f"an id of {self.folder}", f"Nearest: {nearest}")

    def holds(self, key: str, table: str = "directions") -> bool:
        """Whether a table has a row of this whole id."""
        return self._places(table).row(key) is not None

    def _groups(self, table: str, ids: Sequence[str]) -> Iterator[tuple[str, int, list[tuple[int, int]]]]:
        """(shard, row group, [(position in `ids`, row within the group)]) for the rows of `ids`."""
        places = self._places(table)
        groups: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for position, key in enumerate(ids):
            path, group, within = places.place(self._row_of(places, table, key))
            groups.setdefault((path, group), []).append((position, within))
        for (path, group), rows in sorted(groups.items()):
            yield path, group, rows

    def _row_of(self, places: Places, table: str, key: str) -> int:
        row = places.row(key)
        if row is None:
            row = places.row(self.resolve(key, table))
        assert row is not None  # resolve has found it
        return row

    def _batch(self, table: str, columns: Sequence[str], ids: Sequence[str], size: int, read: _Decode) -> np.ndarray:
        """(n, size) float32: `read` of some columns of some rows, in the order of `ids`."""
        out = np.empty((len(ids), size), dtype=np.float32)
        for path, group, rows in self._groups(table, ids):
            part = self._read(path, group, columns).take([row for _, row in rows])
            out[[position for position, _ in rows]] = read(part, str(self.folder / path))
        return out

    def _row(self, table: str, key: str, columns: list[str]) -> dict[str, Any]:
        path, group, rows = next(iter(self._groups(table, [key])))
        row: dict[str, Any] = self._read(path, group, columns).slice(rows[0][1], 1).to_pylist()[0]
        return row

    # -- vectors and pictures --------------------------------------------------------------------------------------

    def space_of(self, direction_id: str) -> str:
        """The space ("x" or "h") of a direction."""
        return str(self._row("directions", direction_id, ["space"])["space"])

    def vector(self, direction_id: str) -> np.ndarray:
        """float32 in the shape of the direction's space, unit norm within 1e-3. Reads one row group."""
        key = self.resolve(direction_id)
        space = self.space_of(key)
        return np.reshape(self.vectors([key], space)[0], self.layout.spaces[space])

    def vectors(self, ids: Sequence[str], space: str) -> np.ndarray:
        """(n, D) float32 vectors of directions of one space, in the order of `ids`."""
        if space not in self.layout.spaces:
            raise InputError("space", space, " | ".join(self.layout.spaces))
        columns = [field.name for field in self.layout.vector_fields(space)]
        size = prod(self.layout.spaces[space])
        return self._batch("directions", columns, ids, size, lambda rows, at: decoded(rows, self.layout, space, at))

    def effect(self, direction_id: str) -> np.ndarray:
        """float32 (C, h, w), unit norm: the change the direction makes in the predicted image, small."""
        return np.reshape(self.effects([direction_id])[0], self.layout.effect_shape)

    def effects(self, ids: Sequence[str]) -> np.ndarray:
        """(n, C * h * w) float32 effects in the order of `ids`."""
        return self._batch("directions", ["effect_vector"], ids, prod(self.layout.effect_shape), effects_of)

    def preview(self, direction_id: str) -> np.ndarray:
        """uint8 (H, 3 W, 3): the posterior mean at -strength, 0 and +strength."""
        row = self._row("directions", direction_id, ["preview"])
        return decode_png(row["preview"]["bytes"], f"direction {direction_id}: preview")

    def direction(self, direction_id: str) -> DirectionRecord:
        """The whole record of a direction."""
        key = self.resolve(direction_id)
        names = [*light_columns(self._schema("directions")), "preview"]
        row = self._row("directions", key, names)
        return to_direction(row, self.vector(key), self.effect(key), f"direction {key}")

    def image(self, image_id: str) -> np.ndarray:
        """uint8 (H, W, 3), or (H, W) for a grey one."""
        row = self._row("images", image_id, ["image"])
        return decode_png(row["image"]["bytes"], f"image {image_id}")

    def latent(self, image_id: str) -> np.ndarray:
        """float32 (C, H, W): x_t of the image at its timestep."""
        shape = self.layout.spaces["x"]
        found = self._batch("images", ["latent"], [image_id], prod(shape), _latents)
        return np.reshape(found[0], shape)

    def mask(self, image_id: str, region: str) -> np.ndarray:
        """bool (H, W) mask of a region of an image. Raises NotFoundError naming the regions there are."""
        key = self.resolve(image_id, "images")
        found = {row["region"]: row["region_id"] for row in self.regions(image_id=key).to_pylist()}
        if region not in found:
            raise NotFoundError("region", region, f"one of {', '.join(sorted(found)) or 'none'} of image {key}")
        row = self._row("regions", found[region], ["mask"])
        return decode_png(row["mask"]["bytes"], f"region {found[region]}: mask") > 127

    def picture(self, name: str) -> bytes:
        """A stored PNG by its name."""
        if name not in self.manifest.pictures:
            names = ", ".join(sorted(self.manifest.pictures)[:8]) or "none"
            raise NotFoundError("picture", name, f"one of {names}")
        return inside(self.folder, self.manifest.pictures[name]).read_bytes()


def open_shard(path: Path, entry: FileEntry) -> pq.ParquetFile:
    """A Parquet file as the manifest describes it: its footer, its rows, and no more in it than its size accounts for.

    Raises CatalogError: missing, damaged, or of absurd lengths.
    """
    try:
        if entry.footer is not None and footer_sha256(path) != entry.footer:
            raise CatalogError(str(path), "a changed footer", "the shard as committed", _REPAIR)
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    metadata = file.metadata
    unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    most = _UNPACKED * entry.bytes + _SMALL
    if metadata.num_rows != entry.rows or unpacked > most:
        file.close()
        found = f"{metadata.num_rows} rows of {unpacked} bytes unpacked"
        raise CatalogError(str(path), found, f"{entry.rows} rows of at most {most} bytes", _REPAIR)
    return file


_Decode = Callable[[pa.Table, str], np.ndarray]


def _latents(rows: pa.Table, name: str) -> np.ndarray:
    return values_of(rows.column("latent"), f"{name}: latent")


def _listed(wanted: Any) -> list[Any]:
    return [wanted] if isinstance(wanted, str | int | bool | float) else list(wanted)


def _matches(column: pa.Array | pa.ChunkedArray, wanted: Any) -> pa.Array:
    """Where a column has one of the wanted values."""
    plain = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    try:
        return pc.is_in(column, value_set=pa.array(_listed(wanted), type=plain))
    except (pa.ArrowException, TypeError) as error:
        raise InputError("filter", repr(wanted)[:80], f"values of type {plain}") from error


def _filtered(table: pa.Table, equals: dict[str, Any]) -> pa.Table:
    for column, wanted in equals.items():
        if column not in table.column_names:
            raise InputError("filter", column, f"one of {', '.join(table.column_names)}")
        table = table.filter(_matches(table.column(column), wanted))
    return table


def _damaged(path: Path, error: Exception) -> CatalogError:
    return CatalogError(str(path), f"an unreadable file ({str(error)[:120]})", "a whole Parquet shard", _REPAIR)
