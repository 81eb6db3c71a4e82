"""The papers' ablations of the timestep, measured: whole figures against t, and the pictures that t makes.

Edits are those of `homes`: a region's first direction on its own held-out image, better sign. What all ablations draw
and say about one setting is here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.console import stage
from flows.datasets.contract import SourceImage
from flows.evaluation.cells import Rows
from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.homes import SHOWN, TITLES, Homes
from flows.evaluation.series import (
    Curve,
    Kind,
    Value,
    are_read,
    curve,
    listed,
    measured,
    names,
    of,
    omissions,
    size,
    statistic,
    succeeded,
    written,
)
from flows.evaluation.trials import LEAST_MOVE, OTHER_LIMIT, ROIR_LIMIT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMESTEPS, QUICK_TIMESTEPS = (0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), (0.2, 0.4)
IMAGES = 10


def _measure(setup: Setup) -> Rows:
    """Edits at home at every timestep: rows of `homes.trial_rows` with `method` and `timestep`, a fraction of T."""
    homes = Homes(setup, IMAGES)
    return [{k: v for k, v in row.items() if k != "pictures"} for row in _rows(homes, homes.images)] + homes.left_out()


def _measure_shown(setup: Setup) -> Rows:
    """The same on the images whose pictures are kept: cells of one experiment serve the other."""
    homes = Homes(setup, IMAGES)
    return _rows(homes, homes.images[:SHOWN]) + homes.left_out()


def _rows(homes: Homes, images: Sequence[SourceImage]) -> Rows:
    timesteps = QUICK_TIMESTEPS if homes.setup.quick else TIMESTEPS
    rows: Rows = []
    with stage("edits at several timesteps", len(timesteps) * len(images) * len(homes.methods)) as advance:
        for image in images:
            for at in timesteps:
                for name in homes.methods:
                    edits = homes.get(homes.method(name, at), image)
                    rows += [{**home.row, "method": name, "timestep": at} for home in edits]
                    advance(1, f"t = {at:g} T")
    return rows


def draw_against(rows: Rows, x: str, x_name: str) -> Figure:
    """Success, ROIR and changes of attributes against one setting, a line per method with 95 % bands."""
    from flows.evaluation.plots import SIZE, label, lines, panels

    rows, read = measured(rows), are_read(rows)
    figure, axes = panels(4 if read else 1, columns=2)

    def by_method(panel: int, title: str, y: str, points: dict[str, Curve], limit: float | None) -> None:
        ax = axes[panel]
        lines(ax, points)
        if limit is not None:
            ax.axhline(limit, color="#666666", linewidth=0.8, linestyle=(0, (1, 1)))
        label(ax, title, x_name, y)
        ax.set_ylim(bottom=0)
        legend = ax.get_legend()
        if panel and legend is not None:
            legend.remove()

    def lines_of(value: Value, kind: Kind = "median") -> dict[str, Curve]:
        return {TITLES[m]: curve(of(rows, method=m), x, value, kind) for m in names(rows, "method")}

    by_method(0, "locality", "median ROIR (smaller is more local)", lines_of("roir"), ROIR_LIMIT)
    if read:
        by_method(1, "local edit success", "share of edits", lines_of(succeeded, "mean"), None)
        axes[1].set_ylim(0, 1.05)
        by_method(2, "the region's own attribute", "median change (share of range)", lines_of(forward), LEAST_MOVE)
        other = lines_of(size("other_move"))
        by_method(3, "most moved other attribute", "median change (share of range)", other, OTHER_LIMIT)
    figure.supxlabel("bands: 95 % intervals over images; dotted: the limits that a success keeps", fontsize=SIZE - 2)
    return figure


def forward(row: Mapping[str, Any]) -> float | None:
    """How far an own attribute moves the way it moves at visible strength (`rises`), or its own way.

    0 for an edit that was refused, None where nothing reads the region's attributes.
    """
    if "move" not in row:
        return 0.0 if "success" in row else None
    move = float(row["move"])
    return move if row.get("rises", move > 0) else -move


def best_and_worst(rows: Rows, x: str, written_x: str) -> list[str]:
    """For every method, where success is highest and ROIR lowest, and where it is highest.

    `written_x` holds a place {} for values of `x`.
    """
    sentences = []
    for method in names(rows, "method"):
        own = of(rows, method=method)
        points = {at: of(own, **{x: at}) for at in sorted({row[x] for row in own})}
        ratios = {at: statistic(part, "roir") for at, part in points.items()}
        low, high = (end(ratios, key=lambda at: ratios[at].estimate) for end in (min, max))
        ends = [f"{written_x.format(f'{at:g}')}, {written(ratios[at])}" for at in (low, high)]
        text = f"{TITLES[method]}: the median ROIR is lowest at {ends[0]}, and highest at {ends[1]}"
        if len(ratios) == 1:
            text = f"{TITLES[method]}: the median ROIR at {written_x.format(f'{low:g}')} is {written(ratios[low])}"
        elif ratios[low].estimate == ratios[high].estimate:
            text = f"{TITLES[method]}: the median ROIR is {ratios[low].estimate:.2f} at all {len(ratios)} points"
        text += _most_succeed(points, written_x) if are_read(own) else ""
        edits = min(found.count for found in ratios.values())
        sentences.append(f"{text}. Edits at each point: {edits} or more; images: {len(names(own, 'image'))}.")
    return sentences


def _most_succeed(points: Mapping[float, Rows], written_x: str) -> str:
    """Where success is highest, of the edits of regions whose attributes are read."""
    shares = {at: statistic(part, succeeded, "mean") for at, part in points.items()}
    shares = {at: share for at, share in shares.items() if share.count}
    top = max(share.estimate for share in shares.values())
    best = [at for at, share in shares.items() if share.estimate == top]
    few = any(share.count < len(points[at]) for at, share in shares.items())
    of_them = "of those whose attributes are read" if few else "of them"
    if top == 0:
        return f"; no edit succeeds{' where attributes are read' if few else ''}"
    if len(best) == len(shares):
        return f"; {written(shares[best[0]])} {of_them} succeed{' at each point' if len(best) > 1 else ''}"
    places = written_x.format(listed(f"{at:g}" for at in best))
    return f"; most edits succeed at {places}, {written(shares[best[0]])} {of_them}"


def _draw(rows: Rows) -> dict[str, Figure]:
    return {"ablation-timestep": draw_against(rows, "timestep", "timestep / T")}


def _conclude(rows: Rows) -> list[str]:
    return best_and_worst(measured(rows), "timestep", "{} T") + omissions(rows)


def _draw_shown(rows: Rows) -> dict[str, Figure]:
    from flows.evaluation.plots import label, lines, panels, split
    from flows.evaluation.sheets import sheet

    found = measured(rows)
    timesteps = sorted(names(found, "timestep"))
    drawn = {}
    for i, image in enumerate(names(found, "image")):
        own = of(found, image=image)
        kinds = [(region, m) for region in names(own, "region") for m in names(own, "method")]
        cells = [[of(own, region=r, method=m, timestep=at) for at in timesteps] for r, m in kinds]
        pictures = [[_picture(one, 0) for one in cells[0]]] + [[_picture(one, 1) for one in row] for row in cells]
        captions = [[""] * len(timesteps)] + [[_caption(one) for one in row] for row in cells]
        drawn[f"timesteps-{i + 1}"] = sheet(
            pictures,
            rows=["reconstruction", *(f"{region}\n{TITLES[m]}" for region, m in kinds)],
            columns=[f"t = {at:g} T" for at in timesteps],
            captions=captions,
        )
    shown = [(m, part) for m in names(found, "method") for part in split(names(of(found, method=m), "region"))]
    figure, axes = panels(len(shown))
    for ax, (method, regions) in zip(axes, shown, strict=True):
        own = of(found, method=method)
        lines(ax, {region: curve(of(own, region=region), "timestep", "roir") for region in regions})
        label(ax, TITLES[method], "timestep / T", "median ROIR of the sheets' edits")
        ax.set_ylim(bottom=0)
    return {**drawn, "timesteps-roir": figure}


def _picture(rows: Rows, which: int) -> str | None:
    """Before (0) or after (1) of the one row of an edit; None where it was refused or is not there."""
    return str(rows[0]["pictures"][which]) if rows and "pictures" in rows[0] else None


def _caption(rows: Rows) -> str:
    if not rows or "strength" not in rows[0]:
        return "refused" if rows else ""
    row = rows[0]
    moved = f"\n{row['factor']} {row['move']:+.2f}" if "move" in row else ""
    return f"ROIR {row['roir']:.2f}{moved}"


def _conclude_shown(rows: Rows) -> list[str]:
    found = measured(rows)
    sentences = []
    for method in names(found, "method"):
        own = of(found, method=method)
        edits = {(row["image"], row["region"]) for row in own}
        local = [all(row["roir"] <= ROIR_LIMIT for row in of(own, image=i, region=r)) for i, r in edits]
        text = f"{TITLES[method]}: of {len(edits)} edits, {sum(local)} keep an ROIR of at most {ROIR_LIMIT:g} at every "
        text += f"timestep from {min(names(own, 'timestep')):g} T to {max(names(own, 'timestep')):g} T"
        if are_read(own):
            read = [part for part in (of(own, image=i, region=r) for i, r in edits) if "success" in part[0]]
            same = sum(len({row.get("factor") for row in part}) == 1 and "factor" in part[0] for part in read)
            few = f" of the {len(read)} whose attributes are read" if len(read) < len(edits) else ""
            text += f"; {same}{few} move the same attribute most at all of them"
        sentences.append(f"{text}.")
    return sentences + omissions(rows)


ABLATION_TIMESTEP = Experiment(
    name="ablation-timestep",
    title="Edits against the timestep at which they are found and applied",
    source=(
        "Ablations of LOCO Edit and of Kouzelis et al. over t, at visible strength on held-out images; attributes are "
        "read in the place of looking at pictures"
    ),
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
TIMESTEP_PICTURES = Experiment(
    name="timesteps",
    title="The same region's first direction from different timesteps",
    source="Kouzelis et al. 2024, appendix B.2 (edits from different timesteps), with both papers' methods",
    measure=_measure_shown,
    draw=_draw_shown,
    conclude=_conclude_shown,
)
