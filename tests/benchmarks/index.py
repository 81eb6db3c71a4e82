"""How fast, small and right the search index is at every size, and the whole lookup behind it.

`python -m tests.benchmarks.index [--quick] [--json] [--save FILE] [--catalog FOLDER]`. Real x-space directions come
from a catalog by the built-in model (`--catalog`) or are mined for the run; synthetic ones are drawn like them, see
`tests.benchmarks.index_data`. At every size two recalls at 10 are measured over held-out queries: of the approximate
index against exact search of the same sketches, and of its 100 best, ranked again by full vectors, against exact |cos|
on full float32 vectors. A catalog is written and asked through `catalog.lookup.similar_to` for the time of a whole
lookup. Last, sketches alone are drawn by the million, beside what the smaller sizes predicted for them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from catalog.index import build_indexes
from catalog.lookup import similar_to
from catalog.reader import Catalog
from catalog.search import plan
from catalog.search.engine import Engine, Part, assemble, map_lists, write_lists
from catalog.search.quantiser import Encoder, Quantiser, probes_for, train
from catalog.search.sketch import learn_projection, sketch
from catalog.search.spec import IndexSpec, SketchSpec
from flows.console import stage
from tests.benchmarks.harness import Clock, Target, at_least, at_most, document, finish, options, table
from tests.benchmarks.index_data import BLOCK, Real, Synthetic, fitted, mined, of_catalog, stored

TOP, CANDIDATES = 10, 100
SKETCHES = (64, 128, 256, 512, 1024)
FILTERS = (0.1, 0.01, 0.001)


@dataclass(frozen=True)
class Size:
    """How much one run does: images mined, sizes, queries, directions stored in a catalog, sketches drawn alone."""

    images: int
    sizes: tuple[int, ...]
    queries: int
    stored: int
    large: int


FULL = Size(24, (10**3, 10**4, 10**5, 10**6), 100, 10**5, 10**7)
QUICK = Size(6, (10**3, 10**4), 50, 10**3, 10**5)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one query."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Measured:
    """One size. Recalls at 10; milliseconds; bytes of memory a direction by resident size (and by its arrays); seconds
    of one core spent on training and on coding (from ready sketches)."""

    rows: int
    kind: str
    lists: int
    probes: int
    recall: float
    whole_recall: float
    query: Timing
    filtered: dict[str, dict[str, float]]
    memory: float
    arrays: int
    training: float
    coding: float


def resident() -> int:
    """Bytes of memory this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def best(scores: np.ndarray, k: int = TOP) -> np.ndarray:
    """(q, k) columns of the largest |score| of each row, in no order."""
    return np.argpartition(-np.abs(scores), min(k, scores.shape[1] - 1), axis=1)[:, :k]


def recall(found: Sequence[np.ndarray], wanted: np.ndarray) -> float:
    """Mean share of the wanted that were found."""
    return float(np.mean([len(np.intersect1d(f, w)) / len(w) for f, w in zip(found, wanted, strict=True)]))


def timed(asked: Sequence[Any], ask: Callable[[Any], Any], rounds: int = 5) -> tuple[list[Any], Timing]:
    """The answers, and the time of one, after a first round that is not counted."""
    answers, spent = [ask(one) for one in asked], []
    for _ in range(rounds):
        for one in asked:
            begun = time.perf_counter()
            ask(one)
            spent.append(1e3 * (time.perf_counter() - begun))
    return answers, Timing(float(np.median(spent)), float(np.quantile(spent, 0.99)))


# -- sketches ----------------------------------------------------------------------------------------------------------


def sketch_table(real: Real) -> list[dict[str, Any]]:
    """Error of |cos| and recall at 10 among 100 of each kind of sketch, between images held out from learning."""
    learnt, held = real.split()
    exact = np.abs(held.vectors @ held.vectors.T)
    other = held.images[:, None] != held.images[None]
    wanted = best(np.where(other, exact, 0))
    rows = []
    for dimension in SKETCHES:
        for kind in ("srht", "learned"):
            spec = SketchSpec(kind=kind, dimension=dimension)  # type: ignore[arg-type]
            projection = learn_projection(learnt.vectors, spec) if kind == "learned" else None
            small = sketch(held.vectors, spec, projection)
            scores = np.abs(small @ small.T)
            error = (scores - exact)[other]
            found = best(np.where(other, scores, 0), CANDIDATES)
            rows.append(
                {"kind": kind, "dimension": dimension, "error": float(np.sqrt((error**2).mean())),
                 "recall_among_100": recall(list(found), wanted)}
            )  # fmt: skip
    return rows


# -- sizes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """Sketches (n, d) of synthetic directions, their exact |cos| to the queries (q, n), the queries' sketches."""

    spec: SketchSpec
    projection: np.ndarray
    sketches: np.ndarray
    cosines: np.ndarray
    queries: np.ndarray
    sketching: float  # seconds of one core


def drawn(real: Real, synthetic: Synthetic, rows: int, queries: int, advance: Callable[..., None]) -> Drawn:
    """Draw, sketch and compare block by block; no vector is kept. Queries come from a block beyond all others."""
    spec = plan.choose(10**6, real.vectors.shape[1]).sketch
    sample = [synthetic.draw(i, real.vectors) for i in range(min(4, -(-rows // BLOCK)))]
    projection = learn_projection(np.concatenate(sample), spec)
    asked = synthetic.draw(10**6, real.vectors)[:queries]
    sketches = np.empty((rows, spec.dimension), np.float32)
    cosines = np.empty((queries, rows), np.float32)
    spent = 0.0
    for start, block in synthetic.blocks(rows, real.vectors):
        cosines[:, start : start + len(block)] = asked @ block.T
        begun = time.process_time()
        sketches[start : start + len(block)] = sketch(block, spec, projection)
        spent += time.process_time() - begun
        advance(len(block), "")
    return Drawn(spec, projection, sketches, cosines, sketch(asked, spec, projection), spent)


def trained(spec: IndexSpec, sketches: np.ndarray) -> tuple[IndexSpec, Quantiser]:
    """Trained on as many sketches as `rhumb index` would take, with probes calibrated likewise."""
    sample = np.ascontiguousarray(sketches[:: -(-len(sketches) // plan.sample_for(spec))])
    quantiser = train(spec, sample)
    if spec.kind != "flat":
        spec = spec.model_copy(update={"probes": probes_for(spec, quantiser, sample)})
    return spec, quantiser


def coded(encode: Encoder, sketches: np.ndarray, start: int = 0) -> Iterator[Part]:
    """Codes in pieces, by row."""
    for at in range(0, len(sketches), 2**17):
        lists, codes = encode(sketches[at : at + 2**17])
        yield start + np.arange(at, at + len(lists)), lists, codes


def measure(data: Drawn, spec: IndexSpec) -> Measured:
    """Train, code and ask an index over all of `data`."""
    rows, before = len(data.sketches), time.process_time()
    spec, quantiser = trained(spec, data.sketches)
    training = time.process_time() - before
    held = resident()
    before = time.process_time()
    engine = assemble(spec, quantiser, coded(Encoder(spec, quantiser), data.sketches), rows)
    coding = time.process_time() - before
    memory = (resident() - held) / rows
    answers, query = timed(list(data.queries), lambda one: engine.search(one, CANDIDATES))
    scores = data.queries @ data.sketches.T
    reranked = [ids[best(np.abs(own[ids])[None])[0]] for (ids, _), own in zip(answers, data.cosines, strict=True)]
    return Measured(
        rows, spec.kind, spec.lists, spec.probes, recall([ids[:TOP] for ids, _ in answers], best(scores)),
        recall(reranked, best(data.cosines)), query, filtered(engine, data.queries, scores), memory,
        plan.memory_per_direction(spec.kind, spec.sketch.dimension), training, coding,
    )  # fmt: skip


def filtered(engine: Engine, queries: np.ndarray, scores: np.ndarray) -> dict[str, dict[str, float]]:
    """Recall and time under filters that let through a share of the directions."""
    found = {}
    for share in FILTERS:
        mask = np.random.default_rng(0).random(scores.shape[1]) < share
        if np.count_nonzero(mask) < TOP:
            continue
        wanted = best(np.where(mask, scores, 0))
        answers, query = timed(list(queries), lambda one, mask=mask: engine.search(one, TOP, mask), rounds=1)
        found[f"{share:g}"] = {"recall": recall([ids for ids, _ in answers], wanted), **asdict(query)}
    return found


# -- the whole lookup --------------------------------------------------------------------------------------------------


def whole_lookup(
    real: Real, synthetic: Synthetic, rows: int, queries: int, advance: Callable[..., None]
) -> dict[str, Any]:
    """Write a catalog of synthetic directions, index it, and ask it through the public lookup."""
    asked = synthetic.draw(10**6, real.vectors)[:queries]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "catalog"
        keys, cosines = stored(folder, synthetic, real, rows, asked, advance)
        begun = time.process_time()
        build_indexes(folder)
        building = time.process_time() - begun
        with Catalog.open(folder) as catalog:
            begun = time.perf_counter()
            similar_to(catalog, asked[0], "x", TOP, grouped=False)
            opening = time.perf_counter() - begun
            answers, query = timed(list(asked), lambda one: similar_to(catalog, one, "x", TOP, grouped=False), rounds=2)
            spec = catalog.manifest.indexes["x"].spec
        size = sum(path.stat().st_size for path in (folder / "index").iterdir())
    place = {key: row for row, key in enumerate(keys)}
    found = [np.array([place[hit.direction_id] for hit in answer]) for answer in answers]
    return {
        "rows": rows, "kind": spec.kind, "recall": recall(found, best(cosines)), **asdict(query),
        "opening_ms": 1e3 * opening, "index_bytes_per_direction": size / rows, "build_rate": 2 * rows / building,
    }  # fmt: skip


# -- sketches by the million -------------------------------------------------------------------------------------------


def large(data: Drawn, real: Real, synthetic: Synthetic, rows: int, advance: Callable[..., None]) -> dict[str, Any]:
    """IVF-SQ8 over sketches drawn in sketch space, in memory and mapped from disk."""
    images = sketch(real.vectors, data.spec, data.projection)
    spec = plan.choose(rows, real.vectors.shape[1], memory=2**50)
    few = plan.sample_for(spec)
    before = time.process_time()
    spec, quantiser = trained(spec, np.concatenate([b for _, b in synthetic.blocks(few, images, whole=False)]))
    training = time.process_time() - before
    asked = synthetic.draw(10**6, images, whole=False)[: len(data.queries)]
    wanted, scores = np.zeros((len(asked), 0), np.int64), np.zeros((len(asked), 0), np.float32)
    encode, parts, coding = Encoder(spec, quantiser), [], 0.0
    for start, block in synthetic.blocks(rows, images, whole=False):
        scores = np.concatenate((scores, np.abs(asked @ block.T)), axis=1)
        wanted = np.concatenate(
            (wanted, np.broadcast_to(start + np.arange(len(block)), (len(asked), len(block)))), axis=1
        )
        kept = best(scores)
        scores, wanted = np.take_along_axis(scores, kept, 1), np.take_along_axis(wanted, kept, 1)
        before = time.process_time()
        parts += coded(encode, block, start)
        coding += time.process_time() - before
        advance(len(block), "")
    found: dict[str, Any] = {"rows": rows, "kind": spec.kind, "lists": spec.lists, "probes": spec.probes}
    found |= {"training": training, "coding_rate": rows / coding}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "lists"
        sizes = sum(np.bincount(lists, minlength=spec.lists) for _, lists, _ in parts)
        before = time.perf_counter()
        write_lists(path, spec, np.asarray(sizes), parts)
        found |= {"merging": time.perf_counter() - before, "disk": path.stat().st_size / rows}
        engine = map_lists(path, spec, quantiser, rows, rows)
        found["mapped"] = asdict(timed(list(asked), lambda one: engine.search(one, CANDIDATES))[1])
    del engine
    held = resident()
    engine = assemble(spec, quantiser, parts, rows)
    found["memory"] = (resident() - held) / rows
    answers, query = timed(list(asked), lambda one: engine.search(one, CANDIDATES))
    return found | {"recall": recall([ids[:TOP] for ids, _ in answers], wanted)} | asdict(query)


def predicted(measured: Sequence[Measured], sketching: float, rows: int, kind: str) -> dict[str, float]:
    """Time, memory and disk for a larger catalog, from the largest measured index of that kind.

    A query costs its coarse comparisons (lists) and the codes looked at (probes * rows / lists, both signs), each at
    the measured cost of a code; probes grow with lists as they did between the smallest and the largest size.
    """
    own = sorted((m for m in measured if m.kind == kind), key=lambda m: m.rows)
    base, lists = own[-1], plan.lists_for(rows)
    growth = 0.5  # of probes with lists, where only one size was measured
    if own[0].lists < base.lists:
        growth = float(np.log(base.probes / own[0].probes) / np.log(base.lists / own[0].lists))
    probes = base.probes * (lists / base.lists) ** min(1.0, max(0.0, growth))

    def work(n: float, of: float, into: float) -> float:
        return of + into * n / of

    code = plan.code_size(kind, plan.DIMENSION)  # type: ignore[arg-type]
    return {
        "lists": lists, "probes": probes,
        "p50": base.query.p50 * work(rows, lists, probes) / work(base.rows, base.lists, base.probes),
        "memory": rows * plan.memory_per_direction(kind, plan.DIMENSION) + 4.0 * lists * plan.DIMENSION,  # type: ignore[arg-type]
        "disk": rows * (code + 20.0),
        "build_hours": rows * (sketching + base.coding / base.rows * lists / base.lists) / 3600,
    }  # fmt: skip


# -- the run -----------------------------------------------------------------------------------------------------------


def run(size: Size, folder: Path | None, clock: Clock) -> tuple[list[Target], dict[str, Any]]:
    """Everything: targets and details."""
    with clock.stage("real directions"):
        real = of_catalog(folder) if folder is not None else mined(size.images, clock)
    with clock.stage("sketches"):
        sketches = sketch_table(real)
        synthetic, wanted, made = fitted(real)
    with clock.stage("drawing"), stage("directions drawn", size.sizes[-1]) as advance:
        data = drawn(real, synthetic, size.sizes[-1], size.queries, advance)
    measured = []
    with clock.stage("sizes"), stage("sizes", len(size.sizes)) as advance:
        for rows in size.sizes:
            part = Drawn(
                data.spec, data.projection, data.sketches[:rows], data.cosines[:, :rows], data.queries, data.sketching
            )
            measured += [measure(part, spec) for spec in specs_of(rows, real.vectors.shape[1])]
            advance(1, f"{rows:,}")
    with clock.stage("whole lookup"), stage("directions stored", size.stored) as advance:
        whole = whole_lookup(real, synthetic, size.stored, size.queries, advance)
    with clock.stage("large"), stage("sketches drawn", size.large) as advance:
        alone = large(data, real, synthetic, size.large, advance)
    each = data.sketching / len(data.sketches)
    kinds = {m.kind for m in measured} - {"flat"}
    details = {
        "threads": faiss.omp_get_max_threads(),
        "real": {"directions": len(real.vectors), "likeness": wanted},
        "synthetic": {"least_share": synthetic.least, "tail": synthetic.tail, "likeness": made},
        "sketches": sketches, "sizes": measured, "sketching_rate": 1 / each, "whole": whole, "large": alone,
        "predicted": {f"{kind} {n:.0e}": predicted(measured, each, n, kind)
                      for kind in sorted(kinds) for n in (size.large, 10**7, 10**8)},
    }  # fmt: skip
    return targets_of(measured, whole, each), details


def specs_of(rows: int, entries: int) -> list[IndexSpec]:
    """What is measured at a size: what a catalog of it would have first, then what memory or growth would choose."""
    chosen = plan.choose(rows, entries)
    specs = [chosen.model_copy(update={"sketch": plan.choose(10**6, entries).sketch})]
    if rows >= 10**4:
        sq8 = plan.choose(max(rows, plan.FLAT_UP_TO + 1), entries, memory=2**50)
        pq = plan.choose(max(rows, plan.FLAT_UP_TO + 1), entries, memory=0)
        specs += [spec for spec in (sq8, pq) if spec.kind != chosen.kind]
    return specs


def targets_of(measured: Sequence[Measured], whole: dict[str, Any], sketching: float) -> list[Target]:
    """The bars of the issue, at every size, for the type that a catalog of that size has."""
    targets, first = [], {}
    for one in measured:
        first.setdefault(one.rows, one)
    for rows, one in first.items():
        targets.append(at_least(f"{rows:,}: recall@10 of the same sketches", one.recall, 0.95))
        targets.append(at_least(f"{rows:,}: recall@10 of full vectors, 100 re-ranked", one.whole_recall, 0.95))
        targets.append(at_most(f"{rows:,}: bytes of memory a direction", max(one.memory, one.arrays), 1024))
    last = first[max(first)]
    targets.append(at_most(f"{last.rows:,}: one query, p50 ms", last.query.p50, 5))
    targets.append(at_most(f"{last.rows:,}: one query, p99 ms", last.query.p99, 25))
    targets.append(at_least(f"{whole['rows']:,} stored: recall@10 of a whole lookup", whole["recall"], 0.95))
    targets.append(at_most(f"{whole['rows']:,} stored: whole lookup, p50 ms", whole["p50"], 100))
    return targets


def _tables(details: dict[str, Any]) -> None:
    table("sketches of real directions", ("kind", "entries", "error of |cos|", "recall@10 among 100"),
          [tuple(row.values()) for row in details["sketches"]])  # fmt: skip
    header = ("rows", "kind", "lists", "probes", "recall", "whole", "p50 ms", "p99 ms", "bytes", "train s", "codes/s")
    rows = [
        (f"{m.rows:,}", m.kind, m.lists, m.probes, m.recall, m.whole_recall, m.query.p50, m.query.p99,
         max(m.memory, m.arrays), m.training, m.rows / max(m.coding, 1e-9)) for m in details["sizes"]
    ]  # fmt: skip
    table(f"indexes, {details['threads']} threads; sketching {details['sketching_rate']:.0f}/s a core", header, rows)
    filters = [(f"{m.rows:,}", m.kind, share, f["recall"], f["p50"], f["p99"])
               for m in details["sizes"] for share, f in m.filtered.items()]  # fmt: skip
    table("under filters", ("rows", "kind", "share let through", "recall", "p50 ms", "p99 ms"), filters)
    for name in ("whole", "large"):
        table(name, ("", "measured"), list(details[name].items()))
    table("predicted", ("", *next(iter(details["predicted"].values()))),
          [(name, *row.values()) for name, row in details["predicted"].items()])  # fmt: skip


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--catalog", type=Path, metavar="FOLDER", help="take real directions from here")
    parser.add_argument("--largest", type=int, metavar="N", help="leave out sizes above N; draw N sketches alone")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    given = options("index", "Search index at scale: recall, time, memory, build rate.", argv, _more)
    size = QUICK if given.quick else FULL
    if given.extra.largest is not None:
        most = given.extra.largest
        kept = tuple(n for n in size.sizes if n <= most)
        size = Size(size.images, kept or size.sizes[:1], size.queries, min(size.stored, most), min(size.large, most))
    clock = Clock()
    targets, details = run(size, given.extra.catalog, clock)
    return finish(document("index", given.quick, targets, details, clock), given, lambda: _tables(details))


if __name__ == "__main__":
    sys.exit(main())
