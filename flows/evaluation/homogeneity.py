"""One direction on many images: does it do the same everywhere?

Edits are those of `homes`. Each is applied to other held-out images at the strength that made it visible at home: as it
is, and moved to where the image has the region. Nothing is searched for anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flows.console import stage
from flows.datasets.contract import SourceImage
from flows.evaluation.ablations import forward
from flows.evaluation.cells import Rows, digest
from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.homes import TITLES, WAYS, Home, Homes, applied, left_out, usable
from flows.evaluation.pictures import encoded
from flows.evaluation.series import Value, are_read, measured, names, of, omissions, statistic, success_told, written
from flows.evaluation.trials import LEAST_MOVE, ROIR_LIMIT
from pipeline.errors import InputError
from pipeline.methods.contract import Found, Method, Subject
from pipeline.metrics import rms_inside, roir, success
from pipeline.registration import registered

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Size:
    """Images that directions come from, other images that each is tried on, and of how many pictures are kept."""

    homes: int = 6
    others: int = 50
    shown: int = 12


QUICK = Size(1, 6, 6)
CHUNK = 10  # images a cell


@dataclass(frozen=True)
class Known:
    """An edit with the image it was found on, and what it changes there at its visible strength, (C, H, W)."""

    home: Home
    edit: Found
    subject: Subject
    effect: torch.Tensor


def there(method: Method, edit: Found, home: torch.Tensor, target: torch.Tensor) -> Found | None:
    """The edit for an image with the region at mask `target`; None where nothing of it is left there."""
    try:
        return method.moved(edit, home, target)
    except InputError:
        return None


def registered_cosine(
    home: torch.Tensor, other: torch.Tensor, home_mask: torch.Tensor, other_mask: torch.Tensor
) -> float:
    """Cosine of two changes (C, H, W) inside the home mask, the other one shifted from its mask's centre to home's.

    NaN where one of them changes nothing there.
    """
    try:
        moved = registered(other, other_mask, home_mask)
    except InputError:  # nothing changes, or all that does is shifted out of the picture
        return math.nan
    pair = [(change * home_mask).flatten().double() for change in (home, moved)]
    sizes = float(pair[0].norm() * pair[1].norm())
    return float(pair[0] @ pair[1]) / sizes if sizes > 0 else math.nan


def _measure(setup: Setup) -> Rows:
    """Rows of `_Tries.rows`, in cells of a few images. Cost: two decodes per edit and image, and one per image."""
    wanted = QUICK if setup.quick else Size()
    homes = Homes(setup, wanted.homes)
    pool = setup.world.up_to("holdout", wanted.others + 1)  # one of which is home
    rows: Rows = homes.left_out()
    with stage("one direction on many images", len(pool) * len(homes.methods)) as advance:
        for name in homes.methods:
            tries = _Tries(homes, name)
            for start in range(0, len(pool), CHUNK):
                part = pool[start : start + CHUNK]
                rows += tries.rows(part, shown=max(0, wanted.shown + 1 - start))
                advance(len(part), TITLES[name])
    if not measured(rows):
        rows.append(left_out("the whole figure", "no edit can be tried on another image"))
    return rows + homes.refusals() + homes.limits()


class _Tries:
    """One method's edits on other images. What they change at home is decoded once, and only if a cell is missing."""

    def __init__(self, homes: Homes, name: str) -> None:
        self.homes, self.method = homes, homes.method(name)
        self.found = [(image, usable(homes.get(self.method, image))) for image in homes.images]

    def rows(self, images: Sequence[SourceImage], shown: int) -> Rows:
        """Every edit on these images; pictures of the first `shown`, by edits of the first image."""
        method, world = self.method, self.homes.world
        key = {**world.key(images), "method": method.name, "settings": method.settings.as_dict()}
        key |= {"homes": digest([self.homes.key(method, image) for image, _ in self.found]), "shown": shown}
        key["ways"] = list(WAYS.values())
        return self.homes.setup.cells.get("homogeneity", key, lambda: self._rows(images, shown)).rows

    @cached_property
    def _known(self) -> list[Known]:
        known = []
        for image, edits in self.found:
            if edits:
                subject, found = self.homes.subject(self.method, image), [edit for _, edit in edits]
                strengths = [0.0, *(edit.guess for edit in found)]
                pictures = applied(self.method, [found[0], *found], [subject] * len(strengths), strengths)
                effects = pictures[1:] - pictures[:1]
                known += [Known(*one, subject, effect) for one, effect in zip(edits, effects, strict=True)]
        return known

    def _rows(self, images: Sequence[SourceImage], shown: int) -> Rows:
        method = self.method
        targets = self.homes.world.subjects(images, method.timestep, method.settings.inversion_steps)
        rows: Rows = []
        for i, target in enumerate(targets):
            tried: list[tuple[Known, Found, bool]] = []
            for known in self._known:
                region = known.edit.region
                if known.subject.name != target.name and region in target.masks:
                    tried.append((known, known.edit, False))
                    edit = there(self.method, known.edit, known.subject.masks[region], target.masks[region])
                    if edit is None:
                        rows.append(self._nothing_left(known, target))
                    else:
                        tried.append((known, edit, True))
            if tried:
                rows += self._on_one(target, tried, shown=i < shown)
        return rows

    def _nothing_left(self, known: Known, target: Subject) -> dict[str, Any]:
        """The row of an edit of which nothing is left when it is moved: it changes nothing there."""
        row = {**self._head(known, target, moved=True), "roir": math.inf, "rms": 0.0, "rms_ratio": 0.0}
        row |= {"cosine": math.nan, "failure": "nothing of the direction is left there"}
        return row | ({} if known.home.verdict is None else {"success": False})

    def _head(self, known: Known, target: Subject, moved: bool) -> dict[str, Any]:
        head = {"image": known.subject.name, "target": target.name, "method": self.method.name}
        return {**head, "region": known.home.region, "moved": moved}

    def _on_one(self, target: Subject, tried: Sequence[tuple[Known, Found, bool]], *, shown: bool) -> Rows:
        """A row per edit, `moved` or not: `cosine` with its effect at home, `rms` inside the mask and `rms_ratio` to
        that at home, `roir`; where attributes are read `move` of the factor that moved most at home, and `success` with
        its sign."""
        edits = [edit for _, edit, _ in tried]
        strengths = [0.0, *(edit.guess for edit in edits)]
        pictures = applied(self.method, [edits[0], *edits], [target] * len(strengths), strengths)
        before, after = pictures[:1].expand_as(pictures[1:]), pictures[1:]
        masks = torch.stack([target.masks[edit.region] for edit in edits])
        changes, ratios = rms_inside(after - before, masks), roir(before, after, masks)
        read = self.homes.world.read(pictures)
        rows: Rows = []
        for i, (known, _, moved) in enumerate(tried):
            home, mask = known.home, known.subject.masks[known.edit.region]
            row = {**self._head(known, target, moved), "roir": float(ratios[i]), "rms": float(changes[i])}
            row["rms_ratio"] = row["rms"] / home.row["rms"]
            row["cosine"] = registered_cosine(known.effect, after[i] - before[i], mask, masks[i])
            if home.verdict is not None:
                own = self.homes.world.factors(home.region)
                verdict = success(read[0], read[i + 1], own, row["roir"], like=home.verdict)
                row |= {"success": verdict.success, "factor": verdict.factor, "move": verdict.move}
                row |= {"other_move": verdict.other_move, "rises": home.verdict.move > 0}
            if shown and known.subject.name == self.homes.images[0].image_id:
                row["pictures"] = [encoded(before[i]), encoded(after[i])]
            rows.append(row)
        return rows


def _draw(rows: Rows) -> dict[str, Figure]:
    from flows.evaluation.plots import SIZE, below, label, lines, panels, split

    found = measured(rows)
    if not found:
        return {}
    parts = [
        (f"{TITLES[method]}, {way}", of(found, method=method, moved=moved), regions)
        for method in names(found, "method")
        for moved, way in WAYS.items()
        for regions in split(names(of(found, method=method, moved=moved), "region"))
    ]
    shown: list[tuple[str, Value]] = [("cosine with the effect at home", "cosine"), ("ROIR", "roir")]
    if are_read(found):
        shown.append(("own attribute, as at home (share of range)", forward))
    figure, axes = panels(len(shown) * len(parts), columns=len(shown), height=3.2)
    for i, (title, own, regions) in enumerate(parts):
        for j, (axis, value) in enumerate(shown):
            ax = axes[i * len(shown) + j]
            lines(ax, {region: distribution(of(own, region=region), value) for region in regions})
            label(ax, title, axis, "share of pairs with at most this")
            ax.set_ylim(-0.03, 1.03)
            if value == "roir" and ax.dataLim.xmax > 2 * ROIR_LIMIT:  # outliers would press all others to the left
                ax.set_xlim(0, 2 * ROIR_LIMIT)
            below(ax, columns=2)
    figure.supxlabel("a pair: one direction on one other image", fontsize=SIZE - 2)
    return {"homogeneity": figure, **_sheets(found)}


def distribution(rows: Rows, value: Value) -> list[tuple[float, float]]:
    """Quantiles of a value with their shares, by tenths of its finite values: up to 1 where all are finite, and lower
    where some are infinite. What has no value, None or NaN, does not count."""
    found = [row[value] if isinstance(value, str) else value(row) for row in rows]
    known = [float(one) for one in found if one is not None and not math.isnan(one)]
    finite = [one for one in known if math.isfinite(one)]
    if not finite:
        return []
    tenths = np.linspace(0, 1, 11)
    shares = tenths * len(finite) / len(known)
    return list(zip(np.quantile(finite, tenths).tolist(), shares.tolist(), strict=True))


def _sheets(rows: Rows) -> dict[str, Figure]:
    """A sheet per method: each image unedited above, below it under every edit of the first image, both ways."""
    from flows.evaluation.sheets import sheet

    drawn = {}
    for method in names(rows, "method"):
        own = [row for row in of(rows, method=method) if "pictures" in row]
        targets, regions = names(own, "target"), names(own, "region")
        if not own:
            continue
        kinds = [(region, moved) for region in regions for moved in WAYS]
        cells = [[of(own, target=target, region=r, moved=moved) for target in targets] for r, moved in kinds]
        first = [next((row["pictures"][0] for row in own if row["target"] == target), None) for target in targets]
        drawn[f"homogeneity-{method}"] = sheet(
            [first, *([one[0]["pictures"][1] if one else None for one in row] for row in cells)],
            rows=["unedited", *(f"{region}\n{WAYS[moved]}" for region, moved in kinds)],
            columns=[f"image {i + 1}" for i in range(len(targets))],
            captions=[[""] * len(targets), *([_caption(one) for one in row] for row in cells)],
            title=f"{TITLES[method]}: directions of one image on {len(targets)} others",
        )
    return drawn


def _caption(rows: Rows) -> str:
    if not rows:
        return ""
    moved = f"\n{rows[0]['factor']} {rows[0]['move']:+.2f}" if "move" in rows[0] else ""
    return f"cosine {rows[0]['cosine']:.2f}{moved}"


def _conclude(rows: Rows) -> list[str]:
    found = measured(rows)
    sentences = []
    for method in names(found, "method"):
        own = of(found, method=method)
        for moved, way in WAYS.items():
            if part := of(own, moved=moved):
                sentences.append(f"{TITLES[method]}, {way}: {_told(part)}.")
        directions = len({(row["image"], row["region"]) for row in own})
        sentences.append(
            f"{TITLES[method]}: {directions} directions of {len(names(own, 'image'))} images, tried on "
            f"{len(names(own, 'target'))} images; intervals are over the images that directions come from."
        )
    return sentences + omissions(rows)


def _told(rows: Rows) -> str:
    """What edits do on other images, used one way, as part of a sentence."""
    cosines = statistic([row for row in rows if math.isfinite(row["cosine"])], "cosine")
    ratio, local = statistic(rows, "rms_ratio"), statistic(rows, "roir")
    text = (
        f"on other images an edit has a median cosine of {written(cosines)} with its effect at home, {written(ratio)} "
        f"times its size, and a median ROIR of {written(local)}"
    )
    if not are_read(rows):
        return text
    read = [(row, float(forward(row) or 0.0)) for row in rows if "success" in row]
    moves = [{"image": row["image"], "same": move > 0, "enough": move >= LEAST_MOVE} for row, move in read]
    same, enough = (written(statistic(moves, name, "mean")) for name in ("same", "enough"))
    return (
        f"{text}; it moves the same attribute the same way on {same} of them, by {LEAST_MOVE:g} or more on {enough}; "
        f"{success_told(rows)}"
    )


HOMOGENEITY = Experiment(
    name="homogeneity",
    title="One direction on many images",
    source=(
        "LOCO Edit, figure 1b (homogeneity), at the visible strength of the direction's own image; directions as they "
        "are, which is the paper's claim, and each moved to where the other image has the region. Effects are compared "
        "inside the region after shifting them to the same place"
    ),
    measure=_measure,
    draw=_draw,
    conclude=_conclude,
)
