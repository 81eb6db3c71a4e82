"""Edits on images that lack the part: the region is painted over with its surroundings, and the same edit applied.

Edits are those of `homes`, moved to the other image's region and applied at the strength that made them visible at
home, once on that image and once on its painted-over copy. An edit of another region, which does not overlap the paint,
is the control: what it changes should not depend on the paint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flows.datasets.contract import SourceImage, image_id
from flows.evaluation.cells import Rows, digest
from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.homes import METHODS, TITLES, Home, Homes, applied, usable
from flows.evaluation.homogeneity import distribution, there
from flows.evaluation.method_run import chosen_targets
from flows.evaluation.pictures import encoded
from flows.evaluation.series import measured, names, of, omissions, statistic, written
from pipeline.images import as_image, as_tensor
from pipeline.methods.contract import Found, Method, Subject
from pipeline.metrics import rms_inside, roir
from pipeline.painting import painted_over

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST = 0.15  # share of the picture: what lies around a larger region does not tell what it looks like without


@dataclass(frozen=True)
class Size:
    """Images that edits come from, images to draw targets from, targets of each edit."""

    homes: int = 8
    pool: int = 40
    others: int = 3


QUICK = Size(1, 6, 1)


def without(image: SourceImage, region: str) -> SourceImage:
    """The image with a region painted over, under an id of its own; its masks stay."""
    painted = painted_over(as_tensor(image.image.copy()), torch.from_numpy(np.array(image.masks[region])))
    pixels = np.array(as_image(painted)).reshape(image.image.shape)
    return replace(image, image=pixels, image_id=image_id(image.dataset, pixels))


def _measure(setup: Setup) -> Rows:
    wanted = QUICK if setup.quick else Size()
    homes, pool = Homes(setup, wanted.homes), setup.world.up_to("holdout", wanted.pool)
    left = homes.left_out()[: len(METHODS) - len(homes.methods)]  # attributes are of no use here
    return (
        left
        + homes.gathered(
            "edits on images that lack the part",
            lambda name, i, image: _image_rows(homes, name, image, pool, wanted.others, shown=i == 0),
            f"no edit of a region under {LARGEST:g} of the picture fits another",
        )
        + homes.limits()
    )


def _image_rows(
    homes: Homes, name: str, image: SourceImage, pool: Sequence[SourceImage], others: int, *, shown: bool
) -> Rows:
    method = homes.method(name)
    edits = usable(homes.get(method, image))

    def make() -> Rows:
        steps = method.settings.inversion_steps
        source, sources = homes.subject(method, image), {other.image_id: other for other in pool}
        targets = homes.world.subjects(pool, method.timestep, steps)
        rows: Rows = []
        for i, (home, _) in enumerate(edits):
            if float(source.masks[home.region].float().mean()) > LARGEST:
                continue
            for j, target in enumerate(chosen_targets(source, home.region, targets, others)):
                painted = without(sources[target.name], home.region)
                pair = [target, homes.world.subjects([painted], method.timestep, steps)[0]]
                controls = [*edits[i + 1 :], *edits[:i]]
                rows += _pair_rows(method, source, edits[i], controls, pair, shown=shown and j == 0)
        return rows

    ids = digest(homes.world.key(pool))
    key = {**homes.key(method, image), "pool": ids, "others": others, "largest": LARGEST, "shown": shown}
    return homes.setup.cells.get("transfer-absent", {**key, "control": "apart"}, make).rows


def _pair_rows(
    method: Method,
    source: Subject,
    own: tuple[Home, Found],
    controls: Sequence[tuple[Home, Found]],
    pair: Sequence[Subject],
    *,
    shown: bool,
) -> Rows:
    """Rows of one image with and without the part: `kind` "own" for the part's edit, "control" for the first of
    the other ones whose region is there and does not overlap the part.

    `present` and `absent`: RMS change inside the edited region with and without the part, `gain_ratio` the latter over
    the former; `roir_present` and `roir_absent`. `kept` and `redrawn`: RMS inside the part between the picture with it,
    or the painted one, and its reconstruction. Cost: two decodes an edit, and two.
    """
    masks, part = pair[0].masks, pair[0].masks[own[1].region]
    apart = [edit for _, edit in controls if edit.region in masks and not bool((masks[edit.region] & part).any())]
    ways = ((edit, there(method, edit, source.masks[edit.region], masks[edit.region])) for edit in (own[1], *apart))
    first = next(ways)[1]
    if first is None:
        return []
    tried = [("own", first), *[("control", moved) for _, moved in ways if moved is not None][:1]]
    edits = [edit for _, edit in tried]
    strengths = [0.0, *(edit.guess for edit in edits)]
    pictures = [applied(method, [edits[0], *edits], [subject] * len(strengths), strengths) for subject in pair]
    region = own[1].region
    kept, redrawn = (
        float(rms_inside((some[0] - subject.picture)[None], pair[0].masks[region])[0])
        for some, subject in zip(pictures, pair, strict=True)
    )
    rows: Rows = []
    for i, (kind, edit) in enumerate(tried, start=1):
        mask = pair[0].masks[edit.region]
        changes = [float(rms_inside(some[i : i + 1] - some[:1], mask)[0]) for some in pictures]
        ratios = [float(roir(some[:1], some[i : i + 1], mask)[0]) for some in pictures]
        row: dict[str, Any] = {"kind": kind, "image": source.name, "target": pair[0].name, "method": method.name}
        row |= {"region": region, "edited": edit.region, "present": changes[0], "absent": changes[1]}
        row |= {"gain_ratio": changes[1] / changes[0] if changes[0] > 0 else math.nan}
        row |= {"kept": kept, "redrawn": redrawn}
        row |= {"roir_present": ratios[0], "roir_absent": ratios[1]}
        if shown and kind == "own":
            row["pictures"] = [encoded(some[which]) for some in pictures for which in (0, 1)]
        rows.append(row)
    return rows


def _draw(rows: Rows) -> dict[str, Figure]:
    from flows.evaluation.plots import PER_PANEL, SIZE, below, label, lines, panels, split
    from flows.evaluation.sheets import sheet

    found = measured(rows)
    if not found:
        return {}
    methods = names(found, "method")
    parts = [
        (m, part) for m in methods for part in split(names(of(found, method=m, kind="own"), "region"), PER_PANEL - 1)
    ]
    figure, axes = panels(len(parts), height=3.4)
    drawn = {"transfer-absent": figure}
    for ax, (method, regions) in zip(axes, parts, strict=True):
        own, control = (of(found, method=method, kind=kind) for kind in ("own", "control"))
        series = {f"{region} painted over": of(own, region=region) for region in regions}
        series["another region's edit"] = control
        lines(ax, {name: distribution(part, "gain_ratio") for name, part in series.items()})
        label(ax, TITLES[method], "change without the part / change with it", "share of pairs with at most this")
        ax.set_xlim(left=0)
        below(ax)
    figure.supxlabel("a pair: one direction on one other image", fontsize=SIZE - 2)
    for method in methods:
        shown = [row for row in of(found, method=method, kind="own") if "pictures" in row]
        if shown:
            drawn[f"transfer-absent-{method}"] = sheet(
                [row["pictures"] for row in shown],
                rows=[row["region"] for row in shown],
                columns=["with the part", "its edit", "painted over", "the same edit"],
                captions=[["", _caption(row, "present"), "", _caption(row, "absent")] for row in shown],
                title=TITLES[method],
            )
    return drawn


def _caption(row: dict[str, Any], which: str) -> str:
    return f"RMS {row[which]:.3f}\nROIR {row[f'roir_{which}']:.2f}"


def _conclude(rows: Rows) -> list[str]:
    found = [row for row in measured(rows) if math.isfinite(row["gain_ratio"])]
    sentences = []
    for method in names(found, "method"):
        own, control = (of(found, method=method, kind=kind) for kind in ("own", "control"))
        by_region = "; ".join(
            f"{region} {written(statistic(of(own, region=region), 'gain_ratio'))}" for region in names(own, "region")
        )
        ratio = statistic(own, "gain_ratio")
        text = (
            f"{TITLES[method]}: where the part is painted over, its edit makes {written(ratio)} of the change "
            f"(RMS, median) that it makes where the part is there ({by_region}), "
            f"{written(statistic(own, 'absent'))} against {written(statistic(own, 'present'))}"
        )
        if control:
            text += f"; the edit of another region makes {written(statistic(control, 'gain_ratio'))} of its own"
        text += _against_control(own, control)
        sentences.append(
            f"{text}. The model's reconstruction differs from the paint by a median RMS of "
            f"{written(statistic(own, 'redrawn'))}, from the part by {written(statistic(own, 'kept'))}. "
            f"Pairs: {len(own)}; images: {len(names(own, 'image'))}."
        )
    return sentences + omissions(rows)


def _against_control(own: Rows, control: Rows) -> str:
    """Whether the part's edit does less, or more, for want of the part, as far as its control on the same pictures does
    not: the paint alone changes what any edit does."""
    name = ("image", "target", "region")
    controls = {tuple(row[column] for column in name): row["gain_ratio"] for row in control}
    paired = [(row, controls.get(tuple(row[column] for column in name))) for row in own]
    apart = [{"image": row["image"], "less": ratio - row["gain_ratio"]} for row, ratio in paired if ratio is not None]
    if not apart:
        return ""
    less = statistic(apart, "less")
    text = f"; that share less the part's own is {written(less)}, pair by pair"
    if less.low < less.high and not less.low <= 0.0 <= less.high:  # more than one image, and all but certain
        text += f". It does {'less' if less.low > 0.0 else 'more'} where the part is missing"
    return text


TRANSFER_ABSENT = Experiment(
    name="transfer-absent",
    title="Edits of a part on images that lack it",
    source=(
        "LOCO Edit's transfer to images with and without eyes, edits moved to where the other image has the region; "
        "here one image is both, its region painted over with "
        f"what surrounds it, for regions of at most {LARGEST:.0%} of the picture. A model that has never seen an image "
        "without the part, as the built-in one, may draw it back"
    ),
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
