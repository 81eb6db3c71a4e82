"""Directions of many ranks from one set of singular vectors, whose leading ones are those of every smaller rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from pipeline.directions import MINIMAL_KEPT_SHARE, null_space_projection
from pipeline.jive import jive
from pipeline.methods.components import IndividualSettings
from pipeline.methods.contract import Refused
from pipeline.methods.loco import LocoSettings
from pipeline.methods.singular import Picked
from pipeline.mining import JIVE_TOLERANCE, NULL_SPACE_TOLERANCE, REST, room
from pipeline.operators import LinearOperator
from pipeline.svd import TruncatedSVD, masked_svds


def by_null_rank(
    operator: LinearOperator, masks: Mapping[str, torch.Tensor], null_ranks: Sequence[int], settings: LocoSettings
) -> Iterator[tuple[int, Picked]]:
    """LOCO's first direction of every region, projected off null spaces of several ranks. LOCO Edit, algorithm 1.

    Ranks that some complement has no room for are left out.

    Args:
        operator: d x0/d x_t; masks: region -> bool (H, W).
        settings: `rank` directions are tried per region, as `Loco` does; `tolerance` and `seed` of the search.

    Cost: one search for the largest null rank.
    """
    complements = {f"not {region}": ~mask for region, mask in masks.items()}
    most = min(room(operator, mask) for mask in complements.values())
    wanted = [rank for rank in null_ranks if rank <= most]
    null = max(wanted, default=0)
    ranks = {region: min(settings.rank, room(operator, mask)) for region, mask in masks.items()}
    ranks |= dict.fromkeys(complements if null else (), null)
    svds = masked_svds(
        operator,
        {**masks, **complements},
        ranks,
        generator=torch.Generator().manual_seed(settings.seed),
        tolerance=dict.fromkeys(masks, settings.tolerance)
        | dict.fromkeys(complements, NULL_SPACE_TOLERANCE * settings.tolerance),
    )
    for rank in wanted:
        picked = Picked({}, {}, {})
        for region in masks:
            _project(picked, region, svds[region], svds.get(f"not {region}"), rank)
        yield rank, picked


def _project(picked: Picked, region: str, svd: TruncatedSVD, complement: TruncatedSVD | None, rank: int) -> None:
    """Add the first of a region's vectors of which the null space leaves enough, or why there is none."""
    vectors = svd.v[~svd.null]
    if len(vectors) == 0:
        picked.refused[region] = Refused(region, "nothing changes the region to first order")
        return
    null = vectors[:0] if complement is None else complement.v[:rank][~complement.null[:rank]]
    projected, kept = null_space_projection(vectors, null)
    enough = (kept >= MINIMAL_KEPT_SHARE).nonzero().flatten().tolist()
    if not enough:
        picked.refused[region] = Refused(region, f"kept share {float(kept.max()):.3f} is under {MINIMAL_KEPT_SHARE}")
        return
    first = enough[0]
    picked.vectors[region] = projected[first]
    picked.evidence[region] = {"rank": float(first), "kept_share": float(kept[first])}


def singular_blocks(
    operator: LinearOperator, masks: Mapping[str, torch.Tensor], settings: IndividualSettings
) -> dict[str, TruncatedSVD]:
    """The SVDs that joint and individual components of any rank are made of: regions, and everything else.

    Args:
        operator: d x0/d h; masks: region -> bool (H, W).
        settings: `rank` of each block (less where a block has no room for it), `tolerance` and `seed` of the search.
    """
    blocks = dict(masks)
    rest = ~torch.stack(list(masks.values())).any(0)
    if bool(rest.any()):
        blocks[REST] = rest
    return masked_svds(
        operator,
        blocks,
        {name: min(settings.rank, room(operator, mask)) for name, mask in blocks.items()},
        generator=torch.Generator().manual_seed(settings.seed + 1),
        tolerance=settings.tolerance,
    )


def fits(
    blocks: Mapping[str, TruncatedSVD], joint_rank: int, individual_rank: int, *, orthogonal_individuals: bool = False
) -> bool:
    """Whether blocks have room for these ranks next to each other; orthogonal individual parts need room each."""
    heights = [len(svd.sigma) for svd in blocks.values()]
    space = min(sum(heights), *(svd.v.shape[1:].numel() for svd in blocks.values()))
    taken = individual_rank * (len(heights) if orthogonal_individuals else 1)
    return individual_rank <= min(heights) and joint_rank + taken <= space


def first_components(
    blocks: Mapping[str, TruncatedSVD],
    joint_rank: int,
    individual_rank: int,
    *,
    scale: bool,
    orthogonal_individuals: bool = False,
) -> Picked:
    """The first individual component of every region. Kouzelis et al. 2024, algorithm 1. No network passes.

    `scale` and `orthogonal_individuals` are those of `pipeline.jive.jive`.

    Raises:
        InputError: ranks that `fits` says no to, a block that is all zero.
    """
    stacked = [svd.sigma[:, None] * svd.v.flatten(1) for svd in blocks.values()]
    split = jive(
        stacked,
        joint_rank,
        [individual_rank] * len(stacked),
        scale=scale,
        orthogonal_individuals=orthogonal_individuals,
        tolerance=JIVE_TOLERANCE,
    )
    picked = Picked({}, {}, {})
    for i, (region, svd) in enumerate(blocks.items()):
        if region == REST:
            continue
        rows = split.individual_directions(i)
        if len(rows) == 0:
            picked.refused[region] = Refused(region, "no individual component")
            continue
        picked.vectors[region] = rows[0].view_as(svd.v[0])
        picked.evidence[region] = {"change": float(split.change), "iterations": float(split.iterations)}
    return picked
