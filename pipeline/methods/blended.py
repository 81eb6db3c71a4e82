"""Blended Diffusion (Avrahami et al. 2022): guidance towards a goal inside a mask, the noised source outside it.

The picture is noised and sampled down again. At every step the sample is guided by the gradient of what a reader says
of the predicted picture, and all outside the mask is replaced by the source with the noise of the next timestep.
No direction is found and there is nothing to transfer: every edit is sampled anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch.nn.functional import adaptive_max_pool2d

from pipeline.errors import InputError
from pipeline.inversion import timestep_grid
from pipeline.methods.contract import About, Found, Method, Reader, Refused, Settings, Subject
from pipeline.methods.guidance import Goal
from pipeline.methods.singular import varied
from pipeline.metrics import rms_inside
from pipeline.models.contract import Denoiser
from pipeline.strengths import VISIBLE_RMS

_PROBES = 2  # guided samplings that `guessed` spends on a strength
_BATCH = 32  # edits sampled together, at most


@dataclass(frozen=True)
class BlendedSettings(Settings):
    """`timestep`: from where, as a fraction of T, the noised picture is sampled down, in `steps` steps.

    `goals`: what the reader is to find in a region, by its number of the reading; the first goal of a region counts.
    """

    timestep: float = 0.5
    steps: int = 25
    goals: tuple[Goal, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "goals": [asdict(goal) for goal in self.goals]}


@dataclass(frozen=True)
class _Batch:
    """n edits to be sampled together: x0 (n, *x_shape), pictures (n, C, H, W), bool masks (n, 1, H, W) of pictures and
    of x, each goal's reading, and the signed guidance scale (n, 1, 1, 1), 0 without guidance."""

    clean: torch.Tensor
    pictures: torch.Tensor
    masks: torch.Tensor
    x_masks: torch.Tensor
    readings: torch.Tensor
    scales: torch.Tensor

    def split(self, size: int) -> Iterator[_Batch]:
        """The same edits in parts of `size`."""
        parts = (getattr(self, part.name).split(size) for part in fields(self))
        return (_Batch(*own) for own in zip(*parts, strict=True))


class BlendedDiffusion(Method):
    """Guided sampling inside a region's mask. The strength is the guidance scale; its sign turns the goal round.

    Strength 0 is the same sampling under the same noise without guidance: inside the mask another picture of what fits
    there, outside it the source itself. So the reference depends on the region, as `reference_by_region` says.

    The reader may be any classifier: a column of its output is raised, whatever it is in units of.
    """

    name = "blended"
    about = About(
        title="Blended Diffusion",
        paper="Avrahami et al. 2022",
        space="eps",
        supervision="attribute reader or CLIP",
        transfers=False,
        outside="it pastes the source's own pixels outside the mask",
        deviations=(
            "a reading of the attribute reader (or of a classifier in its place) guides, where the paper minimises"
            " CLIP's distance to a caption; where the same reader also judges edits, it judges its own",
            "the reader sees the predicted region pasted into the source, as it reads whole pictures, clamped to their"
            " range; CLIP sees the region alone and a range loss is added",
            "no averaging over projective augmentations: a reading depends on where things are",
            "no background loss, which the released code leaves off too, since the background is replaced",
            "one sample an edit; the paper draws many and shows those that CLIP ranks highest",
            "the gradient is taken through the network, in x_t, as the released code does",
            "the variance of a step is the DDPM posterior's, not a learned one, and steps shrink towards the clean"
            " picture",
            "one noise field a step serves region and background, which share no pixel, and all edits of a batch",
            "of latent models, latents are blended, by the mask widened to whole cells, and the decoded picture again",
        ),
    )
    settings_class = BlendedSettings
    limit = 1e5
    reference_by_region: ClassVar[bool] = True
    told = ("inversion_steps", "seed", "goals")

    def __init__(self, denoiser: Denoiser, settings: BlendedSettings, reader: Reader | None = None) -> None:
        super().__init__(denoiser, settings, reader)
        self.settings: BlendedSettings = settings
        self._goals = {goal.region: goal for goal in reversed(settings.goals)}

    @classmethod
    def grid(cls, settings: Settings) -> Sequence[Settings]:
        """Timesteps to start from; the paper's is 0.75 T, at 75 of 100 steps."""
        return varied(settings, *({"timestep": t} for t in (0.3, 0.4, 0.6)), {"timestep": 0.75, "steps": 75})

    @classmethod
    def quick(cls, settings: Settings) -> Settings:
        return replace(settings, steps=10)

    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """The goal of every region that has one; there is nothing to be found. Regions without a goal are left out.

        Raises:
            InputError: no reader.
        """
        self._need_reader()
        own = {region: mask for region, mask in subject.masks.items() if region in self._goals}
        return {
            region: Found(region, 1.0) if bool(mask.any()) else Refused(region, "its mask is empty")
            for region, mask in own.items()
        }

    def guessed(self, edits: Mapping[str, Found | Refused], subject: Subject) -> Mapping[str, Found | Refused]:
        """The same with a guess of the guidance scale that makes a visible change.

        No randomness but the sampling's. Cost: one sampling without and two with guidance for each edit; the guess is
        measured by them, as a gradient's size says little about what is left of it at the end.
        """
        return {**edits, **self._guessed([edit for edit in edits.values() if isinstance(edit, Found)], subject)}

    def apply(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> torch.Tensor:
        """As `Method.apply`. Cost: `settings.steps` passes an edit, and as many backward unless all strengths are 0.

        Raises:
            InputError: no reader, a region without a goal or mask, or counts that differ.
        """
        guided = bool((strengths != 0).any())
        parts = self._batch(edits, subjects, strengths).split(self.at_once(_BATCH, backward=guided))
        return torch.cat([self._sampled(part) for part in parts])

    def _guessed(self, edits: Sequence[Found], subject: Subject) -> dict[str, Found | Refused]:
        """Each edit with the guidance scale at which the change inside its mask is about VISIBLE_RMS."""
        if not edits:
            return {}
        subjects, masks = [subject] * len(edits), torch.stack([subject.masks[edit.region] for edit in edits])
        reference = self.apply(edits, subjects, torch.zeros(len(edits)))
        guesses, seen = torch.ones(len(edits)), torch.zeros(len(edits))
        for probe in range(_PROBES):
            if probe:
                guesses = (guesses * (VISIBLE_RMS / seen).clamp(1e-4, 1e4)).clamp(max=self.limit)
            change = rms_inside(self.apply(edits, subjects, guesses) - reference, masks.to(reference.device))
            seen = change.nan_to_num(nan=math.inf).cpu().float()
        guesses, probed = (guesses * (VISIBLE_RMS / seen).clamp(1e-4, 1e4)).clamp(max=self.limit), guesses
        return {
            edit.region: replace(edit, guess=guess, evidence={"probed_scale": scale, "probed_rms": rms})
            if rms > 0
            else Refused(edit.region, "guidance towards its goal changes nothing")
            for edit, guess, scale, rms in zip(edits, guesses.tolist(), probed.tolist(), seen.tolist(), strict=True)
        }

    def _need_reader(self) -> Reader:
        if self.reader is None:
            raise InputError("reader", None, "an attribute reader or classifier that can be differentiated")
        return self.reader

    @torch.no_grad()
    def _batch(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> _Batch:
        if not len(edits) == len(subjects) == len(strengths):
            raise InputError("strengths", (len(edits), len(subjects), len(strengths)), "one of each for each edit")
        goals = [self._goals.get(edit.region) for edit in edits]
        if None in goals:
            raise InputError("goals", f"none for {edits[goals.index(None)].region}", "one for each region to be edited")
        known, device, dtype = cast(list[Goal], goals), self.denoiser.device, self.denoiser.dtype
        pictures = torch.stack([subject.picture for subject in subjects]).to(device, dtype)
        clean = self.denoiser.encode(pictures)
        masks = [subject.masks[edit.region] for edit, subject in zip(edits, subjects, strict=True)]
        masked = torch.stack(masks).to(device, torch.bool)[:, None]
        signs = torch.tensor([goal.sign for goal in known])
        size = (clean.shape[-2], clean.shape[-1])
        return _Batch(
            clean=clean,
            pictures=pictures,
            masks=masked,
            x_masks=masked if tuple(masked.shape[2:]) == size else adaptive_max_pool2d(masked.to(dtype), size) > 0,
            readings=torch.tensor([goal.index for goal in known], device=device),
            scales=(strengths.cpu() * signs).to(device, dtype).view(-1, 1, 1, 1),
        )

    @torch.no_grad()
    def _sampled(self, batch: _Batch) -> torch.Tensor:
        """Pictures (n, C, H, W): algorithm 1 of the paper, from the noised source at the method's timestep."""
        generator = torch.Generator().manual_seed(self.settings.seed)

        def noise() -> torch.Tensor:
            drawn = torch.randn((1, *batch.clean.shape[1:]), generator=generator)
            return drawn.to(batch.clean)

        alpha, sigma = self.denoiser.alpha_sigma(self.timestep)
        x = alpha * batch.clean + sigma * noise()
        for at, to in pairwise(reversed(timestep_grid(self.timestep, self.settings.steps))):
            (alpha, sigma), (alpha_to, sigma_to) = self.denoiser.alpha_sigma(at), self.denoiser.alpha_sigma(to)
            clean, gradient = self._guided(x, at, batch)
            # Of x_to given x_at and x0, eq. 7 of Ho et al. 2020, in alpha and sigma alone.
            variance = (sigma_to / sigma) ** 2 * max(0.0, sigma**2 - (alpha / alpha_to * sigma_to) ** 2)
            rest = math.sqrt(max(0.0, sigma_to**2 - variance)) / sigma
            mean = alpha_to * clean + rest * (x - alpha * clean) + batch.scales * variance * gradient
            drawn = noise()
            background = alpha_to * batch.clean + sigma_to * drawn
            x = torch.where(batch.x_masks, mean + math.sqrt(variance) * drawn, background)
        return torch.where(batch.masks, self.denoiser.decode(x), batch.pictures)

    def _guided(self, x: torch.Tensor, t: int, batch: _Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted x0, and the gradient in x_t of the goals' readings of it, both (n, *x_shape)."""
        if not bool((batch.scales != 0).any()):
            return self.denoiser.posterior_mean(x, t), torch.zeros_like(x)
        reader, rows = self._need_reader(), torch.arange(len(x), device=x.device)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            clean = self.denoiser.posterior_mean(leaf, t)
            pasted = torch.where(batch.masks, self.denoiser.decode(clean), batch.pictures)
            readings = reader(pasted.clamp(-1.0, 1.0))
            if int(batch.readings.max()) >= readings.shape[1]:
                raise InputError("goals: index", int(batch.readings.max()), f"one of {readings.shape[1]} readings")
            gradient = torch.autograd.grad(readings[rows, batch.readings].sum(), leaf)[0]
        self.cost.backward += len(x)
        return clean.detach(), gradient
