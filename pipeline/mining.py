"""Mining one image: from x_t and its region masks to directions with their evidence.

The walk: one Jacobian operator per (image, t); truncated SVDs of every region and its complement that share forward
products; LOCO null-space projection in x-space; JIVE across regions in h-space; gains, leakages and effects of what
came out; strengths at which the decoded change becomes visible. Nothing here knows about files or catalogs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch

from pipeline.directions import MINIMAL_KEPT_SHARE, loco_inside, null_space_projection
from pipeline.errors import InputError
from pipeline.jacobian import jacobian
from pipeline.jive import JiveResult, jive
from pipeline.jive_ranks import choose_ranks
from pipeline.mined import Direction, JiveSettings, LocoSettings, MinedImage, MiningSettings
from pipeline.models.contract import Denoiser
from pipeline.operators import LinearOperator, Products
from pipeline.strengths import calibrate, measure
from pipeline.svd import TruncatedSVD, canonical_sign, masked_svds

REST = "everything else"
JIVE_TOLERANCE = 1e-6  # last change over the whole: blocks are known to 1e-2 only, and rounds creep
NULL_SPACE_TOLERANCE = 5.0  # times the region's: what a null space leaves behind is measured as leakage anyway


def check_masks(masks: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> None:
    """Raise InputError unless every mask is bool, of the image's size, and neither empty nor the whole image."""
    if not masks:
        raise InputError("masks", "none", "at least one region")
    for region, mask in masks.items():
        if region == REST or region.startswith("not "):
            raise InputError("region", region, "another name: this one stands for what lies outside the regions")
        if tuple(mask.shape) != shape:
            raise InputError(f"mask of {region}", tuple(mask.shape), f"shape {shape}, the model's image size")
        if mask.dtype != torch.bool:
            raise InputError(f"mask of {region}", mask.dtype, "torch.bool")
        if not bool(mask.any()):
            raise InputError(f"mask of {region}", "an empty mask", "at least one pixel", "Leave the region out.")
        if bool(mask.all()):
            raise InputError(f"mask of {region}", "a mask that covers the whole image", "a part of the image")


def room(operator: LinearOperator, mask: torch.Tensor) -> int:
    """The largest rank that the operator can have under a mask (H, W)."""
    return min(math.prod(operator.shape_in), int(mask.sum()) * operator.shape_out[0])


def _triplet(svd: TruncatedSVD, rank: int) -> dict[str, Any]:
    """The evidence of one singular triplet, as `Direction` names it."""
    return {
        "spectrum": svd.sigma,
        "sigma": float(svd.sigma[rank]),
        "residual": float(svd.residuals[rank]),
        "converged": bool(svd.converged[rank]),
        "checked": svd.checked,
        "gap": float(svd.certificate.gap[rank]),
        "angle": float(svd.certificate.angle[rank]),
        "cluster_first": int(svd.certificate.first[rank]),
        "cluster_last": int(svd.certificate.last[rank]),
    }


def _singular(region: str, space: Literal["x", "h"], svd: TruncatedSVD, count: int) -> list[Direction]:
    return [
        Direction(
            region=region,
            space=space,
            kind="singular",
            rank=i,
            vector=svd.v[i],
            **_triplet(svd, i),
        )
        for i in range(min(count, len(svd.sigma)))
        if float(svd.sigma[i]) > 0
    ]


def mine_local(
    operator: LinearOperator,
    masks: Mapping[str, torch.Tensor],
    settings: MiningSettings,
    loco: LocoSettings,
    refused: dict[str, str],
    start: torch.Tensor | None = None,
) -> list[Direction]:
    """LOCO: singular directions of every region in x-space, and "local" ones in the null space of everything else.

    Without a null space (`null_rank` 0) the singular directions stand in as local ones, with all of their length kept:
    every region has local directions, whatever is asked of them later. A null space is no larger than what lies outside
    the region has room for.
    """
    complements = {f"not {region}": ~mask for region, mask in masks.items()}
    ranks = dict.fromkeys(masks, loco.rank)
    ranks |= {name: min(loco.null_rank, room(operator, mask)) for name, mask in complements.items()}
    svds = masked_svds(
        operator,
        {**masks, **complements},
        {name: rank for name, rank in ranks.items() if rank > 0},
        generator=torch.Generator().manual_seed(settings.seed),
        tolerance=dict.fromkeys(masks, settings.tolerance)
        | dict.fromkeys(complements, NULL_SPACE_TOLERANCE * settings.tolerance),
        start=start,
    )
    found: list[Direction] = []
    for region, mask in masks.items():
        singular = _singular(region, "x", svds[region], loco.rank)
        found += singular
        if not singular:
            continue
        complement = svds.get(f"not {region}")
        if complement is None or loco.variant == "projected":
            null = singular[0].vector[None][:0] if complement is None else complement.v[~complement.null]
            found += _projected(singular, null, refused)
        else:
            found += _inside(operator, mask, svds[region], complement, singular, settings, refused)
    return found


def _projected(singular: list[Direction], null: torch.Tensor, refused: dict[str, str]) -> list[Direction]:
    """Local directions: one region's singular ones without the span of `null` (n, *x_shape), n >= 0."""
    vectors, kept = null_space_projection(torch.stack([d.vector for d in singular]), null)
    found = []
    for parent, vector, share in zip(singular, vectors, kept.tolist(), strict=True):
        if share < MINIMAL_KEPT_SHARE:
            refused[f"x/{parent.region}/local/{parent.rank}"] = f"kept share {share:.3f} is under {MINIMAL_KEPT_SHARE}"
            continue
        found.append(
            Direction(
                region=parent.region,
                space="x",
                kind="local",
                rank=parent.rank,
                vector=vector,
                spectrum=parent.spectrum,
                parents=(parent.rank,),
                kept_share=share,
            )
        )
    return found


def _inside(
    operator: LinearOperator,
    mask: torch.Tensor,
    region: TruncatedSVD,
    complement: TruncatedSVD,
    singular: list[Direction],
    settings: MiningSettings,
    refused: dict[str, str],
) -> list[Direction]:
    """Local directions of one region by the SVD inside the null space, which starts from its singular ones."""
    name, count = singular[0].region, len(singular)
    local, svd = loco_inside(
        operator,
        mask,
        complement,
        count,
        len(complement.v),
        generator=torch.Generator().manual_seed(settings.seed),
        tolerance=settings.tolerance,
        region=region,
    )
    for rank in local.refused.nonzero().flatten().tolist():
        refused[f"x/{name}/local/{rank}"] = "no gain is left inside the null space"
    return [
        Direction(
            region=name,
            space="x",
            kind="local",
            rank=rank,
            vector=local.vectors[rank],
            **_triplet(svd, rank),
            parents=tuple(d.rank for d in singular),
            kept_share=1.0,
            effect=local.effects[rank],
        )
        for rank in range(count)
        if not bool(local.refused[rank])
    ]


def outside(masks: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Everything outside the regions, bool (H, W); None where nothing is."""
    rest = ~torch.stack(list(masks.values())).any(0)
    return rest if bool(rest.any()) else None


def mine_components(
    operator: LinearOperator,
    masks: Mapping[str, torch.Tensor],
    settings: MiningSettings,
    ranks: JiveSettings,
    start: torch.Tensor | None = None,
) -> list[Direction]:
    """Plain region SVDs in h-space, and JIVE's joint and individual components across regions.

    Kouzelis et al. 2024, algorithm 1. Everything outside the regions is one more block, or there is nothing for the
    rest of the picture to be joint with; its ranks are no larger than it has room for.
    """
    heights, rest = dict.fromkeys(masks, ranks.rank), outside(masks)
    if rest is not None:
        heights[REST] = min(ranks.rank, room(operator, rest))
    blocks = dict(masks) if rest is None else {**masks, REST: rest}
    svds = masked_svds(
        operator,
        blocks,
        heights,
        generator=torch.Generator().manual_seed(settings.seed + 1),
        tolerance=settings.tolerance,
        start=start,
    )
    stacked = [svds[name].sigma[:, None] * svds[name].v.flatten(1) for name in blocks]
    split = _split(stacked, ranks, settings)
    found: list[Direction] = []
    for i, region in enumerate(blocks):
        if region == REST:
            continue
        individual_rank = split.ranks.individual_ranks[i]
        count = max(1, individual_rank)
        singular = _singular(region, "h", svds[region], count)
        found += singular
        parents = tuple(direction.rank for direction in singular)
        components: tuple[tuple[Literal["joint", "individual"], torch.Tensor], ...] = (
            ("joint", split.joint_directions(i)),
            ("individual", split.individual_directions(i)),
        )
        for kind, rows in components:
            for rank, row in enumerate(rows[:count]):
                vector = row.view(operator.shape_in).to(operator.dtype)
                found.append(
                    Direction(
                        region=region,
                        space="h",
                        kind=kind,
                        rank=rank,
                        vector=canonical_sign(vector[None])[0],
                        spectrum=svds[region].sigma,
                        converged=split.converged,
                        iterations=split.iterations,
                        change=split.change,
                        joint_rank=split.ranks.joint_rank,
                        individual_rank=individual_rank,
                        rank_rule=split.ranks.rule,
                        parents=parents,
                        kept_share=min(1.0, float((svds[region].v.flatten(1) @ vector.flatten()).norm())),
                    )
                )
    return found


def _split(blocks: list[torch.Tensor], ranks: JiveSettings, settings: MiningSettings) -> JiveResult:
    """JIVE of truncated SVDs (rank, D), whose rows are all signal: what was cut off is no noise in them."""
    joint = None if ranks.joint_rank == "auto" else ranks.joint_rank
    own = ranks.individual_rank
    individual = None
    if own != "auto":  # what lies outside the regions may have no room for it
        individual = [own if len(block) == ranks.rank else min(own, len(block)) for block in blocks]
    choice = None
    if joint is None or individual is None:
        generator = torch.Generator().manual_seed(settings.seed + 2)
        signal = [len(block) for block in blocks]
        choice = choose_ranks(
            blocks,
            ranks.rank_rule,
            generator=generator,
            signal_ranks=signal,
            scale=ranks.scale,
            orthogonal_individuals=ranks.orthogonal_individuals,
        )
    return jive(
        blocks,
        joint,
        individual,
        choice=choice,
        scale=ranks.scale,
        orthogonal_individuals=ranks.orthogonal_individuals,
        tolerance=JIVE_TOLERANCE,
    )


def mine_image(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    masks: Mapping[str, torch.Tensor],
    settings: MiningSettings,
    start: Mapping[str, torch.Tensor] | None = None,
) -> MinedImage:
    """All directions of one image.

    Args:
        denoiser: the model; x-space needs its noise prediction only, h-space its bottleneck.
        x_t: (*x_shape) at `settings.timestep`, from DDIM inversion.
        masks: region name -> bool (H, W), of pictures.
        settings: ranks, tolerance, seed. The only randomness is the start of the SVDs, from `settings.seed`.
        start: space ("x", "h") -> vectors (k, *shape of the space) that its SVDs start from instead of random ones
            (`pipeline.warm`); results depend on them within the tolerance only.

    Raises:
        InputError: an empty mask, a mask of another size, a rank larger than the space, a start of another shape.
        ModelError: h-space settings for a model without a bottleneck.
    """
    check_masks(masks, denoiser.info.image_shape[1:])
    if settings.jive is not None:
        denoiser.need_bottleneck()
    network = denoiser.differentiable()
    masks = {name: mask.to(x_t.device) for name, mask in masks.items()}
    found: list[Direction] = []
    refused: dict[str, str] = {}
    spent, start = Products(), start or {}
    if settings.loco is not None:
        operator = jacobian(network, x_t, settings.timestep, "x0/x", memory=settings.memory)
        local = mine_local(operator, masks, settings, settings.loco, refused, start.get("x"))
        found += measure(operator, local, masks)
        spent = spent + operator.products
    if settings.jive is not None:
        operator = jacobian(network, x_t, settings.timestep, "x0/h", memory=settings.memory)
        components = mine_components(operator, masks, settings, settings.jive, start.get("h"))
        found += measure(operator, components, masks)
        spent = spent + operator.products
    calibrated = calibrate(denoiser, x_t, found, masks, settings)
    return MinedImage(tuple(calibrated), spent, refused)
