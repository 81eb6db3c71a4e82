"""Is the built-in model good enough to learn from: round trip, rank, linearity and the attribute reader, measured.

`python -m tests.benchmarks.model [--quick] [--json] [--save FILE]`, on held-out images. Bars: DDIM round trip at 0.6 T,
100 calls each way; rank ratio of d f/d x_t, which must dip somewhere in 0.3 T to 0.8 T; local linearity at the
recipe's timestep and visible strength; the reader's held-out R^2 and its movement on strength-0 round trips.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from flows.console import stage
from flows.datasets.contract import SourceImage
from flows.evaluation.comparison import base_settings
from flows.evaluation.points import timestep_of
from flows.evaluation.trials import BATCH, Case, run_trials
from flows.paths import builtin_folder
from pipeline.editing import DecodeSettings, decode
from pipeline.faces.factors import FACTORS, OWNER
from pipeline.images import as_tensor
from pipeline.intervals import figure
from pipeline.inversion import round_trip_psnr
from pipeline.jacobian import jacobian
from pipeline.methods.contract import Found, Subject
from pipeline.methods.loco import Loco, LocoSettings
from pipeline.metrics import local_linearity
from pipeline.rank import SAMPLES, rank_figures
from tests.benchmarks.harness import Target, at_least, at_most, between, document, finish, options, table
from tests.benchmarks.rank import asymmetry, dense_figures, dense_matrix
from tests.benchmarks.subjects import Bench, open_bench

ROUND_TRIP_T, ROUND_TRIP_STEPS = 0.6, 100
LOW_RANK = 0.05


@dataclass(frozen=True)
class Size:
    """How many images each part looks at, and at which timesteps (fractions of T) the rank is measured."""

    round_trip: int
    paintings: int
    rank: int
    rank_ts: tuple[float, ...]
    linearity: int
    reader: int
    movement: int
    loss: int
    dense_side: int = 32
    rank_vectors: int = 645  # of a dimension of 12,288: enough to tell a ratio of 0.05 from more
    rank_samples: int = SAMPLES
    loss_ts: tuple[float, ...] = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)


FULL = Size(64, 32, 5, (0.3, 0.4, 0.5, 0.6, 0.7, 0.8), 16, 256, 64, 64)
QUICK = Size(8, 4, 1, (0.6, 0.7, 0.8), 2, 256, 8, 16)


def _pictures(bench: Bench, images: Sequence[SourceImage]) -> torch.Tensor:
    """(B, C, H, W) in [-1, 1] on the model's device."""
    stacked = torch.stack([as_tensor(image.image.copy()) for image in images])
    return stacked.to(bench.denoiser.device, bench.denoiser.dtype)


def _readings(bench: Bench, pictures: torch.Tensor) -> torch.Tensor:
    """(B, factors) of pictures (B, C, H, W)."""
    return torch.tensor([[row[name] for name in FACTORS] for row in bench.read(pictures)])


def _decoded(bench: Bench, subjects: Sequence[Subject], t: int, steps: int) -> torch.Tensor:
    """Pictures (B, C, H, W) of images inverted to t, unedited. Cost: `steps` passes an image."""
    settings, x_t = DecodeSettings(steps=steps), torch.stack([subject.x_t for subject in subjects])
    with bench.clock.stage("reconstruction"):
        return torch.cat([decode(bench.denoiser, part, t, settings) for part in torch.split(x_t, BATCH)])


# --- round trip ---------------------------------------------------------------------------------------------------


def round_trip(bench: Bench, images: Sequence[SourceImage], share: float, steps: int) -> list[float]:
    """PSNR (dB) of each image after `steps` calls up to t = share * T and as many down again."""
    back = _decoded(bench, bench.inverted(images, share, steps), timestep_of(bench, share), steps)
    return [float(value) for value in round_trip_psnr(_pictures(bench, images), back)]


def round_trips(bench: Bench, size: Size, steps: int = ROUND_TRIP_STEPS) -> tuple[list[Target], dict[str, Any]]:
    """The bar on faces64, and paintings64 for information."""
    details: dict[str, Any] = {"t": ROUND_TRIP_T, "steps_each_way": steps}
    for name, count in (("faces64", size.round_trip), ("paintings64", size.paintings)):
        images = bench.images("holdout", count, name=name)
        psnr = round_trip(bench, images, ROUND_TRIP_T, steps)
        details[name] = {
            "images": len(psnr), "median": figure(psnr, [i.image_id for i in images]), "worst": min(psnr),
        }  # fmt: skip
    value = details["faces64"]["median"].estimate
    name = f"DDIM round trip at {ROUND_TRIP_T:g} T, {steps} calls each way: median PSNR (dB)"
    return [at_least(name, value, 42.0)], details


# --- rank ---------------------------------------------------------------------------------------------------------


def ranks(bench: Bench, size: Size) -> tuple[list[Target], dict[str, Any]]:
    """Rank ratio of d f/d x_t against t and at the recipe's t; asymmetry; the check against the dense Jacobian."""
    images, network = bench.images("holdout", size.rank), bench.denoiser.differentiable()
    recipe_t = bench.settings.timestep / bench.denoiser.info.train_timesteps
    rows: dict[str, Any] = {}
    for share in sorted({*size.rank_ts, recipe_t}):
        t, subjects = timestep_of(bench, share), bench.inverted(images, share)
        figures, crooked = [], []
        with bench.clock.stage("rank"), stage(f"rank at {share:g} T", len(subjects)) as advance:
            for i, subject in enumerate(subjects):
                op = jacobian(network, subject.x_t, t, "x0/x", block=32)
                figures.append(rank_figures(op, size.rank_vectors, seed=i, samples=size.rank_samples))
                crooked.append(asymmetry(op, seed=i, samples=size.rank_samples))
                f = figures[-1]
                advance(1, f"rank ratio {f.ratio.ratio:.4f}, {f.vectors} vectors hold {f.captured.estimate:.4f}")
        rows[f"{share:g}"] = {
            # Where the vectors do not hold 98 %, the ratio is only known to be above their share.
            "median_ratio": median(f.ratio.ratio if f.ratio.resolved else math.inf for f in figures),
            "resolved": sum(f.ratio.resolved for f in figures),
            "median_captured": median(f.captured.estimate for f in figures),
            "median_asymmetry": median(crooked),
            "images": [asdict(f) for f in figures],
        }
    middle = size.rank_ts[len(size.rank_ts) // 2]
    (subject,) = bench.inverted(images[:1], middle)
    with bench.clock.stage("dense check"):
        check_targets, check = dense_check(bench, subject.x_t, size.dense_side, middle)
    low = min(rows[f"{share:g}"]["median_ratio"] for share in size.rank_ts if 0.3 <= share <= 0.8)
    name = "rank ratio of d f/d x_t on the median image, least over 0.3 T to 0.8 T"
    here = rows[f"{recipe_t:g}"]
    dimension = math.prod(bench.denoiser.info.x_shape)
    details = {"dimension": dimension, "energy": 0.99**2, "by_t": rows, "at_recipe_t": here, "dense_check": check}
    return [at_most(name, low, LOW_RANK), *check_targets], details


def dense_check(bench: Bench, x_t: torch.Tensor, side: int, share: float) -> tuple[list[Target], dict[str, Any]]:
    """Matrix-free figures against the dense Jacobian, on the middle of x_t: the network is fully convolutional.

    The matrix-free ratio can only err upwards, by what one power pass leaves behind.
    """
    t, (height, width) = timestep_of(bench, share), x_t.shape[-2:]
    top, left = (height - side) // 2, (width - side) // 2
    latent = x_t[:, top : top + side, left : left + side]
    op = jacobian(bench.denoiser.differentiable(), latent, t, "x0/x", block=64)
    free = rank_figures(op, latent.numel(), seed=0)
    crooked = asymmetry(op, seed=0)
    with stage(f"dense Jacobian at {side} x {side}", latent.numel()) as advance:
        dense = dense_figures(dense_matrix(op, advance=lambda n: advance(n, "rows")), free.vectors)
    targets = [
        between(f"rank ratio, matrix-free over dense at {side} x {side}", free.ratio.ratio / dense.ratio, 0.97, 1.05),
        at_most(
            f"captured energy, matrix-free less dense at {side} x {side}",
            abs(free.captured.estimate - dense.captured),
            0.01,
        ),
    ]
    return targets, {"t": share, "side": side, "matrix_free": free, "dense": dense, "asymmetry": crooked}


# --- linearity ----------------------------------------------------------------------------------------------------


def linearity(bench: Bench, size: Size) -> tuple[list[Target], dict[str, Any]]:
    """Change of f against lambda J v for the first local direction of each region, at its visible strength."""
    subjects, t = bench.inverted(bench.images("holdout", size.linearity)), bench.settings.timestep
    settings = base_settings(Loco, bench)
    assert isinstance(settings, LocoSettings)
    method = Loco(bench.denoiser, replace(settings, rank=1))
    cases, vectors, effects = list[Case](), list[torch.Tensor](), list[torch.Tensor]()
    with bench.clock.stage("mining"), stage("mining", len(subjects)) as advance:
        for subject in subjects:
            found = [edit for edit in method.find(subject).values() if isinstance(edit, Found)]
            own = [edit.vector for edit in found if edit.vector is not None]
            if own:
                changes = jacobian(bench.denoiser, subject.x_t, t, "x0/x").matvec(torch.stack(own))
                cases += [Case(edit, subject).turned(sign) for edit in found for sign in (1.0, -1.0)]
                vectors += [vector for vector in own for _ in range(2)]
                effects += [change for change in changes for _ in range(2)]
            advance(1, "")
    with bench.clock.stage("edits"):
        trials = run_trials(bench, method, cases)
    result = local_linearity(
        lambda x: bench.denoiser.posterior_mean(x, t),
        torch.stack([case.subject.x_t for case in cases]),
        torch.stack(vectors),
        torch.tensor([trial.strength for trial in trials]),
        torch.stack(effects),
    )
    names = [case.subject.name for case in cases]
    medians = {name: figure(getattr(result, name).tolist(), names) for name in asdict(result)}
    regions = {
        region: {
            name: median(v for v, case in zip(values.tolist(), cases, strict=True) if case.edit.region == region)
            for name, values in asdict(result).items()
        }
        for region in dict.fromkeys(case.edit.region for case in cases)
    }
    targets = [
        at_least("local linearity: median cosine of f(x + lambda v) - f(x) and lambda J v", medians["cosine"].estimate,
                 0.9),
        between("local linearity: median norm ratio of the same", medians["norm_ratio"].estimate, 0.75, 1.25),
    ]  # fmt: skip
    papers = {key: medians[key] for key in ("value_cosine", "value_norm_ratio")}
    details = {"t": t, "cases": len(cases), "medians": medians, "papers_own_figure": papers, "by_region": regions}
    return targets, {**details, "median_strength": median(abs(trial.strength) for trial in trials)}


# --- the reader ---------------------------------------------------------------------------------------------------


def reader(bench: Bench, size: Size) -> tuple[list[Target], dict[str, Any]]:
    """R^2 of every factor on held-out images, and how far strength-0 round trips move the readings."""
    images = bench.images("holdout", size.reader)
    truth = torch.tensor([[image.factors[name] for name in FACTORS] for image in images])
    residual = (_readings(bench, _pictures(bench, images)) - truth).square().mean(0)
    r2 = dict(zip(FACTORS, (1.0 - residual / truth.var(0, unbiased=False)).tolist(), strict=True))
    subjects = bench.inverted(images[: size.movement])
    moved = {
        "inversion_steps": _movement(bench, subjects, bench.recipe.method.inversion_steps),
        "edit_steps": _movement(bench, subjects, bench.settings.decode.steps),
    }
    worst = min(r2, key=lambda name: r2[name])
    targets = [
        at_least(f"attribute reader: least R^2 of {len(r2)} factors ({worst})", r2[worst], 0.98),
        at_most("attribute reader: movement on strength-0 round trips, 95th percentile",
                moved["inversion_steps"]["p95"], 0.03),
    ]  # fmt: skip
    return targets, {"images": len(images), "r2": r2, "owners": OWNER, "movement": moved}


def _movement(bench: Bench, subjects: Sequence[Subject], down: int) -> dict[str, Any]:
    """Movement over images and factors from the source to its reconstruction by `down` steps."""
    x0, back = torch.stack([s.picture for s in subjects]), _decoded(bench, subjects, bench.settings.timestep, down)
    moved = (_readings(bench, back) - _readings(bench, x0)).abs()
    per_factor = dict(zip(FACTORS, moved.quantile(0.95, dim=0).tolist(), strict=True))
    return {"steps_down": down, "images": len(x0), "p95": float(moved.flatten().quantile(0.95)),
            "p95_by_factor": per_factor, "psnr_median": float(round_trip_psnr(x0, back).median())}  # fmt: skip


# --- for information ----------------------------------------------------------------------------------------------


def about(bench: Bench, size: Size) -> dict[str, Any]:
    """Parameters, size on disk, and the held-out error of the posterior mean (mean square) against t."""
    x0 = _pictures(bench, bench.images("holdout", size.loss))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0)
    loss = {}
    with bench.clock.stage("held-out loss"), torch.no_grad():
        for share in size.loss_ts:
            t = timestep_of(bench, share)
            alpha, sigma = bench.denoiser.alpha_sigma(t)
            squares = []
            for clean, drawn in zip(torch.split(x0, 32), torch.split(noise, 32), strict=True):
                clean_hat = bench.denoiser.posterior_mean(alpha * clean + sigma * drawn, t)
                squares.append((clean_hat - clean).square().flatten(1).mean(1))
            error = float(torch.cat(squares).mean())
            loss[f"{share:g}"] = {"x0": error, "v": error / sigma**2}  # v - v_hat = -(x0 - x0_hat) / sigma
    model = bench.recipe.model.reference
    folder = builtin_folder() / "denoiser" if model == "builtin" else Path(model)
    weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    return {"info": asdict(bench.denoiser.info), "weights_mb": weights / 1e6, "held_out_mse": loss}


def run(bench: Bench, size: Size) -> tuple[list[Target], dict[str, Any]]:
    """All parts: their targets and details."""
    targets: list[Target] = []
    details: dict[str, Any] = {"recipe": bench.recipe.model_dump(mode="json"), "size": asdict(size)}
    for part in (round_trips, ranks, linearity, reader):
        found, more = part(bench, size)
        targets += found
        details[part.__name__] = more
    return targets, {**details, "about": about(bench, size)}


def tables(details: dict[str, Any]) -> None:
    """Rank and asymmetry against t, and the reader by factor, for people."""
    rows = [(share, r["median_ratio"], r["median_captured"], r["median_asymmetry"], f"{r['resolved']} of "
             f"{len(r['images'])}") for share, r in details["ranks"]["by_t"].items()]  # fmt: skip
    table("d f/d x_t", ("t / T", "rank ratio", "energy held", "asymmetry", "resolved"), rows)
    moved = details["reader"]["movement"]["inversion_steps"]["p95_by_factor"]
    reading = [(name, r2, moved[name]) for name, r2 in details["reader"]["r2"].items()]
    table("attribute reader", ("factor", "R^2", "movement p95"), reading)
    shown = [(name, f.estimate) for name, f in details["linearity"]["medians"].items()]
    table("linearity (value_* is the papers' own figure)", ("figure", "median"), shown)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    given = options("model", "The built-in model and reader against their bars, on held-out images.", argv)
    with open_bench() as bench:
        targets, details = run(bench, QUICK if given.quick else FULL)
    return finish(document("model", given.quick, targets, details, bench.clock), given, lambda: tables(details))


if __name__ == "__main__":
    sys.exit(main())
