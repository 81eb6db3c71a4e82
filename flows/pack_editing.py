"""Pictures edited by what a pack holds: a model in memory is checked, pictures and masks are fitted, edits made."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from catalog.reader import Catalog
from flows.datasets.contract import BrokenImageError
from flows.datasets.dataset import fit_mask
from flows.datasets.pictures import open_image
from flows.edit_settings import EditSettings, fit_of, recipe_of
from pipeline.editing import Edit, compose
from pipeline.errors import InputError, ModelError
from pipeline.images import Fit, as_tensor, fit_image
from pipeline.inversion import BottleneckShift, Progress, invert, sample
from pipeline.models.contract import Denoiser
from pipeline.models.in_memory import denoiser_of
from pipeline.registration import registered

if TYPE_CHECKING:
    from flows.direction_pack import DirectionPack
    from flows.pack_entries import Entry

Picture = Image.Image | np.ndarray | str | Path
Masks = Picture | Mapping[str, Picture]

# What a manifest says of its model, and how that is called; the fingerprint comes last, as it differs where any does.
_COMPARED = {
    "family": "network", "prediction": "prediction type", "schedule": "schedule", "train_timesteps": "timesteps",
    "image_shape": "pictures", "latent_shape": "latents", "bottleneck_shape": "bottleneck", "parameters": "parameters",
    "fingerprint": "fingerprint",
}  # fmt: skip


# -- the model -----------------------------------------------------------------------------------------------------


def checked_model(pipe: Any, catalog: Catalog, name: str, other_model: bool) -> Denoiser:
    """The denoiser of a pipeline, if it is the model that `catalog`, called `name`, was mined with.

    With `other_model` any difference but one of shapes is a warning. Raises ModelError saying what differs.
    """
    label = recipe_of(catalog).model.class_label
    denoiser = pipe if isinstance(pipe, Denoiser) else denoiser_of(pipe, class_label=label)
    error = _difference(denoiser, catalog, name)
    if error is None:
        return denoiser
    own = {"x": denoiser.info.x_shape, "h": denoiser.info.bottleneck_shape}
    fits = all(own[space] == tuple(shape) for space, shape in catalog.layout.spaces.items())
    if not (other_model and fits):
        raise error
    warnings.warn(f"another model than that of {name}: found {error.found}; expected {error.expected}", stacklevel=3)
    return denoiser


def _difference(denoiser: Denoiser, catalog: Catalog, name: str) -> ModelError | None:
    """What keeps a model from being that of a catalog; None where nothing does."""
    told = catalog.manifest.provenance.model
    if denoiser.info.fingerprint == told["fingerprint"]:
        return None
    found = {key: _plain(getattr(denoiser.info, key)) for key in _COMPARED}
    odd = [key for key in _COMPARED if key in told and _plain(told[key]) != found[key]]
    expected = f"{_listed(odd, told)}, as the model of {name} has ({str(told.get('reference', 'unnamed'))[:100]})"
    text, action = _listed(odd, found), "Load the model that the pack was mined with, or pass other_model=True."
    if odd == ["fingerprint"]:
        text = f"other weights or settings, {text}"
        if denoiser.dtype != torch.float32:
            kind = str(denoiser.dtype).removeprefix("torch.")
            text = f"weights in {kind} and no other difference to be seen, {_listed(odd, found)}"
            action = "Rounded weights cannot be told from others: load the pipe in float32, or pass other_model=True."
    return ModelError("pipe", text, expected, action)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _listed(keys: Sequence[str], values: Mapping[str, Any]) -> str:
    return ", ".join(f"{_COMPARED[key]} {str(values[key])[:100]}" for key in keys)


# -- pictures and masks --------------------------------------------------------------------------------------------


def opened_picture(picture: Picture, name: str = "image") -> Image.Image:
    """A picture as PIL has it, at its own size: a file is decoded, an array is 0 to 255 (uint8) or 0 to 1 (floats).

    Raises InputError.
    """
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, str | Path):
        try:
            return open_image(Path(picture))
        except BrokenImageError as error:
            raise InputError(name, f"{picture}, which {error}", "a readable image file") from error
    if not isinstance(picture, np.ndarray):
        raise InputError(name, type(picture).__name__, "a picture of PIL, a file or an array")
    pixels = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or 0 in pixels.shape:
        raise InputError(name, f"shape {picture.shape}", "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if pixels.dtype == bool:
        pixels = np.where(pixels, np.uint8(255), np.uint8(0))
    elif pixels.dtype.kind == "f":
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):  # not true of NaN either
            raise InputError(name, "floats outside [0, 1]", "floats in [0, 1], or uint8 pixels in 0..255")
        pixels = (pixels.astype(np.float64) * 255).round().astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise InputError(name, f"dtype {pixels.dtype}", "uint8 pixels in 0..255, or floats in [0, 1]")
    return Image.fromarray(pixels)


def masks_by_region(mask: Masks | None, regions: Sequence[str]) -> dict[str, Image.Image]:
    """Masks by region, opened. Raises InputError: one for several regions, or of a region that is not asked for."""
    if mask is None:
        return {}
    if not isinstance(mask, Mapping):
        if len(regions) != 1:
            found = f"one for {', '.join(regions)}" if regions else "one, and no directions"
            raise InputError("mask", found, "{region: mask} where directions are of several regions")
        mask = {regions[0]: mask}
    if odd := sorted(set(map(str, mask)) - set(regions)):
        raise InputError("mask", repr(odd[0])[:80], f"a region of the chosen directions: {', '.join(regions)}")
    return {region: opened_picture(file, f"mask of {region}") for region, file in mask.items()}


# -- edits ---------------------------------------------------------------------------------------------------------


def placed_edits(
    pack: DirectionPack,
    wanted: Sequence[tuple[Entry, float]],
    masks: Mapping[str, Image.Image],
    size: tuple[int, int],
    denoiser: Denoiser,
) -> list[Edit]:
    """What to apply to a picture of `size` (width, height): every direction moved to its region's mask on it, as it was
    found where there is none.

    So too, with a warning, where the pack was published without masks: then nothing says where they are at home. Raises
    InputError: a mask that is empty, of another picture's size, or too far away.
    """
    fit, targets = fit_of(pack.catalog), {}
    for region, mask in masks.items():
        targets[region] = fit_mask(mask, size, denoiser.info.image_shape, f"of {region}", fit)
        if not targets[region].any():
            raise InputError(f"mask of {region}", "nothing white", f"white pixels where the {region} is")
    if targets and pack.catalog.lacks("mask"):
        warnings.warn(f"{pack.name} has no masks: directions are applied where they were found", stacklevel=3)
        targets = {}
    edits = []
    for entry, strength in wanted:
        vector = torch.from_numpy(np.array(pack.vector(entry.id)))
        if entry.region in targets:
            vector = _moved(pack, entry, vector, targets[entry.region])
        edits.append(Edit("x" if entry.space == "x" else "h", vector, strength))
    return edits


def _moved(pack: DirectionPack, entry: Entry, vector: torch.Tensor, target: np.ndarray) -> torch.Tensor:
    image_id, region_id = pack.home_of(entry.id)
    if region_id is None:
        return vector
    home = torch.from_numpy(pack.catalog.mask(image_id, entry.region))
    try:
        return registered(vector, home, torch.from_numpy(target))
    except InputError as error:
        action = "Check the mask; without one a direction is applied where it was found."
        raise InputError(f"mask of {entry.region}", error.found, error.expected, action) from error


@torch.no_grad()
def edited(
    denoiser: Denoiser,
    pictures: torch.Tensor,
    edits: Sequence[Sequence[Edit]],
    settings: EditSettings,
    progress: Progress | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Pictures (B, C, H, W) in [-1, 1], each inverted, shifted along its own `edits` and decoded, all as one batch.

    `generator` draws the noise where `settings.decode.eta` is above 0; default one of its seed. Cost: at most
    `inversion_steps` and `decode.steps` network calls of batch B, as in `pipeline.editing`. Raises InputError.
    """
    timestep, how = settings.timestep, settings.decode
    clean = denoiser.encode(pictures.to(denoiser.device, denoiser.dtype))
    x_t = invert(denoiser, clean, timestep, settings.inversion_steps, progress=progress)
    moved = [compose(denoiser, x, own) for x, own in zip(x_t, edits, strict=True)]
    shifts = [shift for _, shift in moved if shift is not None]
    shift = None
    if shifts:
        none = torch.zeros_like(shifts[0])
        delta = torch.stack([none if own is None else own for _, own in moved])
        high, low = how.h_window or (timestep, 0)
        shift = BottleneckShift(delta, high, low, how.convention)
    if how.eta > 0 and generator is None:
        generator = torch.Generator().manual_seed(how.seed)
    clean = sample(
        denoiser, torch.stack([x for x, _ in moved]), timestep, how.steps, shift=shift,
        eta=how.eta, eta_share=how.eta_share, generator=generator, progress=progress,
    )  # fmt: skip
    return denoiser.decode(clean)


def fitted(denoiser: Denoiser, pictures: Sequence[Image.Image], fit: Fit) -> torch.Tensor:
    """(B, C, H, W) in [-1, 1]: pictures of any size, fitted to the model."""
    return torch.stack([as_tensor(fit_image(picture, denoiser.info.image_shape, fit)) for picture in pictures])
