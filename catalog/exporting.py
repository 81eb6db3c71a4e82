"""Directions as one file of plain arrays, for programs that know nothing of catalogs."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors.numpy import save as safetensors

from catalog.reader import Catalog
from pipeline.errors import InputError

FORMATS = ("npz", "safetensors")


def export(catalog: Catalog, ids: Sequence[str], form: str) -> bytes:
    """Chosen directions as the bytes of an .npz or .safetensors file, each once however often and briefly it is named.

    Of each space: `x` (n, C, H, W) float32 and `x_effect` (n, c, h, w) float32, likewise `h`. What describes them is
    JSON: the array `about` (bytes, uint8) of an .npz, the metadata entry `about` of a .safetensors file. It holds per
    space the `directions`, one row of evidence for each in the order of the arrays, and the model, recipe and data they
    come from. Nothing in either file is a pickle. Memory: all chosen vectors.

    Raises InputError (another format, no direction), NotFoundError (an id that is not there).
    """
    if form not in FORMATS:
        raise InputError("format", form, " | ".join(FORMATS))
    if not ids:
        raise InputError("directions", "none", "at least one to export", "Choose others by id, region, space or kind")
    keys = list(dict.fromkeys(catalog.resolve(key) for key in ids))
    rows = catalog.rows(keys)
    arrays: dict[str, np.ndarray] = {}
    described: dict[str, list[dict[str, Any]]] = {}
    for space, shape in catalog.layout.spaces.items():
        own = [row for row in rows if row["space"] == space]
        if own:
            chosen = [row["direction_id"] for row in own]
            arrays[space] = catalog.vectors(chosen, space).reshape(-1, *shape)
            arrays[f"{space}_effect"] = catalog.effects(chosen).reshape(-1, *catalog.layout.effect_shape)
            described[space] = own
    provenance = catalog.manifest.provenance.model_dump(mode="json")
    about = json.dumps({"directions": described, "provenance": provenance}, sort_keys=True, allow_nan=False)
    if form == "safetensors":
        return bytes(safetensors(arrays, metadata={"about": about}))
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, about=np.frombuffer(about.encode(), np.uint8), **arrays)
    return out.getvalue()
