"""5 x 5 grids along two directions of one image: pictures, and what each axis does to the attribute of the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.datasets.contract import SourceImage
from flows.evaluation.cells import Rows
from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.homes import SHOWN, TITLES, Home, Homes, apply_all, combined, usable
from flows.evaluation.series import curve, measured, names, of, omissions, statistic, written
from flows.evaluation.trials import LEAST_MOVE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = 4
WEIGHTS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def _measure(setup: Setup) -> Rows:
    homes = Homes(setup, IMAGES)
    return (
        homes.left_out()
        + homes.gathered(
            "grids of two edits",
            lambda name, i, image: _image_rows(homes, name, image, shown=i < SHOWN),
            "no image has two regions with edits",
        )
        + homes.limits()
    )


def _image_rows(homes: Homes, name: str, image: SourceImage, *, shown: bool) -> Rows:
    """One row per grid: edits far apart in the recipe's order make a pair, each edit in one grid at most."""
    method = homes.method(name)
    edits = [home for home, _ in usable(homes.get(method, image))]
    half = len(edits) // 2

    def make() -> Rows:
        return [_grid(homes, name, image, (edits[i], edits[i + half]), shown) for i in range(half)]

    key = {**homes.key(method, image), "shown": shown, "weights": WEIGHTS}
    return homes.setup.cells.get("grids", key, make).rows if half else []


def _grid(homes: Homes, name: str, image: SourceImage, axes: tuple[Home, Home], shown: bool) -> dict[str, Any]:
    """Kouzelis et al. 2024, appendix B.3: every pair of weights, the first edit's down and the second's across.

    `readings`: for each axis the 5 x 5 readings of its own factor. Cost: 25 decodes.
    """
    from flows.evaluation.pictures import encoded

    method = homes.method(name)
    sums = [combined(axes, (down, across)) for down in WEIGHTS for across in WEIGHTS]
    pictures = apply_all(method, homes.subject(method, image), [edit for edit, _ in sums], [size for _, size in sums])
    row: dict[str, Any] = {"image": image.image_id, "method": name, "of": [home.region for home in axes]}
    verdicts = [home.verdict for home in axes if home.verdict is not None]
    if len(verdicts) == len(axes):
        read, side = homes.world.read(pictures), len(WEIGHTS)
        row["factors"] = [verdict.factor for verdict in verdicts]
        row["rises"] = [verdict.move > 0 for verdict in verdicts]
        row["readings"] = [
            [[read[side * i + j][factor] for j in range(side)] for i in range(side)] for factor in row["factors"]
        ]
    if shown:
        row["pictures"] = [encoded(picture) for picture in pictures]
    return row


def shares(readings: Sequence[Sequence[float]], axis: int) -> dict[str, float]:
    """How much of the variance of a factor over a grid its own axis (0 down, 1 across) makes by itself, how much the
    other, and how much only both together; NaN where nothing moves."""
    grid = np.asarray(readings, dtype=float)
    grid = grid if axis == 0 else grid.T
    grid = grid - grid.mean()
    total = float((grid**2).sum())
    if total == 0:
        return dict.fromkeys(("own", "other", "both"), float("nan"))
    own, other = (float((grid.mean(1 - a) ** 2).sum()) * grid.shape[1 - a] / total for a in (0, 1))
    return {"own": own, "other": other, "both": 1.0 - own - other}


def _axes_of(rows: Rows) -> Rows:
    """A row per axis of each grid with readings: method, region, factor, its shares, and its readings, own axis down
    and turned so that the factor rises where its edit raises it.

    `moves`: by itself the edit moves its factor by `LEAST_MOVE` or more; of one that hardly moves, shares say nothing.
    """
    found = []
    for row in rows:
        for axis, readings in enumerate(row.get("readings", [])):
            grid = np.asarray(readings, dtype=float)
            grid = (grid if axis == 0 else grid.T) - grid[len(WEIGHTS) // 2, len(WEIGHTS) // 2]
            head = {"image": row["image"], "method": row["method"], "region": row["of"][axis]}
            turned = grid if row["rises"][axis] else -grid
            moves = bool(turned[-1, len(WEIGHTS) // 2] >= LEAST_MOVE)
            found.append(
                {**head, "factor": row["factors"][axis], "turned": turned, "moves": moves, **shares(readings, axis)}
            )
    return found


def _draw(rows: Rows) -> dict[str, Figure]:
    from flows.evaluation.plots import label, lines, panels
    from flows.evaluation.sheets import same_heights, sheet

    drawn: dict[str, Figure] = {}
    for row in measured(rows):
        if "pictures" not in row:
            continue
        side = len(WEIGHTS)
        captions = [[_caption(row, i, j) for j in range(side)] for i in range(side)] if "readings" in row else ()
        drawn[f"grid-{len(drawn) + 1}"] = sheet(
            [row["pictures"][side * i : side * (i + 1)] for i in range(side)],
            rows=[f"{row['of'][0]}\n{_signed(weight)}" for weight in WEIGHTS],
            columns=[f"{row['of'][1]} {_signed(weight)}" for weight in WEIGHTS],
            captions=captions,
            title=f"{TITLES[row['method']]}, times the visible strength",
        )
    axes_of = of(_axes_of(measured(rows)), moves=True)
    if not axes_of:
        return drawn
    methods = names(axes_of, "method")
    figure, axes = panels(len(methods))
    for ax, method in zip(axes, methods, strict=True):
        points = [
            {"image": one["image"], "own": own, "other": other, "move": float(one["turned"][i, j])}
            for one in of(axes_of, method=method)
            for i, own in enumerate(WEIGHTS)
            for j, other in enumerate(WEIGHTS)
        ]
        by_other = {f"other edit at {_signed(w)}": of(points, other=w) for w in WEIGHTS}
        lines(ax, {name: [p[:2] for p in curve(part, "own", "move")] for name, part in by_other.items()})
        label(ax, TITLES[method], "own edit / visible strength", "median change of own attribute")
    same_heights(axes)
    return {**drawn, "grids": figure}


def _signed(weight: float) -> str:
    return f"{weight:+g}" if weight else "0"


def _caption(row: dict[str, Any], i: int, j: int) -> str:
    return "\n".join(
        f"{factor} {readings[i][j]:.2f}" for factor, readings in zip(row["factors"], row["readings"], strict=True)
    )


def _conclude(rows: Rows) -> list[str]:
    found = _axes_of(measured(rows))
    sentences = []
    for method in names(found, "method"):
        every = of(found, method=method)
        own = of(every, moves=True)
        head = f"{TITLES[method]}: {len(own)} of {len(every)} edits move their own attribute by {LEAST_MOVE:g} or more"
        if not own:
            sentences.append(f"{head} in their grid.")
            continue
        figures = {name: statistic(own, name) for name in ("own", "other", "both")}
        sentences.append(
            f"{head} in their grid. Of these, a median share of {written(figures['own'])} of the attribute's variance "
            f"comes from its own edit, {written(figures['other'])} from the other region's, and "
            f"{written(figures['both'])} only from both (images: {len(names(own, 'image'))})."
        )
    return sentences + omissions(rows)


GRIDS = Experiment(
    name="grids",
    title="Interpolation between two directions",
    source="Kouzelis et al. 2024, appendix B.3, figure 4, with the attributes of both axes read at every point",
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
