"""What the data sets share whose items are rows of a table: which column holds what, and a row made into an item."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from flows.datasets.archives import MAX_MEMBER
from flows.datasets.config import DatasetConfig, quiet
from flows.datasets.contract import BrokenImageError, Item
from flows.datasets.pictures import image_from_bytes, label_values, mask_picture, shown_name
from pipeline.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Fetch = Callable[[str], bytes]
"""The content of a file that a row names. Raises BrokenImageError: it is not there, or not of the data set."""


class TableDataset(DatasetConfig):
    """What the kinds with columns have in common.

    `image_column`: found where there is exactly one column of pictures that is not named below. `mask_columns`: the
    column of each part's mask pictures; `label_column`: that of label maps, pictures whose values are labels, named by
    `labels`. A picture is its file's bytes, a struct of `bytes` and `path`, or the path of a file in the data set's
    folder. `key_column`: text or whole numbers, none twice, that items are called by; default: the row's number.
    """

    path: str = Field(min_length=1)
    image_column: str | None = quiet(None, min_length=1)
    mask_columns: dict[str, str] = quiet({})
    label_column: str | None = quiet(None, min_length=1)
    labels: dict[str, int] = quiet({})
    key_column: str | None = quiet(None, min_length=1)

    @model_validator(mode="after")
    def _labels_of_a_map(self) -> TableDataset:
        if self.labels and self.label_column is None:
            raise ValueError("label_column, the column of the label maps that labels are names of")
        return self


@dataclass(frozen=True)
class Columns:
    """The columns that are read. `masks` by part."""

    image: str
    masks: Mapping[str, str]
    label: str | None = None
    key: str | None = None

    @property
    def pictures(self) -> list[str]:
        """Columns of pictures, each once."""
        return list(dict.fromkeys([self.image, *self.masks.values(), *([self.label] if self.label else [])]))


def choose_columns(config: TableDataset, schema: pa.Schema, where: str) -> Columns:
    """The columns of a table that `config` means; `where` is what errors call the table.

    Raises:
        InputError: no such column, one of another type, or no single column of pictures where none is named.
    """
    masks, label = config.mask_columns, config.label_column
    for part, column in masks.items():
        _check(f"dataset.mask_columns.{part}", column, schema, where)
    if label is not None:
        _check("dataset.label_column", label, schema, where)
    if config.key_column is not None:
        _check("dataset.key_column", config.key_column, schema, where, pictures=False)
    if config.image_column is not None:
        _check("dataset.image_column", config.image_column, schema, where)
        return Columns(config.image_column, masks, label, config.key_column)
    left = [name for name in picture_columns(schema) if name not in (*masks.values(), label)]
    if len(left) != 1:
        found = f"{len(left) or 'no'} columns of pictures in {where}, {_listed(left or schema.names)}"
        raise InputError("dataset.image_column", found, "the name of the pictures' column")
    return Columns(left[0], masks, label, config.key_column)


def picture_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold pictures: those that the data set's own features call so; where none is, those of bytes, or
    of structs with bytes, that they call nothing else. Paths are never taken for pictures unasked."""
    features = hub_info(schema).get("features")
    features = features if isinstance(features, dict) else {}
    types = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    if told := [name for name in schema.names if types.get(name) == "Image"]:
        return told
    fields = [field for field in schema if types.get(field.name) in (None, "Value")]
    return [field.name for field in fields if _holds_pictures(field.type) and not _is_text(field.type)]


def hub_info(schema: pa.Schema) -> dict[str, Any]:
    """What the Hub's library wrote of the data set into a schema; empty where it did not."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        return {}
    inner = info.get("info") if isinstance(info, dict) else None
    return inner if isinstance(inner, dict) else {}


def written_licence(schema: pa.Schema) -> str | None:
    """The licence that a schema's metadata names, under its own key or in what the Hub's library wrote."""
    metadata = schema.metadata or {}
    texts = [metadata.get(name, b"").decode("utf-8", "replace") for name in (b"licence", b"license")]
    told = hub_info(schema).get("license")
    return next((text for text in (*texts, told) if isinstance(text, str) and text.strip()), None)


def row_keys(values: Iterable[Any], config: TableDataset) -> dict[str, int]:
    """Row numbers by key, from the values of the key column.

    Raises:
        InputError: a row without a key, or a key twice.
    """
    found: dict[str, int] = {}
    for row, value in enumerate(values):
        key = None if value is None else shown_name(str(value))
        if not key or key in found:
            raise InputError(
                "dataset.key_column",
                f"{key!r} in rows {found[key]} and {row} of {config.key_column}"
                if key
                else f"none in row {row} of {config.key_column}",
                "a key in every row, none twice",
                "Leave out `key_column`: rows are then called by their numbers.",
            )
        found[key] = row
    return found


def row_item(row: Mapping[str, Any], columns: Columns, parts: Collection[str], fetch: Fetch) -> Item:
    """A row's values by column as an item, with its masks of `parts`.

    Raises:
        BrokenImageError: the picture or the label map cannot be read.
    """
    picture = _picture(row.get(columns.image), columns.image, fetch)
    masks: dict[str, Image.Image | np.ndarray] = {}
    missing, broken = {}, set()
    for part in parts:
        column = columns.masks.get(part)
        if column is None or row.get(column) is None:
            missing[part] = f"no mask of {part}"
            continue
        try:
            masks[part] = mask_picture(_picture(row[column], column, fetch))
        except BrokenImageError as error:
            missing[part] = f"mask of {part}: {error}"
            broken.add(part)
    return Item(picture, masks, _label_map(row, columns, fetch), missing, frozenset(broken))


def files_in(folder: Path) -> Fetch:
    """Reads files that lie in `folder`, also once links are followed; relative paths start there."""
    root = folder.resolve()

    def fetch(path: str) -> bytes:
        try:
            file = (root / path).resolve()
            if not file.is_relative_to(root):
                raise BrokenImageError(f"{shown_name(path)} leads out of the data set's folder")
            if not file.is_file():
                raise BrokenImageError(f"{shown_name(path)} is not there")
            with file.open("rb") as stream:
                return stream.read(MAX_MEMBER + 1)
        except (OSError, ValueError, RuntimeError) as error:
            raise BrokenImageError(f"{shown_name(path)} cannot be read ({type(error).__name__})") from error

    return fetch


def _picture(value: Any, column: str, fetch: Fetch) -> Image.Image:
    data, name = value, column
    if isinstance(value, Mapping):
        data = value.get("path") if value.get("bytes") is None else value["bytes"]
        name = shown_name(str(value.get("path") or column))
    if data is None:
        raise BrokenImageError(f"nothing in the column {column}")
    if isinstance(data, str):
        name, data = shown_name(data), fetch(data)
    if not isinstance(data, bytes):
        raise BrokenImageError(f"{type(data).__name__} in the column {column}, which is no picture")
    if len(data) > MAX_MEMBER:
        raise BrokenImageError(f"more than {MAX_MEMBER:,} bytes")
    return image_from_bytes(data, name)


def _label_map(row: Mapping[str, Any], columns: Columns, fetch: Fetch) -> np.ndarray | None:
    if columns.label is None or row.get(columns.label) is None:
        return None
    try:
        return label_values(_picture(row[columns.label], columns.label, fetch))
    except BrokenImageError as error:
        raise BrokenImageError(f"label map: {error}") from error


def _check(field: str, column: str, schema: pa.Schema, where: str, pictures: bool = True) -> None:
    """Raise InputError unless the schema has the column, once, and it can hold pictures (or else keys)."""
    names = schema.names
    if column not in names:
        near = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
        action = f"Did you mean {near[0]!r}?" if near else ""
        raise InputError(field, column, f"one of the columns of {where}: {_listed(names)}", action)
    if names.count(column) > 1:
        raise InputError(field, f"{column}, {names.count(column)} times in {where}", "columns with names of their own")
    kind = schema.field(column).type
    if pictures and not _holds_pictures(kind):
        expected = "bytes, a struct of bytes and path, or paths"
        raise InputError(field, f"{column} in {where}, of the type {str(kind)[:80]}", expected)
    if not pictures and not (_is_text(kind) or _is_whole_number(kind)):
        raise InputError(field, f"{column} in {where}, of the type {str(kind)[:80]}", "text or whole numbers")


def _holds_pictures(kind: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        inner = {field.name: field.type for field in _fields(kind)}
        return set(inner) <= {"bytes", "path"} and "bytes" in inner and _is_bytes(inner["bytes"])
    return _is_bytes(kind) or _is_text(kind)


def _fields(kind: pa.DataType) -> Iterator[pa.Field]:
    return (kind.field(place) for place in range(kind.num_fields))


def _is_bytes(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_whole_number(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind))


def _listed(names: Iterable[str]) -> str:
    every = [shown_name(name) for name in names]
    more = f" and {len(every) - 20:,} more" if len(every) > 20 else ""
    return ", ".join(every[:20]) + more if every else "none"
