from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows.evaluation import homes
from flows.evaluation.absence import TRANSFER_ABSENT, without
from flows.evaluation.plots import save
from pipeline.methods.contract import Found, Subject
from tests.flows.evaluation import linear_world
from tests.flows.evaluation.linear_world import PLACES, Planted, linear_setup
from tests.flows.evaluation.small_world import small_setup

USUAL = 0.045  # standard deviation of the grains in the photographs of `linear_world`


class Grainy(Planted):
    """Changes a region in proportion to the grain that it finds there: nothing where there is none."""

    def apply(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> torch.Tensor:
        grains = [float(s.picture[:, s.masks[e.region]].std()) for e, s in zip(edits, subjects, strict=True)]
        return super().apply(edits, subjects, strengths * torch.tensor(grains, dtype=strengths.dtype) / USUAL)


def test_an_edit_that_needs_the_part_does_little_without_it_and_the_control_is_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    kinds = {name: type(name, (Grainy,), {"name": name}) for name in ("loco", "individual")}
    monkeypatch.setattr(homes, "kind_of", kinds.__getitem__)
    rows = TRANSFER_ABSENT.measure(setup)
    assert {row["region"] for row in rows} == {"left_eye", "right_eye", "mouth"}  # hair is a quarter of the picture
    assert len(rows) == 3 * 3 * 2 * 2 * 2  # images, regions, others, own edit and control, methods
    for row in rows:
        ratio = row["gain_ratio"]
        assert ratio < 0.6 if row["kind"] == "own" else ratio == pytest.approx(1, abs=1e-4)
        assert row["edited"] == row["region"] or row["kind"] == "control"
        assert max(row["kept"], row["redrawn"]) < 1e-5  # at strength 0 the picture itself
    passes = setup.world.counter.passes
    assert TRANSFER_ABSENT.measure(setup) == rows and setup.world.counter.passes == passes
    drawn = TRANSFER_ABSENT.draw(rows)
    assert set(drawn) == {"transfer-absent", "transfer-absent-loco", "transfer-absent-individual"}
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in drawn["transfer-absent"].axes)
    assert len(drawn["transfer-absent-loco"].axes) == 3 * 4
    assert save(drawn["transfer-absent-loco"]).startswith(b"\x89PNG")
    assert all("another region makes 1.00" in text for text in TRANSFER_ABSENT.conclude(rows))


def test_an_edit_that_adds_the_same_anywhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = TRANSFER_ABSENT.measure(linear_setup(tmp_path, monkeypatch, quick=True))
    assert all(row["gain_ratio"] == pytest.approx(1, abs=1e-4) for row in rows)
    assert "makes 1.00 of the change" in TRANSFER_ABSENT.conclude(rows)[0]


def test_conclusions_say_more_or_less_only_where_the_interval_does() -> None:
    row: dict[str, Any] = {"kind": "own", "method": "loco", "region": "mouth", "edited": "mouth", "target": "z"}
    row |= {"present": 0.1, "absent": 0.05, "kept": 0.0, "redrawn": 0.1}
    ratios = {"a": 0.4, "b": 0.5, "c": 0.6}
    rows = [{**row, "image": image, "gain_ratio": ratio} for image, ratio in ratios.items()]
    control = [{**one, "kind": "control", "edited": "hair", "gain_ratio": 1.0} for one in rows]
    (less,) = TRANSFER_ABSENT.conclude(rows + control)
    assert "makes 0.50 (0.40 to 0.60) of the change" in less and "It does less where" in less
    (unsure,) = TRANSFER_ABSENT.conclude([{**one, "gain_ratio": one["gain_ratio"] * 2} for one in rows] + control)
    (one,) = TRANSFER_ABSENT.conclude(rows[:1] + control)
    assert "It does" not in unsure and "It does" not in one


def test_a_part_whose_control_falls_as_much_is_not_said_to_do_less() -> None:
    row: dict[str, Any] = {"kind": "own", "method": "loco", "region": "mouth", "edited": "mouth", "target": "z"}
    row |= {"present": 0.1, "absent": 0.08, "kept": 0.0, "redrawn": 0.1}
    rows = [{**row, "image": image, "gain_ratio": 0.8 + 0.01 * i} for i, image in enumerate("abcd")]
    (alone,) = TRANSFER_ABSENT.conclude(rows)
    control = [{**one, "kind": "control", "edited": "hair", "gain_ratio": 1.62 - one["gain_ratio"]} for one in rows]
    (alike,) = TRANSFER_ABSENT.conclude(rows + control)
    assert "It does" not in alone and "It does" not in alike and "pair by pair" in alike


def test_a_control_does_not_overlap_the_paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = {**PLACES, "right_eye": (0.0, 0.0, 1.0, 0.25)}  # left_eye's neighbour covers it too
    monkeypatch.setattr(linear_world, "PLACES", over)
    rows = TRANSFER_ABSENT.measure(linear_setup(tmp_path, monkeypatch))
    controls = {row["region"]: row["edited"] for row in rows if row["kind"] == "control"}
    assert controls["left_eye"] == "mouth" and controls["mouth"] == "hair"


def test_lines_that_cannot_be_told_apart_are_split_over_panels_with_the_control_in_each() -> None:
    row = {"method": "loco", "image": "a", "target": "z", "gain_ratio": 0.5, "kind": "own"}
    rows = [{**row, "region": f"region {i}"} for i in range(8)]
    axes = TRANSFER_ABSENT.draw([*rows, {**row, "kind": "control", "region": "hair"}])["transfer-absent"].axes
    assert [len(ax.get_lines()) for ax in axes] == [5, 5]


def test_a_painted_image_has_an_id_of_its_own_and_differs_in_the_region_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = linear_setup(tmp_path, monkeypatch).world.images("holdout", 1)[0]
    painted, mask = without(image, "mouth"), np.array(image.masks["mouth"])
    assert painted.image_id not in (image.image_id, without(image, "hair").image_id)
    assert np.array_equal(painted.image[~mask], image.image[~mask])
    assert painted.image[mask].std() < image.image[mask].std() and painted.image.dtype == np.uint8


def test_a_real_model_needs_no_reader(tmp_path: Path) -> None:
    setup = replace(small_setup(tmp_path), quick=True)
    rows = TRANSFER_ABSENT.measure(setup)
    assert {row["kind"] for row in rows} == {"own", "control"} and all(row["gain_ratio"] > 0 for row in rows)
    assert not any("Left out" in text for text in TRANSFER_ABSENT.conclude(rows))
