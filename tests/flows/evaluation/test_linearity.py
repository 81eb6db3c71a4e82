"""Linearity along directions: 1 for a linear model, falling for a curved one; resumed, drawn, said from the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from flows.evaluation import linearity
from flows.evaluation.cells import Rows
from flows.evaluation.experiment import Setup
from flows.evaluation.linearity import DIRECTIONS, OCTAVES, Size, rows_of
from pipeline.methods.contract import Found, Refused, Settings, Subject
from pipeline.methods.randoms import RandomX
from pipeline.models.contract import Denoiser, DenoiserInfo
from pipeline.models.forward_mode import forward_mode_copy
from tests.flows.evaluation.small_world import never, small_setup

SIZE = Size(images=1, shares=(None, 0.6), regions=2)
STRENGTHS = OCTAVES + 2  # and the visible one


class Curved(Denoiser):
    """eps = a x + curvature x^2, on pictures of 4 pixels a side."""

    def __init__(self, curvature: float) -> None:
        self.info = DenoiserInfo("curved", 1, "epsilon", (3, 4, 4), None, "none", 10, f"curved {curvature}")
        self.device, self.dtype, self.curvature = torch.device("cpu"), torch.float32, curvature

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        return 0.8, 0.6

    def predict_noise(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        return 0.5 * x + self.curvature * x * x

    def bottleneck(self, x: torch.Tensor, t: int) -> torch.Tensor:
        raise NotImplementedError

    def noise_from_bottleneck(self, x: torch.Tensor, t: int) -> Callable[[torch.Tensor], torch.Tensor]:
        raise NotImplementedError

    def differentiable(self) -> Denoiser:
        forward_mode_copy(torch.nn.Identity())  # loads torch's forward-mode rules without their warning
        return self


def along_random(curvature: float) -> Rows:
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, 1:3] = True
    x_t = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    return rows_of(RandomX(Curved(curvature), Settings()), Subject("image", x_t, x_t, {"middle": mask}))


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return small_setup(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def rows(setup: Setup) -> Rows:
    return linearity.measure(setup, SIZE)


def test_a_linear_model_is_linear_at_every_strength() -> None:
    found = along_random(0.0)
    assert len(found) == STRENGTHS
    for row in found:
        assert row["cosine"] == pytest.approx(1.0, abs=1e-5)
        assert row["norm_ratio"] == pytest.approx(1.0, abs=1e-3)


def test_a_curved_model_departs_from_its_tangent_as_the_strength_grows_and_values_hide_it() -> None:
    ladder = [row for row in along_random(0.05) if not row["visible"]]
    assert [row["strength"] for row in ladder] == [RandomX.limit * 0.5**i for i in range(OCTAVES, -1, -1)]
    cosines = [row["cosine"] for row in ladder]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] > 0.999 > cosines[-1]
    weak = ladder[0]
    assert 1.0 - weak["value_cosine"] < 0.1 * (1.0 - weak["cosine"])


def test_every_direction_of_both_spaces_is_measured_at_every_strength(rows: Rows) -> None:
    measured = [row for row in rows if "refused" not in row]
    assert {row["direction"] for row in measured} == set(DIRECTIONS)
    assert {row["t"] for row in measured} == {0.35, 0.6}
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in measured:
        groups.setdefault((row["direction"], row["t"], row["region"]), []).append(row["strength"])
    assert all(len(strengths) == STRENGTHS for strengths in groups.values())


def test_weak_steps_of_a_smooth_network_are_linear_in_both_spaces(rows: Rows) -> None:
    weakest = [r for r in rows if "refused" not in r and r["strength"] == min(s["strength"] for s in rows
        if s["space"] == r["space"] and "refused" not in s)]  # fmt: skip
    assert {row["space"] for row in weakest} == {"x", "h"}
    assert sorted(row["cosine"] for row in weakest)[len(weakest) // 2] > 0.9


def test_a_second_run_measures_nothing_again(setup: Setup, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linearity, "rows_of", never)
    assert linearity.measure(setup, SIZE) == rows
    with pytest.raises(AssertionError, match="measured again"):
        linearity.measure(setup, replace(SIZE, regions=1))


def test_a_refused_region_leaves_its_reason_and_no_figure() -> None:
    class Shy(RandomX):
        def find(self, subject: Subject) -> dict[str, Found | Refused]:
            return {"middle": Refused("middle", "no wish to")}

    x_t = torch.zeros(3, 4, 4)
    found = rows_of(Shy(Curved(0.0), Settings()), Subject("image", x_t, x_t, {}))
    assert found == [{"region": "middle", "refused": "no wish to"}]
    head = {"image": "a", "t": 0.4, "direction": "loco", "space": "x"}
    assert any("1 directions were refused: no wish to" in s for s in linearity.conclude([{**head, **found[0]}]))


def test_without_a_bottleneck_h_space_is_left_out_and_it_is_said(rows: Rows) -> None:
    only = [row for row in rows if row["space"] == "x"]
    assert any("left out" in sentence for sentence in linearity.conclude(only))
    assert not any("left out" in sentence for sentence in linearity.conclude(rows))
    assert set(linearity.draw(only)) == {"linearity-x-changes", "linearity-x-values"}


def test_every_panel_names_its_direction_and_its_axes(rows: Rows) -> None:
    plots = linearity.draw(rows)
    assert set(plots) == {f"linearity-{space}-{what}" for space in "xh" for what in ("changes", "values")}
    for figure in plots.values():
        assert len(figure.axes) == 4
        for ax in figure.axes:
            assert any(ax.get_title().startswith(title) for title in DIRECTIONS.values())
            assert "strength" in ax.get_xlabel()
            assert ax.get_ylabel() in ("cosine", "norm ratio")
            assert [text.get_text() for text in ax.get_legend().get_texts()] == ["t = 0.35 T", "t = 0.6 T"]


def test_what_is_said_is_that_of_the_visible_strength(rows: Rows) -> None:
    changed = [{**r, "cosine": 0.5 if r.get("visible") else 1.0} for r in rows if r["direction"] == "loco"]
    said = " ".join(linearity.conclude(changed))
    assert "cosine 0.50, " in said
    assert "cosine 1.00" not in said
