"""What a report shows, as plain typed data: filled from a catalog and a model elsewhere, drawn by `html` and `sheet`.

Images are uint8 (H, W, 3), (H, W, 1) or (H, W); masks bool (H, W). Texts may hold anything: the renderers escape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from flows.pictures import check_mask, to_rgb
from pipeline.errors import InputError


@dataclass(frozen=True)
class Triple:
    """One direction at one image, fully denoised at -strength, 0 and +strength.

    `original` is the strength-0 reconstruction. ROIR is the change outside the mask over the change inside; None or
    NaN where it was not measured. `changes` says what the attribute reader saw, such as "mouth_smile +0.31".
    """

    image_id: str
    minus: np.ndarray
    original: np.ndarray
    plus: np.ndarray
    mask: np.ndarray
    strength: float
    roir_minus: float | None
    roir_plus: float | None
    note: str = ""
    changes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises InputError if an image is not one, or the sizes of the three images and the mask differ."""
        original = to_rgb(self.original, "Triple.original")
        for name in ("minus", "plus"):
            found = to_rgb(getattr(self, name), f"Triple.{name}").shape
            if found != original.shape:
                raise InputError(f"Triple.{name}", f"shape {found}", f"the shape of the original, {original.shape}")
        check_mask(self.mask, original, "Triple.mask")

    @property
    def best_roir(self) -> float | None:
        """The smaller of the two measured ROIRs, or None."""
        measured = [r for r in (self.roir_minus, self.roir_plus) if r is not None and math.isfinite(r)]
        return min(measured) if measured else None


@dataclass(frozen=True)
class DirectionRow:
    """One direction: its evidence (`caption_numbers`: gain, leakage, kept share, ...), home triple and transfers."""

    title: str
    direction_id: str
    region: str
    space: str
    kind: str
    rank: int
    caption_numbers: dict[str, str]
    triple: Triple
    transfers: list[Triple] = field(default_factory=list)


@dataclass(frozen=True)
class RegionSection:
    """All that is shown of one region.

    `spectrum`: singular values by operator name, such as {"x: region": [...], "h: region": [...]}.
    `locality`: (label, median ROIR without null-space projection or of the plain SVD, median ROIR with it or of the
    individual components); a label that starts with "h" is taken as h-space. `highlight` is the direction id to show
    first on the page; left empty, `best_row` chooses. `absent` stands where there are no rows.
    """

    region: str
    spectrum: dict[str, list[float]] = field(default_factory=dict)
    locality: list[tuple[str, float, float]] = field(default_factory=list)
    rows: list[DirectionRow] = field(default_factory=list)
    homogeneity: str = ""
    highlight: str = ""
    absent: str = "No directions were kept for this region."

    @property
    def headline_row(self) -> DirectionRow | None:
        """The row for the top of the page, or None without rows."""
        chosen = [row for row in self.rows if row.direction_id == self.highlight]
        return chosen[0] if self.highlight and chosen else best_row(self.rows)


@dataclass(frozen=True)
class InterpolationGrid:
    """Two directions added at n x n strengths: `images[i][j]` at the i-th `y_values` and the j-th `x_values`."""

    title: str
    x_label: str
    y_label: str
    images: list[list[np.ndarray]]
    x_values: list[str] = field(default_factory=list)
    y_values: list[str] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class ComposedEdit:
    """Several directions on one image: (caption, image) from the original to all of them together."""

    title: str
    steps: list[tuple[str, np.ndarray]]
    note: str = ""


@dataclass(frozen=True)
class Page:
    """The whole report. `facts` (name, value); `quality` (name, value, meaning); `glossary` (term, meaning)."""

    title: str
    headline: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    quality: list[tuple[str, str, str]] = field(default_factory=list)
    sections: list[RegionSection] = field(default_factory=list)
    composed: list[InterpolationGrid | ComposedEdit] = field(default_factory=list)
    settings_tried: list[Mapping[str, object]] = field(default_factory=list)
    glossary: list[tuple[str, str]] = field(default_factory=list)
    provenance: list[tuple[str, str]] = field(default_factory=list)


def best_row(rows: Sequence[DirectionRow], space: str | None = None) -> DirectionRow | None:
    """The row to show first: named by the reader, then seen on other images, then the most local; None without any."""
    candidates = [row for row in rows if space is None or row.space == space]

    def order(row: DirectionRow) -> tuple[bool, bool, float, int]:
        roir = row.triple.best_roir
        named, carried = bool(row.triple.changes), bool(row.transfers)
        return (not named, not carried, math.inf if roir is None else roir, row.rank)

    return min(candidates, key=order, default=None)


def plain_change(change: str) -> str:
    """A reader's finding for people: mouth_smile +0.31 -> mouth smile +0.31."""
    return change.replace("_", " ")


def plain_name(region: str) -> str:
    """A region's name for people: left_eye -> Left eye."""
    words = region.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def number(value: float | None, digits: int = 2) -> str:
    """A number for people; what was not measured says so."""
    if value is None or not math.isfinite(value):
        return "not measured"
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 0.5 * 10.0**-digits):
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def signed(value: float) -> str:
    """A strength with its sign, using the typographic minus."""
    text = number(abs(value), 1) if abs(value) >= 10 else number(abs(value), 2)
    return text if text == "not measured" else ("\N{MINUS SIGN}" if value < 0 else "+") + text
