"""Pullback: the direction in x_t that moves the bottleneck most.

Park, Kwon, Choi, Jo, Uh 2023, "Understanding the Latent Space of Diffusion Models through the Lens of Riemannian
Geometry": the metric of h-space, pulled back to x_t, has the right singular vectors of d h / d x_t as its basis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pipeline.methods.contract import About, Found, Refused, Settings, Subject
from pipeline.methods.directions import STRAIGHT, XMethod, measured
from pipeline.methods.singular import charge, most_inside, varied
from pipeline.mining import check_masks
from pipeline.svd import truncated_svd


@dataclass(frozen=True)
class PullbackSettings(Settings):
    """`rank` leading directions; each region takes the one whose effect on the predicted picture is most inside."""

    rank: int = 1


class Pullback(XMethod):
    """Global directions: h has no pixels to mask. With `rank` 1 all regions share the first one."""

    name = "pullback"
    about = About(
        title="Pullback",
        paper="Park et al. 2023",
        space="x",
        one_step=True,
        localised=False,
        through_h=True,
        deviations=(
            STRAIGHT,
            "one straight step; the paper shoots along a geodesic in small steps, its basis computed afresh at each",
            "no normalisation of x_t or of h after the step",
            "no guidance towards the edited noise prediction: x_t itself moves by the strength",
            "of several directions a region takes the one most inside it, where the paper has a person look",
        ),
    )

    settings_class = PullbackSettings
    settings: PullbackSettings

    @classmethod
    def grid(cls, settings: Settings) -> Sequence[Settings]:
        """The first direction or the best of ten, and timesteps, the paper's 0.6 T among them."""
        return varied(settings, {"rank": 10}, *({"timestep": t, "rank": k} for t in (0.6, 0.7) for k in (1, 10)))

    @torch.no_grad()
    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """Cost: one SVD of `rank` for all regions together, one JVP a direction and one a region."""
        check_masks(subject.masks, self.denoiser.info.image_shape[1:])
        to_h = self.jacobian(subject, "h/x")
        generator = torch.Generator().manual_seed(self.settings.seed)
        svd = truncated_svd(to_h, self.settings.rank, generator=generator, tolerance=self.settings.tolerance)
        operator = self.jacobian(subject, "x0/x")
        picked = most_inside(svd.v, operator.matvec(svd.v), subject.masks)
        for figures in picked.evidence.values():
            rank = int(figures["rank"])
            figures |= {"sigma": float(svd.sigma[rank]), "residual": float(svd.residuals[rank])}
        edits = measured(operator, picked.vectors, subject.masks, self.limit, picked.evidence)
        charge(self.cost, to_h)
        charge(self.cost, operator)
        return {**edits, **picked.refused}
