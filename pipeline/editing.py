"""Using directions: invert, decode, apply, compose, interpolate, transfer.

An edit starts from the noisy image x_t of DDIM inversion. x-space directions are added to x_t once (LOCO Edit, eq. 7);
h-space directions are added to the bottleneck at every denoising step inside a window (Kouzelis et al. 2024, section
4.3). Both kinds compose: several directions of either space with their strengths make one edit, decoded once.
Transfer is the same call with another image's x_t. What goes in and comes out are pictures as tensors, of latent models
too: `invert_pictures` encodes and `decode` decodes. `pipeline.images` turns pictures to tensors and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image

from pipeline.errors import InputError
from pipeline.images import as_tensor, fit_image
from pipeline.inversion import BottleneckShift, Convention, invert, sample
from pipeline.models.contract import Denoiser


@dataclass(frozen=True)
class DecodeSettings:
    """How an x_t becomes an image.

    `steps` DDIM steps over [0, t]; `h_window` (high, low) timestep indices between which h is shifted (None: all the
    way); `convention` "both" or "x0" (Asyrp). `eta` and `eta_share` make the last share of the steps stochastic, with
    noise seeded by `seed`, the same for an edit and its strength-0 reconstruction.
    """

    steps: int = 25
    h_window: tuple[int, int] | None = None
    convention: Convention = "both"
    eta: float = 0.0
    eta_share: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Edit:
    """One direction with its strength: `vector` unit norm, (*x_shape) in x-space or (*bottleneck_shape) in h-space."""

    space: Literal["x", "h"]
    vector: torch.Tensor
    strength: float


def invert_image(denoiser: Denoiser, image: Image.Image | torch.Tensor, t: int, steps: int) -> torch.Tensor:
    """x_t (*x_shape) of one image: a PIL picture of any size and mode, or a tensor (C, H, W) in [-1, 1] as it is.

    Pictures are fitted to the model (`images.fit_image`). Cost: at most `steps` network calls. No randomness.

    Raises:
        InputError: a shape, timestep or number of steps that does not fit.
    """
    if isinstance(image, Image.Image):
        image = as_tensor(fit_image(image, denoiser.info.image_shape))
    return invert_pictures(denoiser, image[None], t, steps)[0]


@torch.no_grad()
def invert_pictures(denoiser: Denoiser, pictures: torch.Tensor, t: int, steps: int) -> torch.Tensor:
    """x_t (B, *x_shape) of pictures (B, C, H, W) in [-1, 1], encoded first where the model works on latents.

    Cost: at most `steps` network calls. No randomness. Raises InputError as `invert_image`.
    """
    return invert(denoiser, denoiser.encode(pictures.to(denoiser.device, denoiser.dtype)), t, steps)


@torch.no_grad()
def decode(
    denoiser: Denoiser, x_t: torch.Tensor, t: int, settings: DecodeSettings, h_shift: torch.Tensor | None = None
) -> torch.Tensor:
    """Denoise x_t (B, *x_shape) to pictures (B, C, H, W), with `h_shift` (B|1, *bottleneck_shape) added to h.

    Cost: at most `settings.steps` network calls of batch B, twice that inside the window under the "x0" convention.
    """
    shift = None
    if h_shift is not None:
        high, low = settings.h_window or (t, 0)
        shift = BottleneckShift(h_shift, high, low, settings.convention)
    generator = torch.Generator().manual_seed(settings.seed) if settings.eta > 0 else None
    clean = sample(
        denoiser,
        x_t,
        t,
        settings.steps,
        shift=shift,
        eta=settings.eta,
        eta_share=settings.eta_share,
        generator=generator,
    )
    return denoiser.decode(clean)


def compose(denoiser: Denoiser, x_t: torch.Tensor, edits: Sequence[Edit]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Add up edits: the shifted x_t (*x_shape), and the shift of h (*bottleneck_shape) or None without h edits.

    Raises:
        InputError: a vector whose shape is not that of its space.
        ModelError: an h edit for a model without a bottleneck.
    """
    latent, shift = x_t.clone(), None
    for edit in edits:
        expected = denoiser.info.x_shape if edit.space == "x" else denoiser.need_bottleneck()
        if tuple(edit.vector.shape) != tuple(expected):
            raise InputError(
                f"{edit.space}-space direction",
                f"shape {tuple(edit.vector.shape)}",
                f"{expected}, as this model has",
                "Use a direction of the same model.",
            )
        step = edit.strength * edit.vector.to(device=x_t.device, dtype=x_t.dtype)
        if edit.space == "x":
            latent = latent + step
        else:
            shift = step if shift is None else shift + step
    return latent, shift


def apply_edits(
    denoiser: Denoiser, x_t: torch.Tensor, t: int, edits: Sequence[Edit], settings: DecodeSettings
) -> torch.Tensor:
    """Apply directions with their strengths to one image's x_t (*x_shape) and denoise; returns a picture (C, H, W)."""
    latent, shift = compose(denoiser, x_t, edits)
    return decode(denoiser, latent[None], t, settings, None if shift is None else shift[None])[0]


def interpolation_grid(
    denoiser: Denoiser, x_t: torch.Tensor, t: int, axes: tuple[Edit, Edit], count: int, settings: DecodeSettings
) -> torch.Tensor:
    """Every pair of strengths from -strength to +strength along two directions: (n, n, C, H, W), rows along axes[0].

    Kouzelis et al. 2024, appendix B.3. Cost: one decode of batch `count` per row.
    """
    if count < 2:
        raise InputError("count", count, "at least 2 images a side")
    weights = torch.linspace(-1.0, 1.0, count).tolist()
    rows = []
    for down in weights:
        latents, shifts = [], []
        for across in weights:
            scaled = [
                Edit(axis.space, axis.vector, axis.strength * weight)
                for axis, weight in zip(axes, (down, across), strict=True)
            ]
            latent, shift = compose(denoiser, x_t, scaled)
            latents.append(latent)
            shifts.append(shift)
        present = [shift for shift in shifts if shift is not None]
        rows.append(decode(denoiser, torch.stack(latents), t, settings, torch.stack(present) if present else None))
    return torch.stack(rows)
