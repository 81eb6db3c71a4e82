from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.evaluation import homes, rank_ablations
from flows.evaluation.experiment import Setup
from flows.evaluation.plots import save
from flows.evaluation.rank_ablations import ABLATION_NULL_RANK, ABLATION_RANKS
from pipeline.methods.components import IndividualSettings
from tests.flows.evaluation.small_world import small_setup


def quick(folder: Path) -> Setup:
    return replace(small_setup(folder), quick=True)


def row(joint: int, individual: int, roir: float, **more: Any) -> dict[str, Any]:
    return {"image": "a", "region": "mouth", "joint_rank": joint, "individual_rank": individual, "rank": 4,
            "roir": roir, **more}  # fmt: skip


def test_null_ranks_are_measured_and_a_rerun_measures_nothing(tmp_path: Path) -> None:
    setup = quick(tmp_path)
    rows = ABLATION_NULL_RANK.measure(setup)
    edits = [one for one in rows if "null_rank" in one]
    assert {(one["region"], one["null_rank"]) for one in edits} == {
        (r, n) for r in ("eye", "mouth") for n in (0, 5, 30)
    }
    passes = setup.world.counter.passes
    assert ABLATION_NULL_RANK.measure(setup) == rows and setup.world.counter.passes == passes
    figure = ABLATION_NULL_RANK.draw(rows)["ablation-null-rank"]
    assert "null rank" in figure.axes[0].get_xlabel()
    assert "lowest at null rank " in ABLATION_NULL_RANK.conclude(rows)[0]


def test_ranks_that_fit_are_measured_once_and_share_one_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_ablations, "QUICK_JOINT_RANKS", (0, 3, 50))
    monkeypatch.setattr(rank_ablations, "QUICK_INDIVIDUAL_RANKS", (1, 2, 3))
    setup = quick(tmp_path)
    work: list[object] = []
    original = rank_ablations._Ranks._blocks
    monkeypatch.setattr(rank_ablations._Ranks, "_blocks", lambda self: work.append(1) or original(self))
    rows = ABLATION_RANKS.measure(setup)
    pairs = {(one["joint_rank"], one["individual_rank"]) for one in rows if "joint_rank" in one}
    assert pairs == {(0, 1), (0, 2), (3, 1), (3, 2)}  # blocks are of rank 2, three of them
    assert len(work) == 1
    assert ABLATION_RANKS.measure(setup) == rows and len(work) == 1
    plain = {one["roir"] for one in rows if one.get("joint_rank") == 0 and one["region"] == "eye"}
    assert max(plain) == pytest.approx(min(plain), rel=1e-3)  # the first vector is the same, whatever the rank


def test_the_maps_have_a_number_in_every_cell_and_axes_with_names() -> None:
    rows = [row(j, i, 0.5 + 0.1 * j + 0.01 * i, success=j == 0, move=0.2, factor="f") for j in (0, 5) for i in (1, 2)]
    figure = ABLATION_RANKS.draw(rows)["ablation-ranks"]
    maps = [ax for ax in figure.axes if ax.get_xlabel()]
    assert [[text.get_text() for text in ax.texts] for ax in maps] == [
        ["0.51", "1.01", "0.52", "1.02"],
        ["1.00", "0.00", "1.00", "0.00"],
    ]
    assert all(ax.get_xlabel() == "joint rank" and ax.get_ylabel() == "individual rank" for ax in maps)
    assert save(figure).startswith(b"\x89PNG")


def test_cells_without_room_are_empty_and_sentences_follow_the_rows() -> None:
    rows = [row(0, 1, 0.9), row(5, 1, 0.4), row(5, 2, 0.6)]
    figure = ABLATION_RANKS.draw(rows)["ablation-ranks"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.90", "0.40", "none", "0.60"]
    text = " ".join(ABLATION_RANKS.conclude(rows))
    assert "lowest at joint rank 5 with individual rank 1, 0.40" in text and "highest at 0 with 1, 0.90" in text
    assert "blocks of rank 4" in text and "succeed" not in text


def test_one_pair_of_ranks_is_neither_lowest_nor_highest() -> None:
    text = " ".join(ABLATION_RANKS.conclude([row(0, 1, 0.4, success=True, move=0.2, factor="f")]))
    assert "0.40 at joint rank 0 with individual rank 1, the only ranks there was room for; blocks of rank 4" in text
    assert "lowest" not in text and "highest" not in text and "Without a joint part" not in text
    assert re.search(r"Of the edits, 1\.00.* succeed\.", text) and "Most edits" not in text


def test_ranks_that_are_all_alike_are_said_to_be() -> None:
    rows = [row(joint, 1, 0.4, success=False, move=0.2, factor="f") for joint in (0, 5)]
    text = " ".join(ABLATION_RANKS.conclude(rows))
    assert "The median ROIR is 0.40 at all 2 pairs of ranks" in text and "lowest" not in text
    assert re.search(r"Of the edits, 0\.00.* succeed at each of these pairs\.", text)


def test_a_model_without_a_bottleneck_has_no_ranks_to_compare(tmp_path: Path) -> None:
    setup = quick(tmp_path)
    setup.world.denoiser.info = replace(setup.world.denoiser.info, bottleneck_shape=None)
    rows = ABLATION_RANKS.measure(setup)
    assert ABLATION_RANKS.draw(rows) == {}
    assert "this model has no bottleneck" in ABLATION_RANKS.conclude(rows)[0]


def test_ranks_that_some_image_has_no_room_for_are_not_compared() -> None:
    rows = [{**row(j, 1, 0.2 if image == "a" else 1.0), "image": image} for image in "ab" for j in (0, 30)]
    rows.append(row(40, 1, 0.1))
    text = " ".join(ABLATION_RANKS.conclude(rows))
    assert "is 0.60 at all 2 pairs of ranks" in text
    assert "Not compared: joint rank 40 with individual rank 1, for which 1 of 2 images have room." in text
    assert [one.get_text() for one in ABLATION_RANKS.draw(rows)["ablation-ranks"].axes[0].texts] == ["0.60", "0.60"]
    null = [{**one, "method": "loco", "null_rank": one["joint_rank"]} for one in rows]
    first, told = ABLATION_NULL_RANK.conclude(null)
    assert "0.60 at all 2 points" in first
    assert told == "Not compared: null rank 40, for which 1 of 2 images have room."


def test_a_recipe_with_orthogonal_individuals_is_measured_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_ablations, "QUICK_JOINT_RANKS", (0, 3, 4))
    monkeypatch.setattr(rank_ablations, "QUICK_INDIVIDUAL_RANKS", (1, 2))
    settings = IndividualSettings(rank=2, orthogonal_individuals=True)
    monkeypatch.setattr(homes, "base_settings", lambda kind, world: settings)
    rows = ABLATION_RANKS.measure(quick(tmp_path))
    pairs = {(one["joint_rank"], one["individual_rank"]) for one in rows if "joint_rank" in one}
    assert pairs == {(0, 1), (0, 2), (3, 1)}  # three blocks of rank 2
