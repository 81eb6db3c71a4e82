"""A recipe that travels as a parameter of a flow arrives as the same recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.named_recipes import open_recipe, recipe_names
from flows.orchestration.jobs import mine, refresh
from flows.orchestration.parameters import as_parameter, folder_of_recipe, placed
from flows.orchestration.places import absolute
from flows.recipe import Recipe, load_recipe
from pipeline.errors import InputError
from tests.flows import tiny


def arrived(recipe: Recipe) -> Recipe:
    """The recipe as a flow gets it that a server ran from stored JSON."""
    stored = json.loads(json.dumps(as_parameter(recipe), allow_nan=False))
    found = mine.validate_parameters({"recipe": stored, "catalog": "/c"})["recipe"]
    assert isinstance(found, Recipe)
    return found


@pytest.mark.parametrize("name", recipe_names())
def test_every_built_in_recipe_arrives_the_same(name: str) -> None:
    recipe = open_recipe(Path(name))
    assert arrived(recipe) == recipe
    assert arrived(recipe).fingerprint() == recipe.fingerprint()


def test_a_memory_budget_and_relative_paths_arrive_too(tmp_path: Path) -> None:
    recipe = load_recipe(tiny.recipe(tmp_path, Path("model"), method={"memory": "4GB"}))
    found = placed(arrived(recipe), folder_of_recipe(recipe))
    assert found.method.memory == recipe.method.memory == 4_000_000_000
    assert found.resolve("photos") == tmp_path / "photos"


def test_a_recipe_given_in_the_same_process_keeps_where_its_paths_start(tmp_path: Path) -> None:
    recipe = load_recipe(tiny.recipe(tmp_path, Path("model")))
    found = refresh.validate_parameters({"recipe": recipe, "catalog": "/c"})
    assert placed(found["recipe"], found["folder"]).resolve("photos") == tmp_path / "photos"


def test_a_misspelt_key_of_a_parameter_is_refused() -> None:
    with pytest.raises(Exception, match="Extra inputs"):
        mine.validate_parameters({"recipe": {**as_parameter(open_recipe(Path("ffhq"))), "sed": 1}, "catalog": "/c"})


@pytest.mark.parametrize("url", ["s3://user:secret@bucket/c", "s3://secret@bucket/c", "https://h/c?token=secret"])
def test_a_place_with_credentials_is_refused_and_they_are_not_repeated(url: str) -> None:
    with pytest.raises(InputError, match="credentials") as caught:
        absolute(url, "--out")
    assert "secret" not in str(caught.value)


def test_places_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("c") == str(tmp_path / "c")
    assert absolute("s3://bucket/c/") == "s3://bucket/c"
    with pytest.raises(InputError, match="nothing"):
        absolute(" ")
