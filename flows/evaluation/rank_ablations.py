"""The papers' ablations of ranks: LOCO's null space, and the joint and individual ranks of h-space components.

One set of singular vectors per image serves all ranks, for leading ones are nested (`pipeline.methods.nested`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from flows.console import stage
from flows.datasets.contract import SourceImage
from flows.evaluation.ablations import best_and_worst, draw_against
from flows.evaluation.cells import Rows
from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.homes import Homes, trial_rows
from flows.evaluation.series import (
    are_read,
    listed,
    measured,
    names,
    of,
    omissions,
    statistic,
    succeeded,
    written,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.intervals import Figure as Statistic
    from pipeline.jacobian import JacobianOperator
    from pipeline.methods.components import IndividualSettings
    from pipeline.methods.contract import Found, Method, Refused, Subject
    from pipeline.methods.loco import LocoSettings
    from pipeline.methods.singular import Picked
    from pipeline.svd import TruncatedSVD

NULL_RANKS, QUICK_NULL_RANKS = (0, 5, 10, 20, 30, 60), (0, 5, 30)
JOINT_RANKS, QUICK_JOINT_RANKS = (0, 5, 10, 20, 30, 40), (0, 30)
INDIVIDUAL_RANKS, QUICK_INDIVIDUAL_RANKS = (1, 2, 3, 5), (1, 3)
NULL_IMAGES, RANK_IMAGES = 12, 10


def _edits(operator: JacobianOperator, method: Method, subject: Subject, picked: Picked) -> dict[str, Found | Refused]:
    from pipeline.methods.directions import measured as with_gains

    edits = with_gains(operator, picked.vectors, subject.masks, method.limit, picked.evidence)
    return {**edits, **picked.refused}


def on_every_image(rows: Rows, *columns: str) -> tuple[Rows, list[str]]:
    """Rows at those values of the columns that every image has, and a sentence on each that is not compared.

    Medians of different images do not tell what a rank does; an image without some region may have less room.
    """
    images = {row["image"] for row in rows}
    seen: dict[tuple[Any, ...], set[str]] = {}
    for row in rows:
        seen.setdefault(tuple(row[name] for name in columns), set()).add(row["image"])
    whole = {point for point, own in seen.items() if own == images}
    told = []
    for point in sorted(set(seen) - whole):
        where = " with ".join(f"{name.replace('_', ' ')} {value}" for name, value in zip(columns, point, strict=True))
        told.append(f"Not compared: {where}, for which {len(seen[point])} of {len(images)} images have room.")
    return [row for row in rows if tuple(row[name] for name in columns) in whole], told


# --- LOCO's null space --------------------------------------------------------------------------------------------


def _measure_null(setup: Setup) -> Rows:
    homes = Homes(setup, NULL_IMAGES)
    rows: Rows = [row for row in homes.left_out() if row["what"] != "individual components"]
    with stage("edits against the null rank", len(homes.images)) as advance:
        for image in homes.images:
            rows += _null_rows(homes, image, QUICK_NULL_RANKS if setup.quick else NULL_RANKS)
            advance(1, "")
    return rows


def _null_rows(homes: Homes, image: SourceImage, null_ranks: Sequence[int]) -> Rows:
    """A row per region and null rank that there is room for."""
    from pipeline.jacobian import jacobian
    from pipeline.methods.nested import by_null_rank

    method = homes.method("loco")
    subject = homes.subject(method, image)

    def make() -> Rows:
        operator = jacobian(method.denoiser, subject.x_t, method.timestep, "x0/x")
        rows: Rows = []
        for null_rank, picked in by_null_rank(
            operator, subject.masks, null_ranks, cast("LocoSettings", method.settings)
        ):
            found = trial_rows(homes.world, method, subject, _edits(operator, method, subject, picked))
            rows += [{**row, "method": "loco", "null_rank": null_rank} for row in found]
        return rows

    key = {**homes.key(method, image), "null_ranks": null_ranks}
    return homes.setup.cells.get("ablation-null-rank", key, make).rows if subject.masks else []


def _draw_null(rows: Rows) -> dict[str, Figure]:
    found, _ = on_every_image(measured(rows), "null_rank")
    return {"ablation-null-rank": draw_against(found, "null_rank", "null rank (directions of the rest removed)")}


def _conclude_null(rows: Rows) -> list[str]:
    found, told = on_every_image(measured(rows), "null_rank")
    return best_and_worst(found, "null_rank", "null rank {}") + told + omissions(rows)


# --- joint and individual ranks -----------------------------------------------------------------------------------


def _measure_ranks(setup: Setup) -> Rows:
    homes = Homes(setup, RANK_IMAGES)
    rows: Rows = homes.left_out()
    if "individual" not in homes.methods:
        return rows
    joint = QUICK_JOINT_RANKS if setup.quick else JOINT_RANKS
    with stage("edits against joint and individual ranks", len(homes.images) * len(joint)) as advance:
        for image in homes.images:
            work = _Ranks(homes, image)
            for joint_rank in joint:
                rows += work.rows(joint_rank, QUICK_INDIVIDUAL_RANKS if setup.quick else INDIVIDUAL_RANKS)
                advance(1, f"joint rank {joint_rank}")
    return rows


class _Ranks:
    """One image's edits by ranks; its singular vectors are found when the first missing cell asks for them."""

    def __init__(self, homes: Homes, image: SourceImage) -> None:
        self.homes, self.image, self.method = homes, image, homes.method("individual")
        self.settings = cast("IndividualSettings", self.method.settings)
        self.subject = homes.subject(self.method, image)
        self.blocks = cache(self._blocks)

    def _blocks(self) -> tuple[JacobianOperator, dict[str, TruncatedSVD]]:
        from pipeline.jacobian import jacobian
        from pipeline.methods.nested import singular_blocks

        operator = jacobian(self.method.denoiser, self.subject.x_t, self.method.timestep, "x0/h")
        return operator, singular_blocks(operator, self.subject.masks, self.settings)

    def rows(self, joint_rank: int, individual_ranks: Sequence[int]) -> Rows:
        """A row per region and individual rank that there is room for beside this joint rank."""
        key = {**self.homes.key(self.method, self.image), "joint_rank": joint_rank, "individual": individual_ranks}
        if self.settings.orthogonal_individuals:
            key["orthogonal"] = True

        def make() -> Rows:
            return [row for rank in individual_ranks for row in self._edits(joint_rank, rank)]

        return self.homes.setup.cells.get("ablation-ranks", key, make).rows if self.subject.masks else []

    def _edits(self, joint_rank: int, individual_rank: int) -> Rows:
        from pipeline.methods.nested import first_components, fits

        operator, blocks = self.blocks()
        orthogonal = self.settings.orthogonal_individuals
        if not fits(blocks, joint_rank, individual_rank, orthogonal_individuals=orthogonal):
            return []
        picked = first_components(
            blocks, joint_rank, individual_rank, scale=self.settings.scale, orthogonal_individuals=orthogonal
        )
        edits = _edits(operator, self.method, self.subject, picked)
        head = {"joint_rank": joint_rank, "individual_rank": individual_rank, "rank": self.settings.rank}
        return [{**row, **head} for row in trial_rows(self.homes.world, self.method, self.subject, edits)]


def _draw_ranks(rows: Rows) -> dict[str, Figure]:
    from flows.evaluation.plots import SIZE, label, panels

    found, _ = on_every_image(measured(rows), "joint_rank", "individual_rank")
    if not found:
        return {}
    joint, individual = sorted(names(found, "joint_rank")), sorted(names(found, "individual_rank"))
    maps: list[tuple[str, Any, Any]] = [("median ROIR (smaller is more local)", "roir", "median")]
    if are_read(found):
        maps.append(("share of edits that succeed", succeeded, "mean"))
    figure, axes = panels(len(maps), columns=2, height=2.9)
    for ax, (title, value, kind) in zip(axes, maps, strict=True):
        parts = [[of(found, joint_rank=j, individual_rank=i) for j in joint] for i in individual]
        grid = np.array([[statistic(part, value, kind).estimate for part in row] for row in parts])
        finite = np.where(np.isfinite(grid), grid, np.nan)
        shown = ax.imshow(finite, cmap="cividis", aspect="auto", origin="lower")
        low, high = shown.get_clim()
        for row in range(len(individual)):
            for column in range(len(joint)):
                bright = finite[row, column] > 0.5 * (low + high)
                text = "none" if np.isnan(grid[row, column]) else f"{grid[row, column]:.2f}"
                ax.text(
                    column, row, text, ha="center", va="center", fontsize=SIZE, color="black" if bright else "white"
                )
        ax.set_xticks(range(len(joint)), [str(rank) for rank in joint])
        ax.set_yticks(range(len(individual)), [str(rank) for rank in individual])
        ax.grid(visible=False)
        label(ax, title, "joint rank", "individual rank")
        figure.colorbar(shown, ax=ax).ax.tick_params(labelsize=SIZE - 1)
    return {"ablation-ranks": figure}


def _conclude_ranks(rows: Rows) -> list[str]:
    found, told = on_every_image(measured(rows), "joint_rank", "individual_rank")
    if not found:
        return told + omissions(rows)
    pairs = sorted({(row["joint_rank"], row["individual_rank"]) for row in found})
    parts = {pair: of(found, joint_rank=pair[0], individual_rank=pair[1]) for pair in pairs}
    ratios = {pair: statistic(part, "roir") for pair, part in parts.items()}
    of_what = (
        f"blocks of rank {listed(str(rank) for rank in names(found, 'rank'))}; images: {len(names(found, 'image'))}."
    )
    sentences = [f"{_extremes(ratios)}; {of_what}"]
    if len(pairs) > 1 and 0 in names(found, "joint_rank"):
        plain = statistic(of(found, joint_rank=0), "roir")
        sentences.append(f"Without a joint part it is {written(plain)}.")
    if are_read(found):
        shares = {pair: statistic(part, succeeded, "mean") for pair, part in parts.items()}
        shares = {pair: share for pair, share in shares.items() if share.count}
        best = max(shares, key=lambda pair: (shares[pair].estimate, -ratios[pair].estimate))
        ties = sum(share.estimate == shares[best].estimate for share in shares.values())
        more = f" (as many at {ties - 1} other pairs of ranks)" if ties > 1 else ""
        most = f"Most edits succeed at joint rank {best[0]} with {best[1]}{more}, {written(shares[best])} of them."
        alike = f"Of the edits, {written(shares[best])} succeed{' at each of these pairs' if ties > 1 else ''}."
        sentences.append(alike if ties == len(shares) else most)
        if any(share.count < len(parts[pair]) for pair, share in shares.items()):
            sentences.append("Success is of the edits of regions whose attributes are read.")
    return sentences + told + omissions(rows)


def _extremes(ratios: Mapping[tuple[int, int], Statistic]) -> str:
    """Where the median ROIR is lowest and highest, by pair of joint and individual rank."""
    low, high = (end(ratios, key=lambda pair: ratios[pair].estimate) for end in (min, max))
    if len(ratios) == 1:
        only = f"joint rank {low[0]} with individual rank {low[1]}, the only ranks there was room for"
        return f"The median ROIR is {written(ratios[low])} at {only}"
    if ratios[low].estimate == ratios[high].estimate:
        return f"The median ROIR is {ratios[low].estimate:.2f} at all {len(ratios)} pairs of ranks"
    return (
        f"The median ROIR is lowest at joint rank {low[0]} with individual rank {low[1]}, {written(ratios[low])}, and "
        f"highest at {high[0]} with {high[1]}, {written(ratios[high])}"
    )


ABLATION_NULL_RANK = Experiment(
    name="ablation-null-rank",
    title="LOCO Edit against the rank of its null space",
    source="LOCO Edit's ablation of the null-space rank; projected directions, at visible strength on held-out images",
    measure=_measure_null,
    draw=_draw_null,
    conclude=_conclude_null,
)
ABLATION_RANKS = Experiment(
    name="ablation-ranks",
    title="Individual components against joint and individual rank",
    source="Kouzelis et al. 2024, appendix B.1, figure 1, with figures over many edits in the place of one image",
    measure=_measure_ranks,
    draw=_draw_ranks,
    conclude=_conclude_ranks,
)
