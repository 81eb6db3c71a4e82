"""NoiseCLR (Dalva & Yanardag 2024): directions learned without labels by a contrastive loss on changes of the noise.

What a direction changes in the noise prediction should be alike over images, and unlike what other directions change.
The paper learns word embeddings of a text-to-image model; an unconditional model has no words, so here the directions
are vectors of h-space. Learning knows no region: `find` looks afterwards which of them changes a region most locally.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch.nn.functional import normalize

from pipeline.errors import InputError
from pipeline.methods.contract import About, Found, Reader, Refused, Settings, Subject, guess_from_gain
from pipeline.methods.directions import HMethod
from pipeline.models.contract import Denoiser
from pipeline.strengths import VISIBLE_RMS


@dataclass(frozen=True)
class NoiseClrSettings(Settings):
    """How directions are learned.

    `directions`: how many, K. Each of `learning_steps` steps takes `batch` of `learning_images` images at one timestep,
    and `drawn` of the directions. `temperature` is the loss's. `learning_rate` is Adam's, on entries that begin with
    variance 1: most of h-space changes next to nothing, and a small rate would leave that part of a direction as it
    began. While learning, a direction has `radius` times the norm of h. `levels`: fractions of T, (high, low), between
    which timesteps are drawn; None is the window, or all the way down from the timestep.
    """

    directions: int = 32
    learning_steps: int = 300
    batch: int = 4
    drawn: int = 8
    learning_images: int = 100
    temperature: float = 0.5
    learning_rate: float = 1.0
    radius: float = 0.1
    levels: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, low, value, high in (
            ("directions", 2, self.directions, None),
            ("drawn", 2, self.drawn, self.directions),
            ("learning_images", 2, self.learning_images, None),
            ("batch", 2, self.batch, self.learning_images),
            ("learning_steps", 1, self.learning_steps, None),
        ):
            if value < low or (high is not None and value > high):
                raise InputError(name, value, f"{low} or more" if high is None else f"a number from {low} to {high}")
        for name, positive in (
            ("temperature", self.temperature), ("learning_rate", self.learning_rate), ("radius", self.radius),
        ):  # fmt: skip
            if not (math.isfinite(positive) and positive > 0):
                raise InputError(name, positive, "a finite number above 0")
        if self.levels is not None and not 0.0 <= self.levels[1] <= self.levels[0] <= 1.0:
            raise InputError("levels", self.levels, "fractions of T in [0, 1], the high one first")

    @property
    def span(self) -> tuple[float, float]:
        """`levels` as they are used."""
        return self.levels or self.window or (self.timestep, 0.0)

    def lesson(self) -> dict[str, Any]:
        """No image is inverted."""
        names = (
            "directions", "learning_steps", "batch", "drawn", "learning_images", "temperature", "learning_rate",
            "radius", "seed",
        )  # fmt: skip
        return {**{name: getattr(self, name) for name in names}, "levels": self.span}


class NoiseClr(HMethod):
    """K directions of h-space, learned once from images without labels; each is constant over images and timesteps."""

    name = "noise-clr"
    about = About(
        title="NoiseCLR",
        paper="Dalva & Yanardag 2024",
        space="h",
        localised=False,
        deviations=(
            "directions are vectors of h-space, added to the bottleneck, where the paper learns word embeddings of a"
            " text-to-image model: an unconditional model has no words",
            "their norm is fixed while learning and only the unit vector is kept: it is the editing strength that"
            " decides how far an edit goes; the paper's embeddings are of any norm, and classifier-free guidance"
            " decides",
            "every direction drawn in a step is compared with all others drawn, and the losses are averaged: the"
            " paper compares a single one with the others drawn, which costs as many network passes",
            "Adam without weight decay, as the norm is fixed, at a learning rate for entries of variance 1; fewer"
            " directions, steps and images per step unless the settings say the paper's",
            "noise levels are those of the edit, where the paper draws from all of [0, T)",
            "an edit is DDIM with the direction added to h from an inverted image, at a strength searched for; the"
            " paper edits with classifier-free guidance towards the embedding",
            "the edit of a region is chosen by its mask: of the directions that reach the visible change within the"
            " strength limit, to first order, that with the largest share of its effect inside; the paper's authors"
            " name directions by looking at them",
        ),
    )
    settings_class = NoiseClrSettings

    def __init__(self, denoiser: Denoiser, settings: NoiseClrSettings, reader: Reader | None = None) -> None:
        super().__init__(denoiser, settings, reader)
        self.settings: NoiseClrSettings = settings
        self._directions: torch.Tensor | None = None
        self._losses = torch.zeros(0)
        self._from: tuple[str, ...] | None = None

    @classmethod
    def grid(cls, settings: Settings) -> Sequence[Settings]:
        """Another temperature, another radius; last the paper's own, which cost 126,000 passes behind h and back."""
        own = cast(NoiseClrSettings, settings)
        paper = replace(
            own, directions=100, drawn=21, batch=6, learning_images=100, learning_steps=1000, temperature=0.5,
            levels=(1.0, 0.0),
        )  # fmt: skip
        return [own, replace(own, temperature=0.2), replace(own, radius=2 * own.radius), paper]

    @classmethod
    def quick(cls, settings: Settings) -> Settings:
        own = cast(NoiseClrSettings, settings)
        return replace(own, directions=6, drawn=4, batch=2, learning_images=4, learning_steps=3)

    @property
    def images(self) -> int:
        return self.settings.learning_images

    def learn(self, subjects: Sequence[Subject], progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Minimise `contrast` over K vectors of h-space; pictures are noised anew at each step, not inverted.

        Randomness: directions, images, timesteps and noise, all from `settings.seed`. Cost of a step, for each image of
        its batch: two passes up to h, and behind it one pass and one backward pass for each direction drawn.

        Raises:
            InputError: fewer subjects than `settings.learning_images`; ModelError: a model without a bottleneck.
        """
        own, shape = self.settings, self.denoiser.need_bottleneck()
        if len(subjects) < own.learning_images:
            raise InputError("subjects", len(subjects), f"{own.learning_images}, as learning_images says")
        chosen = subjects[: own.learning_images]
        names = tuple(subject.name for subject in chosen)
        if self._from == names:
            return
        clean = self._encoded([subject.picture for subject in chosen])
        generator = torch.Generator().manual_seed(own.seed)
        vectors = self._here(torch.randn((own.directions, *shape), generator=generator)).requires_grad_(True)
        optimiser = torch.optim.Adam([vectors], lr=own.learning_rate)
        norm, losses = own.radius * self._typical_norm(clean[: own.batch], generator), []
        for step in range(own.learning_steps):
            which = torch.randperm(own.directions, generator=generator)[: own.drawn]
            noisy, t = self._noised(clean[torch.randperm(len(clean), generator=generator)[: own.batch]], generator)
            loss = contrast(self._changes(noisy, t, norm * _unit(vectors[which])), own.temperature)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
            progress(step + 1, own.learning_steps)
        self._directions, self._losses, self._from = _unit(vectors.detach()), torch.tensor(losses), names

    def learned(self) -> dict[str, torch.Tensor]:
        """`directions` (K, *bottleneck_shape), unit vectors, and `losses`, one a step; float32 on the CPU."""
        if self._directions is None:
            return {}
        return {"directions": self._directions.float().cpu().contiguous(), "losses": self._losses}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        expected = (self.settings.directions, *self.denoiser.need_bottleneck())
        vectors = tensors.get("directions")
        if vectors is None or tuple(vectors.shape) != expected:
            found = "none" if vectors is None else f"shape {tuple(vectors.shape)}"
            raise InputError("learned: directions", found, f"shape {expected}", "Learn them again with these settings.")
        norms = vectors.flatten(1).double().norm(dim=1)
        if not torch.allclose(norms, torch.ones_like(norms), atol=1e-3):
            raise InputError("learned: directions", "vectors of other norms", "unit vectors", "Learn them again.")
        self._directions, self._from = self._here(vectors), None
        self._losses = tensors.get("losses", torch.zeros(0))

    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """Of the K, the most local one for each region that can be seen at all; cost: K JVPs, shared by all regions.

        Raises:
            InputError: nothing has been learned yet.
        """
        if self._directions is None:
            raise InputError("directions", "none", "learned ones", "Call learn, or restore what was learned.")
        operator = self.jacobian(subject, "x0/h")
        effects = operator.matvec(self._directions)
        self.cost.jvp += len(effects)
        return {region: self._best(region, mask, effects) for region, mask in subject.masks.items()}

    def _best(self, region: str, mask: torch.Tensor, effects: torch.Tensor) -> Found | Refused:
        """The direction with the largest ||M J d|| / ||J d||, of those that need no more than the largest strength."""
        inside = mask.to(effects)
        gains = (effects * inside).flatten(1).norm(dim=1)
        leakages = (effects * (1 - inside)).flatten(1).norm(dim=1)
        shares = gains / torch.hypot(gains, leakages).clamp(min=1e-12)
        if not bool((gains > 0).any()):
            return Refused(region, "no learned direction changes this region")
        enough = VISIBLE_RMS * math.sqrt(float(inside.sum()) * effects.shape[1]) / self.limit
        seen = gains >= enough
        best = int((torch.where(seen, shares, -1.0) if bool(seen.any()) else shares).argmax())
        gain, leakage, share = (float(figures[best]) for figures in (gains, leakages, shares))
        evidence = {"gain": gain, "leakage": leakage, "share": share}
        guess = guess_from_gain(gain, mask, effects.shape[1], self.limit)
        return Found(region, guess, cast(torch.Tensor, self._directions)[best], best, evidence)

    def _here(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device=self.denoiser.device, dtype=self.denoiser.dtype)

    @torch.no_grad()
    def _encoded(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """x0 (N, *x_shape) of pictures (C, H, W), one at a time: an autoencoder is larger than its latents."""
        return torch.cat([self.denoiser.encode(self._here(picture)[None]) for picture in pictures])

    def _levels(self) -> tuple[int, int]:
        """(high, low) timestep indices, both drawn."""
        total = self.denoiser.info.train_timesteps
        high, low = self.settings.span
        return min(round(high * total), total - 1), min(round(low * total), total - 1)

    def _noised(self, clean: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, int]:
        """x_t (B, *x_shape) of x0 at one timestep drawn from the levels."""
        high, low = self._levels()
        t = int(torch.randint(low, high + 1, (1,), generator=generator))
        alpha, sigma = self.denoiser.alpha_sigma(t)
        return alpha * clean + sigma * self._here(torch.randn(clean.shape, generator=generator)), t

    @torch.no_grad()
    def _typical_norm(self, clean: torch.Tensor, generator: torch.Generator) -> float:
        """Mean ||h|| of a few images at one drawn timestep."""
        noisy, t = self._noised(clean, generator)
        return float(self.denoiser.bottleneck(noisy, t).flatten(1).norm(dim=1).mean())

    def _changes(self, noisy: torch.Tensor, t: int, shifts: torch.Tensor) -> torch.Tensor:
        """eps(x_t, t; h + d) - eps(x_t, t) of B images and D shifts, (B, D, n); differentiable in the shifts."""
        changes = []
        for image in noisy.unsqueeze(1):
            with torch.no_grad():
                h = self.denoiser.bottleneck(image, t)
                noise = self.denoiser.noise_from_bottleneck(image, t)
                plain = noise(h)
            changes.append((noise(h + shifts) - plain).flatten(1))
        self.cost.backward += len(noisy) * len(shifts)
        return torch.stack(changes)


def contrast(changes: torch.Tensor, temperature: float) -> torch.Tensor:
    """The contrastive loss of changes (B, D, n) by D directions on B images, a scalar; as the released code has it.

    For each direction, -log of the mean of exp(cosine / temperature) over pairs of images under this direction, over
    the same mean over pairs of this direction with another on one image. The mean over directions; 0 means no better
    than chance.
    """
    images, directions, _ = changes.shape
    unit = normalize(changes, dim=2)
    alike = (torch.einsum("adn,bdn->dab", unit, unit) / temperature).exp()
    apart = (torch.einsum("adn,aen->dea", unit, unit) / temperature).exp()
    pairs = ~torch.eye(images, dtype=torch.bool, device=changes.device)
    others = ~torch.eye(directions, dtype=torch.bool, device=changes.device)
    attracted = (alike * pairs).sum((1, 2)) / pairs.sum()
    repelled = (apart * others[..., None]).sum((1, 2)) / (images * (directions - 1))
    return (repelled.log() - attracted.log()).mean()


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (k, ...) over their norms."""
    return vectors / vectors.flatten(1).norm(dim=1).view(-1, *[1] * (vectors.ndim - 1))
