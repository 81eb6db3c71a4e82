"""Writes the built-in data sets as Hugging Face-style Parquet, with their data set card."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from flows.datasets.contract import image_id
from pipeline.faces.dataset import FIRST_SEED, SPLITS, Face, builtin_faces
from pipeline.faces.factors import FACTORS, OWNER, REGIONS, SCENE

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_FEATURES = {
    "image_id": {"dtype": "string", "_type": "Value"},
    "image": {"_type": "Image"},
    "mask": {"_type": "Image"},
    "factors": {name: {"dtype": "float32", "_type": "Value"} for name in FACTORS},
    "seed": {"dtype": "int64", "_type": "Value"},
}
_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", _IMAGE),
        ("mask", _IMAGE),
        ("factors", pa.struct([(name, pa.float32()) for name in FACTORS])),
        ("seed", pa.int64()),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


def write_builtin_data(folder: Path) -> dict[str, int]:
    """Render every split into `folder`/DATASET/SPLIT.parquet and write the card `folder`/README.md.

    The same versions of Python's libraries write the same bytes; other versions the same content.

    Returns:
        The size in bytes of each file written, by its path below `folder`.
    """
    sizes = {}
    for dataset, splits in SPLITS.items():
        for split in splits:
            name = f"{dataset}/{split}.parquet"
            (folder / dataset).mkdir(parents=True, exist_ok=True)
            _write_parquet(folder / name, dataset, builtin_faces(dataset, split))
            sizes[name] = (folder / name).stat().st_size
    _replace(folder / "README.md", card().encode())
    sizes["README.md"] = (folder / "README.md").stat().st_size
    return sizes


def _write_parquet(path: Path, dataset: str, faces: Iterable[Face]) -> None:
    rows = []
    for face in faces:
        identity = image_id(dataset, face.image)
        rows.append(
            {
                "image_id": identity,
                "image": {"bytes": _png(face.image), "path": f"{identity}.png"},
                "mask": {"bytes": _png(face.regions), "path": f"{identity}-regions.png"},
                "factors": face.factors,
                "seed": face.seed,
            }
        )
    buffer = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(rows, schema=_SCHEMA), buffer, compression="zstd", row_group_size=64, write_page_index=True
    )
    _replace(path, buffer.getvalue())


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def card() -> str:
    """The data set card: YAML configurations for `datasets.load_dataset`, and who owns which factor."""
    configurations = "\n".join(
        f"- config_name: {dataset}\n  data_files:\n"
        + "\n".join(f"  - split: {split}\n    path: {dataset}/{split}.parquet" for split in splits)
        + ("\n  default: true" if dataset == "faces64" else "")
        for dataset, splits in SPLITS.items()
    )
    owners = "\n".join(
        f"| {region} | {index} | {', '.join(name for name, owner in OWNER.items() if owner == region)} |"
        for index, region in enumerate(REGIONS)
    )
    scene = ", ".join(name for name, owner in OWNER.items() if owner == SCENE)
    counts = "; ".join(
        f"{dataset}: " + " + ".join(f"{count} {split}" for split, count in splits.items())
        for dataset, splits in SPLITS.items()
    )
    return _CARD.format(
        configurations=configurations, owners=owners, scene=scene, counts=counts, first=hex(FIRST_SEED).upper()[2:]
    )


_CARD = """---
license: apache-2.0
pretty_name: Rhumb's parametric faces
size_categories:
- n<1K
configs:
{configurations}
---
# Parametric faces, in two styles

64 x 64 colour faces drawn by `pipeline/faces/render.py` from 22 continuous factors, each uniform in [0, 1] and
independent of the others. `paintings64` is the same anatomy in a painter's palette, with strokes and canvas grain.
Images: {counts}.

```python
datasets.load_dataset("data/builtin", "faces64", split="mine")
```

| column | |
|---|---|
| `image_id` | content hash of data set name and pixels |
| `image` | 64 x 64 RGB PNG |
| `mask` | 64 x 64 grey PNG; a pixel's value is the index of its region, so the regions partition the image |
| `factors` | the true factors, float32 |
| `seed` | seed of this image's factors (`pipeline.faces.dataset.draw_face`) |

Which region owns which factor; left and right are the person's own, so `left_eye` lies on the image's right:

| region | index | factors that it alone shows |
|---|---|---|
{owners}
| (whole scene) | | {scene} |

Seeds start at 0x{first}; training draws below that, so neither split was ever trained on. Mine on `mine`, choose
settings on `mine`, and report on `holdout`. To write these files again: `rhumb train data`, or
`flows.builtin_data.write_builtin_data(folder)`.
"""
