"""h-space directions of regions: individual components of JIVE, and the masked singular vectors they come from.

Kouzelis, Plitsis, Nicolaou, Panagakis 2024, "Enabling Local Editing in Diffusion Models by Joint and Individual
Component Analysis", algorithm 1; the walk is `pipeline.mining.mine_components`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline import mined
from pipeline.jive_ranks import Rule
from pipeline.methods.contract import About, Found, Refused, Settings, Subject
from pipeline.methods.directions import PICTURE, STRAIGHT, HMethod, measured
from pipeline.methods.singular import charge, first_of_each, first_singular, roomy, varied
from pipeline.mining import check_masks, mine_components, outside, room

_SVD = "singular vectors by a block search that stops at a proven residual, not by Jacobian subspace iteration"


@dataclass(frozen=True)
class IndividualSettings(Settings):
    """`rank` of every block's SVD, ranks of JIVE, and whether blocks are scaled; see `pipeline.mined.JiveSettings`.

    Defaults are those chosen for the built-in model.
    """

    rank: int = 16
    joint_rank: int | Literal["auto"] = 32
    individual_rank: int | Literal["auto"] = 2
    rank_rule: Rule = "permutation"
    scale: bool = True
    orthogonal_individuals: bool = False


class Individual(HMethod):
    """The first individual component of every region; everything outside the regions is one more block."""

    name = "individual"
    about = About(
        title="joint and individual components",
        paper="Kouzelis et al. 2024",
        space="h",
        deviations=(
            PICTURE,
            STRAIGHT,
            _SVD,
            "everything outside the regions is one more block",
            "individual row spaces are not made orthogonal to each other unless `orthogonal_individuals` says so;"
            " r.jive makes them so by default",
            "where few regions leave no room for the joint rank, it is lowered to what fits",
        ),
    )

    settings_class = IndividualSettings
    settings: IndividualSettings
    told = (
        *HMethod.told, "rank", "joint_rank", "individual_rank", "rank_rule", "scale", "orthogonal_individuals",
    )  # fmt: skip

    @classmethod
    def grid(cls, settings: Settings) -> Sequence[Settings]:
        """High joint and low individual ranks, as the paper advises, at two timesteps; and the opposite."""
        return varied(
            settings,
            {"timestep": 0.6},
            {"rank": 20, "joint_rank": 40, "individual_rank": 2},
            {"timestep": 0.6, "rank": 20, "joint_rank": 40, "individual_rank": 2},
            {"rank": 20, "joint_rank": 30, "individual_rank": 3},
            {"rank": 20, "joint_rank": 5, "individual_rank": 5},
        )

    @torch.no_grad()
    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """Cost: the SVDs of all blocks, and one JVP a region."""
        check_masks(subject.masks, self.denoiser.info.image_shape[1:])
        self.denoiser.need_bottleneck()
        own = self.settings
        masks, refused = roomy(subject.masks, self.denoiser.info.image_shape[0], own.rank)
        if not masks:
            return refused
        operator = self.jacobian(subject, "x0/h")
        settings = mined.MiningSettings(self.timestep, tolerance=own.tolerance, seed=own.seed)
        joint, individual = own.joint_rank, own.individual_rank
        if joint != "auto" and individual != "auto":
            rest = outside(masks)
            more = 0 if rest is None else min(own.rank, room(operator, rest))
            joint = min(joint, len(masks) * own.rank + more - individual)
        ranks = mined.JiveSettings(
            own.rank, joint, individual, own.rank_rule, own.scale, own.orthogonal_individuals
        )  # fmt: skip
        found = mine_components(operator, masks, settings, ranks)
        first = first_of_each([d for d in found if d.kind == "individual"], masks, "no individual component")
        edits = measured(operator, first.vectors, masks, self.limit, first.evidence)
        charge(self.cost, operator)
        return {**edits, **first.refused, **refused}


class HMasked(HMethod):
    """The first right singular vector of every region's masked h-space Jacobian: what JIVE is compared with."""

    name = "h-masked"
    about = About(
        title="masked singular vectors in h-space",
        paper="Kouzelis et al. 2024, without components",
        space="h",
        deviations=(PICTURE, STRAIGHT, _SVD),
    )

    @classmethod
    def grid(cls, settings: Settings) -> Sequence[Settings]:
        return varied(settings, {"timestep": 0.3}, {"timestep": 0.5}, {"timestep": 0.6})

    @torch.no_grad()
    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """Cost: one SVD of rank 1 a region, which share their products, and one JVP a region."""
        check_masks(subject.masks, self.denoiser.info.image_shape[1:])
        operator = self.jacobian(subject, "x0/h")
        first = first_singular(operator, subject.masks, self.settings)
        edits = measured(operator, first.vectors, subject.masks, self.limit, first.evidence)
        charge(self.cost, operator)
        return {**edits, **first.refused}
