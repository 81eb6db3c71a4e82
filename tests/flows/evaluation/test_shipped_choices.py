"""Choices of settings that travel with the package: a comparison of the built-in faces takes them as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.evaluation.comparison import FULL, Comparison, kind_of, learns
from flows.evaluation.filling import open_comparison
from flows.evaluation.world import shipped_folder
from flows.named_recipes import open_recipe
from pipeline.methods.choices import METHODS


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return open_comparison(open_recipe(Path("faces64-demo")), tmp_path_factory.mktemp("out"), FULL)


def test_every_choice_that_travels_is_of_settings_that_are_tried(comparison: Comparison) -> None:
    shipped = {path.name for path in (shipped_folder() / "cells" / "choosing").iterdir()}
    used, whole = set(), []
    for name in (name for name in METHODS if not comparison.lacking(name)):
        tasks = comparison.choosing(name)
        missing = comparison.missing(tasks)
        assert len(missing) in (0, len(tasks)), f"{name}: some of its settings were tried and others were not"
        used |= {comparison.cell_name(task) for task in tasks}
        whole += [name] if tasks and not missing else []
    assert shipped <= used and whole


def test_a_choice_that_travels_is_made_without_measuring(comparison: Comparison) -> None:
    before = comparison.world.counter.passes
    for name in (name for name in METHODS if not comparison.lacking(name)):
        tasks = comparison.choosing(name)
        if not tasks or comparison.missing(tasks):
            continue
        chosen = comparison.chosen(name)
        assert chosen.by == FULL.choosing and len(chosen.tried) == len(tasks)
        if learns(kind_of(name)):
            method = comparison.method(name, chosen.settings)
            assert method.learned() and comparison.learning(name, chosen.settings).images == method.images
    assert comparison.world.counter.passes == before
