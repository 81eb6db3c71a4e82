"""`rhumb evaluate --tune`: a recipe's settings, searched on `mine` images within a budget of network passes.

One setting after the other, each with all others at the best found so far: the timestep, which both spaces share; the
null rank and where the SVD is taken; joint and individual ranks; the window in which h is shifted. What is tried is
kept in cells, so that a search that was stopped, or is given a larger budget, goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.console import say, table
from flows.evaluation.cells import Rows, write
from flows.evaluation.comparison import Comparison, Size, Task, base_settings, kind_of, merit, rank_of
from flows.evaluation.filling import fill, open_comparison
from flows.plain import plain
from flows.recipe import Recipe
from pipeline.errors import InputError

IMAGES = 8
TIMESTEPS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7)
NULL_SPACES = ((0, "projected"), (5, "projected"), (10, "projected"), (20, "projected"), (30, "projected"),
               (60, "projected"), (30, "inside"))  # fmt: skip
RANKS = ((5, 5), (16, 2), (32, 1), (32, 2), (48, 2))  # joint, individual
LOWS = (0.0, 0.25, 0.5)  # where the window ends, as a share of the timestep

Values = dict[str, dict[str, Any]]
"""Settings by the part of the recipe they belong to: "", "loco", "jive", "edit"."""


@dataclass(frozen=True)
class Tuned:
    """What a search found: the recipe it wrote, rows of all that was tried, passes spent and whether it finished."""

    recipe: Path
    tried: Rows
    passes: int
    budget: int
    finished: bool


def tune(recipe: Recipe, folder: Path, budget: int, workers: int = 1) -> Tuned:
    """Search, and write `folder`/tuned.yaml with its evidence in tuned.json beside it, and tuned.tuning.json, a digest:
    reports show it of a recipe in data/recipes that it lies beside, under the recipe's name.

    Regions that no data set names are found at the recipe's own timestep, whatever timestep is tried.

    Cost: at most `budget` network passes (products with Jacobians and backward passes count as one each, and finding
    regions too), and what `workers` more candidates take: the budget is looked at between so many.

    Raises:
        InputError: a budget under 1, or no images.
    """
    if budget < 1 or workers < 1:
        raise InputError("--budget, --workers", (budget, workers), "at least 1")
    comparison = open_comparison(recipe, folder, Size())
    images, found = len(comparison.world.up_to("mine", IMAGES)), comparison.world.found
    finding = 0 if found is None else found.passes
    best: Values = {}
    tried: Rows = []
    spent: dict[Task, int] = {}
    finished = True
    for title, candidates in _rounds(recipe):
        rows: Rows = []
        for start in range(0, len(candidates), workers):
            finished = finding + sum(spent.values()) < budget
            if not finished:
                break
            group = [merged(best, candidate) for candidate in candidates[start : start + workers]]
            rows += _tried(comparison, recipe, title, group, images, workers, spent)
        tried += rows
        if rows:
            best = max(rows, key=lambda row: (row["score"], -row["roir"]))["values"]
        if not finished:
            break
    path, passes = folder / "tuned.yaml", finding + sum(spent.values())
    evidence = {"recipe": recipe.name, "images": images, "budget": budget, "passes": passes, "finished": finished}
    write(folder / "tuned.json", json.dumps(plain({**evidence, "tried": tried}), indent=1) + "\n")
    write(path.with_suffix(".tuning.json"), json.dumps(plain(digest(tried, images)), indent=1) + "\n")
    write(path, _written(recipe, best, tried, images))
    return Tuned(path, tried, passes, budget, finished)


def _rounds(recipe: Recipe) -> Iterator[tuple[str, list[Values]]]:
    """The settings to vary, the recipe's own first in each: it stays where nothing is better."""
    method = recipe.method
    window = method.edit.h_window
    low = 0.0 if window is None else window[1] / method.timestep
    yield (
        "timestep",
        [{"": {"timestep": t}, "edit": {"low": low}} for t in dict.fromkeys((method.timestep, *TIMESTEPS))],
    )
    own = (method.loco.null_rank, method.loco.variant)
    yield (
        "null space",
        [{"loco": {"null_rank": rank, "variant": variant}} for rank, variant in dict.fromkeys((own, *NULL_SPACES))],
    )
    ranks = (method.jive.joint_rank, method.jive.individual_rank)
    yield (
        "joint and individual rank",
        [
            {"jive": {"joint_rank": joint, "individual_rank": individual}}
            for joint, individual in dict.fromkeys((ranks, *RANKS))
        ],
    )
    yield "window", [{"edit": {"low": share}} for share in dict.fromkeys((low, *LOWS))]


def merged(best: Values, change: Values) -> Values:
    """`best` with a candidate's values in place of its own; a window's end is a share of the timestep chosen."""
    found = {part: {**best.get(part, {}), **change.get(part, {})} for part in {*best, *change}}
    edit = found.get("edit", {})
    if "low" in edit:
        timestep = found[""]["timestep"]
        found["edit"] = {"h_window": [timestep, round(edit["low"] * timestep, 4)]}
    return found


def changed(recipe: Recipe, values: Values) -> Recipe:
    """The recipe with these values of its method."""
    data = recipe.method.model_dump(mode="json")
    for part, own in values.items():
        target = data if part == "" else data[part]
        target.update(own)
    return recipe.model_copy(update={"method": type(recipe.method).model_validate(data)})


def _tried(
    comparison: Comparison,
    recipe: Recipe,
    title: str,
    candidates: Sequence[Values],
    images: int,
    workers: int,
    spent: dict[Task, int],
) -> Rows:
    """Rows of one setting's candidates: their values, figures of both methods, passes, and the score they rank by.

    Candidates that differ in one space only share the other's cell: `spent` counts the passes of each cell once.
    """
    tasks: dict[int, list[Task]] = {}
    world = comparison.world
    names = ["loco"] + (["individual"] if world.denoiser.info.bottleneck_shape else [])
    for i, values in enumerate(candidates):
        world.recipe = changed(recipe, values)
        tasks[i] = [Task(name, base_settings(kind_of(name), world), "mine", 0, images) for name in names]
    world.recipe = recipe
    fill(comparison, [task for own in tasks.values() for task in own], workers, f"trying {title}")
    rows = []
    for i, values in enumerate(candidates):
        row: dict[str, Any] = {"setting": title, "values": values, "passes": 0, "score": 0.0, "roir": 0.0}
        for task in tasks[i]:
            cell = comparison.cell(task)
            figures = merit([r for r in cell.rows if r["kind"] == "home"])
            row |= {f"{task.method}: {name}": value for name, value in figures.items()}
            spent[task] = cell.passes + sum(_products(r) for r in cell.rows)
            row["passes"] += spent[task]
            row["score"] += rank_of(figures)[0]
            row["roir"] += figures["roir"]
        rows.append(row)
    return rows


def _products(row: Mapping[str, Any]) -> int:
    return sum(int(row.get(name, 0)) for name in ("jvp", "vjp", "backward"))


def _written(recipe: Recipe, best: Values, tried: Rows, images: int) -> str:
    """The best recipe as YAML, with what it did as a comment."""
    row = next((r for r in reversed(tried) if r["values"] == best), None)
    figures = {} if row is None else {k: round(v, 3) for k, v in row.items() if ": " in k}
    told = ", ".join(f"{name} {value}" for name, value in figures.items())
    data = _anchored(changed(recipe, best).model_dump(mode="json"), recipe)
    head = f"# Chosen by `rhumb evaluate --tune` on {images} images: {told or 'nothing was tried'}.\n"
    return head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def digest(tried: Rows, images: int) -> Rows:
    """What a report shows of the settings tried: their values in words and the figures of both methods."""
    rows: Rows = []
    for row in tried:
        values = [f"{name} {value}" for own in row["values"].values() for name, value in own.items()]
        figures = {name: round(value, 2) for name, value in row.items() if ": " in name}
        rows.append({"setting": row["setting"], "settings": ", ".join(values), "images": images, **figures})
    return rows


_PLACES = ("model", "reference", "path", "masks", "label_maps", "metadata", "template")


def _anchored(data: Any, recipe: Recipe, key: str = "") -> Any:
    """A recipe's content with relative paths made absolute, as the recipe that is written lies in another folder."""
    if isinstance(data, dict):
        return {name: _anchored(value, recipe, name) for name, value in data.items()}
    if not isinstance(data, str) or key not in _PLACES:
        return data
    place = recipe.resolve(data).absolute()
    there = place.exists() or "{" in data or any(place.parent.glob(place.name))
    return str(place) if there else data


def show(tuned: Tuned) -> None:
    """What was tried, for people."""
    names = [name for name in (tuned.tried[0] if tuned.tried else {}) if ": " in name]
    rows = [
        (row["setting"], json.dumps(row["values"]), *(f"{row[name]:.2f}" for name in names), row["passes"])
        for row in tuned.tried
    ]
    table("settings tried", ("setting", "values", *names, "passes"), rows)
    if not tuned.finished:
        say(f"the budget of {tuned.budget} passes was spent; a larger one goes on from here")
    say(f"{tuned.passes} passes -> {tuned.recipe}")
