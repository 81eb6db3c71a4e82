"""Regions without any annotator: pixels that move together under the leading directions of the denoiser's Jacobian.

With J = d f / d x_t of the posterior mean f and its leading singular triplets (sigma_i, u_i, v_i), a unit step along
v_i moves pixel p by sigma_i u_i(p), a vector of colour. Its length, for i = 1 to rank, is the pixel's profile: which
directions move it, and how strongly. Signs and colours are left out on purpose, since both sides of an edge that moves
change together in opposite colours. Profiles are smoothed, scaled to nearly unit length (pixels that hardly move keep
short ones) and neighbours are merged into segments by their profiles (`merging`).

Settings were chosen on the `mine` images of the built-in faces; `python -m tests.benchmarks.regions` measures them. A
term for position, as k-means on pixels needs it, made segments worse: neighbours alone may merge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.filters import gaussian

from pipeline.errors import InputError
from pipeline.jacobian import jacobian
from pipeline.models.contract import Denoiser
from pipeline.operators import LinearOperator, Products
from pipeline.regions.masks import Mask, RegionMasks, numbered, usable
from pipeline.regions.merging import merged_segments
from pipeline.svd import truncated_svd

CELLS = 64  # of a side at most: larger pictures are cut cell by cell, in blocks of pixels
PRODUCTS = 8  # per triplet, at most
INERT = "inert"


@dataclass(frozen=True)
class SegmentSettings:
    """How a picture is cut.

    Attributes:
        count: most segments.
        rank: singular triplets; small parts move only under the weaker ones.
        tolerance: residual of the triplets relative to sigma_1; segments do not need accurate vectors.
        smoothing: standard deviation of the blur of profiles, as a share of the picture's longer side.
        floor: length of profile, as a share of the longest, at which scaling stops to make up for weakness by half.
        min_share, max_share: of the picture; smaller segments join a neighbour, larger ones are left out.
        inert: a segment that moves less than this share of the picture's root-mean-square movement is inert.
        keep_inert: all inert segments become one region, "inert", instead of being left out.
        seed: of the start vector of the SVD.
    """

    count: int = 12
    rank: int = 32
    tolerance: float = 0.2
    smoothing: float = 1 / 64
    floor: float = 0.1
    min_share: float = 0.002
    max_share: float = 0.5
    inert: float = 0.1
    keep_inert: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for numbers out of range."""
        if self.count < 1 or self.rank < 1:
            raise InputError("segments", f"count {self.count}, rank {self.rank}", "both at least 1")
        if not (0 <= self.min_share < self.max_share <= 1):
            found = f"{self.min_share} to {self.max_share}"
            raise InputError("segments: shares", found, "0 <= min_share < max_share <= 1")
        if not (0 < self.tolerance < 1 and 0 <= self.smoothing < 1 and self.floor > 0 and self.inert >= 0):
            wanted = "tolerance in (0, 1), smoothing in [0, 1), floor above 0, inert from 0 up"
            raise InputError("segments", self, wanted)


@dataclass(frozen=True)
class Segmentation:
    """Segments of one picture, with their evidence.

    `regions` are called segment-1 (the largest; see `numbered`), segment-2, ..., whatever else was found under the same
    names in `regions.skipped`. `labels` int (H, W) holds the number n of segment-n, also where that was left out.
    `movement` float32 (H, W): how far a pixel moves under the directions used, root of the sum over directions.
    `products` were spent on `rank` triplets, of which `converged` reached the tolerance.
    """

    regions: RegionMasks
    labels: NDArray[np.intp]
    movement: NDArray[np.float32]
    rank: int
    converged: int
    products: Products


def jacobian_segments(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    t: int,
    settings: SegmentSettings | None = None,
    *,
    memory: int | None = None,
) -> Segmentation:
    """Segments of the picture behind x_t.

    Args:
        x_t: (C, H, W) at timestep `t`, from DDIM inversion: the timestep at which directions are mined.
        settings: default `SegmentSettings()`.
        memory: bytes that weights and products may take, as in `jacobian`.

    Returns:
        Masks at the size of the Jacobian's output, that of pictures. Deterministic by `settings.seed` on one device.

    Cost: about 2.5 products per triplet (79 for rank 32 on the built-in model), 8 at most; then a third of a second.

    Raises:
        InputError: x_t of another shape, a budget below one product, or products that are not finite.
    """
    settings = settings or SegmentSettings()
    operator = jacobian(denoiser, x_t, t, "x0/x", memory=memory)
    return operator_segments(operator, settings)


def operator_segments(operator: LinearOperator, settings: SegmentSettings) -> Segmentation:
    """`jacobian_segments` of any operator whose output is a picture (C, H, W)."""
    rank = min(settings.rank, math.prod(operator.shape_in), math.prod(operator.shape_out))
    svd = truncated_svd(
        operator,
        rank,
        generator=torch.Generator().manual_seed(settings.seed),
        tolerance=settings.tolerance,
        max_products=PRODUCTS * rank,
        block=max(2, rank // 4),
        probes=0,
    )
    moves = (svd.u * svd.sigma[:, None, None, None]).detach().cpu().double()
    lengths = moves.square().sum(1).numpy()  # (rank, H, W)
    regions, labels = segments_of(lengths, settings)
    movement = np.sqrt(lengths.sum(0)).astype(np.float32)
    return Segmentation(regions, labels, movement, rank, int(svd.converged.sum()), svd.products)


def segments_of(lengths: NDArray[np.float64], settings: SegmentSettings) -> tuple[RegionMasks, NDArray[np.intp]]:
    """Regions and labels (H, W) from squared movements (k, H, W) of pixels under k directions.

    Raises:
        InputError: movements of another shape, negative or not finite, or none at all.
    """
    if lengths.ndim != 3 or not np.isfinite(lengths).all() or (lengths < 0).any() or not lengths.any():
        raise InputError("movements", f"shape {lengths.shape}", "finite squares (k, H, W), not all of them zero")
    size = lengths.shape[1:]
    block = -(-max(size) // CELLS)
    coarse = _profiles(_cells(lengths, block), settings.smoothing * max(size) / block, settings.floor)
    smallest = math.ceil(settings.min_share * coarse.shape[0] * coarse.shape[1])
    found = merged_segments(coarse, settings.count, smallest)
    fine = np.repeat(np.repeat(found, block, axis=0), block, axis=1)[: size[0], : size[1]]
    masks = [fine == value for value in np.unique(fine)]
    names = numbered(masks)
    labels = np.zeros(size, dtype=np.intp)
    for number, index in enumerate(names.values(), start=1):
        labels[masks[index]] = number
    return _chosen({name: masks[index] for name, index in names.items()}, lengths.sum(0), settings), labels


def _cells(lengths: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """Means (k, h, w) over blocks of `block` x `block` pixels, the last row and column of what there is."""
    if block == 1:
        return lengths
    pooled = torch.nn.functional.avg_pool2d(
        torch.from_numpy(lengths)[None], block, ceil_mode=True, count_include_pad=False
    )
    cells: NDArray[np.float64] = pooled[0].numpy()
    return cells


def _profiles(lengths: NDArray[np.float64], blur: float, floor: float) -> NDArray[np.float64]:
    """Profiles (h, w, k) of squared movements (k, h, w): smoothed in energy, then scaled to nearly unit length."""
    smooth = gaussian(lengths, sigma=blur, mode="nearest", channel_axis=0, preserve_range=True) if blur else lengths
    profiles = np.sqrt(np.moveaxis(np.clip(smooth, 0.0, None), 0, -1))
    strength = np.linalg.norm(profiles, axis=-1, keepdims=True)
    scaled: NDArray[np.float64] = profiles / (strength + floor * strength.max())
    return scaled


def _chosen(masks: dict[str, Mask], movement: NDArray[np.float64], settings: SegmentSettings) -> RegionMasks:
    """The masks without those that are too large or inert, which are named with the reason or united."""
    kept, skipped = {}, {}
    inert = np.zeros(movement.shape, dtype=np.bool_)
    for name, mask in masks.items():
        share, moves = float(mask.mean()), math.sqrt(float(movement[mask].mean() / movement.mean()))
        if moves < settings.inert:
            inert |= mask
            skipped[name] = f"it hardly moves: {moves:.2g} of the picture's own movement"
        elif share > settings.max_share:
            skipped[name] = f"it covers {share:.0%} of the picture, more than {settings.max_share:.0%}"
        else:
            kept[name] = mask
    if settings.keep_inert and inert.any():
        kept[INERT] = inert
    return usable(kept, skipped)
