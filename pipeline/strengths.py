"""How strong a direction is: what a unit step changes, and the strength at which the change can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from pipeline.editing import decode
from pipeline.metrics import VisibleStrength, visible_strength
from pipeline.mined import Direction, MiningSettings
from pipeline.models.contract import Denoiser
from pipeline.operators import LinearOperator

VISIBLE_RMS = 0.15  # visible strength: root-mean-square change inside the mask, pixels in [-1, 1]
STRENGTH_LIMIT = {"x": 40.0, "h": 400.0}  # largest lambda and alpha tried for a unit direction


def measure(
    operator: LinearOperator, directions: list[Direction], masks: Mapping[str, torch.Tensor]
) -> list[Direction]:
    """Add effect, gain and leakage to each direction. Cost: one JVP per direction whose effect is not known yet."""
    unknown = [d.vector for d in directions if d.effect.numel() == 0]
    effects = iter(operator.matvec(torch.stack(unknown)) if unknown else ())
    measured = []
    for direction in directions:
        effect = direction.effect if direction.effect.numel() else next(effects)
        mask = masks[direction.region].to(effect.dtype)
        gain, leakage = float((effect * mask).norm()), float((effect * (1 - mask)).norm())
        measured.append(replace(direction, effect=effect, gain=gain, leakage=leakage))
    before = {(d.region, d.rank): d.leakage / max(d.gain, 1e-12) for d in measured if d.kind == "singular"}
    # An SVD inside the null space has no one parent to compare with: it has a sigma of its own.
    return [
        replace(d, roir_before=before.get((d.region, d.parents[0]))) if d.kind == "local" and d.sigma is None else d
        for d in measured
    ]


def linear_strength(direction: Direction, mask: torch.Tensor, target: float = VISIBLE_RMS) -> float:
    """Strength at which the linear change gain * strength has root-mean-square `target` inside the mask."""
    pixels = float(mask.sum()) * direction.effect.shape[0]
    return min(target * pixels**0.5 / max(direction.gain, 1e-12), STRENGTH_LIMIT[direction.space])


def calibrate(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    directions: list[Direction],
    masks: Mapping[str, torch.Tensor],
    settings: MiningSettings,
) -> list[Direction]:
    """Set every direction's strength: measured on decoded edits for first directions, scaled by gain for the rest.

    First directions (rank 0) of each region, space and kind are decoded until the change inside the mask reaches the
    visible root-mean-square (within a tenth) or the strength its limit; they keep how that ended, and the ROIR of the
    decoded edit. Cost: one to three decodes per first direction.
    """
    if settings.strength != "visible":
        return [replace(d, strength=float(settings.strength)) for d in directions]
    first = [d for d in directions if d.rank == 0 and d.kind != "joint"]
    searched: dict[tuple[str, str, str], tuple[VisibleStrength, int]] = {}
    for space in ("x", "h"):
        own = [d for d in first if d.space == space]
        if own:
            result = _visible(denoiser, x_t, own, masks, settings)
            searched |= {(d.region, d.space, d.kind): (result, case) for case, d in enumerate(own)}
    found = {(d.region, d.space, d.kind): d for d in first}
    calibrated = []
    for d in directions:
        # Joint directions are no edits of their region: they borrow the scale of its singular ones.
        key = (d.region, d.space, "singular" if d.kind == "joint" else d.kind)
        factor = 1.0
        if key in searched:
            result, case = searched[key]
            home = found[key]
            factor = float(result.strength[case]) / max(linear_strength(home, masks[home.region]), 1e-12)
            if home is d:
                d = replace(
                    d,
                    strength_reached=bool(result.reached[case]),
                    strength_limited=bool(result.limited[case]),
                    roir=_settled_roir(result, case),
                )
        strength = min(factor * linear_strength(d, masks[d.region]), STRENGTH_LIMIT[d.space])
        calibrated.append(replace(d, strength=strength))
    return calibrated


def _visible(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    directions: list[Direction],
    masks: Mapping[str, torch.Tensor],
    settings: MiningSettings,
) -> VisibleStrength:
    """The search for the visible strengths of directions of one space, decoded together."""
    space, t = directions[0].space, settings.timestep
    vectors = torch.stack([d.vector for d in directions])
    reference = decode(denoiser, x_t[None], t, settings.decode)

    def edited(strengths: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        shift = vectors[cases] * strengths.to(vectors)[:, None, None, None]
        if space == "x":
            return decode(denoiser, x_t[None] + shift, t, settings.decode)
        return decode(denoiser, x_t[None].expand(len(shift), *x_t.shape), t, settings.decode, h_shift=shift)

    return visible_strength(
        edited,
        reference.expand(len(directions), *reference.shape[1:]),
        torch.stack([masks[d.region] for d in directions]),
        target=VISIBLE_RMS,
        first_guess=torch.tensor([linear_strength(d, masks[d.region]) for d in directions]),
        limit=STRENGTH_LIMIT[space],
        evaluations=3,
        tolerance=0.1,
    )


def _settled_roir(result: VisibleStrength, case: int) -> float:
    """ROIR of a case whose search ended at the target or at the range limit; NaN where it did not."""
    settled = bool(result.reached[case] | result.limited[case]) and bool(result.roir[case].isfinite())
    return float(result.roir[case]) if settled else float("nan")
