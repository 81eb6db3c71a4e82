"""T-LOCO Edit, text-supervised: LOCO's local direction towards another prompt, for models that take text.

Chen, Zhang, Guo, Lu, Wang, Qu 2024, "Exploring Low-Dimensional Subspaces in Diffusion Models for Controllable Image
Editing". With an original prompt o and an edited one e: d = M (f_e(x_t) - f_o(x_t)), v = J_e^T d, projected onto the
null space of (1 - M) J_o as LOCO's directions are; x_t + lambda v is denoised under o.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from pipeline.directions import MINIMAL_KEPT_SHARE, null_space_projection
from pipeline.errors import InputError, ModelError
from pipeline.jacobian import JacobianOperator, jacobian
from pipeline.methods.contract import About, Found, Reader, Refused, Settings, Subject
from pipeline.methods.directions import XMethod, measured
from pipeline.methods.guidance import Goal
from pipeline.methods.singular import Picked, charge, varied
from pipeline.metrics import rms_inside
from pipeline.mining import NULL_SPACE_TOLERANCE, check_masks
from pipeline.models.contract import Denoiser
from pipeline.models.prompted import PromptedDenoiser, guided, networks
from pipeline.svd import masked_svds

LEAST_DIFFERENCE = 1e-3  # RMS of pixels in [-1, 1], an eighth of a grey level: below it a difference is rounding


@dataclass(frozen=True)
class TLocoSettings(Settings):
    """Prompts and their guidance; the defaults are those of the authors' scripts for Stable Diffusion.

    `goals`: what a region shows, `source`, and what it is to show, `target`, as prompts; the first of a region counts.
    `guidance`: scale of classifier-free guidance, 1 being none. `edit_guidance`: the edited prompt guides beside the
    original one at this scale, as in those scripts, which have 4; None: it stands in its place. `null_rank`: of
    everything else; 0 leaves directions as they are.
    """

    timestep: float = 0.7
    goals: tuple[Goal, ...] = ()
    guidance: float = 7.5
    edit_guidance: float | None = None
    null_rank: int = 5

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "goals": [asdict(goal) for goal in self.goals]}


class TLoco(XMethod):
    """One direction a region, towards its edited prompt for positive strengths.

    Strength 0 is the reconstruction under the region's original prompt, so the reference depends on the region.
    """

    name = "t-loco"
    about = About(
        title="T-LOCO Edit",
        paper="Chen et al. 2024",
        space="x",
        supervision="prompts",
        one_step=True,
        deviations=(
            "the null space by a block search that stops at a proven residual, not by a number of power iterations",
            "x_t comes from inverting a picture without words or guidance; the paper's pictures are generated from"
            " noise under the original prompt, so its reconstructions are exact",
            "the edited prompt stands in the original one's place unless `edit_guidance` is set; the scripts for Stable"
            " Diffusion let it guide beside it",
            "a region in which the prompts make no difference, or a vector of which the null space leaves under a"
            " twentieth, is refused",
        ),
    )
    settings_class = TLocoSettings
    settings: TLocoSettings
    reference_by_region: ClassVar[bool] = True
    told = (*XMethod.told, "null_rank")

    def __init__(self, denoiser: Denoiser, settings: Settings, reader: Reader | None = None) -> None:
        """Raises ModelError for a model that takes no text."""
        super().__init__(denoiser, settings, reader)
        if not isinstance(denoiser, PromptedDenoiser):
            raise ModelError("denoiser", f"{denoiser.info.family}, which takes no text", "a model that takes prompts")
        self._model = denoiser
        self._goals = {goal.region: goal for goal in reversed(self.settings.goals)}
        self._originals: dict[str, Denoiser] = {}

    @classmethod
    def grid(cls, settings: Settings) -> Sequence[Settings]:
        """The scripts' timestep and null rank; no guidance; the edited prompt beside the original one."""
        return varied(settings, {"timestep": 0.7, "null_rank": 5}, {"guidance": 1.0}, {"edit_guidance": 4.0})

    @torch.no_grad()
    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """The direction of every region that has two prompts; regions without any are left out.

        Cost: for each original prompt one SVD of its regions' complements together, and one VJP and one JVP a region.
        A product counts once for every prompt that guidance mixes, no words included: as often as the network runs.
        """
        check_masks(subject.masks, self.denoiser.info.image_shape[1:])
        found: dict[str, Found | Refused] = {}
        goals: dict[str, list[Goal]] = {}
        told = [self._goals[region] for region in subject.masks if region in self._goals]
        for goal in told:
            region = goal.region
            if not goal.target:
                found[region] = Refused(region, "no prompt says what it is to show")
            elif goal.source == goal.target:
                found[region] = Refused(region, f"the prompts make no difference: both are {goal.source!r}")
            else:
                goals.setdefault(goal.source, []).append(goal)
        for source, own in goals.items():
            found |= self._towards(source, own, subject)
        return {goal.region: found[goal.region] for goal in told}

    def apply(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> torch.Tensor:
        """As `Method.apply`, under each region's original prompt. Cost: `settings.steps` predictions an edit.

        Raises:
            InputError: a region without prompts, or counts that differ.
        """
        if not len(edits) == len(subjects) == len(strengths):
            raise InputError("strengths", (len(edits), len(subjects), len(strengths)), "one of each for each edit")
        places: dict[str, list[int]] = {}
        for i, edit in enumerate(edits):
            if edit.region not in self._goals:
                raise InputError("goals", f"none for {edit.region}", "two prompts for each region to be edited")
            places.setdefault(self._goals[edit.region].source, []).append(i)
        pictures: dict[int, torch.Tensor] = {}
        for source, own in places.items():
            some = [edits[i] for i in own], [subjects[i] for i in own], strengths[own]
            pictures.update(zip(own, self._decoded(self._original(source), *some), strict=True))
        return torch.stack([pictures[i] for i in range(len(edits))])

    def _original(self, source: str) -> Denoiser:
        """The model under an original prompt, guided."""
        if source not in self._originals:
            self._originals[source] = guided(self._model, {source: self.settings.guidance})
        return self._originals[source]

    def _edited(self, goal: Goal) -> Denoiser:
        """The model under an edited prompt, guided."""
        beside = self.settings.edit_guidance
        if beside is None:
            return guided(self._model, {goal.target: self.settings.guidance})
        return guided(self._model, {goal.source: self.settings.guidance, goal.target: beside})

    def _towards(self, source: str, goals: Sequence[Goal], subject: Subject) -> dict[str, Found | Refused]:
        """The edits of regions that share an original prompt."""
        original = self._original(source)
        operator = jacobian(original, subject.x_t, self.timestep, "x0/x")
        picked = Picked({}, {}, {})
        for goal in goals:
            self._pull_back(goal, subject, operator.value, picked)
        self._project(operator, subject.masks, picked)
        edits = measured(operator, picked.vectors, subject.masks, self.limit, picked.evidence)
        self._charge(operator, original)
        return {**edits, **picked.refused}

    def _pull_back(self, goal: Goal, subject: Subject, before: torch.Tensor, picked: Picked) -> None:
        """J_e^T M (f_e - f_o), not normalised, into `picked`; `before` is f_o (C, H, W)."""
        region, mask = goal.region, subject.masks[goal.region].to(before.device)
        edited = self._edited(goal)
        operator = jacobian(edited, subject.x_t, self.timestep, "x0/x")
        difference = (operator.value - before) * mask
        size = float(rms_inside(difference[None], mask)[0])
        if not size >= LEAST_DIFFERENCE:
            reason = f"the prompts make no difference inside the region (RMS {size:.1g}, under {LEAST_DIFFERENCE:g})"
            picked.refused[region] = Refused(region, reason)
            return
        pulled = operator.rmatvec(difference[None])[0]
        self._charge(operator, edited)
        if not float(pulled.norm()) > torch.finfo(pulled.dtype).eps * float(difference.norm()):
            picked.refused[region] = Refused(region, "nothing changes the region towards its prompt to first order")
            return
        picked.vectors[region], picked.evidence[region] = pulled, {"difference": size}

    def _project(self, operator: JacobianOperator, masks: Mapping[str, torch.Tensor], picked: Picked) -> None:
        """Unit vectors in the null spaces of everything else, in place of those in `picked`."""
        if not picked.vectors:
            return
        rests = {region: ~masks[region] for region in picked.vectors}
        most = torch.Size(operator.shape_in).numel()
        sizes = {region: min(most, int(rest.sum()) * operator.shape_out[0]) for region, rest in rests.items()}
        svds = {}
        if self.settings.null_rank > 0:
            svds = masked_svds(
                operator,
                rests,
                {region: min(self.settings.null_rank, size) for region, size in sizes.items()},
                generator=torch.Generator().manual_seed(self.settings.seed),
                tolerance=NULL_SPACE_TOLERANCE * self.settings.tolerance,
            )
        for region, pulled in list(picked.vectors.items()):
            svd = svds.get(region)
            null = pulled[None][:0] if svd is None else svd.v[~svd.null]
            vector, kept = null_space_projection(pulled, null)
            if float(kept) < MINIMAL_KEPT_SHARE:
                reason = f"kept share {float(kept):.3f} is under {MINIMAL_KEPT_SHARE}"
                picked.refused[region] = Refused(region, reason)
                del picked.vectors[region]
                continue
            picked.vectors[region] = vector
            picked.evidence[region]["kept_share"] = float(kept)

    def _charge(self, operator: JacobianOperator, denoiser: Denoiser) -> None:
        """What an operator has spent, in products of the network."""
        for _ in range(networks(denoiser)):
            charge(self.cost, operator)
