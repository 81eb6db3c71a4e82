from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.evaluation import homes
from flows.evaluation.cells import Cells
from flows.evaluation.experiment import Setup
from flows.evaluation.far_transfers import TIMESTEPS, TRANSFER_STYLE, TRANSFER_TIME, draw_matrix
from flows.evaluation.plots import panels, save
from flows.evaluation.world import World
from flows.paths import builtin_recipe
from flows.recipe import load_recipe
from tests.flows.evaluation.linear_world import Planted, linear_setup


def builtin_setup(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """The built-in faces and paintings, barely inverted, with planted edits in the place of both methods."""
    recipe = load_recipe(builtin_recipe())
    method = recipe.method.model_copy(update={"inversion_steps": 1})
    world = World(recipe.model_copy(update={"method": method}), folder)
    kinds = {name: type(name, (Planted,), {"name": name}) for name in ("loco", "individual")}
    monkeypatch.setattr(homes, "kind_of", kinds.__getitem__)
    return Setup(world, Cells(folder / "cells", lambda: world.counter.passes), quick=True)


def written(figure: Any) -> list[list[str]]:
    """The numbers on the squares of each panel."""
    return [[text.get_text() for text in ax.texts] for ax in figure.axes]


def test_edits_are_tried_between_all_styles_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = builtin_setup(tmp_path, monkeypatch)
    rows = TRANSFER_STYLE.measure(setup)
    ways = [(row["from"], row["to"]) for row in rows]
    assert set(ways) == {(a, b) for a in ("faces64", "paintings64") for b in ("faces64", "paintings64")}
    assert all(row["iou"] >= 0.5 and row["image"] != row["target"] for row in rows)
    paintings = {image.image_id for image in setup.world.images("holdout", 6, name="paintings64")}
    assert all((row["target"] in paintings) == (row["to"] == "paintings64") for row in rows)
    passes = setup.world.counter.passes
    assert TRANSFER_STYLE.measure(setup) == rows and setup.world.counter.passes == passes
    drawn = TRANSFER_STYLE.draw(rows)
    assert set(drawn) == {"transfer-style", "transfer-style-loco", "transfer-style-individual"}
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in drawn["transfer-style"].axes)
    assert all(len(numbers) == 4 for numbers in written(drawn["transfer-style"]))
    assert all("faces64 to paintings64" in text for text in TRANSFER_STYLE.conclude(rows))


def test_other_data_has_no_second_style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = TRANSFER_STYLE.measure(linear_setup(tmp_path, monkeypatch))
    assert TRANSFER_STYLE.draw(rows) == {}
    assert "only the built-in data" in TRANSFER_STYLE.conclude(rows)[0]


def test_an_edit_that_knows_no_timestep_works_at_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    rows = TRANSFER_TIME.measure(setup)
    assert len(rows) == 3 * 4 * 2 * len(TIMESTEPS) ** 2 and all(row["success"] for row in rows)
    assert {(row["found"], row["applied"]) for row in rows} == {(a, b) for a in TIMESTEPS for b in TIMESTEPS}
    passes = setup.world.counter.passes
    assert TRANSFER_TIME.measure(setup) == rows and setup.world.counter.passes == passes
    figure = TRANSFER_TIME.draw(rows)["transfer-time"]
    assert len(figure.axes) == 4 and written(figure)[0] == ["1.00"] * len(TIMESTEPS) ** 2
    assert save(figure).startswith(b"\x89PNG")
    assert all("found at 1.00" in text and "smaller t) 1.00" in text for text in TRANSFER_TIME.conclude(rows))


def test_conclusions_tell_larger_timesteps_from_smaller_ones() -> None:
    row = {"image": "a", "method": "loco", "region": "mouth", "move": 0.2, "home_success": True}
    rows = [
        {**row, "found": 0.3, "applied": 0.3, "success": True, "roir": 0.1},
        {**row, "found": 0.3, "applied": 0.5, "success": False, "roir": 4.0},
        {**row, "found": 0.5, "applied": 0.3, "success": True, "roir": 0.2},
    ]
    (text,) = TRANSFER_TIME.conclude(rows)
    assert "(larger t) 0.00 (" in text and "succeed, median ROIR 4.00" in text
    assert "(smaller t) 1.00 (" in text and "succeed, median ROIR 0.20" in text
    assert sorted(written(TRANSFER_TIME.draw(rows)["transfer-time"])[0]) == ["0.00", "1.00", "1.00"]


def test_a_number_stands_in_the_row_and_column_of_its_key() -> None:
    _, (ax,) = panels(1)
    draw_matrix(ax, {("a", 0.2): 0.25, ("a", 0.4): 0.5, ("b", 0.4): float("inf")}, ".2f", 1.0)
    places = {text.get_text(): text.get_position() for text in ax.texts}
    assert places == {"0.25": (0, 0), "0.50": (1, 0), "inf": (1, 1)}
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.2", "0.4"]


def test_rows_and_columns_are_in_order_where_some_pairs_are_missing() -> None:
    _, (ax,) = panels(1)
    draw_matrix(ax, {(0.4, 0.4): 1.0, (0.2, 0.2): 1.0, (0.2, 0.6): 1.0, (0.4, 0.2): 1.0}, ".2f", 1.0)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0.2", "0.4"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.2", "0.4", "0.6"]


def test_a_region_that_nothing_reads_leaves_its_square_empty_and_refusals_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"method": "loco", "applied": 0.3, "found": 0.3, "roir": 0.5, "image": "a"}
    rows = [{**row, "success": True, "move": 0.3}, row, {**row, "applied": 0.5}]
    figure = TRANSFER_TIME.draw(rows)["transfer-time"]
    assert written(figure) == [["1.00"], ["0.50", "0.50"]]
    assert "1.00" in TRANSFER_TIME.conclude(rows)[0] and "of the 1 whose" in TRANSFER_TIME.conclude(rows)[0]
    rows = TRANSFER_TIME.measure(linear_setup(tmp_path, monkeypatch, quick=True, refused=("left_eye",)))
    assert "2 of 4 LOCO edits were refused and are left out." in TRANSFER_TIME.conclude(rows)  # of two timesteps
