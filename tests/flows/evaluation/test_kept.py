"""What an evaluation's folder remembers: it comes back as it was written, of one model and recipe, or not at all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.evaluation.cells import Rows
from flows.evaluation.comparison import QUICK
from flows.evaluation.kept import Asked, Kept, KeptFigure, MissingCellError, ReadCells, identity, strict
from flows.evaluation.world import World
from pipeline.intervals import Figure
from tests.flows.evaluation.small_world import never, small_setup
from tests.flows.tiny import parsed

OF = {"recipe": "r", "model": "m"}
ROWS: Rows = [{"image": "a", "roir": math.inf, "psnr": -math.inf, "ok": None, "at": [1, 2.5], "own": {"x": 1e-300}}]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    """A folder with a figure and a comparison."""
    found = Kept(tmp_path, OF)
    found.keep_figure("dots", KeptFigure(ROWS, True))
    found.keep_comparison(Asked(("loco", "random-x"), QUICK))
    return found


def test_rows_come_back_as_they_were_infinities_and_nothing_included(kept: Kept, tmp_path: Path) -> None:
    assert kept.figure("dots") == KeptFigure(ROWS, True)
    parsed((tmp_path / "figures" / "dots.json").read_text())  # strict JSON
    kept.keep_figure("dots", KeptFigure([{"image": "a", "no": math.nan}], False))
    found = kept.figure("dots")
    assert found is not None and math.isnan(found.rows[0]["no"]) and not found.quick
    assert kept.figure("more") is None


def test_the_comparison_comes_back_as_it_was_asked_for(kept: Kept) -> None:
    assert kept.comparison() == Asked(("loco", "random-x"), QUICK)


def test_what_is_of_another_model_or_recipe_is_named_and_not_shown(kept: Kept, tmp_path: Path) -> None:
    assert kept.others() == []
    for other in ({**OF, "model": "n"}, {**OF, "recipe": "s"}, {"recipe": "r"}, {**OF, "images": ["a"]}):
        found = Kept(tmp_path, other)
        assert found.figure("dots") is None and found.comparison() is None
        assert found.others() == ["comparison.json", "figures/dots.json"]


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{", b'{"of": 1}', b'{"of": {}}', b"[" * 100_000])
def test_a_damaged_file_is_a_missing_one(kept: Kept, tmp_path: Path, content: bytes) -> None:
    for path in (tmp_path / "comparison.json", tmp_path / "figures" / "dots.json"):
        path.write_bytes(content)
    assert kept.figure("dots") is None and kept.comparison() is None


@pytest.mark.parametrize(
    "change",
    [
        {"methods": "loco"},
        {"methods": [1]},
        {"methods": None},
        {"size": None},
        {"size": {"images": 3}},
        {"size": {**vars(QUICK), "images": 0}},
        {"size": {**vars(QUICK), "images": "3"}},
        {"size": {**vars(QUICK), "images": 10**30}},
        {"size": {**vars(QUICK), "quick": 1}},
        {"size": {**vars(QUICK), "choosing": -1}},
        {"size": {**vars(QUICK), "more": 1}},
    ],
)
def test_a_comparison_that_nobody_could_have_asked_for_is_none(
    kept: Kept, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps({**parsed(path.read_text()), **change}))
    assert kept.comparison() is None


@pytest.mark.parametrize("change", [{"rows": None}, {"rows": [1]}, {"of": OF}, {"of": {**OF, "quick": "yes"}}])
def test_a_figure_without_rows_is_none(kept: Kept, tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "figures" / "dots.json"
    path.write_text(json.dumps({**parsed(path.read_text()), **change}))
    assert kept.figure("dots") is None


def test_strict_json_tells_infinity_from_nothing() -> None:
    value = {"psnr": Figure(math.inf, 30.0, np.float64("inf"), 3), "kid": (math.nan, -math.inf), "a": np.array([1.5])}  # type: ignore[arg-type]
    told = {"psnr": {"estimate": "inf", "low": 30.0, "high": "inf", "count": 3}, "kid": [None, "-inf"], "a": [1.5]}
    assert strict(value) == told == parsed(json.dumps(strict(value)))
    assert strict(math.nan, nan="nan") == "nan" and strict(Path("a/b")) == "a/b"


def test_cells_that_are_read_only_measure_nothing(tmp_path: Path) -> None:
    setup = small_setup(tmp_path)
    setup.cells.get("dots", {"at": 1}, lambda: [{"x": 1}])
    cells = ReadCells(setup.world)
    assert cells.get("dots", {"at": 1}, never).rows == [{"x": 1}]
    before = sorted(setup.world.folder.rglob("*"))
    with pytest.raises(MissingCellError):
        cells.get("dots", {"at": 2}, never)
    assert sorted(setup.world.folder.rglob("*")) == before


def test_an_evaluation_is_of_its_recipe_model_and_images(tmp_path: Path) -> None:
    world = small_setup(tmp_path).world
    own = identity(world)

    def other(**changes: Any) -> dict[str, Any]:
        recipe = world.recipe.model_copy(update=changes)
        recipe._folder = tmp_path
        return identity(World(recipe, tmp_path / "out", denoiser=world.denoiser))

    assert other(name="renamed", licence=None) == own
    assert other(seed=9) != own
    (tmp_path / "photos" / "a.png").unlink()
    assert other() != own
