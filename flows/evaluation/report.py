"""The page of an evaluation: tables, remarks, pictures and plots in one file, without script or network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flows.evaluation.cells import Cell
from flows.evaluation.tables import FIRST, SECOND, Column, Line, counted, shown, stars
from flows.report.html import HEAD
from flows.report.markup import Markup, join, tag
from flows.report.style import STYLE

_STYLE = Markup("""
main,header,footer{max-width:1400px}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{padding:4px 10px;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;white-space:nowrap}
td.best{font-weight:700}td.best::after{content:" \\2605"}
.plot{max-width:100%;height:auto;background:#fff}
.strip img{width:96px;image-rendering:pixelated}
.strip td,.strip th{border:0;padding:3px}
""")
_YES = {True: "yes", False: "no"}


@dataclass(frozen=True)
class Drawn:
    """One figure as the page shows it: plots are PNG bytes by name; `quick`: few images and points were asked for."""

    title: str
    source: str
    plots: Mapping[str, bytes]
    conclusions: Sequence[str]
    quick: bool = False


@dataclass(frozen=True)
class EvaluationPage:
    """What the page says. `facts`: name and value pairs; `targets`: name, value, target, met."""

    title: str
    facts: Sequence[tuple[str, str]]
    lines: Sequence[Line] = ()
    remarks: Sequence[str] = ()
    targets: Sequence[Mapping[str, object]] = ()
    pictures: Mapping[str, Sequence[Cell]] = field(default_factory=dict)
    figures: Sequence[Drawn] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    tried: Mapping[str, Sequence[Mapping[str, object]]] = field(default_factory=dict)


def render(page: EvaluationPage) -> str:
    """The page as one HTML document; every text is escaped, every picture embedded."""
    parts = [tag("section", tag("h2", "What was measured"), _pairs(page.facts), id="facts")]
    if page.lines:
        parts.append(_comparison(page))
    if page.pictures:
        parts.append(_pictures(page.pictures))
    parts += [_figure(figure) for figure in page.figures]
    if page.tried:
        parts.append(_tried(page.tried))
    if page.absent:
        absent = (tag("li", f"{name}: {reason}") for name, reason in page.absent.items())
        parts.append(tag("section", tag("h2", "What was not measured"), tag("ul", *absent), id="absent"))
    head = tag("head", HEAD, tag("title", page.title), tag("style", STYLE), tag("style", _STYLE))
    body = tag("body", tag("header", tag("h1", page.title)), tag("main", *parts), tag("footer"))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _comparison(page: EvaluationPage) -> Markup:
    parts = [tag("h2", "Comparison of methods"), *(tag("p", text, class_="sub") for text in _explained(page))]
    if page.targets:
        rows = [[t["name"], _number(t["value"]), t["target"], _YES[bool(t["met"])]] for t in page.targets]
        parts.append(_table(("target", "measured", "wanted", "met"), rows))
    parts += [tag("h3", "As in the table of LOCO Edit"), _first(page.lines)]
    parts += [tag("h3", "As in the table of joint and individual components"), _second(page.lines)]
    if page.remarks:
        parts.append(tag("ul", *(tag("li", remark) for remark in page.remarks)))
    own = [(each.about.title, each.about.deviations) for each in page.lines if each.about.deviations]
    if own:
        terms = (join(tag("dt", title), tag("dd", "; ".join(deviations))) for title, deviations in own)
        parts += [tag("h3", "Where a method differs from its paper"), tag("dl", *terms, class_="terms")]
    return tag("section", *parts, id="comparison")


_EDITS = (
    "Every method edits the same held-out images with {settings}, at the strength at which the change can be seen "
    "(0.15 root-mean-square inside the region, within 5 %) as far as one is found, the better sign: columns say how "
    "many edits are too weak at the largest strength allowed, and how many ended off target. Success: one of the "
    "region's own attributes moves by 0.15 of its range, no other by 0.10, ROIR at most 1. Transfer: the same "
    "attribute and sign on another image whose mask overlaps by half. In brackets: 95 % intervals over images. A star "
    "marks the best of a column, and all that are equal to it."
)
_REFUSED = (
    "An edit that a method refuses, or for which no strength comes closer to the target than 0, counts as failed in "
    "success and transfer success, and as infinite in ROIR. SSIM, LPIPS, PSNR, identity, KID and the attributes moved "
    "are over the edits that were made. Refused: {refused} of {edits} edits; a column says whose."
)
_COSTS = (
    "Seconds and passes leave out the inversion of the picture ({steps}, of methods that need one) and samplings that "
    "guess the strength to try first. Reconstruction: the picture at strength 0, which every edit is compared with, "
    "against the source. Learning counts the inversion of the images it looks at among its passes, and in its seconds "
    "where no other method had inverted them. A transfer edit is one of another image than its own, moved there; of "
    "methods that cannot transfer, its own."
)
_TUNING = (
    "Tuning is not equal. Settings tried here: {counts}. A method begins with what the recipe decides, and its own "
    "values for the rest. The recipe decides the timestep of nearly all, and the ranks of LOCO Edit and of individual "
    "components; where it was tuned, as faces64-demo was (faces64-demo.tuning.json), these were searched for with "
    "these two methods alone, on images of the split that settings are chosen on."
)


def _explained(page: EvaluationPage) -> list[str]:
    """What the tables mean, as this folder was measured."""
    counts = {"refused": sum(each.refused for each in page.lines), "edits": sum(each.edits for each in page.lines)}
    steps = _inversions(page.lines)
    tried = ", ".join(f"{each.name} {len(page.tried.get(each.name, ())) or 1}" for each in page.lines)
    return [
        _EDITS.format(settings=_settings(page)),
        _TUNING.format(counts=tried),
        _REFUSED.format(**counts),
        _COSTS.format(steps=steps),
    ]


def _inversions(lines: Sequence[Line]) -> str:
    """How many steps methods invert in, and which those are that differ."""
    names: dict[object, list[str]] = {}
    for each in lines:
        names.setdefault(each.settings.get("inversion_steps", "an unknown number of"), []).append(each.name)
    if len(names) == 1:
        return f"{next(iter(names))} steps"
    return ", ".join(f"{steps} steps ({', '.join(own)})" for steps, own in names.items())


def _settings(page: EvaluationPage) -> str:
    """How settings came about: only methods of which several were tried had them chosen."""
    chosen = [each.name for each in page.lines if page.tried.get(each.name)]
    if not chosen:
        return "one set of settings, of which nothing was chosen here"
    if len(chosen) == len(page.lines):
        return "the settings that did best on other images"
    return f"the settings that did best on other images ({', '.join(chosen)}) or the only ones there are (all others)"


def _first(lines: Sequence[Line]) -> Markup:
    header = ("method", "paper", *(c.title for c in FIRST), "images", "learning, s", "learning, passes",
              "finding an edit, s", "transfer edit, s", "one step", "supervision", "theory", "localised")  # fmt: skip
    rows = [
        [e.about.title, e.about.paper, *_cells(e, lines, FIRST), e.images, counted(e.learn_seconds),
         counted(e.learn_passes), f"{e.find_seconds:.2f}", f"{e.edit_seconds:.2f}", _YES[e.about.one_step],
         e.about.supervision, _YES[e.about.theory], _YES[e.about.localised]]
        for e in lines
    ]  # fmt: skip
    return _table(header, rows)


def _second(lines: Sequence[Line]) -> Markup:
    header = ("method", *(c.title for c in SECOND), "passes to find an edit", "refused", "too weak at the limit",
              "off target", "transfers off target", "transfer, not moved", "transfer of a perfect editor")  # fmt: skip
    rows = [
        [e.about.title, *_cells(e, lines, SECOND), f"{e.find_passes:.0f}", e.refused, e.limited,
         e.off_target, e.transfers_off_target, shown(e.transfer_as_is), shown(e.perfect)]
        for e in lines
    ]  # fmt: skip
    return _table(header, rows)


def _cells(each: Line, lines: Sequence[Line], columns: Sequence[Column]) -> list[Markup | str]:
    best = stars(lines, columns)
    found: list[Markup | str] = []
    for column in columns:
        text = shown(getattr(each, column.name), column.digits)
        if column.name == "transfer" and not each.about.transfers:
            text = "cannot"
        found.append(tag("td", text, class_="best" if (column.title, each.name) in best else None))
    return found


def _pictures(cells: Mapping[str, Sequence[Cell]]) -> Markup:
    """Before and after of the first images, a row a method and two columns a region."""
    rows = {name: [r for c in own for r in c.rows if r["kind"] == "home" and "pictures" in r] for name, own in
            cells.items()}  # fmt: skip
    images = list(dict.fromkeys(row["image"] for own in rows.values() for row in own))[:2]
    parts = [tag("h2", "Pictures"), tag("p", "Reconstruction and edit, region by region.", class_="sub")]
    for image in images:
        regions = list(dict.fromkeys(r["region"] for own in rows.values() for r in own if r["image"] == image))
        head = tag("tr", tag("th", ""), *(tag("th", region, colspan=2) for region in regions))
        body = []
        for name, own in rows.items():
            shots = {row["region"]: row for row in own if row["image"] == image}
            cells_of = [_pair(name, shots.get(region)) for region in regions]
            body.append(tag("tr", tag("th", name, scope="row"), *cells_of))
        parts += [
            tag("h3", f"image {image[:12]}"),
            tag("div", tag("table", head, *body, class_="strip"), class_="scroll"),
        ]
    return tag("section", *parts, id="pictures")


def _pair(name: str, row: Mapping[str, object] | None) -> Markup:
    if row is None:
        return tag("td", "refused", colspan=2)
    pictures = row["pictures"]
    assert isinstance(pictures, list)
    told = f"ROIR {_number(row['roir'])}"
    if "factor" in row:
        told += f", {row['factor']} {float(str(row['move'])):+.2f}"
    sources = [f"data:image/png;base64,{picture}" for picture in pictures]
    whats = ("reconstruction", "edit")
    images = (tag("img", src=s, alt=f"{name}: {what}", title=told) for s, what in zip(sources, whats, strict=True))
    return join(*(tag("td", image) for image in images))


def _figure(figure: Drawn) -> Markup:
    plots = [
        tag("p", tag("img", src=f"data:image/png;base64,{base64.b64encode(png).decode()}", alt=name, class_="plot"))
        for name, png in figure.plots.items()
    ]  # fmt: skip
    said = tag("ul", *(tag("li", sentence) for sentence in figure.conclusions))
    quick = [tag("p", "Quick: few images and points, a smoke test.", class_="sub")] if figure.quick else []
    return tag("section", tag("h2", figure.title), tag("p", figure.source, class_="sub"), *quick, *plots, said)


def _tried(tried: Mapping[str, Sequence[Mapping[str, object]]]) -> Markup:
    parts = [tag("h2", "Settings that were tried"), tag("p", "On images that are not reported on.", class_="sub")]
    for name, rows in tried.items():
        settings = [row["settings"] for row in rows]
        names = [n for n in dict(settings[0] if isinstance(settings[0], Mapping) else {}) if n != "goals"]
        body = [
            [*(str(s[n]) for n in names), *(_number(row.get(figure)) for figure in ("success", "visible", "roir"))]
            for s, row in zip(settings, rows, strict=True)
            if isinstance(s, Mapping)
        ]
        parts += [tag("h3", name), _table((*names, "success", "visible", "median ROIR"), body)]
    return tag("section", *parts, id="settings")


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    head = tag("tr", *(tag("th", name, scope="col") for name in header))
    body = [tag("tr", *(c if isinstance(c, Markup) else tag("td", c) for c in row)) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll")


def _pairs(pairs: Sequence[tuple[str, str]]) -> Markup:
    return tag("dl", *(join(tag("dt", term), tag("dd", meaning)) for term, meaning in pairs), class_="terms")


def _number(value: object) -> str:
    return "-" if value is None else f"{float(str(value)):.3g}"
