"""From a catalog to the report: choose telling directions, decode their edits, and write the page and the sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from catalog.lookup import homogeneity
from catalog.reader import Catalog
from flows.console import Advance, silent
from flows.edit_settings import recipe_of
from flows.editing import model_of, picture_shape, placed
from flows.files import write_whole
from flows.left_out import remark
from flows.paths import builtin_folder
from flows.pictures import as_picture
from flows.report.choice import Candidate, candidates, read_factors, varied
from flows.report.html import render_html
from flows.report.page import (
    ComposedEdit,
    DirectionRow,
    InterpolationGrid,
    Page,
    RegionSection,
    Triple,
    number,
    plain_name,
)
from flows.report.sheet import contact_sheet
from flows.report.words import GLOSSARY, facts, headline, provenance_rows, quality, settings_tried
from flows.summary import direction_table
from pipeline.editing import DecodeSettings, Edit, apply_edits, compose, decode, interpolation_grid
from pipeline.errors import CatalogError
from pipeline.faces.factors import FACTORS
from pipeline.metrics import roir
from pipeline.models.contract import Denoiser
from pipeline.reader import AttributeReader

ROWS = {("x", "local"): 3, ("h", "individual"): 2}
TRANSFERS = 4
GRID = 5
TELLING = 0.08  # share of a factor's range below which a move is not worth a word
BATCH = 16


@dataclass
class _Studio:
    """Catalog, model and reader together: decodes edits at catalogued images."""

    catalog: Catalog
    denoiser: Denoiser
    t: int
    settings: DecodeSettings
    reader: AttributeReader | None

    def latent(self, image_id: str) -> torch.Tensor:
        return torch.from_numpy(self.catalog.latent(image_id)).to(self.denoiser.device, self.denoiser.dtype)

    def edit(self, row: Mapping[str, Any], image_id: str) -> Edit:
        """A direction at its home strength, shifted to where the image has its region; as mined if that has no mask."""
        known = self.catalog.regions(image_id=image_id, region=row["region"]).num_rows > 0
        target = self.catalog.mask(image_id, row["region"]) if known else None
        return Edit(row["space"], placed(self.catalog, row, target)[0], float(row["strength"]))

    def decode_all(self, jobs: Sequence[tuple[torch.Tensor, Edit | None]]) -> list[torch.Tensor]:
        """Decode (latent, edit) pairs in batches."""
        images: list[torch.Tensor] = []
        for start in range(0, len(jobs), BATCH):
            part = [compose(self.denoiser, x, [edit] if edit else []) for x, edit in jobs[start : start + BATCH]]
            shape = self.denoiser.info.bottleneck_shape
            shifts = None
            if shape is not None and any(shift is not None for _, shift in part):
                none = torch.zeros(shape, device=self.denoiser.device, dtype=self.denoiser.dtype)
                shifts = torch.stack([none if shift is None else shift for _, shift in part])
            images += decode(self.denoiser, torch.stack([x for x, _ in part]), self.t, self.settings, shifts)
        return images

    def triples(self, row: Mapping[str, Any], image_ids: Sequence[str]) -> list[Triple]:
        """One direction, shifted to each of several images: -strength, 0 and +strength of its home strength."""
        jobs: list[tuple[torch.Tensor, Edit | None]] = []
        for image_id in image_ids:
            x, edit = self.latent(image_id), self.edit(row, image_id)
            jobs += [(x, replace(edit, strength=-edit.strength)), (x, None), (x, edit)]
        images = self.decode_all(jobs)
        return [self._triple(row, image_id, images[3 * i : 3 * i + 3]) for i, image_id in enumerate(image_ids)]

    def _triple(self, row: Mapping[str, Any], image_id: str, images: Sequence[torch.Tensor]) -> Triple:
        mask = self.catalog.mask(image_id, row["region"])
        where = torch.from_numpy(mask).to(images[0].device)
        minus, original, plus = (as_picture(image) for image in images)
        local = [float(roir(images[1][None], side[None], where)[0]) for side in (images[0], images[2])]
        changes: list[str] = []
        if self.reader is not None:
            readings = read_factors(self.reader, [minus, original, plus])
            for sign, side in (("-", 0), ("+", 2)):
                moves = readings[side] - readings[1]
                for i in np.argsort(-np.abs(moves))[:2]:
                    if abs(moves[i]) >= TELLING:
                        changes.append(f"{sign}: {FACTORS[i]} {moves[i]:+.2f}")
        return Triple(
            image_id, minus, original, plus, mask, float(row["strength"]), local[0], local[1], changes=changes
        )


def _others(catalog: Catalog, row: Mapping[str, Any], count: int) -> list[str]:
    """Other images with a mask of the region, those whose mask overlaps the home mask most first."""
    home = catalog.mask(row["image_id"], row["region"])
    overlap = []
    for image_id in catalog.regions(region=row["region"]).column("image_id").to_pylist():
        if image_id != row["image_id"]:
            mask = catalog.mask(image_id, row["region"])
            overlap.append((-float((home & mask).sum() / max(1, (home | mask).sum())), image_id))
    return [image_id for _, image_id in sorted(overlap)[:count]]


def _numbers(row: Mapping[str, Any]) -> dict[str, str]:
    shown = {"strength": number(row["strength"]), "gain": number(row["gain"]), "leakage": number(row["leakage"])}
    for key, name in (("kept_share", "kept share"), ("sigma", "singular value"), ("residual", "residual")):
        if row[key] is not None:
            shown[name] = number(row[key])
    return shown


def _row(studio: _Studio, candidate: Candidate, transfers: int) -> DirectionRow:
    row = candidate.row
    images = [row["image_id"], *_others(studio.catalog, row, transfers)]
    home, *rest = studio.triples(row, images)
    what = plain_name(candidate.factor) if candidate.factor else f"direction {row['rank'] + 1}"
    return DirectionRow(
        title=what,
        direction_id=row["direction_id"],
        region=row["region"],
        space=row["space"],
        kind=row["kind"],
        rank=row["rank"],
        caption_numbers=_numbers(row),
        triple=home,
        transfers=rest,
    )


def _spectrum(catalog: Catalog, region: str) -> dict[str, list[float]]:
    """Median singular values over the images, per space."""
    spectra = {}
    for space in ("x", "h"):
        rows = catalog.directions(region=region, space=space, kind="singular", rank=0).column("spectrum").to_pylist()
        if rows:
            length = min(len(row) for row in rows)
            spectra[f"{space}: {region}"] = np.median([row[:length] for row in rows], axis=0).tolist()
    return spectra


def _locality(table: Sequence[Mapping[str, Any]], region: str) -> list[tuple[str, float, float]]:
    roirs = {(row["space"], row["kind"]): row["roir"] for row in table if row["region"] == region}
    pairs = (("x-space", ("x", "singular"), ("x", "local")), ("h-space", ("h", "singular"), ("h", "individual")))
    return [
        (label, float(roirs[plain]), float(roirs[ours]))
        for label, plain, ours in pairs
        if roirs.get(plain) is not None and roirs.get(ours) is not None
    ]


def _homogeneity(catalog: Catalog, region: str) -> str:
    sentences = []
    for space, kind in (("x", "local"), ("h", "individual")):
        if catalog.directions(region=region, space=space, kind=kind, rank=0).num_rows < 2:
            continue
        spread = homogeneity(catalog, region, space, kind, rank=0, by="effect").of_rank[0]
        sentences.append(
            f"{space}-space: effects of first directions on {spread.n} images agree with a median |cos| of "
            f"{spread.q50:.2f} (random vectors {spread.random[1]:.2f})"
        )
    return "; ".join(sentences)


def _section(
    studio: _Studio, table: Sequence[Mapping[str, Any]], region: str
) -> tuple[RegionSection, Candidate | None]:
    rows, first = [], None
    for (space, kind), count in ROWS.items():
        chosen = varied(candidates(studio.catalog, region, space, kind, studio.reader), count)
        first = first or (chosen[0] if chosen else None)
        rows += [_row(studio, candidate, TRANSFERS if i == 0 else 0) for i, candidate in enumerate(chosen)]
    highlight = first.row["direction_id"] if first else ""
    return replace(_figures(studio.catalog, table, region), rows=rows, highlight=highlight), first


def _figures(catalog: Catalog, table: Sequence[Mapping[str, Any]], region: str) -> RegionSection:
    """What there is to say of a region without pictures."""
    spectrum, locality = _spectrum(catalog, region), _locality(table, region)
    return RegionSection(region=region, spectrum=spectrum, locality=locality, homogeneity=_homogeneity(catalog, region))


def _composed(studio: _Studio, firsts: Sequence[Candidate]) -> list[InterpolationGrid | ComposedEdit]:
    """Several directions on one image, and a grid of two: what composing and interpolating look like."""
    if len(firsts) < 2:
        return []
    home = firsts[-1].row["image_id"]
    x, chosen = studio.latent(home), [candidate.row for candidate in firsts[:3]]
    steps = [("original", as_picture(studio.decode_all([(x, None)])[0]))]
    for count in range(1, len(chosen) + 1):
        edits = [studio.edit(row, home) for row in chosen[:count]]
        image = apply_edits(studio.denoiser, x, studio.t, edits, studio.settings)
        steps.append((" + ".join(plain_name(row["region"]) for row in chosen[:count]), as_picture(image)))
    axes = (studio.edit(chosen[0], home), studio.edit(chosen[-1], home))
    grid = interpolation_grid(studio.denoiser, x, studio.t, axes, GRID, studio.settings)
    values = [f"{weight:+.1f}" for weight in np.linspace(-1, 1, GRID)]
    return [
        ComposedEdit("Directions add up", steps, "Each picture adds one more direction, shifted to its region here."),
        InterpolationGrid(
            "Two directions, five strengths each",
            plain_name(chosen[-1]["region"]),
            plain_name(chosen[0]["region"]),
            [[as_picture(image) for image in row] for row in grid],
            values,
            values,
        ),
    ]


def _pictured(
    catalog: Catalog, table: Sequence[Mapping[str, Any]], model: str | None
) -> tuple[list[RegionSection], list[InterpolationGrid | ComposedEdit]]:
    """The regions with their edits, and edits composed; the regions' figures alone where edits cannot be made."""
    present = {row["region"] for row in table}
    regions = [region for region in recipe_of(catalog).region_names if region in present]
    absent = " ".join(remarks_of(catalog))
    if absent:
        return [replace(_figures(catalog, table, region), absent=absent) for region in regions], []
    denoiser, settings = model_of(catalog, model)
    studio = _Studio(catalog, denoiser, settings.timestep, settings.decode, _reader_for(catalog))
    found = [_section(studio, table, region) for region in regions]
    return [section for section, _ in found], _composed(studio, [first for _, first in found if first is not None])


def _reader_for(catalog: Catalog) -> AttributeReader | None:
    """The attribute reader, where it knows the data."""
    builtin = catalog.manifest.provenance.recipe["dataset"]["kind"] == "builtin"
    folder = builtin_folder() / "reader"
    shown = not catalog.lacks("image") and not catalog.lacks("preview")
    known = builtin and folder.is_dir() and shown and picture_shape(catalog) == (3, 64, 64)
    return AttributeReader.load(folder) if known else None


def remarks_of(catalog: Catalog) -> tuple[str, ...]:
    """What a report of a catalog goes without, in a line; nothing where it has pictures."""
    return remark(catalog, ["latent", "mask"], "the report has figures, and no pictures of edits")


@torch.no_grad()
def write_report(folder: Path, out: Path, advance: Advance = silent, model: str | None = None) -> Path:
    """Write `out/index.html` and `out/contact-sheet.png` for a catalog; returns the page's path.

    Decodes about a hundred edits of `edit.steps` network passes each. `model` says where the catalog's model lies, if
    not where its recipe says. Of a catalog that was published without what edits start from, figures only.

    Raises:
        CatalogError: no directions to show.
        ModelError: as `model_of`.
    """
    with Catalog.open(folder) as catalog:
        if catalog.manifest.rows("directions") == 0:
            raise CatalogError(str(folder), "no directions", "a catalog with directions to show", "Mine some first.")
        table = direction_table(catalog)
        sections, composed = _pictured(catalog, table, model)
        page = Page(
            title=str(catalog.manifest.provenance.recipe["name"]),
            headline=" ".join([headline(catalog, sections), *remarks_of(catalog)]),
            facts=facts(catalog),
            quality=quality(catalog, table),
            sections=sections,
            composed=composed,
            settings_tried=settings_tried(catalog),
            glossary=GLOSSARY,
            provenance=provenance_rows(catalog),
        )
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "contact-sheet.png", contact_sheet(page))
    write_whole(out / "index.html", render_html(page).encode())
    advance(1, "done")
    return out / "index.html"
