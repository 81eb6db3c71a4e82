from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flows.evaluation.homogeneity import HOMOGENEITY, distribution, registered_cosine
from flows.evaluation.plots import save
from tests.flows.evaluation.linear_world import linear_setup
from tests.flows.evaluation.small_world import small_setup


def test_an_edit_that_does_the_same_everywhere_agrees_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    rows = HOMOGENEITY.measure(setup)
    assert len(rows) == 3 * 2 * 4 * 2 and all(row["image"] != row["target"] for row in rows)
    for row in rows:
        assert row["cosine"] == pytest.approx(1, abs=1e-4) and row["rms_ratio"] == pytest.approx(1, abs=1e-3)
        assert row["success"] and (row["move"] > 0) == row["rises"] and row["roir"] < 1e-3
    passes = setup.world.counter.passes
    assert HOMOGENEITY.measure(setup) == rows and setup.world.counter.passes == passes
    drawn = HOMOGENEITY.draw(rows)
    assert set(drawn) == {"homogeneity", "homogeneity-loco", "homogeneity-individual"}
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in drawn["homogeneity"].axes)
    assert len(drawn["homogeneity-loco"].axes) == 2 * 5  # two other images; as they are, and four edits
    assert save(drawn["homogeneity-loco"]).startswith(b"\x89PNG")
    assert all("cosine of 1.00" in text and "succeeds on 1.00" in text for text in HOMOGENEITY.conclude(rows))


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
    row = {"method": "loco", "region": "mouth", "target": "z", "rms_ratio": 0.5, "roir": 2.0, "rises": True}
    rows = [
        {**row, "image": "a", "cosine": 0.25, "move": 0.3, "success": False},
        {**row, "image": "a", "cosine": 0.75, "move": -0.3, "success": False},
    ]
    (text,) = HOMOGENEITY.conclude(rows)
    for part in ("cosine of 0.50", "0.50 times its size", "ROIR of 2.00", "same way on 0.50", "succeeds on 0.00"):
        assert part in text
    assert distribution(rows, "cosine")[5] == (0.5, 0.5) and distribution([], "cosine") == []


def test_a_real_model_without_a_reader_is_measured_too(tmp_path: Path) -> None:
    setup = replace(small_setup(tmp_path), quick=True)
    rows = HOMOGENEITY.measure(setup)
    tried = [row for row in rows if "cosine" in row]
    assert len(tried) == 2 * 2 and all(-1 <= row["cosine"] <= 1 and "move" not in row for row in tried)
    assert len(HOMOGENEITY.draw(rows)["homogeneity"].axes) == 2 * 2
    assert "nothing reads" in HOMOGENEITY.conclude(rows)[-1]


def test_without_any_edit_there_is_nothing_to_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = ("left_eye", "right_eye", "mouth", "hair")
    rows = HOMOGENEITY.measure(linear_setup(tmp_path, monkeypatch, refused=refused))
    assert HOMOGENEITY.draw(rows) == {}
    assert HOMOGENEITY.conclude(rows) == ["Left out: the whole figure, for no edit can be tried on another image."]
