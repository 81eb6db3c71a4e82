"""Random directions: what any method has to beat."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from pipeline.jacobian import JacobianKind
from pipeline.methods.contract import About, Found, Method, Refused, Subject
from pipeline.methods.directions import HMethod, XMethod, measured
from pipeline.methods.singular import charge
from pipeline.mining import check_masks


class RandomX(XMethod):
    """A random unit vector of x-space for every image and region."""

    name = "random-x"
    about = About(title="random direction in x-space", paper="none", space="x", one_step=True, localised=False)

    @torch.no_grad()
    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """Cost: one JVP a region, for the strength to try first."""
        return _random(self, subject, "x0/x", self.limit)


class RandomH(HMethod):
    """A random unit vector of h-space for every image and region."""

    name = "random-h"
    about = About(title="random direction in h-space", paper="none", space="h", localised=False)

    @torch.no_grad()
    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """Cost: one JVP a region, for the strength to try first."""
        return _random(self, subject, "x0/h", self.limit)


def _random(method: Method, subject: Subject, kind: JacobianKind, limit: float) -> Mapping[str, Found | Refused]:
    """Edits whose vectors depend on the seed and the names of image and region only."""
    check_masks(subject.masks, method.denoiser.info.image_shape[1:])
    operator = method.jacobian(subject, kind)
    vectors = {}
    for region in subject.masks:
        generator = torch.Generator().manual_seed(seed_of(method.settings.seed, subject.name, region))
        vector = torch.randn(operator.shape_in, generator=generator).to(operator.device, operator.dtype)
        vectors[region] = vector / vector.norm()
    edits = measured(operator, vectors, subject.masks, limit)
    charge(method.cost, operator)
    return edits


def seed_of(seed: int, image: str, region: str) -> int:
    """A seed of 56 bits from all three, the same on every machine."""
    digest = hashlib.sha256(f"{seed}\n{image}\n{region}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
