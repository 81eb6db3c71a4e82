"""Figures over many edits and transfers: success shares, ROIR, pictures outside the region, and what went wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from pipeline.intervals import Figure, figure
from pipeline.mining import Direction
from tests.benchmarks.trials import Trial

SMALL_REGIONS = ("left_eye", "right_eye", "mouth")
IOU_EDGES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
OVERLAP = 0.5  # mask IoU from which a pair of images counts for the headline


@dataclass(frozen=True)
class Edited:
    """One method's edit of one region of one image, better sign; None where mining refused the direction."""

    method: str
    image: str
    region: str
    direction: Direction | None
    trial: Trial | None

    @property
    def success(self) -> bool:
        return self.trial is not None and self.trial.verdict.success

    @property
    def roir(self) -> float:
        """ROIR of the decoded edit; infinite without a direction, so that a refusal never flatters a median."""
        return math.inf if self.trial is None else self.trial.verdict.roir

    def row(self) -> dict[str, Any]:
        """The edit as one JSON row."""
        head: dict[str, Any] = {"method": self.method, "image": self.image, "region": self.region}
        if self.trial is None or self.direction is None:
            return {**head, "success": False, "reasons": ["direction refused"]}
        t, v, d = self.trial, self.trial.verdict, self.direction
        return {
            **head,
            "rank": d.rank,
            "gain": d.gain,
            "leakage": d.leakage,
            "kept_share": d.kept_share,
            "strength": t.strength,
            "rms": t.rms,
            "limited": t.limited,
            "roir": v.roir,
            "psnr_outside": t.psnr,
            "ssim_outside": t.ssim,
            "factor": v.factor,
            "move": v.move,
            "other": v.other,
            "other_move": v.other_move,
            "success": v.success,
            "reasons": list(t.reasons()),
        }


@dataclass(frozen=True)
class Transferred:
    """One direction of `home` tried on another image, whose mask overlaps the home mask by `iou`.

    `perfect`: an edit that moves the same true factor the same way, and nothing else, is a success there.
    """

    home: Edited
    image: str
    iou: float
    trial: Trial
    perfect: bool

    @property
    def reasons(self) -> tuple[str, ...]:
        return self.trial.reasons(None if self.home.trial is None else self.home.trial.verdict)


def edit_figures(edits: Sequence[Edited]) -> dict[str, Any]:
    """All figures over a set of edits, with intervals by bootstrap over images."""
    tried = [(e, e.trial) for e in edits if e.trial is not None]
    images = [e.image for e in edits]
    reached = [e.image for e, _ in tried]
    reasons = Counter(reason for _, trial in tried for reason in trial.reasons())
    reasons.update(["direction refused"] * (len(edits) - len(tried)))
    return {
        "edits": len(edits),
        "refused": len(edits) - len(tried),
        "success": figure([float(e.success) for e in edits], images, "mean"),
        "roir_median": figure([e.roir for e in edits], images),
        "roir_mean": figure([e.roir for e in edits], images, "mean"),
        "psnr_outside_median": figure([t.psnr for _, t in tried], reached),
        "ssim_outside_median": figure([t.ssim for _, t in tried], reached),
        "rms_median": figure([t.rms for _, t in tried], reached),
        "own_move_median": figure([abs(t.verdict.move) for _, t in tried], reached),
        "other_move_median": figure([abs(t.verdict.other_move) for _, t in tried], reached),
        "limit_hits": sum(t.limited for _, t in tried),
        "strength_not_reached": sum(not t.reached for _, t in tried),
        "most_moved_own_factor": dict(Counter(t.verdict.factor for _, t in tried).most_common()),
        "most_moved_other_factor": dict(Counter(t.verdict.other for _, t in tried).most_common()),
        "failures": dict(reasons.most_common()),
    }


def by_region(edits: Sequence[Edited]) -> dict[str, Any]:
    """`edit_figures` of all edits, of the small regions together, and of each region."""
    result = {"all": edit_figures(edits)}
    small = [e for e in edits if e.region in SMALL_REGIONS]
    if small:
        result["small regions"] = edit_figures(small)
    for region in dict.fromkeys(e.region for e in edits):
        result[region] = edit_figures([e for e in edits if e.region == region])
    return result


def _share(pairs: Sequence[Transferred]) -> Figure:
    return figure([float(p.trial.verdict.success) for p in pairs], [p.home.image for p in pairs], "mean")


def _by_factor(pairs: Sequence[Transferred]) -> dict[str, dict[str, float]]:
    """Pairs, success and the perfect editor's success by the factor that moved at home."""
    found: dict[str, list[Transferred]] = {}
    for pair in pairs:
        if pair.home.trial is not None:
            found.setdefault(pair.home.trial.verdict.factor, []).append(pair)
    return {
        factor: {
            "pairs": len(group),
            "success": fmean(p.trial.verdict.success for p in group),
            "perfect": fmean(p.perfect for p in group),
        }
        for factor, group in sorted(found.items())
    }


def transfer_figures(pairs: Sequence[Transferred]) -> dict[str, Any]:
    """Transfer success: the headline over overlapping pairs, and the curve against mask IoU beside it.

    The headline counts every direction, also those whose edit failed at home; `of_home_successes` only the others.
    """
    headline = [p for p in pairs if p.iou >= OVERLAP]
    curve = []
    for low, high in pairwise(IOU_EDGES):
        inside = [p for p in pairs if low <= p.iou < high or (high == 1.0 and p.iou == 1.0)]
        roir = figure([p.trial.verdict.roir for p in inside], [p.home.image for p in inside])
        curve.append({"iou_from": low, "iou_to": high, "success": _share(inside), "roir_median": roir})
    regions = dict.fromkeys(p.home.region for p in pairs)
    return {
        "pairs": len(pairs),
        "overlapping_pairs": len(headline),
        "success_overlapping": _share(headline),
        "success_overlapping_of_home_successes": _share([p for p in headline if p.home.success]),
        "success_all_pairs": _share(pairs),
        "perfect_editor_overlapping": figure(
            [float(p.perfect) for p in headline], [p.home.image for p in headline], "mean"
        ),
        "success_overlapping_where_perfect": _share([p for p in headline if p.perfect]),
        "perfect_editor_by_factor": _by_factor(headline),
        "roir_median_overlapping": figure([p.trial.verdict.roir for p in headline], [p.home.image for p in headline]),
        "by_region": {r: _share([p for p in headline if p.home.region == r]) for r in regions},
        "curve": curve,
        "limit_hits": sum(p.trial.limited for p in pairs),
        "failures_overlapping": dict(Counter(reason for p in headline for reason in p.reasons).most_common()),
    }
