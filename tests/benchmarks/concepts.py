"""Do concepts mean one thing: measured on faces that the clustering's settings were not chosen on.

`python -m tests.benchmarks.concepts [--quick] [--json] [--save FILE] [--catalog FOLDER]`. A catalog of `holdout` faces,
mined with the demo's settings (kept under build/benchmarks, where a killed run continues), is clustered, and judged by
the factor that each direction moves, as `tests.benchmarks.concept_figures` reads it:

- purity: members that move the most common factor of their concept; by chance: with labels permuted among members;
- sign agreement: of these, those that move it the way most of them do, turned as the concept says;
- homogeneity: cosine of the effects of two members of different images, beside that of any two directions;
- same factor: AUC of |cos| of vectors, of effects and of both, unmoved and moved so that regions lie in one place.

Then: do concepts keep their ids and members when the second half of the images comes in, does the seed matter, what
does a build cost, and what does the clustering of 10^5 directions of one region, drawn around known axes: under white
noise, where clusters lie well apart, and under noise of rank 16, which makes clusters of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from catalog import concept_building
from catalog.alignment import unit_rows
from catalog.clustering import sign_blind_clusters
from catalog.concept_building import ALIKE, LEAST, SAME, build_concepts
from catalog.concepts import Concept, read_concepts
from catalog.reader import Catalog
from flows.console import Advance, stage
from flows.datasets.dataset import load_dataset
from flows.mining import mine
from flows.opening import open_model
from flows.paths import builtin_folder, builtin_recipe
from flows.recipe import Recipe, load_recipe, parse_recipe
from flows.watching.live import live
from flows.watching.progress import Progress
from pipeline.reader import AttributeReader
from tests.benchmarks.concept_figures import Hits, figures, groups_of, pooled, purity, sign_agreement
from tests.benchmarks.harness import Clock, Options, Target, at_least, at_most, document, finish, options, table

WORK = Path(__file__).parents[2] / "build" / "benchmarks"
JUDGED = (("x", "local"), ("h", "individual"))  # the kinds that are meant to be applied
FEATURES = 1280  # entries of what is compared in a large catalog: a sketch of 512 and an effect of 3 x 16 x 16
AXES = 50
NOISES = {"white noise": FEATURES, "noise of rank 16": 16}
BUILDS = 6


@dataclass(frozen=True)
class Size:
    """How much one run does: images mined where no catalog is given, and directions drawn."""

    images: int
    drawn: int


FULL, QUICK = Size(16, 10**5), Size(4, 10**4)


# --- the catalog ----------------------------------------------------------------------------------------------------


def recipe_for(images: int) -> Recipe:
    """The demo's recipe for the first `images` held-out faces."""
    content = load_recipe(builtin_recipe()).limited_to(images).model_dump(mode="json")
    return parse_recipe({**content, "dataset": {**content["dataset"], "split": "holdout"}})


def mined(images: int, folder: Path, clock: Clock) -> Path:
    """The folder, with a whole catalog of held-out faces in it: what is missing is mined."""
    recipe = recipe_for(images)
    denoiser = open_model(recipe.model)
    data = load_dataset(recipe, denoiser.info.image_shape)
    with clock.stage("mining"), live("mining", images) as watcher:
        mine(recipe, folder, denoiser, data, progress=Progress(images, str(folder), [watcher]))
    return folder


class PartOf(Catalog):
    """A catalog as if it held some of its images only: what is selected is theirs."""

    images_kept: Sequence[str] = ()

    def select(self, **equals: Any) -> np.ndarray:
        return np.asarray(super().select(**equals) & super().select(image_id=self.images_kept))


def first_half(catalog: Catalog) -> PartOf:
    """The half of the images whose ids, which are hashes, come first; no fewer than a concept needs."""
    ids = [key.decode() for key in catalog.ids("images")]
    part = PartOf(catalog.folder, catalog.manifest)
    part.images_kept = ids[: max(LEAST, len(ids) // 2)]
    return part


def concepts_in(catalog: Catalog, built: pa.Table) -> list[Concept]:
    return read_concepts(built, catalog)


# --- stability ------------------------------------------------------------------------------------------------------


def shared(one: Concept, other: Concept) -> float:
    """Share of the smaller one's members that both have."""
    return _common(one, other) / min(len(one.members), len(other.members))


def found_again(half: Sequence[Concept], whole: Sequence[Concept]) -> list[tuple[Concept, Concept]]:
    """Concepts of a half with those of the whole that they share the most members with, and these with them.

    Only pairs that have at least half of the smaller one's members in common; among equals the smaller one is the
    nearer. Neither ids nor signs matter.
    """

    def nearest(one: Concept, others: Sequence[Concept]) -> Concept:
        return max(others, key=lambda other: (_common(one, other), -len(other.members)))

    pairs = [(old, nearest(old, whole)) for old in half] if whole else []
    return [(old, new) for old, new in pairs if nearest(new, half) is old and shared(old, new) >= SAME]


def growth(half: Sequence[Concept], grown: Sequence[Concept], fresh: Sequence[Concept]) -> dict[str, Any]:
    """What became of the concepts of half of the images: `grown` knew them as its former ones, `fresh` knew none.

    Members kept: share of a concept's members that are in the one of the same id, none where there is none.
    """
    by_id = {concept.concept_id: concept for concept in grown}
    names = {concept.members: concept.concept_id for concept in grown}
    before = {concept.concept_id: concept for concept in half}
    again = found_again(half, fresh)
    lost = [(old, new, before.get(names.get(new.members, ""))) for old, new in again
            if names.get(new.members) != old.concept_id]  # fmt: skip
    stayed = [old for old in half if old.concept_id in by_id]
    members = [old in stayed and key in by_id[old.concept_id].members for old in half for key in old.members]
    return {
        "concepts_of_half": len(half),
        "concepts_of_whole": len(grown),
        "ids_kept": len(stayed) / len(half) if half else None,
        "found_again": len(again),
        "found_again_ids_kept": 1 - len(lost) / len(again) if again else None,
        "members": len(members),
        "members_kept": sum(members) / len(members) if members else None,
        "ids_on_another_concept": sum(shared(old, by_id[old.concept_id]) < SAME for old in stayed),
        "lost": [
            f"{old.region} {old.space} {old.kind}: {_common(old, new)} of {len(old.members)} members lie in one of "
            f"{len(new.members)}, which is named after "
            + (f"one of {len(heir.members)}, {_common(heir, new)} of them in it" if heir else "none of the half's")
            for old, new, heir in lost
        ],
    }


def _common(one: Concept, other: Concept) -> int:
    return len(set(one.members) & set(other.members))


def together(one: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> float:
    """Pairs of members that both clusterings have in one cluster, as a share of those that either has; 1 for none."""
    place = {key: number for number, members in enumerate(other) for key in members}
    both = 0
    for members in one:
        numbers = np.array([place[key] for key in members if key in place], dtype=np.int64)
        both += sum(_pairs(int(count)) for count in np.bincount(numbers))
    either = sum(_pairs(len(members)) for members in (*one, *other)) - both
    return both / either if either else 1.0


def _pairs(count: int) -> int:
    return count * (count - 1) // 2


# --- cost -----------------------------------------------------------------------------------------------------------


@contextmanager
def peak_of(found: dict[str, Any]) -> Iterator[None]:
    """Set `peak_bytes`: the most that Python and NumPy held at once, beyond what they held before; Arrow's is not in.

    What runs inside is slower than it would be.
    """
    tracemalloc.start()
    yield
    found["peak_bytes"] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def drawn(count: int, rank: int = FEATURES, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(unit rows (n, 1280) float32 of random sign, images (n,), truth (n,), -1 for none).

    Six in seven lie around one of 50 random axes at |cos| 0.75 or so, the others around none; five on each image. The
    noise around them has `rank` dimensions; white where that is all.
    """
    generator = np.random.default_rng(seed)
    axes = unit_rows(generator.standard_normal((AXES, FEATURES)))
    truth = generator.integers(0, AXES * 7 // 6, count)
    truth[truth >= AXES] = -1
    spread = None if rank == FEATURES else generator.standard_normal((rank, FEATURES), dtype=np.float32)
    rows = np.empty((count, FEATURES), dtype=np.float32)
    for start in range(0, count, 4096):
        part = truth[start : start + 4096]
        noise = generator.standard_normal((len(part), rank), dtype=np.float32)
        noise = unit_rows(noise if spread is None else noise @ spread)
        around = np.where((part >= 0)[:, None], axes[part], np.float32(0))
        signs = generator.choice(np.array([-1, 1], dtype=np.float32), len(part))[:, None]
        rows[start : start + 4096] = signs * unit_rows(np.float32(0.75) * around + np.float32(0.66) * noise)
    return rows, generator.integers(0, max(count // 5, LEAST), count), truth


def clustered(count: int, rank: int = FEATURES) -> dict[str, Any]:
    """What the clustering alone costs and finds among directions drawn around known axes, by two seeds."""
    rows, owners, truth = drawn(count, rank)
    begun = time.monotonic()
    one = sign_blind_clusters(rows, owners, ALIKE, LEAST, seed=0)
    found: dict[str, Any] = {"directions": count, "entries": FEATURES, "axes": AXES, "bytes_given": rows.nbytes}
    found["seconds"] = time.monotonic() - begun
    with peak_of(found):
        two = sign_blind_clusters(rows, owners, ALIKE, LEAST, seed=1)
    real = truth >= 0
    names = [[str(i) for i in np.flatnonzero(c.labels == number)] for c in (one, two) for number in range(len(c.axes))]
    return found | {
        "clusters": len(one.axes),
        "of_one_axis_or_none": sum(len(np.unique(truth[one.labels == n])) == 1 for n in range(len(one.axes))),
        "coverage": float((one.labels[real] >= 0).mean()),
        "coverage_of_no_axis": float((one.labels[~real] >= 0).mean()),
        "together_with_another_seed": together(names[: len(one.axes)], names[len(one.axes) :]),
    }


def builds(catalog: Catalog, clock: Clock, advance: Advance) -> tuple[list[Concept], dict[str, Any]]:
    """The concepts of a catalog, and how its growth, the seed, sketches and a build's cost come out."""

    def build(part: Catalog, title: str, **given: Any) -> pa.Table:
        with clock.stage(title):
            built = build_concepts(part, **given)
        advance(1, title)
        return built

    fresh = build(catalog, "build")
    half = build(first_half(catalog), "build of half of the images")
    grown = build(catalog, "build after half of the images", former=half)
    cost: dict[str, Any] = {"directions": len(catalog.ids()), "seconds": clock.stages["build"]["seconds"]}
    with peak_of(cost):
        other = build(catalog, "build by another seed, memory watched", seed=1)
    with mock.patch.object(concept_building, "WHOLE", 0):
        sketched = [build(catalog, "build by sketches", seed=seed) for seed in (0, 1)]
    concepts = concepts_in(catalog, fresh)
    whole, one, two = ([c.members for c in cs] for cs in (concepts, *(concepts_in(catalog, t) for t in sketched)))
    halves, after = concepts_in(catalog, half), concepts_in(catalog, grown)
    return concepts, {
        "growth": growth(halves, after, concepts),
        "seeds": {
            "same_table_by_another_seed": fresh.equals(other),
            "sketches_together_with_another_seed": together(one, two),
            "sketches_together_with_whole_vectors": together(one, whole),
        },
        "cost": cost,
    }


# --- the answer -----------------------------------------------------------------------------------------------------


def targets_of(kinds: dict[str, Any], groups: Sequence[dict[str, Any]], details: dict[str, Any]) -> list[Target]:
    """Local x directions beat chance, also region by region; signs agree; ids last."""

    def beyond(found: dict[str, Any]) -> float:
        return float(found["purity"]["real"].low - found["purity"]["chance"].high)

    found = [at_least("x local: low end of purity over high end by chance", beyond(kinds["x local"]), 0.0)]
    for group in groups:
        if (group["space"], group["kind"]) == ("x", "local"):
            found.append(at_least(f"x local, {group['region']}: the same", beyond(group), 0.0))
    for kind in kinds:
        found.append(at_least(f"{kind}: sign agreement", kinds[kind]["sign_agreement"]["real"].estimate, 0.9))
    grown = details["growth"]
    kept = grown["found_again_ids_kept"]
    found.append(at_least("concepts of half of the images found again that keep their id",
                          float("nan") if kept is None else kept, 1.0))  # fmt: skip
    found.append(at_most("ids that came to another concept", float(grown["ids_on_another_concept"]), 0.0))
    return found


def missed(
    targets: Sequence[Target], kinds: dict[str, Any], groups: Sequence[dict[str, Any]], lost: Sequence[str]
) -> list[dict[str, Any]]:
    """Every target missed with the measured figures beside it that say why."""
    named: dict[str, Any] = {f"x local, {g['region']}": g for g in groups if (g["space"], g["kind"]) == ("x", "local")}
    found = []
    for target in targets:
        what = target.name.partition(":")[0]
        each = named.get(what) or kinds.get(what)
        if target.met:
            continue
        why = "; ".join(lost) or "no concept of half of the images to follow: too few images"
        if each is not None:
            by = each["sign_agreement" if "sign" in target.name else "purity"]
            why = f"{_shown(by['real'])} of {by['real'].count} members, by chance {_shown(by['chance'])}"
            if "labels" in each:
                share, factor = max((share, factor) for factor, share in each["labels"].items())
                why += f"; {share:.0%} of all that move a factor move {factor}"
        found.append({"target": target.name, "measured": target.value, "wanted": target.target, "why": why})
    return found


def measure(folder: Path, size: Size, clock: Clock, reader: AttributeReader) -> tuple[list[Target], dict[str, Any]]:
    """Targets and details over the catalog in `folder`."""
    with Catalog.open(folder) as catalog:
        with stage("building", BUILDS) as advance:
            concepts, details = builds(catalog, clock, advance)
        provenance = catalog.manifest.provenance
        details |= {"recipe": provenance.recipe, "split": provenance.data.get("split"),
                    "images": len(catalog.images()), "alike": ALIKE, "least": LEAST}  # fmt: skip
        groups: list[dict[str, Any]] = []
        hits: dict[str, dict[str, list[Hits]]] = {f"{s} {k}": {"purity": [], "sign_agreement": []} for s, k in JUDGED}
        with clock.stage("judging"), stage("judging", None) as advance:
            for group in groups_of(catalog, reader, concepts):
                advance(1, " ".join(group.name))
                own = {"purity": purity(group), "sign_agreement": sign_agreement(group)}
                groups.append(dict(zip(("region", "space", "kind"), group.name, strict=True)) | figures(group, own))
                for name, found in own.items():
                    if group.name[1:] in JUDGED:
                        hits[" ".join(group.name[1:])][name].append(found)
    with clock.stage("drawn directions"):
        details["drawn"] = {name: clustered(size.drawn, rank) for name, rank in NOISES.items()}
    kinds = {
        kind: {name: pooled(found).figures() for name, found in by.items()} for kind, by in hits.items() if by["purity"]
    }
    targets = targets_of(kinds, groups, details)
    details |= {"kinds": kinds, "groups": groups, "missed": missed(targets, kinds, groups, details["growth"]["lost"])}
    return targets, details


def _shown(value: Any) -> str:
    return f"{value.estimate:.2f} ({value.low:.2f} to {value.high:.2f})" if value.count else "none"


def tables(details: dict[str, Any]) -> None:
    """The figures for people."""
    rows = [(g["region"], g["space"], g["kind"], g["directions"], g["concepts"], _shown(g["coverage"]), g["labelled"],
             *(_shown(g[name][by]) for name in ("purity", "sign_agreement") for by in ("real", "chance")))
            for g in details["groups"]]  # fmt: skip
    rows += [("all", *kind.split(), "", "", "", "",
              *(_shown(f[name][by]) for name in ("purity", "sign_agreement") for by in ("real", "chance")))
             for kind, f in details["kinds"].items()]  # fmt: skip
    header = ("region", "space", "kind", "directions", "concepts", "coverage", "labelled", "purity", "by chance",
              "sign agreement", "by chance")  # fmt: skip
    table(f"concepts of {details['images']} images, split {details['split']}", header, rows)
    for title, key in (("effect agreement of two directions of different images", "homogeneity"),
                       ("same factor: AUC of |cos|", "same_factor_auc")):  # fmt: skip
        ways = list(details["groups"][0][key])
        rows = [(g["region"], g["space"], g["kind"], *(_shown(g[key][way]) for way in ways)) for g in details["groups"]]
        table(title, ("region", "space", "kind", *ways), rows)
    for title in ("growth", "seeds", "cost"):
        table(title, ("what", "value"), [row for row in details[title].items() if row[0] != "lost"])
    whats = list(details["drawn"]["white noise"])
    table("clustering of drawn directions", ("noise", *whats),
          [(noise, *(found[what] for what in whats)) for noise, found in details["drawn"].items()])  # fmt: skip
    if details["missed"]:
        why = ("target", "measured", "wanted", "why")
        table("missed", why, [[each[name] for name in why] for each in details["missed"]])


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--catalog", type=Path, metavar="FOLDER",
        help=f"a catalog of built-in faces to judge (default: of held-out ones, {FULL.images} or with --quick "
             f"{QUICK.images}, mined once into {WORK.name} under build)",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    given: Options = options("concepts", "Whether concepts mean one thing on held-out faces.", argv, _more)
    size, clock = QUICK if given.quick else FULL, Clock()
    folder = given.extra.catalog or mined(size.images, WORK / f"concepts-{size.images}", clock)
    targets, details = measure(folder, size, clock, AttributeReader.load(builtin_folder() / "reader"))
    content = document("concepts", given.quick, targets, details, clock)
    return finish(content, given, lambda: tables(details))


if __name__ == "__main__":
    sys.exit(main())
