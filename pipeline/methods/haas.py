"""Image-specific h-space directions of Haas et al. by their Jacobian subspace iteration, with and without a mask.

Haas, Huberman-Spiegelglas, Mulayoff, Grasshof, Brandt, Michaeli 2023, "Discovering Interpretable Directions in the
Semantic Latent Space of Diffusion Models". With a mask: as Kouzelis et al. 2024, appendix A, describe it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from pipeline.methods.contract import About, Found, Refused, Settings, Subject
from pipeline.methods.directions import PICTURE, STRAIGHT, HMethod, measured
from pipeline.methods.singular import Picked, charge, most_inside, varied
from pipeline.methods.subspace_iteration import ROUNDS, Iterated, subspace_iteration
from pipeline.mining import check_masks
from pipeline.operators import LinearOperator, Masked

_DEVIATIONS = (
    PICTURE,
    STRAIGHT,
    "directions of one timestep for all steps of the window, as Kouzelis et al. have them; the paper has some for each",
    "the whole block is iterated, as in the paper; its code iterates one vector after the other",
    "rounds end when vectors move no more but for their signs",
)


@dataclass(frozen=True)
class HaasSettings(Settings):
    """`rank` vectors are iterated together, for at most `rounds` rounds; the tolerance is not used."""

    rank: int = 10
    rounds: int = ROUNDS[1]


class _Iterating(HMethod):
    """What both share: their settings and the iteration."""

    settings_class = HaasSettings
    settings: HaasSettings

    @classmethod
    def grid(cls, settings: Settings) -> Sequence[Settings]:
        """Timesteps and ranks, the 3 vectors of the paper's code among them."""
        return varied(settings, {"rank": 3}, {"timestep": 0.3}, {"timestep": 0.6}, {"timestep": 0.6, "rank": 3})

    @classmethod
    def quick(cls, settings: Settings) -> Settings:
        return replace(cast(HaasSettings, settings), rank=2, rounds=3)

    def _iterate(self, operator: LinearOperator) -> Iterated:
        generator = torch.Generator().manual_seed(self.settings.seed)
        return subspace_iteration(operator, self.settings.rank, generator=generator, most=self.settings.rounds)


class Haas(_Iterating):
    """The leading directions of the whole picture; each region takes the one whose effect lies most inside it."""

    name = "haas"
    about = About(
        title="Jacobian directions in h-space",
        paper="Haas et al. 2023",
        space="h",
        localised=False,
        deviations=(*_DEVIATIONS, "a region takes the direction most inside it, where the paper has a person look"),
    )

    @torch.no_grad()
    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """Cost: 2 * `rank` products a round for all regions together, and one JVP a region."""
        check_masks(subject.masks, self.denoiser.info.image_shape[1:])
        operator = self.jacobian(subject, "x0/h")
        run = self._iterate(operator)
        picked = most_inside(run.v, run.images, subject.masks)
        for region, figures in picked.evidence.items():
            picked.evidence[region] = {**figures, **_figures(run, int(figures["rank"]))}
        edits = measured(operator, picked.vectors, subject.masks, self.limit, picked.evidence)
        charge(self.cost, operator)
        return {**edits, **picked.refused}


class HaasMasked(_Iterating):
    """The same iteration on every region's masked Jacobian; its first direction is used."""

    name = "haas-masked"
    about = About(
        title="masked Jacobian directions in h-space",
        paper="Haas et al. 2023, masked as in Kouzelis et al. 2024",
        space="h",
        deviations=_DEVIATIONS,
    )

    @torch.no_grad()
    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """Cost: 2 * `rank` products a round for each region, and one JVP a region."""
        check_masks(subject.masks, self.denoiser.info.image_shape[1:])
        operator = self.jacobian(subject, "x0/h")
        first = Picked({}, {}, {})
        for region, mask in subject.masks.items():
            run = self._iterate(Masked(operator, mask))
            if not float(run.sigma[0]) > 0:
                first.refused[region] = Refused(region, "nothing changes the region to first order")
                continue
            first.vectors[region], first.evidence[region] = run.v[0], _figures(run, 0)
        edits = measured(operator, first.vectors, subject.masks, self.limit, first.evidence)
        charge(self.cost, operator)
        return {**edits, **first.refused}


def _figures(run: Iterated, rank: int) -> dict[str, float]:
    return {
        "sigma": float(run.sigma[rank]),
        "residual": float(run.residuals[rank]),
        "rounds": float(run.rounds),
        "stopped": float(run.stopped),
    }
