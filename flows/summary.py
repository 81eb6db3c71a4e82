"""What a catalog holds, in numbers, and how its last run stands: `rhumb status`, and the tables of the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalog.fs import MANIFEST
from catalog.reader import Catalog
from flows.gates import explained, gates_of, rejections
from flows.watching.cost import Cost, cost_words
from flows.watching.live import facts, pace, spelt
from flows.watching.snapshots import Snapshot, read
from pipeline.errors import CatalogError

SILENT = 60.0  # seconds after which a run on another machine may be dead
AGAIN = "run the same command again to continue"


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
        rejected = rejections(catalog, gates_of(provenance))
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
            "rejected": {"directions": len(rejected), "reasons": rejected.counts, "kept_as_parents": rejected.spared},
            "left_out": explained(rejected),
            "run": last_run(catalog.folder),
        }


def last_run(folder: Path) -> dict[str, Any] | None:
    """What the last run of a catalog says of itself, `says` in words; None where there was none."""
    run = read(folder)
    if run is None:
        return None
    cost = Cost.of(run)
    told = {"cost of a direction": words} if (words := cost_words(cost)) else {}
    says = {"run": f"{run.run_id}, {_state(run)}", **facts(run), **told}
    state = "interrupted" if run.alive is False and run.state == "running" else run.state
    return {**run.model_dump(), "state": state, "cost": cost.model_dump(), "says": says}


def _state(run: Snapshot) -> str:
    """How a run stands, in words."""
    of = f"{run.done:,}/{'?' if run.total is None else f'{run.total:,}'} images"
    if run.state != "running":
        return f"{of}, {pace(run)}" + ("" if run.state == "finished" else f"; {AGAIN}")
    if run.alive is False:
        return f"interrupted at {of}, {spelt(run.age)} ago: process {run.pid} is gone; {AGAIN}"
    where = f"process {run.pid} of {run.host}"
    if run.alive is None and run.age > SILENT:
        return f"{of}, nothing heard for {spelt(run.age)}: look after {where}; if it is gone, {AGAIN}"
    return f"running, {of}, {pace(run)} ({where}, {spelt(run.age)} ago)"


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
