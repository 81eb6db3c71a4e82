"""What was measured is kept: read again as it was, never half, and never in place of something else."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.evaluation import cells as module
from flows.evaluation.cells import Cells, digest, write
from flows.plain import plain
from tests.flows.evaluation.small_world import never

KEY = {"model": "m", "settings": {"timestep": 0.4}, "images": ["a", "b"]}
ROWS = [{"image": "a", "roir": 0.5}, {"image": "b", "roir": 0.25}]


def only_file(folder: Path) -> Path:
    (file,) = [path for path in folder.rglob("*") if path.is_file()]
    return file


def test_a_rerun_reads_what_it_measured_and_measures_nothing(tmp_path: Path) -> None:
    spent = 7

    def make() -> list[dict[str, Any]]:
        nonlocal spent
        spent += 35
        return ROWS

    first = Cells(tmp_path, lambda: spent)
    assert not first.has("rank", KEY)
    cell = first.get("rank", KEY, make)
    assert (cell.rows, cell.passes) == (ROWS, 35) and cell.seconds >= 0
    again = Cells(tmp_path, lambda: spent)
    assert again.has("rank", KEY)
    assert again.get("rank", KEY, never) == cell


def test_a_cell_says_where_its_seconds_were_measured_if_anybody_knows(tmp_path: Path) -> None:
    Cells(tmp_path, machine="a mainframe").get("rank", KEY, lambda: ROWS)
    found = Cells(tmp_path, machine="a laptop").get("rank", KEY, never)
    assert found.machine == "a mainframe"
    content = json.loads(only_file(tmp_path).read_text())
    del content["machine"]
    only_file(tmp_path).write_text(json.dumps(content))
    assert Cells(tmp_path, machine="a laptop").get("rank", KEY, never).machine == ""


def test_every_part_of_the_key_and_the_experiment_makes_another_cell(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    cells.get("rank", KEY, lambda: ROWS)
    others: list[dict[str, Any]] = [
        {**KEY, "model": "n"},
        {**KEY, "settings": {"timestep": 0.5}},
        {**KEY, "images": ["b", "a"]},
        {**KEY, "more": None},
    ]
    assert not any(cells.has("rank", other) for other in others)
    assert not cells.has("spectra", KEY)
    assert cells.has("rank", dict(reversed(KEY.items())))  # the order of names says nothing
    assert cells.has("rank", {**KEY, "images": ("a", "b")})  # nor does the kind of sequence


def test_raising_the_version_measures_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cells(tmp_path).get("rank", KEY, lambda: ROWS)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert not Cells(tmp_path).has("rank", KEY)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"\xff" + content,
        lambda content: b"[]",
        lambda content: b"null",
        lambda content: content.replace(b'"rows"', b'"lines"'),
        lambda content: json.dumps({**json.loads(content), "rows": "none"}).encode(),
        lambda content: content.replace(b"0.4", b"0.7"),  # of other settings, under this one's name
    ],
    ids=["empty", "half", "not text", "a list", "nothing", "without rows", "rows that are none", "foreign"],
)
def test_a_damaged_or_foreign_file_counts_as_missing_and_is_replaced(damage: Any, tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    cells.get("rank", KEY, lambda: ROWS)
    file = only_file(tmp_path)
    broken = damage(file.read_bytes())
    assert broken != file.read_bytes()
    file.write_bytes(broken)
    assert not cells.has("rank", KEY)
    assert cells.get("rank", KEY, lambda: ROWS[:1]).rows == ROWS[:1]
    assert only_file(tmp_path) == file
    assert cells.get("rank", KEY, never).rows == ROWS[:1]


def test_nan_and_infinities_come_back(tmp_path: Path) -> None:
    rows = [{"roir": math.inf, "move": -math.inf, "lpips": math.nan, "none": None}]
    Cells(tmp_path).get("rank", KEY, lambda: rows)
    (row,) = Cells(tmp_path).get("rank", KEY, never).rows
    assert (row["roir"], row["move"], row["none"]) == (math.inf, -math.inf, None)
    assert math.isnan(row["lpips"])


def test_rows_are_the_same_before_and_after_they_were_kept(tmp_path: Path) -> None:
    @dataclass
    class Point:
        at: tuple[float, float]

    made = Cells(tmp_path).get("rank", KEY, lambda: [{"point": Point((0.1, 0.2)), "ranks": (1, 2), "é": {3: "ü"}}])
    assert made.rows == [{"point": {"at": [0.1, 0.2]}, "ranks": [1, 2], "é": {"3": "ü"}}]
    assert Cells(tmp_path).get("rank", KEY, never) == made


def test_a_measurement_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails() -> Any:
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        Cells(tmp_path).get("rank", KEY, fails)
    with pytest.raises(TypeError):
        Cells(tmp_path).get("rank", KEY, lambda: [{"value": object()}])
    assert not list(tmp_path.rglob("*.json"))


def test_a_file_is_put_in_place_whole_and_an_older_one_stays_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "folder" / "page.html"
    write(file, "old")

    def power_cut(descriptor: int) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", power_cut)
        with pytest.raises(OSError, match="power cut"):
            write(file, "new and longer")
    assert file.read_text() == "old"
    write(file, b"bytes")
    assert file.read_bytes() == b"bytes"


def test_what_lies_in_other_folders_is_taken_from_there_and_not_copied(tmp_path: Path) -> None:
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    Cells(shipped).get("rank", KEY, lambda: ROWS)
    cells = Cells(own, also=[tmp_path / "nowhere", shipped])
    assert cells.has("rank", KEY)
    assert cells.get("rank", KEY, never).rows == ROWS
    assert not own.exists()


def test_an_own_cell_comes_before_one_that_travels_and_a_damaged_one_after_it(tmp_path: Path) -> None:
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    Cells(shipped).get("rank", KEY, lambda: ROWS)
    Cells(own).get("rank", KEY, lambda: ROWS[:1])
    both = Cells(own, also=[shipped])
    assert both.get("rank", KEY, never).rows == ROWS[:1]
    only_file(own).write_text("{")
    assert both.get("rank", KEY, never).rows == ROWS
    only_file(shipped).write_text("{")
    assert both.get("rank", KEY, lambda: []).rows == []
    assert only_file(shipped).read_text() == "{"  # what travels with the package is never written to


def test_files_for_others_hold_no_numbers_that_json_lacks() -> None:
    value = plain({"a": (math.nan, 1.5), "b": [{"c": math.inf}], "d": "NaN", "e": True}, float)
    assert plain(value) == {"a": [None, 1.5], "b": [{"c": None}], "d": "NaN", "e": True}
    json.dumps(plain(value), allow_nan=False)


def test_a_digest_is_the_same_everywhere() -> None:
    assert digest({"b": 1, "a": (2, "x")}) == digest({"a": [2, "x"], "b": 1}) == "bb88b998db0f78be70e8a245"
