"""Are edits local, do they do what they should, and do they transfer: measured on held-out faces by the reader.

`python -m tests.benchmarks.edits [--quick] [--json] [--save FILE] [--tune]`. Directions are mined with the demo
recipe's settings by the product's own functions, and applied at visible strength, better sign. Methods:

- loco: first local direction (x-space, projected off the null space of the rest);
- x plain: first singular direction of the region in x-space, not projected;
- individual: first individual component (h-space, JIVE);
- h plain: first singular direction of the region in h-space.

Every direction of loco and individual is then tried on other images, as it is and shifted to where the other image's
mask lies ("registered"). `--tune` looks at `mine` images only and tries
many settings; see `tests.benchmarks.tuning`.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flows.console import stage
from flows.evaluation.ceiling import perfect_transfer
from pipeline.metrics import mask_iou
from pipeline.mining import Direction, MinedImage, mine_image
from pipeline.registration import registered
from pipeline.strengths import linear_strength
from tests.benchmarks.edit_figures import Edited, Transferred, by_region, transfer_figures
from tests.benchmarks.harness import Options, Target, at_least, at_most, document, finish, options, table
from tests.benchmarks.subjects import Bench, Subject, load_images, make_subjects, open_bench
from tests.benchmarks.trials import Case, better_of_both_signs, run_trials

METHODS = {"loco": ("x", "local"), "x plain": ("x", "singular"), "individual": ("h", "individual"),
           "h plain": ("h", "singular")}  # fmt: skip
TRANSFERRED = ("loco", "individual")
IMAGES, OTHERS = 16, 8
QUICK_IMAGES, QUICK_OTHERS = 4, 3


def mine_subjects(bench: Bench, subjects: Sequence[Subject]) -> list[MinedImage]:
    """Mine every image as the product does; strengths are left to the trials."""
    mined = []
    settings = replace(bench.settings, strength=1.0)
    with bench.clock.stage("mining"), stage("mining", len(subjects)) as advance:
        for subject in subjects:
            mined.append(mine_image(bench.denoiser, subject.x_t, subject.masks, settings))
            advance(1, f"{mined[-1].products.total} products")
    return mined


def first_direction(mined: MinedImage, method: str, region: str) -> Direction | None:
    """The strongest direction of a method and region that was not refused."""
    space, kind = METHODS[method]
    found = [d for d in mined.directions if (d.space, d.kind, d.region) == (space, kind, region)]
    return min(found, key=lambda d: d.rank, default=None)


def edits_at_home(bench: Bench, subjects: Sequence[Subject], mined: Sequence[MinedImage], method: str) -> list[Edited]:
    """Every region's first direction on its own image, better sign."""
    found = [
        (subject, region, first_direction(directions, method, region))
        for subject, directions in zip(subjects, mined, strict=True)
        for region in subject.masks
    ]
    cases = [
        Case(subject, region, d.space, d.vector, linear_strength(d, subject.masks[region]))
        for subject, region, d in found
        if d is not None
    ]
    trials = iter(better_of_both_signs(bench, cases, f"{method}: editing") if cases else [])
    return [Edited(method, s.name, region, d, None if d is None else next(trials)) for s, region, d in found]


def transfers(
    bench: Bench, subjects: Sequence[Subject], edits: Sequence[Edited], others: int, *, register: bool = False
) -> list[Transferred]:
    """Every direction on `others` more images that show the region, drawn once per image with a fixed seed.

    `register` shifts it to the centre of the other image's mask first.
    """
    by_name = {subject.name: subject for subject in subjects}
    pairs: list[tuple[Edited, Subject]] = []
    cases = []
    for edit in edits:
        if edit.direction is None or edit.trial is None:
            continue
        pool = [s for s in subjects if s.name != edit.image and edit.region in s.masks]
        chosen = random.Random(f"{edit.image} {edit.region}").sample(pool, min(others, len(pool)))
        for target in chosen:
            pairs.append((edit, target))
            d, guess = edit.direction, edit.trial.strength or 1.0
            masks = by_name[edit.image].masks[edit.region], target.masks[edit.region]
            vector = registered(d.vector, *masks) if register else d.vector
            cases.append(Case(target, edit.region, d.space, vector, guess, like=edit.trial.verdict))
    if not cases:
        return []
    trials = run_trials(bench, cases, f"{edits[0].method}: transferring")
    result = []
    bounds: dict[tuple[str, str, str, bool], bool] = {}  # by what decides a perfect edit: pairs share many
    for (edit, target), trial in zip(pairs, trials, strict=True):
        iou = float(mask_iou(by_name[edit.image].masks[edit.region], target.masks[edit.region]))
        assert edit.trial is not None  # pairs are made of edits with a trial only
        like = edit.trial.verdict
        key = (target.name, edit.region, like.factor, like.move > 0)
        if key not in bounds:
            mask = target.masks[edit.region]
            bounds[key] = perfect_transfer(bench.read, target.factors, mask, edit.region, like)
        result.append(Transferred(edit, target.name, iou, trial, bounds[key]))
    return result


def targets_of(methods: dict[str, Any], transfer: dict[str, Any]) -> list[Target]:
    """The bars of the edits benchmark."""

    def roir(method: str, part: str) -> float:
        return float(methods[method].get(part, methods[method]["all"])["roir_median"].estimate)

    small = "small regions"
    found = [
        at_least("LOCO: local edit success", methods["loco"]["all"]["success"].estimate, 0.8),
        at_most("LOCO: median ROIR over eyes and mouth", roir("loco", small), 0.5),
        at_most(
            "LOCO: that ROIR over the one without null-space projection",
            roir("loco", small) / roir("x plain", small),
            1.0,
        ),
        at_most(
            "individual: median ROIR over that of the plain h-space SVD",
            roir("individual", "all") / roir("h plain", "all"),
            0.8,
        ),
    ]
    for method, label in zip(transfer, ("LOCO", "LOCO registered", "individual", "individual registered"), strict=True):
        share = transfer[method]["success_overlapping"].estimate
        found.append(at_least(f"{label}: transfer success, mask IoU >= 0.5", share, 0.8))
    return found


def measure(bench: Bench, images: int, others: int, split: str = "holdout") -> tuple[list[Target], dict[str, Any]]:
    """Targets and details over the first `images` images of faces64's split."""
    sources = load_images("faces64", split, images, bench.recipe.region_names, bench.denoiser.info.image_shape)
    subjects = make_subjects(bench, sources)
    mined = mine_subjects(bench, subjects)
    edits = {method: edits_at_home(bench, subjects, mined, method) for method in METHODS}
    pairs = {
        f"{method} registered" if register else method: transfers(
            bench, subjects, edits[method], others, register=register
        )
        for method in TRANSFERRED
        for register in (False, True)
    }
    methods = {method: by_region(each) for method, each in edits.items()}
    transfer = {method: transfer_figures(each) for method, each in pairs.items()}
    details = {
        "recipe": bench.recipe.model_dump(mode="json"),
        "model": bench.denoiser.info.fingerprint,
        "split": split,
        "images": len(subjects),
        "edits_per_method": min(figures["all"]["edits"] for figures in methods.values()),
        "others_per_direction": others,
        "products": {kind: sum(getattr(m.products, kind) for m in mined) for kind in ("jvp", "vjp")},
        "refused": {s.name: dict(m.refused) for s, m in zip(subjects, mined, strict=True) if m.refused},
        "methods": methods,
        "transfer": transfer,
        "edits": [edit.row() for each in edits.values() for edit in each],
    }
    return targets_of(methods, transfer), details


def tables(details: dict[str, Any]) -> None:
    """The figures by method and region, and the transfer curves, for people."""
    rows = []
    for method, parts in details["methods"].items():
        for part, f in parts.items():
            failures = ", ".join(f"{name} {count}" for name, count in list(f["failures"].items())[:3])
            rows.append((method, part, f["edits"], f["success"].estimate, _interval(f["roir_median"]),
                         f["roir_mean"].estimate, f["psnr_outside_median"].estimate,
                         f["ssim_outside_median"].estimate, f["limit_hits"], failures))  # fmt: skip
    header = ("method", "region", "edits", "success", "median ROIR", "mean", "PSNR", "SSIM", "at limit", "failures")
    table("edits at home", header, rows)
    curve = []
    for method, f in details["transfer"].items():
        curve += [
            (method, f"{b['iou_from']:.1f} to {b['iou_to']:.1f}", b["success"].count, b["success"].estimate)
            for b in f["curve"]
            if b["success"].count
        ]
    table("transfer against mask overlap", ("method", "IoU", "pairs", "success"), curve)
    bound = [
        (method, f["perfect_editor_overlapping"].estimate, f["success_overlapping"].estimate,
         f["success_overlapping_where_perfect"].estimate)
        for method, f in details["transfer"].items()
    ]  # fmt: skip
    header = ("method", "a perfect editor, same factors and signs", "this method", "this method where that succeeds")
    table("what bounds transfer, mask IoU >= 0.5", header, bound)


def _interval(value: Any) -> str:
    return f"{value.estimate:.2f} ({value.low:.2f} to {value.high:.2f})"


def _more(parser: argparse.ArgumentParser) -> None:
    from tests.benchmarks import tuning

    parser.add_argument("--images", type=int, help=f"how many images (default {IMAGES}, quick {QUICK_IMAGES})")
    parser.add_argument("--others", type=int, help=f"images to transfer to (default {OTHERS}, quick {QUICK_OTHERS})")
    tuning.add_options(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, or with `--tune` the search for settings."""
    from tests.benchmarks import tuning

    given: Options = options("edits", "Local edit success, locality and transfer on held-out faces.", argv, _more)
    if given.extra.tune:
        return tuning.run(given)
    bench = open_bench()
    images = given.extra.images or (QUICK_IMAGES if given.quick else IMAGES)
    others = given.extra.others or (QUICK_OTHERS if given.quick else OTHERS)
    targets, details = measure(bench, images, others)
    if not given.quick:
        targets.insert(0, at_least("edits per method", float(details["edits_per_method"]), 64))
    content = document("edits", given.quick, targets, details, bench.clock)
    return finish(content, given, lambda: tables(details))


if __name__ == "__main__":
    sys.exit(main())
