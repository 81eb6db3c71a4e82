"""Networks of the papers' own size, with random weights: inverted and given a few products on a CPU; a rate on a GPU.

`python -m tests.benchmarks.fullsize [--quick] [--json] [--save FILE] [--steps N] [--only PART ...]`. Parts: `ddpm` (the
113.7 M parameters of google/ddpm-celebahq-256) and `p2` (the 93.6 M of the P2 models), each in a process of its own: a
picture of 256 pixels is inverted to 0.6 T by DDIM, and one region gets a search of 8 products. Random weights have no
spectral gap, so that it ends unconverged, and says so. `gpu`: images an hour for 6 regions, rank 5, both spaces. Passes
and products are timed; how many an image takes is what `rhumb plan` reckons, since random weights would take all that
their searches may spend.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from flows.datasets.dataset import load_builtin
from flows.estimating import H100, estimate
from flows.known_models import outline_of
from flows.named_recipes import open_recipe
from flows.recipe import Recipe
from pipeline.costs import network_cost
from pipeline.editing import invert_pictures
from pipeline.errors import InputError
from pipeline.images import as_tensor
from pipeline.jacobian import JacobianKind, jacobian, seconds_per_vector
from pipeline.models.contract import Denoiser
from pipeline.models.guided import scheduler_config, unet_config
from pipeline.models.guided_presets import flags_of
from pipeline.models.unet2d import UNet2DDenoiser
from pipeline.operators import Masked
from pipeline.svd import truncated_svd
from tests.benchmarks.harness import Clock, Target, at_most, between, document, finish, options, table
from tests.benchmarks.products import LARGE_BUDGET, LARGE_PARAMETERS, LARGE_RSS, large_denoiser, noise, peak_rss

PARTS = ("ddpm", "p2", "gpu")
P2_PARAMETERS = 93_563_910
PARAMETERS = {"ddpm": LARGE_PARAMETERS, "p2": P2_PARAMETERS}
TIMESTEP, STEPS, PRODUCTS = 600, 100, 8
QUICK_STEPS = 3
NO_GPU = "no GPU here"
REGION = (slice(100, 130), slice(60, 120))  # about an eye of a face of 256 pixels
GPU_BLOCK = 16

Part = tuple[list[Target], dict[str, Any]]


def random_denoiser(name: str, device: str = "cpu") -> UNet2DDenoiser:
    """The architecture `name` with random weights."""
    if name == "ddpm":
        return large_denoiser(device)
    torch.manual_seed(0)
    flags, _ = flags_of("ffhq-p2")
    return UNet2DDenoiser(UNet2DModel(**unet_config(flags)), DDPMScheduler(**scheduler_config(flags)), device=device)


def picture(size: int) -> torch.Tensor:
    """A built-in face (1, 3, size, size) in [-1, 1]."""
    (image,) = load_builtin("holdout", limit=1, image_shape=(3, size, size)).images
    return as_tensor(image.image)[None]


# --- on the CPU ---------------------------------------------------------------------------------------------------


def measure(denoiser: Denoiser, t: int, steps: int, region: tuple[slice, slice], memory: int | None) -> dict[str, Any]:
    """Inversion of one picture and a search of `PRODUCTS` products in one region: seconds, and what it ended with."""
    seconds: dict[str, float] = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        begun = time.monotonic()
        result = run()
        seconds[name] = time.monotonic() - begun
        sys.stderr.write(f"{name}: {seconds[name]:.1f} s, {peak_rss() / 1e9:.2f} GB at most\n")
        return result

    x0 = picture(denoiser.info.image_shape[-1])
    x_t = timed("inversion", lambda: invert_pictures(denoiser, x0, t, steps))[0]
    mask = torch.zeros(denoiser.info.image_shape[1:])
    mask[region] = 1.0
    operator = timed("planning memory", lambda: jacobian(denoiser, x_t, t, "x0/x", memory=memory))
    svd = timed("search", lambda: truncated_svd(
        Masked(operator, mask), 1, generator=torch.Generator().manual_seed(0), max_products=PRODUCTS, block=1, probes=0
    ))  # fmt: skip
    return {
        "parameters": denoiser.info.parameters, "steps": steps, "seconds": seconds,
        "seconds_a_pass": seconds["inversion"] / steps, "finite": bool(torch.isfinite(x_t).all()),
        "products": svd.products.total, "sigma": float(svd.sigma[0]), "residual": float(svd.residuals[0]),
        "tolerance": svd.tolerance, "converged": bool(svd.converged[0]),
        "blocks": [operator.blocks.jvp, operator.blocks.vjp], "peak_rss": peak_rss(),
    }  # fmt: skip


def on_cpu(name: str, steps: int) -> Part:
    """`measure` of one network in a process of its own, whose peak memory is the target."""
    command = [sys.executable, "-m", "tests.benchmarks.fullsize", "--here", f"{name},{steps}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise InputError(name, f"a process that ended with {done.returncode}", "its answer, a JSON document")
    found = json.loads(done.stdout.splitlines()[-1])
    return cpu_targets(name, found), found


def cpu_targets(name: str, found: dict[str, Any]) -> list[Target]:
    """What a full-size network must keep on a CPU."""
    wanted = PARAMETERS[name]
    return [
        between(f"{name}: parameters", found["parameters"], wanted, wanted),
        at_most(f"{name}: peak resident memory (bytes)", found["peak_rss"], LARGE_RSS),
        between(f"{name}: finite x_t after inversion", float(found["finite"]), 1, 1),
        at_most(f"{name}: products of the region's search", found["products"], PRODUCTS),
        between(f"{name}: converged (random weights have no spectral gap)", float(found["converged"]), 0, 0),
    ]


# --- on a GPU -----------------------------------------------------------------------------------------------------


def gpu_recipe() -> Recipe:
    """CelebA-HQ's recipe with rank 5 in both spaces."""
    recipe = open_recipe(Path("celebahq"))
    jive = recipe.method.jive.model_copy(update={"rank": 5, "joint_rank": 15})
    return recipe.model_copy(update={"method": recipe.method.model_copy(update={"jive": jive})})


def rates(denoiser: Denoiser, t: int, block: int) -> dict[str, float]:
    """Seconds of one pass in a batch of `block`, and of one product of either kind in either space."""
    info = denoiser.info
    x_t = noise(info.x_shape, 0)
    batch = noise((block, *info.x_shape), 1).to(denoiser.device, denoiser.dtype)

    @torch.no_grad()
    def forward(x: torch.Tensor) -> torch.Tensor:
        return denoiser.predict_noise(x, t)

    forward(batch)
    found = {"pass": seconds_per_vector(forward, batch)}
    kinds: dict[str, JacobianKind] = {"x": "x0/x", "h": "x0/h"}
    for space, kind in kinds.items():
        operator = jacobian(denoiser, x_t, t, kind, block=block)
        found[f"{space} JVP"] = seconds_per_vector(operator.matvec, noise((block, *operator.shape_in), 2))
        found[f"{space} VJP"] = seconds_per_vector(operator.rmatvec, noise((block, *operator.shape_out), 3))
    return found


def image_seconds(denoiser: Denoiser, recipe: Recipe, seconds: dict[str, float]) -> float:
    """Time of one image: the work that a plan reckons with, at measured rates."""
    total = 0.0
    for work in estimate(recipe, outline_of(denoiser)).work:
        space = work.kind[0] if work.unit == "products" else None
        each = (
            seconds["pass"] * work.worth if space is None else (seconds[f"{space} JVP"] + seconds[f"{space} VJP"]) / 2
        )
        total += work.units.likely * each
    return total


def on_gpu(denoiser: Denoiser, recipe: Recipe, t: int, block: int) -> dict[str, Any]:
    """Rates, images an hour, and which share of an H100's peak a pass reaches."""
    seconds = rates(denoiser, t, block)
    full = network_cost(denoiser).full
    one = image_seconds(denoiser, recipe, seconds)
    return {
        "device": torch.cuda.get_device_name() if denoiser.device.type == "cuda" else str(denoiser.device),
        "regions": len(recipe.region_names), "seconds": seconds, "seconds_an_image": one,
        "images_an_hour": 3600.0 / one, f"share_of_{H100.name}": 2.0 * full / seconds["pass"] / H100.peak,
    }  # fmt: skip


def gpu() -> Part:
    """The GPU's figures, or that there is none: a run that nobody watches goes on either way."""
    if not torch.cuda.is_available():
        sys.stderr.write(f"gpu: {NO_GPU}\n")
        return [], {"note": NO_GPU}
    return [], on_gpu(random_denoiser("ddpm", "cuda"), gpu_recipe(), TIMESTEP, GPU_BLOCK)


# --- the command --------------------------------------------------------------------------------------------------


def run(parts: Sequence[str], steps: int, clock: Clock) -> Part:
    """The parts asked for: their targets and details."""
    targets: list[Target] = []
    details: dict[str, Any] = {"timestep": TIMESTEP}
    for part in parts:
        with clock.stage(part):
            found, details[part] = gpu() if part == "gpu" else on_cpu(part, steps)
            clock.passes += details[part].get("steps", 0)
        targets += found
    return targets, details


def tables(details: dict[str, Any]) -> None:
    """Every measured figure, for people."""
    for part in PARTS:
        if part in details:
            table(part, ("what", "value"), list(details[part].items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--only", choices=PARTS, nargs="+", help="these parts alone")
        parser.add_argument("--steps", type=int, help=f"DDIM steps (default: {STEPS}; {QUICK_STEPS} with --quick)")
        parser.add_argument("--here", metavar="PART,STEPS", help=argparse.SUPPRESS)

    given = options("fullsize", "Networks of the papers' own size, with random weights.", argv, more)
    if given.extra.here:
        name, steps = given.extra.here.split(",")
        found = measure(random_denoiser(name), TIMESTEP, int(steps), REGION, LARGE_BUDGET)
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    steps = given.extra.steps or (QUICK_STEPS if given.quick else STEPS)
    clock = Clock()
    targets, details = run(given.extra.only or PARTS, steps, clock)
    return finish(document("fullsize", given.quick, targets, details, clock), given, lambda: tables(details))


if __name__ == "__main__":
    sys.exit(main())
