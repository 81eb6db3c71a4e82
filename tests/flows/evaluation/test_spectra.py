"""Singular spectra of regions: the dense truth, resumed, drawn a panel a space, and said as the rows have them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flows.evaluation import spectra
from flows.evaluation.cells import Rows
from flows.evaluation.experiment import Setup
from flows.evaluation.spectra import Size, measure
from pipeline.jacobian import JacobianKind
from pipeline.mining import REST
from tests.flows.evaluation.small_world import dense, never, small_setup

SIZE = Size(images=2, rank=20)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return small_setup(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def values(setup: Setup) -> Rows:
    return measure(setup, SIZE)


@pytest.mark.parametrize(("space", "kind"), [("x", "x0/x"), ("h", "x0/h")])
def test_values_are_those_of_the_masked_dense_jacobian(
    setup: Setup, values: Rows, space: str, kind: JacobianKind
) -> None:
    matrix, subject = dense(setup, kind, setup.world.recipe.method.timestep)
    masks = {**subject.masks, REST: ~torch.stack(list(subject.masks.values())).any(0)}
    for region, mask in masks.items():
        truth = torch.linalg.svdvals(matrix * mask.expand(3, 8, 8).reshape(-1, 1))
        own = [r for r in values if (r["image"], r["space"], r["region"]) == (subject.name, space, region)]
        assert [row["index"] for row in own] == list(range(1, min(20, 3 * int(mask.sum())) + 1))
        assert own[0]["relative"] == 1.0
        found = torch.tensor([row["sigma"] for row in own])
        assert float((found - truth[: len(found)]).abs().max()) <= 0.02 * float(truth[0])


def test_a_second_run_measures_no_spectrum_again(setup: Setup, values: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "masked_svds", never)
    assert measure(setup, SIZE) == values


def test_spectra_are_drawn_a_panel_a_space_and_few_regions(values: Rows) -> None:
    axes = spectra.draw(values)["spectra"].axes
    assert [ax.get_title() for ax in axes] == ["x-space", "h-space"]
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in axes)
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["eye", "mouth", REST]
    many = [{**row, "region": f"{row['region']} {i}"} for row in values if row["region"] != REST for i in range(5)]
    panels = spectra.draw([*many, *(row for row in values if row["region"] == REST)])["spectra"].axes
    assert len(panels) == 4
    assert all(len(ax.get_legend().get_texts()) <= 8 for ax in panels)


def test_what_is_said_of_spectra_follows_the_rows(values: Rows, setup: Setup) -> None:
    said = spectra.conclude(values)
    assert any(sentence.startswith("h-space, ") for sentence in said)
    only = [{**row, "relative": 0.25, "residual": 0.0} for row in values if row["space"] == "x"]
    said = spectra.conclude(only)
    assert "mouth 0.25 at index 10" in said[0]
    assert any("left out" in sentence for sentence in said)
    assert not any("tolerance" in sentence for sentence in said)
    images = sorted({row["image"] for row in only})
    fewer = [row for row in only if (row["region"], row["image"]) != ("eye", images[0])]
    assert "2 held-out images (eye is on 1), with" in spectra.conclude(fewer)[-1] and "eye is" not in said[-1]
    assert any("1 of" in s and "tolerance" in s for s in spectra.conclude([*only, {**only[0], "residual": 1.0}]))


def test_a_small_data_set_gives_the_images_it_has(setup: Setup) -> None:
    rows = measure(setup, replace(SIZE, images=30))
    assert len({row["image"] for row in rows}) == len(setup.world.up_to("holdout", 30)) < 30
