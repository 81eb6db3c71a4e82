"""Global h-space directions: the principal components of many images' bottleneck activations.

Haas et al. 2023, section "Principal component analysis", after GANSpace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, cast

import torch

from pipeline.errors import InputError
from pipeline.inversion import sample, timestep_grid
from pipeline.methods.contract import About, Found, Refused, Settings, Subject
from pipeline.methods.directions import HMethod, measured
from pipeline.methods.singular import charge, most_inside, varied
from pipeline.mining import check_masks
from pipeline.svd import canonical_sign

_BATCH = 16  # images sent through the network together


@dataclass(frozen=True)
class HaasPCASettings(Settings):
    """`rank` leading components of the activations of `samples` images; the tolerance is not used.

    `at`: "t" takes h where x_t is; "window" at every step of the way down that lies in the window, each step's mean
    removed, or the first component would be time itself.
    """

    samples: int = 100
    rank: int = 20
    at: Literal["t", "window"] = "t"

    def lesson(self) -> dict[str, Any]:
        names = ["timestep", "inversion_steps", "samples", "rank", "at"]
        names += ["steps", "window"] if self.at == "window" else []
        return {name: getattr(self, name) for name in names}


class HaasPCA(HMethod):
    """Of the leading components each region takes the one whose effect on the image lies most inside it."""

    name = "haas-pca"
    about = About(
        title="principal components of h-space",
        paper="Haas et al. 2023",
        space="h",
        localised=False,
        deviations=(
            "inverted images instead of generated samples",
            "one vector for all steps of the window; the paper's holds a part for every step",
            "a region takes the component most inside it, where the paper has a person look",
        ),
    )

    settings_class = HaasPCASettings
    settings: HaasPCASettings

    @classmethod
    def grid(cls, settings: Settings) -> Sequence[Settings]:
        return varied(settings, {"at": "window"}, {"rank": 5}, {"timestep": 0.6}, {"timestep": 0.6, "at": "window"})

    @classmethod
    def quick(cls, settings: Settings) -> Settings:
        return replace(cast(HaasPCASettings, settings), samples=8)

    @property
    def images(self) -> int:
        return self.settings.samples

    _components: torch.Tensor | None = None  # (k, *bottleneck_shape), orthonormal, strongest first
    _shares: torch.Tensor | None = None  # (k,), of the variance
    _learned_from: tuple[str, ...] = ()

    def learn(self, subjects: Sequence[Subject], progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """The components of the first `samples` subjects. No randomness.

        Cost: one network pass an image, or with `at` "window" about two for every step. Memory: all activations.

        Raises:
            InputError: fewer than two images, or images that all have the same activations.
            ModelError: a model without a bottleneck.
        """
        shape, used = self.denoiser.need_bottleneck(), list(subjects[: self.settings.samples])
        names = tuple(subject.name for subject in used)
        if self._components is not None and names == self._learned_from:
            return
        if len(used) < 2:
            raise InputError("images to learn from", len(used), "at least 2")
        parts = []
        size = self.at_once(_BATCH)
        for start in range(0, len(used), size):
            batch = used[start : start + size]
            parts.append(self._activations(torch.stack([subject.x_t for subject in batch])))
            progress(start + len(batch), len(used))
        activations = torch.cat(parts)  # (images, steps, D)
        rows = (activations - activations.mean(dim=0)).flatten(0, 1)
        components, shares = _principal(rows, self.settings.rank, float(activations.norm()))
        if not len(components):
            raise InputError("activations", "the same for all images", "images that differ")
        self._components, self._shares = components.view(-1, *shape), shares
        self._learned_from = names

    @torch.no_grad()
    def _activations(self, x: torch.Tensor) -> torch.Tensor:
        """h of a batch x_t (B, *x_shape): (B, steps, prod(bottleneck_shape)), with one step where `at` is "t"."""
        if self.settings.at == "t":
            return self.denoiser.bottleneck(x, self.timestep).flatten(1)[:, None]
        total = self.denoiser.info.train_timesteps
        window = self.settings.window
        high, low = (self.timestep, 0) if window is None else (round(window[0] * total), round(window[1] * total))
        found = []
        for at, to in pairwise(reversed(timestep_grid(self.timestep, self.settings.steps))):
            if high >= at >= low:
                found.append(self.denoiser.bottleneck(x, at).flatten(1))
            x = sample(self.denoiser, x, at, 1, stop=to)
        if not found:
            raise InputError("window", window, "a window with a step in it", f"Steps go from t = {self.timestep} down.")
        return torch.stack(found, dim=1)

    def learned(self) -> dict[str, torch.Tensor]:
        """`components` (k, *bottleneck_shape), orthonormal; `shares` (k,) of the variance."""
        if self._components is None or self._shares is None:
            return {}
        return {"components": self._components, "shares": self._shares}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        shape = self.denoiser.need_bottleneck()
        components, shares = tensors.get("components"), tensors.get("shares")
        if components is None or shares is None or set(tensors) != {"components", "shares"}:
            raise InputError("what haas-pca has learned", sorted(tensors), "components and shares", "Learn it again.")
        if tuple(components.shape[1:]) != tuple(shape) or len(components) != len(shares) or not len(shares):
            found = (tuple(components.shape), tuple(shares.shape))
            expected = f"shapes (k, {', '.join(map(str, shape))}) and (k,), as this model has"
            raise InputError("what haas-pca has learned", found, expected, "Learn it again.")
        rows = components.flatten(1).double()
        gap = rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
        if not float(gap.abs().max()) < 1e-3:  # also catches NaN
            raise InputError("components", "rows that are not orthonormal", "principal components", "Learn it again.")
        self._components = components.to(self.denoiser.device, self.denoiser.dtype)
        self._shares = shares.to(self.denoiser.device, self.denoiser.dtype)
        self._learned_from = ()

    @torch.no_grad()
    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """Cost: one JVP a component and one a region. Raises InputError where nothing has been learned."""
        check_masks(subject.masks, self.denoiser.info.image_shape[1:])
        self.denoiser.need_bottleneck()
        if self._components is None or self._shares is None:
            raise InputError(
                "haas-pca", "nothing learned yet", "components", "Call learn, or restore what was learned."
            )
        operator = self.jacobian(subject, "x0/h")
        picked = most_inside(self._components, operator.matvec(self._components), subject.masks)
        for figures in picked.evidence.values():
            figures["variance_share"] = float(self._shares[int(figures["rank"])])
        edits = measured(operator, picked.vectors, subject.masks, self.limit, picked.evidence)
        charge(self.cost, operator)
        indexed = {name: replace(edit, index=int(edit.evidence["rank"])) for name, edit in edits.items()}
        return {**indexed, **picked.refused}


def _principal(rows: torch.Tensor, rank: int, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Leading principal directions (k, D) of centred rows (n, D) with their shares (k,) of the variance, k <= rank.

    By the eigenvectors of the rows' products, which are few where D is huge. Directions of rounding are left out;
    `size` is the norm of the rows before they were centred.
    """
    wide = rows.double()
    values, turn = torch.linalg.eigh(wide @ wide.T)
    values, turn = values.flip(0).clamp(min=0.0), turn.flip(1)
    precision = torch.finfo(rows.dtype).eps
    rounding = len(rows) * max(precision * float(values[0]), (precision * size) ** 2)
    kept = min(rank, int((values > rounding).sum()))
    vectors = (turn[:, :kept].T @ wide) / values[:kept].sqrt()[:, None]
    return canonical_sign(vectors).to(rows.dtype), (values[:kept] / values.sum()).to(rows.dtype)
