"""What a direction of another image would do here, before any edit: transfer gain, leakage and effect agreement.

One forward product J v per candidate at the new image, all candidates of a space in one block, says to first order
what the edit changes. What is really changed can then be measured on decoded edits of the few best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import adaptive_avg_pool2d

from pipeline.editing import DecodeSettings, decode
from pipeline.errors import InputError
from pipeline.jacobian import BLOCK, jacobian
from pipeline.metrics import rms_inside, roir
from pipeline.mining import check_masks
from pipeline.models.contract import Denoiser
from pipeline.operators import Products
from pipeline.strengths import STRENGTH_LIMIT, VISIBLE_RMS

Space = Literal["x", "h"]
SPACES: tuple[Space, ...] = ("x", "h")


@dataclass(frozen=True)
class Candidate:
    """A catalogued direction, moved to where the new image has the region, and what it was at home.

    `vector` unit norm, (*x_shape) or (*bottleneck_shape); `effect` (C, h, w): its effect at home, averaged down to any
    grid, moved likewise, of any norm but zero. `gain` and `leakage` are ||M J v|| and ||Mc J v|| at home, per unit
    strength; `sigma` the singular value there, None for derived directions, whose gain stands in.
    """

    space: Space
    vector: torch.Tensor
    effect: torch.Tensor
    gain: float
    leakage: float
    sigma: float | None = None


@dataclass(frozen=True)
class Prediction:
    """What one candidate would do on the new image, to first order.

    `gain`, `leakage`: ||M J v|| and ||Mc J v|| here, per unit strength; `gain_ratio` the gain over sigma at home (the
    transfer gain); `roir` leakage over gain, infinite without gain. `agreement` in [-1, 1]: cosine inside the mask of
    the effect here with that at home; `sign` is its sign. `strength`: signed, at which the linear change has
    root-mean-square 0.15 inside the mask and looks as at home; `limited` where the largest strength allowed is weaker.
    `score` in [0, 1]: see `predict`.
    """

    gain: float
    leakage: float
    gain_ratio: float
    roir: float
    agreement: float
    sign: int
    strength: float
    limited: bool
    score: float


@dataclass(frozen=True)
class Outcome:
    """What a decoded edit did: RMS change inside the mask, that change's norm per unit strength, ROIR, and agreement.

    `rms` in units of [-1, 1] pixels; `gain` comparable with a predicted one; `agreement` of the decoded change with the
    effect at home, as in `Prediction`, for the sign that was applied.
    """

    rms: float
    gain: float
    roir: float
    agreement: float


def predict(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    t: int,
    mask: torch.Tensor,
    candidates: Sequence[Candidate],
    *,
    block: int = BLOCK,
    memory: int | None = None,
) -> tuple[list[Prediction], Products]:
    """Predictions in the order of `candidates`, and the products spent.

    The score that orders candidates is |cosine| of the effect here, J v over the whole picture, with the wanted one,
    which is the effect at home inside the mask and nothing outside: (gain / ||J v||) * |agreement|. It has no constant
    to be fitted; `tests.benchmarks.transfer` measures how well it orders outcomes.

    Args:
        x_t: (*x_shape) of the new image at timestep `t`, from DDIM inversion.
        mask: bool (H, W), the region on the new image.
        block, memory: of `pipeline.jacobian.jacobian`; results depend on them by rounding only.

    Cost: one JVP per candidate, one forward pass per space. No randomness.

    Raises:
        InputError: a mask that is empty or of another size; a candidate of another shape, or without a gain at home;
            effects that are not finite.
        ModelError: an h candidate for a model without a bottleneck.
    """
    check_masks({"the new image": mask}, denoiser.info.image_shape[1:])
    for place, candidate in enumerate(candidates):
        _check(denoiser, candidate, place)
    predictions: dict[int, Prediction] = {}
    spent = Products()
    for space in SPACES:
        own = [i for i, candidate in enumerate(candidates) if candidate.space == space]
        if not own:
            continue
        operator = jacobian(denoiser, x_t, t, "x0/x" if space == "x" else "x0/h", block=block, memory=memory)
        effects = operator.matvec(torch.stack([candidates[i].vector for i in own]))
        if not bool(torch.isfinite(effects).all()):
            expected = "finite vectors, and an image that the model can invert"
            raise InputError("predicted effects", "values that are not finite", expected)
        predictions |= {i: _predicted(candidates[i], e, mask) for i, e in zip(own, effects, strict=True)}
        spent = spent + operator.products
    return [predictions[i] for i in range(len(candidates))], spent


def _check(denoiser: Denoiser, candidate: Candidate, place: int) -> None:
    if candidate.space not in SPACES:
        raise InputError(f"candidate {place}: space", candidate.space, "x or h")
    shape = denoiser.info.x_shape if candidate.space == "x" else denoiser.need_bottleneck()
    if tuple(candidate.vector.shape) != tuple(shape):
        found = f"shape {tuple(candidate.vector.shape)}"
        raise InputError(
            f"candidate {place}: {candidate.space}-space vector", found, f"{tuple(shape)}, as this model has"
        )
    if candidate.effect.ndim != 3 or candidate.effect.shape[0] != denoiser.info.image_shape[0]:
        found = f"shape {tuple(candidate.effect.shape)}"
        raise InputError(f"candidate {place}: effect", found, f"({denoiser.info.image_shape[0]}, h, w)")
    home = candidate.gain if candidate.sigma is None else candidate.sigma
    if not (math.isfinite(home) and home > 0):
        raise InputError(f"candidate {place}: gain at home", home, "a finite number above 0")


def _predicted(candidate: Candidate, effect: torch.Tensor, mask: torch.Tensor) -> Prediction:
    """The figures of one candidate whose effect here is `effect` (C, H, W)."""
    inside = mask.to(effect)
    gain, leakage = float((effect * inside).norm()), float((effect * (1 - inside)).norm())
    agreement = effect_agreement(effect, candidate.effect, mask)
    sign = -1 if agreement < 0 else 1
    wanted = VISIBLE_RMS * math.sqrt(float(inside.sum()) * effect.shape[0]) / max(gain, 1e-12)
    limit = STRENGTH_LIMIT[candidate.space]
    whole = math.hypot(gain, leakage)
    return Prediction(
        gain=gain,
        leakage=leakage,
        gain_ratio=gain / (candidate.gain if candidate.sigma is None else candidate.sigma),
        roir=leakage / gain if gain > 0 else math.inf,
        agreement=agreement,
        sign=sign,
        strength=sign * min(wanted, limit),
        limited=wanted > limit,
        score=gain / whole * abs(agreement) if whole > 0 else 0.0,
    )


def effect_agreement(change: torch.Tensor, home: torch.Tensor, mask: torch.Tensor) -> float:
    """Cosine inside the mask (H, W) of a change (C, H, W) with an effect (C, h, w) of a coarser grid; 0 for no change.

    Both are compared on the coarser grid, each cell by the share of it that the mask covers.
    """
    grid = (home.shape[-2], home.shape[-1])
    weight = adaptive_avg_pool2d(mask[None].double().cpu(), grid)
    here = adaptive_avg_pool2d(change[None].double().cpu(), grid)[0] * weight
    there = home.double().cpu() * weight
    size = float(here.norm() * there.norm())
    return max(-1.0, min(1.0, float((here * there).sum()) / size)) if size > 0 else 0.0


@torch.no_grad()
def verify(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    t: int,
    mask: torch.Tensor,
    candidates: Sequence[Candidate],
    strengths: Sequence[float],
    settings: DecodeSettings,
) -> tuple[list[Outcome], torch.Tensor]:
    """Really edit with each candidate alone at its signed strength: outcomes, and pictures (1 + n, C, H, W).

    The first picture is the strength-0 reconstruction, which every edit is compared with.

    Cost: one decode of 1 + n pictures (x-space) and one of as many as there are h-space candidates.

    Raises:
        InputError: as `predict`, or not one finite strength other than 0 per candidate.
    """
    check_masks({"the new image": mask}, denoiser.info.image_shape[1:])
    if len(strengths) != len(candidates) or not all(math.isfinite(s) and s != 0 for s in strengths):
        raise InputError("strengths", list(strengths), f"{len(candidates)} finite numbers, none of them 0")
    for place, candidate in enumerate(candidates):
        _check(denoiser, candidate, place)
    plain = decode(denoiser, x_t[None], t, settings)
    edited: dict[int, torch.Tensor] = {}
    for space in SPACES:
        own = [i for i, candidate in enumerate(candidates) if candidate.space == space]
        if own:
            shift = torch.stack([strengths[i] * candidates[i].vector.to(x_t) for i in own])
            if space == "x":
                pictures = decode(denoiser, x_t[None] + shift, t, settings)
            else:
                pictures = decode(denoiser, x_t[None].expand(len(own), *x_t.shape), t, settings, h_shift=shift)
            edited |= dict(zip(own, pictures, strict=True))
    pictures = torch.cat([plain, *(edited[i][None] for i in range(len(candidates)))])
    return [
        _outcome(candidate, strength, plain, picture[None], mask)
        for candidate, strength, picture in zip(candidates, strengths, pictures[1:], strict=True)
    ], pictures


def _outcome(
    candidate: Candidate, strength: float, plain: torch.Tensor, picture: torch.Tensor, mask: torch.Tensor
) -> Outcome:
    change = picture - plain
    rms = float(rms_inside(change, mask)[0])
    norm = rms * math.sqrt(float(mask.sum()) * change.shape[1])
    return Outcome(
        rms=rms,
        gain=norm / abs(strength),
        roir=float(roir(plain, picture, mask)[0]),
        agreement=effect_agreement(change[0], candidate.effect, mask),
    )
