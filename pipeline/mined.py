"""What mining one image takes and gives: its settings, and directions with their evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from pipeline.editing import DecodeSettings
from pipeline.jive_ranks import Rule
from pipeline.operators import Products


@dataclass(frozen=True)
class LocoSettings:
    """x-space: `rank` directions per region, projected off the top `null_rank` of the complement.

    `variant` "projected" projects the region's singular vectors afterwards; "inside" takes the SVD in the null space.
    """

    rank: int = 5
    null_rank: int = 30
    variant: Literal["projected", "inside"] = "projected"


@dataclass(frozen=True)
class JiveSettings:
    """h-space: truncated SVDs of `rank` per block, then joint and individual ranks of JIVE.

    "auto" leaves a rank to `rank_rule`. The permutation test is its default here, though it is not the sharpest on
    noisy matrices: truncated SVDs hold no noise to bound angles by, and without it the subspace rules look for
    directions that all blocks hold almost whole, of which the regions of one image have none.
    """

    rank: int = 20
    joint_rank: int | Literal["auto"] = 30
    individual_rank: int | Literal["auto"] = 3
    rank_rule: Rule = "permutation"
    scale: bool = True
    orthogonal_individuals: bool = False


@dataclass(frozen=True)
class MiningSettings:
    """Settings of one image's mining. `timestep` is an integer index in [0, T).

    `memory` bounds the bytes that weights and products take; it changes batch sizes, and results by rounding only.
    """

    timestep: int
    loco: LocoSettings | None = LocoSettings()
    jive: JiveSettings | None = JiveSettings()
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    strength: float | Literal["visible"] = "visible"
    tolerance: float = 1e-2
    seed: int = 0
    memory: int | None = None


@dataclass(frozen=True)
class Direction:
    """One mined direction, unit L2 norm, in x-space (*x_shape) or h-space.

    Singular kinds carry sigma, residual, converged, and what these prove (`pipeline.certificate`: gap, angle, cluster;
    `checked` by fresh random vectors), as do local ones of an SVD inside the null space; derived kinds carry
    kept_share and `parents` as ranks of the same region's singular directions. Joint and individual ones carry what
    the split they come from says of itself: `converged`, its `iterations`, its last `change` relative to the whole, the
    `joint_rank` and the region's `individual_rank` it used, and the `rank_rule` that chose them ("given"
    where the settings did). `effect` is J v (C, H, W), the unmasked change of the predicted picture per unit strength;
    gain = ||M J v||, leakage = ||Mc J v||. `strength_reached` and `strength_limited` say how the search for the visible
    strength ended: at the target, at the range limit, or neither; None where there was none.
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
    checked: bool | None = None
    gap: float | None = None
    angle: float | None = None
    cluster_first: int | None = None
    cluster_last: int | None = None
    iterations: int | None = None
    change: float | None = None
    joint_rank: int | None = None
    individual_rank: int | None = None
    rank_rule: str | None = None
    parents: tuple[int, ...] = ()
    kept_share: float | None = None
    effect: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    gain: float = float("nan")
    leakage: float = float("nan")
    roir_before: float | None = None
    strength: float = float("nan")
    strength_reached: bool | None = None
    strength_limited: bool | None = None
    roir: float | None = None


@dataclass(frozen=True)
class MinedImage:
    """All directions of one image, the products spent on them, and regions refused with the reason."""

    directions: tuple[Direction, ...]
    products: Products
    refused: Mapping[str, str]
