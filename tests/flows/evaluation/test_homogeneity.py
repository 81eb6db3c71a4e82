from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flows.evaluation import homes
from flows.evaluation.homogeneity import HOMOGENEITY, distribution, registered_cosine
from flows.evaluation.plots import save
from pipeline.errors import InputError
from pipeline.methods.contract import Found
from tests.flows.evaluation.linear_world import Planted, linear_setup
from tests.flows.evaluation.small_world import small_setup


def test_an_edit_that_does_the_same_everywhere_agrees_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    rows = HOMOGENEITY.measure(setup)
    assert len(rows) == 3 * 2 * 4 * 2 * 2 and all(row["image"] != row["target"] for row in rows)
    for row in rows:
        assert row["cosine"] == pytest.approx(1, abs=1e-4) and row["rms_ratio"] == pytest.approx(1, abs=1e-3)
        assert row["success"] and (row["move"] > 0) == row["rises"] and row["roir"] < 1e-3
    passes = setup.world.counter.passes
    assert HOMOGENEITY.measure(setup) == rows and setup.world.counter.passes == passes
    drawn = HOMOGENEITY.draw(rows)
    assert set(drawn) == {"homogeneity", "homogeneity-loco", "homogeneity-individual"}
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in drawn["homogeneity"].axes)
    assert len(drawn["homogeneity-loco"].axes) == 2 * 9  # two other images; unedited, and four edits both ways
    assert save(drawn["homogeneity-loco"]).startswith(b"\x89PNG")
    said = HOMOGENEITY.conclude(rows)
    assert [text.split(":")[0] for text in said[:3]] == ["LOCO, as it is", "LOCO, moved there", "LOCO"]
    for text in (*said[:2], *said[3:5]):
        assert "cosine of 1.00" in text and "; 1.00 (" in text and text.endswith("succeed.")


def test_effects_are_compared_where_the_regions_lie_and_with_their_signs() -> None:
    home, other = (torch.zeros(16, 16, dtype=torch.bool) for _ in range(2))
    home[2:8, 2:8], other[7:13, 5:11] = True, True
    effect = torch.zeros(3, 16, 16)
    effect[:, 2:8, 2:8] = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
    moved = torch.roll(effect, (5, 3), dims=(1, 2))
    assert registered_cosine(effect, moved, home, other) == pytest.approx(1, abs=1e-5)
    assert registered_cosine(effect, -moved, home, other) == pytest.approx(-1, abs=1e-5)
    assert abs(registered_cosine(effect, moved, home, home)) < 0.6
    nothing = registered_cosine(effect, torch.zeros_like(effect), home, other)
    assert nothing != nothing


def test_conclusions_follow_the_rows() -> None:
    row = {
        "method": "loco",
        "region": "mouth",
        "target": "z",
        "moved": False,
        "rms_ratio": 0.5,
        "roir": 2.0,
        "rises": True,
    }
    rows = [
        {**row, "image": "a", "cosine": 0.25, "move": 0.3, "success": False},
        {**row, "image": "a", "cosine": 0.75, "move": -0.3, "success": False},
        {**row, "image": "a", "cosine": 0.5, "region": "cheek"},  # nothing reads it
    ]
    text, _ = HOMOGENEITY.conclude(rows)
    for part in ("cosine of 0.50", "0.50 times its size", "ROIR of 2.00", "same way on 0.50", "the 2 whose"):
        assert part in text
    assert distribution(rows, "cosine")[5] == (0.5, 0.5) and distribution([], "cosine") == []


def test_a_real_model_without_a_reader_is_measured_too(tmp_path: Path) -> None:
    setup = replace(small_setup(tmp_path), quick=True)
    rows = HOMOGENEITY.measure(setup)
    tried = [row for row in rows if "cosine" in row]
    assert len(tried) == 2 * 2 * 2 and all(-1 <= row["cosine"] <= 1 and "move" not in row for row in tried)
    assert len(HOMOGENEITY.draw(rows)["homogeneity"].axes) == 2 * 2 * 2
    assert "nothing reads" in HOMOGENEITY.conclude(rows)[-1]


def test_without_any_edit_there_is_nothing_to_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = ("left_eye", "right_eye", "mouth", "hair")
    rows = HOMOGENEITY.measure(linear_setup(tmp_path, monkeypatch, refused=refused))
    assert HOMOGENEITY.draw(rows) == {}
    first, *rest = HOMOGENEITY.conclude(rows)
    assert first == "Left out: the whole figure, for no edit can be tried on another image."
    assert rest[0] == "12 of 12 LOCO edits were refused and are left out."


class Shifting(Planted):
    """Where an edit is moved, its vector goes with the region; each adds its vector wherever that lies."""

    def moved(self, edit: Found, home: torch.Tensor, target: torch.Tensor) -> Found:
        if edit.region == "hair":
            raise InputError("region", edit.region, "another")
        return replace(edit, vector=None if edit.vector is None else -edit.vector)


def test_a_direction_is_tried_as_it_is_and_moved_and_one_that_cannot_be_moved_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    kinds = {name: type(name, (Shifting,), {"name": name}) for name in ("loco", "individual")}
    monkeypatch.setattr(homes, "kind_of", kinds.__getitem__)
    rows = HOMOGENEITY.measure(setup)
    for row in rows:
        if row["region"] == "hair" and row["moved"]:
            assert row["roir"] == math.inf and row["rms_ratio"] == 0 and row["success"] is False
        else:
            assert row["cosine"] == pytest.approx(-1 if row["moved"] else 1, abs=1e-4)
            assert row["success"] != row["moved"]
    kept, turned = HOMOGENEITY.conclude(rows)[:2]
    assert "cosine of 1.00" in kept and "cosine of -1.00" in turned
    titles = [ax.get_title() for ax in HOMOGENEITY.draw(rows)["homogeneity"].axes]
    assert titles[::3] == ["LOCO, as it is", "LOCO, moved there", "individual, as it is", "individual, moved there"]


def test_shares_of_a_distribution_are_of_all_values_infinite_ones_too() -> None:
    rows = [{"image": "a", "roir": value} for value in (1.0, 2.0, 3.0, math.inf, math.nan)]
    assert distribution(rows, "roir")[0] == (1.0, 0.0)
    assert distribution(rows, "roir")[-1] == (3.0, pytest.approx(0.75))


def test_more_regions_than_can_be_told_apart_get_panels_of_their_own() -> None:
    row = {"image": "a", "target": "z", "method": "loco", "moved": False, "cosine": 0.5, "rms_ratio": 1.0, "roir": 0.5}
    figure = HOMOGENEITY.draw([{**row, "region": f"region {i}"} for i in range(9)])["homogeneity"]
    assert [len(ax.get_lines()) for ax in figure.axes] == [5, 5, 4, 4]
