from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.datasets.contract import SourceImage
from flows.evaluation import ceiling, homes
from flows.evaluation.experiment import Setup
from flows.evaluation.plots import save
from flows.evaluation.transfers import POSE, TRANSFER, TRANSFER_POSE, spread_targets
from flows.evaluation.world import Split
from pipeline.errors import InputError
from pipeline.faces.factors import FACTORS
from pipeline.methods.contract import Found, Subject
from pipeline.metrics import mask_iou
from tests.flows.evaluation.linear_world import Planted, linear_setup
from tests.flows.evaluation.small_world import small_setup


def subject(name: str, left: int) -> Subject:
    """An image with its mouth, 20 pixels wide, at a column."""
    mask = torch.zeros(8, 64, dtype=torch.bool)
    mask[:, left : left + 20] = True
    return Subject(name, torch.zeros(3, 8, 64), torch.zeros(3, 8, 64), {"mouth": mask})


def give_factors(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three held-out images as if their factors were known: all 0, all 0.5 and all 1."""
    read = setup.world.up_to
    ids = [image.image_id for image in read("holdout", 3)]

    def up_to(split: Split, count: int) -> list[SourceImage]:
        return [
            replace(image, factors=dict.fromkeys(FACTORS, ids.index(image.image_id) / 2), dataset="faces64")
            for image in read(split, count)
        ]

    monkeypatch.setattr(setup.world, "up_to", up_to)


def test_targets_are_spread_over_the_overlap_and_never_the_image_itself() -> None:
    home = subject("home", 0)
    pool = [home, *(subject(f"{column}-{copy}", column) for column in range(0, 40) for copy in range(3))]
    drawn = spread_targets(home, "mouth", pool, 2)
    shares = [float(mask_iou(home.masks["mouth"], target.masks["mouth"])) for target in drawn]
    assert [sum(low <= share < low + 0.2 for share in shares) for low in (0, 0.2, 0.4, 0.6)] == [2, 2, 2, 2]
    assert sum(share >= 0.8 for share in shares) == 2 and home not in drawn
    assert drawn == spread_targets(home, "mouth", pool, 2)
    assert spread_targets(home, "mouth", [home], 2) == [] and spread_targets(home, "mouth", pool[1:2], 2) == [pool[1]]


def test_an_edit_that_works_everywhere_transfers_and_a_rerun_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    rows = TRANSFER.measure(setup)
    assert len(rows) == 3 * 4 * 2 * 2  # images, regions, ways, methods: all pairs lie in one bin
    assert all(row["success"] and row["home_success"] and row["iou"] == 1 for row in rows)
    assert all(row["perfect"] is None for row in rows)  # nobody knows the factors of photographs
    passes = setup.world.counter.passes
    assert TRANSFER.measure(setup) == rows and setup.world.counter.passes == passes
    figure = TRANSFER.draw(rows)["transfer"]
    assert len(figure.axes) == 4 and all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
    assert save(figure).startswith(b"\x89PNG")
    for text in TRANSFER.conclude(rows):
        assert "IoU 0.5 and more (12)" in text and "as it is 1.00 (" in text and "overlap less" not in text


def test_a_perfect_editor_is_asked_with_the_factors_of_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perfect(read: Any, factors: Mapping[str, float], mask: torch.Tensor, region: str, like: Any) -> bool:
        assert mask.shape == (16, 16) and like.factor
        return factors["light"] > 0.25

    monkeypatch.setattr(ceiling, "perfect_transfer", perfect)
    setup = linear_setup(tmp_path, monkeypatch)
    give_factors(setup, monkeypatch)
    rows = TRANSFER.measure(setup)
    first = setup.world.images("holdout", 1)[0].image_id
    assert {row["perfect"] for row in rows} == {True, False}
    assert all(row["perfect"] == (row["target"] != first) for row in rows)
    assert "a perfect editor 0." in TRANSFER.conclude(rows)[0]
    lines = TRANSFER.draw(rows)["transfer"].axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["as it is", "moved there", "perfect editor"]


def test_conclusions_tell_near_pairs_from_far_ones_and_ways_apart() -> None:
    head = {"image": "a", "method": "loco", "region": "mouth", "move": 0.2, "roir": 0.5, "home_success": True}
    rows = [
        {**head, "iou": 0.7, "moved": False, "success": False},
        {**head, "iou": 0.7, "moved": True, "success": True},
        {**head, "iou": 0.3, "moved": False, "success": False},
        {**head, "iou": 0.3, "moved": True, "success": False, "roir": 3.0},
    ]
    (text,) = TRANSFER.conclude(rows)
    near, far = text.split("; ")
    assert "as it is 0.00 (" in near and "moved there 1.00 (" in near
    assert "moved there 0.00 (" in far and "succeed, median ROIR 3.00" in far


def test_pose_takes_the_pairs_of_transfer_with_the_differences_of_their_factors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceiling, "perfect_transfer", lambda *arguments: True)
    setup = linear_setup(tmp_path, monkeypatch)
    give_factors(setup, monkeypatch)
    pairs, passes = TRANSFER.measure(setup), setup.world.counter.passes
    rows = TRANSFER_POSE.measure(setup)
    assert setup.world.counter.passes == passes and len(rows) == len(pairs)
    assert {row["apart_position_x"] for row in rows} <= {0.5, 1.0}
    figure = TRANSFER_POSE.draw(rows)["transfer-pose"]
    assert len(figure.axes) == 2 * len(POSE) and all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
    assert all("too few pairs" in text for text in TRANSFER_POSE.conclude(rows))  # none is near
    for row in rows[: len(rows) // 2]:
        row["apart_position_x"] = 0.1
    said = TRANSFER_POSE.conclude(rows)[0]
    assert "position_x: as it is from 1.00" in said and "at a mean IoU of 1.00 and 1.00" in said


def test_without_known_poses_the_figure_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = TRANSFER_POSE.measure(linear_setup(tmp_path, monkeypatch))
    assert TRANSFER_POSE.draw(rows) == {} and "is not known" in TRANSFER_POSE.conclude(rows)[0]


def test_a_real_model_without_a_reader_is_measured_by_its_locality(tmp_path: Path) -> None:
    setup = replace(small_setup(tmp_path), quick=True)
    rows = TRANSFER.measure(setup)
    tried = [row for row in rows if "moved" in row]
    assert len(tried) == 2 * 2 * 2 and all(row["roir"] > 0 and "success" not in row for row in tried)
    assert len(TRANSFER.draw(rows)["transfer"].axes) == 2
    sentences = TRANSFER.conclude(rows)
    assert "succeed" not in sentences[0] and "nothing reads" in sentences[-1]


def test_transfers_of_a_region_that_nothing_reads_are_no_failures() -> None:
    head = {"image": "a", "method": "loco", "roir": 0.5, "iou": 0.7}
    rows = [
        {**head, "region": region, "moved": moved, **told}
        for region, told in {"mouth": {"success": True, "move": 0.3, "home_success": True}, "cheek": {}}.items()
        for moved in (False, True)
    ]
    (text,) = TRANSFER.conclude(rows)
    assert "as it is 1.00" in text and "of the 1 whose attributes are read succeed" in text
    assert list(TRANSFER.draw(rows)["transfer"].axes[0].get_lines()[0].get_ydata()) == [1.0]


def test_edits_that_were_refused_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = TRANSFER.measure(linear_setup(tmp_path, monkeypatch, quick=True, refused=("left_eye",)))
    assert "1 of 2 LOCO edits were refused and are left out." in TRANSFER.conclude(rows)


class Rooted(Planted):
    """Of its edits nothing is left when they are moved."""

    def moved(self, edit: Found, home: torch.Tensor, target: torch.Tensor) -> Found:
        raise InputError("region", edit.region, "another")


@pytest.mark.parametrize("reader", [True, False])
def test_an_edit_of_which_nothing_is_left_fails_where_attributes_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: bool
) -> None:
    setup = linear_setup(tmp_path, monkeypatch, quick=True, reader=reader)
    kinds = {name: type(name, (Rooted,), {"name": name}) for name in ("loco", "individual")}
    monkeypatch.setattr(homes, "kind_of", kinds.__getitem__)
    moved = [row for row in TRANSFER.measure(setup) if row.get("moved")]
    assert moved and all(row["roir"] == float("inf") for row in moved)
    assert all(row.get("success") is (False if reader else None) for row in moved)
