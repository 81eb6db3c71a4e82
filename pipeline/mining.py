"""Mining one image: from x_t and its region masks to directions with their evidence.

The walk: one Jacobian operator per (image, t); truncated SVDs of every region and its complement that share forward
products; LOCO null-space projection in x-space; JIVE across regions in h-space; gains, leakages and effects of what
came out; strengths at which the decoded change becomes visible. Nothing here knows about files or catalogs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from pipeline.directions import MINIMAL_KEPT_SHARE, null_space_projection
from pipeline.editing import DecodeSettings, decode
from pipeline.errors import InputError
from pipeline.jacobian import jacobian
from pipeline.jive import jive
from pipeline.metrics import VisibleStrength, visible_strength
from pipeline.models.contract import Denoiser
from pipeline.operators import LinearOperator, Products
from pipeline.svd import TruncatedSVD, canonical_sign, masked_svds

REST = "everything else"
NULL_SPACE_TOLERANCE = 5.0  # times the region's: what a null space leaves behind is measured as leakage anyway
VISIBLE_RMS = 0.15  # visible strength: root-mean-square change inside the mask, pixels in [-1, 1]
STRENGTH_LIMIT = {"x": 40.0, "h": 400.0}  # largest lambda and alpha tried for a unit direction


@dataclass(frozen=True)
class LocoSettings:
    """x-space: `rank` directions per region, projected off the top `null_rank` of the complement."""

    rank: int = 5
    null_rank: int = 30


@dataclass(frozen=True)
class JiveSettings:
    """h-space: truncated SVDs of `rank` per block, then joint and individual ranks of JIVE."""

    rank: int = 20
    joint_rank: int = 30
    individual_rank: int = 3
    scale: bool = True
    orthogonal_individuals: bool = False


@dataclass(frozen=True)
class MiningSettings:
    """Numerical settings of one image's mining. `timestep` is an integer index in [0, T)."""

    timestep: int
    loco: LocoSettings | None = LocoSettings()
    jive: JiveSettings | None = JiveSettings()
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    strength: float | Literal["visible"] = "visible"
    tolerance: float = 1e-2
    seed: int = 0


@dataclass(frozen=True)
class Direction:
    """One mined direction, unit L2 norm, in x-space (C, H, W) or h-space.

    Singular kinds carry sigma, residual and converged; derived kinds carry kept_share (local) and `parents` as ranks
    of the same region's singular directions. `effect` is J v (C, H, W), the unmasked change of the predicted image
    per unit strength; gain = ||M J v||, leakage = ||Mc J v||.
    """

    region: str
    space: Literal["x", "h"]
    kind: Literal["singular", "local", "joint", "individual"]
    rank: int
    vector: torch.Tensor
    spectrum: torch.Tensor
    sigma: float | None = None
    residual: float | None = None
    converged: bool | None = None
    parents: tuple[int, ...] = ()
    kept_share: float | None = None
    effect: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    gain: float = float("nan")
    leakage: float = float("nan")
    roir_before: float | None = None
    strength: float = float("nan")
    roir: float | None = None


@dataclass(frozen=True)
class MinedImage:
    """All directions of one image, the products spent on them, and regions refused with the reason."""

    directions: tuple[Direction, ...]
    products: Products
    refused: Mapping[str, str]


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


def _singular(region: str, space: Literal["x", "h"], svd: TruncatedSVD, count: int) -> list[Direction]:
    return [
        Direction(
            region=region,
            space=space,
            kind="singular",
            rank=i,
            vector=svd.v[i],
            spectrum=svd.sigma,
            sigma=float(svd.sigma[i]),
            residual=float(svd.residuals[i]),
            converged=bool(svd.converged[i]),
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
) -> list[Direction]:
    """LOCO: singular and null-space-projected ("local") directions of every region in x-space."""
    complements = {f"not {region}": ~mask for region, mask in masks.items()}
    ranks = dict.fromkeys(masks, loco.rank) | dict.fromkeys(complements, loco.null_rank)
    svds = masked_svds(
        operator,
        {**masks, **complements},
        {name: rank for name, rank in ranks.items() if rank > 0},
        generator=torch.Generator().manual_seed(settings.seed),
        tolerance=dict.fromkeys(masks, settings.tolerance)
        | dict.fromkeys(complements, NULL_SPACE_TOLERANCE * settings.tolerance),
    )
    found: list[Direction] = []
    for region in masks:
        singular = _singular(region, "x", svds[region], loco.rank)
        found += singular
        if loco.null_rank == 0 or not singular:
            continue
        complement = svds[f"not {region}"]
        null = complement.v[~complement.null]
        vectors, kept = null_space_projection(torch.stack([d.vector for d in singular]), null)
        for parent, vector, share in zip(singular, vectors, kept.tolist(), strict=True):
            if share < MINIMAL_KEPT_SHARE:
                refused[f"x/{region}/local/{parent.rank}"] = f"kept share {share:.3f} is under {MINIMAL_KEPT_SHARE}"
                continue
            found.append(
                Direction(
                    region=region,
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


def mine_components(
    operator: LinearOperator, masks: Mapping[str, torch.Tensor], settings: MiningSettings, ranks: JiveSettings
) -> list[Direction]:
    """Plain region SVDs in h-space, and JIVE's joint and individual components across regions.

    Kouzelis et al. 2024, algorithm 1. Everything outside the regions is one more block, or there is nothing for the
    rest of the picture to be joint with.
    """
    blocks = dict(masks)
    rest = ~torch.stack(list(masks.values())).any(0)
    if bool(rest.any()):
        blocks[REST] = rest
    svds = masked_svds(
        operator,
        blocks,
        dict.fromkeys(blocks, ranks.rank),
        generator=torch.Generator().manual_seed(settings.seed + 1),
        tolerance=settings.tolerance,
    )
    stacked = [svds[name].sigma[:, None] * svds[name].v.flatten(1) for name in blocks]
    split = jive(
        stacked,
        ranks.joint_rank,
        [ranks.individual_rank] * len(stacked),
        scale=ranks.scale,
        orthogonal_individuals=ranks.orthogonal_individuals,
    )
    found: list[Direction] = []
    for i, region in enumerate(blocks):
        if region == REST:
            continue
        singular = _singular(region, "h", svds[region], ranks.individual_rank)
        found += singular
        parents = tuple(direction.rank for direction in singular)
        components: tuple[tuple[Literal["joint", "individual"], torch.Tensor], ...] = (
            ("joint", split.joint_directions(i)),
            ("individual", split.individual_directions(i)),
        )
        for kind, rows in components:
            for rank, row in enumerate(rows[: ranks.individual_rank]):
                vector = row.view(operator.shape_in).to(operator.dtype)
                found.append(
                    Direction(
                        region=region,
                        space="h",
                        kind=kind,
                        rank=rank,
                        vector=canonical_sign(vector[None])[0],
                        spectrum=svds[region].sigma,
                        parents=parents,
                        kept_share=min(1.0, float((svds[region].v.flatten(1) @ vector.flatten()).norm())),
                    )
                )
    return found


def measure(
    operator: LinearOperator, directions: list[Direction], masks: Mapping[str, torch.Tensor]
) -> list[Direction]:
    """Add effect, gain and leakage to each direction. Cost: one JVP per direction."""
    if not directions:
        return []
    effects = operator.matvec(torch.stack([d.vector for d in directions]))
    measured = []
    for direction, effect in zip(directions, effects, strict=True):
        mask = masks[direction.region].to(effect.dtype)
        gain, leakage = float((effect * mask).norm()), float((effect * (1 - mask)).norm())
        measured.append(replace(direction, effect=effect, gain=gain, leakage=leakage))
    before = {(d.region, d.rank): d.leakage / max(d.gain, 1e-12) for d in measured if d.kind == "singular"}
    return [replace(d, roir_before=before.get((d.region, d.parents[0]))) if d.kind == "local" else d for d in measured]


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
    visible root-mean-square (within a tenth); their ROIR is that of the decoded edit. Cost: one to three decodes per
    first direction.
    """
    linear = [linear_strength(d, masks[d.region]) for d in directions]
    if settings.strength != "visible":
        return [replace(d, strength=float(settings.strength)) for d in directions]
    scale: dict[tuple[str, str, str], tuple[float, float]] = {}
    for space in ("x", "h"):
        first = [i for i, d in enumerate(directions) if d.space == space and d.rank == 0 and d.kind != "joint"]
        if not first:
            continue
        vectors = torch.stack([directions[i].vector for i in first])
        reference = decode(denoiser, x_t[None], settings.timestep, settings.decode)

        def edited(
            strengths: torch.Tensor, cases: torch.Tensor, vectors: torch.Tensor = vectors, space: str = space
        ) -> torch.Tensor:
            shift = vectors[cases] * strengths.to(vectors)[:, None, None, None]
            if space == "x":
                return decode(denoiser, x_t[None] + shift, settings.timestep, settings.decode)
            latents = x_t[None].expand(len(shift), *x_t.shape)
            return decode(denoiser, latents, settings.timestep, settings.decode, h_shift=shift)

        result = visible_strength(
            edited,
            reference.expand(len(first), *reference.shape[1:]),
            torch.stack([masks[directions[i].region] for i in first]),
            target=VISIBLE_RMS,
            first_guess=torch.tensor([linear[i] for i in first]),
            limit=STRENGTH_LIMIT[space],
            evaluations=3,
            tolerance=0.1,
        )
        for j, i in enumerate(first):
            d = directions[i]
            scale[d.region, d.space, d.kind] = (
                float(result.strength[j]) / max(linear[i], 1e-12),
                _settled_roir(result, j),
            )
    calibrated = []
    for d, guess in zip(directions, linear, strict=True):
        # Joint directions are no edits of their region: they borrow the scale of its singular ones.
        kind = "singular" if d.kind == "joint" else d.kind
        factor, roir = scale.get((d.region, d.space, kind), (1.0, float("nan")))
        strength = min(factor * guess, STRENGTH_LIMIT[d.space])
        measured = d.rank == 0 and d.kind != "joint"
        calibrated.append(replace(d, strength=strength, roir=roir if measured else None))
    return calibrated


def _settled_roir(result: VisibleStrength, case: int) -> float:
    """ROIR of a case whose search ended at the target or at the range limit; NaN where it did not."""
    settled = bool(result.reached[case] | result.limited[case]) and bool(result.roir[case].isfinite())
    return float(result.roir[case]) if settled else float("nan")


def mine_image(
    denoiser: Denoiser, x_t: torch.Tensor, masks: Mapping[str, torch.Tensor], settings: MiningSettings
) -> MinedImage:
    """All directions of one image.

    Args:
        denoiser: the model; x-space needs its noise prediction only, h-space its bottleneck.
        x_t: (C, H, W) latent at `settings.timestep`, from DDIM inversion.
        masks: region name -> bool (H, W).
        settings: ranks, tolerance, seed. The only randomness is the start of the SVDs, from `settings.seed`.

    Raises:
        InputError: an empty mask, a mask of another size, a rank larger than the space.
    """
    check_masks(masks, (x_t.shape[-2], x_t.shape[-1]))
    network = denoiser.differentiable()
    masks = {name: mask.to(x_t.device) for name, mask in masks.items()}
    found: list[Direction] = []
    refused: dict[str, str] = {}
    spent = Products()
    if settings.loco is not None:
        operator = jacobian(network, x_t, settings.timestep, "x0/x")
        found += measure(operator, mine_local(operator, masks, settings, settings.loco, refused), masks)
        spent = Products(spent.jvp + operator.products.jvp, spent.vjp + operator.products.vjp)
    if settings.jive is not None:
        operator = jacobian(network, x_t, settings.timestep, "x0/h")
        found += measure(operator, mine_components(operator, masks, settings, settings.jive), masks)
        spent = Products(spent.jvp + operator.products.jvp, spent.vjp + operator.products.vjp)
    calibrated = calibrate(denoiser, x_t, found, masks, settings)
    return MinedImage(tuple(calibrated), spent, refused)
