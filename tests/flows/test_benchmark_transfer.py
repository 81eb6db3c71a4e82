"""The transfer benchmark at settings too small to say anything about the model: what it counts must be right."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catalog.lookup import Transfer
from flows.evaluation.comparison import base_settings
from flows.evaluation.trials import Case, Trial, run_trials
from flows.recipe import Recipe, parse_recipe
from pipeline.errors import InputError
from pipeline.methods.contract import Found
from pipeline.metrics import EditSuccess
from pipeline.transfer import Prediction
from tests.benchmarks import transfer
from tests.benchmarks.harness import document
from tests.benchmarks.subjects import Bench, open_bench
from tests.benchmarks.transfer import Pair, Size, chosen, correlations, measure, spearman
from tests.pipeline.tiny_models import tiny_pipeline_folder


def recipe(model: Path) -> Recipe:
    return parse_recipe(
        {
            "name": "tiny",
            "model": str(model),
            "dataset": {"kind": "builtin", "split": "mine", "limit": 2},
            "regions": ["mouth"],
            "method": {
                "timestep": 0.35,
                "inversion_steps": 2,
                "tolerance": 0.9,
                "loco": {"rank": 3, "null_rank": 1},
                "jive": {"rank": 1, "joint_rank": 1, "individual_rank": 1},
                "edit": {"steps": 1, "h_window": [0.35, 0.0]},
            },
        }
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A random network of a few channels at the built-in images' size."""
    folder = tiny_pipeline_folder(tmp_path_factory.mktemp("model"), size=64, block_out_channels=(4, 8, 8),
        down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3)  # fmt: skip
    with open_bench(recipe(folder)) as opened:
        yield opened


def test_transfer_benchmark_measures_every_target_in_the_run_and_its_json_is_strict(
    bench: Bench, tmp_path: Path
) -> None:
    targets, details = measure(bench, Size(2, 1, 8, {}), tmp_path / "catalog")
    content = json.loads(json.dumps(document("transfer", True, targets, details, bench.clock), allow_nan=False))
    assert [target["target"] for target in content["targets"]] == [">= 0"] * 3 + [">= 0", "<= 1"] * 2
    assert content["details"]["pairs"] == content["details"]["prediction_jvps"] == 8
    assert content["details"]["rank_correlation"]["ROIR"]["prediction"]["count"] == 1
    assert {"mining", "inversion", "prediction", "edits"} <= set(content["cost"]["stages"])
    transfer.tables(details)
    assert transfer.recipe_in(tmp_path / "catalog") == bench.recipe
    with pytest.raises(InputError, match="without the images it is tried on"):
        measure(bench, Size(2, 1, 8, {}), tmp_path / "catalog", split="mine")


def test_cases_of_both_spaces_are_tried_each_in_its_own(bench: Bench) -> None:
    (subject,) = bench.inverted(bench.images("holdout", 1))
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": bench.denoiser.info.x_shape, "h": bench.denoiser.need_bottleneck()}
    spaces = ["h", "x", "h"]
    vectors = [torch.randn(shapes[space], generator=generator) for space in spaces]
    cases = [Case(Found("mouth", 0.5, vector / vector.norm()), subject) for vector in vectors]
    found = transfer.tried(bench, spaces, cases)
    for space, case, trial in zip(spaces, cases, found, strict=True):
        kind = transfer.SPACES[space]
        (alone,) = run_trials(bench, kind(bench.denoiser, base_settings(kind, bench)), [case])
        assert trial.strength == pytest.approx(alone.strength, rel=1e-3)
        assert trial.roir == pytest.approx(alone.roir, rel=1e-3)


# --- figures ------------------------------------------------------------------------------------------------------

numbers = st.lists(st.integers(-5, 5), min_size=2, max_size=12)


@given(values=numbers, other=st.data())
def test_rank_correlation_is_that_of_the_ranks_alone(values: list[int], other: st.DataObject) -> None:
    second = other.draw(st.lists(st.integers(-5, 5), min_size=len(values), max_size=len(values)))
    found = spearman(values, second)
    if len(set(values)) == 1 or len(set(second)) == 1:
        assert math.isnan(found)
        return
    ranks = [[(sum(b < a for b in v) + sum(b <= a for b in v)) / 2 for a in v] for v in (values, second)]
    assert found == pytest.approx(float(np.corrcoef(*ranks)[0, 1]))
    assert spearman([math.exp(v) for v in values], second) == pytest.approx(found)
    assert spearman([-v for v in values], second) == pytest.approx(-found)


def pair(image: str, place: int, score: float, *, success: bool, roir: float, sign: int = 1) -> Pair:
    likeness = Transfer(f"{image}{place}", 1 - score, 1.0, 1.0, 1.0, (0.0, 0.0), "home", "faces64", "x", "local", 0,
                        1.0, 1.0, 1.0)  # fmt: skip
    prediction = Prediction(1 - roir, 0.0, 1.0, roir, sign * 1.0, sign, sign * 1.0, False, score)
    verdict = EditSuccess(success, "mouth_smile", 0.3, "nose_width", 0.0, roir)
    turned = EditSuccess(False, "mouth_smile", -0.3, "nose_width", 0.0, roir)
    picture = torch.zeros(3, 1, 1)
    trial = Trial(1.0, 1 - roir, True, False, roir, 30.0, 0.9, verdict, picture, picture)
    as_home = trial if sign > 0 else replace(trial, verdict=turned)
    return Pair(image, "mouth", likeness, prediction, trial, as_home)


PAIRS = [
    pair(image, i, i / 10, success=i > 3, roir=1 - i / 10, sign=-1 if i == 5 else 1) for image in "ab" for i in range(6)
]


def test_a_perfect_prediction_correlates_fully_and_likeness_that_is_its_opposite_the_other_way() -> None:
    found = correlations(PAIRS)
    assert found["ROIR"]["prediction"].estimate == pytest.approx(1)
    assert found["ROIR"]["likeness"].estimate == pytest.approx(-1)
    assert found["gain"]["prediction"].estimate == pytest.approx(1)
    assert abs(found["ROIR"]["random"].estimate) < 0.3
    assert found["success"]["prediction"].count == 2


def test_the_first_by_prediction_are_judged_at_the_sign_it_says_and_others_at_that_of_home() -> None:
    found = chosen(PAIRS)
    assert found["top 1"]["prediction"]["success"].estimate == 1
    assert found["top 1"]["prediction"]["roir_median"].estimate == pytest.approx(0.5)
    assert found["top 5"]["prediction"]["success"].estimate == pytest.approx(2 / 5)
    assert found["top 1"]["likeness"]["success"].estimate == 0
    assert found["top 1"]["random"]["success"].estimate == pytest.approx(1 / 6)  # the turned one fails unturned


def test_where_all_outcomes_are_equal_there_is_nothing_to_order() -> None:
    same = [pair("a", i, i / 10, success=True, roir=0.2) for i in range(6)]
    found = correlations(same)
    assert {by["prediction"].count for by in found.values()} == {0}
