"""Edits on other images of the same data set: success against how far the regions overlap, and against pose.

Edits are those of `homes`. On the other image each is tried as it is and moved to where that image has the region, at
the strength that is visible there, with the sign, and judged by the factor, of home.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.datasets.contract import SourceImage
from flows.evaluation.ceiling import perfect_bound, truth_of
from flows.evaluation.cells import Rows, digest
from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.homes import TITLES, WAYS, Home, Homes, left_out, usable
from flows.evaluation.homogeneity import there
from flows.evaluation.method_run import OVERLAP
from flows.evaluation.pictures import encoded
from flows.evaluation.series import (
    Curve,
    Kind,
    Value,
    are_read,
    curve,
    measured,
    names,
    of,
    omissions,
    statistic,
    succeeded,
    success_told,
    written,
)
from flows.evaluation.trials import ROIR_LIMIT, Case, run_trials
from pipeline.methods.contract import Found, Method, Subject
from pipeline.metrics import mask_iou

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of mask IoU, and of differences of factors
POSE = ("position_x", "position_y", "face_size")
NEAR, FAR = 0.2, 0.6  # differences of a factor below and above which pairs are told apart in sentences


@dataclass(frozen=True)
class Size:
    """Images that edits come from, images to draw targets from, and targets of each edit per bin of IoU."""

    homes: int = 10
    pool: int = 60
    per_bin: int = 1


QUICK = Size(1, 6)


@dataclass(frozen=True)
class Pair:
    """An edit with the image it was found on, and another image."""

    home: Home
    edit: Found
    source: Subject
    target: Subject


def spread_targets(home: Subject, region: str, pool: Sequence[Subject], per_bin: int) -> list[Subject]:
    """Other images, up to `per_bin` of each bin of mask IoU with home, drawn by the names."""
    drawn: list[Subject] = []
    near = [subject for subject in pool if subject.name != home.name and region in subject.masks]
    bins = [_bin(float(mask_iou(home.masks[region], subject.masks[region]))) for subject in near]
    for number in range(len(BINS) - 1):
        own = [subject for subject, found in zip(near, bins, strict=True) if found == number]
        drawn += random.Random(f"{home.name} {region} {number}").sample(own, min(per_bin, len(own)))
    return drawn


def _bin(value: float) -> int:
    return min(sum(value >= edge for edge in BINS[1:]), len(BINS) - 2)


def transfer_rows(
    homes: Homes,
    method: Method,
    pairs: Sequence[Pair],
    truths: Mapping[str, Mapping[str, float]] | None = None,
    shown: Sequence[Pair] = (),
) -> Rows:
    """Two rows per pair, the edit as it is and moved: `moved`, `iou`, `home_success`, and `Trial.row`.

    `perfect`: whether a perfect editor would succeed, of targets whose factors are in `truths`. `pictures` before and
    after of the pairs `shown`. Cost: about two decodes a row, and one per target.
    """
    rows: Rows = []
    cases: list[tuple[dict[str, Any], Case, bool]] = []
    for pair in pairs:
        region, masks = pair.home.region, (pair.source.masks, pair.target.masks)
        home, target = (own[region] for own in masks)
        head: dict[str, Any] = {
            "image": pair.source.name,
            "region": region,
            "method": method.name,
            "target": pair.target.name,
        }
        head |= {"iou": float(mask_iou(home, target)), "home_success": pair.home.row.get("success")}
        factors = (truths or {}).get(pair.target.name, {})
        head["perfect"] = perfect_bound(homes.world.read, factors, target, pair.home.region, pair.home.verdict)
        for moved in WAYS:
            row = {**head, "moved": moved}
            rows.append(row)
            edit = there(method, pair.edit, home, target) if moved else pair.edit
            if edit is None:
                row |= {"roir": math.inf, "failure": "nothing of the direction is left there"}
                row |= {"success": False} if homes.world.factors(region) else {}
                continue
            cases.append((row, Case(edit, pair.target, like=pair.home.verdict), any(pair is one for one in shown)))
    trials = run_trials(homes.world, method, [case for _, case, _ in cases])
    for (row, _, kept), trial in zip(cases, trials, strict=True):
        row |= trial.row()
        if kept:
            row["pictures"] = [encoded(trial.before), encoded(trial.after)]
    return rows


def _measure(setup: Setup) -> Rows:
    wanted = QUICK if setup.quick else Size()
    homes, pool = Homes(setup, wanted.homes), setup.world.up_to("holdout", wanted.pool)
    return homes.left_out() + homes.gathered(
        "edits on other images",
        lambda name, i, image: _image_rows(homes, name, image, pool, wanted.per_bin),
        "no edit can be tried on another image",
    )


def _image_rows(homes: Homes, name: str, image: SourceImage, pool: Sequence[SourceImage], per_bin: int) -> Rows:
    method = homes.method(name)
    edits = usable(homes.get(method, image))

    def make() -> Rows:
        source = homes.subject(method, image)
        others = homes.world.subjects(pool, method.timestep, method.settings.inversion_steps)
        pairs = [
            Pair(home, edit, source, target)
            for home, edit in edits
            for target in spread_targets(source, home.region, others, per_bin)
        ]
        truths = {other.image_id: truth_of(other) for other in pool}
        return transfer_rows(homes, method, pairs, truths)

    key = {**homes.key(method, image), "pool": digest(homes.world.key(pool)), "per_bin": per_bin}
    return homes.setup.cells.get("transfer", {**key, "bins": BINS}, make).rows


def _binned(rows: Rows, column: str) -> Rows:
    """Rows with the middle of their bin of a column as `at`."""
    return [{**row, "at": (BINS[_bin(row[column])] + BINS[_bin(row[column]) + 1]) / 2} for row in rows]


def _by_way(rows: Rows, value: Value, kind: Kind = "median") -> dict[str, Curve]:
    """Curves of binned rows, a line for each way to use an edit."""
    return {way: curve(of(rows, moved=moved), "at", value, kind) for moved, way in WAYS.items()}


def _success_axes(ax: Axes, title: str, x: str, rows: Rows, *, perfect: bool) -> None:
    from flows.evaluation.plots import below, label, lines

    known = [row for row in rows if row.get("perfect") is not None] if perfect else []
    shares = _by_way(rows, succeeded, "mean")
    if known:
        shares["perfect editor"] = curve(of(known, moved=True), "at", lambda row: float(row["perfect"]), "mean")
    lines(ax, shares)
    label(ax, title, x, "transfer success, share of edits")
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.03, 1.05)
    below(ax)


def _draw(rows: Rows) -> dict[str, Figure]:
    from flows.evaluation.plots import SIZE, below, label, lines, panels

    found = _binned(measured(rows), "iou")
    if not found:
        return {}
    methods, read = names(found, "method"), are_read(found)
    figure, axes = panels(len(methods) * (2 if read else 1), columns=len(methods), height=3.0)
    for i, method in enumerate(methods):
        own = of(found, method=method)
        if read:
            _success_axes(axes[i], TITLES[method], "IoU of the two masks", own, perfect=True)
        ax = axes[i - len(methods)]
        lines(ax, _by_way(own, "roir"))
        label(ax, TITLES[method], "IoU of the two masks", "median ROIR")
        ax.axhline(ROIR_LIMIT, color="#666666", linewidth=0.8, linestyle=(0, (1, 1)))
        ax.set_xlim(0, 1)
        ax.set_ylim(bottom=0)
        below(ax)
    figure.supxlabel("points: bins of a fifth, with 95 % intervals over images", fontsize=SIZE - 2)
    return {"transfer": figure}


def _conclude(rows: Rows) -> list[str]:
    found = measured(rows)
    sentences = []
    for method in names(found, "method"):
        own = of(found, method=method)
        parts = [
            (f"of IoU {OVERLAP:g} and more", [row for row in own if row["iou"] >= OVERLAP]),
            ("that overlap less", [row for row in own if row["iou"] < OVERLAP]),
        ]
        texts = [f"pairs {which} ({len(part) // 2}): {_told(part)}" for which, part in parts if part]
        sentences.append(f"{TITLES[method]}, {'; '.join(texts)}. Images: {len(names(own, 'image'))}.")
    return sentences + omissions(rows)


def _told(rows: Rows) -> str:
    texts = []
    for moved, way in WAYS.items():
        own = of(rows, moved=moved)
        text = f"median ROIR {written(statistic(own, 'roir'))}"
        if are_read(rows):
            text = f"{success_told(own)}, {text}"
        texts.append(f"{way} {text}")
    known = [row for row in of(rows, moved=True) if row.get("perfect") is not None]
    if known:
        share = statistic(known, lambda row: float(row["perfect"]), "mean")
        texts.append(f"a perfect editor {written(share)}")
    sure = of(rows, moved=True, home_success=True)
    if sure:
        texts.append(
            f"of the {len(sure)} that succeed at home {written(statistic(sure, succeeded, 'mean'))} when moved"
        )
    return ", ".join(texts)


# --- pose ---------------------------------------------------------------------------------------------------------


def _measure_pose(setup: Setup) -> Rows:
    """Rows of `transfer`, which are kept already where it was measured, with the differences `apart_FACTOR`."""
    wanted = QUICK if setup.quick else Size()
    images = setup.world.up_to("holdout", max(wanted.homes, wanted.pool))
    factors = {image.image_id: image.factors for image in images}
    if setup.world.reader is None or any(set(POSE) - set(own) for own in factors.values()):
        return [left_out("the whole figure", "where the faces are, and how large, is not known, or nothing reads them")]
    rows: Rows = []
    for row in _measure(setup):
        pair = [factors[row[name]] for name in ("image", "target") if name in row]
        apart = {f"apart_{name}": abs(pair[0][name] - pair[1][name]) for name in POSE} if len(pair) == 2 else {}
        rows.append({**row, **apart})
    return rows


def _draw_pose(rows: Rows) -> dict[str, Figure]:
    from flows.evaluation.plots import SIZE, panels

    found = measured(rows)
    if not found:
        return {}
    methods = names(found, "method")
    figure, axes = panels(len(POSE) * len(methods), height=3.0)
    for i, method in enumerate(methods):
        for j, factor in enumerate(POSE):
            own = _binned(of(found, method=method), f"apart_{factor}")
            x = f"difference of {factor} (share of range)"
            _success_axes(axes[i * len(POSE) + j], TITLES[method], x, own, perfect=False)
    figure.supxlabel("points: bins of a fifth, with 95 % intervals over images", fontsize=SIZE - 2)
    return {"transfer-pose": figure}


def _conclude_pose(rows: Rows) -> list[str]:
    found = measured(rows)
    sentences = []
    for method in names(found, "method"):
        texts = []
        for factor in POSE:
            own = [(row[f"apart_{factor}"], row) for row in of(found, method=method)]
            own = [(d, row) for d, row in own if "success" in row]
            near, far = [row for d, row in own if d < NEAR], [row for d, row in own if d >= FAR]
            if near and far:
                overlaps = [f"{np.mean([row['iou'] for row in part]):.2f}" for part in (near, far)]
                shares = [
                    " to ".join(written(statistic(of(part, moved=moved), succeeded, "mean")) for part in (near, far))
                    for moved in WAYS
                ]
                texts.append(
                    f"{factor}: as it is from {shares[0]}, moved from {shares[1]}, at a mean IoU of {overlaps[0]} and "
                    f"{overlaps[1]}"
                )
        text = (
            f"share of transfers that succeed, from pairs less than {NEAR:g} of the range apart to pairs {FAR:g} or "
            f"more apart, in {'; in '.join(texts)}"
        )
        sentences.append(f"{TITLES[method]}, {text if texts else 'too few pairs to tell near ones from far ones'}.")
    return sentences + omissions(rows)


TRANSFER = Experiment(
    name="transfer",
    title="Transfer within the data set, against the overlap of regions",
    source=(
        "LOCO Edit's transferability, with other images drawn evenly over the overlap of masks; a perfect editor, "
        "which moves the true factor, shows how much can be had"
    ),
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
TRANSFER_POSE = Experiment(
    name="transfer-pose",
    title="Transfer against differences of pose",
    source=(
        "LOCO Edit's transfer to faces of other poses and positions, by the true factors; the pairs of `transfer`, "
        "drawn evenly over the overlap of masks and not over pose, so that near and far pairs differ in overlap too"
    ),
    measure=_measure_pose,
    draw=_draw_pose,
    conclude=_conclude_pose,
)
