"""Jacobian subspace iteration, as the public codes do it: a block goes forward and back until it moves no more.

Haas et al. 2023, "Discovering Interpretable Directions in the Semantic Latent Space of Diffusion Models", and, with the
same rounds, Pullback (Park et al. 2023) and LOCO Edit. `pipeline.svd` needs far fewer products for the same answer;
this is here because rivals are compared as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.errors import InputError
from pipeline.operators import LinearOperator
from pipeline.svd import signs

ROUNDS = (12, 50)  # fewest and most, of the public scripts
MOVEMENT = 1e-3  # the laxer of the two thresholds in use: the largest change of an entry of a right vector


@dataclass(frozen=True)
class Round:
    """Rows of one round: `v` (k, n_in) orthonormal, `images` A v (k, n_out), `back` A^T A v, `turned` the next v."""

    v: torch.Tensor
    images: torch.Tensor
    back: torch.Tensor
    turned: torch.Tensor

    def settled(self, *, signed: bool) -> bool:
        """Whether no entry of any vector has moved by more than `MOVEMENT`.

        `signed`: a change of sign is a movement too, as in the public codes. Their rounds may then never end by
        themselves, as an SVD is free to turn signs at every round.
        """
        turned = self.turned
        if not signed:
            turned = turned * torch.where((turned * self.v).sum(dim=1) < 0, -1.0, 1.0).to(turned)[:, None]
        return bool(((turned - self.v).abs() <= MOVEMENT).all())


@dataclass(frozen=True)
class Iterated:
    """k right vectors (k, *shape_in), strongest first, signs canonical, with their images A v (k, *shape_out).

    `sigma` (k,): ||A v||. `residuals` (k,): ||A^T u - sigma v|| / sigma_1. `stopped`: by its own rule, not for want of
    rounds.
    """

    v: torch.Tensor
    images: torch.Tensor
    sigma: torch.Tensor
    residuals: torch.Tensor
    rounds: int
    stopped: bool


def rounds(op: LinearOperator, rank: int, *, generator: torch.Generator) -> Iterator[Round]:
    """Endless rounds on A from an orthonormalised random block. Cost of each: `rank` JVPs and as many VJPs.

    Raises:
        InputError: a rank that does not fit the space.
    """
    size = math.prod(op.shape_in)
    if not 1 <= rank <= size:
        raise InputError("rank", rank, f"1 to {size}, the size of the space")
    noise = torch.randn(size, rank, generator=generator)
    v = torch.linalg.qr(noise.to(op.device, op.dtype))[0].T
    while True:
        images = op.matvec(v.reshape(-1, *op.shape_in))
        back = op.rmatvec(images).flatten(1)
        turned = torch.linalg.svd(back, full_matrices=False)[2]
        yield Round(v, images.flatten(1), back, turned)
        v = turned


def subspace_iteration(op: LinearOperator, rank: int, *, generator: torch.Generator, most: int = ROUNDS[1]) -> Iterated:
    """Leading `rank` right singular vectors of `op`, to the stopping rule of the public codes, signs aside.

    Args:
        generator: the only source of randomness (start block).
        most: rounds after which it ends in any case. Cost: 2 * `rank` products a round.

    Raises:
        InputError: a rank or number of rounds that does not fit.
    """
    if most < 1:
        raise InputError("rounds", most, "at least 1")
    for done, last in enumerate(rounds(op, rank, generator=generator), 1):
        stopped = done >= ROUNDS[0] and last.settled(signed=False)
        if stopped or done >= most:
            break
    sigma = last.images.norm(dim=1)
    order = sigma.argsort(descending=True)
    v, images, back, sigma = last.v[order], last.images[order], last.back[order], sigma[order]
    scale = sigma.clamp(min=torch.finfo(sigma.dtype).tiny)
    residuals = (back / scale[:, None] - sigma[:, None] * v).norm(dim=1) / scale[0]
    flips = signs(v)[:, None]
    return Iterated(
        v=(v * flips).view(-1, *op.shape_in),
        images=(images * flips).view(-1, *op.shape_out),
        sigma=sigma,
        residuals=residuals,
        rounds=done,
        stopped=stopped,
    )
