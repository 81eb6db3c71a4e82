"""LOCO Edit: a region's first singular direction in x_t, without what moves the rest of the picture.

Chen, Zhang, Guo, Lu, Wang, Qu 2024, "Exploring Low-Dimensional Subspaces in Diffusion Models for Controllable Image
Editing", algorithm 1; the walk is `pipeline.mining.mine_local`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from pipeline import mined
from pipeline.methods.contract import About, Found, Refused, Settings, Subject
from pipeline.methods.directions import STRAIGHT, XMethod, measured
from pipeline.methods.singular import charge, first_of_each, roomy, varied
from pipeline.mining import check_masks, mine_local

_ABOUT = About(
    title="LOCO Edit",
    paper="Chen et al. 2024",
    space="x",
    one_step=True,
    theory=True,
    deviations=(
        "singular vectors by a block search that stops at a proven residual, not by a number of power iterations",
        STRAIGHT,
        "steps are deterministic unless the recipe's `eta` says otherwise; the authors' scripts make the last fifth of"
        " them stochastic (eta = 1)",
        "a vector of which the null space leaves under a twentieth is refused, and the next one taken",
    ),
)


class _Local(XMethod):
    """The first local direction of every region for whatever LOCO settings a class gives."""

    @abstractmethod
    def _loco(self) -> mined.LocoSettings: ...

    @torch.no_grad()
    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """Cost: the SVDs of regions and complements, and one JVP a region."""
        check_masks(subject.masks, self.denoiser.info.image_shape[1:])
        loco = self._loco()
        masks, refused = roomy(subject.masks, self.denoiser.info.image_shape[0], loco.rank)
        if not masks:
            return refused
        operator = self.jacobian(subject, "x0/x")
        settings = mined.MiningSettings(self.timestep, tolerance=self.settings.tolerance, seed=self.settings.seed)
        reasons: dict[str, str] = {}
        found = mine_local(operator, masks, settings, loco, reasons)
        local = first_of_each([d for d in found if d.kind == "local"], masks, "nothing local is left")
        for region in local.refused:
            why = [reason for key, reason in reasons.items() if key.startswith(f"x/{region}/")]
            local.refused[region] = Refused(region, "; ".join(why) or "nothing changes the region to first order")
        edits = measured(operator, local.vectors, masks, self.limit, local.evidence)
        charge(self.cost, operator)
        return {**edits, **local.refused, **refused}


@dataclass(frozen=True)
class LocoSettings(Settings):
    """`rank` directions per region, `null_rank` of everything else; see `pipeline.mined.LocoSettings`."""

    rank: int = 2
    null_rank: int = 30
    variant: Literal["projected", "inside"] = "projected"


class Loco(_Local):
    """With null space. Of `rank` directions per region the first is used; the others stand in where it is refused."""

    name = "loco"
    about = _ABOUT
    told = (*XMethod.told, "rank", "null_rank", "variant")

    settings_class = LocoSettings
    settings: LocoSettings

    @classmethod
    def grid(cls, settings: Settings) -> Sequence[Settings]:
        """Around what small pictures need, and the papers' own: 0.6 T and 0.7 T with null ranks of 5 and 10."""
        return varied(
            settings,
            {"timestep": 0.35},
            {"timestep": 0.5},
            {"variant": "inside"},
            {"timestep": 0.6, "rank": 5, "null_rank": 5},
            {"timestep": 0.7, "rank": 5, "null_rank": 10},
        )

    def _loco(self) -> mined.LocoSettings:
        return mined.LocoSettings(self.settings.rank, self.settings.null_rank, self.settings.variant)


class LocoPlain(_Local):
    """Without null space: the first right singular vector of M J."""

    name = "loco-plain"
    about = replace(_ABOUT, title="LOCO Edit without null space", deviations=_ABOUT.deviations[:3])

    @classmethod
    def grid(cls, settings: Settings) -> Sequence[Settings]:
        """Timesteps, the paper's 0.6 T and 0.7 T among them."""
        return varied(settings, *({"timestep": t} for t in (0.3, 0.5, 0.6, 0.7)))

    def _loco(self) -> mined.LocoSettings:
        return mined.LocoSettings(rank=1, null_rank=0)
