"""Segments from the Jacobian against the true parts of the built-in faces, and against pictures cut without a model.

`python -m tests.benchmarks.regions [--quick] [--json] [--save FILE] [--tune]`: every held-out face is cut into the same
number of pieces by each way. A part's figure is the IoU of the piece that fits it best; purity is the share of pixels
that lie in the part to which most of their piece belongs. `--tune` tries settings on `mine` images instead: so those of
`pipeline.regions.segments` were chosen.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from skimage.segmentation import slic

from flows.console import stage
from flows.evaluation.world import Split
from pipeline.faces.factors import REGIONS
from pipeline.intervals import Figure, figure
from pipeline.regions.merging import merged_segments
from pipeline.regions.segments import SegmentSettings, jacobian_segments
from tests.benchmarks.harness import Target, at_least, at_most, document, finish, options, table
from tests.benchmarks.subjects import Bench, open_bench

SMALL = ("left_eye", "right_eye", "brows", "nose", "mouth")
OURS, BASELINES = "Jacobian segments", ("grid", "k-means on colours", "merged colours")
PREDICTED = {  # before the full run, from 12 `mine` images
    "IoU": "small parts 0.62, all 0.58; grid 0.21 and 0.20, k-means 0.20 and 0.23, merged colours 0.21 and 0.31",
    "purity": "0.83, no better than merged colours: large areas of one colour are easy",
    "products": "72 an image",
}
TUNED: tuple[dict[str, float], ...] = (
    {},
    *({"rank": rank} for rank in (8, 16, 24, 40)),
    *({"count": count} for count in (8, 10, 14, 16)),
    *({"smoothing": blur / 64} for blur in (0.0, 0.75, 1.25, 1.5)),
    *({"floor": floor} for floor in (0.02, 0.05, 0.2, 0.4)),
    {"tolerance": 0.5},
)

Cut = Callable[[int], np.ndarray]
"""The index of an image -> labels (H, W)."""


@dataclass(frozen=True)
class Scores:
    """How one image's pieces fit its parts: the best IoU of each, and purity."""

    best: dict[str, float]
    purity: float

    def mean(self, parts: Sequence[str]) -> float:
        """Mean of the best IoUs over those of `parts` that the image has."""
        return float(np.mean([self.best[part] for part in parts if part in self.best]))


def scores(labels: np.ndarray, parts: Mapping[str, np.ndarray]) -> Scores:
    """Pieces, labels (H, W), compared with true parts, bool (H, W) that together cover the picture once."""
    values = np.unique(labels)
    pieces = np.stack([labels == value for value in values]).reshape(len(values), -1).astype(np.float64)
    truth = np.stack(list(parts.values())).reshape(len(parts), -1).astype(np.float64)
    shared = truth @ pieces.T
    either = truth.sum(1)[:, None] + pieces.sum(1)[None] - shared
    best = (shared / either).max(1)
    return Scores(dict(zip(parts, best.tolist(), strict=True)), float(shared.max(0).sum() / labels.size))


def grid(count: int, size: tuple[int, int]) -> np.ndarray:
    """Labels (H, W) of equal rectangles: `count` of them, as near to squares as its divisors allow."""
    rows = max(n for n in range(1, math.isqrt(count) + 1) if count % n == 0)
    columns = count // rows
    down, across = np.arange(size[0]) * rows // size[0], np.arange(size[1]) * columns // size[1]
    return down[:, None] * columns + across[None, :]


def summary(found: Sequence[Scores], names: Sequence[str]) -> dict[str, Figure]:
    """Means over images with their intervals: small parts, all parts, purity, and every part by itself."""
    figures = {
        "small parts": figure([s.mean(SMALL) for s in found], names, "mean"),
        "all parts": figure([s.mean(REGIONS) for s in found], names, "mean"),
        "purity": figure([s.purity for s in found], names, "mean"),
    }
    for part in REGIONS:
        there = [(s.best[part], name) for s, name in zip(found, names, strict=True) if part in s.best]
        figures[part] = figure([value for value, _ in there], [name for _, name in there], "mean")
    return figures


@dataclass(frozen=True)
class Faces:
    """Images of one split: pictures and latents (B, C, H, W), true parts and names."""

    x0: torch.Tensor
    x_t: torch.Tensor
    parts: list[dict[str, np.ndarray]]
    names: list[str]

    def measured(self, cut: Cut) -> dict[str, Figure]:
        """Figures of one way to cut."""
        found = [scores(cut(index), parts) for index, parts in enumerate(self.parts)]
        return summary(found, self.names)


def load_faces(bench: Bench, split: Split, count: int) -> Faces:
    """The first `count` faces of a split, inverted to the bench's timestep."""
    images = bench.images(split, count)
    x0, x_t = (torch.stack(parts) for parts in zip(*((s.picture, s.x_t) for s in bench.inverted(images)), strict=True))
    return Faces(x0, x_t, [dict(image.masks) for image in images], [image.image_id for image in images])


def cut_all(bench: Bench, faces: Faces, settings: SegmentSettings) -> tuple[dict[str, Figure], dict[str, float]]:
    """Figures of the Jacobian's segments, and what they cost an image: products, CPU seconds."""
    begun, products, labels = time.process_time(), [], []
    with bench.clock.stage(OURS), stage("segments", len(faces.names)) as advance:
        for x_t in faces.x_t:
            found = jacobian_segments(bench.denoiser, x_t, bench.settings.timestep, settings)
            products.append(found.products.total)
            labels.append(found.labels)
            advance(1, "")
    seconds = (time.process_time() - begun) / len(labels)
    return faces.measured(labels.__getitem__), {"products": float(np.mean(products)), "seconds": seconds}


def measure(bench: Bench, count: int, settings: SegmentSettings | None = None) -> tuple[list[Target], dict[str, Any]]:
    """Targets and details over the first `count` held-out faces."""
    settings = settings or SegmentSettings()
    faces = load_faces(bench, "holdout", count)
    pictures = faces.x0.permute(0, 2, 3, 1).double().cpu().numpy() * 0.5 + 0.5
    size = pictures.shape[1:3]
    ours, cost = cut_all(bench, faces, settings)
    ways = {
        OURS: ours,
        "grid": faces.measured(lambda index: grid(settings.count, size)),
        "k-means on colours": faces.measured(
            lambda index: slic(pictures[index], n_segments=settings.count, compactness=10.0, start_label=0)
        ),
        "merged colours": faces.measured(lambda index: merged_segments(pictures[index], settings.count)),
    }
    least = max(ways[name]["small parts"].estimate for name in BASELINES)
    easy = max(ways[name]["purity"].estimate for name in BASELINES)
    targets = [
        at_least("best IoU, mean over eyes, brows, nose and mouth", ours["small parts"].estimate, 0.5),
        at_least("the same over the best of the baselines", ours["small parts"].estimate / least, 2.0),
        at_least("best IoU, mean over all parts", ours["all parts"].estimate, 0.5),
        at_least("purity", ours["purity"].estimate, 0.8),
        at_least("purity over the best of the baselines", ours["purity"].estimate / easy, 1.0),
        at_most("products an image", cost["products"], 128),
    ]
    details = {"ways": ways, "cost": cost, "settings": asdict(settings), "predicted": PREDICTED,
               "timestep": bench.settings.timestep, "images": len(faces.names)}  # fmt: skip
    return targets, details


def tune(bench: Bench, count: int, tried: Sequence[Mapping[str, float]] = TUNED) -> list[dict[str, Any]]:
    """Figures of other settings, one changed at a time, on the first `count` faces of `mine`."""
    faces = load_faces(bench, "mine", count)
    rows = []
    for change in tried:
        figures, cost = cut_all(bench, faces, replace(SegmentSettings(), **change))  # type: ignore[arg-type]
        rows.append({"change": dict(change), **{k: figures[k].estimate for k in ("small parts", "all parts", "purity")},
                     "products": cost["products"]})  # fmt: skip
    return rows


def tables(details: Mapping[str, Any]) -> None:
    """Print what was measured."""
    if "ways" in details:
        header = ("way", *details["ways"][OURS])
        table("Best IoU, and purity", header, [(way, *(f.estimate for f in figures.values()))
              for way, figures in details["ways"].items()])  # fmt: skip
    if "tuned" in details:
        rows = [(", ".join(f"{k} {v:.3g}" for k, v in row["change"].items()) or "as they are", *list(row.values())[1:])
                for row in details["tuned"]]  # fmt: skip
        table("Settings on `mine`", ("change", "small parts", "all parts", "purity", "products"), rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--tune", action="store_true", help="try other settings on `mine` images instead")

    given = options("regions", "Segments from the Jacobian against the true parts of faces.", argv, more)
    targets: list[Target] = []
    with open_bench(regions=REGIONS) as bench:
        if given.extra.tune:
            details: dict[str, Any] = {"tuned": tune(bench, 4 if given.quick else 24)}
        else:
            targets, details = measure(bench, 4 if given.quick else 64)
    return finish(document("regions", given.quick, targets, details, bench.clock), given, lambda: tables(details))


if __name__ == "__main__":
    sys.exit(main())
