"""What a catalog says of how pictures are edited with its directions: the settings that these were measured with."""

from __future__ import annotations

from dataclasses import dataclass

from catalog.reader import Catalog
from flows.recipe import Recipe, parse_recipe
from pipeline.editing import DecodeSettings
from pipeline.images import Fit


@dataclass(frozen=True)
class EditSettings:
    """How pictures are inverted, to timestep index `timestep` in `inversion_steps` steps, and decoded again."""

    timestep: int
    inversion_steps: int
    decode: DecodeSettings


def recipe_of(catalog: Catalog) -> Recipe:
    """The recipe a catalog was mined with."""
    return parse_recipe(catalog.manifest.provenance.recipe)


def fit_of(catalog: Catalog) -> Fit:
    """How the catalog's pictures were cropped and resized, for others like them."""
    return recipe_of(catalog).dataset.resize.fit


def edit_settings(recipe: Recipe, steps: int) -> EditSettings:
    """A recipe's own, for a model of `steps` training timesteps: fractions of them become indices."""
    method, edit = recipe.method, recipe.method.edit
    start, end = edit.h_window or (method.timestep, 0.0)
    window = round(start * steps), round(end * steps)
    decode = DecodeSettings(edit.steps, window, edit.convention, edit.eta, edit.eta_share, recipe.seed)
    return EditSettings(round(method.timestep * steps), method.inversion_steps, decode)
