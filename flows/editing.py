"""Edits and transfers for the command line: pictures in, pictures out, directions from a catalog."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from catalog.concepts import find_concept, load_concepts
from catalog.reader import Catalog
from flows.datasets.contract import BrokenImageError
from flows.datasets.dataset import fit_mask
from flows.datasets.pictures import open_image
from flows.edit_settings import fit_of, recipe_of
from flows.files import write_whole
from flows.left_out import remark
from flows.miner import mining_settings
from flows.opening import open_model
from flows.pictures import as_picture, png
from pipeline.editing import Edit, apply_edits, invert_pictures
from pipeline.errors import CatalogError, InputError, ModelError, NotFoundError
from pipeline.images import CENTER, Fit, as_tensor, fit_image
from pipeline.inversion import round_trip_psnr
from pipeline.metrics import rms_inside
from pipeline.mined import MiningSettings
from pipeline.models.contract import Denoiser
from pipeline.registration import registered, shift_between

_MEAN_OF = 512  # masks that say where a region is on a picture without a mask of its own
Shift = tuple[float, float]
"""Pixels to the right and down."""


@dataclass(frozen=True)
class EditDone:
    """Evidence of one edit: round-trip PSNR of the image in dB, root-mean-square change over the whole picture.

    `directions`: the strength of each; `shifts`: how far each was moved to its region, None where it is as mined.
    `remarks`: what the catalog was published without, and what was done instead.
    """

    out: str
    directions: dict[str, float]
    shifts: dict[str, Shift | None]
    round_trip_psnr: float
    change_rms: float
    remarks: tuple[str, ...] = ()


def load_picture(path: Path, shape: Sequence[int], fit: Fit = CENTER) -> np.ndarray:
    """An image file, upright and fitted to the model: uint8 (H, W, C). Raises InputError for a broken file."""
    return fit_image(_open(path, "--image"), (shape[0], shape[1], shape[2]), fit)


def _open(path: Path, option: str) -> Image.Image:
    try:
        return open_image(path)
    except BrokenImageError as error:
        raise InputError(option, f"{path}, which {error}", "a readable image file") from error


def mask_beside(image: Path, region: str) -> Path:
    """Where a picture's own mask of a region is looked for when none is given."""
    return image.parent / f"{image.stem}_{region}.png"


def own_mask(mask: Path | None, image: Path, region: str, pixels: np.ndarray, fit: Fit = CENTER) -> np.ndarray | None:
    """A picture's own mask of a region, bool at the size of `pixels`: from a file, else from IMAGE_REGION.png beside.

    `fit` is how the picture became `pixels`.

    None without either. Raises InputError for a mask that is unreadable, empty, or of another picture's size.
    """
    file = mask or mask_beside(image, region)
    if mask is None and not file.is_file():
        return None
    shape = (pixels.shape[2], pixels.shape[0], pixels.shape[1])
    found = fit_mask(_open(file, "--mask"), _open(image, "--image").size, shape, file.name, fit)
    if not found.any():
        size = f"{shape[2]} x {shape[1]} pixels"
        raise InputError("--mask", f"{file}, empty at {size}", f"white pixels where the {region} is")
    return found


def region_mask(catalog: Catalog, mask: Path | None, image: Path, region: str, pixels: np.ndarray) -> np.ndarray:
    """The region on a new image: its own mask as `own_mask` finds it, else the catalog's mean mask.

    Without a mask the region is taken where most catalogued masks of that name are, which suits aligned data only.
    Raises InputError: no such region, or no mask at all, where those of the catalog are left out.
    """
    own = own_mask(mask, image, region, pixels, fit_of(catalog))
    if own is not None:
        return own
    rows = catalog.regions(region=region)
    if rows.num_rows == 0:
        known = sorted(catalog.regions().column("region").unique().to_pylist())
        raise InputError("--region", region, f"one of {', '.join(known)}")
    if catalog.lacks("mask"):
        beside = mask_beside(image, region).name
        raise InputError(
            "--mask", "none, and the catalog's own masks are left out of this pack",
            f"the picture's own mask of the {region}", f"Give --mask PNG, or put {beside} beside the picture",
        )  # fmt: skip
    some = rows.slice(0, _MEAN_OF)  # sorted by ids, which are hashes: a random sample
    masks = [catalog.mask(image_id, region) for image_id in some.column("image_id").to_pylist()]
    return np.asarray(np.mean(masks, axis=0) >= 0.5)


def picture_shape(catalog: Catalog) -> tuple[int, int, int]:
    """(C, H, W) of the catalog's pictures, which is not that of x where the model works on latents.

    Raises:
        CatalogError: no image in it.
        NotFoundError: images are left out; the model says how large they were.
    """
    ids = catalog.images().column("image_id")
    if len(ids) == 0:
        raise CatalogError(str(catalog.folder), "no images", "a catalog with images", "Mine some first.")
    pixels = catalog.image(ids[0].as_py())
    return (1 if pixels.ndim == 2 else pixels.shape[2], pixels.shape[0], pixels.shape[1])


def model_of(catalog: Catalog, model: str | None = None) -> tuple[Denoiser, MiningSettings]:
    """The catalog's model, at the place and commit it was mined with or at `model`, and its settings.

    Raises:
        ModelError: no model there, or one that the directions do not belong to.
    """
    recipe, mined = recipe_of(catalog), catalog.manifest.provenance.model
    choice = recipe.model.at(model or recipe.model.reference)
    if choice is recipe.model:
        choice = choice.pinned(str(mined["commit"]) if mined.get("commit") is not None else None)
    try:
        denoiser = open_model(choice)
    except ModelError as error:
        if model is not None:
            raise
        action = f"{error.action} Where the model lies elsewhere, name its folder with --model.".strip()
        raise ModelError(error.field, error.found, error.expected, action) from error
    expected = mined["fingerprint"]
    if denoiser.info.fingerprint != expected:
        raise ModelError(
            "model", f"{choice.reference} with fingerprint {denoiser.info.fingerprint}", f"fingerprint {expected}",
            "Use the model the catalog was mined with.",
        )  # fmt: skip
    return denoiser, mining_settings(recipe, denoiser)


def parse_directions(values: Sequence[str], catalog: Catalog) -> dict[str, float]:
    """ID=STRENGTH pairs; ids may be unique prefixes. Raises InputError for another form, NotFoundError for an id."""
    parsed: dict[str, float] = {}
    for value in values:
        name, separator, strength = value.rpartition("=")
        try:
            number = float(strength)
        except ValueError:
            number = float("nan")
        if not separator or not np.isfinite(number):
            raise InputError("--direction", value, "ID=STRENGTH with a finite number, such as 3fa85f64=4.5")
        key = _found(catalog, name)
        parsed[key] = parsed.get(key, 0.0) + number
    return parsed


def _found(catalog: Catalog, name: str) -> str:
    """The id of a direction, or of a concept, given by its first digits. Raises NotFoundError, InputError."""
    try:
        return catalog.resolve(name)
    except NotFoundError:
        if catalog.manifest.concepts is None:
            raise
        return find_concept(load_concepts(catalog), name).concept_id


def _to_apply(catalog: Catalog, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By id of a direction or concept: its space, its region, whose mask it is at home in, and its `vector`."""
    names = ("direction_id", "space", "region", "region_id", "image_id")
    plain = [key for key in keys if catalog.holds(key)]
    rows = {row["direction_id"]: row for row in catalog.rows(plain, names)}
    for key in plain:
        rows[key]["vector"] = torch.from_numpy(catalog.vector(key))
    others = [key for key in keys if key not in rows]
    concepts = load_concepts(catalog) if others else []
    for key in others:
        concept = find_concept(concepts, key)
        rows[key] = {name: getattr(concept, name) for name in names[1:]} | {"direction_id": key}
        rows[key]["vector"] = torch.from_numpy(concept.vector)
    return rows


def parse_masks(values: Sequence[str], regions: Collection[str]) -> dict[str, Path]:
    """REGION=PNG pairs. Raises InputError for another form, a region that is not asked for, or one given twice."""
    parsed: dict[str, Path] = {}
    for value in values:
        region, separator, file = value.partition("=")
        if not separator or not file:
            raise InputError("--mask", value, "REGION=PNG, such as mouth=face_mouth.png")
        if region not in regions:
            known = ", ".join(sorted(regions)) or "none, as they have no masks"
            raise InputError("--mask", value, f"a region of the chosen directions: {known}")
        if region in parsed:
            raise InputError("--mask", f"{parsed[region]} and {file}", f"one mask of {region}")
        parsed[region] = Path(file)
    return parsed


def placed(catalog: Catalog, row: Mapping[str, Any], target: np.ndarray | None) -> tuple[torch.Tensor, Shift | None]:
    """A direction's vector, shifted from its home mask to its region's mask on another picture, and that shift.

    `row` is its row of the catalog. As it was mined, and None, where either mask is missing, or left out of the pack.
    """
    return _shifted(catalog, row, torch.from_numpy(catalog.vector(row["direction_id"])), target)


def placed_effect(catalog: Catalog, row: Mapping[str, Any], target: np.ndarray | None) -> torch.Tensor:
    """A direction's effect at home (C, h, w), shifted as `placed` shifts its vector."""
    return _shifted(catalog, row, torch.from_numpy(catalog.effect(row["direction_id"])), target)[0]


def _shifted(
    catalog: Catalog, row: Mapping[str, Any], vector: torch.Tensor, target: np.ndarray | None
) -> tuple[torch.Tensor, Shift | None]:
    if target is None or row["region_id"] is None or catalog.lacks("mask"):
        return vector, None
    home, there = (torch.from_numpy(mask) for mask in (catalog.mask(row["image_id"], row["region"]), target))
    try:
        return registered(vector, home, there), shift_between(home, there)
    except InputError as error:
        action = "Check the mask; --no-shift applies the direction as it was mined."
        raise InputError(f"mask of {row['region']}", error.found, error.expected, action) from error


def check_out(out: Path, image: Path, masks: Sequence[Path], option: str = "--out") -> None:
    """Raise InputError unless a picture may be written to `out`: a PNG that is neither `image` nor one of its masks."""
    if out.is_dir() or not out.parent.is_dir() or out.suffix.lower() != ".png":
        raise InputError(option, out, "a file ending in .png in a folder that exists")
    if out.exists() and image.exists() and out.samefile(image):
        raise InputError(option, f"{out}, the picture to be edited", "another file", "An edit keeps its original.")
    if out.resolve() in {mask.resolve() for mask in masks}:
        raise InputError(option, f"{out}, a mask of the picture", "another file", "An edit keeps its masks.")


@torch.no_grad()
def edit_picture(
    folder: Path,
    image: Path,
    directions: Sequence[str],
    out: Path,
    model: str | None = None,
    masks: Sequence[str] = (),
    shift: bool = True,
) -> EditDone:
    """Invert a picture, apply catalogued directions with their strengths, and write the result as PNG.

    `model` says where the catalog's model lies, if not where its recipe says. `masks`, REGION=PNG, and IMAGE_REGION.png
    beside the picture say where its regions are: a direction is shifted there from its home mask, unless `shift` is
    False. Without a mask of its region it is applied as it was mined.
    """
    with Catalog.open(folder) as catalog:
        wanted = parse_directions(directions, catalog)
        rows = _to_apply(catalog, list(wanted))
        regions = {row["region"] for row in rows.values() if row["region_id"] is not None}
        given = parse_masks(masks, regions)
        check_out(out, image, [*given.values(), *(mask_beside(image, region) for region in regions)])
        denoiser, settings = model_of(catalog, model)
        fit = fit_of(catalog)
        pixels = load_picture(image, denoiser.info.image_shape, fit)
        known = {region: own_mask(given.get(region), image, region, pixels, fit) for region in regions} if shift else {}
        moved = {key: _shifted(catalog, row, row["vector"], known.get(row["region"])) for key, row in rows.items()}
        edits = [Edit(rows[key]["space"], moved[key][0], strength) for key, strength in wanted.items()]
        steps = recipe_of(catalog).method.inversion_steps
        masked = any(mask is not None for mask in known.values())
        remarks = remark(catalog, ["mask"], "directions are applied where they were mined") if masked else ()
    picture = as_tensor(pixels)[None]
    x_t = invert_pictures(denoiser, picture, settings.timestep, steps)
    plain = apply_edits(denoiser, x_t[0], settings.timestep, [], settings.decode)
    edited = apply_edits(denoiser, x_t[0], settings.timestep, edits, settings.decode)
    write_whole(out, png(as_picture(edited)))
    everywhere = torch.ones(picture.shape[-2:], dtype=torch.bool)
    return EditDone(
        str(out),
        wanted,
        {key: moved[key][1] for key in wanted},
        float(round_trip_psnr(picture, plain[None])[0]),
        float(rms_inside((edited - plain)[None], everywhere)[0]),
        remarks,
    )
