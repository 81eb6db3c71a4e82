"""Typed access to a catalog: metadata as Arrow tables, vectors and pictures one by one or in batches."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog import manifest as manifests
from catalog.filtering import filtered, listed, matches
from catalog.manifest import Manifest
from catalog.mirror import opened, present
from catalog.pictures import decode_png
from catalog.places import Places, packed_ids
from catalog.records import DirectionRecord
from catalog.schema import KEYS, TABLES, light_columns, table_schema
from catalog.shards import REPAIR, Shard, open_shard
from catalog.tables import SORTED, decoded, effects_of, to_direction, values_of
from pipeline.errors import CatalogError, InputError, NotFoundError

SHORTEST_PREFIX = 6
_OPEN_FILES = 32  # opening one parses its footer, which takes as long as reading ten rows
_AT_ONCE = 32  # shards whose tables lie in memory one by one
_CORE = ("image_id", "dataset", "region", "space", "kind", "rank", "timestep")


class Catalog:
    """One version of a catalog, as its manifest stood when it was opened. Reading takes no lock.

    Ids may be given by a unique prefix of at least 6 digits. Not for use by several threads at once. Whatever is read
    is checked: the footer of a shard against the manifest, columns against their checksums, vectors by their norm.
    Memory: some 60 bytes per direction once an id is asked for, some 40 more once rows are selected.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest, self.layout = folder, manifest, manifest.layout
        self._light: dict[str, pa.Table] = {}
        self._columns: dict[str, pa.Array] = {}
        self._found: dict[str, Places] = {}
        self._in_space: dict[str, np.ndarray] = {}
        self._files: OrderedDict[str, Shard] = OrderedDict()

    @classmethod
    def open(cls, folder: str | Path) -> Catalog:
        """Raises NotFoundError (no catalog there) or CatalogError (manifest damaged or of an unknown format)."""
        root = opened(folder)
        return cls(root, manifests.load(root))

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

    def file(self, path: str) -> Path:
        """Where a listed file is, which is fetched first if the catalog is in a distant store. Not compared with
        its checksum. Raises CatalogError, StoreError.
        """
        return present(self.folder, path, self.manifest.files[path])

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
        return filtered(self._table("directions"), equals)

    def images(self, **equals: str | int | bool | Sequence[str]) -> pa.Table:
        """Metadata of mined images, sorted by id; filters as in `directions`."""
        return filtered(self._table("images"), equals)

    def regions(self, **equals: str | int | bool | Sequence[str]) -> pa.Table:
        """Region masks without the masks: ids, names and areas, sorted by id; filters as in `directions`."""
        return filtered(self._table("regions"), equals)

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
        known = light_columns(self._schemas["directions"])
        for column, wanted in equals.items():
            if column not in known:
                raise InputError("filter", column, f"one of {', '.join(known)}")
            if column == KEYS["directions"]:
                chosen &= np.isin(self.ids(), np.array(listed(wanted), dtype="S32"))
            else:
                chosen &= np.asarray(matches(self.column(column), wanted))
        return chosen

    def rows(self, ids: Sequence[str], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Some directions without vectors and pictures, in the order of `ids`. Reads one row group for each."""
        names = list(columns) if columns is not None else light_columns(self._schemas["directions"])
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
        if space not in self._in_space:
            self._in_space[space] = self.select(space=space)
        return np.asarray(rows[self._in_space[space][rows]])

    def column_bytes(self, names: Collection[str]) -> int:
        """Bytes that columns of directions take as stored, compressed, over all shards. Reads footers only."""
        total = 0
        for path in self.manifest.shards("directions"):
            chunks = (chunk for group in self._file(path).footer.groups for chunk in group.chunks)
            total += sum(c.total_compressed_size for c in chunks if c.path_in_schema.split(".")[0] in names)
        return total

    def whole_shards(self, table: str, paths: Sequence[str]) -> pa.Table:
        """All columns of some shards of a table as one, in the order that a writer gives rows."""
        rows = pa.concat_tables([self._read(path, None, self._schemas[table].names) for path in paths])
        order = [(name, "ascending") for name in (SORTED if table == "directions" else (KEYS[table],))]
        return rows.take(pc.sort_indices(rows.select([name for name, _ in order]), sort_keys=order))

    def shard_part(self, path: str, chosen: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Some columns of the rows `chosen` (m,) bool of a shard, in its order. Reads the row groups that have any."""
        parts = [pa.schema([self._schemas[path.split("/")[0]].field(name) for name in columns]).empty_table()]
        if not chosen.any():
            return parts[0]
        file = self._file(path)
        size = file.group_size
        starts = [start for start in range(0, len(chosen), size) if chosen[start : start + size].any()]
        file.expect([start // size for start in starts], columns)
        for start in starts:
            own = pa.array(chosen[start : start + size])
            parts.append(self._read(path, start // size, columns).filter(own).replace_schema_metadata())
        return pa.concat_tables(parts)

    @cached_property
    def _schemas(self) -> dict[str, pa.Schema]:
        return {table: table_schema(table, self.layout) for table in TABLES}

    def _places(self, table: str) -> Places:
        if table not in self._found:
            shards = self.manifest.shards(table)
            read = ((self._read(path, None, [KEYS[table]]).column(0), self._file(path).group_size) for path in shards)
            self._found[table] = Places.of(shards, read, str(self.folder))
        return self._found[table]

    def _sorted(self, table: str, columns: list[str]) -> pa.Table:
        """Columns of all rows, strings dictionary-encoded, by row."""
        schema = pa.schema([self._schemas[table].field(name) for name in columns])
        parts, some = [schema.empty_table()], list[pa.Table]()
        for path in self.manifest.shards(table):
            some.append(self._read(path, None, columns).cast(schema))
            if len(some) == _AT_ONCE:
                parts.append(pa.concat_tables(some).combine_chunks())
                some.clear()
        return pa.concat_tables([*parts, *some]).take(pa.array(self._places(table).order))

    def _table(self, table: str) -> pa.Table:
        if table not in self._light:
            self._light[table] = self._sorted(table, light_columns(self._schemas[table]))
        return self._light[table]

    def _file(self, path: str) -> Shard:
        file = self._files.pop(path, None)
        if file is None:
            file = self._opened(path, self._schemas[path.split("/")[0]])
        self._files[path] = file
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        return file

    def _opened(self, path: str, schema: pa.Schema) -> Shard:
        return open_shard(self.file(path), self.manifest.files[path], schema)

    def _read(self, path: str, group: int | None, columns: Sequence[str]) -> pa.Table:
        file = self._file(path)
        return file.read(columns) if group is None else file.read_row_group(group, columns)

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
        groups = list(self._groups(table, ids))
        if len(groups) > 1:
            for path, parts in groupby(groups, key=lambda found: found[0]):
                self._file(path).expect([group for _, group, _ in parts], columns)
        for path, group, rows in groups:
            part = self._read(path, group, columns)
            chosen = part.slice(rows[0][1], 1) if len(rows) == 1 else part.take([row for _, row in rows])
            out[[position for position, _ in rows]] = read(chosen, str(self.folder / path))
        return out

    def _row(self, table: str, key: str, columns: list[str]) -> dict[str, Any]:
        path, group, rows = next(iter(self._groups(table, [key])))
        row: dict[str, Any] = self._read(path, group, columns).slice(rows[0][1], 1).to_pylist()[0]
        return row

    # -- vectors and pictures --------------------------------------------------------------------------------------

    def lacks(self, column: str) -> bool:
        """Whether the catalog was published, or pulled, without a column: one of `schema.LEFT_OUT`."""
        return column in self.layout.left_out

    def _must_have(self, column: str, of: str) -> None:
        """Raise NotFoundError where a column is left out; `of`: the row it would have been of."""
        if self.lacks(column):
            raise NotFoundError(
                f"{column} of {of}"[:300], "left out of this pack", f"a catalog with {column}s",
                f"Pull it with {column}s if it was published with them, or use a picture of your own",
            )  # fmt: skip

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
        """uint8 (H, 3 W, 3): the posterior mean at -strength, 0 and +strength. Raises NotFoundError where left out."""
        return self._png("directions", direction_id, "preview", f"direction {direction_id}: preview")

    def direction(self, direction_id: str) -> DirectionRecord:
        """The whole record of a direction. Raises NotFoundError where the catalog has no previews."""
        key = self.resolve(direction_id)
        self._must_have("preview", key)
        names = [*light_columns(self._schemas["directions"]), "preview"]
        row = self._row("directions", key, names)
        return to_direction(row, self.vector(key), self.effect(key), f"direction {key}")

    def image(self, image_id: str) -> np.ndarray:
        """uint8 (H, W, 3), or (H, W) for a grey one. Raises NotFoundError where left out."""
        return self._png("images", image_id, "image", f"image {image_id}")

    def latent(self, image_id: str) -> np.ndarray:
        """float32 (C, H, W): x_t of the image at its timestep. Raises NotFoundError where left out."""
        self._must_have("latent", image_id)
        shape = self.layout.spaces["x"]
        found = self._batch("images", ["latent"], [image_id], prod(shape), _latents)
        return np.reshape(found[0], shape)

    def mask(self, image_id: str, region: str) -> np.ndarray:
        """bool (H, W) mask of a region of an image. Raises NotFoundError: left out, or naming the regions there are."""
        key = self.resolve(image_id, "images")
        self._must_have("mask", f"{region} of {key}")
        images, order, names = self._masks
        start, end = np.searchsorted(images, np.bytes_(key), "left"), np.searchsorted(images, np.bytes_(key), "right")
        rows = order[start:end]
        found = dict(zip(names.take(rows).to_pylist(), self.ids("regions")[rows], strict=True))
        if region not in found:
            raise NotFoundError("region", region, f"one of {', '.join(sorted(found)) or 'none'} of image {key}")
        own = found[region].decode()
        mask = self._png("regions", own, "mask", f"region {own}: mask")
        if mask.ndim != 2:
            raise CatalogError(f"region {own}: mask", "a picture in colour", "one channel", REPAIR)
        return mask > 127

    @cached_property
    def _masks(self) -> tuple[np.ndarray, np.ndarray, pa.Array]:
        """Image ids (n,) "S32" of all regions, sorted; the row of each in `regions`; the region's name by row."""
        regions = self._table("regions")
        images = packed_ids(regions.column("image_id"), f"{self.folder}: image_id of regions")
        order = np.argsort(images, kind="stable")
        return images[order], order, regions.column("region").combine_chunks()

    def _png(self, table: str, key: str, column: str, name: str) -> np.ndarray:
        """A picture of a row, decoded; `name` is for errors."""
        self._must_have(column, key)
        return decode_png(self._row(table, key, [column])[column]["bytes"], name)

    def picture(self, name: str) -> bytes:
        """A stored PNG by its name."""
        if name not in self.manifest.pictures:
            names = ", ".join(sorted(self.manifest.pictures)[:8]) or "none"
            raise NotFoundError("picture", name, f"one of {names}")
        path = self.file(self.manifest.pictures[name])
        entry = self.manifest.files[self.manifest.pictures[name]]
        try:
            data = path.read_bytes() if path.stat().st_size == entry.bytes else b""
        except OSError as error:
            raise CatalogError(str(path), f"no readable file ({error.strerror})", "a PNG", REPAIR) from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CatalogError(str(path), "changed bytes", "the picture as committed", REPAIR)
        return data


_Decode = Callable[[pa.Table, str], np.ndarray]


def _latents(rows: pa.Table, name: str) -> np.ndarray:
    return values_of(rows.column("latent"), f"{name}: latent")
