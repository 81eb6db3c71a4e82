"""Images that travel with the package: `kind: builtin`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from flows.datasets.config import DatasetConfig, Resolve
from flows.datasets.contract import Item, Source
from flows.datasets.pictures import image_from_bytes
from flows.paths import builtin_folder
from pipeline.errors import NotFoundError

BUILTIN_LICENCE = "apache-2.0"
"""Of the images and of the models that travel with the package."""


class BuiltinDataset(DatasetConfig):
    """Images that travel with the package: `name` faces64 or paintings64, `split` mine or holdout."""

    kind: Literal["builtin"]
    name: Literal["faces64", "paintings64"] = "faces64"
    split: Literal["mine", "holdout"] = "mine"

    def open(self, resolve: Resolve) -> Source:
        return BuiltinSource(self.name, self.split)


class BuiltinSource(Source):
    """A built-in split with its exact masks and factors. Raises NotFoundError where its file is missing."""

    licence = BUILTIN_LICENCE

    def __init__(self, name: str, split: str, folder: Path | None = None) -> None:
        from pipeline.faces.factors import REGIONS  # with torch behind it: recipes are read without

        self.name, self.split, self.parts = name, split, REGIONS
        path = (folder or builtin_folder()) / name / f"{split}.parquet"
        if not path.is_file():
            raise NotFoundError("built-in data", f"no {path}", "the images that travel with the package")
        self._rows: dict[str, dict[str, Any]] = {
            f"{name}/{split}/{row['seed']:08x}": row for row in pq.read_table(path).to_pylist()
        }

    def keys(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, key: str, parts: Collection[str]) -> Item:
        row = self._rows[key]
        labels = np.asarray(image_from_bytes(row["mask"]["bytes"], f"mask of {key}"))
        masks: dict[str, Image.Image | np.ndarray] = {part: labels == self.parts.index(part) for part in parts}
        return Item(image_from_bytes(row["image"]["bytes"], key), masks, factors=row["factors"])
