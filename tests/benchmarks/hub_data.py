"""A catalog as large as wanted that a pack is made of: mined images and their directions, moved around.

A synthetic image is a mined one with all that belongs to it (picture, latent, masks; vectors, effects and previews of
its directions), moved on a torus by whole blocks of the codec: coefficients stay as they are and change places, so that
bytes a direction, evidence and spectra are those of mined directions, while no two values are alike. Pictures are
packed by the quickest way, which makes them some 4 % larger. Where the mined
catalog has fewer regions than asked for, the further ones are its regions once more, moved by a step of their own.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from catalog.chunks import digest_of_ids
from catalog.codecs import Codec, DctCodec
from catalog.manifest import ChunkEntry
from catalog.pictures import decode_png
from catalog.reader import Catalog
from catalog.records import content_id
from catalog.schema import KEYS, TABLES, table_schema, vector_column
from catalog.tables import SORTED, values_of
from catalog.writer import CatalogWriter, stage_table

_TOGETHER = 8  # chunks in one commit
_ZSTD = pa.Codec("zstd", compression_level=1)
_HUFFMAN_ONLY = 2  # of zlib: a third of the time
_Place = tuple[int, int]
_Rows = list[dict[str, Any]]


class MovedImages:
    """What can be made of a mined catalog. `regions`: how many, at least; `ranks`: directions of a kind, at most.

    Every space must be stored by cosines. Memory: the mined catalog's pictures, unpacked.
    """

    def __init__(self, mined: Catalog, regions: int, ranks: int | None = None) -> None:
        self.layout, self.provenance = mined.layout, mined.manifest.provenance
        whole = {table: mined.whole_shards(table, mined.manifest.shards(table)) for table in TABLES}
        if ranks is not None:
            whole["directions"] = whole["directions"].filter(pc.less(whole["directions"].column("rank"), ranks))
        self._codecs = {space: _cosines(codec) for space, codec in self.layout.stored.items()}
        self.steps = _blocks(self._codecs["x"])[0]  # places down, and across, that an image can be moved to
        names = sorted(set(whole["regions"].column("region").to_pylist()))
        self.regions = {names[k % len(names)] + (f" {k // len(names) + 1}" if k >= len(names) else ""):
                        (names[k % len(names)], k // len(names)) for k in range(max(regions, len(names)))}  # fmt: skip
        self.mined_regions = len(names)
        self.images = sorted(set(whole["images"].column("image_id").to_pylist()))
        self._rows: dict[str, dict[tuple[str, str], _Rows]] = {}  # by image, and region where there is one
        for table, rows in whole.items():
            self._rows[table] = defaultdict(list)
            for row in _with_kept_parents(_rows(rows)) if table == "directions" else _rows(rows):
                self._rows[table][row["image_id"], row.get("region", "")].append(row)

    @property
    def most(self) -> int:
        """How many images can be made."""
        return len(self.images) * self.steps**2

    @property
    def per_image(self) -> float:
        """Directions of an image, on average."""
        rows, names = self._rows["directions"], [name for name, _ in self.regions.values()]
        return sum(len(rows[image, name]) for image in self.images for name in names) / len(self.images)

    def chunk(self, numbers: Iterable[int]) -> dict[str, pa.Table]:
        """The rows of some images, by table. Cost: some milliseconds a direction."""
        made: dict[str, _Rows] = {table: [] for table in TABLES}
        for number in numbers:
            image, turn = self.images[number % len(self.images)], number // len(self.images)
            assert turn < self.steps**2, f"{self.most} images at most: mine more"
            made["images"] += [self._image(row, turn) for row in self._rows["images"][image, ""]]
            for region, (name, again) in self.regions.items():
                own = self._rows["regions"][image, name]
                made["regions"] += [self._region(row, turn, again, region) for row in own]
                own = self._rows["directions"][image, name]
                made["directions"] += [self._direction(row, turn, again, region) for row in own]
        return {table: self._table(table, rows) for table, rows in made.items()}

    def _image(self, row: Mapping[str, Any], turn: int) -> dict[str, Any]:
        place, shape = self._place(turn), self.layout.spaces["x"]
        latent = _moved(np.reshape(row["latent"], shape), place, self.steps, (1, 2)).ravel()
        picture = self._picture(row["image"], place)
        return {**row, "image_id": content_id(row["image_id"], turn), "source": f"{turn}-{row['source']}",
                "image": picture, "latent": latent}  # fmt: skip

    def _region(self, row: Mapping[str, Any], turn: int, again: int, region: str) -> dict[str, Any]:
        mask = self._picture(row["mask"], self._place(turn, again))
        return {**row, "region_id": content_id(row["region_id"], turn, again), "region": region, "mask": mask,
                "image_id": content_id(row["image_id"], turn)}  # fmt: skip

    def _direction(self, row: Mapping[str, Any], turn: int, again: int, region: str) -> dict[str, Any]:
        place, column = self._place(turn, again), vector_column(row["space"])
        effect = _moved(np.reshape(row["effect_vector"], self.layout.effect_shape), place, self.steps, (1, 2)).ravel()
        region_id = row["region_id"] and content_id(row["region_id"], turn, again)
        return {
            **row, "direction_id": content_id(row["direction_id"], turn, again), "region": region,
            "image_id": content_id(row["image_id"], turn), "region_id": region_id, "effect_vector": effect,
            "parents": [content_id(parent, turn, again) for parent in row["parents"]],
            "effect": self._picture(row["effect"], place), "preview": self._picture(row["preview"], place, wide=3),
            column: self._coded(row[column], row["space"], place),
        }  # fmt: skip

    def _place(self, turn: int, again: int = 0) -> _Place:
        """Steps down and across."""
        down, across = divmod((turn + again * (self.steps**2 // 2 + 1)) % self.steps**2, self.steps)
        return down, across

    def _picture(self, pixels: np.ndarray, place: _Place, wide: int = 1) -> dict[str, Any]:
        """A stored picture of `wide` pictures side by side, each moved."""
        height, width = pixels.shape[:2]
        apart = pixels.reshape(height, wide, width // wide, -1)
        return {"bytes": _png(_moved(apart, place, self.steps, (0, 2)).reshape(pixels.shape)), "path": None}

    def _coded(self, value: bytes, space: str, place: _Place) -> bytes:
        """A stored vector whose blocks are moved."""
        codec = self._codecs[space]
        planes = np.frombuffer(_ZSTD.decompress(value[1:], value[0] * codec.size), np.uint8)
        blocks = planes.reshape(value[0], *_blocks(codec), -1)
        frame: bytes = _ZSTD.compress(_moved(blocks, place, self.steps, (1, 2)).tobytes(), asbytes=True)
        return value[:1] + frame

    def _table(self, table: str, rows: _Rows) -> pa.Table:
        schema = table_schema(table, self.layout)
        columns = [_column([row[field.name] for row in rows], field) for field in schema]
        order = SORTED if table == "directions" else (KEYS[table],)
        made = pa.Table.from_arrays(columns, schema=schema)
        return made.take(pc.sort_indices(made.select(list(order)), sort_keys=[(name, "ascending") for name in order]))


def grow(folder: Path, moved: MovedImages, start: int, end: int, together: int, advance: Callable[..., None]) -> None:
    """Add the images number `start` to `end` to the catalog in `folder`, begun where it is not, `together` a chunk."""
    with CatalogWriter.create(folder, moved.provenance, moved.layout.codecs) as writer:
        firsts = list(range(start, end, together))
        for begun in range(0, len(firsts), _TOGETHER):
            chunks = dict(writer.manifest.chunks)
            with writer.transaction() as transaction:
                for first in firsts[begun : begun + _TOGETHER]:
                    tables = moved.chunk(range(first, min(first + together, end)))
                    shards = {name: (stage_table(transaction, name, tables[name], moved.layout),) for name in TABLES}
                    ids = {name: tables[name].column(KEYS[name]).to_pylist() for name in TABLES}
                    digest = digest_of_ids(ids["images"], [], ids["regions"], ids["directions"])
                    entry = {"digest": digest, "rows": {name: len(own) for name, own in ids.items()}, "shards": shards}
                    chunks[f"moved-{first}"] = ChunkEntry.model_validate(entry)
                    advance(len(ids["directions"]), "")
                writer.finish(transaction, writer.manifest, {"chunks": chunks})


def _cosines(codec: Codec) -> DctCodec:
    assert isinstance(codec, DctCodec), "a catalog whose vectors are stored by cosines"
    return codec


def _blocks(codec: DctCodec) -> tuple[int, int]:
    """Blocks down and across."""
    return codec.shape[1] // codec.spec.block, codec.shape[2] // codec.spec.block


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1, compress_type=_HUFFMAN_ONLY)
    return buffer.getvalue()


def _moved(values: np.ndarray, place: _Place, steps: int, axes: tuple[int, int]) -> np.ndarray:
    """`values`, their rows and columns along `axes` moved by so many `steps`-ths of all."""
    shifts = [step * values.shape[axis] // steps for step, axis in zip(place, axes, strict=True)]
    return np.roll(values, shifts, axes)


def _rows(table: pa.Table) -> _Rows:
    """The rows of a table, pictures unpacked, lists of floats as arrays."""
    found = {}
    for field in table.schema:
        column = table.column(field.name)
        if pa.types.is_struct(field.type):
            found[field.name] = [decode_png(value["bytes"], field.name) for value in column.to_pylist()]
        elif pa.types.is_fixed_size_list(field.type):
            found[field.name] = list(values_of(column, field.name))
        else:
            found[field.name] = column.to_pylist()
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def _with_kept_parents(rows: _Rows) -> _Rows:
    """Directions without those of their parents that are not kept: of each some are."""
    kept = {row["direction_id"] for row in rows}
    return [{**row, "parents": [parent for parent in row["parents"] if parent in kept]} for row in rows]


def _column(values: list[Any], field: pa.Field) -> pa.Array:
    if not pa.types.is_fixed_size_list(field.type):
        return pa.array(values, type=field.type)
    wide = np.stack(values).astype(field.type.value_type.to_pandas_dtype())
    return pa.FixedSizeListArray.from_arrays(pa.array(wide.ravel()), type=field.type)
