from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flows.evaluation import composition
from flows.evaluation.composition import COMPOSITION, SETS, drawn_sets, set_moves, set_row
from flows.evaluation.homes import Home
from flows.evaluation.plots import save
from tests.flows.evaluation.linear_world import linear_setup
from tests.flows.evaluation.small_world import small_setup


def home(region: str, factor: str, move: float) -> Home:
    row = {"success": True, "factor": factor, "move": move, "other": "", "other_move": 0.0, "roir": 0.1}
    return Home(region, None, row)


def test_linear_edits_compose_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    rows = COMPOSITION.measure(setup)
    sets = [row for row in rows if "count" in row]
    assert len(sets) == 3 * 2 * (6 + 4 + 1) and {row["count"] for row in sets} == {2, 3, 4}
    for row in sets:
        assert row["cosine"] == pytest.approx(1, abs=1e-5) and row["norm_ratio"] == pytest.approx(1, abs=1e-5)
        assert row["all_moved"] and row["others_stay"] and len(row["parts"]) == row["count"]
        for part in row["parts"]:
            assert part["together"] == pytest.approx(part["summed"], abs=1e-5)
            assert part["alone"] == pytest.approx(part["together"], abs=1e-4)
    passes = setup.world.counter.passes
    assert COMPOSITION.measure(setup) == rows and setup.world.counter.passes == passes
    drawn = COMPOSITION.draw(rows)
    assert set(drawn) == {"composition", "composition-1", "composition-2"}
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in drawn["composition"].axes)
    assert save(drawn["composition-1"]).startswith(b"\x89PNG") and len(drawn["composition-1"].axes) == 2 * 8
    sentences = COMPOSITION.conclude(rows)
    assert "4 at once: cosine 1.00" in sentences[0] and "of 33 sets whose edits" in sentences[1]


def test_a_sum_that_changes_half_as_much_or_the_other_way_is_told() -> None:
    before, step = torch.zeros(3, 4, 4), torch.randn(3, 4, 4)
    half = set_row(before, [before + step, before + step], before + step)
    assert half["cosine"] == pytest.approx(1) and half["norm_ratio"] == pytest.approx(0.5)
    assert set_row(before, [before + step, before], before - step)["cosine"] == pytest.approx(-1)
    nothing = set_row(before, [before + step, before - step], before + step)
    assert nothing["cosine"] != nothing["cosine"] and nothing["norm_ratio"] != nothing["norm_ratio"]


def test_attributes_of_a_sum_are_compared_with_those_of_its_parts() -> None:
    edits = [home("mouth", "mouth_smile", 0.3), home("left_eye", "left_gaze", -0.4)]
    before = {"mouth_smile": 0.5, "left_gaze": 0.5, "hair_colour": 0.5}
    alone = [{**before, "mouth_smile": 0.8, "left_gaze": 0.45}, {**before, "left_gaze": 0.1}]
    moves = set_moves(edits, before, alone, {"mouth_smile": 0.6, "left_gaze": 0.1, "hair_colour": 0.65})
    smile, gaze = moves["parts"]
    assert smile["together"] == pytest.approx(0.1) and smile["alone"] == pytest.approx(0.3)
    assert gaze["summed"] == pytest.approx(0.45) and gaze["alone"] == pytest.approx(0.4)  # both as the edit turns it
    assert not moves["all_moved"] and moves["other_move"] == pytest.approx(0.15) and not moves["others_stay"]
    assert set_moves([home("mouth", "mouth_smile", 0.3)], {}, [{}], {}) == {}


def test_a_real_model_without_a_reader_composes_too(tmp_path: Path) -> None:
    setup = small_setup(tmp_path)
    rows = COMPOSITION.measure(type(setup)(setup.world, setup.cells, quick=True))
    sets = [row for row in rows if "count" in row]
    assert len(sets) == 2 and all(-1 <= row["cosine"] <= 1 and row["norm_ratio"] > 0 for row in sets)
    assert len(COMPOSITION.draw(rows)["composition"].axes) == 2
    assert "nothing reads" in COMPOSITION.conclude(rows)[-1]


def test_one_region_leaves_nothing_to_compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = COMPOSITION.measure(linear_setup(tmp_path, monkeypatch, quick=True, refused=("left_eye",)))
    assert COMPOSITION.draw(rows) == {}
    first, *rest = COMPOSITION.conclude(rows)
    assert first == "Left out: the whole figure, for no image has two regions with edits."
    assert rest[0] == "1 of 2 LOCO edits were refused and are left out."


def test_sets_of_many_edits_are_drawn_and_the_first_is_always_among_them() -> None:
    for count in (2, 3, 4):
        drawn = drawn_sets(12, count, "a")
        assert len(set(drawn)) == SETS and drawn[0] == tuple(range(count)) and drawn == drawn_sets(12, count, "a")
        assert all(len(set(own)) == count and max(own) < 12 for own in drawn) and drawn != drawn_sets(12, count, "b")
    assert drawn_sets(4, 2, "a") == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def test_an_image_with_more_sets_than_are_drawn_has_a_cell_of_that_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composition, "SETS", 3)
    rows = COMPOSITION.measure(linear_setup(tmp_path, monkeypatch))
    assert len([row for row in rows if "count" in row]) == 3 * 2 * (3 + 3 + 1)
    assert len(COMPOSITION.draw(rows)["composition-1"].axes) == 2 * 8
