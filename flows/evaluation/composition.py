"""Several directions at once: the effect of their sum against the sum of their effects.

Edits are those of `homes`, each at its own visible strength.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.datasets.contract import SourceImage
from flows.evaluation.cells import Rows
from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.homes import SHOWN, TITLES, Home, Homes, apply_all, combined, usable
from flows.evaluation.series import curve, names, of, omissions, statistic, written
from flows.evaluation.trials import LEAST_MOVE, OTHER_LIMIT

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGES, MOST = 10, 4
SETS = 12  # of one size and image: all sets would grow with the fourth power of the number of regions


def _measure(setup: Setup) -> Rows:
    homes = Homes(setup, IMAGES)
    return (
        homes.left_out()
        + homes.gathered(
            "several edits at once",
            lambda name, i, image: _image_rows(homes, name, image, shown=i < SHOWN),
            "no image has two regions with edits",
        )
        + homes.limits()
    )


def _image_rows(homes: Homes, name: str, image: SourceImage, *, shown: bool) -> Rows:
    """Rows of every set of two to four edits of an image (`set_row`), and one with pictures where they are kept."""
    method = homes.method(name)
    edits = [home for home, _ in usable(homes.get(method, image))]
    if len(edits) < 2:
        return []

    def make() -> Rows:
        sets = [own for count in range(2, MOST + 1) for own in drawn_sets(len(edits), count, image.image_id)]
        singles = [(i,) for i in range(len(edits))]
        sums = [combined([edits[i] for i in own], [1.0] * len(own)) for own in (*singles, *sets)]
        subject = homes.subject(method, image)
        found, strengths = [sums[0][0], *(edit for edit, _ in sums)], [0.0, *(size for _, size in sums)]
        pictures = apply_all(method, subject, found, strengths)
        readings = homes.world.read(pictures)
        alone, together = pictures[1 : len(edits) + 1], pictures[len(edits) + 1 :]
        read_alone, read_together = readings[1 : len(edits) + 1], readings[len(edits) + 1 :]
        rows: Rows = []
        for own, picture, reading in zip(sets, together, read_together, strict=True):
            chosen = [edits[i] for i in own]
            head = {"image": image.image_id, "method": name}
            figures = set_row(pictures[0], [alone[i] for i in own], picture)
            moves = set_moves(chosen, readings[0], [read_alone[i] for i in own], reading)
            rows.append({**head, **figures, **moves, "of": [home.region for home in chosen]})
        if shown:
            rows.append(_shown(image.image_id, name, edits, sets, pictures))
        return rows

    key = {**homes.key(method, image), "shown": shown, "most": MOST}
    if any(comb(len(edits), count) > SETS for count in range(2, MOST + 1)):
        key["sets"] = SETS
    return homes.setup.cells.get("composition", key, make).rows


def drawn_sets(edits: int, count: int, name: str) -> list[tuple[int, ...]]:
    """Sets of `count` of so many edits: all of them, or the first and others drawn by a name, `SETS` in all."""
    every = list(combinations(range(edits), count))
    if len(every) <= SETS:
        return every
    return sorted([every[0], *random.Random(f"{name} {count}").sample(every[1:], SETS - 1)])


def set_row(before: torch.Tensor, alone: Sequence[torch.Tensor], together: torch.Tensor) -> dict[str, Any]:
    """Pictures (C, H, W) of single edits and of their sum, compared as changes: `count`, `cosine` and `norm_ratio` of
    the sum's change to the sum of changes."""
    expected = sum((picture - before for picture in alone[1:]), alone[0] - before).flatten().double()
    change = (together - before).flatten().double()
    sizes = float(change.norm()), float(expected.norm())
    nothing = min(sizes) == 0
    cosine = float("nan") if nothing else float(change @ expected) / (sizes[0] * sizes[1])
    return {"count": len(alone), "cosine": cosine, "norm_ratio": sizes[0] / sizes[1] if sizes[1] else float("nan")}


def set_moves(
    edits: Sequence[Home],
    before: Mapping[str, float],
    alone: Sequence[Mapping[str, float]],
    together: Mapping[str, float],
) -> dict[str, Any]:
    """Attributes of a sum of edits; nothing where none are read.

    `parts`: for the own factor of each edit its change in the sum (`together`), the sum of its changes by the single
    edits (`summed`) and its change by its own one (`alone`), all in the direction of the latter. `all_moved`: each is
    at least 0.15 in the sum; `others_stay`: of the factors of no edit's own region, none moves by 0.10 or more.
    """
    verdicts = [home.verdict for home in edits]
    if not before or any(verdict is None for verdict in verdicts):
        return {}
    from pipeline.faces.factors import factors_of

    parts: list[dict[str, Any]] = []
    for i, verdict in enumerate(v for v in verdicts if v is not None):
        factor = verdict.factor
        own = alone[i][factor] - before[factor]
        sign = 1.0 if own >= 0 else -1.0
        summed = sum(reading[factor] - before[factor] for reading in alone)
        moved = {"together": sign * (together[factor] - before[factor]), "summed": sign * summed, "alone": sign * own}
        parts.append({"region": edits[i].region, "factor": factor, **moved})
    theirs = {factor for home in edits for factor in factors_of(home.region)}
    rest = max((abs(together[name] - before[name]) for name in before if name not in theirs), default=0.0)
    all_moved = all(part["together"] >= LEAST_MOVE for part in parts)
    return {"parts": parts, "all_moved": all_moved, "other_move": rest, "others_stay": rest < OTHER_LIMIT}


def _shown(
    image: str, method: str, edits: Sequence[Home], sets: Sequence[tuple[int, ...]], pictures: torch.Tensor
) -> dict[str, Any]:
    """Pictures: the reconstruction, each edit alone, then the first two, three and four together."""
    from flows.evaluation.pictures import encoded

    growing = [tuple(range(count)) for count in range(2, min(MOST, len(edits)) + 1)]
    kept = [0, *range(1, len(edits) + 1), *(1 + len(edits) + sets.index(own) for own in growing)]
    titles = ["reconstruction", *(home.region for home in edits), *(f"first {len(own)} at once" for own in growing)]
    return {"kind": "pictures", "image": image, "method": method, "titles": titles,
            "pictures": [encoded(pictures[i]) for i in kept]}  # fmt: skip


def _draw(rows: Rows) -> dict[str, Figure]:
    from flows.evaluation.plots import label, lines, panels
    from flows.evaluation.sheets import sheet

    found, shown = _sets(rows), of(rows, kind="pictures")
    if not found:
        return {}
    parts = [{**part, "method": row["method"]} for row in found for part in row.get("parts", [])]
    figure, axes = panels(3 if parts else 2)
    methods = names(found, "method")
    for ax, name, title in zip(
        axes, ("cosine", "norm_ratio"), ("direction of the change", "size of the change"), strict=False
    ):
        lines(ax, {TITLES[m]: curve(of(found, method=m), "count", name) for m in methods})
        label(ax, title, "edits at once", f"median {name.replace('_', ' ')}")
        ax.set_xticks(sorted(names(found, "count")))
        ax.set_ylim(min(0.0, ax.dataLim.ymin), 1.05 * max(1.0, ax.dataLim.ymax))
        ax.axhline(1.0, color="#666666", linewidth=0.8, linestyle=(0, (1, 1)))
    if parts:
        _scatter(axes[2], parts)
    drawn = {"composition": figure}
    for image_number, image in enumerate(names(shown, "image")):
        own = of(shown, image=image)
        longest = max((row["titles"] for row in own), key=len)
        cells = [
            [dict(zip(row["titles"], row["pictures"], strict=True)).get(title) for title in longest] for row in own
        ]
        rows_of = [TITLES[row["method"]] for row in own]
        drawn[f"composition-{image_number + 1}"] = sheet(cells, rows=rows_of, columns=longest)
    return drawn


def _scatter(ax: Axes, parts: Rows) -> None:
    """The change of every own attribute in a sum against the sum of its changes by single edits."""
    from flows.evaluation.plots import COLOURS, MARKERS, label

    for i, method in enumerate(names(parts, "method")):
        own = of(parts, method=method)
        x, y = ([part[name] for part in own] for name in ("summed", "together"))
        ax.scatter(x, y, s=9, color=COLOURS[i], marker=MARKERS[i], alpha=0.6, linewidths=0, label=TITLES[method])
    values = [part[name] for part in parts for name in ("summed", "together")]
    ends = (min(values), max(values))
    ax.plot(ends, ends, color="#666666", linewidth=0.8, linestyle=(0, (1, 1)))
    label(ax, "own attribute of each edit", "sum of changes by single edits", "change by their sum")
    ax.legend(fontsize=7, frameon=False)


def _sets(rows: Rows) -> Rows:
    """Rows of sets whose change can be compared."""
    return [row for row in rows if "count" in row and np.isfinite(row["cosine"]) and np.isfinite(row["norm_ratio"])]


def _conclude(rows: Rows) -> list[str]:
    found = _sets(rows)
    sentences = []
    for method in names(found, "method"):
        own = of(found, method=method)
        texts = []
        for count in sorted(names(own, "count")):
            part = of(own, count=count)
            cosine, size = (statistic(part, name) for name in ("cosine", "norm_ratio"))
            texts.append(f"{count} at once: cosine {written(cosine)}, norm ratio {written(size)}")
        sentences.append(f"{TITLES[method]}, change of the sum against the sum of changes, {'; '.join(texts)}.")
        if any("parts" in row for row in own):
            sentences.append(f"{TITLES[method]}: {_kept(own)}.")
    return sentences + omissions(rows)


def _kept(rows: Rows) -> str:
    """What is left of single edits in their sums."""
    read = [row for row in rows if "parts" in row]
    sure = [row for row in read if all(part["alone"] >= LEAST_MOVE for part in row["parts"])]
    texts = []
    if sure:
        still = written(statistic(sure, "all_moved", "mean"))
        texts.append(
            f"of {len(sure)} sets whose edits each move their own attribute by {LEAST_MOVE:g} alone, {still} still do "
            "together"
        )
        parts = [
            {"image": row["image"], "kept": part["together"] / part["alone"]} for row in sure for part in row["parts"]
        ]
        texts.append(f"an own attribute then moves {written(statistic(parts, 'kept'))} times as far as alone")
    stays = written(statistic(read, "others_stay", "mean"))
    return "; ".join(
        [*texts, f"in {stays} of all {len(read)} sets no attribute of an unedited region moves {OTHER_LIMIT:g}"]
    )


COMPOSITION = Experiment(
    name="composition",
    title="Two, three and four directions of different regions together",
    source=(
        "LOCO Edit, figure 1c (composability): the effect of the sum against the sum of effects, of both methods; at "
        f"most {SETS} sets of a size and image"
    ),
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
