"""A small contact sheet straight from a catalog's one-step previews: no model is loaded, nothing is decoded."""

from __future__ import annotations

import numpy as np

from catalog.reader import Catalog
from flows.gates import leakage_ratio, numbers_of
from flows.report.page import DirectionRow, Page, RegionSection, Triple, number
from flows.report.sheet import contact_sheet

REGIONS = 6  # shown, in the order of their names
_PREVIEW_RMS = 0.15  # change inside the region of a preview, pixels in [-1, 1]; as records.DirectionRecord says
_BEST = (("x", ("local", "singular")), ("h", ("individual", "joint", "singular")))


def sheet_of(catalog: Catalog, title: str, headline: str, keep: np.ndarray | None = None) -> bytes | None:
    """A PNG with the most local direction of each region and space, of those kept; None where there is none to show.

    Previews are the predicted picture at -s, 0 and +s, with s the strength at which the linear change inside the region
    is 0.15 root-mean-square. Reads metadata, and the pictures of at most 2 * REGIONS directions.
    """
    if catalog.lacks("preview") or catalog.lacks("mask"):
        return None
    chosen = np.ones(len(catalog.ids()), dtype=bool) if keep is None else keep
    sections = []
    for region in sorted(set(catalog.column("region").unique().to_pylist()))[:REGIONS]:
        rows = [_row(catalog, key) for space, kinds in _BEST if (key := _best(catalog, region, space, kinds, chosen))]
        if rows:
            sections.append(RegionSection(region=region, rows=rows))
    return contact_sheet(Page(title=title, headline=headline, sections=sections)) if sections else None


def _best(catalog: Catalog, region: str, space: str, kinds: tuple[str, ...], chosen: np.ndarray) -> str | None:
    """The id of the first direction with the least leakage over gain; of the first kind that there is."""
    for kind in kinds:
        rows = np.flatnonzero(chosen & catalog.select(region=region, space=space, kind=kind))
        if len(rows):
            table = catalog.directions().take(rows)
            ratio = leakage_ratio(numbers_of(table.column("leakage")), numbers_of(table.column("gain")))
            order = np.lexsort((np.nan_to_num(ratio, nan=np.inf), numbers_of(table.column("rank"))))
            return catalog.ids()[rows[order[0]]].decode()
    return None


def _row(catalog: Catalog, key: str) -> DirectionRow:
    row = catalog.rows([key])[0]
    mask = catalog.mask(row["image_id"], row["region"])
    minus, original, plus = np.split(catalog.preview(key), 3, axis=1)
    entries = float(mask.sum()) * catalog.layout.effect_shape[0]
    strength = _PREVIEW_RMS * entries**0.5 / max(row["gain"], 1e-12)
    triple = Triple(row["image_id"], minus, original, plus, mask, strength, None, row["roir"])
    numbers = {"gain": number(row["gain"]), "leakage": number(row["leakage"])}
    same = {name: row[name] for name in ("direction_id", "region", "space", "kind", "rank")}
    return DirectionRow(title=f"{row['kind']} {row['rank'] + 1}", caption_numbers=numbers, triple=triple, **same)
