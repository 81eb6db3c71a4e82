"""Distances between two sets of features: FID, of Gaussians fitted to them, and KID, of the sets themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.errors import InputError

_ROWS = 1024  # of a kernel matrix at once


@dataclass(frozen=True)
class FrechetDistance:
    """FID and how many images it comes from. `few`: fewer images than features on either side, so that a covariance is
    singular and the figure far too large; not to be compared with any other."""

    value: float
    counts: tuple[int, int]
    few: bool


@dataclass(frozen=True)
class KernelDistance:
    """KID with its standard error, and how many images it comes from."""

    value: float
    standard_error: float
    counts: tuple[int, int]


def frechet_distance(first: torch.Tensor, second: torch.Tensor, *, allow_few: bool = False) -> FrechetDistance:
    """FID: ||m1 - m2||^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of features (n, d) and (m, d). Heusel et al. 2017, eq. 6.

    (C1 C2)^(1/2) has the trace of the singular values of C1^(1/2) C2^(1/2), whose factors come from eigenvalues; so
    nothing complex or negative is ever rooted. The figure falls with the number of images, on average, so only figures
    of equal counts compare; `kernel_distance` has no such bias. Float64; cost O(n d^2 + d^3), no randomness.

    Args:
        allow_few: compute it from fewer images than features, 2,048 for Inception, and flag it.

    Raises:
        InputError: too few images, unequal widths, or features that are not finite.
    """
    x, y = _checked(first, second, fewest=2)
    few = min(len(x), len(y)) < x.shape[1]
    if few and not allow_few:
        raise InputError(
            "FID: images", f"{len(x)} and {len(y)}", f"at least {x.shape[1]} on each side, as many as features",
            "Give more, or use KID, which is unbiased with few.",
        )  # fmt: skip
    (mean_x, root_x), (mean_y, root_y) = _moments(x), _moments(y)
    traces = root_x.square().sum() + root_y.square().sum()
    shared = torch.linalg.svdvals(root_x @ root_y).sum()
    value = (mean_x - mean_y).square().sum() + traces - 2 * shared
    return FrechetDistance(max(float(value), 0.0), (len(x), len(y)), few)  # below 0 only by rounding


def _moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (d,) and the symmetric root (d, d) of the covariance (divisor n - 1)."""
    values, vectors = torch.linalg.eigh(torch.cov(features.T).reshape(features.shape[1], features.shape[1]))
    return features.mean(dim=0), (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def kernel_distance(first: torch.Tensor, second: torch.Tensor) -> KernelDistance:
    """KID: the unbiased squared MMD of features (n, d) and (m, d) under the kernel (x.y / d + 1)^3.

    Binkowski et al. 2018 (arXiv:1801.01401), eq. 4 with section 4's kernel, over all pairs at once; its mean is 0 where
    the distributions are equal, so it may be negative. The standard error is the jackknife's, over the images of both
    sets, whose variance is too large rather than too small (Efron and Stein 1981): about twofold, where the
    distributions are equal. Float64; cost O((n + m)^2 d), no randomness.

    Raises:
        InputError: fewer than 3 images on a side, unequal widths, or features that are not finite.
    """
    x, y = _checked(first, second, fewest=3)
    n, m = len(x), len(y)
    own_x, own_y = (_sums(part, part)[0] - _diagonal(part) for part in (x, y))  # each image with the others of its set
    cross_x, cross_y = _sums(x, y)
    total_x, total_y, cross = own_x.sum(), own_y.sum(), cross_x.sum()
    within_x, within_y = total_x / (n * (n - 1)), total_y / (m * (m - 1))
    value = within_x + within_y - 2 * cross / (n * m)
    without_x = (total_x - 2 * own_x) / ((n - 1) * (n - 2)) + within_y - 2 * (cross - cross_x) / ((n - 1) * m)
    without_y = (total_y - 2 * own_y) / ((m - 1) * (m - 2)) + within_x - 2 * (cross - cross_y) / (n * (m - 1))
    variance = sum((left.numel() - 1) * left.var(correction=0) for left in (without_x, without_y))
    return KernelDistance(float(value), float(variance) ** 0.5, (n, m))


def _kernel(products: torch.Tensor, width: int) -> torch.Tensor:
    return (products / width + 1) ** 3


def _diagonal(features: torch.Tensor) -> torch.Tensor:
    return _kernel(features.square().sum(dim=1), features.shape[1])


def _sums(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the kernel matrix of x (n, d) and y (m, d) over its columns (n,) and over its rows (m,)."""
    over_y, over_x = [], torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for part in x.split(_ROWS):
        block = _kernel(part @ y.T, x.shape[1])
        over_y.append(block.sum(dim=1))
        over_x += block.sum(dim=0)
    return torch.cat(over_y), over_x


def _checked(first: torch.Tensor, second: torch.Tensor, fewest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sets in float64."""
    for features in (first, second):
        if features.ndim != 2 or features.shape[1] != first.shape[-1] or len(features) < fewest:
            shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
            raise InputError("features", shapes, f"(n, d) and (m, d), at least {fewest} images each")
        if not bool(torch.isfinite(features).all()):
            raise InputError("features", "NaN or infinity", "finite numbers")
    return first.double(), second.double()
