"""Edits where they were not made for: on the faces of another style, and at other timesteps.

Edits are those of `homes`; they are tried as `transfers` tries them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.console import stage
from flows.datasets.builtin import BuiltinDataset
from flows.datasets.contract import SourceImage
from flows.evaluation.cells import Rows, digest
from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.homes import TITLES, WAYS, Homes, left_out, usable
from flows.evaluation.method_run import OVERLAP, chosen_targets
from flows.evaluation.series import (
    Value,
    are_read,
    measured,
    names,
    of,
    omissions,
    statistic,
    succeeded,
    success_told,
    written,
)
from flows.evaluation.transfers import Pair, transfer_rows
from flows.evaluation.trials import ROIR_LIMIT, Case, run_trials
from pipeline.faces.render import STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TIMESTEPS, QUICK_TIMESTEPS, TIME_IMAGES = (0.2, 0.3, 0.4, 0.5, 0.6), (0.3, 0.4), 5  # among those of `ablations`


@dataclass(frozen=True)
class Size:
    """Of each style: images that edits come from, images to draw targets from; targets of each edit and style."""

    homes: int = 6
    pool: int = 30
    others: int = 2


QUICK = Size(1, 6, 1)


def draw_matrix(ax: Axes, found: dict[tuple[Any, Any], float], form: str, largest: float) -> None:
    """Numbers by (row, column), dark for 0 and light from `largest` on, each written on its square."""
    from flows.evaluation.plots import SIZE

    down, across = (sorted({key[i] for key in found}) for i in (0, 1))
    values = np.array([[found.get((row, column), np.nan) for column in across] for row in down], dtype=float)
    ax.imshow(np.clip(values, 0, largest), cmap="cividis", vmin=0, vmax=largest, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if value < largest / 2 else "black"
            ax.text(j, i, f"{value:{form}}", ha="center", va="center", fontsize=SIZE, color=colour)
    ax.set_xticks(range(len(across)), [_name(one) for one in across], fontsize=SIZE)
    ax.set_yticks(range(len(down)), [_name(one) for one in down], fontsize=SIZE)
    ax.grid(visible=False)


def _name(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _by(rows: Rows, down: str, across: str, value: Value, kind: Any) -> dict[tuple[Any, Any], float]:
    return {
        (row, column): statistic(of(rows, **{down: row, across: column}), value, kind).estimate
        for row in sorted(names(rows, down))
        for column in sorted(names(rows, across))
        if of(rows, **{down: row, across: column})
    }


def _matrices(rows: Rows, down: tuple[str, str], across: tuple[str, str], parts: dict[str, Rows]) -> Figure:
    """A row of panels per part: success, where it is read, and median ROIR. `down`, `across`: column and axis name."""
    from flows.evaluation.plots import label, panels

    shown: list[tuple[str, Value, Any, float]] = [("median ROIR", "roir", "median", 2 * ROIR_LIMIT)]
    if are_read(rows):
        shown.insert(0, ("success", succeeded, "mean", 1.0))
    figure, axes = panels(len(parts) * len(shown), columns=len(shown))
    for i, (name, own) in enumerate(parts.items()):
        for j, (title, value, kind, largest) in enumerate(shown):
            ax = axes[i * len(shown) + j]
            draw_matrix(ax, _by(own, down[0], across[0], value, kind), ".2f", largest)
            label(ax, f"{name}: {title}", across[1], down[1])
    return figure


# --- styles -------------------------------------------------------------------------------------------------------


def _measure_styles(setup: Setup) -> Rows:
    """Rows of `transfer_rows` with the styles `from` and `to`, on images whose masks overlap by half."""
    if not isinstance(setup.world.recipe.dataset, BuiltinDataset):
        return [left_out("the whole figure", "only the built-in data has the same regions in two styles")]
    wanted = QUICK if setup.quick else Size()
    homes = Homes(setup, wanted.homes)
    pools = {style: setup.world.images("holdout", wanted.pool, name=style) for style in STYLES}
    rows: Rows = homes.left_out()
    with stage("edits on images of another style", len(STYLES) * wanted.homes * len(homes.methods)) as advance:
        for style in STYLES:
            for i, image in enumerate(pools[style][: len(homes.images)]):
                for name in homes.methods:
                    for to, pool in pools.items():
                        own = _style_rows(homes, name, image, pool, wanted.others, shown=i == 0 and style != to)
                        rows += [{**row, "from": style, "to": to} for row in own]
                    advance(1, TITLES[name])
    if not measured(rows):
        rows.append(left_out("the whole figure", "no two images have regions that overlap by half"))
    images = [image for pool in pools.values() for image in pool[: len(homes.images)]]
    return rows + homes.refusals(images)


def _style_rows(
    homes: Homes, name: str, image: SourceImage, pool: Sequence[SourceImage], others: int, *, shown: bool
) -> Rows:
    method = homes.method(name)
    edits = usable(homes.get(method, image))

    def make() -> Rows:
        source = homes.subject(method, image)
        targets = homes.world.subjects(pool, method.timestep, method.settings.inversion_steps)
        pairs = [
            Pair(home, edit, source, target)
            for home, edit in edits
            for target in chosen_targets(source, home.region, targets, others)
        ]
        first = {pair.home.region: pair for pair in reversed(pairs)}
        return transfer_rows(homes, method, pairs, shown=list(first.values()) if shown else ())

    ids = digest(homes.world.key(pool))
    key = {**homes.key(method, image), "pool": ids, "others": others, "overlap": OVERLAP, "shown": shown}
    return homes.setup.cells.get("transfer-style", key, make).rows


def _draw_styles(rows: Rows) -> dict[str, Figure]:
    from flows.evaluation.sheets import sheet

    found = measured(rows)
    if not found:
        return {}
    parts = {
        f"{TITLES[m]}, {WAYS[moved]}": of(found, method=m, moved=moved)
        for m in names(found, "method")
        for moved in WAYS
    }
    drawn = {"transfer-style": _matrices(found, ("from", "found on"), ("to", "applied to"), parts)}
    for method in names(found, "method"):
        own = [row for row in of(found, method=method, moved=True) if "pictures" in row]
        ways, regions = list(dict.fromkeys((row["from"], row["to"]) for row in own)), names(own, "region")
        cells = [[one for way in ways for one in _shown(own, region, way)] for region in regions]
        if cells:
            drawn[f"transfer-style-{method}"] = sheet(
                [[picture for picture, _ in row] for row in cells],
                rows=regions,
                columns=[text for way in ways for text in (f"{way[1]}", f"edit of {way[0]}")],
                captions=[[caption for _, caption in row] for row in cells],
                title=f"{TITLES[method]}, moved there",
            )
    return drawn


def _shown(rows: Rows, region: str, way: tuple[str, str]) -> list[tuple[str | None, str]]:
    """Before and after with captions."""
    own = of(rows, region=region, **{"from": way[0], "to": way[1]})
    if not own:
        return [(None, ""), (None, "")]
    row = own[0]
    moved = f"\n{row['factor']} {row['move']:+.2f}" if "move" in row else ""
    return [(row["pictures"][0], ""), (row["pictures"][1], f"ROIR {row['roir']:.2f}{moved}")]


def _conclude_styles(rows: Rows) -> list[str]:
    found = measured(rows)
    sentences = []
    for method in names(found, "method"):
        texts = []
        for style in names(found, "from"):
            for to in names(found, "to"):
                own = of(found, method=method, to=to, moved=True, **{"from": style})
                if own:
                    success = f"{success_told(own)}, " if are_read(own) else ""
                    ratio = written(statistic(own, "roir"))
                    texts.append(f"{style} to {to} {success}median ROIR {ratio} ({len(own)} edits)")
        if texts:
            sentences.append(f"{TITLES[method]}, moved there: {'; '.join(texts)}.")
    return sentences + omissions(rows)


# --- timesteps ----------------------------------------------------------------------------------------------------


def _measure_times(setup: Setup) -> Rows:
    """One row per edit, timestep where it was `found` and timestep where it is `applied` (fractions of T): its trial on
    its own image, judged by the factor and sign it has where it was found."""
    homes, timesteps = Homes(setup, TIME_IMAGES), QUICK_TIMESTEPS if setup.quick else TIMESTEPS
    rows: Rows = homes.left_out()
    with stage("edits at other timesteps", len(homes.images) * len(homes.methods) * len(timesteps)) as advance:
        for image in homes.images:
            for name in homes.methods:
                for at in timesteps:
                    rows += _time_rows(homes, name, image, at, timesteps)
                    advance(1, f"t = {at:g} T")
    if not measured(rows):
        rows.append(left_out("the whole figure", "no image has an edit"))
    return rows + homes.refusals(shares=timesteps)


def _time_rows(homes: Homes, name: str, image: SourceImage, at: float, timesteps: Sequence[float]) -> Rows:
    """An edit is added to x_t, or to h from t on down, of another t; where t is its own its home row is taken."""
    method = homes.method(name, at)
    edits = homes.get(method, image)

    def make() -> Rows:
        rows: Rows = []
        for other in timesteps:
            target = homes.method(name, other)
            subject = homes.subject(target, image)
            cases = [Case(edit, subject, like=home.verdict) for home, edit in usable(edits)]
            tried = usable(edits)
            if other == at:
                tried_rows = [{k: v for k, v in home.row.items() if k != "pictures"} for home, _ in tried]
            else:
                tried_rows = [trial.row() for trial in run_trials(homes.world, target, cases)]
            for (home, _), row in zip(tried, tried_rows, strict=True):
                head = {"image": image.image_id, "method": name, "region": home.region, "found": at, "applied": other}
                rows.append({**row, **head, "home_success": home.row.get("success")})
        return rows

    key = {**homes.key(method, image), "timesteps": timesteps}
    return homes.setup.cells.get("transfer-time", key, make).rows


def _draw_times(rows: Rows) -> dict[str, Figure]:
    found = measured(rows)
    if not found:
        return {}
    parts = {TITLES[method]: of(found, method=method) for method in names(found, "method")}
    return {"transfer-time": _matrices(found, ("found", "found at t / T"), ("applied", "applied at t / T"), parts)}


def _conclude_times(rows: Rows) -> list[str]:
    found = measured(rows)
    sentences = []
    for method in names(found, "method"):
        own = of(found, method=method)
        parts = {
            "at the timestep they were found at": [row for row in own if row["found"] == row["applied"]],
            "at an earlier point of denoising (larger t)": [row for row in own if row["applied"] > row["found"]],
            "at a later one (smaller t)": [row for row in own if row["applied"] < row["found"]],
        }
        texts = []
        for where, part in parts.items():
            if part:
                success = f"{success_told(part)}, " if are_read(part) else ""
                texts.append(f"{where} {success}median ROIR {written(statistic(part, 'roir'))}")
        sentences.append(f"{TITLES[method]}, edits {'; '.join(texts)}. Images: {len(names(own, 'image'))}.")
    return sentences + omissions(rows)


TRANSFER_STYLE = Experiment(
    name="transfer-style",
    title="Transfer between styles",
    source=(
        "LOCO Edit's transfer between data sets: the built-in faces and paintings share regions and attributes, so "
        "that success can be read in both; masks overlap by half or more"
    ),
    measure=_measure_styles,
    draw=_draw_styles,
    conclude=_conclude_styles,
)
TRANSFER_TIME = Experiment(
    name="transfer-time",
    title="Directions at other timesteps than their own",
    source=(
        "LOCO Edit, figure 1b (transfer between noise levels): a direction found at t is added at another t, at the "
        "strength that is visible there, on its own image"
    ),
    measure=_measure_times,
    draw=_draw_times,
    conclude=_conclude_times,
)
