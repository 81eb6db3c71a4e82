"""One self-contained HTML page from a `Page`: no script, no network, every image a data: address."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flows.pictures import PIXELATED_BELOW, change_maps, close_up, data_uri, outline_path, to_rgb
from flows.report import charts
from flows.report.markup import Markup, join, tag
from flows.report.page import (
    ComposedEdit,
    DirectionRow,
    InterpolationGrid,
    Page,
    RegionSection,
    Triple,
    number,
    plain_change,
    plain_name,
    signed,
)
from flows.report.style import STYLE

# Written out, since the policy must hold whatever the page's content is.
HEAD = Markup(
    '<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">"
    '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">'
)
_LARGE, _SMALL = 320, 128  # longest side of embedded pictures: shown large, and as thumbnails

_SPACES = {
    "x": "x-space: the noisy image itself is moved",
    "h": "h-space: the network's bottleneck is moved",
}
_KINDS = {
    "singular": "the strongest change of this region, with nothing held back",
    "local": "the strongest change of this region with the rest of the picture held still (null-space projection)",
    "joint": "a change that this region shares with the other regions (JIVE)",
    "individual": "a change that belongs to this region alone (JIVE)",
}


def _picture(image: np.ndarray, alt: str, mask: np.ndarray | None = None, longest: int = _LARGE) -> Markup:
    """An image, enlarged without smoothing when small, with the mask's contour drawn over it as a vector."""
    height, width = to_rgb(image).shape[:2]
    small = max(height, width) < PIXELATED_BELOW
    parts = [
        tag(
            "img",
            src=Markup(data_uri(image, longest)),
            alt=alt,
            width=width,
            height=height,
            class_="pixelated" if small else None,
        )
    ]
    if mask is not None and mask.any():
        path = outline_path(mask)
        parts.append(
            tag(
                "svg",
                tag("path", d=path, class_="rim"),
                tag("path", d=path, class_="contour"),
                viewBox=f"0 0 {width} {height}",
                preserveAspectRatio="none",
                aria_hidden="true",
            )
        )
    return tag("div", *parts, class_="px")


def _figure(caption: object, picture: Markup) -> Markup:
    return tag("figure", tag("figcaption", caption), picture)


def _sided(name: str, detail: str) -> Markup:
    return join(tag("b", name), tag("span", detail))


def _views(image: np.ndarray, alt: str, triple: Triple, outlined: bool = False, longest: int = _LARGE) -> Markup:
    """The whole image and, for a small region, a close-up of it underneath."""
    whole = _picture(image, alt, triple.mask if outlined else None, longest)
    window = close_up(triple.mask)
    if window is None:
        return whole
    return join(whole, tag("div", _picture(image[window], f"close-up: {alt}", longest=longest), class_="close"))


def _triple(triple: Triple, region: str) -> Markup:
    """- / original / + with the mask outlined, and where each of the two changed the picture."""
    what = plain_name(region).lower()
    (minus_map, plus_map), peak = change_maps(triple.original, triple.minus, triple.plus)
    low, high = signed(-triple.strength), signed(triple.strength)
    scale = f"brightest: {peak:.0f} of 255 grey levels"
    maps = [
        _figure(
            f"changed at {sign}",
            _picture(shown, f"where the edit at {value} changed the image; {scale}", triple.mask, _SMALL),
        )
        for sign, value, shown in (("\N{MINUS SIGN}", low, minus_map), ("+", high, plus_map))
    ]
    return tag(
        "div",
        _figure(
            _sided("\N{MINUS SIGN}", f"strength {low}"),
            _views(triple.minus, f"{what}, edited at strength {low}", triple),
        ),
        _figure(
            _sided("original", f"{what} outlined"),
            _views(triple.original, f"original image, {what} outlined", triple, outlined=True),
        ),
        _figure(_sided("+", f"strength {high}"), _views(triple.plus, f"{what}, edited at strength {high}", triple)),
        tag("div", *maps, class_="maps"),
        class_="triple",
    )


def _chips(changes: Sequence[str]) -> Markup:
    return tag("ul", *(tag("li", plain_change(c)) for c in changes), class_="chips") if changes else Markup("")


def _locality_sentence(triple: Triple) -> str:
    roir = triple.best_roir
    if roir is None:
        return "Its locality was not measured."
    return f"For every 1.00 of change inside the outline, {number(roir)} outside (ROIR)."


def _card(section: RegionSection, index: int) -> Markup:
    row = section.headline_row
    name = tag("h3", tag("a", plain_name(section.region), href=f"#region-{index}"))
    if row is None:
        return tag("article", name, tag("p", "No direction to show.", class_="none"), class_="card")
    return tag(
        "article",
        name,
        tag("p", row.title, class_="small"),
        _triple(row.triple, section.region),
        _chips(row.triple.changes),
        tag("p", _locality_sentence(row.triple), class_="small"),
        class_="card",
    )


def _reading_keys() -> Markup:
    keys = (
        (
            "\N{MINUS SIGN}, original, +",
            "One image moved against and along a single direction found inside the diffusion model. "
            "Nothing was trained or prompted for it.",
        ),
        (
            "White outline",
            "The region the direction was mined for. A good direction changes what is inside and leaves "
            "the rest alone. Small regions are enlarged underneath.",
        ),
        ("Dark maps", "Where the picture changed: black is untouched, yellow changed most."),
        (
            "ROIR",
            "Change outside the outline divided by change inside. 0 is perfectly local; at 1 as much changed "
            "outside as inside.",
        ),
        (
            "Blue labels",
            "What a separate network, the attribute reader, measured in the edited image, as a share of "
            "that attribute's range.",
        ),
    )
    return tag("ul", *(tag("li", tag("b", term), meaning) for term, meaning in keys), class_="keys")


def _transfer(triple: Triple, region: str) -> Markup:
    what = plain_name(region).lower()
    pictures = [
        tag("div", _views(image, f"{triple.image_id}: {side}", triple, outlined, _SMALL))
        for image, side, outlined in (
            (triple.minus, f"{what} edited at \N{MINUS SIGN}", False),
            (triple.original, f"original, {what} outlined", True),
            (triple.plus, f"{what} edited at +", False),
        )
    ]
    measured = f"ROIR {number(triple.best_roir)}" if triple.best_roir is not None else ""
    words = [measured, *(plain_change(change) for change in triple.changes), triple.note]
    caption = " · ".join(word for word in words if word)
    return _figure(caption or triple.image_id, tag("div", *pictures, class_="trio"))


def _row(row: DirectionRow) -> Markup:
    triple = row.triple
    numbers = {
        "ROIR of \N{MINUS SIGN}, +": f"{number(triple.roir_minus)}, {number(triple.roir_plus)}",
        **row.caption_numbers,
    }
    pairs = (join(tag("dt", name), tag("dd", value)) for name, value in numbers.items())
    evidence = tag("dl", *pairs, class_="numbers")
    space, kind = _SPACES.get(row.space, row.space), _KINDS.get(row.kind, row.kind)
    changes = join(tag("h4", "What the attribute reader saw"), _chips(triple.changes)) if triple.changes else ""
    parts = [
        tag("h3", row.title),
        tag("p", f"{plain_name(kind)}. Found in {space}.", class_="small"),
        tag(
            "div",
            _triple(triple, row.region),
            tag("div", changes, evidence, tag("p", triple.note, class_="small") if triple.note else ""),
            class_="side",
        ),
    ]
    if row.transfers:
        shown = tag("div", *(_transfer(t, row.region) for t in row.transfers), class_="transfers")
        where = f"shifted to where each has its {plain_name(row.region).lower()}"
        title = tag("h4", f"The same direction on other images, {where} (\N{MINUS SIGN}, original, +)")
        parts.append(tag("div", title, shown, class_="other"))
    parts.append(tag("p", f"image {triple.image_id} · direction {row.direction_id}", class_="small"))
    return tag("article", *parts, class_="row")


def _section(section: RegionSection, index: int) -> Markup:
    panels = [
        tag(
            "div",
            tag("h3", "How few directions matter"),
            charts.spectrum(section.spectrum),
            tag(
                "p",
                "Each dot is one direction; a steep fall means a handful carry most of what the region can do.",
                class_="small",
            ),
            class_="panel",
        ),
        tag(
            "div",
            tag("h3", "How local they are"),
            charts.locality(section.locality),
            tag("p", "Median ROIR: shorter is better.", class_="small"),
            class_="panel",
        ),
    ]
    if section.homogeneity:
        panels.append(tag("div", tag("h3", "How alike across images"), tag("p", section.homogeneity), class_="panel"))
    rows = [_row(row) for row in section.rows] or [tag("p", section.absent, class_="none")]
    heading = tag("h2", plain_name(section.region))
    return tag("section", heading, *rows, tag("div", *panels, class_="panels"), id=f"region-{index}")


def _grid(grid: InterpolationGrid) -> Markup:
    columns = max((len(row) for row in grid.images), default=0)
    body = []
    if grid.x_values:
        body.append(tag("tr", tag("td", class_="axis"), *(tag("th", value, scope="col") for value in grid.x_values)))
    for i, row in enumerate(grid.images):
        value = grid.y_values[i] if i < len(grid.y_values) else ""
        cells = [
            tag("td", _picture(image, f"{grid.y_label} step {i + 1}, {grid.x_label} step {j + 1}", longest=_SMALL))
            for j, image in enumerate(row)
        ]
        body.append(tag("tr", tag("th", value, scope="row", class_="axis"), *cells))
    axes = tag(
        "p",
        f"Left to right ({columns} steps): {grid.x_label}. Top to bottom ({len(grid.images)} steps): "
        f"{grid.y_label}. {grid.note}",
        class_="small",
    )
    return tag(
        "article",
        tag("h3", grid.title),
        axes,
        tag("div", tag("table", *body, class_="lattice"), class_="scroll"),
        class_="row",
    )


def _composed(item: InterpolationGrid | ComposedEdit) -> Markup:
    if isinstance(item, InterpolationGrid):
        return _grid(item)
    steps = tag("div", *(_figure(caption, _picture(image, caption)) for caption, image in item.steps), class_="steps")
    note = tag("p", item.note, class_="small") if item.note else ""
    return tag("article", tag("h3", item.title), note, steps, class_="row")


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    head = tag("tr", *(tag("th", name, scope="col") for name in header))
    body = [
        tag(
            "tr",
            *(
                tag("td", cell, class_="value" if isinstance(cell, (int, float)) or i == 1 else None)
                for i, cell in enumerate(row)
            ),
        )
        for row in rows
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll")


def _terms(pairs: Sequence[tuple[str, str]]) -> Markup:
    return tag("dl", *(join(tag("dt", term), tag("dd", meaning)) for term, meaning in pairs), class_="terms")


_TRIED = (
    "On mining images only, judged by the attribute reader. Success: one of the region's own factors moves by 0.15 of "
    "its range, no other by 0.10, ROIR at most 1. Transfer: the same factor, sign and limits on another image whose "
    "mask overlaps by half, the direction not shifted. A perfect editor moves the same true factor and nothing else; "
    "where the factor is already at the end of its range, it fails too, and that bounds every method."
)


def _tried(page: Page) -> Markup:
    columns = list(dict.fromkeys(str(key) for row in page.settings_tried for key in row))
    rows = [[row.get(name, "") for name in columns] for row in page.settings_tried]
    shown = [[number(c, 3) if isinstance(c, float) else c for c in row] for row in rows]
    return tag(
        "section", tag("h2", "Settings that were tried"), tag("p", _TRIED, class_="sub"), _table(columns, shown),
        id="settings",
    )  # fmt: skip


def _body(page: Page) -> tuple[Markup, list[tuple[str, str]]]:
    """The sections in order, and the links to them."""
    parts: list[Markup] = []
    links: list[tuple[str, str]] = []
    cards = [_card(section, i) for i, section in enumerate(page.sections)]
    overview = tag("div", *cards, class_="cards") if cards else tag("p", "No directions were mined.", class_="none")
    parts.append(tag("section", tag("h2", "At a glance"), _reading_keys(), overview, id="glance"))
    for i, section in enumerate(page.sections):
        parts.append(_section(section, i))
        links.append((f"region-{i}", plain_name(section.region)))
    if page.composed:
        links.append(("composed", "Combined edits"))
        sub = tag("p", "Directions add up: one image can take several, each at its own strength.", class_="sub")
        shown = [_composed(item) for item in page.composed]
        parts.append(tag("section", tag("h2", "Combined edits"), sub, *shown, id="composed"))
    if page.quality:
        links.append(("quality", "How well it works"))
        table = _table(("measure", "value", "what it means"), page.quality)
        parts.append(tag("section", tag("h2", "How well it works"), table, id="quality"))
    if page.settings_tried:
        links.append(("settings", "Settings tried"))
        parts.append(_tried(page))
    for anchor, title, pairs in (
        ("facts", "What was mined", page.facts),
        ("glossary", "Terms", page.glossary),
        ("provenance", "Provenance", page.provenance),
    ):
        if pairs:
            links.append((anchor, title))
            parts.append(tag("section", tag("h2", title), _terms(pairs), id=anchor))
    return join(*parts), links


def render_html(page: Page) -> str:
    """The report as one HTML document.

    Every text is escaped, every image embedded; a content security policy forbids scripts and any request. Pictures
    over 320 pixels (thumbnails: 128) are shrunk, since the originals stay in the catalog.

    Raises:
        InputError: an image or mask that is none, or whose size does not fit.
    """
    body, links = _body(page)
    nav = tag("nav", *(tag("a", title, href=f"#{anchor}") for anchor, title in links), aria_label="Contents")
    facts = " · ".join(f"{name}: {value}" for name, value in page.facts[:5])
    header = tag(
        "header",
        tag("h1", page.title),
        tag("p", page.headline, class_="lead"),
        tag("p", facts, class_="small") if facts else "",
        nav if links else "",
    )
    head = tag("head", HEAD, tag("title", page.title), tag("style", STYLE))
    document = tag("html", head, tag("body", header, tag("main", body), tag("footer")), lang="en")
    return f"<!doctype html>\n{document}\n"
