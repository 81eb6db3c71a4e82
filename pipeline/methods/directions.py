"""Methods whose edit is a vector: added once to x_t, or to the bottleneck at every step of a window.

What they differ in is where the vector comes from; `apply` is the same for all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from pipeline.editing import DecodeSettings, decode
from pipeline.errors import InputError
from pipeline.methods.contract import Found, Method, Refused, Subject, guess_from_gain
from pipeline.models.contract import Denoiser
from pipeline.operators import LinearOperator
from pipeline.registration import registered
from pipeline.strengths import STRENGTH_LIMIT

PICTURE = (
    "the Jacobian is that of the predicted picture: its singular vectors are those of the noise prediction's, but for"
    " latent models, where the decoder comes in between"
)
STRAIGHT = "pictures are inverted straight to the timestep of x_t; the authors' scripts invert to T and denoise to it"


class VectorMethod(Method):
    """A unit vector, which moves with its region where it was found for one: then it is bound to its pixels."""

    def moved(self, edit: Found, home: torch.Tensor, target: torch.Tensor) -> Found:
        if edit.vector is None or not self.about.localised:
            return edit
        return replace(edit, vector=registered(edit.vector, home, target))


class XMethod(VectorMethod):
    """A unit vector of x-space, added to x_t with its strength; then DDIM down. LOCO Edit, eq. 7."""

    limit = STRENGTH_LIMIT["x"]
    told = (*Method.told, "eta", "eta_share")

    @abstractmethod
    def find(self, subject: Subject) -> Mapping[str, Found | Refused]: ...

    def apply(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> torch.Tensor:
        return self._decoded(self.denoiser, edits, subjects, strengths)

    def _decoded(
        self, denoiser: Denoiser, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor
    ) -> torch.Tensor:
        """As `apply`, by any denoiser of the same x-space."""
        latents, shifts = _stacked(edits, subjects, strengths)
        return decode(denoiser, latents + shifts, self.timestep, _decoding(self))


class HMethod(VectorMethod):
    """A unit vector of h-space, added to the bottleneck at every step of the window. Kouzelis et al. 2024, 4.3."""

    limit = STRENGTH_LIMIT["h"]
    told = (*Method.told, "window", "convention", "eta", "eta_share")

    @abstractmethod
    def find(self, subject: Subject) -> Mapping[str, Found | Refused]: ...

    def apply(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> torch.Tensor:
        latents, shifts = _stacked(edits, subjects, strengths)
        return decode(self.denoiser, latents, self.timestep, _decoding(self), h_shift=shifts)


def _stacked(
    edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t (n, *x_shape) and what is added (n, *shape of the vectors)."""
    vectors = [edit.vector for edit in edits]
    if len(edits) != len(subjects) or len(strengths) != len(edits):
        given = (len(edits), len(subjects), len(strengths))
        raise InputError("edits, subjects, strengths", given, "as many of each")
    latents = torch.stack([subject.x_t for subject in subjects])
    stacked = torch.stack([vector for vector in vectors if vector is not None]).to(latents)
    return latents, stacked * strengths.to(latents).view(-1, *[1] * (stacked.ndim - 1))


def _decoding(method: Method) -> DecodeSettings:
    settings, total = method.settings, method.denoiser.info.train_timesteps
    window = None if settings.window is None else (round(settings.window[0] * total), round(settings.window[1] * total))
    return DecodeSettings(
        steps=settings.steps, h_window=window, convention=settings.convention, eta=settings.eta,
        eta_share=settings.eta_share, seed=settings.seed,
    )  # fmt: skip


def measured(
    operator: LinearOperator,
    vectors: Mapping[str, torch.Tensor],
    masks: Mapping[str, torch.Tensor],
    limit: float,
    evidence: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Found]:
    """Edits of unit vectors by region, with gain ||M J v||, leakage ||Mc J v|| and the strength that follows.

    `operator` is the Jacobian of the predicted picture in the vectors' space. Cost: one JVP a vector.
    """
    if not vectors:
        return {}
    effects = operator.matvec(torch.stack(list(vectors.values())))
    found = {}
    for (region, vector), effect in zip(vectors.items(), effects, strict=True):
        mask = masks[region].to(effect)
        gain, leakage = float((effect * mask).norm()), float((effect * (1 - mask)).norm())
        figures = {"gain": gain, "leakage": leakage, **(evidence or {}).get(region, {})}
        guess = guess_from_gain(gain, mask, effect.shape[0], limit)
        found[region] = Found(region, guess, vector, evidence=figures)
    return found
