from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from flows.evaluation.ablations import ABLATION_TIMESTEP, QUICK_TIMESTEPS, TIMESTEP_PICTURES
from flows.evaluation.plots import save
from tests.flows.evaluation.linear_world import PLACES, linear_setup
from tests.flows.evaluation.small_world import small_setup


def edit(image: str, t: float, roir: float, **more: Any) -> dict[str, Any]:
    """One row of an edit that succeeds where it is local."""
    row = {"image": image, "region": "mouth", "method": "loco", "timestep": t, "roir": roir, "strength": 1.0}
    row |= {"success": roir < 1, "factor": "mouth_smile", "move": 0.3, "other_move": -0.05}
    return {**row, **more}


def test_every_edit_is_measured_at_every_timestep_and_a_rerun_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch, quick=True)
    rows = ABLATION_TIMESTEP.measure(setup)
    assert {(row["method"], row["timestep"], row["region"]) for row in rows} == {
        (method, t, region) for method in ("loco", "individual") for t in QUICK_TIMESTEPS for region in list(PLACES)[:2]
    }
    assert all(row["success"] and row["roir"] < 1e-3 for row in rows) and "pictures" not in rows[0]
    passes = setup.world.counter.passes
    shown = TIMESTEP_PICTURES.measure(setup)  # the same cells, with their pictures
    assert ABLATION_TIMESTEP.measure(setup) == rows and setup.world.counter.passes == passes
    assert [row["roir"] for row in shown] == [row["roir"] for row in rows] and all("pictures" in row for row in shown)


def test_a_real_model_is_measured_without_a_reader_and_it_is_said(tmp_path: Path) -> None:
    setup = small_setup(tmp_path)
    setup = type(setup)(setup.world, setup.cells, quick=True)
    rows = ABLATION_TIMESTEP.measure(setup)
    edits = [row for row in rows if "roir" in row]
    assert {row["method"] for row in edits} == {"loco", "individual"} and all(row["roir"] > 0 for row in edits)
    figure = ABLATION_TIMESTEP.draw(rows)["ablation-timestep"]
    assert len(figure.axes) == 1 and "ROIR" in figure.axes[0].get_ylabel()
    sentences = ABLATION_TIMESTEP.conclude(rows)
    assert "nothing reads" in sentences[-1] and "succeed" not in sentences[0]
    assert save(TIMESTEP_PICTURES.draw(TIMESTEP_PICTURES.measure(setup))["timesteps-1"]).startswith(b"\x89PNG")


def test_sentences_name_the_best_and_worst_timesteps_of_the_rows() -> None:
    rows = [edit("a", 0.2, 0.9), edit("a", 0.4, 0.3), edit("a", 0.6, 2.0)]
    (text,) = ABLATION_TIMESTEP.conclude(rows)
    assert "lowest at 0.4 T, 0.30" in text and "highest at 0.6 T, 2.00" in text
    turned = [edit("a", 0.2, 0.1), edit("a", 0.4, 3.0, success=False), edit("a", 0.6, 2.0)]
    (text,) = ABLATION_TIMESTEP.conclude(turned)
    assert "lowest at 0.2 T, 0.10" in text and "highest at 0.4 T, 3.00" in text and "succeed at 0.2 T, 1.00" in text


def test_a_refused_edit_counts_as_failed_and_does_not_spoil_the_plots() -> None:
    refused = {"image": "b", "region": "mouth", "method": "loco", "timestep": 0.2}
    refused |= {"success": False, "roir": math.inf, "failure": "refused: small"}
    rows = [edit("a", 0.2, 0.5), refused, edit("a", 0.4, 0.5)]
    figure = ABLATION_TIMESTEP.draw(rows)["ablation-timestep"]
    for ax in figure.axes:
        assert ax.get_title() and ax.get_xlabel() == "timestep / T" and ax.get_ylabel()
    shares = figure.axes[1].lines[0].get_ydata()
    assert list(shares) == [0.5, 1.0]
    assert save(figure).startswith(b"\x89PNG")


def test_pictures_of_timesteps_say_how_many_edits_stay_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = linear_setup(tmp_path, monkeypatch, quick=True)
    rows = TIMESTEP_PICTURES.measure(setup)
    drawn = TIMESTEP_PICTURES.draw(rows)
    sheet = drawn["timesteps-1"]
    assert len(sheet.axes) == len(QUICK_TIMESTEPS) * (1 + 2 * 2)  # a reconstruction, two regions, two methods
    assert any("left_openness" in ax.get_xlabel() for ax in sheet.axes)
    assert all("of 2 edits, 2 keep" in text and "2 move the same" in text for text in TIMESTEP_PICTURES.conclude(rows))
    worse = [{**row, "roir": 5.0} if row["timestep"] == 0.4 and row["region"] == "left_eye" else row for row in rows]
    assert all("of 2 edits, 1 keep" in text for text in TIMESTEP_PICTURES.conclude(worse))


def test_a_region_that_nothing_reads_counts_neither_as_success_nor_as_failure() -> None:
    rows = [edit(image, 0.4, 0.2) for image in "abcd"]
    unread = [{"image": image, "region": "cheek", "method": "loco", "timestep": 0.4, "roir": 0.2} for image in "abcd"]
    (text,) = ABLATION_TIMESTEP.conclude(rows + unread)
    assert "1.00" in text and "of those whose attributes are read succeed" in text
    shares, moves = (ABLATION_TIMESTEP.draw(rows + unread)["ablation-timestep"].axes[i].lines[0] for i in (1, 2))
    assert list(shares.get_ydata()) == [1.0] and list(moves.get_ydata()) == [0.3]
    (text,) = TIMESTEP_PICTURES.conclude(rows + unread)
    assert "of 8 edits, 8 keep" in text and "4 of the 4 whose attributes are read move the same" in text


def test_where_nothing_succeeds_or_there_is_one_point_no_best_or_worst_is_named() -> None:
    rows = [edit("a", t, 2.0 + t, success=False) for t in (0.3, 0.4)]
    (text,) = ABLATION_TIMESTEP.conclude(rows)
    assert "no edit succeeds." in text and "most edits" not in text
    (text,) = ABLATION_TIMESTEP.conclude(rows[:1])
    assert "the median ROIR at 0.3 T is 2.30" in text and "lowest" not in text
    (text,) = ABLATION_TIMESTEP.conclude([edit("a", t, 0.5) for t in (0.3, 0.4)])
    assert "is 0.50 at all 2 points" in text and "highest" not in text
    assert "succeed at each point" in text and "most" not in text


def test_an_edit_that_is_refused_at_some_timestep_does_not_move_the_same_at_all_of_them() -> None:
    refused = {"image": "a", "region": "mouth", "method": "loco", "success": False, "roir": math.inf}
    rows = [edit("a", 0.2, 0.2), *({**refused, "timestep": t, "failure": "refused: x"} for t in (0.3, 0.4))]
    assert "; 0 move the same attribute most at all of them" in TIMESTEP_PICTURES.conclude(rows)[0]


def test_more_regions_than_can_be_told_apart_get_another_panel() -> None:
    rows = [edit("a", t, 0.5, region=f"region {i}") for t in (0.2, 0.4) for i in range(9)]
    axes = TIMESTEP_PICTURES.draw(rows)["timesteps-roir"].axes
    assert [len(ax.get_lines()) for ax in axes] == [5, 4]


def test_axes_without_a_single_edit_say_so_and_are_not_blank() -> None:
    refused = [
        {"image": "a", "region": "mouth", "method": m, "timestep": t, "roir": math.inf, "failure": "refused: small"}
        for m in ("loco", "individual")
        for t in (0.2, 0.4)
    ]
    for rows in ([], refused):
        (ax,) = ABLATION_TIMESTEP.draw(rows)["ablation-timestep"].axes
        assert not ax.lines[1:] and "no edit was made" in ax.texts[0].get_text()
    assert not ABLATION_TIMESTEP.draw([edit("a", 0.2, 0.5)])["ablation-timestep"].axes[0].texts
