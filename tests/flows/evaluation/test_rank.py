"""Rank and norm of the five Jacobians: the dense truth, resumed, drawn, and bounds said to be bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from flows.evaluation import rank
from flows.evaluation.cells import Rows
from flows.evaluation.experiment import Setup
from flows.evaluation.rank import Size, measure, middle
from pipeline.jacobian import KINDS, JacobianKind
from pipeline.spectrum import rank_ratio
from tests.flows.evaluation.small_world import dense, never, small_setup

SIZE = Size(images=1, shares=(0.4,), vectors=192, samples=32)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return small_setup(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def ranks(setup: Setup) -> Rows:
    return measure(setup, SIZE)


@pytest.mark.parametrize("kind", KINDS)
def test_rank_ratio_and_norm_are_those_of_the_dense_jacobian(setup: Setup, ranks: Rows, kind: JacobianKind) -> None:
    row = next(row for row in ranks if row["kind"] == kind)
    sigma = torch.linalg.svdvals(dense(setup, kind, 0.4)[0])
    norm = float(sigma.norm())
    assert row["dimension"] == len(sigma) == 192
    assert row["resolved"]
    assert abs(row["ratio"] - rank_ratio(sigma, 192)) <= 0.03
    assert abs(row["frobenius"] / norm - 1.0) < 0.02
    assert row["frobenius_low"] <= norm * 1.001
    assert norm * 0.999 <= row["frobenius_high"]


def test_a_second_run_measures_no_rank_again(setup: Setup, ranks: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "rank_figures", never)
    assert measure(setup, SIZE) == ranks
    with pytest.raises(AssertionError, match="measured again"):
        measure(setup, replace(SIZE, vectors=100))


def test_without_a_bottleneck_only_jacobians_of_x_are_measured_and_it_is_said(
    setup: Setup, ranks: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = replace(setup.world.denoiser.info, bottleneck_shape=None, fingerprint="without")
    monkeypatch.setattr(setup.world.denoiser, "info", info)
    rows = measure(setup, replace(SIZE, vectors=8, samples=8))
    assert {row["kind"] for row in rows} == {"x0/x", "eps/x"}
    assert any("left out" in sentence for sentence in rank.conclude(rows))
    assert not any("left out" in sentence for sentence in rank.conclude(ranks))


def rank_row(image: str, ratio: float, *, t: float = 0.4, kind: str = "x0/x", resolved: bool = True) -> dict[str, Any]:
    numbers = {"frobenius": 2.0, "frobenius_low": 1.9, "frobenius_high": 2.1, "vectors": 8, "products": 1}
    return {"image": image, "t": t, "kind": kind, "ratio": ratio, "resolved": resolved, **numbers}


def test_the_median_is_a_lower_bound_only_if_what_is_unknown_could_move_it() -> None:
    known = [rank_row("a", 0.1), rank_row("b", 0.2)]
    above, below = rank_row("c", 0.3, resolved=False), rank_row("c", 0.05, resolved=False)
    assert (middle([*known, above]).estimate, middle([*known, above]).bound) == (0.2, False)
    assert (middle([*known, below]).estimate, middle([*known, below]).bound) == (0.1, True)
    assert middle([*known, above]).high == 1.0


def test_bounds_are_said_and_drawn_as_bounds() -> None:
    known = [rank_row("a", 0.1), rank_row("a", 0.3, t=0.8)]
    unknown = [rank_row("a", 0.1), rank_row("a", 0.3, t=0.8, resolved=False)]
    for rows, bounds in ((known, 0), (unknown, 1)):
        said = " ".join(rank.conclude(rows))
        assert said.count("at least 0.3") == bounds
        assert ("are lower bounds" in said) is bool(bounds)
        assert "is 0.1 at 0.4 T" in said
        assert len(rank.draw(rows)["rank"].axes[0].texts) == bounds  # arrows


def test_the_plot_names_its_axes_and_every_jacobian(ranks: Rows) -> None:
    left, right = rank.draw(ranks)["rank"].axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("t / T", "t / T")
    assert "rank ratio" in left.get_ylabel()
    assert "norm" in right.get_ylabel()
    assert {text.get_text() for text in right.get_legend().get_texts()} == set(rank.NAMES.values())
    assert left.get_yscale() == right.get_yscale() == "log"
