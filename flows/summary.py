"""What a catalog holds, in numbers, and how its last run stands: `rhumb status`, and the tables of the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from catalog.fs import MANIFEST
from catalog.reader import Catalog
from flows.gates import explained, gates_of, leakage_ratio, numbers_of, rejections
from flows.left_out import of_pack
from flows.quality import KEYS, groups_of, spread
from flows.watching.cost import Cost, cost_words
from flows.watching.live import facts, pace, spelt
from flows.watching.snapshots import Snapshot, read
from pipeline.errors import CatalogError

SILENT = 60.0  # seconds after which a run on another machine may be dead
AGAIN = "run the same command again to continue"


def _strings(catalog: Catalog, rows: pa.Table) -> pa.Table:
    """Rows whose text is text. Raises CatalogError for any that is not."""
    try:
        for column in rows.columns:
            column.validate(full=True)
    except pa.ArrowInvalid as error:
        found = f"text in another encoding ({str(error)[:100]})"
        raise CatalogError(str(catalog.folder), found, "UTF-8", "Run `rhumb verify`") from error
    return rows


def direction_table(catalog: Catalog) -> list[dict[str, Any]]:
    """One row per (region, space, kind): count and medians of the evidence. No direction becomes a Python value."""
    rows = _strings(catalog, catalog.directions())
    gain = numbers_of(rows.column("gain"))
    figures = {
        "gain": gain,
        "leakage": leakage_ratio(numbers_of(rows.column("leakage")), gain),
        "roir": numbers_of(rows.column("roir")),
    }
    return [
        {**dict(zip(KEYS, key, strict=True)), "directions": len(own)}
        | {
            name: found.median if (found := spread(values[own])) is not None else None
            for name, values in figures.items()
        }
        for key, own in groups_of(rows)
    ]


def failures_of(catalog: Catalog) -> dict[str, str]:
    """Source to reason, for what was tried and not mined; not for files that were repaired and mined since."""
    failed = {entry.source: entry.reason for entry in catalog.manifest.failed_images.values()}
    sources = _strings(catalog, catalog.images().select(["source"])).column("source")
    again = sources.filter(pc.is_in(sources, pa.array(list(failed), pa.string())))
    mined = set(again.to_pylist())
    return {source: reason for source, reason in failed.items() if source not in mined}


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
            "pack": of_pack(manifest) or "not published",
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
        "pack": of_pack(manifest),
        "without": list(manifest.left_out),
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
