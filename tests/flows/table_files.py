"""What the tests of data sets with rows and samples write: the same pictures and masks in every form."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.flows import tiny
from tests.flows.dataset_files import in_tar

SIZE = (24, 20)
PARTS = ("eye", "mouth")


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def picture(seed: int) -> bytes:
    return png(tiny.photograph(seed, SIZE))


def mask(part: str) -> bytes:
    return png(tiny.box(SIZE, tiny.BOXES[part]))


def labels() -> bytes:
    """A label map: 1 in the left half, 2 in the right."""
    values = np.ones((SIZE[1], SIZE[0]), dtype=np.uint8)
    values[:, SIZE[0] // 2 :] = 2
    return png(Image.fromarray(values))


def rows(count: int = 3, **changes: Any) -> list[dict[str, Any]]:
    """Rows of `image`, `eye`, `mouth` and `map` as structs, and `id`; `changes` replace a column's value in all."""
    every = []
    for seed in range(count):
        pictures = {"image": picture(seed), **{part: mask(part) for part in PARTS}, "map": labels()}
        row: dict[str, Any] = {name: {"bytes": data, "path": f"{seed}.png"} for name, data in pictures.items()}
        every.append({**row, "id": f"face-{seed}", **changes})
    return every


def parquet(path: Path, content: Sequence[dict[str, Any]] | pa.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content if isinstance(content, pa.Table) else pa.Table.from_pylist(list(content)), path, **options)
    return path


def hub_features(**types: str) -> dict[bytes, bytes]:
    """Schema metadata as the Hub's library writes it: `types` of features by column."""
    features = {name: {"_type": kind} for name, kind in types.items()}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def shard(path: Path, seeds: Sequence[int], **members: bytes) -> Path:
    """A tar of samples, each a picture, two masks, factors and a class; `members` by ending replace or add some."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {}
    for seed in seeds:
        sample = {"png": picture(seed), **{f"{part}.png": mask(part) for part in PARTS}, **members}
        sample |= {"json": json.dumps({"yaw": seed / 2, "smiling": True, "who": "nobody"}).encode()}
        files |= {f"{seed:04d}.{ending}": data for ending, data in sample.items()}
    return in_tar(path, files, "")
