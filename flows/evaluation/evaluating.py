"""The evaluation as a job: the comparison and the figures that were asked for, into one folder, and a page of them."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from flows.console import complain, stage
from flows.evaluation.captions import NO_CAPTIONS, Captions
from flows.evaluation.cells import Cell, Rows, write
from flows.evaluation.comparison import FULL, QUICK, Chosen, Comparison, Size, base_settings, kind_of
from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.experiments import EXPERIMENTS
from flows.evaluation.filling import fill, open_cells
from flows.evaluation.found_regions import FoundRegions
from flows.evaluation.homes import METHODS as FOUND
from flows.evaluation.homes import left_out
from flows.evaluation.kept import Asked, Kept, KeptFigure, MissingCellError, ReadCells, held_out, identity, strict
from flows.evaluation.linearity import DIRECTIONS
from flows.evaluation.machine import machine_of
from flows.evaluation.report import Drawn, EvaluationPage, render
from flows.evaluation.series import measured, of
from flows.evaluation.tables import Line, line, markdown, measured_on, remarks, targets
from flows.evaluation.world import World
from flows.recipe import Recipe
from pipeline.errors import InputError, ModelError, NotFoundError
from pipeline.methods.choices import METHODS


@dataclass(frozen=True)
class Wanted:
    """What to evaluate: methods of the comparison (none: no comparison), figures, how much, by how many processes."""

    methods: Sequence[str] = tuple(METHODS)
    figures: Sequence[str] = ()
    quick: bool = False
    images: int | None = None
    choosing: int | None = None
    workers: int = 1
    backbones: Path | None = None
    captions: Captions = NO_CAPTIONS

    @property
    def size(self) -> Size:
        """The size of the comparison."""
        size = QUICK if self.quick else FULL
        if self.images is not None:
            size = replace(size, images=self.images, chunk=min(size.chunk, self.images))
        return size if self.choosing is None else replace(size, choosing=self.choosing)


@dataclass(frozen=True)
class Evaluated:
    """What came of it, with what earlier calls have left. `figures`: name -> what its rows say; `absent`: columns
    without the weights they need, methods that this model or data has no use for or whose cells are gone, figures that
    could not be measured or say nothing, and images that nothing could be found on, with the reason."""

    folder: Path
    lines: Sequence[Line] = ()
    targets: Sequence[Mapping[str, Any]] = ()
    remarks: Sequence[str] = ()
    figures: Mapping[str, Sequence[str]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Compared:
    """One method of the comparison: its line in the tables, its settings, and the cells behind both."""

    line: Line
    chosen: Chosen
    cells: Sequence[Cell]


def evaluate(recipe: Recipe, folder: Path, wanted: Wanted) -> Evaluated:
    """Measure what is missing of what was asked for, and write everything that was measured in this folder of the same
    model and recipe: figures of earlier calls too, and the comparison last asked for. Methods of earlier calls are
    among those asked for now where the size is the same; without methods, it is shown again from its cells.

    `folder` then holds cells/, latents/, regions/ and learned/ (what makes a rerun short), results.json,
    comparison.json (what was asked for), comparison.md, comparison.parquet, figures/NAME.json and
    NAME-PLOT.png and .pdf, and index.html.

    Raises:
        InputError: unknown methods or figures, or too few images.
        RunError: a process died; what was measured is kept.
    """
    _check(wanted)
    world = World(recipe, folder, backbones=wanted.backbones, captions=wanted.captions)
    comparison = Comparison(world, open_cells(world), wanted.size)
    lacking = {name: reason for name in wanted.methods if (reason := comparison.lacking(name))}
    names = [name for name in wanted.methods if name not in lacking]
    if names:
        comparison.check()
    kept = Kept(folder, identity(world), cache(partial(held_out, world)))
    if others := kept.others():
        complain(f"{folder}: {', '.join(others)}: of another model, recipe or images, so not shown with these")
    size, compared, gone = _compare(comparison, kept, names, wanted.workers)
    figures, silent = _figures(world, kept, wanted)
    lines = [each.line for each in compared.values()]
    result = Evaluated(
        folder=folder,
        lines=lines,
        targets=targets(lines),
        remarks=remarks(lines),
        figures={name: drawn.conclusions for name, drawn in figures.items()},
        absent={
            **world.backbones.absent,
            **{METHODS[name].about.title: reason for name, reason in (lacking | gone).items()},
            **{f"figure {name}": reason for name, reason in silent.items()},
            **{f"image {name}": reason for name, reason in world.failures.items()},
        },
    )
    _write(world, result, size, compared, figures)
    return result


def _check(wanted: Wanted) -> None:
    for field_name, given, known in (
        ("--method", wanted.methods, METHODS),
        ("--figure", wanted.figures, EXPERIMENTS),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(field_name, ", ".join(unknown), f"some of {', '.join(known)}")
    least = {"--workers": (wanted.workers, 1), "--images": (wanted.images, 1), "--choosing": (wanted.choosing, 0)}
    for field_name, (number, bound) in least.items():
        if number is not None and number < bound:
            raise InputError(field_name, number, f"at least {bound}")


def _compare(
    comparison: Comparison, kept: Kept, names: Sequence[str], workers: int
) -> tuple[Size, dict[str, Compared], dict[str, str]]:
    """The comparison that the folder tells: its size, its methods by name, those asked for now among them; and why
    others that it had are not shown."""
    last, size = kept.comparison(), comparison.size
    if last is not None and (not names or last.size == size):
        size, earlier = last.size, [name for name in last.methods if name in METHODS and name not in names]
        order = list(dict.fromkeys((*last.methods, *names)))
    else:
        earlier, order = [], list(names)
        if last is not None:
            complain(f"the comparison of {last.size.images} images that was here is of another size, so not shown")
    compared = _measured(comparison, names, workers)
    again, gone = Comparison(comparison.world, ReadCells(comparison.world), size), {}
    for name in earlier:
        try:
            again.check()
            compared[name] = _compared(again, name)
        except (MissingCellError, InputError):
            gone[name] = (
                "it was compared in this folder, but not all its cells for these images, settings, captions and "
                "backbones are there now; ask for it to measure it again"
            )
    compared = {name: compared[name] for name in order if name in compared}
    if names:
        kept.keep_comparison(Asked(tuple(compared), size))
    return size, compared, gone


def _measured(comparison: Comparison, names: Sequence[str], workers: int) -> dict[str, Compared]:
    tasks = [task for name in names for task in comparison.choosing(name)]
    fill(comparison, tasks, workers, "choosing settings")
    chosen = {name: comparison.chosen(name) for name in names}
    tasks = [task for name, choice in chosen.items() for task in comparison.reporting(name, choice.settings)]
    waiting = {task.method for task in comparison.missing(tasks)}
    for name in names:
        if name in waiting:
            comparison.method(name, chosen[name].settings)  # what learns does so once, before processes share it
    fill(comparison, tasks, workers, "comparing methods")
    return {name: _compared(comparison, name) for name in names}


def _compared(comparison: Comparison, name: str) -> Compared:
    """A method from its cells, which are there."""
    choice = comparison.chosen(name)
    cells = [comparison.cell(task) for task in comparison.reporting(name, choice.settings)]
    learned = comparison.learning(name, choice.settings)
    settings, about = choice.settings.as_dict(), METHODS[name].about
    own = line(
        name, about, settings, learned.images, learned.seconds, cells,
        learn_passes=learned.passes, learned_on=learned.machine,
    )  # fmt: skip
    return Compared(own, choice, cells)


def _figures(world: World, kept: Kept, wanted: Wanted) -> tuple[dict[str, Drawn], dict[str, str]]:
    """Figures by name: those asked for measured, and those of earlier calls drawn again; and why others say nothing."""
    for name in wanted.figures:
        _measure(world, kept, name, wanted.quick)
    drawn, silent = {}, {}
    for name, experiment in EXPERIMENTS.items():
        figure = kept.figure(name)
        if figure is None:
            continue
        try:
            if reason := silence(figure.rows):
                silent[name] = reason
            else:
                drawn[name] = _drawn(experiment, figure, world.folder / "figures")
        except Exception as error:  # rows that somebody has changed may break a plot anywhere
            if name in wanted.figures:
                raise
            complain(f"{world.folder}/figures/{name}.json cannot be drawn ({type(error).__name__}), so is left out")
    return drawn, silent


def _measure(world: World, kept: Kept, name: str, quick: bool) -> None:
    """Measure a figure and keep its rows. One that cannot be measured is kept as left out, unless an earlier call has
    measured it: it costs neither the others nor the page. A quick one takes the place of none that is full."""
    earlier = kept.figure(name)
    if quick and earlier is not None and not earlier.quick and not silence(earlier.rows):
        complain(f"figure {name}: the full one that is here is kept, and no quick one measured")
        return
    try:
        with stage(EXPERIMENTS[name].title, None):
            rows = EXPERIMENTS[name].measure(Setup(world, open_cells(world), quick))
    except (InputError, ModelError, NotFoundError) as error:
        if earlier is not None and not silence(earlier.rows):
            complain(f"figure {name} is shown as an earlier call measured it; now {error}")
            return
        rows = [left_out("the whole figure", str(error))]
    kept.keep_figure(name, KeptFigure(rows, quick), world.asked)


def silence(rows: Rows) -> str:
    """Why rows of a figure say nothing; empty where they say something."""
    found = measured(rows)
    if not found:
        reasons = of(rows, what="the whole figure") or rows
        return "; ".join(dict.fromkeys(str(row.get("why")) for row in reasons)) or "nothing was there to be measured"
    refused = [_refusal(row) for row in found]
    if not all(refused):
        return ""
    return f"every edit was refused ({'; '.join(dict.fromkeys(refused))})"


def _refusal(row: Mapping[str, Any]) -> str:
    """Why the edit of a row was refused; empty where it was made."""
    failure = str(row.get("failure", ""))
    return str(row["refused"]) if "refused" in row else failure.partition("refused: ")[2]


def _drawn(experiment: Experiment, figure: KeptFigure, folder: Path) -> Drawn:
    from flows.evaluation.plots import save, save_vector

    conclusions = experiment.conclude(figure.rows)
    drawings = experiment.draw(figure.rows) if figure.rows else {}
    plots = {name: save(drawing) for name, drawing in drawings.items()}
    for name, png in plots.items():
        write(folder / f"{name}.png", png)
        write(folder / f"{name}.pdf", save_vector(drawings[name]))
    return Drawn(experiment.title, experiment.source, plots, conclusions, figure.quick)


def _write(
    world: World, result: Evaluated, size: Size, compared: Mapping[str, Compared], figures: Mapping[str, Drawn]
) -> None:
    facts = _facts(world, size, compared, figures)
    content = {
        "facts": facts,
        "targets": result.targets,
        "methods": result.lines,
        "settings_tried": {name: each.chosen.tried for name, each in compared.items()},
        "remarks": result.remarks,
        "figures": result.figures,
        "absent": result.absent,
        "backbones": world.backbones.evidence(),
    }
    cells = {name: each.cells for name, each in compared.items()}
    write(result.folder / "results.json", json.dumps(strict(content), indent=1, ensure_ascii=False) + "\n")
    table, rows = result.folder / "comparison.md", result.folder / "comparison.parquet"
    if result.lines:
        write(table, markdown(result.lines))
        _write_rows(rows, cells)
    else:  # tables of a comparison that the page does not show
        table.unlink(missing_ok=True)
        rows.unlink(missing_ok=True)
    page = EvaluationPage(
        title=f"Evaluation of {world.recipe.name}",
        facts=list(facts.items()),
        lines=result.lines,
        remarks=result.remarks,
        targets=result.targets,
        pictures=cells,
        figures=list(figures.values()),
        absent=result.absent,
        tried={name: each.chosen.tried for name, each in compared.items() if each.chosen.tried},
    )
    write(result.folder / "index.html", render(page))


def _facts(world: World, size: Size, compared: Mapping[str, Compared], figures: Mapping[str, Drawn]) -> dict[str, str]:
    info = world.denoiser.info
    facts = {
        "recipe": world.recipe.name,
        "model": f"{info.family}, fingerprint {info.fingerprint}",
        "regions": ", ".join(world.recipe.region_names),
        "attribute reader": "the built-in one" if world.reader is not None else "none: nothing reads attributes here",
    }
    if world.found is not None:
        facts["how regions were found"] = _found(world.found)
    if compared:
        facts["held-out images"] = str(size.images)
        seconds = sum(cell.seconds for each in compared.values() for cell in each.cells)
        facts["time for them"] = f"{seconds / 60:,.0f} minutes of one process, without choosing settings and learning"
        facts["settings"] = _settings({name: each.chosen.by for name, each in compared.items()})
        facts["form"] = "quick: wide intervals, a smoke test" if size.quick else "full"
    if figures and (other := _unlike(world, compared)):
        facts["settings of figures"] = other
    if quick := [name for name, figure in figures.items() if figure.quick]:
        facts["quick figures"] = ", ".join(quick)
    here = machine_of(world.denoiser.device)
    facts["machine"] = f"{here}, torch {torch.__version__}, Python {platform.python_version()}"
    if places := measured_on([each.line for each in compared.values()], here):
        facts["seconds measured on"] = places
    return facts


def _unlike(world: World, compared: Mapping[str, Compared]) -> str:
    """Which settings of the figures, the recipe's, are not those that the comparison has chosen; empty where none."""
    told = []
    for name in dict.fromkeys((*FOUND, *DIRECTIONS)):
        if name not in compared:
            continue
        own, chosen = base_settings(kind_of(name), world).as_dict(), compared[name].chosen.settings.as_dict()
        told += [f"{name} {key} {own[key]} (chosen: {chosen[key]})" for key in own if own[key] != chosen[key]]
    return f"the recipe's, also where the comparison has chosen others: {', '.join(told)}" if told else ""


def _found(regions: FoundRegions) -> str:
    """How the regions of a recipe that names none were found, and what it cost."""
    how = f"by {regions.choice.provider}"
    if regions.choice.provider == "segments":
        each = regions.passes / max(1, regions.count)
        how += (
            f" at t = {regions.share:g} T, in about {each:.0f} passes and Jacobian products an image with its inversion"
        )
    return f"{how}, which no method is charged with; named by size: one name is not one thing on two images"


def _settings(by: Mapping[str, int]) -> str:
    """On how many images settings were chosen, and of which methods: `by` is 0 where nothing was chosen."""
    chosen, rest = [name for name in by if by[name]], [name for name in by if not by[name]]
    if not chosen:
        return "one set a method, of which nothing was chosen"
    count = by[chosen[0]]
    text = f"chosen on {count} other image{'' if count == 1 else 's'}"
    return (
        f"{text} of {', '.join(chosen)}; one set, of which nothing was chosen, of {', '.join(rest)}" if rest else text
    )


def _write_rows(path: Path, cells: Mapping[str, Sequence[Cell]]) -> None:
    """Every edit and transfer as one row of Parquet."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    text = ("method", "kind", "image", "region", "target", "factor", "other", "failure")
    flags = ("moved", "reached", "limited", "success", "home_success", "perfect")
    numbers = (
        "iou", "strength", "rms", "roir", "psnr", "ssim", "lpips", "identity", "move", "other_move", "reference_psnr",
    )  # fmt: skip
    schema = pa.schema(
        [(name, pa.string()) for name in text]
        + [(name, pa.bool_()) for name in flags]
        + [(name, pa.float64()) for name in numbers]
    )
    rows = [
        {name: {"method": method, **row}.get(name) for name in schema.names}
        for method, own in cells.items()
        for cell in own
        for row in cell.rows
        if row["kind"] != "cost"
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
    write(path, buffer.getvalue())
