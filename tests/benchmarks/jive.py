"""JIVE: what exact compression saves, agreement with the published package, and which rule finds the true ranks.

`python -m tests.benchmarks.jive [--quick] [--json] [--save FILE]`. No network passes: plain matrices of known content.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from flows.console import Advance, silent, stage
from pipeline.jive import jive
from pipeline.jive_ranks import DEFAULT_RULE, Rule, choose_ranks
from tests.benchmarks.harness import Clock, Target, at_least, at_most, document, finish, options, table
from tests.benchmarks.jive_truth import Truth, simulate

RULES: tuple[Rule, ...] = get_args(Rule)
PUBLISHED = Path(__file__).parents[1] / "pipeline" / "data" / "rjive.npz"
TOLERANCE = 1e-6

_THREE = Truth(rows=(30, 40, 50), width=200, joint=2, own=(1, 2, 3))
_SIX = Truth(rows=(20,) * 6, width=400, joint=3, own=(2,) * 6)
_SVDS = Truth(rows=(60,) * 5, width=4096, joint=3, own=(3,) * 5, keep=16)


def _but(truth: Truth, **changes: Any) -> Truth:
    return Truth(**{**vars(truth), **changes})


CELLS: dict[str, Truth] = {
    "three blocks, strength 4": _but(_THREE, strength=4.0),
    "three blocks, strength 2": _THREE,
    "three blocks, strength 1": _but(_THREE, strength=1.0),
    "three blocks, strength 0.7": _but(_THREE, strength=0.7),
    "equal strengths": _but(_THREE, clustered=True),
    "joint part half as strong": _but(_THREE, joint_share=0.5),
    "joint part twice as strong": _but(_THREE, joint_share=2.0, strength=1.0),
    "no joint part": _but(_THREE, joint=0),
    "no joint part, strength 0.7": _but(_THREE, joint=0, strength=0.7),
    "one direction of two blocks only": _but(_THREE, partial=1),
    "the same, strength 0.8": _but(_THREE, partial=1, strength=0.8),
    "the same, no joint part": _but(_THREE, partial=2, joint=0),
    "oblique individual parts (cosine 0.5)": _but(_THREE, oblique=0.5),
    "rows of unequal noise": _but(_THREE, rough=True),
    "two blocks": Truth(rows=(40, 60), width=300, joint=2, own=(2, 3)),
    "two blocks, strength 0.8": Truth(rows=(40, 60), width=300, joint=2, own=(2, 3), strength=0.8),
    "six blocks": _SIX,
    "six blocks, strength 1": _but(_SIX, strength=1.0),
    "six blocks, one direction of five": _but(_SIX, partial=1, strength=1.0),
    "few columns": Truth(rows=(20, 25, 30), width=40, joint=2, own=(2, 2, 2)),
    "more rows than columns": Truth(rows=(150, 100), width=60, joint=2, own=(2, 1)),
    "truncated SVDs of noisy blocks": _SVDS,
    "the same, strength 1": _but(_SVDS, strength=1.0),
    "no noise": _but(_THREE, noise=0.0),
}
QUICK_CELLS = ("three blocks, strength 2", "the same, strength 0.8")


@dataclass(frozen=True)
class Size:
    """How much is measured: width of the blocks of the speed comparison, its repeats, cells and seeds a cell."""

    width: int
    repeats: int
    cells: tuple[str, ...]
    seeds: int


FULL = Size(32_768, 5, tuple(CELLS), 20)
QUICK = Size(32_768, 1, QUICK_CELLS, 3)


# --- speed --------------------------------------------------------------------------------------------------------


def wide_blocks(width: int, count: int = 6, rank: int = 10) -> list[torch.Tensor]:
    """Truncated SVDs diag(S) V^T (rank, width) that share most of a space of 2 `rank` dimensions, as regions do."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    common = torch.linalg.qr(normal(width, 2 * rank)).Q.T
    sigma = 0.85 ** torch.arange(rank, dtype=torch.float64)[:, None]
    blocks = []
    for _ in range(count):
        mixed = torch.linalg.qr(normal(2 * rank, rank)).Q.T @ common + 0.7 * torch.linalg.qr(normal(width, rank)).Q.T
        blocks.append(sigma * torch.linalg.qr(mixed.T).Q.T)
    return blocks


def _thin(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank-`rank` approximation of a wide matrix by its thin SVD, and the rows that span it."""
    u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ vt[:rank], vt[:rank]


def full_width_jive(
    blocks: Sequence[torch.Tensor], joint_rank: int, individual_rank: int, tolerance: float, most: int = 3000
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Joint and individual parts (R, D) and rounds: `jive`'s iteration, momentum and stopping, at the blocks' width."""
    heights = [len(block) for block in blocks]
    total = torch.cat([block / block.norm() for block in blocks])
    size, run_up, last = float(total.norm()), 0, math.inf
    joint = individual = given = torch.zeros_like(total)
    for rounds in range(1, most + 1):
        before = joint, individual
        joint, basis = _thin(total - given, joint_rank)
        rests = (total - joint).split(heights)
        individual = torch.cat([_thin(r - (r @ basis.T) @ basis, individual_rank)[0] for r in rests])
        change = max(float((joint - before[0]).norm()), float((individual - given).norm())) / size
        if rounds > 1 and change <= tolerance:
            break
        residual = float((total - joint - individual).norm())
        run_up = run_up + 1 if rounds > 20 and residual <= last * (1 + 1e-12) else 0
        given, last = individual + run_up / (run_up + 3) * (individual - before[1]), residual
    return joint, individual, rounds


def measure_speed(size: Size, clock: Clock) -> tuple[list[Target], dict[str, Any]]:
    """Seconds of `jive`, its QR included, against the same rounds at full width; ranks 12 and 2."""
    blocks = wide_blocks(size.width)
    jive(blocks, 12, [2] * len(blocks), tolerance=TOLERANCE, max_iterations=2)  # threads and caches are warm
    with clock.stage("jive at full width"):
        begun = time.perf_counter()
        joint, individual, rounds = full_width_jive(blocks, 12, 2, TOLERANCE)
        full = time.perf_counter() - begun
    seconds = []
    with clock.stage("jive compressed"):
        for _ in range(size.repeats):
            begun = time.perf_counter()
            found = jive(blocks, 12, [2] * len(blocks), tolerance=TOLERANCE)
            seconds.append(time.perf_counter() - begun)
    mine = [torch.cat([p / s for p, s in zip(parts, found.scales, strict=True)])
            for parts in (found.joint, found.individual)]  # fmt: skip
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(mine, (joint, individual), strict=True))
    compressed = statistics.median(seconds)
    targets = [
        at_least("times faster than thin SVDs at full width, QR included", full / compressed, 15),
        at_most("largest relative difference from full width", worst, 1e-6),
    ]
    shape = {"blocks": len(blocks), "rows": len(blocks[0]), "width": size.width, "joint_rank": 12, "individual_rank": 2}
    return targets, {
        **shape,
        "seconds_compressed": compressed,
        "seconds_full_width": full,
        "rounds": found.iterations,
        "rounds_full_width": rounds,
        "converged": found.converged,
        "difference": worst,
    }


# --- the published package ----------------------------------------------------------------------------------------


def measure_agreement() -> tuple[list[Target], dict[str, float]]:
    """Largest relative difference from r.jive 2.4's parts, for orthIndiv on and off, with and without its scaling."""
    differences: dict[str, float] = {}
    with np.load(PUBLISHED, allow_pickle=False) as data:
        for case in ("plain", "orth", "scaled", "scaled_orth"):
            scaled = case.startswith("scaled")
            blocks = [torch.tensor(data[f"block{i}"]) for i in (1, 2, 3)]
            if scaled:  # the package centres rows, and also divides by the root of the number of entries
                blocks = [x - x.mean(dim=1, keepdim=True) for x in blocks]
            found = jive(blocks, 2, [2, 1, 3], scale=scaled, orthogonal_individuals=case.endswith("orth"),
                         tolerance=1e-13)  # fmt: skip
            root = sum(x.numel() for x in blocks) ** 0.5
            units = [float(x.norm()) * root if scaled else 1.0 for x in blocks]
            differences[case] = max(
                float((part - truth * unit).norm() / (truth * unit).norm())
                for kind, parts in (("joint", found.joint), ("individual", found.individual))
                for i, (part, unit) in enumerate(zip(parts, units, strict=True), 1)
                for truth in [torch.tensor(data[f"{case}_{kind}{i}"])]
            )
    return [at_most("largest relative difference from r.jive", max(differences.values()), 1e-6)], differences


# --- ranks --------------------------------------------------------------------------------------------------------


def measure_ranks(size: Size, clock: Clock, advance: Advance = silent) -> tuple[list[Target], dict[str, Any]]:
    """Share of seeds at which each rule finds exactly the joint rank, and exactly all ranks, cell by cell."""
    cells: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(size.cells):
        truth = CELLS[name]
        results: dict[str, dict[str, Any]] = {
            rule: {"joint": 0.0, "all": 0.0, "seconds": 0.0, "joint_ranks": []} for rule in RULES
        }
        for seed in range(size.seeds):
            blocks = simulate(truth, 1000 * number + seed)
            for rule, result in results.items():
                begun = time.perf_counter()
                with clock.stage(f"rule {rule}"):
                    found = choose_ranks(blocks, rule, generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
                right = found.joint_rank == truth.joint
                result["joint"] += right / size.seeds
                result["all"] += (right and found.individual_ranks == truth.individual_ranks) / size.seeds
                result["seconds"] += (time.perf_counter() - begun) / size.seeds
                result["joint_ranks"].append(found.joint_rank)
            advance(1, name)
        cells[name] = {"truth": vars(truth), "rules": results}
    overall = {rule: {kind: statistics.fmean(cell["rules"][rule][kind] for cell in cells.values())
                      for kind in ("joint", "all")} for rule in RULES}  # fmt: skip
    targets = []
    for kind, words in (("joint", "joint ranks"), ("all", "joint and individual ranks")):
        best = max(overall[rule][kind] for rule in RULES if rule != DEFAULT_RULE)
        margin = overall[DEFAULT_RULE][kind] - best
        targets.append(at_least(f"exact {words}: share of {DEFAULT_RULE} less that of the next best rule", margin, 0))
    return targets, {"seeds": size.seeds, "default": DEFAULT_RULE, "overall": overall, "cells": cells}


# --- the command --------------------------------------------------------------------------------------------------


def measure(size: Size, clock: Clock, advance: Advance = silent) -> tuple[list[Target], dict[str, Any]]:
    """All targets, and the figures behind them."""
    speed_targets, speed = measure_speed(size, clock)
    agreement_targets, agreement = measure_agreement()
    rank_targets, ranks = measure_ranks(size, clock, advance)
    return speed_targets + agreement_targets + rank_targets, {"speed": speed, "r.jive": agreement, "ranks": ranks}


def _tables(details: dict[str, Any]) -> None:
    speed, ranks = details["speed"], details["ranks"]
    table(
        f"{speed['blocks']} blocks of {speed['rows']} rows, width {speed['width']:,}, same rounds",
        ("", "seconds", "rounds"),
        [("compressed", speed["seconds_compressed"], speed["rounds"]),
         ("full width", speed["seconds_full_width"], speed["rounds_full_width"])],
    )  # fmt: skip
    table("largest relative difference from r.jive", ("case", "difference"), list(details["r.jive"].items()))
    rows = [
        (name, *(f"{cell['rules'][rule]['joint']:.2f} / {cell['rules'][rule]['all']:.2f}" for rule in RULES))
        for name, cell in ranks["cells"].items()
    ]
    rows.append(("mean", *(f"{o['joint']:.3f} / {o['all']:.3f}" for o in (ranks["overall"][rule] for rule in RULES))))
    seconds = [statistics.fmean(c["rules"][rule]["seconds"] for c in ranks["cells"].values()) for rule in RULES]
    rows.append(("seconds a choice", *(f"{s:.2f}" for s in seconds)))
    table(f"exactly right over {ranks['seeds']} seeds: joint rank / all ranks", ("blocks", *RULES), rows)


def main(argv: Sequence[str] | None = None) -> int:
    given = options("jive", "Speed of JIVE, agreement with r.jive, and rules for its ranks.", argv)
    size, clock = QUICK if given.quick else FULL, Clock()
    with stage("simulated truth", len(size.cells) * size.seeds) as advance:
        targets, details = measure(size, clock, advance)
    return finish(document("jive", given.quick, targets, details, clock), given, lambda: _tables(details))


if __name__ == "__main__":
    sys.exit(main())
