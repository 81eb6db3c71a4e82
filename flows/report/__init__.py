"""The report: one self-contained HTML page and one PNG contact sheet, drawn from plain data without any model."""

from __future__ import annotations

from flows.report.html import render_html
from flows.report.page import ComposedEdit, DirectionRow, InterpolationGrid, Page, RegionSection, Triple
from flows.report.sheet import contact_sheet

__all__ = [
    "ComposedEdit",
    "DirectionRow",
    "InterpolationGrid",
    "Page",
    "RegionSection",
    "Triple",
    "contact_sheet",
    "render_html",
]
