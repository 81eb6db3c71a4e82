"""A catalog in numbers: what each group of directions is, and at no cost that grows with Python objects."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalog.reader import Catalog
from catalog.writer import CatalogWriter
from flows.summary import direction_table, failures_of
from tests.catalog.samples import chunk_of, failed_chunk, provenance


def median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.median(known)) if known else None


def test_the_table_is_what_the_rows_of_each_group_say(tmp_path: Path) -> None:
    chunk = chunk_of("a", images=5)
    odd = [
        dataclasses.replace(d, gain=0.0 if n % 7 == 0 else d.gain * (1 + n / 9), roir=0.1 * n if n % 3 else np.nan)
        for n, d in enumerate(chunk.directions)
    ]
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        writer.commit(dataclasses.replace(chunk, directions=tuple(odd)))
    with Catalog.open(tmp_path / "c") as catalog:
        rows = catalog.directions().to_pylist()
        table = direction_table(catalog)
    keys = sorted({(row["region"], row["space"], row["kind"]) for row in rows})
    assert [(row["region"], row["space"], row["kind"]) for row in table] == keys
    for key, found in zip(keys, table, strict=True):
        own = [row for row in rows if (row["region"], row["space"], row["kind"]) == key]
        assert found["directions"] == len(own)
        assert found["gain"] == median([row["gain"] for row in own])
        assert found["leakage"] == median([row["leakage"] / row["gain"] if row["gain"] else None for row in own])
        assert found["roir"] == median([row["roir"] for row in own])


def test_a_hundred_thousand_directions_do_not_become_python_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        writer.commit(chunk_of("a", images=5))
    with Catalog.open(tmp_path / "c") as catalog:
        few, before = catalog.directions(), direction_table(catalog)
        many = pa.concat_tables([few] * (100_000 // few.num_rows)).combine_chunks()
        monkeypatch.setattr(catalog, "directions", lambda: many)
        tracemalloc.start()
        after = direction_table(catalog)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20 * 2**20

    def without_count(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: value for name, value in row.items() if name != "directions"} for row in table]

    assert without_count(after) == without_count(before)
    assert sum(row["directions"] for row in after) == many.num_rows


def test_what_failed_and_was_mined_since_is_no_failure(tmp_path: Path) -> None:
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        writer.commit(failed_chunk("broken", "broken.png"))
        with Catalog.open(tmp_path / "c") as catalog:
            failed = failures_of(catalog)
        assert failed
        source = next(iter(failed))
        mined = chunk_of("mended", 1)
        mined = dataclasses.replace(mined, images=(dataclasses.replace(mined.images[0], source=source),))
        writer.commit(mined)
    with Catalog.open(tmp_path / "c") as catalog:
        assert failures_of(catalog) == {key: reason for key, reason in failed.items() if key != source}
