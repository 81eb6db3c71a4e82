"""`rhumb plan`: whether all that a recipe needs is here, and what it will cost. Mines nothing, downloads nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from flows.console import say, table
from flows.estimating import PER, Estimate, estimate, hours, size
from flows.named_recipes import open_recipe
from flows.needs import DataFound, ModelFound, Problem, find_data, find_mask_model, find_model, free_space
from pipeline.costs import Amount
from pipeline.jacobian import seconds_per_vector
from pipeline.models.contract import Denoiser

SMALL = 10**10  # multiply-adds of a pass under which a GPU spends its time on other things


@dataclass(frozen=True)
class Plan:
    """What a recipe needs and costs. `problems` is everything that is missing or does not fit, all at once; `estimate`
    is None where the model is neither here nor known by its name."""

    recipe: str
    ready: bool
    problems: tuple[Problem, ...]
    model: ModelFound
    mask_model: ModelFound | None
    data: DataFound | None
    estimate: Estimate | None
    free: int | None


def plan(recipe: Path, out: Path | None = None, measure: bool = True) -> Plan:
    """The plan of a recipe, given by its file or by its name alone where it travels with the package.

    Args:
        out: where the catalog is to lie, if its place and the free disk there are to be looked at.
        measure: time one forward pass where the model is here.

    Raises:
        InputError: the recipe itself cannot be read.
    """
    asked = open_recipe(recipe)
    model, denoiser, outline, problems = find_model(asked)
    masks, more = find_mask_model(asked)
    data, troubles = find_data(asked, outline, denoiser)
    problems = [*problems, *more, *troubles]
    seconds = forward_seconds(denoiser) if denoiser is not None and measure else None
    images = data.images if data is not None else asked.dataset.limit
    cost = None if outline is None else estimate(asked, outline, images, seconds)
    free = None
    if out is not None:
        wanted = None if cost is None or images is None else cost.bytes.likely * images
        free, full = free_space(out, wanted, asked)
        problems += full
    return Plan(asked.name, not problems, tuple(problems), model, masks, data, cost, free)


@torch.no_grad()
def forward_seconds(denoiser: Denoiser) -> float:
    """Time of one image through the network on this machine. Cost: three passes."""
    x = torch.zeros((1, *denoiser.info.x_shape), device=denoiser.device, dtype=denoiser.dtype)
    t = denoiser.info.train_timesteps // 2
    denoiser.predict_noise(x, t)
    return seconds_per_vector(lambda v: denoiser.predict_noise(v, t), x)


# --- for people ---------------------------------------------------------------------------------------------------


def show(found: Plan) -> None:
    """Print a plan."""
    count = len(found.problems)
    say(f"{found.recipe}: {'ready' if found.ready else f'not ready, {count} problem' + 's' * (count > 1)}")
    for problem in found.problems:
        say(f"- {problem.field}: found {problem.found}; expected {problem.expected}. {problem.action}")
    say(f"model: {found.model.where}, {found.model.state}")
    if found.mask_model is not None:
        say(f"mask generation: {found.mask_model.where}, {found.mask_model.state}")
    if found.data is not None:
        _show_data(found.data)
    if found.estimate is None:
        say("cost: unknown until the model is here")
    else:
        _show_cost(found.estimate)
    if found.free is not None:
        say(f"free at --out: {size(found.free)}")


def _show_data(data: DataFound) -> None:
    count = "a number of images that only reading all of them would tell" if data.images is None else data.images
    say(f"data: {data.name} ({data.split}), images to mine: {count}; licence: {data.licence or 'none stated'}")
    if data.parts:
        say(f"parts: {', '.join(data.parts)}")
    for image in data.first:
        if image.failure is not None:
            say(f"  {image.source}: cannot be mined: {image.failure}")
            continue
        masks = ", ".join(f"{name} {share:.1%}" for name, share in image.masks.items()) or "regions found while mining"
        skipped = "".join(f"; without {name}: {why}" for name, why in image.skipped.items())
        width, height = image.size or (0, 0)
        say(f"  {image.source}: {width} x {height}, {masks}{skipped}")


def _show_cost(cost: Estimate) -> None:
    rows = [(w.kind, f"{_amount(w.units)} {w.unit}", f"{w.worth:.2f}", _amount(w.passes)) for w in cost.work]
    rows.append(("in all", "", "", _amount(cost.passes)))
    title = f"network work on one image with {cost.regions} regions, by {cost.network}; estimates with their range"
    table(title, ("kind", "how much", "passes each", "passes"), rows)
    say(f"one pass: {cost.multiply_adds / 1e9:.4g} G multiply-adds; {cost.directions} directions an image")
    for line in _totals(cost):
        say(line)
    if cost.left_out:
        say(f"not in these figures: {cost.left_out}")


def _totals(cost: Estimate) -> Iterator[str]:
    """Time and disk of one image and of all, each with its range."""
    images = PER if cost.images is None else cost.images
    which = "1 image" if images == 1 else f"{images:,} images"
    slower = "; a network this small takes longer, as starting its kernels does" if cost.multiply_adds < SMALL else ""
    yield f"time, computed, not measured ({cost.gpu}): {_times(cost.seconds, images, which)}{slower}"
    if cost.pass_seconds is not None:
        here = cost.passes * cost.pass_seconds
        yield f"time here, one process, from one pass of {cost.pass_seconds:.3g} s: {_times(here, images, which)}"
    low, likely, high = (size(n) for n in (cost.bytes.low, cost.bytes.likely, cost.bytes.high))
    yield f"disk: {likely} an image ({low} to {high}); {which}: {size(cost.bytes.likely * images)}"


def _times(seconds: Amount, images: int, which: str) -> str:
    low, likely, high = (hours(n) for n in (seconds.low, seconds.likely, seconds.high))
    return f"{likely} an image ({low} to {high}); {which}: {hours(seconds.likely * images)}"


def _amount(amount: Amount) -> str:
    low, likely, high = (f"{math.ceil(n):,}" for n in (amount.low, amount.likely, amount.high))
    return likely if low == high else f"{likely} ({low} to {high})"
