"""The concepts of a catalog part by part, as a pack has them, without all of them in memory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import pyarrow as pa

from catalog.concept_files import stored_rows
from catalog.concept_tables import rewritten, stored_form
from catalog.hub.parts import concepts_part
from catalog.reader import Catalog
from catalog.schema import Layout

TOGETHER = 2**25
"""Bytes of concepts that are held at once, about; one part at least."""
_SORTED = [(name, "ascending") for name in ("space", "kind", "concept_id")]
_TELLING = ["datasets", "region"]


def concepts_by_part(source: Catalog, layout: Layout) -> Iterator[tuple[str, pa.Table]]:
    """The parts of a catalog's concepts, by name, and the rows of each as they are written for `layout`, in order.

    Cost: reads the concepts twice, and once more for every `TOGETHER` bytes of them. Raises CatalogError: damage.
    """
    parts = Counter[str]()
    for _, rows in stored_rows(source, _TELLING):
        parts.update(_parts_of(rows))
    form = stored_form(source.manifest)
    for some in _batches(source, parts):
        held = defaultdict[str, list[pa.Table]](list)
        for _, rows in stored_rows(source):
            named = _parts_of(rows)
            for part in some & set(named):
                own = rows.take([number for number, name in enumerate(named) if name == part])
                held[part].append(rewritten(own, form, layout))
        for part in sorted(held):
            yield part, pa.concat_tables(held.pop(part)).sort_by(_SORTED)


def _parts_of(rows: pa.Table) -> list[str]:
    return [concepts_part(row["datasets"], row["region"]) for row in rows.select(_TELLING).to_pylist()]


def _batches(source: Catalog, parts: Counter[str]) -> Iterator[set[str]]:
    """Parts, which have so many rows, that take about `TOGETHER` bytes with each other."""
    entry = source.manifest.concepts
    stored = sum(source.manifest.files[path].bytes for path in entry.paths) if entry is not None else 0
    most, some, rows = TOGETHER * parts.total() / max(1, stored), set[str](), 0
    for part in sorted(parts):
        if some and rows + parts[part] > most:
            yield some
            some, rows = set(), 0
        some.add(part)
        rows += parts[part]
    if some:
        yield some
