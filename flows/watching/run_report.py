"""What a run cost and how good its catalog is, against the last version: a page, a text and a document of each run."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from catalog.fs import RUN
from catalog.reader import Catalog
from flows.files import write_whole
from flows.gates import Rejections, explained, gates_of, rejections
from flows.publishing import last_published
from flows.quality import Group, Quality, quality_of, regression
from flows.report.markup import Markup, join, tag
from flows.report.style import STYLE
from flows.watching.cost import Cost, cost_words
from flows.watching.live import facts, pace
from flows.watching.progress import Progress
from flows.watching.run_sheet import sheet_of
from flows.watching.snapshots import Snapshot, Spread, runs_folder
from pipeline.errors import CatalogError

KEPT = 20  # reports of former runs
PAGE, TEXT, DOCUMENT, SHEET = "report.html", "report.md", "report.json", "contact-sheet.png"
_LARGEST = 64 * 2**20
_FIGURES = (("residual", "residual"), ("leakage_ratio", "leakage / gain"), ("roir", "ROIR"))
_MARKS = frozenset(
    "\\`*_[]<>|#!~$"
)  # escaped by a backslash, which Prefect's page understands and entities it does not
_HEADER = ("region", "space", "kind", "directions", *(words for _, words in _FIGURES))


class RunReport(BaseModel):
    """A run, what it cost, and its catalog's quality now and before, of what the gates keep.

    `before_name` says what `before` is of; `worse` are the figures that `regression` names; `left_out` says what gates
    reject.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    run: Snapshot
    recipe: str
    version: int
    cost: Cost
    quality: Quality
    before_name: str | None = None
    before: Quality | None = None
    worse: tuple[str, ...] = ()
    rejected: dict[str, int] = {}
    left_out: tuple[str, ...] = ()


def record(catalog_folder: str | Path, progress: Progress) -> Path:
    """Write the report of a run that is over, as `write`; whoever asks `progress` for it need not judge again."""
    with Catalog.open(catalog_folder) as catalog:
        found = rejections(catalog, gates_of(catalog.manifest.provenance))
        progress.report = _reported(catalog, progress.snapshot(), found)
        return _written(progress.report, catalog, found)


def report_of(catalog_folder: str | Path, progress: Progress | Snapshot) -> RunReport:
    """The report of a run on the catalog in a folder, the one that was recorded if there is one.

    Reads metadata only. Raises as `Catalog.open`.
    """
    if isinstance(progress, Progress) and progress.report is not None:
        return progress.report
    run = progress if isinstance(progress, Snapshot) else progress.snapshot()
    with Catalog.open(catalog_folder) as catalog:
        return _reported(catalog, run, rejections(catalog, gates_of(catalog.manifest.provenance)))


def _reported(catalog: Catalog, run: Snapshot, found: Rejections) -> RunReport:
    provenance = catalog.manifest.provenance
    quality = quality_of(catalog, found.keep)
    name, before = _before(catalog.folder, run.run_id)
    return RunReport(
        run=run,
        recipe=str(provenance.recipe.get("name", "no name")),
        version=catalog.manifest.version,
        cost=Cost.of(run),
        quality=quality,
        before_name=name,
        before=before,
        worse=tuple(regression(quality, before)) if before is not None else (),
        rejected=found.counts,
        left_out=tuple(explained(found)),
    )


def _before(folder: Path, run_id: str) -> tuple[str | None, Quality | None]:
    """The quality that a run is compared with: of the last published version, else of the last run before it."""
    published = last_published(folder)
    if published is not None:
        return f"version {published.version} of {published.repository}", published.quality
    former = [report for report in reports(folder) if report.run.run_id != run_id and report.quality.directions]
    return (f"run {former[-1].run.run_id}", former[-1].quality) if former else (None, None)


def reports(folder: Path) -> list[RunReport]:
    """The reports of a catalog's runs, the latest last; damaged ones are left out."""
    found = []
    for path in (folder / RUN).glob(f"*/{DOCUMENT}"):
        try:
            if path.stat().st_size <= _LARGEST:
                found.append(RunReport.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            continue
    return sorted(found, key=lambda report: (report.run.started, report.run.run_id))


def write(report: RunReport, catalog_folder: str | Path) -> Path:
    """Write the report's page, text, document and contact sheet; returns their folder, `.run/RUN_ID` of the catalog.

    Reports of all but the last KEPT runs are removed. Raises CatalogError: a full disk, a link in the folder's place.
    """
    with Catalog.open(catalog_folder) as catalog:
        return _written(report, catalog, rejections(catalog, gates_of(catalog.manifest.provenance)))


def _written(report: RunReport, catalog: Catalog, found: Rejections) -> Path:
    headline = f"{report.run.images} images of run {report.run.run_id}; pictures are one-step previews"
    sheet = sheet_of(catalog, report.recipe, headline, found.keep)
    folder = runs_folder(catalog.folder) / report.run.run_id
    if folder.is_symlink():
        raise CatalogError(str(folder), "a symbolic link", "a plain folder", "Remove it")
    folder.mkdir(exist_ok=True)
    if sheet is not None:
        write_whole(folder / SHEET, sheet)
    write_whole(folder / TEXT, markdown(report, SHEET if sheet is not None else None).encode())
    write_whole(folder / PAGE, page(report, sheet).encode())
    write_whole(folder / DOCUMENT, report.model_dump_json(indent=1).encode())
    for old in reports(folder.parents[1])[:-KEPT]:
        if old.run.run_id != report.run.run_id:
            shutil.rmtree(folder.parent / old.run.run_id, ignore_errors=True)
    return folder


# -- in words --------------------------------------------------------------------------------------------------------


def summary(report: RunReport) -> list[tuple[str, str]]:
    """What there is to say of a run, by name."""
    run = report.run
    told = [("run", f"{run.run_id}, {pace(run)}, {run.started}"), ("images", f"{run.images:,} mined")]
    told += [(name, value) for name, value in facts(run).items() if name not in ("quality", "rejected")]
    told += [("cost of a direction", words)] if (words := cost_words(report.cost)) else []
    told += [("left out of packs", "; ".join(report.left_out))] if report.left_out else []
    return told


def verdict(report: RunReport) -> list[str]:
    """Whether the catalog is worse than before, and in what."""
    if report.before_name is None:
        return ["There is no former version or run to compare with."]
    if not report.worse:
        return [f"No figure is worse than those of {report.before_name}."]
    return [f"Worse than {report.before_name}; a publish stops at this unless it is overridden:", *report.worse]


def quality_rows(now: Quality, before: Quality | None) -> Iterator[tuple[str, ...]]:
    """The cells of _HEADER for each group: medians and quartiles now, and the medians before."""
    former = {group.name: group for group in before.groups} if before is not None else {}
    for group in now.groups:
        old = former.get(group.name)
        cells = [_cell(group.figures.get(name), _figure(old, name)) for name, _ in _FIGURES]
        count = f"{group.directions:,}" + (f" (before {old.directions:,})" if old is not None else "")
        yield (group.region, group.space, group.kind, count, *cells)


def _figure(group: Group | None, name: str) -> Spread | None:
    return group.figures.get(name) if group is not None else None


def _cell(now: Spread | None, before: Spread | None) -> str:
    if now is None:
        return "-"
    former = f", before {before.median:.3g}" if before is not None else ""
    return f"{now.median:.3g} ({now.low:.3g} to {now.high:.3g}){former}"


def psnr_words(report: RunReport) -> str:
    """The round trip's PSNR in words."""
    found, before = report.quality.psnr, report.before.psnr if report.before is not None else None
    return "-" if found is None else f"{_cell(found, before)} dB"


def safe(text: str) -> str:
    """Text on one line with nothing in it that Markdown or HTML would take for its own."""
    return "".join(f"\\{c}" if c in _MARKS else c for c in " ".join(text.split()))


def markdown(report: RunReport, picture: str | None = None) -> str:
    """The report as Markdown; `picture` is the address of the contact sheet."""
    lines = [f"# {safe(report.recipe)}: run {safe(report.run.run_id)}", ""]
    lines += [f"- **{safe(name)}**: {safe(value)}" for name, value in summary(report)]
    lines += ["", "## Quality", "Medians with quartiles, of what packs get.", ""]
    lines += [f"Round-trip PSNR: {safe(psnr_words(report))}", ""]
    lines += _markdown_table(_HEADER, list(quality_rows(report.quality, report.before)))
    first, *rest = verdict(report)
    lines += ["", "## Against the last version", safe(first), "", *(f"- {safe(figure)}" for figure in rest)]
    if report.run.failures:
        rows = [(reason, f"{count:,}") for reason, count in report.run.failures.items()]
        lines += ["", "## Failures", "", *_markdown_table(("reason", "images"), rows)]
    if picture is not None:
        lines += ["", f"![contact sheet]({picture})"]
    return "\n".join(lines) + "\n"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    plain = ["| " + " | ".join(safe(cell) for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *plain]


def page(report: RunReport, sheet: bytes | None) -> str:
    """The report as one HTML page that needs nothing else."""
    title = f"{report.recipe}: run {report.run.run_id}"
    first, *rest = verdict(report)
    failures = [(reason, f"{count:,}") for reason, count in report.run.failures.items()]
    body = [
        tag("header", tag("h1", title), tag("p", pace(report.run), class_="lead")),
        tag(
            "main",
            _html_table(("", ""), summary(report)),
            tag("h2", "Quality"),
            tag("p", f"Medians with quartiles, of what packs get. Round-trip PSNR: {psnr_words(report)}", class_="sub"),
            _html_table(_HEADER, list(quality_rows(report.quality, report.before))),
            tag("h2", "Against the last version"),
            tag("p", first),
            tag("ul", *(tag("li", figure) for figure in rest)) if rest else "",
            join(tag("h2", "Failures"), _html_table(("reason", "images"), failures)) if failures else "",
            join(tag("h2", "Directions"), _picture(sheet)) if sheet is not None else "",
        ),
        tag("footer", tag("p", f"catalog {report.run.catalog}, version {report.version}", class_="small")),
    ]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        tag("style", STYLE),
    )
    return "<!doctype html>" + tag("html", head, tag("body", *body), lang="en")


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    head = tag("tr", *(tag("th", name) for name in header)) if any(header) else ""
    cells = [tag("tr", *(tag("td", cell) for cell in row)) for row in rows]
    return tag("div", tag("table", head, *cells), class_="scroll")


def _picture(sheet: bytes) -> Markup:
    address = "data:image/png;base64," + base64.b64encode(sheet).decode()
    return tag("div", tag("img", src=address, alt="contact sheet", style="max-width:100%"), class_="scroll")
