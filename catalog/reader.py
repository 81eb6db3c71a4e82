"""Typed access to a catalog: metadata as Arrow tables, vectors and pictures one by one or in batches."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog import manifest as manifests
from catalog.fs import inside
from catalog.manifest import Manifest
from catalog.pictures import decode_png
from catalog.records import DirectionRecord
from catalog.schema import ROW_GROUP, light_columns, table_schema, vector_column
from catalog.tables import to_direction, vectors_of
from pipeline.errors import CatalogError, InputError, NotFoundError

SHORTEST_PREFIX = 6
_OPEN_FILES = 32
_KEYS = {"directions": "direction_id", "images": "image_id", "regions": "region_id"}


class Catalog:
    """One version of a catalog, as its manifest stood when it was opened. Reading takes no lock.

    Ids may be given by a unique prefix of at least 6 digits. Not for use by several threads at once.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._light: dict[str, pa.Table] = {}
        self._places: dict[str, dict[str, tuple[int, int]]] = {}
        self._sorted: dict[str, list[str]] = {}
        self._spaces: dict[str, str] = {}
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    @classmethod
    def open(cls, folder: str | Path) -> Catalog:
        """Raises NotFoundError (no catalog there) or CatalogError (manifest damaged or of an unknown format)."""
        return cls(Path(folder), manifests.load(Path(folder)))

    def chunk(self, chunk_id: str) -> Catalog:
        """One committed chunk as a catalog of its own: looking into it reads no other. Raises NotFoundError."""
        if chunk_id not in self.manifest.chunks:
            raise NotFoundError("chunk", chunk_id[:100], f"one of the {len(self.manifest.chunks)} of {self.folder}")
        chunks = {chunk_id: self.manifest.chunks[chunk_id]}
        return Catalog(self.folder, self.manifest.model_copy(update={"chunks": chunks}))

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

    def _schema(self, table: str) -> pa.Schema:
        provenance = self.manifest.provenance
        return table_schema(table, provenance.shapes, provenance.effect_shape)

    def _table(self, table: str) -> pa.Table:
        if table not in self._light:
            schema = self._schema(table)
            columns = light_columns(schema)
            empty = pa.schema([schema.field(name) for name in columns]).empty_table()
            parts, places = [empty], {}
            for number, path in enumerate(self.manifest.shards(table)):
                rows = self._read(path, None, columns)
                parts.append(rows.cast(empty.schema))
                for row, key in enumerate(rows.column(_KEYS[table]).to_pylist()):
                    places[key] = (number, row)
            self._light[table] = pa.concat_tables(parts).sort_by(_KEYS[table])
            self._places[table] = places
            self._sorted[table] = sorted(places)
        return self._light[table]

    def _file(self, path: str) -> pq.ParquetFile:
        file = self._files.pop(path, None)
        if file is None:
            target = inside(self.folder, path)
            try:
                file = pq.ParquetFile(target, page_checksum_verification=True)
            except (OSError, pa.ArrowException) as error:
                raise _damaged(target, error) from error
        self._files[path] = file
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        return file

    def _read(self, path: str, group: int | None, columns: list[str]) -> pa.Table:
        file = self._file(path)
        try:
            return file.read(columns) if group is None else file.read_row_group(group, columns)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(self.folder / path, error) from error

    # -- ids -------------------------------------------------------------------------------------------------------

    def resolve(self, key: str, table: str = "directions") -> str:
        """The full id of a direction, image or region given by a prefix of at least 6 digits.

        Raises NotFoundError naming the nearest ids, or InputError for a prefix that is short or not unique.
        """
        self._table(table)
        known = self._sorted[table]
        if key in self._places[table]:
            return key
        what = _KEYS[table]
        if len(key) < SHORTEST_PREFIX:
            raise InputError(what, repr(key), f"at least {SHORTEST_PREFIX} digits of an id")
        start = bisect.bisect_left(known, key)
        matches = known[start : bisect.bisect_right(known, key + "g")]
        matches = [m for m in matches if m.startswith(key)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise InputError(what, f"{key}, the start of {len(matches)} ids", "a longer prefix", ", ".join(matches[:3]))
        near = ", ".join(known[max(0, start - 2) : start + 1]) or "none: the catalog is empty"
        raise NotFoundError(what, key[:80], f"an id of {self.folder}", f"Nearest: {near}")

    def _groups(self, table: str, ids: Sequence[str]) -> Iterator[tuple[str, int, list[tuple[int, int]]]]:
        """(shard, row group, [(position in `ids`, row within the group)]) for the rows of `ids`."""
        shards = self.manifest.shards(table)
        groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for position, key in enumerate(ids):
            number, row = self._places[table][self.resolve(key, table)]
            groups.setdefault((number, row // ROW_GROUP), []).append((position, row % ROW_GROUP))
        for (number, group), rows in sorted(groups.items()):
            yield shards[number], group, rows

    def _batch(self, table: str, column: str, ids: Sequence[str]) -> np.ndarray:
        """(n, D) rows of a fixed-size list column, float32, in the order of `ids`."""
        self._table(table)
        size = self._schema(table).field(column).type.list_size
        out = np.empty((len(ids), size), dtype=np.float32)
        for path, group, rows in self._groups(table, ids):
            part = self._read(path, group, [column]).take([row for _, row in rows])
            out[[position for position, _ in rows]] = vectors_of(part.column(0), f"{self.folder / path}: {column}")
        return out

    def _row(self, table: str, key: str, columns: list[str]) -> dict[str, Any]:
        self._table(table)
        path, group, rows = next(iter(self._groups(table, [key])))
        row: dict[str, Any] = self._read(path, group, columns).slice(rows[0][1], 1).to_pylist()[0]
        return row

    # -- vectors and pictures --------------------------------------------------------------------------------------

    def space_of(self, direction_id: str) -> str:
        """The space ("x" or "h") of a direction."""
        key = self.resolve(direction_id)
        if not self._spaces:
            table = self._table("directions")
            columns = (table.column(name).to_pylist() for name in ("direction_id", "space"))
            self._spaces = dict(zip(*columns, strict=True))
        return self._spaces[key]

    def vector(self, direction_id: str) -> np.ndarray:
        """float32 in the shape of the direction's space, unit norm within 1e-3. Reads one row group."""
        key = self.resolve(direction_id)
        space = self.space_of(key)
        shape = self.manifest.provenance.shapes[space]
        return np.reshape(self._batch("directions", vector_column(space), [key])[0], shape)

    def vectors(self, ids: Sequence[str], space: str) -> np.ndarray:
        """(n, D) float32 vectors of directions of one space, in the order of `ids`."""
        if space not in self.manifest.provenance.shapes:
            raise InputError("space", space, " | ".join(self.manifest.provenance.shapes))
        return self._batch("directions", vector_column(space), ids)

    def effect(self, direction_id: str) -> np.ndarray:
        """float32 (C, h, w), unit norm: the change the direction makes in the predicted image, small."""
        return np.reshape(self.effects([direction_id])[0], self.manifest.provenance.effect_shape)

    def effects(self, ids: Sequence[str]) -> np.ndarray:
        """(n, C * h * w) float32 effects in the order of `ids`."""
        return self._batch("directions", "effect_vector", ids)

    def preview(self, direction_id: str) -> np.ndarray:
        """uint8 (H, 3 W, 3): the posterior mean at -strength, 0 and +strength."""
        row = self._row("directions", direction_id, ["preview"])
        return decode_png(row["preview"]["bytes"], f"direction {direction_id}: preview")

    def direction(self, direction_id: str) -> DirectionRecord:
        """The whole record of a direction."""
        key = self.resolve(direction_id)
        names = [name for name in self._schema("directions").names if not name.endswith("_vector")]
        row = self._row("directions", key, names)
        return to_direction(row, self.vector(key), self.effect(key), f"direction {key}")

    def image(self, image_id: str) -> np.ndarray:
        """uint8 (H, W, 3), or (H, W) for a grey one."""
        row = self._row("images", image_id, ["image"])
        return decode_png(row["image"]["bytes"], f"image {image_id}")

    def latent(self, image_id: str) -> np.ndarray:
        """float32 (C, H, W): x_t of the image at its timestep."""
        self._table("images")
        return np.reshape(self._batch("images", "latent", [image_id])[0], self.manifest.provenance.shapes["x"])

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


def _filtered(table: pa.Table, equals: dict[str, Any]) -> pa.Table:
    for column, wanted in equals.items():
        if column not in table.column_names:
            raise InputError("filter", column, f"one of {', '.join(table.column_names)}")
        values = [wanted] if isinstance(wanted, str | int | bool | float) else list(wanted)
        value_set = pa.array(values, type=table.schema.field(column).type)
        table = table.filter(pc.is_in(table.column(column), value_set=value_set))
    return table


def _damaged(path: Path, error: Exception) -> CatalogError:
    return CatalogError(
        str(path), f"an unreadable file ({str(error)[:120]})", "a whole Parquet shard",
        "Run `rhumb verify` and pull or mine it again",
    )  # fmt: skip
