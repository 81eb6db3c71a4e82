"""Rank ratio and Frobenius norm of the five Jacobians against the timestep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flows.console import stage
from flows.datasets.contract import SourceImage
from flows.evaluation.cells import Rows
from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.points import sample, subject_of, text, timestep_of
from flows.evaluation.series import curve, of
from pipeline.intervals import figure
from pipeline.jacobian import KINDS, JacobianKind, jacobian
from pipeline.rank import rank_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES: dict[JacobianKind, str] = {
    "x0/x": "d x0 / d x",
    "eps/x": "d eps / d x",
    "h/x": "d h / d x",
    "x0/h": "d x0 / d h",
    "eps/h": "d eps / d h",
}


@dataclass(frozen=True)
class Size:
    """Images, fractions of T, most vectors of a subspace, and Gaussian vectors behind every energy."""

    images: int = 5
    shares: tuple[float, ...] = (0.05, 0.2, 0.4, 0.5, 0.6, 0.7, 0.95)
    vectors: int = 640
    samples: int = 24


QUICK = Size(1, (0.3, 0.7), 16, 8)


def measure(setup: Setup, size: Size | None = None) -> Rows:
    """One row per image, timestep and Jacobian; those of h are missing where the model has no bottleneck.

    Where x_t is a picture, d x0 / d h is a multiple of d eps / d h, which is measured for both.
    """
    size = size or (QUICK if setup.quick else Size())
    world, rows = setup.world, []
    images = world.up_to("holdout", size.images)
    kinds = [kind for kind in KINDS if world.denoiser.info.bottleneck_shape or "h" not in kind.split("/")]
    proportional = world.denoiser.info.latent_shape is None and "eps/h" in kinds
    measured = [kind for kind in kinds if not (proportional and kind == "x0/h")]
    with stage("rank of Jacobians", len(size.shares) * len(images) * len(measured)) as advance:
        for share in size.shares:
            for image in images:
                found = {}
                for kind in measured:
                    found[kind] = _rank_row(setup, image, share, kind, size)
                    advance(1, f"{NAMES[kind]} at {share:g} T")
                if proportional:
                    alpha, sigma = world.denoiser.alpha_sigma(timestep_of(world, share))
                    found["x0/h"] = _multiple(found["eps/h"], "x0/h", sigma / alpha)
                rows += [found[kind] for kind in kinds]
    return rows


def _rank_row(setup: Setup, image: SourceImage, share: float, kind: JacobianKind, size: Size) -> dict[str, Any]:
    world, seed = setup.world, setup.world.recipe.seed
    steps = world.recipe.method.inversion_steps
    key = {**world.key([image]), "timestep": timestep_of(world, share), "inversion_steps": steps, "kind": kind}
    key |= {"vectors": size.vectors, "samples": size.samples, "seed": seed}

    def make() -> Rows:
        subject, memory = subject_of(world, image, share), world.recipe.method.memory
        operator = jacobian(world.denoiser, subject.x_t, timestep_of(world, share), kind, memory=memory)
        found = rank_figures(operator, size.vectors, seed=seed, samples=size.samples)
        dimension = min(math.prod(operator.shape_in), math.prod(operator.shape_out))
        row = {"image": subject.name, "t": share, "kind": kind, "dimension": dimension, **asdict(found.ratio)}
        norm = found.frobenius
        row |= {"frobenius": norm.estimate, "frobenius_low": norm.low, "frobenius_high": norm.high}
        row |= {"energy_held": found.captured.estimate, "vectors": found.vectors, "products": found.products}
        return [row]

    return setup.cells.get("rank", key, make).rows[0]


def _multiple(row: Mapping[str, Any], kind: JacobianKind, factor: float) -> dict[str, Any]:
    """The row of `factor` times the Jacobian of `row`, which costs nothing."""
    norms = {name: factor * row[name] for name in ("frobenius", "frobenius_low", "frobenius_high")}
    return {**row, "kind": kind, **norms, "products": 0}


@dataclass(frozen=True)
class Middle:
    """Rank ratio of the median image with its interval; `bound`: the ratio is known to be no smaller, not more."""

    estimate: float
    low: float
    high: float
    bound: bool

    def __str__(self) -> str:
        if self.bound:
            return f"at least {self.estimate:.2g}"
        return text(self)


def middle(rows: Sequence[Mapping[str, Any]]) -> Middle:
    """The median over images, some of which are known by a lower bound only."""
    names = [row["image"] for row in rows]
    least = figure([row["ratio"] for row in rows], names)
    most = figure([row["ratio"] if row["resolved"] else 1.0 for row in rows], names)
    return Middle(least.estimate, least.low, most.high, least.estimate < most.estimate)


def middles(rows: Rows, kind: str) -> dict[float, Middle]:
    """t -> rank ratio of the median image."""
    own = of(rows, kind=kind)
    return {share: middle(of(own, t=share)) for share in sorted({row["t"] for row in own})}


def _shown_kinds(rows: Rows) -> dict[str, str]:
    """Kinds there are rows of, with their names."""
    return {kind: name for kind, name in NAMES.items() if any(row["kind"] == kind for row in rows)}


def draw(rows: Rows) -> dict[str, Figure]:
    """Rank ratio and Frobenius norm against t; an arrow upwards at a median that is a lower bound only."""
    from flows.evaluation.plots import below, label, lines, logarithmic, panels

    canvas, (left, right) = panels(2, columns=2, height=3.2)
    ratios, norms = {}, {}
    for kind, name in _shown_kinds(rows).items():
        found = middles(rows, kind)
        if not (kind == "x0/h" and _same_ratios(rows)):
            title = f"{NAMES['x0/h']}, {name}" if kind == "eps/h" and _same_ratios(rows) else name
            ratios[title] = [(t, m.estimate, m.low, m.estimate if m.bound else m.high) for t, m in found.items()]
            _arrows(left, [(t, m.estimate) for t, m in found.items() if m.bound])
        norms[name] = curve(of(rows, kind=kind), "t", "frobenius")
    for ax, series in ((left, ratios), (right, norms)):
        lines(ax, series)
        logarithmic(ax)
        ax.set_xlim(0.0, 1.0)
        below(ax)
    left.set_ylim(top=2.0)
    label(left, "Rank: 98 % of the energy (arrow: at least)", "t / T", "rank ratio (rank / dimension)")
    label(right, "Norm", "t / T", "Frobenius norm")
    return {"rank": canvas}


def _same_ratios(rows: Rows) -> bool:
    """Whether both Jacobians of h have the same ratio everywhere: one is a multiple of the other."""
    both = [[(r["image"], r["t"], r["ratio"]) for r in rows if r["kind"] == kind] for kind in ("x0/h", "eps/h")]
    return bool(both[0]) and sorted(both[0]) == sorted(both[1])


def _arrows(ax: Axes, points: Sequence[tuple[float, float]]) -> None:
    """An arrow upwards from each point, a factor of 1.5 long on a logarithmic axis."""
    for x, y in points:
        style = {"arrowstyle": "->", "color": "#555555", "linewidth": 0.8, "shrinkA": 3, "shrinkB": 0}
        ax.annotate("", xy=(x, 1.5 * y), xytext=(x, y), arrowprops=style)


def conclude(rows: Rows) -> list[str]:
    """Where each Jacobian's rank is least, and how large it is at the noisiest and cleanest t; what was left open."""
    said = []
    for kind, name in _shown_kinds(rows).items():
        found = middles(rows, kind)
        known = [share for share, ratio in found.items() if not ratio.bound]
        best = min(known, key=lambda share: found[share].estimate, default=None)
        ends = [f"{found[t]} at {t:g} T" for t in dict.fromkeys((min(found), max(found))) if t != best]
        if best is None:
            said.append(f"{name}: the rank ratio of the median image is known by bounds only: {', '.join(ends)}.")
            continue
        least = f"the smallest rank ratio of the median image that is known is {found[best]} at {best:g} T"
        said.append(f"{name}: {'; '.join([least, *ends])}.")
    open_rows = [row for row in rows if not row["resolved"]]
    if open_rows:
        most = max(row["vectors"] for row in open_rows)
        said.append(
            f"{len(open_rows)} of {len(rows)} ratios are lower bounds: {most} vectors or fewer did not hold 98 % of the"
            " energy."
        )
    if not any(row["kind"] == "h/x" for row in rows):
        said.append("The Jacobians of h were left out: the model has no bottleneck.")
    return [*said, sample(rows)]


RANK = Experiment(
    name="rank",
    title="Rank and norm of the five Jacobians",
    source="LOCO Edit's figures of rank ratio and Frobenius norm against t. Here nothing is formed: the rank is that of"
    " a randomised subspace against a sampled energy, or a lower bound where the subspace is too small.",
    measure=measure,
    draw=draw,
    conclude=conclude,
)
