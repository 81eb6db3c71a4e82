"""What residuals and gaps prove about singular vectors: bounds on their angle to the true ones, and clusters.

A triplet (u, sigma, v) of A with A v = sigma u is an approximate eigenpair of the symmetric [[0, A], [A^T, 0]] with
vector (u, v) / sqrt(2), eigenvalue sigma and residual rho / sqrt(2), rho = ||A^T u - sigma v||. Davis and Kahan (1970)
bound the sine of its angle to the true eigenvector by residual over gap. Triplets whose values lie closer together than
that can tell are one cluster: the bound is then on the angle between subspaces, and no vector of it means much alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pipeline.errors import InputError


@dataclass(frozen=True)
class Certificate:
    """Evidence of r triplets, strongest first; everything (r,).

    `gap`: distance of sigma to the nearest other value (of a cluster: to the nearest outside it), less what the
    residuals leave open, over sigma_1; 0 where nothing is left of it.
    `angle`: upper bound in radians on the angle between v and the true right singular vector; in a cluster, on the
    largest angle between its span and the true one. pi / 2: nothing is proven.
    `first`, `last`: ranks between which the cluster of a triplet lies, both its own rank where it stands alone;
    `last` = r says that it goes on beyond the wanted triplets, so not even its span is settled.
    """

    gap: torch.Tensor
    angle: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor


def certify(sigma: torch.Tensor, residuals: torch.Tensor, wanted: int) -> Certificate:
    """The certificate of the first `wanted` triplets.

    Args:
        sigma: (k,) non-increasing, k >= wanted; what follows the wanted ones is only known as a neighbour.
        residuals: (k,) ||A^T u - sigma v||, in units of `sigma`.
        wanted: how many triplets are certified.

    The values that were not computed are taken to lie at or below the last one given: no residual can prove that.

    Raises:
        InputError: shapes that differ, values that increase, or negative ones.
    """
    values, rho = sigma.double().cpu(), residuals.double().cpu() / math.sqrt(2.0)
    if values.shape != rho.shape or values.ndim != 1 or not 1 <= wanted <= len(values):
        raise InputError("sigma, residuals", (tuple(sigma.shape), tuple(residuals.shape)), f"(k,), k >= {wanted}")
    if bool((values.diff() > 0).any()) or not bool((values >= 0).all() and (rho >= 0).all()):
        raise InputError("sigma, residuals", "values that increase or are negative", "non-increasing, not negative")
    gap, angle = torch.zeros(wanted, dtype=torch.float64), torch.full((wanted,), math.pi / 2, dtype=torch.float64)
    first, last = torch.zeros(wanted, dtype=torch.int64), torch.zeros(wanted, dtype=torch.int64)
    for start, end in _clusters(values, rho):
        if start >= wanted:
            break
        members = slice(start, min(end + 1, wanted))
        first[members], last[members] = start, min(end, wanted)
        if end >= wanted:  # its span is cut in two by the wanted rank
            continue
        distance = _separation(values, rho, start, end)
        gap[members] = distance / values[0].clamp(min=torch.finfo(torch.float64).tiny)
        error = float(rho[start : end + 1].norm())
        angle[members] = _angle_of_half(error / distance) if error < distance else math.pi / 2
    return Certificate(gap, angle, first, last)


def _clusters(values: torch.Tensor, rho: torch.Tensor) -> list[tuple[int, int]]:
    """Runs (start, end) of values too close to be told apart: less between them than residuals and their slack."""
    runs = [(0, 0)]
    for i in range(1, len(values)):
        slack = rho[i - 1] + rho[i] + torch.maximum(rho[i - 1], rho[i])
        tied = bool(values[i - 1] - values[i] <= slack)
        if tied:
            runs[-1] = (runs[-1][0], i)
        else:
            runs.append((i, i))
    return runs


def _separation(values: torch.Tensor, rho: torch.Tensor, start: int, end: int) -> float:
    """Distance of the values start..end to every other one, less the others' own error; 0 and -sigma are others too."""
    distances = [float(values[end])]
    if start > 0:
        distances.append(float((values[:start] - rho[:start] - values[start]).min()))
    if end + 1 < len(values):
        distances.append(float((values[end] - values[end + 1 :] - rho[end + 1 :]).min()))
    return max(0.0, min(distances))


def _angle_of_half(sine: float) -> float:
    """Bound on the angle of v where that of (u, v) / sqrt(2) has this sine: both halves may not be equally off.

    At most pi / 2, which is as far apart as two lines can be.
    """
    return min(math.pi / 2, 2.0 * math.asin(min(1.0, math.sqrt(2.0) * math.sin(math.asin(min(1.0, sine)) / 2.0))))
