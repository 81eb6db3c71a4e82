"""What passes from mining to the catalog: plain records, numpy arrays only, no tensors and no storage.

Ids are content hashes (sha256, first 32 hex digits). A direction's id is made from what determines it (image, model,
numerical settings, mask, space, kind, timestep, rank), never from vector bytes, row positions or the code's commit.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Space = Literal["x", "h"]
Kind = Literal["singular", "local", "joint", "individual"]


def content_id(*parts: Any) -> str:
    """Stable 32-digit id of JSON-serialisable parts."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class ImageRecord:
    """One source image, and how well it inverts.

    `image` uint8 (H, W, 3|1) at the model's size; `latent` float32 (C, H, W) is x_t at `timestep`;
    `round_trip_psnr` in dB over data range 2; `factors` by name where the data set knows them.
    `failure` is None, or the reason this image could not be mined (then latent is empty and psnr is NaN).
    """

    image_id: str
    dataset: str
    split: str
    source: str  # file name or row of the source, for people
    image: np.ndarray
    timestep: int
    latent: np.ndarray
    round_trip_psnr: float
    factors: dict[str, float] = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True)
class RegionRecord:
    """One region mask of one image: `mask` bool (H, W). `region_id` = content_id(image_id, region, mask digest)."""

    region_id: str
    image_id: str
    region: str
    mask: np.ndarray


@dataclass(frozen=True)
class DirectionRecord:
    """One direction with its evidence.

    `vector` float32, shape of the space (x: (C, H, W); h: bottleneck), unit L2 norm, canonical sign.
    `effect` float32 (3|1, 16, 16): J v, the change in the whole predicted image, downsampled, unit norm.
    `preview` uint8 (H, 3 * W, 3): posterior mean in one step at -s, 0 and +s side by side, s the strength at which the
    linear change gain * s is 0.15 root-mean-square inside the region.
    `spectrum` float32: the singular values of the region's operator this direction was taken from.
    Singular kinds carry sigma, residual (||J^T u - sigma v|| / sigma_1), converged, and the certificate that follows:
    the gap to the nearest other singular value over sigma_1, a bound on the vector's angle to the true one in radians,
    first and last rank of the cluster it cannot be told apart in, and whether fresh random vectors confirmed that no
    larger value was missed. So do local ones found inside the null space; derived kinds (local, joint, individual)
    carry parents and kept_share. Joint and individual ones carry the evidence of the split they come from: converged,
    its iterations, the size of its last change relative to the whole, the joint rank and the region's individual rank,
    and the rule that chose them or "given".
    All carry gain ||M J v||, leakage ||Mc J v||, strength (the lambda or alpha of the visible edit: measured on decoded
    edits for first directions, scaled by gain for the others) and roir (of the decoded edit, NaN where not measured).
    `strength_reached` and `strength_limited` say how that measurement ended: within a tenth of the visible change, or
    weaker at the largest strength tried; both False where it ran out of decodes, None where nothing was measured.
    """

    direction_id: str
    image_id: str
    dataset: str
    model: str  # model fingerprint
    region: str
    space: Space
    kind: Kind
    rank: int
    timestep: int
    vector: np.ndarray
    effect: np.ndarray
    preview: np.ndarray
    spectrum: np.ndarray
    strength: float
    gain: float
    leakage: float
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
    parents: tuple[str, ...] = ()
    kept_share: float | None = None
    roir_before: float | None = None  # leakage over gain of the parent, before projection
    roir: float | None = None
    strength_reached: bool | None = None
    strength_limited: bool | None = None


@dataclass(frozen=True)
class Chunk:
    """All that one mined group of images adds to a catalog; written, verified and committed as one."""

    chunk_id: str
    images: tuple[ImageRecord, ...]
    regions: tuple[RegionRecord, ...]
    directions: tuple[DirectionRecord, ...]
