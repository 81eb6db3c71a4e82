"""How linear the predicted picture is along directions: against strength, at several timesteps, in both spaces.

The papers compare f(x + lambda v) with f(x) + lambda J v, which f(x) dominates; what an edit does is seen in the
changes, f(x + lambda v) - f(x) against lambda J v. Both are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from flows.console import stage
from flows.datasets.contract import SourceImage
from flows.evaluation.cells import Rows
from flows.evaluation.comparison import base_settings, kind_of
from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.points import sample, text
from flows.evaluation.series import curve, of, statistic
from pipeline.jacobian import JacobianKind, jacobian
from pipeline.methods.contract import Found, Method, Subject
from pipeline.metrics import local_linearity
from pipeline.models.contract import Denoiser

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIRECTIONS = {  # method -> what its first edit of a region is
    "loco": "first LOCO direction",
    "random-x": "random direction, x-space",
    "individual": "individual direction",
    "random-h": "random direction, h-space",
}
OCTAVES = 6  # strengths are halved that often, from a method's limit on
BATCH = 32  # pictures predicted together


@dataclass(frozen=True)
class Size:
    """Images, fractions of T (None is the recipe's), and of how many regions of each image."""

    images: int = 12
    shares: tuple[float | None, ...] = (None, 0.2, 0.5, 0.6, 0.7)
    regions: int = 4


QUICK = Size(1, (None, 0.7), 1)


def measure(setup: Setup, size: Size | None = None) -> Rows:
    """One row per image, timestep, direction, region and strength, each the mean over both signs of the strength.

    A row with `visible` is at the strength at which the edit becomes visible to first order. Where the model has no
    bottleneck there are no directions of h-space; a method without an edit of a region leaves a row with `refused`.
    """
    size = size or (QUICK if setup.quick else Size())
    world, rows = setup.world, []
    own = world.recipe.method.timestep
    shares = sorted({own if share is None else share for share in size.shares})
    has_h = world.denoiser.info.bottleneck_shape is not None
    names = [name for name in DIRECTIONS if has_h or kind_of(name).about.space == "x"]
    images = world.up_to("holdout", size.images)
    with stage("linearity", len(shares) * len(images) * len(names)) as advance:
        for share in shares:
            for image in images:
                for name in names:
                    rows += _cell(setup, image, share, name, size.regions)
                    advance(1, f"{DIRECTIONS[name]} at {share:g} T")
    return rows


def _cell(setup: Setup, image: SourceImage, share: float, name: str, regions: int) -> Rows:
    world, kind = setup.world, kind_of(name)
    settings = base_settings(kind, world).at_timestep(share)
    key = {**world.key([image]), "method": name, "settings": settings.as_dict(), "most": regions, "octaves": OCTAVES}

    def make() -> Rows:
        method = kind(world.denoiser, settings)
        subject = world.subjects([image], method.timestep, settings.inversion_steps)[0]
        few = replace(subject, masks=dict(list(subject.masks.items())[:regions]))
        head = {"image": subject.name, "t": share, "direction": name, "space": method.about.space}
        return [{**head, **row} for row in rows_of(method, few)]

    return setup.cells.get("linearity", key, make).rows


@torch.no_grad()
def rows_of(method: Method, subject: Subject) -> Rows:
    """Linearity along the edits that a method finds on an image, at its limit halved `OCTAVES` times and where visible.

    Cost: the search, one JVP an edit, and 4 passes a strength.
    """
    found = method.find(subject)
    rows: Rows = [{"region": r, "refused": e.reason} for r, e in found.items() if not isinstance(e, Found)]
    edits = [(region, edit) for region, edit in found.items() if isinstance(edit, Found) and edit.vector is not None]
    if not edits:
        return rows
    kind: JacobianKind = "x0/x" if method.about.space == "x" else "x0/h"
    operator = jacobian(method.denoiser, subject.x_t, method.timestep, kind)
    vectors = torch.stack([edit.vector for _, edit in edits if edit.vector is not None]).to(subject.x_t)
    ladder = [method.limit * 0.5**octave for octave in range(OCTAVES, -1, -1)]
    f = predicted(method.denoiser, subject, method.timestep, "x" if kind == "x0/x" else "h")
    for (region, edit), vector, effect in zip(edits, vectors, operator.matvec(vectors), strict=True):
        strengths = [*ladder, abs(edit.guess)]
        figures = _both_signs(f, vector, effect, strengths)
        for i, strength in enumerate(strengths):
            row = {"region": region, "strength": strength, "visible": i == len(ladder)}
            rows.append(row | {name: values[i] for name, values in figures.items()})
    return rows


def predicted(
    denoiser: Denoiser, subject: Subject, t: int, space: Literal["x", "h"]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a shift (B, *shape of the space) of an image's x_t or bottleneck makes of its predicted picture."""

    def f(shift: torch.Tensor) -> torch.Tensor:
        parts = []
        for part in shift.split(BATCH):
            x = subject.x_t.expand(len(part), *subject.x_t.shape)
            if space == "x":
                parts.append(denoiser.predicted_picture(x + part, t))
            else:
                parts.append(denoiser.predicted_picture(x.contiguous(), t, h_shift=part))
        return torch.cat(parts)

    return f


def _both_signs(
    f: Callable[[torch.Tensor], torch.Tensor], vector: torch.Tensor, effect: torch.Tensor, strengths: Sequence[float]
) -> dict[str, list[float]]:
    """Every figure of linearity at each strength, the mean of both signs. `effect` is J v."""
    signed = torch.tensor([*strengths, *(-s for s in strengths)])
    count = len(signed)
    directions = vector.expand(count, *vector.shape)
    found = local_linearity(f, torch.zeros_like(directions), directions, signed, effect.expand(count, *effect.shape))
    return {name: values.view(2, -1).mean(0).tolist() for name, values in asdict(found).items()}


# --- what it shows ------------------------------------------------------------------------------------------------

FIGURES = {"cosine": "cosine", "norm_ratio": "norm ratio"}
PREFIX = {"changes": "", "values": "value_"}  # of the columns; "values" are the papers' own


def draw(rows: Rows) -> dict[str, Figure]:
    """Cosine and norm ratio against strength, a row of panels per direction: changes and the papers' values, by space.

    Rings mark the median strength at which edits become visible to first order, or the limit.
    """
    from flows.evaluation.plots import COLOURS, below, label, lines, panels

    canvases = {}
    spaces = {row["space"] for row in rows if "refused" not in row}
    for space, (compared, prefix) in ((s, c) for s in sorted(spaces, reverse=True) for c in PREFIX.items()):
        names = [name for name in DIRECTIONS if of(rows, direction=name, space=space, visible=True)]
        canvas, axes = panels(2 * len(names), columns=2, height=3.0)
        for i, (name, (column, title)) in enumerate((n, c) for n in names for c in FIGURES.items()):
            ax, own = axes[i], of(rows, direction=name, visible=False)
            shares = sorted({row["t"] for row in own})
            lines(ax, {f"t = {t:g} T": curve(of(own, t=t), "strength", prefix + column) for t in shares})
            for j, t in enumerate(shares):
                at = of(rows, direction=name, visible=True, t=t)
                place = statistic(at, "strength").estimate, statistic(at, prefix + column).estimate
                ax.plot(*place, "o", markersize=9, markerfacecolor="none", color=COLOURS[j % len(COLOURS)])
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")
            ax.axhline(1.0, color="#555555", linewidth=0.6)
            below(ax, columns=3)
            step = f"strength: length of the step in {space} (ring: visible)"
            label(ax, f"{DIRECTIONS[name]}: {compared}", step, title)
        canvases[f"linearity-{space}-{compared}"] = canvas
    return canvases


def conclude(rows: Rows) -> list[str]:
    """Cosine and norm ratio of the changes where edits become visible, and the papers' own cosine there."""
    said = []
    for name, title in DIRECTIONS.items():
        visible, parts = of(rows, direction=name, visible=True), []
        for t in sorted({row["t"] for row in visible}):
            own = of(visible, t=t)
            cosine, ratio = (text(statistic(own, column), ".2f") for column in ("cosine", "norm_ratio"))
            value, strength = (statistic(own, column).estimate for column in ("value_cosine", "strength"))
            parts.append(
                f"{t:g} T: cosine {cosine}, norm ratio {ratio} (of values {value:.3f}; strength {strength:.3g})"
            )
        if parts:
            where = "where edits become visible, or at the limit of strength"
            said.append(f"{title}, changes against their linear prediction {where}: {'; '.join(parts)}.")
    refused = [row for row in rows if "refused" in row]
    if refused:
        said.append(f"{len(refused)} directions were refused: {'; '.join(sorted({r['refused'] for r in refused}))}.")
    if not any(row["space"] == "h" for row in rows):
        said.append("h-space was left out: the model has no bottleneck.")
    return [*said, f"{sample(rows)} Regions count each; figures are means over both signs of the strength."]


LINEARITY = Experiment(
    name="linearity",
    title="Local linearity against strength",
    source="LOCO Edit's figure of norm ratio and cosine against lambda, which compares values; here changes too, in"
    " x-space and h-space, at several timesteps, against random directions.",
    measure=measure,
    draw=draw,
    conclude=conclude,
)
