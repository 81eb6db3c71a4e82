from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.evaluation.plots import save
from flows.evaluation.strengths import ABLATION_STRENGTH, ATTRIBUTE_LINEARITY, BOTH_SIDES, MULTIPLES, fits
from tests.flows.evaluation.linear_world import linear_setup


def line(moves: dict[float, float], **more: Any) -> list[dict[str, Any]]:
    """Rows of one edit with these changes of its attribute by multiple of the visible strength."""
    head = {"image": "a", "region": "mouth", "method": "loco", "rises": True, **more}
    return [{**head, "multiple": multiple, "move": move} for multiple, move in moves.items()]


def test_a_linear_edit_grows_with_strength_and_succeeds_where_it_moves_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    rows = ABLATION_STRENGTH.measure(setup)
    assert len(rows) == 3 * 4 * 2 * len(MULTIPLES)
    for row in rows:
        assert row["rms"] == pytest.approx(0.15 * row["multiple"], rel=0.06)
        assert abs(row["move"]) == pytest.approx(2 * row["rms"], abs=1e-3) and row["roir"] < 1e-3
        assert row["success"] == (abs(row["move"]) >= 0.15)
    passes, before = setup.world.counter.passes, [row["rms"] for row in rows]
    assert [row["rms"] for row in ABLATION_STRENGTH.measure(setup)] == before
    assert setup.world.counter.passes == passes
    figure = ABLATION_STRENGTH.draw(rows)["ablation-strength"]
    assert len(figure.axes) == 4 and all("strength" in ax.get_xlabel() for ax in figure.axes)
    assert len(ABLATION_STRENGTH.conclude(rows)) == 2


def test_a_linear_attribute_is_a_straight_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ATTRIBUTE_LINEARITY.measure(linear_setup(tmp_path, monkeypatch))
    found = fits(rows)
    assert len(found) == 3 * 4 * 2 and len(rows) == len(found) * len(BOTH_SIDES)
    for one in found:
        assert one["r2"] == pytest.approx(1, abs=1e-4) and one["agreement"] == pytest.approx(1, abs=1e-2)
        assert one["slope"] > 0 and one["monotone"]
    figure = ATTRIBUTE_LINEARITY.draw(rows)["attribute-linearity"]
    assert len(figure.axes) == 3 and all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
    assert save(figure).startswith(b"\x89PNG")
    assert all("R^2 of 1.00" in text for text in ATTRIBUTE_LINEARITY.conclude(rows))


def test_without_a_reader_there_is_nothing_to_fit_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ATTRIBUTE_LINEARITY.measure(linear_setup(tmp_path, monkeypatch, reader=False))
    assert ATTRIBUTE_LINEARITY.draw(rows) == {}
    assert ATTRIBUTE_LINEARITY.conclude(rows) == [
        "Left out: the whole figure, for nothing reads the attributes of these pictures."
    ]


def test_an_attribute_that_saturates_on_one_side_agrees_less_and_one_that_turns_back_is_not_monotone() -> None:
    (saturated,) = fits(line({-2.0: -0.05, -1.0: -0.05, 1.0: 0.2, 2.0: 0.4}))
    assert saturated["monotone"] and saturated["agreement"] == pytest.approx(0.15) and saturated["r2"] < 0.95
    (bent,) = fits(line({-2.0: 0.4, -1.0: 0.2, 1.0: 0.2, 2.0: 0.4}))
    assert not bent["monotone"] and bent["agreement"] == pytest.approx(-1) and bent["r2"] == pytest.approx(0)


def test_an_edit_that_lowers_its_attribute_has_a_positive_slope_too() -> None:
    (fit,) = fits(line({-1.0: 0.2, 1.0: -0.2}, rises=False))
    assert fit["slope"] == pytest.approx(0.2) and fit["monotone"]


def test_an_attribute_that_never_moves_has_no_straightness_and_is_left_out_of_the_median() -> None:
    still = line({-1.0: 0.0, 1.0: 0.0}, image="b")
    (fit,) = fits(still)
    assert fit["r2"] != fit["r2"] and fit["agreement"] != fit["agreement"]
    (text,) = ATTRIBUTE_LINEARITY.conclude(still + line({-1.0: -0.3, 1.0: 0.3}))
    assert "R^2 of 1.00" in text and "1 of 2 edits move their own attribute by 0.15 or more" in text


def test_an_attribute_that_hardly_moves_is_not_told_as_monotone() -> None:
    zigzag = line({-2.0: 0.004, -1.0: -0.004, 1.0: 0.004, 2.0: -0.004}, image="b")
    (fit,) = fits(zigzag)
    assert not fit["moves"]
    bent = line({-1.0: 0.3, 1.0: 0.3})
    assert "0 of 1 edits move" in ATTRIBUTE_LINEARITY.conclude(zigzag)[0]
    (text,) = ATTRIBUTE_LINEARITY.conclude(zigzag + bent)
    assert "1 of 2 edits move" in text and "and 0.00 " in text.split("slope, ")[1]
    straightness = ATTRIBUTE_LINEARITY.draw(zigzag + bent)["attribute-linearity"].axes[-1].get_lines()[0]
    assert len(straightness.get_xdata()) == 3  # 0, one edit, and 1


def test_edits_that_are_never_visible_are_told_where_strengths_count_in_visible_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ABLATION_STRENGTH.measure(linear_setup(tmp_path, monkeypatch, quick=True, limit=0.5))
    assert "2 of 2 LOCO edits stay weaker than visible" in ABLATION_STRENGTH.conclude(rows)[-2]


def test_more_regions_than_can_be_told_apart_get_panels_of_their_own() -> None:
    rows = [row for i in range(9) for row in line({-1.0: -0.3, 1.0: 0.3}, region=f"region {i}")]
    axes = ATTRIBUTE_LINEARITY.draw(rows)["attribute-linearity"].axes
    assert [len(ax.get_lines()) for ax in axes] == [5, 4, 1]


def test_refused_edits_have_no_strengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ABLATION_STRENGTH.measure(linear_setup(tmp_path, monkeypatch, quick=True, refused=("left_eye",)))
    assert {row["region"] for row in rows if "region" in row} == {"right_eye"}
    assert "1 of 2 LOCO edits were refused and are left out." in ABLATION_STRENGTH.conclude(rows)
