"""Every way to a product with the Jacobian: its time, its error, its memory; and the 113.7 M-parameter model on a CPU.

`python -m tests.benchmarks.products [--quick] [--json] [--save FILE] [--only PART ...]`. Parts: `routes` (time per
product in passes of one image through the network, error, peak memory against its estimate), `precision` (bfloat16
products and the residuals that an SVD ends with), `images` (several images in one pass), `large` (minutes; not part of
`--quick`): a network of the public CelebA-HQ DDPM's shape with random weights, in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from flows.console import stage
from flows.known_models import DDPM_256
from pipeline.errors import InputError
from pipeline.jacobian import JacobianKind, JacobianOperator, jacobian, seconds_per_vector
from pipeline.memory import footprint
from pipeline.models.forward_mode import push
from pipeline.models.unet2d import UNet2DDenoiser
from pipeline.operators import LinearOperator, Masked
from pipeline.routes import measured_routes
from pipeline.svd import TruncatedSVD, truncated_svd
from tests.benchmarks.harness import Target, at_most, between, document, finish, options, table
from tests.benchmarks.subjects import Bench, open_bench

PARTS = ("routes", "precision", "images", "large")
KINDS: tuple[JacobianKind, ...] = ("x0/x", "x0/h")
LARGE_PARAMETERS = 113_673_219
LARGE_RSS = 12e9
LARGE_BUDGET, SHORT_BUDGET = 4_000_000_000, 2_500_000_000  # room for a plain graph, and for a checkpointed one
_PROC = Path("/proc/self")

Part = tuple[list[Target], dict[str, Any]]


def resident(field: str) -> int:
    """A figure of this process in bytes: VmRSS, memory held now, or VmHWM, the most since `peak_growth` began."""
    lines = (_PROC / "status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def peak_growth(run: Callable[[], object]) -> int:
    """Bytes by which the resident memory of this process grows at most while `run` runs."""
    ctypes.CDLL(None).malloc_trim(0)
    (_PROC / "clear_refs").write_text("5")  # the peak starts again
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def forward_seconds(bench: Bench, x_t: torch.Tensor, timestep: int) -> float:
    """Time of one image through the plain network, by the clock of `seconds_per_vector`."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return bench.denoiser.predict_noise(x, timestep)

    forward(x_t[None])
    return min(seconds_per_vector(forward, x_t[None]) for _ in range(5))


def noise(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Standard normal numbers."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    """||found - truth|| / ||truth||."""
    return float((found - truth).norm() / truth.norm())


# --- routes -------------------------------------------------------------------------------------------------------


def routes(bench: Bench, sizes: Sequence[int]) -> Part:
    """A table of routes by block sizes for x-space and h-space; memory of both exact passes against its estimate."""
    (subject,) = bench.inverted(bench.images("holdout", 1))
    t = bench.settings.timestep
    unit = forward_seconds(bench, subject.x_t, t)
    rows, memory, errors = [], [], {}
    with bench.clock.stage("routes"), stage("routes", len(KINDS)) as advance:
        for kind in KINDS:
            operator = jacobian(bench.denoiser, subject.x_t, t, kind)
            found = measured_routes(operator, generator=torch.Generator().manual_seed(0), sizes=sizes)
            rows += [{"kind": kind, **asdict(route), "passes": route.seconds / unit} for route in found]
            errors[kind] = next(route.error for route in found if route.name == "central difference")
            memory += [row for size in sizes for row in peaks(bench, subject.x_t, t, kind, size)]
            advance(1, kind)
    ratios = [row["estimate"] / row["peak"] for row in memory if row["peak"] > 32e6]  # below, the heap's own noise
    targets = [at_most(f"central difference: relative error, {kind}", error, 1e-2) for kind, error in errors.items()]
    if ratios:
        targets.append(between("estimated over measured peak memory: least", min(ratios), 1.0, 2.5))
        targets.append(between("estimated over measured peak memory: most", max(ratios), 1.0, 2.5))
    return targets, {"forward_seconds": unit, "routes": rows, "memory": memory}


def peaks(bench: Bench, x_t: torch.Tensor, t: int, kind: JacobianKind, size: int) -> list[dict[str, Any]]:
    """Peak memory of one JVP and one VJP pass of `size` vectors, graph included, measured and estimated; bytes."""
    operator = jacobian(bench.denoiser, x_t, t, kind, block=size)
    estimate = footprint(operator.function, operator.point, max(2, size))
    v, u = noise((size, *operator.shape_in), 1), noise((size, *operator.shape_out), 2)
    at = 0 if size == 1 else 1
    return [
        {"kind": kind, "pass": "JVP", "block": size, "peak": peak_growth(lambda: operator.matvec(v)),
         "estimate": estimate.jvp[at]},
        {"kind": kind, "pass": "VJP", "block": size, "peak": peak_growth(lambda: operator.rmatvec(u)),
         "estimate": estimate.kept + estimate.vjp[at]},
    ]  # fmt: skip


# --- precision ----------------------------------------------------------------------------------------------------


def precision(bench: Bench, rank: int) -> Part:
    """Products in bfloat16 against float32: their error, and what an SVD that uses them ends with."""
    (subject,) = bench.inverted(bench.images("holdout", 1))
    t, rows = bench.settings.timestep, []
    mask = subject.masks["mouth"]
    with bench.clock.stage("precision"), stage("precision", 2 * len(KINDS)) as advance:
        for kind in KINDS:
            full = jacobian(bench.denoiser, subject.x_t, t, kind)
            v, u = noise((8, *full.shape_in), 3), noise((8, *full.shape_out), 4)
            for name in ("full", "bfloat16"):
                operator = jacobian(bench.denoiser, subject.x_t, t, kind, precision=name)
                svd = truncated_svd(
                    Masked(operator, mask), rank, generator=torch.Generator().manual_seed(0), tolerance=1e-4,
                    max_products=40 * rank,
                )  # fmt: skip
                rows.append(
                    {"kind": kind, "precision": name, "jvp_error": relative(operator.matvec(v), full.matvec(v)),
                     "vjp_error": relative(operator.rmatvec(u), full.rmatvec(u)),
                     "own_residual": float(svd.residuals.max()),
                     "residual": true_residual(Masked(full, mask), svd), "products": svd.products.total}
                )  # fmt: skip
                advance(1, f"{kind} {name}")
    return [], {"rank": rank, "rows": rows}


def true_residual(operator: LinearOperator, svd: TruncatedSVD) -> float:
    """The larger residual of any triplet, ||A v - sigma u|| or ||A^T u - sigma v||, over sigma_1, by exact products."""
    scale = svd.sigma.view(-1, 1, 1, 1)
    forward = (operator.matvec(svd.v) - scale * svd.u).flatten(1).norm(dim=1)
    backward = (operator.rmatvec(svd.u) - scale * svd.v).flatten(1).norm(dim=1)
    return float(torch.maximum(forward, backward).max() / svd.sigma[0])


# --- several images -----------------------------------------------------------------------------------------------


def images(bench: Bench, count: int, block: int = 16) -> Part:
    """JVPs of `block` vectors that belong to `count` images, in one pass and image by image, in passes a product."""
    subjects, t = bench.inverted(bench.images("holdout", count)), bench.settings.timestep
    unit = forward_seconds(bench, subjects[0].x_t, t)
    twin, points = bench.denoiser.differentiable(), torch.stack([s.x_t for s in subjects])
    each = block // count
    tangents = noise((each, *points.shape), 5)
    operators = [jacobian(bench.denoiser, s.x_t, t, "x0/x", block=block) for s in subjects]
    whole = noise((block, *points.shape[1:]), 6)

    def together(v: torch.Tensor) -> torch.Tensor:
        return push(lambda x: twin.posterior_mean(x, t), points, v)

    def one_by_one(v: torch.Tensor) -> torch.Tensor:
        return torch.stack([operator.matvec(v[:, i]) for i, operator in enumerate(operators)], 1)

    with bench.clock.stage("images"):
        difference = relative(together(tangents), one_by_one(tangents))
        seconds = {
            f"{count} images x {each} vectors, one pass": seconds_per_vector(together, tangents) / count,
            f"{count} images x {each} vectors, image by image": seconds_per_vector(one_by_one, tangents) / count,
            f"1 image x {block} vectors": seconds_per_vector(operators[0].matvec, whole),
        }
    return [], {"passes": {name: value / unit for name, value in seconds.items()}, "difference": difference}


# --- the large model ----------------------------------------------------------------------------------------------


def large_denoiser(device: str = "cpu") -> UNet2DDenoiser:
    """The configuration of google/ddpm-celebahq-256 with random weights."""
    torch.manual_seed(0)
    return UNet2DDenoiser(UNet2DModel(**DDPM_256), DDPMScheduler(clip_sample=False), device=device)


def large_here(vectors: int, products: int) -> dict[str, Any]:
    """A few products and a rank-1 masked SVD of the large model in this process: seconds, and its peak memory."""
    bare = resident("VmRSS")
    denoiser, t = large_denoiser(), 600
    x_t = noise(denoiser.info.image_shape, 0)
    seconds: dict[str, float] = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        begun = time.monotonic()
        result = run()
        seconds[name] = time.monotonic() - begun
        sys.stderr.write(f"{name}: {seconds[name]:.1f} s, {resident('VmHWM') / 1e9:.2f} GB at most\n")
        return result

    def products_within(budget: int, count: int) -> tuple[JacobianOperator, torch.Tensor, torch.Tensor]:
        operator = timed(f"planning {budget:.1e}", lambda: jacobian(denoiser, x_t, t, "x0/x", memory=budget))
        image = timed(f"{count} JVPs within {budget:.1e}", lambda: operator.matvec(v[:count]))
        return operator, image, timed(f"{count} VJPs within {budget:.1e}", lambda: operator.rmatvec(u[:count]))

    v, u = noise((vectors, *denoiser.info.image_shape), 1), noise((vectors, *denoiser.info.image_shape), 2)
    with torch.no_grad():
        timed("forward", lambda: denoiser.predict_noise(x_t[None], t))
    operator, image, back = products_within(LARGE_BUDGET, vectors)
    mask = torch.zeros(x_t.shape[-2:])
    mask[150:200, 90:170] = 1.0
    svd = timed("rank-1 SVD", lambda: truncated_svd(
        Masked(operator, mask), 1, generator=torch.Generator().manual_seed(0), max_products=products, block=1, probes=0
    ))  # fmt: skip
    found = {
        "parameters": denoiser.info.parameters, "blocks": asdict(operator.blocks), "bare": bare,
        "peak_rss": peak_rss(), "adjoint_gap": relative((image * u).sum((1, 2, 3)), (v * back).sum((1, 2, 3))),
        "sigma": float(svd.sigma[0]), "residual": float(svd.residuals[0]), "svd_products": svd.products.total,
    }  # fmt: skip
    operator = None  # type: ignore[assignment]  # and its graph
    ctypes.CDLL(None).malloc_trim(0)
    (_PROC / "clear_refs").write_text("5")
    operator, _, again = products_within(SHORT_BUDGET, 1)
    short = {"blocks": asdict(operator.blocks), "recomputed": operator.products.recomputed,
             "difference": relative(again, back[:1]), "peak_rss": resident("VmHWM")}  # fmt: skip
    return {**found, "seconds": seconds, "short": short}


def peak_rss() -> int:
    """The most memory that this process held since `peak_growth` last began, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def large(vectors: int = 3, products: int = 8) -> Part:
    """`large_here` in a process of its own, whose peak memory is the target."""
    command = [sys.executable, "-m", "tests.benchmarks.products", "--large-here", f"{vectors},{products}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise InputError("large", f"a process that ended with {done.returncode}", "its answer, a JSON document")
    found = json.loads(done.stdout.splitlines()[-1])
    short, bare, peak = found["short"], found["bare"], found["peak_rss"]
    targets = [
        at_most("113.7 M parameters at 256 x 256 on the CPU: peak resident memory (bytes)", peak, LARGE_RSS),
        between("its parameters", found["parameters"], LARGE_PARAMETERS, LARGE_PARAMETERS),
        at_most(f"its peak over the bare process with a budget of {LARGE_BUDGET:.1e} bytes", peak - bare, LARGE_BUDGET),
        at_most(f"the same with {SHORT_BUDGET:.1e} bytes, checkpointed", short["peak_rss"] - bare, SHORT_BUDGET),
        at_most("its adjoint identity: relative gap", found["adjoint_gap"], 1e-3),
        at_most("its checkpointed against its plain VJP: relative difference", short["difference"], 1e-4),
    ]
    return targets, found


# --- the command --------------------------------------------------------------------------------------------------


def run(bench: Bench, parts: Sequence[str], quick: bool) -> Part:
    """The parts asked for: their targets and details."""
    work: dict[str, Callable[[], Part]] = {
        "routes": lambda: routes(bench, (1, 16) if quick else (1, 2, 4, 8, 16, 32)),
        "precision": lambda: precision(bench, 1 if quick else 5),
        "images": lambda: images(bench, 4),
        "large": large,
    }
    targets, details = [], {}
    for part in parts:
        found, details[part] = work[part]()
        targets += found
    return targets, details


def tables(details: dict[str, Any]) -> None:
    """Every measured figure, for people."""
    if "routes" in details:
        d = details["routes"]
        rows = [(r["kind"], r["name"], r["block"], r["passes"], r["error"]) for r in d["routes"]]
        table("routes to a product", ("kind", "route", "block", "passes", "error"), rows)
        rows = [(r["kind"], r["pass"], r["block"], r["peak"] / 1e6, r["estimate"] / 1e6) for r in d["memory"]]
        table("peak memory (MB)", ("kind", "pass", "block", "measured", "estimated"), rows)
    if "precision" in details:
        header = ("kind", "precision", "jvp_error", "vjp_error", "own_residual", "residual", "products")
        table("precision", header, [[row[key] for key in header] for row in details["precision"]["rows"]])
    if "images" in details:
        table("several images", ("how", "passes a product"), list(details["images"]["passes"].items()))
    if "large" in details:
        table("the large model", ("what", "value"), list(details["large"].items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--only", choices=PARTS, nargs="+", help="these parts alone")
        parser.add_argument("--large-here", metavar="VECTORS,PRODUCTS", help=argparse.SUPPRESS)

    given = options("products", "Every way to a product: time, error and memory.", argv, more)
    if given.extra.large_here:
        vectors, products = map(int, given.extra.large_here.split(","))
        sys.stdout.write(json.dumps(large_here(vectors, products)) + "\n")
        return 0
    parts = given.extra.only or (PARTS[:3] if given.quick else PARTS)
    with open_bench() as bench:
        targets, details = run(bench, parts, given.quick)
    return finish(document("products", given.quick, targets, details, bench.clock), given, lambda: tables(details))


if __name__ == "__main__":
    sys.exit(main())
