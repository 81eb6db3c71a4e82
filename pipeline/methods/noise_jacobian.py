"""The baseline beside LOCO Edit: singular directions of the noise prediction instead of the posterior mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from pipeline.methods.contract import About, Found, Refused, Settings, Subject
from pipeline.methods.directions import STRAIGHT, XMethod, measured
from pipeline.methods.singular import charge, first_singular, varied
from pipeline.mining import check_masks


class NoiseJacobian(XMethod):
    """The first right singular vector of M d eps / d x_t for every region. LOCO Edit's comparison."""

    name = "eps-x"
    about = About(
        title="noise prediction in x-space",
        paper="Chen et al. 2024, as a baseline",
        space="x",
        one_step=True,
        deviations=(STRAIGHT, "for latent models the mask is averaged down to the latents, as the noise has no pixels"),
    )

    @classmethod
    def grid(cls, settings: Settings) -> Sequence[Settings]:
        """Timesteps, the 0.6 T and 0.7 T of LOCO Edit among them."""
        return varied(settings, *({"timestep": t} for t in (0.3, 0.5, 0.6, 0.7)))

    @torch.no_grad()
    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """Cost: one SVD of rank 1 a region, which share their products, and one JVP a region."""
        check_masks(subject.masks, self.denoiser.info.image_shape[1:])
        to_noise = self.jacobian(subject, "eps/x")
        size = (to_noise.shape_out[-2], to_noise.shape_out[-1])
        weights = {region: F.adaptive_avg_pool2d(mask.float()[None], size)[0] for region, mask in subject.masks.items()}
        first = first_singular(to_noise, weights, self.settings)
        operator = self.jacobian(subject, "x0/x")
        edits = measured(operator, first.vectors, subject.masks, self.limit, first.evidence)
        charge(self.cost, to_noise)
        charge(self.cost, operator)
        return {**edits, **first.refused}
