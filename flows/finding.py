"""Regions that no data set names, found while an image is mined: by a mask-generation model, or by its own Jacobian."""

from __future__ import annotations

from dataclasses import replace

import torch

from flows.datasets.contract import SourceImage
from flows.recipe import Recipe
from flows.regions import GeneratedRegions
from pipeline.errors import InputError, ModelError
from pipeline.models.contract import Denoiser
from pipeline.models.files import Origin
from pipeline.operators import Products
from pipeline.regions.generated import MaskSettings
from pipeline.regions.mask_model import MaskModel, load_mask_model
from pipeline.regions.masks import RegionMasks
from pipeline.regions.segments import SegmentSettings, jacobian_segments


class Finder:
    """Makes the masks of a recipe's generated regions. A mask-generation model is loaded with the first image."""

    def __init__(self, recipe: Recipe, choice: GeneratedRegions, denoiser: Denoiser, t: int) -> None:
        self._recipe, self._choice, self._denoiser, self._t = recipe, choice, denoiser, t
        self._model: MaskModel | None = None

    def origin(self) -> Origin | None:
        """Where the mask-generation model comes from; None where none is asked for.

        Raises:
            ModelError: it cannot be had.
        """
        return None if self.needs_latents else self._mask_model().origin

    @property
    def needs_latents(self) -> bool:
        """Whether regions are found on x_t, and not on the picture."""
        return self._choice.provider == "segments"

    def masked(self, image: SourceImage, x_t: torch.Tensor | None) -> tuple[SourceImage, Products]:
        """The image with its regions, and the Jacobian products that finding them took. `x_t` (*x_shape) may be None
        where `needs_latents` is False.

        Raises:
            InputError: no region was found, or no x_t was given.
            ModelError: the mask-generation model cannot be had.
        """
        found, products = self._segments(x_t) if self.needs_latents else self._generated(image)
        wanted = set(self._choice.names)
        masks = {name: mask for name, mask in found.masks.items() if name in wanted}
        if not masks:
            reasons = "; ".join(found.skipped.values()) or "none was proposed"
            raise InputError(f"regions by {self._choice.provider}", f"none ({reasons})", "at least one region")
        return replace(image, masks=masks, skipped={**image.skipped, **found.skipped}), products

    def _segments(self, x_t: torch.Tensor | None) -> tuple[RegionMasks, Products]:
        if x_t is None:
            raise InputError("x_t", "none", "the image's x_t, by which segments are found")
        choice = self._choice
        settings = SegmentSettings(
            count=choice.count,
            rank=choice.rank,
            min_share=choice.min_share,
            max_share=choice.max_share,
            seed=self._recipe.seed,
        )
        found = jacobian_segments(self._denoiser, x_t, self._t, settings, memory=self._recipe.method.memory)
        return found.regions, found.products

    def _generated(self, image: SourceImage) -> tuple[RegionMasks, Products]:
        choice = self._choice
        settings = MaskSettings(
            points_per_side=choice.points_per_side,
            min_score=choice.min_score,
            min_stability=choice.min_stability,
            min_share=choice.min_share,
            max_share=choice.max_share,
            most=choice.count,
        )
        return self._mask_model().masks(image.image, settings).regions, Products()

    def _mask_model(self) -> MaskModel:
        if self._model is None:
            beside = self._recipe.resolve(self._choice.model)
            place = beside if beside.is_dir() else self._choice.model
            try:
                self._model = load_mask_model(place, revision=self._choice.revision, device=self._denoiser.device)
            except ModelError as error:
                field = f"regions.{error.field}" if error.field == "model" else error.field
                raise ModelError(field, error.found, error.expected, error.action) from error
        return self._model
