"""Products, seconds, memory and accuracy of the masked SVDs of an image, against the iterations of the public codes.

`python -m tests.benchmarks.svd [--quick] [--json] [--save FILE]`. All methods run in one process on the same built-in
model, held-out image, masks and wanted residual (1e-2 of sigma_1). One product of a vector counts as one
forward-equivalent, for every method: what the public scripts spend on top, a fresh primal for each transposed product,
is not counted against them; passes made again because a graph did not fit in memory are. Methods:

- public: the iteration of LOCO Edit and Pullback with its own stopping rule, each region and complement alone;
- oracle: the same, stopped at the first round whose true residuals reach the wanted one;
- deflation: one vector at a time (Haas et al.); at the main size only;
- cold: `masked_svds`, all masks at once, with its check by fresh random vectors;
- warm: the same, started from the nearest of the other images' subspaces (`pipeline.warm`);
- symmetric start: the random start goes through A instead of A^T, as if the posterior mean's Jacobian were symmetric;
- perfect start: started from its own answer, which bounds what any warm start can save.

The floor is one product per wanted vector each way. The dense truth is made of the rows of small masks; operators of
known spectra, clustered ones included, are compared by `tests.benchmarks.spectra`. A target that was missed is printed
with the best figure, what was tried, and the floor that stops it.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from flows.console import stage
from flows.evaluation.world import Split
from pipeline.jacobian import JacobianOperator, jacobian
from pipeline.methods.contract import Subject
from pipeline.operators import Masked
from pipeline.svd import TruncatedSVD, masked_svds
from pipeline.warm import nearest, start_block
from tests.benchmarks import spectra
from tests.benchmarks.harness import Target, at_least, at_most, document, finish, options, table
from tests.benchmarks.public import ROUNDS, PublicRun, deflation, spent, subspace_iteration
from tests.benchmarks.spectra import SAME, Case, answers, as_accurate, compare, over, sine
from tests.benchmarks.subjects import Bench, open_bench

RESIDUAL = 1e-2
REGIONS = ("left_eye", "right_eye", "mouth", "hair", "nose", "brows", "skin", "background")
DENSE = ("left_eye", "mouth")  # regions compared with the dense truth, made row by row
PREDICTED = {  # before the full run, from one image and the counts of two searches
    "x": "public 24 times the products and 18 times the seconds, oracle 11, cold over warm 1.05, floor times 2.1",
    "h": "public 17 times the products and 13 times the seconds, oracle 8, cold over warm 1.0, floor times 2.9",
    "warm": "the nearest image shares the strong half of each subspace; every product it saves it costs",
}
_STEPS = (
    "steps of 2 to 16 directions in either basis: 2 to 5 spend least, 196 products in h-space and 140 in x-space, but "
    "passes of few vectors cost several times the seconds (not kept); residuals known only where they decide (kept); "
    "no residual counted beyond 4 times its tolerance, or directions dropped below 0.8 of it instead of 0.5: no change"
)
TRIED = {  # by the end of a target's name
    "public products over ours": _STEPS,
    "our products over the floor": _STEPS,
    "cold products over warm": "more start directions than 5: each costs a product and saves less than one",
}


@dataclass
class Row:
    """One line of the table: what a method spent and how good its answer is."""

    space: str
    regions: int
    rank: int
    null_rank: int
    method: str
    image: str
    products: int | None
    seconds: float | None
    residual: float
    peak_mb: float = 0.0
    angle: dict[str, float] = field(default_factory=dict)
    note: str = ""


@contextmanager
def peak_memory(into: list[float]) -> Iterator[None]:
    """Append the largest growth of this process's resident memory inside the block, in MB, sampled every 5 ms."""
    page = resource.getpagesize()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page

    before, largest, running = resident(), 0, True

    def sample() -> None:
        nonlocal largest
        while running:
            largest = max(largest, resident())
            time.sleep(0.005)

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        running = False
        watcher.join()
        into.append((max(largest, resident()) - before) / 1e6)


def with_complements(masks: Mapping[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """The first `count` regions and, for each, everything else."""
    own = dict(list(masks.items())[:count])
    return {**own, **{f"not {name}": ~mask for name, mask in own.items()}}


def operator(bench: Bench, subject: Subject, space: str) -> JacobianOperator:
    return jacobian(bench.denoiser, subject.x_t, bench.settings.timestep, "x0/x" if space == "x" else "x0/h")


def verified(op: JacobianOperator, masks: Mapping[str, torch.Tensor], found: Mapping[str, TruncatedSVD]) -> float:
    """Largest ||A^T u - sigma v|| / sigma_1 over all triplets, with products made for the purpose."""
    worst = 0.0
    for name, svd in found.items():
        rows = op.rmatvec(svd.u * masks[name]).flatten(1) - svd.sigma[:, None] * svd.v.flatten(1)
        worst = max(worst, float(rows.norm(dim=1).max() / svd.sigma[0]))
    return worst


@dataclass
class Truth:
    """Right singular vectors of masked Jacobians, from the dense rows of small masks."""

    bench: Bench

    def subspace(self, subject: Subject, space: str, region: str, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Singular values (rank + 1,) of M J, and right vectors (j, n) that count as its first `rank`."""
        op = operator(self.bench, subject, space)
        inside = subject.masks[region].expand(op.shape_out).flatten().nonzero().squeeze(1)
        unit = torch.zeros(len(inside), subject.masks[region].numel() * op.shape_out[0])
        unit[torch.arange(len(inside)), inside] = 1.0
        rows = op.rmatvec(unit.view(-1, *op.shape_out)).flatten(1).double()
        _, sigma, vh = torch.linalg.svd(rows, full_matrices=False)
        return sigma[: rank + 1], answers(sigma, vh, rank, RESIDUAL)


class Race:
    """All methods on one image and space."""

    def __init__(self, bench: Bench, subject: Subject, space: str, pool: Sequence[Subject]) -> None:
        self.bench, self.subject, self.space, self.pool = bench, subject, space, pool
        self.rows: list[Row] = []
        self._public: dict[tuple[str, int], PublicRun] = {}
        self._peaks: dict[tuple[str, int], float] = {}

    def row(self, method: str, count: int, rank: int, null_rank: int, **figures: Any) -> Row:
        made = Row(self.space, count, rank, null_rank, method, self.subject.name, **figures)
        self.rows.append(made)
        return made

    def prepare(self) -> None:
        """A product each way, untimed: the first ones of a process load what later ones find loaded."""
        op = operator(self.bench, self.subject, self.space)
        op.rmatvec(op.matvec(torch.ones((1, *op.shape_in))))

    def public(self, count: int, rank: int) -> None:
        """Public and oracle rows; runs of one mask serve every count of regions it is part of."""
        runs, peaks = [], []
        for name, mask in with_complements(self.subject.masks, count).items():
            key = name, rank
            if key not in self._public:
                op, peak = operator(self.bench, self.subject, self.space), list[float]()
                with peak_memory(peak):
                    self._public[key] = subspace_iteration(Masked(op, mask), rank, seed=0, oracle=RESIDUAL)
                self._peaks[key] = peak[0]
            runs.append(self._public[key])
            peaks.append(self._peaks[key])
        never, missed = sum(not r.stopped for r in runs), sum(r.oracle_products is None for r in runs)
        self.row("public", count, rank, rank, products=sum(r.products for r in runs),
                 seconds=sum(r.seconds for r in runs), residual=max(r.residual for r in runs), peak_mb=max(peaks),
                 note=f"{never} of {len(runs)} never stopped by themselves")  # fmt: skip
        self.row("oracle", count, rank, rank, products=sum(r.oracle_products or r.products for r in runs),
                 seconds=sum(r.oracle_seconds or r.seconds for r in runs),
                 residual=max(RESIDUAL if r.oracle_products else r.residual for r in runs), peak_mb=max(peaks),
                 note=f"{missed} of {len(runs)} not there after {max(r.rounds for r in runs)} rounds: a lower bound"
                 if missed else "")  # fmt: skip

    def deflation(self, count: int, rank: int) -> None:
        runs = []
        for mask in with_complements(self.subject.masks, count).values():
            op = operator(self.bench, self.subject, self.space)
            runs.append(deflation(Masked(op, mask), rank, seed=0))
        self.row("deflation", count, rank, rank, products=sum(r.products for r in runs),
                 seconds=sum(r.seconds for r in runs), residual=max(r.residual for r in runs))  # fmt: skip

    def ours(
        self, method: str, count: int, rank: int, null_rank: int, start: torch.Tensor | None = None
    ) -> dict[str, TruncatedSVD]:
        masks = with_complements(self.subject.masks, count)
        ranks = {name: null_rank if name.startswith("not ") else rank for name in masks}
        op, peak = operator(self.bench, self.subject, self.space), list[float]()
        begun = time.perf_counter()
        with peak_memory(peak):
            found = masked_svds(
                op, masks, ranks, generator=torch.Generator().manual_seed(0), tolerance=RESIDUAL, start=start
            )
        seconds, products = time.perf_counter() - begun, spent(op)
        checked = all(svd.checked and bool(svd.converged.all()) for svd in found.values())
        self.row(method, count, rank, null_rank, products=products, seconds=seconds,
                 residual=verified(op, masks, found), peak_mb=peak[0],
                 note="" if checked else "not all converged and checked")  # fmt: skip
        return found

    def warm(self, count: int, rank: int) -> None:
        """From the nearest other image's subspaces, which were found cold and count for nothing here."""
        index = nearest(self.subject.picture, torch.stack([other.picture for other in self.pool]))
        other = self.pool[index]
        mine, theirs = (with_complements(subject.masks, count) for subject in (self.subject, other))
        found = masked_svds(
            operator(self.bench, other, self.space), theirs, dict.fromkeys(theirs, rank),
            generator=torch.Generator().manual_seed(0), tolerance=RESIDUAL,
        )  # fmt: skip
        self.ours("warm", count, rank, rank, start_block(found, theirs, mine))

    def symmetric(self, count: int, rank: int) -> None:
        """Forward products of noise inside the regions and over the whole picture start the search, and are counted."""
        op, generator = operator(self.bench, self.subject, self.space), torch.Generator().manual_seed(1)
        if op.shape_in != op.shape_out:
            return  # in h-space A and A^T do not even map between the same spaces
        inside = [torch.ones_like(next(iter(self.subject.masks.values()))), *list(self.subject.masks.values())[:count]]
        noise = torch.stack([torch.randn(op.shape_in, generator=generator) * mask for mask in inside])
        self.ours("symmetric start", count, rank, rank, op.matvec(noise))
        self.rows[-1].products = (self.rows[-1].products or 0) + len(noise)

    def angles(self, rank: int, found: Mapping[str, TruncatedSVD], regions: Sequence[str]) -> dict[str, Any]:
        """Sines of the largest angle to the dense truth, with the gap that decides how small they can be.

        "accurate" is the search made as accurate as the public run, alone, with what either spent and its residual.
        """
        truth, result = Truth(self.bench), {}
        for region in regions:
            sigma, span = truth.subspace(self.subject, self.space, region, rank)
            run = self._public[(region, rank)]
            public = Case(region, "public", run.products, run.residual, sine(run.v, span))
            op = Masked(operator(self.bench, self.subject, self.space), self.subject.masks[region])
            accurate = as_accurate(op, rank, span, public, RESIDUAL)
            result[region] = {"cold": sine(found[region].v, span), "public": public.angle, "accurate": accurate.angle,
                              "certified": float(found[region].certificate.angle.max()),
                              "gap": float((sigma[rank - 1] - sigma[rank]) / sigma[0]),
                              "over": over(accurate, public, SAME[op.dtype]), "public_products": public.products,
                              "accurate_products": accurate.products, "public_residual": public.residual,
                              "accurate_residual": accurate.residual}  # fmt: skip
        return result


@dataclass(frozen=True)
class Size:
    """How much is measured: `sizes` (regions, rank) on the first image, the main one on `images` of them.

    The public iteration is left out above `most_public` products: it would take hours, and its cost per round is known.
    """

    regions: Sequence[str] = REGIONS
    spaces: Sequence[str] = ("x", "h")
    sizes: Sequence[tuple[int, int]] = tuple((count, rank) for rank in (1, 5, 20) for count in (1, 4, 8))
    main: tuple[int, int] = (4, 5)
    null_rank: int = 30
    images: int = 2
    neighbours: int = 24  # images that the nearest one is taken from
    most_public: int = 20_000


QUICK = Size(regions=REGIONS[:4], spaces=("x",), sizes=((4, 5),), images=1, neighbours=6)


def measure(bench: Bench, size: Size, dense: Sequence[str] = DENSE) -> tuple[list[Target], dict[str, Any]]:
    """The whole table on the first held-out image, the main size on all of them."""
    subjects = _subjects(bench, "holdout", size.images, size.regions)
    pool = _subjects(bench, "mine", size.neighbours, size.regions)
    rows: list[Row] = []
    angles: dict[str, Any] = {}
    for space in size.spaces:
        for index, subject in enumerate(subjects):
            race = Race(bench, subject, space, pool)
            race.prepare()
            sizes = size.sizes if index == 0 else [size.main]
            with stage(f"{space}: {subject.name[:8]}", len(sizes)) as advance:
                for count, rank in sizes:
                    found = race.ours("cold", count, rank, rank)
                    if 4 * count * rank * ROUNDS[1] <= size.most_public:
                        race.public(count, rank)
                    race.warm(count, rank)
                    if (count, rank) == size.main:
                        race.ours("perfect start", count, rank, rank, torch.cat([svd.v for svd in found.values()]))
                        race.symmetric(count, rank)
                        race.ours("cold", count, rank, size.null_rank)
                        race.deflation(count, rank)
                        angles[f"{space} {subject.name[:8]}"] = race.angles(rank, found, dense)
                    advance(1, f"{count} regions, rank {rank}")
            rows += race.rows
    known = compare(RESIDUAL)
    targets = [*targets_of(rows, size.main), *_accuracy(angles), *spectra.targets_of(known, RESIDUAL)]
    details = {"rows": [asdict(row) for row in rows], "angles": angles, "known": [asdict(case) for case in known],
               "residual": RESIDUAL, "timestep": bench.settings.timestep, "predicted": PREDICTED,
               "out_of_reach": out_of_reach(targets, rows, size.main), "size": asdict(size)}  # fmt: skip
    return targets, details


def _subjects(bench: Bench, split: Split, count: int, names: Sequence[str]) -> list[Subject]:
    """Images of a split with their regions in the order of `names`."""
    return [
        replace(subject, masks={name: subject.masks[name] for name in names if name in subject.masks})
        for subject in bench.inverted(bench.images(split, count))
    ]


def _floor(count: int, rank: int, null_rank: int) -> int:
    """One product per wanted vector each way."""
    return 2 * count * (rank + null_rank)


def targets_of(rows: Sequence[Row], main: tuple[int, int]) -> list[Target]:
    """The bars at four regions, rank 5, in x-space, summed over the images; h-space beside them."""
    found = []
    for space in dict.fromkeys(row.space for row in rows):
        here = [r for r in rows if (r.space, r.regions, r.rank, r.null_rank) == (space, *main, main[1])]

        def total(method: str, what: Literal["products", "seconds"], here: Sequence[Row] = here) -> float:
            return float(sum(getattr(r, what) for r in here if r.method == method))

        images = len({r.image for r in here})
        cold, floor = total("cold", "products"), images * _floor(*main, main[1])
        found += [
            at_least(f"{space}: public products over ours", total("public", "products") / cold, 20),
            at_least(f"{space}: public seconds over ours", total("public", "seconds") / total("cold", "seconds"), 15),
            at_least(f"{space}: oracle-stopped products over ours", total("oracle", "products") / cold, 5),
            at_least(f"{space}: cold products over warm", cold / total("warm", "products"), 1.5),
            at_least(f"{space}: the same from a perfect start", cold / total("perfect start", "products"), 1.5),
            at_most(f"{space}: our products over the floor", cold / floor, 3),
            at_most(
                f"{space}: largest residual", max(r.residual for r in here if r.method in ("cold", "warm")), RESIDUAL
            ),
        ]
    return found


def _accuracy(angles: Mapping[str, Any]) -> list[Target]:
    """As accurate as the public run on every region with a dense truth, for no more products."""
    every = [figures for each in angles.values() for figures in each.values()]
    return [
        at_most("largest residual or angle over the public one's, when as accurate", max(f["over"] for f in every), 1),
        at_least("least public products over ours, when as accurate",
                 min(f["public_products"] / f["accurate_products"] for f in every), 1),
    ]  # fmt: skip


def out_of_reach(targets: Sequence[Target], rows: Sequence[Row], main: tuple[int, int]) -> list[dict[str, Any]]:
    """For every target missed: the best figure, what was tried, and the floor that stops it."""
    missed = []
    for target in (target for target in targets if not target.met):
        space, _, what = target.name.partition(": ")
        perfect = [r.products for r in rows if r.space == space and r.method == "perfect start"]
        least = _floor(*main, main[1])
        floor = (f"started from its own answer, a search still spends {min(filter(None, perfect))} products: {least} "
                 "for the wanted vectors, the rest for its checks" if any(perfect) else "")  # fmt: skip
        missed.append({"target": target.name, "best": target.value, "wanted": target.target,
                       "tried": TRIED.get(what, "nothing beyond what the table shows"), "floor": floor})  # fmt: skip
    return missed


def tables(details: Mapping[str, Any]) -> None:
    """Everything measured, and the angles to the dense truth."""
    names = ("space", "regions", "rank", "null_rank", "method", "image", "products", "seconds", "peak_mb", "residual")
    rows = [[str(row[n])[:8] if n == "image" else row[n] for n in (*names, "note")] for row in details["rows"]]
    table("masked SVDs with their complements", (*names[:-1], "residual", "note"), rows)
    columns = ("public", "cold", "accurate", "certified", "gap", "public_products", "accurate_products")
    lines = [(key, region, *(f[column] for column in columns))
             for key, each in details["angles"].items() for region, f in each.items()]  # fmt: skip
    table("sine of the largest angle to the dense truth", ("image", "region", *columns), lines)
    fields = ("name", "run", "products", "residual", "angle")
    table("operators of known spectra", fields, [[case[field] for field in fields] for case in details["known"]])
    missed = ("target", "best", "wanted", "tried", "floor")
    if details["out_of_reach"]:
        table("out of reach", missed, [[each[key] for key in missed] for each in details["out_of_reach"]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    given = options("svd", "Masked SVDs against the iterations of the public codes.", argv)
    size = QUICK if given.quick else Size()
    with open_bench(regions=size.regions) as bench:
        targets, details = measure(bench, size)
    return finish(document("svd", given.quick, targets, details, bench.clock), given, lambda: tables(details))


if __name__ == "__main__":
    sys.exit(main())
