"""What a catalog holds, in numbers: `rhumb status`, and the tables of the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalog.fs import MANIFEST
from catalog.reader import Catalog
from pipeline.errors import CatalogError


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.median(known)) if known else None


def _plain(catalog: Catalog, rows: pa.Table) -> list[dict[str, Any]]:
    """Rows as Python values. Raises CatalogError for text that is none."""
    try:
        return list(rows.to_pylist())
    except UnicodeDecodeError as error:
        found = f"text in another encoding ({str(error)[:100]})"
        raise CatalogError(str(catalog.folder), found, "UTF-8", "Run `rhumb verify`") from error


def direction_table(catalog: Catalog) -> list[dict[str, Any]]:
    """One row per (region, space, kind): count and medians of the evidence."""
    rows = _plain(catalog, catalog.directions())
    table = []
    for region, space, kind in sorted({(row["region"], row["space"], row["kind"]) for row in rows}):
        own = [row for row in rows if (row["region"], row["space"], row["kind"]) == (region, space, kind)]
        table.append(
            {
                "region": region,
                "space": space,
                "kind": kind,
                "directions": len(own),
                "gain": _median([row["gain"] for row in own]),
                "leakage": _median([row["leakage"] / row["gain"] if row["gain"] else None for row in own]),
                "roir": _median([row["roir"] for row in own]),
            }
        )
    return table


def failures_of(catalog: Catalog) -> dict[str, str]:
    """Source to reason, for what was tried and not mined; not for files that were repaired and mined since."""
    mined = {row["source"] for row in _plain(catalog, catalog.images().select(["source"]))}
    failed = catalog.manifest.failed_images.values()
    return {entry.source: entry.reason for entry in failed if entry.source not in mined}


def summarise(folder: Path) -> dict[str, Any]:
    """Counts, provenance, failures and the direction table of a catalog, JSON-serialisable."""
    with Catalog.open(folder) as catalog:
        manifest = catalog.manifest
        failures = failures_of(catalog)
        provenance = manifest.provenance
        reference = provenance.model.get("reference", "no reference")
        return {
            "name": provenance.recipe.get("name", "no name"),
            "model": f"{reference} ({provenance.model['fingerprint'][:12]})",
            "version": manifest.version,
            "images": manifest.rows("images"),
            "directions": manifest.rows("directions"),
            "failed": len(failures),
            "indexes": ", ".join(sorted(manifest.indexes)) or "none (run `rhumb index`)",
            "pack": f"{manifest.pack.repository} {manifest.pack.version}" if manifest.pack else "not published",
            "table": direction_table(catalog),
            "failures": failures,
        }


def describe(catalog: Catalog) -> dict[str, Any]:
    """A catalog as a whole: format, provenance, tables, and how vectors and indexes are stored; JSON-serialisable.

    `bytes_each` is what one vector takes as stored, compressed, averaged over all of its space.
    """
    manifest = catalog.manifest
    provenance = manifest.provenance
    sizes = {
        table: sum(manifest.files[path].bytes for path in manifest.shards(table))
        for table in ("directions", "images", "regions")
    }
    return {
        "name": provenance.recipe.get("name"),
        "format": _format_of(catalog.folder),
        "version": manifest.version,
        "model": provenance.model["fingerprint"],
        "data": provenance.data.get("name"),
        "licence": provenance.data.get("licence"),
        "pack": f"{manifest.pack.repository} {manifest.pack.version}" if manifest.pack else None,
        "tables": [
            {"table": table, "rows": manifest.rows(table), "shards": len(manifest.shards(table)), "bytes": size}
            for table, size in sizes.items()
        ],
        "vectors": [_stored(catalog, space) for space in catalog.layout.spaces],
        "indexes": [
            {
                "index": name,
                "kind": entry.spec.kind,
                "dimension": entry.spec.sketch.dimension,
                "rows": entry.rows,
                "current": entry.covers(manifest.shards("directions")),
            }
            for name, entry in sorted(manifest.indexes.items())
        ],
    }


def _format_of(folder: Path) -> str:
    """The format version of a catalog as it lies there; one that is read has been raised to the present one."""
    return str(json.loads((folder / MANIFEST).read_bytes()).get("format_version"))


def _stored(catalog: Catalog, space: str) -> dict[str, Any]:
    """How the vectors of one space are stored, and what one takes."""
    entries = math.prod(catalog.layout.spaces[space])
    rows = int(catalog.select(space=space).sum())
    names = {field.name for field in catalog.layout.vector_fields(space)}
    each = catalog.column_bytes(names) / rows if rows else math.nan
    return {
        "space": space,
        "shape": list(catalog.layout.spaces[space]),
        "codec": catalog.layout.codecs[space].kind,
        "rows": rows,
        "bytes_each": each if rows else None,
        "smaller": 4 * entries / each if rows else None,
    }
