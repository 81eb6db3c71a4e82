"""Regions that no data set names, in an evaluation: found once an image, and kept beside its latents.

They are those that mining finds: at the recipe's timestep and with its inversion, whatever settings methods are tried
with, so that all of them edit the same regions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flows.console import stage
from flows.datasets.contract import SourceImage
from flows.edit_settings import edit_settings
from flows.evaluation.cells import VERSION, digest, write
from flows.finding import Finder
from flows.recipe import Recipe
from flows.regions import GeneratedRegions
from pipeline.errors import InputError
from pipeline.jacobian import jacobian
from pipeline.models.contract import Denoiser

BATCH = 32  # images whose x_t is held at a time

Latents = Callable[[Sequence[SourceImage], int, int], Sequence[torch.Tensor]]
"""The x_t (*x_shape) of images at a timestep index, by inversion in so many steps."""


@dataclass(frozen=True)
class Search:
    """What was found on one image: masks bool (H, W) by region, none where `reason` says why; regions `skipped`, with
    reasons; and what it cost: network passes, the image's share of inverting among them, and Jacobian products."""

    masks: Mapping[str, np.ndarray]
    skipped: Mapping[str, str]
    reason: str
    passes: float
    products: int


class FoundRegions:
    """The regions of images under a recipe whose regions are generated. Each image's are kept in a file of `folder`,
    named by all that they depend on; one that is damaged is made anew.

    Args:
        latents: as `Latents`, called for what is not kept and where regions are found on x_t.
        passes: network passes made so far.

    Raises:
        InputError: a memory budget below one product.
    """

    def __init__(
        self,
        recipe: Recipe,
        choice: GeneratedRegions,
        denoiser: Denoiser,
        folder: Path,
        latents: Latents,
        passes: Callable[[], int],
    ) -> None:
        self.choice, self.folder = choice, folder
        self.share = recipe.method.timestep
        settings = edit_settings(recipe, denoiser.info.train_timesteps)
        self._t, self._steps, self._seed = settings.timestep, settings.inversion_steps, recipe.seed
        self._finder = Finder(recipe, choice, denoiser, settings.timestep)
        self._model, self._latents, self._passes = denoiser.info.fingerprint, latents, passes
        self._size = denoiser.info.image_shape[1:]
        self._known: dict[str, Search] = {}
        self._depends: dict[str, Any] | None = None
        if recipe.method.memory is not None:  # a budget too small is one error here, not one for every image
            jacobian(denoiser, torch.zeros(denoiser.info.x_shape), self._t, "x0/x", memory=recipe.method.memory)

    def of(self, images: Sequence[SourceImage], left_out: dict[str, str]) -> list[SourceImage]:
        """The images with their regions; those on which none is found are missing, and why is noted in `left_out`, by
        their source.

        Raises:
            ModelError: the mask-generation model cannot be had.
        """
        unknown = [image for image in images if image.image_id not in self._known]
        kept = {image.image_id: self._read(image) for image in unknown}
        self._known |= {name: search for name, search in kept.items() if search is not None}
        self._search([image for image in unknown if kept[image.image_id] is None])
        found = []
        for image in images:
            search = self._known[image.image_id]
            if search.masks:
                skipped = {**image.skipped, **search.skipped}
                found.append(replace(image, masks=dict(search.masks), skipped=skipped))
            else:
                left_out[image.source] = search.reason
        return found

    @property
    def count(self) -> int:
        """On how many images regions were looked for."""
        return len(self._known)

    @property
    def passes(self) -> int:
        """Network passes and Jacobian products that looking took, now or when what is kept was found."""
        return round(sum(search.passes + search.products for search in self._known.values()))

    def _search(self, images: Sequence[SourceImage]) -> None:
        if not images:
            return
        with stage(f"finding regions by {self.choice.provider}", len(images)) as advance:
            for start in range(0, len(images), BATCH):
                part, before = images[start : start + BATCH], self._passes()
                latents: Sequence[torch.Tensor | None] = [None] * len(part)
                if self._finder.needs_latents:
                    latents = self._latents(part, self._t, self._steps)
                inverting = (self._passes() - before) / len(part)
                for image, x_t in zip(part, latents, strict=True):
                    search = self._searched(image, x_t, inverting)
                    write(self._path(image), json.dumps(_packed(search), indent=1, ensure_ascii=False) + "\n")
                    self._known[image.image_id] = search
                    advance(1, "")

    def _searched(self, image: SourceImage, x_t: torch.Tensor | None, inverting: float) -> Search:
        before = self._passes()
        try:
            found, products = self._finder.masked(image, x_t)
        except InputError as error:  # of this image: none found, or products that are not finite
            return Search({}, {}, str(error), inverting + self._passes() - before, 0)
        passes = inverting + self._passes() - before
        return Search(found.masks, found.skipped, "", passes, products.total)

    def _path(self, image: SourceImage) -> Path:
        return self.folder / f"{digest({**self.depends(), 'image': image.image_id})}.json"

    def depends(self) -> dict[str, Any]:
        """What regions depend on, besides the image: for another process to `trust`, so that it need not open the
        mask-generation model to know it.

        Raises:
            ModelError: the mask-generation model cannot be had.
        """
        if self._depends is None:
            origin = self._finder.origin()
            if origin is None:
                own = {"model": self._model, "timestep": self._t, "inversion_steps": self._steps, "seed": self._seed}
            else:
                own = {"mask model": {name: file.sha256 for name, file in origin.files.items()}}
            self._depends = {"regions": self.choice.model_dump(mode="json"), "version": VERSION, **own}
        return self._depends

    def trust(self, depends: Mapping[str, Any]) -> None:
        """Take what `depends` said in another process, of the same recipe and model."""
        self._depends = dict(depends)

    def _read(self, image: SourceImage) -> Search | None:
        """What is kept of an image; None where nothing is, or what is there is damaged."""
        path = self._path(image)
        try:
            return _unpacked(json.loads(path.read_text(encoding="utf-8")), self._size)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def _packed(search: Search) -> dict[str, Any]:
    """A search in what JSON has, and a digest of it."""
    masks = {region: np.packbits(mask).tobytes().hex() for region, mask in search.masks.items()}
    told = {"skipped": dict(search.skipped), "reason": search.reason}
    content = {"masks": masks, **told, "passes": search.passes, "products": search.products}
    return {"content": content, "digest": digest(content)}


def _unpacked(kept: Mapping[str, Any], size: tuple[int, int]) -> Search:
    """What `_packed` kept, masks bool of `size` (H, W). Raises ValueError, KeyError or TypeError where damaged."""
    content = kept["content"]
    if digest(content) != kept["digest"]:
        raise ValueError("damaged")
    masks = {}
    for region, bits in content["masks"].items():
        values = np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=size[0] * size[1])
        masks[region] = values.reshape(size).astype(bool)
    return Search(masks, content["skipped"], content["reason"], content["passes"], content["products"])
