"""Does a prediction made before editing order what edits with catalogued directions really do on held-out pictures?

`python -m tests.benchmarks.transfer [--quick] [--json] [--save FILE] [--catalog FOLDER]`. A catalog of `mine` images is
searched for candidates for each region of held-out images with their exact masks; every candidate is moved to the new
mask, predicted by one JVP (`pipeline.transfer.predict`), and then really applied at visible strength. Compared are

- prediction: the predicted figure for each outcome (gain for gain, ROIR for ROIR, the score for success);
- likeness: the score of `catalog.lookup.transfer_candidates`, which knows no model;
- random: the mean of many random orders.

Outcomes: gain inside (norm of the decoded change inside the mask per unit strength; compared within a space, whose
units it has), ROIR, and transfer success by the attribute reader, as in `tests.benchmarks.edits`. Rank correlations are
Spearman's among the candidates of one region of one image; intervals are by bootstrap over images.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from catalog.lookup import Transfer, transfer_candidates
from catalog.reader import Catalog
from flows.datasets.contract import SourceImage
from flows.datasets.dataset import load_dataset
from flows.edit_settings import recipe_of
from flows.evaluation.comparison import base_settings
from flows.evaluation.trials import Case, Trial, best_of_both_signs, run_trials
from flows.evaluation.world import Split
from flows.mining import mine
from flows.paths import builtin_recipe
from flows.recipe import Recipe, load_recipe, parse_recipe
from flows.transferring import CANDIDATES, moved_candidates
from flows.watching.live import live
from flows.watching.progress import Progress
from pipeline.errors import InputError
from pipeline.images import as_tensor
from pipeline.intervals import Figure, figure
from pipeline.methods.components import Individual
from pipeline.methods.contract import Found, Method, Subject
from pipeline.methods.loco import Loco
from pipeline.transfer import Candidate, Prediction, predict
from tests.benchmarks.harness import Options, Target, at_least, at_most, document, finish, options, table
from tests.benchmarks.subjects import Bench, open_bench

RANDOM_ORDERS = 50
FEWEST = 4  # candidates of a group that a rank correlation is asked of
TOPS = (1, 5)
SPACES: dict[str, type[Method]] = {"x": Loco, "h": Individual}  # whose `apply` edits in that space


@dataclass(frozen=True)
class Size:
    """How much one run does; `method` overrides keys of the demo recipe's method."""

    mined: int
    images: int
    candidates: int
    method: dict[str, Any]


FULL = Size(12, 8, CANDIDATES, {"inversion_steps": 25, "tolerance": 0.1, "loco": {"rank": 3, "null_rank": 30}})
QUICK = Size(2, 2, 8, {"inversion_steps": 15, "tolerance": 0.2, "loco": {"rank": 2, "null_rank": 15},
                       "jive": {"rank": 8, "joint_rank": 12, "individual_rank": 2}})  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """One candidate on one region of one held-out image: what was predicted, and the trials made of it.

    `trial` has the sign that the prediction says, `as_home` that of the better edit at home; they are the same trial
    where the prediction says that the sign stays.
    """

    image: str
    region: str
    likeness: Transfer
    prediction: Prediction
    trial: Trial
    as_home: Trial

    @property
    def gain(self) -> float:
        """RMS of the decoded change per unit strength: proportional to its norm, among candidates of one mask."""
        return self.trial.rms / abs(self.trial.strength) if self.trial.strength else 0.0


# --- the work -----------------------------------------------------------------------------------------------------


def recipe_for(size: Size) -> Recipe:
    """The demo's recipe for fewer images of the same split, at the size's settings."""
    content = load_recipe(builtin_recipe()).limited_to(size.mined).model_dump(mode="json")
    return parse_recipe({**content, "method": {**content["method"], **size.method}})


def recipe_in(folder: Path) -> Recipe | None:
    """The recipe that the catalog in `folder` was mined with; None where there is none."""
    if not (folder / "manifest.json").is_file():
        return None
    with Catalog.open(folder) as catalog:
        return recipe_of(catalog)


def open_catalog(bench: Bench, folder: Path) -> Catalog:
    """The catalog in `folder`, mined there first, by the bench's recipe, where there is none."""
    if not (folder / "manifest.json").is_file():
        data = load_dataset(bench.recipe, bench.denoiser.info.image_shape)
        total = bench.recipe.dataset.limit
        with bench.clock.stage("mining"), live("mining", total) as watcher:
            mine(bench.recipe, folder, bench.denoiser, data, progress=Progress(total, str(folder), [watcher]))
    return Catalog.open(folder)


Trying = Callable[[Bench, Method, Sequence[Case]], list[Trial]]


def tried(bench: Bench, spaces: Sequence[str], cases: Sequence[Case], way: Trying = run_trials) -> list[Trial]:
    """The outcome of each case, whose vector is of the space beside it."""
    found: dict[int, Trial] = {}
    with bench.clock.stage("edits"):
        for space, kind in SPACES.items():
            own = [i for i, other in enumerate(spaces) if other == space]
            method = kind(bench.denoiser, base_settings(kind, bench))
            found.update(zip(own, way(bench, method, [cases[i] for i in own]), strict=True))
    return [found[i] for i in range(len(cases))]


class Homes:
    """What candidates did on their own images: the better sign of their edit there, tried once each."""

    def __init__(self, bench: Bench, catalog: Catalog) -> None:
        self.bench, self.catalog = bench, catalog
        self.trials: dict[str, Trial] = {}
        self._subjects: dict[str, Subject] = {}
        self._images = {image.image_id: image for image in bench.images("mine", len(catalog.images()))}

    def _subject(self, image_id: str) -> Subject:
        if image_id not in self._subjects:
            source, x_t = self._images[image_id], torch.from_numpy(self.catalog.latent(image_id))
            masks = {region: torch.from_numpy(mask) for region, mask in source.masks.items()}
            picture = as_tensor(source.image.copy())
            self._subjects[image_id] = Subject(image_id, picture, x_t.to(self.bench.denoiser.dtype), masks)
        return self._subjects[image_id]

    def try_all(self, found: Sequence[Transfer], region: str) -> None:
        """Make sure that `trials` holds each of `found`."""
        new = [f for f in found if f.direction_id not in self.trials]
        cases = [
            Case(
                Found(region, f.strength, torch.from_numpy(self.catalog.vector(f.direction_id))),
                self._subject(f.image_id),
            )
            for f in new
        ]
        trials = tried(self.bench, [f.space for f in new], cases, best_of_both_signs)
        self.trials |= {f.direction_id: trial for f, trial in zip(new, trials, strict=True)}


def pairs_of(
    bench: Bench, homes: Homes, source: SourceImage, subject: Subject, region: str, count: int
) -> tuple[list[Pair], int]:
    """Every candidate for a region of a held-out image, predicted and tried; and the JVPs spent."""
    with bench.clock.stage("lookup"):
        mask = subject.masks[region]
        found = transfer_candidates(homes.catalog, source.image, mask.numpy(), region, count)
        moved, _ = moved_candidates(homes.catalog, found, mask.numpy())
    found = [f for f in found if f.direction_id in moved]
    candidates = [moved[f.direction_id] for f in found]
    with bench.clock.stage("prediction"):
        predictions, spent = predict(bench.denoiser, subject.x_t, bench.settings.timestep, mask, candidates)
    homes.try_all(found, region)

    def case(f: Transfer, candidate: Candidate, p: Prediction, sign: int) -> Case:
        home = homes.trials[f.direction_id]
        guess = sign * math.copysign(abs(p.strength), home.strength or 1.0)
        return Case(Found(region, guess, candidate.vector), subject, like=home.verdict)

    together, spaces = list(zip(found, candidates, predictions, strict=True)), [c.space for c in candidates]
    trials = tried(bench, spaces, [case(f, c, p, p.sign) for f, c, p in together])
    turned = [i for i, p in enumerate(predictions) if p.sign < 0]
    kept = tried(bench, [spaces[i] for i in turned], [case(*together[i], 1) for i in turned])
    as_home = {**dict(enumerate(trials)), **dict(zip(turned, kept, strict=True))}
    return [Pair(subject.name, region, f, p, trials[i], as_home[i]) for i, (f, _, p) in enumerate(together)], spent.jvp


# --- figures ------------------------------------------------------------------------------------------------------


def spearman(one: Sequence[float], two: Sequence[float]) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN where either is constant."""
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (one, two)]
    a, b = (r - r.mean() for r in ranks)
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[place])


@dataclass(frozen=True)
class Outcome:
    """One measured outcome, larger is better, the prediction of it, and what must be equal to compare candidates."""

    measured: Callable[[Pair], float]
    predicted: Callable[[Pair], float]
    group: Callable[[Pair], tuple[str, ...]]


def _region(pair: Pair) -> tuple[str, ...]:
    return pair.image, pair.region


OUTCOMES = {
    "gain": Outcome(
        lambda p: p.gain, lambda p: p.prediction.gain, lambda p: (p.image, p.region, p.likeness.space)
    ),
    "ROIR": Outcome(lambda p: -p.trial.roir, lambda p: -p.prediction.roir, _region),
    "success": Outcome(lambda p: float(bool(p.trial.success)), lambda p: p.prediction.score, _region),
    "ROIR by the score": Outcome(lambda p: -p.trial.roir, lambda p: p.prediction.score, _region),
}  # fmt: skip


def _grouped(pairs: Sequence[Pair], key: Callable[[Pair], tuple[str, ...]]) -> list[list[Pair]]:
    groups: dict[tuple[str, ...], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(key(pair), []).append(pair)
    return list(groups.values())


def correlations(pairs: Sequence[Pair]) -> dict[str, dict[str, Figure]]:
    """Mean rank correlation of each way of choosing with each outcome; groups of equal outcomes have none."""
    generator = np.random.default_rng(0)
    found: dict[str, dict[str, Figure]] = {}
    for name, outcome in OUTCOMES.items():
        rows: dict[str, list[float]] = {"prediction": [], "likeness": [], "random": []}
        images = []
        for group in _grouped(pairs, outcome.group):
            measured = [outcome.measured(pair) for pair in group]
            if len(group) < FEWEST or len(set(measured)) < 2:
                continue
            images.append(group[0].image)
            rows["prediction"].append(_finite(spearman([outcome.predicted(pair) for pair in group], measured)))
            rows["likeness"].append(_finite(spearman([pair.likeness.score for pair in group], measured)))
            orders = (generator.permutation(len(group)).tolist() for _ in range(RANDOM_ORDERS))
            rows["random"].append(fmean(spearman(order, measured) for order in orders))
        found[name] = {way: figure(values, images, "mean") for way, values in rows.items()}
    return found


def _finite(value: float) -> float:
    """A constant order says nothing: that counts as no correlation, not as a group left out."""
    return 0.0 if math.isnan(value) else value


def chosen(pairs: Sequence[Pair]) -> dict[str, dict[str, dict[str, Figure]]]:
    """Transfer success and ROIR of the first and the first five that each way chooses; all of them for random."""
    found: dict[str, dict[str, dict[str, Figure]]] = {}
    groups = _grouped(pairs, _region)
    for top in TOPS:
        by = {
            "prediction": [(p, p.trial) for g in groups for p in _best(g, lambda p: p.prediction.score, top)],
            "likeness": [(p, p.as_home) for g in groups for p in _best(g, lambda p: p.likeness.score, top)],
            "random": [(p, p.as_home) for p in pairs],
        }
        found[f"top {top}"] = {
            way: {
                "success": figure([float(bool(t.success)) for _, t in rows], [p.image for p, _ in rows], "mean"),
                "roir_median": figure([t.roir for _, t in rows], [p.image for p, _ in rows]),
            }
            for way, rows in by.items()
        }
    return found


def _best(group: Sequence[Pair], score: Callable[[Pair], float], count: int) -> list[Pair]:
    return sorted(group, key=lambda pair: (-score(pair), pair.likeness.direction_id))[:count]


def strength_error(pairs: Sequence[Pair]) -> dict[str, Figure]:
    """Predicted over found strength, by space, of the trials that reached the visible change."""
    found = {}
    for space in ("x", "h"):
        own = [p for p in pairs if p.likeness.space == space and p.trial.reached]
        ratios = [abs(p.prediction.strength / p.trial.strength) for p in own]
        found[space] = figure(ratios, [p.image for p in own])
    return found


def targets_of(ranks: dict[str, dict[str, Figure]], tops: dict[str, dict[str, dict[str, Figure]]]) -> list[Target]:
    """Prediction must order each outcome better than likeness and chance, intervals apart, and choose no worse."""
    found = []
    for name in ("gain", "ROIR", "success"):
        by = ranks[name]
        gap = by["prediction"].low - max(by["likeness"].high, by["random"].high)
        found.append(at_least(f"{name}: low end of prediction's rank correlation over the others' high ends", gap, 0.0))
    for top, by_way in tops.items():
        own, other = by_way["prediction"], by_way["likeness"]
        gap = own["success"].estimate - max(other["success"].estimate, by_way["random"]["success"].estimate)
        found.append(at_least(f"{top}: transfer success by prediction less the best of the others'", gap, 0.0))
        ratio = own["roir_median"].estimate / other["roir_median"].estimate
        found.append(at_most(f"{top}: median ROIR by prediction over that by likeness", ratio, 1.0))
    return found


def measure(bench: Bench, size: Size, folder: Path, split: Split = "holdout") -> tuple[list[Target], dict[str, Any]]:
    """Targets and details over the first `size.images` images of faces64's split."""
    with open_catalog(bench, folder) as catalog:
        homes = Homes(bench, catalog)
        sources = bench.images(split, size.images)
        known = set(catalog.images().column("image_id").to_pylist())
        if known & {source.image_id for source in sources}:
            raise InputError("--catalog", folder, "a catalog without the images it is tried on")
        subjects = bench.inverted(sources)
        pairs: list[Pair] = []
        products = 0
        for source, subject in zip(sources, subjects, strict=True):
            for region in subject.masks:
                found, spent = pairs_of(bench, homes, source, subject, region, size.candidates)
                pairs, products = [*pairs, *found], products + spent
        recipe, rows = catalog.manifest.provenance.recipe, len(catalog.directions())
    ranks, tops = correlations(pairs), chosen(pairs)
    seconds = bench.clock.stages["prediction"]["seconds"]
    details = {
        "recipe": recipe,
        "model": bench.denoiser.info.fingerprint,
        "split": split,
        "mined_images": len(known),
        "directions": rows,
        "images": len(subjects),
        "pairs": len(pairs),
        "candidates_per_region": size.candidates,
        "tried_at_home": len(homes.trials),
        "prediction_jvps": products,
        "prediction_seconds_per_jvp": seconds / max(products, 1),
        "sign_turned": sum(p.prediction.sign < 0 for p in pairs),
        "limited": sum(p.prediction.limited for p in pairs),
        "rank_correlation": ranks,
        "chosen": tops,
        "predicted_over_found_strength": strength_error(pairs),
    }
    return targets_of(ranks, tops), details


def tables(details: dict[str, Any]) -> None:
    """The figures for people."""
    rows = [
        (name, way, f.estimate, f"{f.low:.2f} to {f.high:.2f}", f.count)
        for name, by in details["rank_correlation"].items()
        for way, f in by.items()
    ]
    table("rank correlation with the measured outcome", ("outcome", "by", "mean", "interval", "groups"), rows)
    header = ("chosen", "by", "transfer success", "interval", "median ROIR", "interval")
    rows = [
        (top, way, f["success"].estimate, f"{f['success'].low:.2f} to {f['success'].high:.2f}",
         f["roir_median"].estimate, f"{f['roir_median'].low:.2f} to {f['roir_median'].high:.2f}")
        for top, by in details["chosen"].items()
        for way, f in by.items()
    ]  # fmt: skip
    table("what the chosen directions did", header, rows)
    strengths = [(s, f.count, f.estimate) for s, f in details["predicted_over_found_strength"].items()]
    table("predicted over found strength, median", ("space", "edits", "ratio"), strengths)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, help=f"held-out images (default {FULL.images}, quick {QUICK.images})")
    parser.add_argument(
        "--catalog", type=Path, metavar="FOLDER",
        help="a catalog of `mine` images by the built-in model; mined there if missing (default: mined for the run)",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    given: Options = options("transfer", "How well predictions order what transfers do on held-out faces.", argv, _more)
    size = QUICK if given.quick else FULL
    size = replace(size, images=given.extra.images or size.images)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.extra.catalog or Path(temporary) / "catalog"
        with open_bench(recipe_in(folder) or recipe_for(size)) as bench:
            targets, details = measure(bench, size, folder)
    content = document("transfer", given.quick, targets, details, bench.clock)
    return finish(content, given, lambda: tables(details))


if __name__ == "__main__":
    sys.exit(main())
