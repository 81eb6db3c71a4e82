from __future__ import annotations

import pytest

from flows.evaluation.series import (
    curve,
    listed,
    measured,
    names,
    of,
    omissions,
    size,
    statistic,
    succeeded,
    success_told,
    written,
)
from pipeline.intervals import Figure

ROWS = [
    {"image": "a", "t": 1, "roir": 1.0, "success": True},
    {"image": "b", "t": 1, "roir": 3.0},
    {"image": "a", "t": 2, "roir": 5.0, "success": False},
]


def test_a_curve_has_a_point_per_value_within_its_interval() -> None:
    points = curve(ROWS, "t", "roir")
    assert [point[:2] for point in points] == [(1.0, 2.0), (2.0, 5.0)]
    assert all(low <= estimate <= high for _, estimate, low, high in points)
    assert statistic(ROWS, succeeded, "mean").estimate == pytest.approx(1 / 2)


def test_rows_are_chosen_and_named_in_their_order() -> None:
    assert of(ROWS, image="a", t=2) == ROWS[2:]
    assert names([{"x": 2}, {"y": 1}, {"x": 1}, {"x": 2}], "x") == [2, 1]


def test_an_interval_is_written_where_there_is_one() -> None:
    assert written(Figure(0.5, 0.25, 0.75, 8)) == "0.50 (0.25 to 0.75)"
    assert written(Figure(0.5, 0.5, 0.5, 1)) == "0.50"


def test_lists_are_written_as_people_do() -> None:
    assert [listed(part) for part in ("", "a", "ab", "abc")] == ["none", "a", "a and b", "a, b and c"]


def test_what_was_left_out_is_said_with_its_reason() -> None:
    rows = [*ROWS, {"kind": "left out", "what": "success", "why": "nothing reads"}]
    assert omissions(rows) == ["Left out: success, for nothing reads."]


def test_a_region_that_nothing_reads_is_neither_success_nor_failure_nor_still() -> None:
    refused, unread = {"image": "a", "success": False}, {"image": "b", "roir": 1.0}
    assert (succeeded(refused), succeeded(unread), succeeded({"success": None})) == (0.0, None, None)
    rows = [{"image": "a", "success": True, "other_move": -0.4}, unread]
    moves = statistic(rows, size("other_move"))
    assert (moves.estimate, moves.count) == (0.4, 1) and statistic([refused], size("other_move")).estimate == 0.0
    assert success_told(rows).startswith("1.00") and success_told(rows).endswith(
        "of the 1 whose attributes are read succeed"
    )
    assert "whose" not in success_told(rows[:1])


def test_sentences_that_rows_bring_with_them_are_said_and_not_measured() -> None:
    rows = [*ROWS, {"kind": "note", "text": "Two were refused."}]
    assert omissions(rows) == ["Two were refused."] and measured(rows) == ROWS
