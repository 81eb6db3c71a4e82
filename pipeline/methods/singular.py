"""What methods of singular directions share: the first triplet of every region, the choice among global directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from pipeline.methods.contract import Cost, Refused, Settings
from pipeline.mined import Direction
from pipeline.operators import LinearOperator
from pipeline.svd import masked_svds

AnySettings = TypeVar("AnySettings", bound=Settings)


@dataclass
class Picked:
    """Vectors by region with their evidence, and the regions without one with the reason."""

    vectors: dict[str, torch.Tensor]
    evidence: dict[str, dict[str, float]]
    refused: dict[str, Refused]


def varied(settings: AnySettings, *changes: Mapping[str, Any]) -> list[AnySettings]:
    """`settings` and what each of the changes makes of them, each once. At another timestep a window that is not
    changed as well keeps its shares of the timestep."""
    tried = [settings]
    for change in changes:
        changed = replace(settings.at_timestep(change.get("timestep", settings.timestep)), **change)
        if changed not in tried:
            tried.append(changed)
    return tried


def charge(cost: Cost, operator: LinearOperator) -> None:
    """Add all products of an operator to what a method has spent."""
    cost.jvp += operator.products.jvp
    cost.vjp += operator.products.vjp


def roomy(
    masks: Mapping[str, torch.Tensor], channels: int, rank: int
) -> tuple[dict[str, torch.Tensor], dict[str, Refused]]:
    """Masks with at least `rank` numbers inside, and the refusal of the others: their Jacobian cannot have the rank."""
    fits = {region: int(mask.sum()) * channels >= rank for region, mask in masks.items()}
    return (
        {region: mask for region, mask in masks.items() if fits[region]},
        {region: Refused(region, f"too small for rank {rank}") for region, fit in fits.items() if not fit},
    )


def first_of_each(found: list[Direction], regions: Mapping[str, torch.Tensor], reason: str) -> Picked:
    """The strongest direction of each region among those of one kind; `reason`: why a region may have none."""
    picked = Picked({}, {}, {})
    for region in regions:
        own = min((d for d in found if d.region == region), key=lambda d: d.rank, default=None)
        if own is None:
            picked.refused[region] = Refused(region, reason)
            continue
        names = ("rank", "sigma", "residual", "kept_share", "joint_rank", "individual_rank", "change")
        figures = {name: getattr(own, name) for name in names}
        picked.vectors[region] = own.vector
        picked.evidence[region] = {name: float(value) for name, value in figures.items() if value is not None}
    return picked


def first_singular(operator: LinearOperator, masks: Mapping[str, torch.Tensor], settings: Settings) -> Picked:
    """The first right singular vector of M J for each of `masks` (weights (H, W) of the operator's output)."""
    picked = Picked({}, {}, {})
    svds = masked_svds(
        operator,
        masks,
        dict.fromkeys(masks, 1),
        generator=torch.Generator().manual_seed(settings.seed),
        tolerance=settings.tolerance,
    )
    for region, svd in svds.items():
        if bool(svd.null[0]):
            picked.refused[region] = Refused(region, "nothing changes the region to first order")
            continue
        picked.vectors[region] = svd.v[0]
        picked.evidence[region] = {"sigma": float(svd.sigma[0]), "residual": float(svd.residuals[0])}
    return picked


def most_inside(vectors: torch.Tensor, effects: torch.Tensor, masks: Mapping[str, torch.Tensor]) -> Picked:
    """For each region, that of k global directions whose effect lies most inside it: largest ||M J v|| / ||J v||.

    It stands for the person who looks through a paper's directions for the one that edits the wanted part. Evidence:
    `rank`, the direction's place among the k, and `share`.

    Args:
        vectors: (k, *shape_in), unit norm; effects: J v, (k, C, H, W).
        masks: region -> (H, W).
    """
    picked = Picked({}, {}, {})
    whole = effects.flatten(1).norm(dim=1)
    real = whole > torch.finfo(whole.dtype).eps * whole.max()
    for region, mask in masks.items():
        inside = (effects * mask.to(effects)).flatten(1).norm(dim=1)
        shares = torch.where(real, inside / torch.where(real, whole, 1.0), 0.0)
        best = int(shares.argmax())
        if not float(shares[best]) > 0:
            picked.refused[region] = Refused(region, "no direction has any effect inside the region")
            continue
        picked.vectors[region] = vectors[best]
        picked.evidence[region] = {"rank": float(best), "share": float(shares[best])}
    return picked
