from __future__ import annotations

from pathlib import Path

import pytest

from flows.evaluation.grids import GRIDS, WEIGHTS, shares
from flows.evaluation.plots import save
from tests.flows.evaluation.linear_world import linear_setup

DOWN = [[weight] * 5 for weight in WEIGHTS]
ACROSS = [list(WEIGHTS)] * 5


def test_linear_edits_move_their_own_attribute_along_their_own_axis_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    rows = GRIDS.measure(setup)
    assert len(rows) == 3 * 2 * 2  # three images, two methods, two pairs of four regions
    assert {tuple(row["of"]) for row in rows} == {("left_eye", "mouth"), ("right_eye", "hair")}
    for row in rows:
        for axis, readings in enumerate(row["readings"]):
            found = shares(readings, axis)
            assert found["own"] == pytest.approx(1, abs=1e-4) and found["other"] == pytest.approx(0, abs=1e-4)
    passes = setup.world.counter.passes
    assert GRIDS.measure(setup) == rows and setup.world.counter.passes == passes
    drawn = GRIDS.draw(rows)
    assert set(drawn) == {*(f"grid-{i}" for i in range(1, 9)), "grids"}
    assert len(drawn["grid-1"].axes) == 25 and "left_openness" in drawn["grid-1"].axes[0].get_xlabel()
    assert all(ax.get_xlabel() and ax.get_ylabel() and len(ax.lines) == 5 for ax in drawn["grids"].axes)
    assert save(drawn["grid-1"]).startswith(b"\x89PNG")
    assert all("median share of 1.00" in text for text in GRIDS.conclude(rows))


def test_shares_tell_own_axis_other_axis_and_both_apart() -> None:
    product = [[down * across for across in WEIGHTS] for down in WEIGHTS]
    assert shares(DOWN, 0) == {"own": pytest.approx(1), "other": pytest.approx(0), "both": pytest.approx(0)}
    assert shares(DOWN, 1) == {"own": pytest.approx(0), "other": pytest.approx(1), "both": pytest.approx(0)}
    assert shares(ACROSS, 1)["own"] == pytest.approx(1)
    assert shares(product, 0) == {"own": pytest.approx(0), "other": pytest.approx(0), "both": pytest.approx(1)}
    still = shares([[0.5] * 5] * 5, 0)
    assert all(value != value for value in still.values())


def test_without_a_reader_there_are_pictures_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = GRIDS.measure(linear_setup(tmp_path, monkeypatch, quick=True, reader=False))
    drawn = GRIDS.draw(rows)
    assert set(drawn) == {"grid-1", "grid-2"} and drawn["grid-1"].axes[0].get_xlabel() == ""
    (text,) = GRIDS.conclude(rows)
    assert "nothing reads" in text


def test_axes_along_which_the_own_attribute_hardly_moves_have_no_share() -> None:
    still = [[0.004 * (-1) ** (i + j) for j in range(5)] for i in range(5)]
    row = {"image": "a", "method": "loco", "of": ["mouth", "hair"], "factors": ["f", "g"], "rises": [True, True]}
    (text,) = GRIDS.conclude([{**row, "readings": [DOWN, still]}])
    assert "1 of 2 edits move their own attribute" in text and "median share of 1.00" in text
    assert len(GRIDS.draw([{**row, "readings": [DOWN, still]}])["grids"].axes) == 1
    (none,) = GRIDS.conclude([{**row, "readings": [still, still]}])
    assert "0 of 2 edits" in none and "share" not in none and GRIDS.draw([{**row, "readings": [still, still]}]) == {}


def test_refused_and_invisible_edits_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = linear_setup(tmp_path, monkeypatch, refused=("mouth",), limit=0.5)
    said = GRIDS.conclude(GRIDS.measure(setup))
    assert "3 of 12 LOCO edits were refused and are left out." in said
    assert any("9 of 9 LOCO edits stay weaker than visible" in text for text in said)
