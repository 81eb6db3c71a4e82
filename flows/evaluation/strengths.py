"""Edits at multiples of their visible strength: how success and locality fade, and how straight attributes follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.console import stage
from flows.evaluation.ablations import best_and_worst, draw_against, forward
from flows.evaluation.cells import Rows
from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.homes import TITLES, Home, Homes, apply_all, left_out, usable
from flows.evaluation.series import curve, measured, names, of, omissions, statistic, written
from flows.evaluation.trials import LEAST_MOVE, OTHER_LIMIT, ROIR_LIMIT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.methods.contract import Method, Subject

MULTIPLES, QUICK_MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5), (0.5, 1.0, 2.0)
BOTH_SIDES, QUICK_BOTH_SIDES = (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0), (-2.0, -1.0, 1.0, 2.0)
IMAGES = 12
SLACK = 0.02  # of a factor's range: a smaller step back is no change of direction


def rows_at(homes: Homes, method: Method, subject: Subject, edits: Sequence[Home], multiples: Sequence[float]) -> Rows:
    """A row per edit and multiple of its visible strength, compared with strength 0.

    `rms` inside the mask, `roir`; where attributes are read `move`, the signed change of the factor that moved most at
    visible strength, `other_move` of the most moved other one, and `success` with that factor and sign.
    Cost: a decode each, and one of strength 0.
    """
    import torch

    from pipeline.metrics import rms_inside, roir, success

    cases = [(home, edit, multiple) for home, edit in usable(edits) for multiple in multiples]
    if not cases:
        return []
    strengths = [0.0, *(multiple * edit.guess for _, edit, multiple in cases)]
    pictures = apply_all(method, subject, [cases[0][1], *(edit for _, edit, _ in cases)], strengths)
    before, after = pictures[:1].expand_as(pictures[1:]), pictures[1:]
    masks = torch.stack([subject.masks[home.region] for home, _, _ in cases])
    changes, ratios = rms_inside(after - before, masks), roir(before, after, masks)
    readings = homes.world.read(pictures)
    rows = []
    for i, (home, _, multiple) in enumerate(cases):
        row: dict[str, Any] = {"image": subject.name, "region": home.region, "method": method.name}
        row |= {"multiple": multiple, "strength": strengths[i + 1]}
        row |= {"rms": float(changes[i]), "roir": float(ratios[i])}
        if home.verdict is not None:
            verdict = success(
                readings[0],
                readings[i + 1],
                homes.world.factors(home.region),
                row["roir"],
                like=home.verdict,
                least_move=LEAST_MOVE,
                other_limit=OTHER_LIMIT,
                roir_limit=ROIR_LIMIT,
            )
            row |= {"success": verdict.success, "factor": verdict.factor, "move": verdict.move}
            row |= {"other": verdict.other, "other_move": verdict.other_move}
            row["rises"] = home.verdict.move > 0
        rows.append(row)
    return rows


def _all_rows(setup: Setup, experiment: str, images: int, multiples: Sequence[float], *, factors: bool = False) -> Rows:
    """Cells of one image and method. `factors`: only edits of regions whose attributes are read."""
    homes = Homes(setup, images)
    rows: Rows = homes.left_out()
    with stage("edits at several strengths", len(homes.images) * len(homes.methods)) as advance:
        for image in homes.images:
            for name in homes.methods:
                method = homes.method(name)
                edits = [home for home in homes.get(method, image) if home.verdict is not None or not factors]
                subject = homes.subject(method, image)
                key = {**homes.key(method, image), "multiples": multiples}
                rows += _cell(setup, experiment, key, homes, method, subject, edits)
                advance(1, TITLES[name])
    return rows + homes.refusals() + homes.limits()


def _cell(
    setup: Setup,
    experiment: str,
    key: dict[str, Any],
    homes: Homes,
    method: Method,
    subject: Subject,
    edits: Sequence[Home],
) -> Rows:
    return setup.cells.get(experiment, key, lambda: rows_at(homes, method, subject, edits, key["multiples"])).rows


def _measure_ablation(setup: Setup) -> Rows:
    return _all_rows(setup, "ablation-strength", IMAGES, QUICK_MULTIPLES if setup.quick else MULTIPLES)


def _draw_ablation(rows: Rows) -> dict[str, Figure]:
    return {"ablation-strength": draw_against(rows, "multiple", "strength / visible strength")}


def _conclude_ablation(rows: Rows) -> list[str]:
    return best_and_worst(measured(rows), "multiple", "{} times the visible strength") + omissions(rows)


# --- attributes along a line --------------------------------------------------------------------------------------


def _measure_lines(setup: Setup) -> Rows:
    if setup.world.reader is None:
        return [left_out("the whole figure", "nothing reads the attributes of these pictures")]
    multiples = QUICK_BOTH_SIDES if setup.quick else BOTH_SIDES
    return _all_rows(setup, "attribute-linearity", IMAGES, multiples, factors=True)


def fits(rows: Rows) -> Rows:
    """How straight the own attribute of each edit follows its strength: one row per edit of `rows_at`.

    `r2` and `slope` (range of the factor per visible strength, its sign that of the edit) are of the least-squares line
    with intercept through the changes, 0 at strength 0; NaN where nothing moved. `agreement`: the weaker over the
    stronger of the slopes through the origin on either side, 1 for a straight line and negative where it bends back.
    `monotone`: no step back of more than `SLACK`. `moves`: the attribute moves by `LEAST_MOVE` or more at visible
    strength; of one that hardly moves, none of these says anything.
    """
    found = []
    for image, region, method in dict.fromkeys((row["image"], row["region"], row["method"]) for row in rows):
        own = of(rows, image=image, region=region, method=method)
        points = sorted([(row["multiple"], forward(row) or 0.0) for row in own] + [(0.0, 0.0)])
        x, y = np.array(points).T
        slope, start = np.polyfit(x, y, 1)
        spread = float(((y - y.mean()) ** 2).sum())
        left, right = (float((x[side] * y[side]).sum() / (x[side] ** 2).sum()) for side in (x < 0, x > 0))
        weak, strong = sorted((left, right), key=abs)
        found.append(
            {
                "image": image,
                "region": region,
                "method": method,
                "slope": float(slope),
                "r2": 1.0 - float(((y - start - slope * x) ** 2).sum()) / spread if spread > 0 else float("nan"),
                "agreement": weak / strong if strong else float("nan"),
                "monotone": bool((np.diff(y) >= -SLACK).all()),
                "moves": bool(dict(points).get(1.0, 0.0) >= LEAST_MOVE),
            }
        )
    return found


def _draw_lines(rows: Rows) -> dict[str, Figure]:
    from flows.evaluation.plots import COLOURS, DASHES, label, lines, panels, split
    from flows.evaluation.sheets import same_heights

    found = measured(rows)
    if not found:
        return {}
    methods, straight = names(found, "method"), fits(found)
    shown = [(m, part) for m in methods for part in split(names(of(found, method=m), "region"))]
    figure, axes = panels(len(shown) + 1)
    for ax, (method, regions) in zip(axes, shown, strict=False):
        own = of(found, method=method)
        zero = [{**row, "multiple": 0.0, "move": 0.0} for row in own]
        lines(ax, {r: curve(of(own + zero, region=r), "multiple", forward) for r in regions})
        label(ax, TITLES[method], "strength / visible strength", "change of own attribute (share of range)")
    same_heights(axes[:-1])
    for i, method in enumerate(methods):
        values = np.sort([row["r2"] for row in of(straight, method=method, moves=True)])
        if len(values) == 0:
            continue
        shares = np.arange(1, len(values) + 1) / len(values)
        style = {"color": COLOURS[i], "linestyle": DASHES[i], "linewidth": 1.3}
        axes[-1].step([0.0, *values, 1.0], [0.0, *shares, 1.0], where="post", label=TITLES[method], **style)
    label(axes[-1], "straightness", "$R^2$ of a straight line, edits that move", "share of edits with at most this")
    axes[-1].set_xlim(0, 1.02)
    if axes[-1].get_lines():
        axes[-1].legend(fontsize=7, frameon=False, loc="upper left")
    return {"attribute-linearity": figure}


def _conclude_lines(rows: Rows) -> list[str]:
    straight = fits(measured(rows))
    sentences = []
    for method in names(straight, "method"):
        own = of(straight, method=method)
        sure = of(own, moves=True)
        head = f"{TITLES[method]}: {len(sure)} of {len(own)} edits move their own attribute by {LEAST_MOVE:g} or more"
        if not sure:
            sentences.append(f"{head} at visible strength.")
            continue
        r2, agreement = statistic(sure, "r2"), statistic(sure, "agreement")
        reach = max(row["multiple"] for row in of(rows, method=method))
        sentences.append(
            f"{head} at visible strength. Of these, from {-reach:g} to {reach:g} visible strengths, a straight line "
            f"explains the attribute with a median R^2 of {written(r2)}; the weaker side has {written(agreement)} of "
            f"the stronger side's slope, and {written(statistic(sure, 'monotone', 'mean'))} are monotone."
        )
    return sentences + omissions(rows)


ABLATION_STRENGTH = Experiment(
    name="ablation-strength",
    title="Edits against their strength",
    source="LOCO Edit's ablation of the editing strength, in units of the strength at which an edit becomes visible",
    measure=_measure_ablation,
    draw=_draw_ablation,
    conclude=_conclude_ablation,
)
ATTRIBUTE_LINEARITY = Experiment(
    name="attribute-linearity",
    title="The measured attribute against strength",
    source="LOCO Edit, figure 1d (linearity), with the attribute read in the place of pictures",
    measure=_measure_lines,
    draw=_draw_lines,
    conclude=_conclude_lines,
)
