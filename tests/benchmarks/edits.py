"""Are edits local, do they do what they should, and do they transfer: measured on held-out faces by the reader.

`python -m tests.benchmarks.edits [--quick] [--json] [--save FILE] [--images N] [--others N]`: the comparison of
`rhumb evaluate`, of the papers' two methods and what each adds to, with the demo recipe's settings and none chosen:

- loco: first local direction (x-space, projected off the null space of the rest);
- loco-plain: first singular direction of the region in x-space, not projected;
- individual: first individual component (h-space, JIVE);
- h-masked: first singular direction of the region in h-space.

Edits of loco and individual are then tried on other images whose masks overlap theirs by half, as they are and moved to
where the other image has the region ("registered"). Less overlap is measured by `rhumb evaluate --figure transfer`;
`rhumb evaluate --tune` searches settings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from flows.evaluation.cells import Cell, Cells, Rows
from flows.evaluation.comparison import Comparison, Size
from flows.evaluation.filling import fill
from flows.evaluation.method_run import OVERLAP
from flows.evaluation.series import names, of
from flows.evaluation.tables import Line, line, over
from pipeline.methods.choices import METHODS
from tests.benchmarks.harness import Options, Target, at_least, at_most, document, finish, options, table
from tests.benchmarks.subjects import Bench, open_bench

COMPARED = ("loco", "loco-plain", "individual", "h-masked")
TRANSFERRED = {"loco": "LOCO", "individual": "individual"}
WAYS = {"": False, " registered": True}  # after a method's name: whether its edits are moved
SMALL_REGIONS = ("left_eye", "right_eye", "mouth")
IOU_EDGES = (OVERLAP, 0.6, 0.7, 0.8, 0.9, 1.0)
FULL = Size(images=16, choosing=0, others=8, chunk=4)
QUICK = replace(FULL, images=4, others=3)
_KEPT = ("edits", "refused", "success", "roir", "own_move", "other_move", "ssim", "psnr", "limited", "failures")


def measure(bench: Bench, size: Size) -> tuple[list[Target], dict[str, Any]]:
    """Targets and details over the first held-out images. Cost: for each method and image a search and about four
    decodes a region; for each transferred edit and other image, moved and not, about two."""
    comparison = Comparison(bench, Cells(bench.folder / "cells", lambda: bench.clock.passes), size)
    cells = {}
    for name in COMPARED:
        others = size.others if name in TRANSFERRED else 0
        tasks = [replace(task, others=others) for task in comparison.reporting(name, comparison.chosen(name).settings)]
        with bench.clock.stage(name):
            fill(comparison, tasks, 1, name)
        cells[name] = [comparison.cell(task) for task in tasks]
    rows = {name: [row for cell in own for row in cell.rows] for name, own in cells.items()}
    methods = {name: by_region(name, own) for name, own in rows.items()}
    transfer = {
        f"{name}{way}": transfer_figures(of(rows[name], kind="transfer", moved=moved))
        for name in TRANSFERRED
        for way, moved in WAYS.items()
    }
    finds = {name: of(own, kind="cost", what="find") for name, own in rows.items()}
    details = {
        "recipe": bench.recipe.model_dump(mode="json"),
        "model": bench.denoiser.info.fingerprint,
        "images": size.images,
        "edits_per_method": min(parts["all"].edits for parts in methods.values()),
        "others_per_direction": size.others,
        "products": {name: {kind: sum(row[kind] for row in own) for kind in ("jvp", "vjp")}
                     for name, own in finds.items()},
        "methods": {name: {part: {figure: getattr(found, figure) for figure in _KEPT} for part, found in parts.items()}
                    for name, parts in methods.items()},
        "transfer": transfer,
        "edits": [{"method": name, **{key: value for key, value in row.items() if key != "pictures"}}
                  for name, own in rows.items() for row in of(own, kind="home")],
    }  # fmt: skip
    return targets_of(methods, transfer), details


def by_region(method: str, rows: Rows) -> dict[str, Line]:
    """A method's line over all its edits, over those of the small regions together, and over each region's."""

    def part(regions: Collection[str]) -> Line:
        own = Cell({}, [row for row in rows if row.get("region") in regions], 0.0, 0)
        return line(method, METHODS[method].about, {}, 1, 0.0, [own])

    regions = names(rows, "region")
    each = {region: part([region]) for region in regions}
    return {"all": part(regions), "small regions": part(SMALL_REGIONS), **each}


def transfer_figures(rows: Rows) -> dict[str, Any]:
    """Transfer success over images, what bounds it, and how it goes with the overlap of masks.

    It counts every edit, also those that failed at home; `of_home_successes` only the others, `where_perfect` only
    pairs on which a perfect editor succeeds.
    """
    curve = []
    for low, high in pairwise(IOU_EDGES):
        inside = [row for row in rows if low <= row["iou"] < high or row["iou"] == high == 1.0]
        found = {"success": over(inside, "success", "mean"), "roir": over(inside, "roir")}
        curve.append({"iou_from": low, "iou_to": high, **found})
    return {
        "pairs": len(rows),
        "success": over(rows, "success", "mean"),
        "perfect_editor": over(rows, "perfect", "mean"),
        "where_perfect": over(of(rows, perfect=True), "success", "mean"),
        "of_home_successes": over(of(rows, home_success=True), "success", "mean"),
        "roir": over(rows, "roir"),
        "by_region": {region: over(of(rows, region=region), "success", "mean") for region in names(rows, "region")},
        "by_factor": {
            factor: {figure: over(of(rows, factor=factor), figure, "mean") for figure in ("success", "perfect")}
            for factor in sorted(names(rows, "factor"))
        },
        "curve": curve,
        "limited": sum(row["limited"] for row in rows),
        "failures": {why: len(of(rows, failure=why)) for why in names(rows, "failure") if why},
    }


def targets_of(methods: Mapping[str, Mapping[str, Line]], transfer: Mapping[str, Mapping[str, Any]]) -> list[Target]:
    """The bars of the edits benchmark."""

    def roir(method: str, part: str) -> float:
        return methods[method][part].roir.estimate

    small = "small regions"
    found = [
        at_least("LOCO: local edit success", methods["loco"]["all"].success.estimate, 0.8),
        at_most("LOCO: median ROIR over eyes and mouth", roir("loco", small), 0.5),
        at_most(
            "LOCO: that ROIR over the one without null-space projection",
            roir("loco", small) / roir("loco-plain", small),
            1.0,
        ),
        at_most(
            "individual: median ROIR over that of the plain h-space SVD",
            roir("individual", "all") / roir("h-masked", "all"),
            0.8,
        ),
    ]
    for name, title in TRANSFERRED.items():
        for way in WAYS:
            share = transfer[f"{name}{way}"]["success"].estimate
            found.append(at_least(f"{title}{way}: transfer success, mask IoU >= {OVERLAP:g}", share, 0.8))
    return found


def tables(details: dict[str, Any]) -> None:
    """The figures by method and region, and the transfer curves, for people."""
    rows = []
    for method, parts in details["methods"].items():
        for part, f in parts.items():
            most = sorted(f["failures"].items(), key=lambda pair: -pair[1])[:3]
            failures = ", ".join(f"{why} {count}" for why, count in most)
            rows.append((method, part, f["edits"], f["success"].estimate, _interval(f["roir"]), f["psnr"].estimate,
                         f["ssim"].estimate, f["limited"], failures))  # fmt: skip
    header = ("method", "region", "edits", "success", "median ROIR", "PSNR", "SSIM", "at limit", "failures")
    table("edits at home", header, rows)
    curve = [
        (method, f"{b['iou_from']:.1f} to {b['iou_to']:.1f}", b["success"].count, b["success"].estimate)
        for method, f in details["transfer"].items()
        for b in f["curve"]
        if b["success"].count
    ]
    table("transfer against mask overlap", ("method", "IoU", "pairs", "success"), curve)
    shares = ("perfect_editor", "success", "where_perfect")
    bound = [(method, *(f[share].estimate for share in shares)) for method, f in details["transfer"].items()]
    bounds = ("method", "a perfect editor, same factors and signs", "this method", "this method where that succeeds")
    table("what bounds transfer", bounds, bound)


def _interval(value: Any) -> str:
    return f"{value.estimate:.2f} ({value.low:.2f} to {value.high:.2f})"


def _more(parser: argparse.ArgumentParser) -> None:
    images, others = (f"(default {getattr(FULL, n)}, quick {getattr(QUICK, n)})" for n in ("images", "others"))
    parser.add_argument("--images", type=int, help=f"how many images {images}")
    parser.add_argument("--others", type=int, help=f"images to transfer to {others}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    given: Options = options("edits", "Local edit success, locality and transfer on held-out faces.", argv, _more)
    size = QUICK if given.quick else FULL
    size = replace(size, images=given.extra.images or size.images, others=given.extra.others or size.others)
    with open_bench() as bench:
        targets, details = measure(bench, size)
    if not given.quick:
        targets.insert(0, at_least("edits per method", float(details["edits_per_method"]), 64))
    content = document("edits", given.quick, targets, details, bench.clock)
    return finish(content, given, lambda: tables(details))


if __name__ == "__main__":
    sys.exit(main())
