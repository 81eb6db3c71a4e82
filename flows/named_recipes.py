"""A recipe given on the command line: a YAML file, or the name alone of one that travels with the package."""

from __future__ import annotations

from pathlib import Path

import yaml

from flows.paths import builtin_recipe, data_folder
from flows.recipe import Recipe, load_recipe, parse_recipe
from pipeline.errors import InputError


def recipe_names() -> list[str]:
    """The names of the recipes that travel with the package."""
    return sorted(path.stem for path in (data_folder() / "recipes").glob("*.yaml"))


def recipe_file(given: Path) -> Path:
    """The YAML file meant by `given`: a file comes before a built-in recipe of that name.

    Raises:
        InputError: neither.
    """
    if given.is_file() or given.suffix or len(given.parts) != 1:
        return given
    if given.name not in recipe_names():
        raise InputError(
            "recipe", f"{given}, which is not a file", f"a YAML recipe, or one of {', '.join(recipe_names())}",
            "Check the path.",
        )  # fmt: skip
    return builtin_recipe(given.name)


def open_recipe(given: Path) -> Recipe:
    """The recipe of a file or a name. Relative paths in it start at the file's folder as it was given; in a recipe that
    was given by name, at the working directory, since it lies where nobody keeps data.

    Raises:
        InputError: no such recipe, or as `load_recipe`.
    """
    file = recipe_file(given)
    return load_recipe(file) if file == given else parse_recipe(yaml.safe_load(file.read_text(encoding="utf-8")))
