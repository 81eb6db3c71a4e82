"""What an evaluation is made on: a model, images of two splits, and, where there is one, a reader of their attributes.

Settings are chosen on `mine` images and figures are reported on `holdout` ones. The built-in data has these splits; of
any other data set, every second image is one or the other.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from flows.console import stage
from flows.datasets.builtin import BuiltinDataset
from flows.datasets.contract import Failure, SourceImage
from flows.datasets.dataset import load_dataset
from flows.evaluation.backbones import for_pictures, look_for_backbones
from flows.evaluation.captions import NO_CAPTIONS, Captions
from flows.evaluation.cells import digest, write
from flows.evaluation.found_regions import FoundRegions
from flows.opening import model_place, open_model
from flows.paths import builtin_folder
from flows.recipe import Recipe
from flows.regions import GeneratedRegions
from pipeline.editing import invert_pictures
from pipeline.errors import InputError
from pipeline.faces.factors import FACTORS, REGIONS, factors_of
from pipeline.images import as_tensor
from pipeline.memory import pictures_at_once
from pipeline.methods.contract import Subject
from pipeline.models.contract import Denoiser
from pipeline.models.counting import counting
from pipeline.reader import AttributeReader

Split = Literal["mine", "holdout"]
BATCH = 32  # images inverted together, at most


def shipped_folder() -> Path:
    """What travels with the package: choices of settings on `mine` images, and what rivals have learned."""
    return builtin_folder() / "evaluation"


@dataclass
class Passes:
    """How many images have gone through the network."""

    passes: int = 0


class World:
    """Model, data and reader of an evaluation; latents are kept in `folder`, so that each is inverted once, and so are
    regions that are `found` and not named. `failures`: items of the data set, as people know them, that are left out,
    and why."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        denoiser: Denoiser | None = None,
        backbones: Path | None = None,
        captions: Captions = NO_CAPTIONS,
    ) -> None:
        self.backbones_folder, found = backbones, look_for_backbones(backbones)  # before the model, which takes longer
        self.recipe, self.folder, self.counter, self.captions = recipe, folder, Passes(), captions
        self.denoiser: Denoiser = counting(denoiser or open_model(model_place(recipe)), self.counter)
        captions.check(self.denoiser)
        self.backbones = for_pictures(found, self.denoiser.info.image_shape)
        self.reader: AttributeReader | None = None
        if isinstance(recipe.dataset, BuiltinDataset) and self.denoiser.info.image_shape == (3, 64, 64):
            self.reader = AttributeReader.load(builtin_folder() / "reader").to(self.denoiser.device)
        self.failures: dict[str, str] = {}
        self.found: FoundRegions | None = None
        if isinstance(recipe.regions, GeneratedRegions):
            self.found = FoundRegions(
                recipe, recipe.regions, self.denoiser, folder / "regions", self._latents, lambda: self.counter.passes
            )
        self._images: dict[tuple[str, str | None], list[SourceImage]] = {}
        self.asked = 0  # the most held-out images that anything has asked for
        self._ended: set[tuple[str, str | None]] = set()  # those that were read to their end

    def factors(self, region: str) -> tuple[str, ...]:
        """The attributes that belong to a region; none where nothing reads them."""
        return factors_of(region) if self.reader is not None and region in REGIONS else ()

    def read(self, pictures: torch.Tensor) -> list[dict[str, float]]:
        """Readings by factor of pictures (B, C, H, W), clamped first; empty without a reader."""
        if self.reader is None:
            return [{} for _ in pictures]
        rows = self.reader.read(pictures.clamp(-1.0, 1.0)).tolist()
        return [dict(zip(FACTORS, row, strict=True)) for row in rows]

    def perception(self, before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
        """Of two pictures (C, H, W), by the backbones that are there: LPIPS outside a mask, and identity kept."""
        pair, found = (before[None].clamp(-1.0, 1.0), after[None].clamp(-1.0, 1.0)), dict[str, float]()
        if self.backbones.alex is not None:
            found["lpips"] = float(self.backbones.alex.parts(*pair, mask).outside[0])
        if self.backbones.identity is not None:
            found["identity"] = float(self.backbones.identity(*pair)[0])
        return found

    def features(self, picture: torch.Tensor) -> dict[str, str]:
        """Inception's features of a picture (C, H, W), as text for a row; nothing where it is not there."""
        if self.backbones.inception is None:
            return {}
        found = self.backbones.inception.features(picture[None].clamp(-1.0, 1.0))[0]
        return {"features": base64.b64encode(found.cpu().numpy().astype("<f4").tobytes()).decode()}

    def images(self, split: Split, count: int, *, skip: int = 0, name: str | None = None) -> list[SourceImage]:
        """`count` images of a split after the first `skip`; `name` is another built-in data set.

        Raises:
            InputError: the data set has fewer.
        """
        self._note(split, skip + count, name)
        found = self._with_regions(split, skip + count, name)
        if len(found) < skip + count:
            raise self._too_few(split, len(found), skip + count)
        return found[skip : skip + count]

    def lessons(self, count: int, *, skip: int) -> list[SourceImage]:
        """`count` images of the `mine` split to learn from, none of them among its first `skip`. Learning looks at no
        regions, so none are found for it.

        Raises:
            InputError: the data set has fewer.
        """
        used = {image.image_id for image in self.images("mine", skip)}
        found = [image for image in self._read("mine", skip + count, None) if image.image_id not in used]
        if len(found) < count:
            raise self._too_few("mine", len(found) + skip, skip + count)
        return found[:count]

    def count(self, split: Split, most: int) -> int:
        """How many images a split has, `most` at most; those on which no region is found count."""
        return min(most, len(self._read(split, most, None)))

    def up_to(self, split: Split, count: int) -> list[SourceImage]:
        """`count` images of a split, or as many as there are.

        Raises:
            InputError: there is none.
        """
        self._note(split, count)
        return self._with_regions(split, count, None) or self.images(split, 1)

    def _too_few(self, split: Split, found: int, wanted: int) -> InputError:
        """The error of a split that has fewer images than wanted, with what to do about it."""
        advice = "Ask for fewer with --images or --choosing, or leave out methods that learn from many."
        if not found and not isinstance(self.recipe.dataset, BuiltinDataset):
            advice = "Every second image is held out: give at least two."
        if self.failures:
            source, reason = next(iter(self.failures.items()))
            advice += f" Left out: {len(self.failures)}, of which the first is {source} ({reason})."
        return InputError("images", f"{found} of the {split} split", f"at least {wanted}", advice)

    def _with_regions(self, split: Split, count: int, name: str | None) -> list[SourceImage]:
        """`count` images of a split with their regions, or as many as there are."""
        if self.found is None:
            return self._read(split, count, name)[:count]
        wanted = count
        while True:
            read = self._read(split, wanted, name)[:wanted]
            images = self.found.of(read, self.failures)
            if len(images) == count or len(read) < wanted:
                return images
            wanted += count - len(images)

    def _note(self, split: Split, count: int, name: str | None = None) -> None:
        self.asked = max(self.asked, count if split == "holdout" and name is None else 0)

    def _read(self, split: Split, count: int, name: str | None) -> list[SourceImage]:
        """`count` images of a split, or more, or as many as there are, with the regions that the data set has."""
        known = self._images.get((split, name), [])
        if len(known) >= count or (split, name) in self._ended:
            return known
        dataset, builtin = self.recipe.dataset, isinstance(self.recipe.dataset, BuiltinDataset)
        changes: dict[str, object] = {"limit": None}
        if builtin:
            changes |= {"split": split} | ({} if name is None else {"name": name})
        recipe = self.recipe.model_copy(update={"dataset": dataset.model_copy(update=changes)})
        read = (i for i in load_dataset(recipe, self.denoiser.info.image_shape) if self._usable(i))
        own = read if builtin else islice(read, 0 if split == "mine" else 1, None, 2)
        found = [image for image in islice(own, count) if isinstance(image, SourceImage)]
        if len(found) < count:
            self._ended.add((split, name))
        self._images[split, name] = found
        return found

    def _usable(self, image: SourceImage | Failure) -> bool:
        """Whether an item is an image; why not is noted."""
        if isinstance(image, SourceImage):
            return True
        if not image.repeats:
            self.failures[image.source] = image.reason
        return False

    def subjects(self, images: Sequence[SourceImage], timestep: int, steps: int) -> list[Subject]:
        """Images with their x_t at a timestep index. Cost: `steps` passes an image, once."""
        kept = {image.image_id: _latent(self._latent_path(image, timestep, steps)) for image in images}
        missing = [image for image in images if kept[image.image_id] is None]
        if missing:
            kept |= self._invert(missing, timestep, steps)
        device, dtype = self.denoiser.device, self.denoiser.dtype
        found = []
        for image in images:
            x_t = kept[image.image_id]
            assert x_t is not None  # those that were missing are inverted now
            masks = {region: torch.from_numpy(np.array(mask)).to(device) for region, mask in image.masks.items()}
            found.append(Subject(image.image_id, _picture(image).to(device, dtype), x_t.to(device, dtype), masks))
        return found

    def _latents(self, images: Sequence[SourceImage], timestep: int, steps: int) -> list[torch.Tensor]:
        return [subject.x_t for subject in self.subjects(images, timestep, steps)]

    def _invert(self, waiting: Sequence[SourceImage], timestep: int, steps: int) -> dict[str, torch.Tensor]:
        """The x_t of each image by its id, kept for later."""
        found = {}
        with stage(f"inverting to t = {timestep}", len(waiting)) as advance:
            size = pictures_at_once(self.denoiser, timestep, BATCH, self.recipe.method.memory)
            for start in range(0, len(waiting), size):
                part = waiting[start : start + size]
                pictures = torch.stack([_picture(image) for image in part])
                latents = invert_pictures(self.denoiser, pictures, timestep, steps)
                for image, x_t in zip(part, latents, strict=True):
                    found[image.image_id] = x_t.float().cpu().contiguous()
                    write(self._latent_path(image, timestep, steps), save({"x_t": found[image.image_id]}))
                advance(len(part), "")
        return found

    def _latent_path(self, image: SourceImage, timestep: int, steps: int) -> Path:
        key = (self.denoiser.info.fingerprint, image.image_id, timestep, steps)
        return self.folder / "latents" / f"{digest(key)}.safetensors"

    def key(self, subjects: Sequence[Subject | SourceImage]) -> dict[str, object]:
        """What every cell depends on: the model, the images, where their regions are, and what reads them."""
        names = [s.name if isinstance(s, Subject) else s.image_id for s in subjects]
        masks = [sorted((region, _packed(mask)) for region, mask in s.masks.items()) for s in subjects]
        reader = None if self.reader is None else self.reader.fingerprint()
        return {"model": self.denoiser.info.fingerprint, "images": names, "masks": digest(masks), "reader": reader}


def _latent(path: Path) -> torch.Tensor | None:
    """What is kept at a path; None where nothing is, or what is there is damaged."""
    try:
        return load(path.read_bytes())["x_t"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return None


def _packed(mask: torch.Tensor | np.ndarray) -> str:
    """A mask (H, W) as text."""
    values = mask.cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    return np.packbits(values.astype(bool)).tobytes().hex()


def _picture(image: SourceImage) -> torch.Tensor:
    return as_tensor(image.image.copy())
