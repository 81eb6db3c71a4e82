"""The model that a recipe names, opened: the built-in one, a folder, or one of the Hub."""

from __future__ import annotations

from flows.model_choice import BUILTIN, ModelChoice
from flows.paths import builtin_folder
from flows.recipe import Recipe
from pipeline.models.contract import Denoiser
from pipeline.models.loading import load_denoiser


def open_model(model: str | ModelChoice, device: str | None = None) -> Denoiser:
    """The denoiser a recipe names, or a reference: "builtin", a diffusers folder, or a Hub id.

    `device`: a GPU where there is one, if left out.
    """
    chosen = ModelChoice.model_construct(reference=model) if isinstance(model, str) else model
    place = builtin_folder() / "denoiser" if chosen.reference == BUILTIN else chosen.reference
    return load_denoiser(place, device=device, revision=chosen.revision, class_label=chosen.class_label)


def model_place(recipe: Recipe) -> ModelChoice:
    """A recipe's model where it lies: a folder beside the recipe before one in the working directory or on the Hub."""
    beside = recipe.resolve(recipe.model.reference)
    here = recipe.model.reference != BUILTIN and beside.is_dir()
    return recipe.model.model_copy(update={"reference": str(beside)}) if here else recipe.model
