"""The evaluation as a job: the comparison and the figures that were asked for, into one folder, and a page of them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from flows.console import plain, stage
from flows.evaluation.cells import Cell, write
from flows.evaluation.comparison import FULL, QUICK, Chosen, Comparison, Size
from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.experiments import EXPERIMENTS
from flows.evaluation.filling import fill, open_cells
from flows.evaluation.report import Drawn, EvaluationPage, render
from flows.evaluation.tables import Line, line, markdown, remarks, targets
from flows.evaluation.world import World
from flows.recipe import Recipe
from pipeline.errors import InputError
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

    @property
    def size(self) -> Size:
        """The size of the comparison."""
        size = QUICK if self.quick else FULL
        if self.images is not None:
            size = replace(size, images=self.images, chunk=min(size.chunk, self.images))
        return size if self.choosing is None else replace(size, choosing=self.choosing)


@dataclass(frozen=True)
class Evaluated:
    """What came of it. `figures`: name -> what its rows say; `absent`: figures without the weights they need,
    methods that this model or data has no use for, and images that nothing could be found on, with the reason."""

    folder: Path
    lines: Sequence[Line] = ()
    targets: Sequence[Mapping[str, Any]] = ()
    remarks: Sequence[str] = ()
    figures: Mapping[str, Sequence[str]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)


def evaluate(recipe: Recipe, folder: Path, wanted: Wanted) -> Evaluated:
    """Measure what is missing, and write everything that was measured.

    `folder` then holds cells/ and latents/ and learned/ (what makes a rerun short), results.json, comparison.md,
    comparison.parquet, figures/NAME.json and NAME-PLOT.png, and index.html.

    Raises:
        InputError: unknown methods or figures, or too few images.
        RunError: a process died; what was measured is kept.
    """
    _check(wanted)
    world = World(recipe, folder, backbones=wanted.backbones)
    comparison = Comparison(world, open_cells(world), wanted.size)
    lacking = {name: reason for name in wanted.methods if (reason := comparison.lacking(name))}
    names = [name for name in wanted.methods if name not in lacking]
    if names:
        comparison.check(names)
    lines, chosen, cells = _compare(comparison, names, wanted.workers)
    figures = {name: _figure(EXPERIMENTS[name], world, wanted.quick) for name in wanted.figures}
    result = Evaluated(
        folder=folder,
        lines=lines,
        targets=targets(lines),
        remarks=remarks(lines),
        figures={name: drawn.conclusions for name, drawn in figures.items()},
        absent={
            **world.backbones.absent,
            **{METHODS[name].about.title: reason for name, reason in lacking.items()},
            **{f"image {name}": reason for name, reason in world.failures.items()},
        },
    )
    _write(world, wanted, result, chosen, cells, figures)
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
    comparison: Comparison, names: Sequence[str], workers: int
) -> tuple[list[Line], dict[str, Chosen], dict[str, list[Cell]]]:
    tasks = [task for name in names for task in comparison.choosing(name)]
    fill(comparison, tasks, workers, "choosing settings")
    chosen = {name: comparison.chosen(name) for name in names}
    for name, choice in chosen.items():
        comparison.method(name, choice.settings)  # what learns does so once, before processes share it
    tasks = [task for name, choice in chosen.items() for task in comparison.reporting(name, choice.settings)]
    fill(comparison, tasks, workers, "comparing methods")
    lines, cells = [], {}
    for name, choice in chosen.items():
        cells[name] = [comparison.cell(task) for task in comparison.reporting(name, choice.settings)]
        learned = comparison.learning(name, choice.settings)
        lines.append(
            line(
                name,
                METHODS[name].about,
                choice.settings.as_dict(),
                int(learned["images"]),
                learned["seconds"],
                cells[name],
            )
        )
    return lines, chosen, cells


def _figure(experiment: Experiment, world: World, quick: bool) -> Drawn:
    from flows.evaluation.plots import save

    with stage(experiment.title, None):
        rows = experiment.measure(Setup(world, open_cells(world), quick))
    folder = world.folder / "figures"
    write(folder / f"{experiment.name}.json", json.dumps(plain(rows), indent=1) + "\n")
    plots = {name: save(figure) for name, figure in experiment.draw(rows).items()} if rows else {}
    for name, png in plots.items():
        write(folder / f"{name}.png", png)
    return Drawn(experiment.title, experiment.source, plots, experiment.conclude(rows))


def _write(
    world: World,
    wanted: Wanted,
    result: Evaluated,
    chosen: Mapping[str, Chosen],
    cells: Mapping[str, Sequence[Cell]],
    figures: Mapping[str, Drawn],
) -> None:
    facts = _facts(world, wanted)
    content = {
        "facts": facts,
        "targets": result.targets,
        "methods": [each.plain() for each in result.lines],
        "settings_tried": {name: choice.tried for name, choice in chosen.items()},
        "remarks": result.remarks,
        "figures": result.figures,
        "absent": result.absent,
        "backbones": world.backbones.evidence(),
    }
    write(result.folder / "results.json", json.dumps(plain(content), indent=1, ensure_ascii=False) + "\n")
    if result.lines:
        write(result.folder / "comparison.md", markdown(result.lines))
        _write_rows(result.folder / "comparison.parquet", cells)
    page = EvaluationPage(
        title=f"Evaluation of {world.recipe.name}",
        facts=list(facts.items()),
        lines=result.lines,
        remarks=result.remarks,
        targets=result.targets,
        pictures=cells,
        figures=list(figures.values()),
        absent=result.absent,
        tried={name: choice.tried for name, choice in chosen.items() if choice.tried},
    )
    write(result.folder / "index.html", render(page))


def _facts(world: World, wanted: Wanted) -> dict[str, str]:
    size, info = wanted.size, world.denoiser.info
    facts = {
        "recipe": world.recipe.name,
        "model": f"{info.family}, fingerprint {info.fingerprint}",
        "regions": ", ".join(world.recipe.region_names),
        "attribute reader": "the built-in one" if world.reader is not None else "none: nothing reads attributes here",
        "held-out images": str(size.images),
        "settings chosen on": f"{size.choosing} other images" if size.choosing else "nothing: the first are taken",
        "form": "quick: wide intervals, a smoke test" if wanted.quick else "full",
        "machine": f"{os.cpu_count()} cores, {world.denoiser.device}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
    }
    return facts


def _write_rows(path: Path, cells: Mapping[str, Sequence[Cell]]) -> None:
    """Every edit and transfer as one row of Parquet."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    text = ("method", "kind", "image", "region", "target", "factor", "other", "failure")
    flags = ("moved", "reached", "limited", "success", "home_success", "perfect")
    numbers = ("iou", "strength", "rms", "roir", "psnr", "ssim", "lpips", "identity", "move", "other_move")
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
