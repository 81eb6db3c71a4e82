"""Ranks of a recipe against the spaces they are of, checked before anything is computed."""

from __future__ import annotations

import math

import numpy as np

from flows.datasets.contract import SourceImage
from flows.recipe import Recipe
from pipeline.errors import InputError
from pipeline.models.contract import Denoiser


def check_method(recipe: Recipe, denoiser: Denoiser) -> None:
    """Raise InputError where the recipe's method does not fit the model, whatever the image."""
    steps = denoiser.info.train_timesteps
    if not 0 < round(recipe.method.timestep * steps) < steps:
        raise InputError(
            "recipe: method.timestep", recipe.method.timestep, f"a fraction that names one of {steps} steps"
        )
    if denoiser.alpha_sigma(round(recipe.method.timestep * steps))[0] == 0.0:
        raise InputError(
            "recipe: method.timestep",
            f"{recipe.method.timestep}, at which this model's images are noise alone (alpha = 0)",
            "a timestep with some of the image left",
            "Use a smaller one.",
        )
    jive = recipe.method.jive
    own = 0 if jive.individual_rank == "auto" else jive.individual_rank
    if denoiser.info.bottleneck_shape is not None and own > jive.rank:
        raise _too_large("method.jive.individual_rank", own, jive.rank, "method.jive.rank")


def check_ranks(recipe: Recipe, denoiser: Denoiser, image: SourceImage) -> None:
    """Raise InputError where a rank of the recipe is larger than its space allows on this image.

    A masked Jacobian has at most as many singular values as the mask has numbers, or as the space has entries. An image
    whose regions are still to be found has nothing to check.
    """
    if not image.masks:
        return
    _check_x(recipe, denoiser, image)
    if denoiser.info.bottleneck_shape is not None:
        _check_h(recipe, denoiser, image, math.prod(denoiser.info.bottleneck_shape))


def _check_x(recipe: Recipe, denoiser: Denoiser, image: SourceImage) -> None:
    channels, loco, width = denoiser.info.image_shape[0], recipe.method.loco, math.prod(denoiser.info.x_shape)
    for region, mask in image.masks.items():
        where = f"{region} on {image.source}"
        inside, outside = (min(int(part.sum()) * channels, width) for part in (mask, ~mask))
        if loco.rank > inside:
            raise _too_large("method.loco.rank", loco.rank, inside, f"the size of {where}")
        if loco.null_rank > outside:
            raise _too_large("method.loco.null_rank", loco.null_rank, outside, f"the size of what is not {where}")


def _check_h(recipe: Recipe, denoiser: Denoiser, image: SourceImage, width: int) -> None:
    channels, jive = denoiser.info.image_shape[0], recipe.method.jive
    blocks = dict(image.masks)
    rest = ~np.any(list(image.masks.values()), axis=0)
    if rest.any():
        blocks["everything else"] = rest
    for name, mask in blocks.items():
        limit = min(int(mask.sum()) * channels, width)
        if jive.rank > limit:
            raise _too_large("method.jive.rank", jive.rank, limit, f"the size of {name} on {image.source}")
    if jive.joint_rank == "auto":
        return
    own = 0 if jive.individual_rank == "auto" else jive.individual_rank
    taken = own * (len(blocks) if jive.orthogonal_individuals else 1)
    room = min(len(blocks) * jive.rank, width) - taken
    if jive.joint_rank > room:
        why = f"what ranks {jive.rank} of {len(blocks)} blocks and individual_rank leave room for on {image.source}"
        raise _too_large("method.jive.joint_rank", jive.joint_rank, room, why)


def _too_large(field: str, rank: int, limit: int, why: str) -> InputError:
    return InputError(f"recipe: {field}", rank, f"at most {limit}, {why}")
