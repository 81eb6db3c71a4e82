"""What regions leave of the Jacobian of the predicted picture: their singular spectra, in x-space and h-space."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flows.console import stage
from flows.datasets.contract import SourceImage
from flows.evaluation.cells import Rows
from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.points import interval, sample, subject_of, text, timestep_of
from pipeline.intervals import Figure as Estimate
from pipeline.intervals import figure
from pipeline.jacobian import jacobian
from pipeline.mining import REST
from pipeline.operators import LinearOperator
from pipeline.svd import masked_svds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Size:
    """Images, and singular values per region."""

    images: int = 24
    rank: int = 32


QUICK = Size(1, 8)
TOLERANCE = 0.01  # residual over the first value: no singular value is wrong by more
PER_PANEL = 7  # regions told apart in one plot


def measure(setup: Setup, size: Size | None = None) -> Rows:
    """One row per image, space, region and singular value at the recipe's timestep."""
    size = size or (QUICK if setup.quick else Size())
    world, rows = setup.world, []
    images = world.up_to("holdout", size.images)
    spaces = ("x", "h") if world.denoiser.info.bottleneck_shape else ("x",)
    with stage("singular spectra", len(images) * len(spaces)) as advance:
        for image in images:
            for space in spaces:
                rows += _spectra(setup, image, space, size.rank)
                advance(1, f"{space}-space")
    return rows


def _spectra(setup: Setup, image: SourceImage, space: str, rank: int) -> Rows:
    world, method = setup.world, setup.world.recipe.method
    t = timestep_of(world, method.timestep)
    key = {**world.key([image]), "timestep": t, "inversion_steps": method.inversion_steps, "space": space}
    key |= {"rank": rank, "tolerance": TOLERANCE, "seed": world.recipe.seed}

    def make() -> Rows:
        subject = subject_of(world, image, method.timestep)
        operator = jacobian(world.denoiser, subject.x_t, t, "x0/x" if space == "x" else "x0/h", memory=method.memory)
        head = {"image": subject.name, "space": space}
        return [{**head, **row} for row in _values(operator, subject.masks, rank, world.recipe.seed)]

    return setup.cells.get("spectra", key, make).rows


def _values(
    operator: LinearOperator, masks: Mapping[str, torch.Tensor], rank: int, seed: int
) -> Iterable[dict[str, Any]]:
    """Singular values of every region and of everything else, at most as many as a region has numbers."""
    blocks, rest = dict(masks), ~torch.stack(list(masks.values())).any(0)
    if bool(rest.any()):
        blocks[REST] = rest
    channels, most = operator.shape_out[0], min(rank, math.prod(operator.shape_in))
    svds = masked_svds(
        operator,
        blocks,
        {region: min(most, channels * int(mask.sum())) for region, mask in blocks.items()},
        generator=torch.Generator().manual_seed(seed),
        tolerance=TOLERANCE,
    )
    for region, svd in svds.items():
        first = float(svd.sigma[0])
        for i, sigma in enumerate(svd.sigma.tolist()):
            relative = sigma / first if first > 0 else math.nan
            yield {"region": region, "index": i + 1, "sigma": sigma, "relative": relative} | {
                "residual": float(svd.residuals[i])
            }


def _relative(rows: Rows) -> dict[tuple[str, str, int], Estimate]:
    """(space, region, index) -> singular value over the first, the median over images."""
    values: dict[tuple[str, str, int], list[tuple[float, str]]] = {}
    for row in rows:
        if math.isfinite(row["relative"]):
            key = row["space"], row["region"], row["index"]
            values.setdefault(key, []).append((row["relative"], row["image"]))
    return {key: figure([v for v, _ in own], [name for _, name in own]) for key, own in values.items()}


def _regions(rows: Rows) -> list[str]:
    """Regions in the order they come, everything else last."""
    return sorted(dict.fromkeys(row["region"] for row in rows), key=lambda region: region == REST)


def draw(rows: Rows) -> dict[str, Figure]:
    """Singular values over the first against their index, a panel per space and few regions."""
    from flows.evaluation.plots import below, label, lines, logarithmic, panels

    found, regions = _relative(rows), _regions(rows)
    named = [region for region in regions if region != REST]
    rest = [region for region in regions if region == REST]
    groups = [[*named[i : i + PER_PANEL], *rest] for i in range(0, max(1, len(named)), PER_PANEL)]
    shown = [(space, group) for group in groups for space in dict.fromkeys(row["space"] for row in rows)]
    canvas, axes = panels(len(shown), columns=2, height=3.2)
    for ax, (space, group) in zip(axes, shown, strict=True):
        series = {}
        for region in group:
            places = sorted(i for s, r, i in found if (s, r) == (space, region))
            series[region] = [(i, *interval(found[space, region, i])) for i in _thinned(places)]
        lines(ax, series)
        ax.set_xscale("log", base=2)
        logarithmic(ax)
        ax.xaxis.set_major_formatter("{x:.0f}")
        below(ax, columns=3)
        label(ax, f"{space}-space", "index of the singular value", "singular value / the first")
    return {"spectra": canvas}


def _thinned(places: Sequence[int]) -> list[int]:
    """Places about evenly spread over a logarithmic axis, four or fewer to a doubling, ends included."""
    kept: list[int] = []
    for place in places:
        if not kept or place >= kept[-1] * 2**0.25 or place == places[-1]:
            kept.append(place)
    return kept


def conclude(rows: Rows) -> list[str]:
    """How far each region's spectrum has fallen at its tenth value, or its last."""
    found, said = _relative(rows), []
    for space in dict.fromkeys(row["space"] for row in rows):
        parts = []
        for region in _regions(rows):
            places = [i for s, r, i in found if (s, r) == (space, region)]
            if places:
                at = min(10, max(places))
                parts.append(f"{region} {text(found[space, region, at])} at index {at}")
        said.append(f"{space}-space, singular value over the first: {'; '.join(parts)}.")
    unsure = [row for row in rows if row["residual"] > TOLERANCE]
    if unsure:
        said.append(f"{len(unsure)} of {len(rows)} values missed their tolerance of {TOLERANCE:g}.")
    if not any(row["space"] == "h" for row in rows):
        said.append("h-space was left out: the model has no bottleneck.")
    return [*said, sample(rows)]


SPECTRA = Experiment(
    name="spectra",
    title="Singular spectra of regions",
    source="The low rank that LOCO Edit and the joint/individual paper build on, region by region: singular values of"
    " the Jacobian of the predicted picture under each mask, at the recipe's timestep.",
    measure=measure,
    draw=draw,
    conclude=conclude,
)
