"""Recipes as parameters of flows: plain JSON on the way there, the same recipe on arrival."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.recipe import Recipe


def as_parameter(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON that reads back as the same one, with what its own JSON leaves out because it belongs to the
    machine."""
    content = recipe.model_dump(mode="json")
    if recipe.method.memory is not None:
        content["method"]["memory"] = recipe.method.memory
    return content


def placed(recipe: Recipe, folder: str) -> Recipe:
    """The recipe with its relative paths starting at `folder`; where that is ".", they start where they did."""
    if folder == ".":
        return recipe
    moved = recipe.model_copy()
    moved._folder = Path(folder)
    return moved


def folder_of_recipe(recipe: Recipe) -> str:
    """Where relative paths of the recipe start, absolute."""
    return str(recipe.resolve(".").absolute())
