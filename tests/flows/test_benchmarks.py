"""The benchmarks themselves, at settings too small to say anything about the model: what they count must be right."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flows.evaluation.ceiling import perfect_images, perfect_transfer
from flows.recipe import Recipe, parse_recipe
from pipeline.intervals import figure
from pipeline.metrics import EditSuccess, rank_ratio, rms_inside
from pipeline.operators import Dense
from pipeline.rank import rank_figures
from tests.benchmarks import edits, jive, model, products, svd, tuning
from tests.benchmarks.edit_figures import Edited, Transferred, by_region, transfer_figures
from tests.benchmarks.harness import Clock, Target, at_least, at_most, between, document, plain, save_json
from tests.benchmarks.rank import asymmetry, dense_figures
from tests.benchmarks.subjects import Bench, Subject, load_images, make_subjects, open_bench
from tests.benchmarks.trials import Case, Trial, better_of_both_signs, run_trials
from tests.pipeline.tiny_models import tiny_pipeline_folder


def tiny_recipe(network: str = "builtin") -> Recipe:
    return parse_recipe(
        {
            "name": "tiny",
            "model": network,
            "dataset": {"kind": "builtin", "split": "holdout"},
            "regions": ["mouth"],
            "method": {
                "timestep": 0.35,
                "inversion_steps": 3,
                "tolerance": 0.9,
                "loco": {"rank": 1, "null_rank": 1},
                "jive": {"rank": 1, "joint_rank": 1, "individual_rank": 1},
                "edit": {"steps": 1, "h_window": [0.35, 0.0]},
            },
        }
    )


@pytest.fixture(scope="module")
def bench() -> Bench:
    return open_bench(tiny_recipe())


@pytest.fixture(scope="module")
def random_bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A random network of a few channels at the built-in images' size, where the numbers themselves do not matter."""
    folder = tmp_path_factory.mktemp("model")
    return open_bench(tiny_recipe(str(tiny_pipeline_folder(folder, size=64, block_out_channels=(4, 8, 8),
        down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3))))  # fmt: skip


@pytest.fixture(scope="module")
def subjects(bench: Bench) -> list[Subject]:
    return make_subjects(bench, load_images("faces64", "holdout", 2, ["mouth"], (3, 64, 64)))


def verdict(success: bool, *, roir: float = 0.5, move: float = 0.3, other_move: float = 0.0) -> EditSuccess:
    return EditSuccess(success, "mouth_smile", move, "nose_width", other_move, roir)


def trial(outcome: EditSuccess) -> Trial:
    return Trial(1.0, 0.15, True, False, outcome, 30.0, 0.9)


# --- the two commands ---------------------------------------------------------------------------------------------


def test_edits_benchmark_measures_every_target_in_the_run_and_its_json_is_strict(bench: Bench) -> None:
    targets, details = edits.measure(bench, images=2, others=1)
    content = json.loads(json.dumps(document("edits", True, targets, details, bench.clock), allow_nan=False))
    assert all(set(target) == {"name", "value", "target", "met"} for target in content["targets"])
    assert len(content["targets"]) == 8
    assert {method: f["all"]["edits"] for method, f in content["details"]["methods"].items()} == dict.fromkeys(
        edits.METHODS, 2
    )
    assert {method: f["pairs"] for method, f in content["details"]["transfer"].items()} == dict.fromkeys(
        ("loco", "loco registered", "individual", "individual registered"), 2
    )
    assert len(content["details"]["edits"]) == 8
    assert content["cost"]["network_passes"] > 0


def test_model_benchmark_measures_every_target_in_the_run_and_its_json_is_strict(random_bench: Bench) -> None:
    size = model.Size(1, 1, 1, (0.35,), 1, 4, 1, 1, dense_side=4, rank_vectors=2, rank_samples=8, loss_ts=(0.5,))
    targets, details = model.run(random_bench, size)
    content = json.loads(json.dumps(document("model", True, targets, details, random_bench.clock), allow_nan=False))
    assert [target["target"] for target in content["targets"]] == [
        ">= 42", "<= 0.05", "0.97 to 1.05", "<= 0.01", ">= 0.9", "0.75 to 1.25", ">= 0.98", "<= 0.03",
    ]  # fmt: skip
    assert content["details"]["ranks"]["at_recipe_t"]["resolved"] == 0
    assert len(content["details"]["reader"]["r2"]) == 22
    assert content["details"]["about"]["info"]["parameters"] > 0


def test_jive_benchmark_measures_every_target_in_the_run_and_its_json_is_strict() -> None:
    clock = Clock()
    targets, details = jive.measure(jive.Size(2000, 1, jive.QUICK_CELLS[:1], 1), clock)
    content = json.loads(json.dumps(document("jive", True, targets, details, clock), allow_nan=False))
    assert [target["target"] for target in content["targets"]] == [">= 15", "<= 1e-06", "<= 1e-06", ">= 0", ">= 0"]
    speed = content["details"]["speed"]
    assert speed["rounds"] == speed["rounds_full_width"] > 20 and speed["converged"]
    assert all(target["met"] for target in content["targets"][1:3])
    shares = content["details"]["ranks"]["overall"]
    assert set(shares) == set(jive.RULES) and all(share["joint"] in (0.0, 1.0) for share in shares.values())


def test_products_benchmark_measures_every_route_and_its_json_is_strict(random_bench: Bench) -> None:
    work = (lambda: products.routes(random_bench, (1, 2)), lambda: products.precision(random_bench, 1),
            lambda: products.images(random_bench, 2, block=4))  # fmt: skip
    found = [part() for part in work]
    targets = [target for part, _ in found for target in part]
    details = dict(zip(products.PARTS, [more for _, more in found], strict=False))
    content = json.loads(json.dumps(document("products", True, targets, details, random_bench.clock), allow_nan=False))
    assert len(content["details"]["routes"]["routes"]) == 2 * 4 * 2
    assert all(row["peak"] >= 0 < row["estimate"] for row in content["details"]["routes"]["memory"])
    assert [row["precision"] for row in content["details"]["precision"]["rows"]] == ["full", "bfloat16"] * 2
    assert content["details"]["images"]["difference"] < 1e-4


def test_tuning_evaluates_every_setting_at_every_timestep(random_bench: Bench) -> None:
    component = tuning.ComponentSetting(2, 1, 1, (1.0, 0.5))
    settings: list[tuning.Setting] = [tuning.LocalSetting(0), tuning.LocalSetting(1), component]
    rows: list[dict[str, object]] = []
    tuning.tune(random_bench, [0.3], settings, 1, 0, rows.append)
    assert [row["method"] for row in rows] == ["plain", "local", "individual"]
    assert all(row["edits"] == 1 and row["timestep"] == 0.3 for row in rows)
    json.dumps(rows, allow_nan=False)


# --- trials -------------------------------------------------------------------------------------------------------


def test_a_strength_already_decoded_costs_no_network_pass(bench: Bench, subjects: list[Subject]) -> None:
    before = bench.clock.passes
    vector = torch.zeros(3, 64, 64)
    vector[:, 40:50, 28:36] = 1.0
    # Far too strong for one image and about right for the other: the second settles first and waits.
    cases = [
        Case(s, "mouth", "x", vector / vector.norm(), guess) for s, guess in zip(subjects, (3.0, 39.0), strict=True)
    ]
    trials = run_trials(bench, cases, "test")
    spent = bench.clock.passes - before
    assert all(t.reached for t in trials)
    assert spent < 2 * 4 * bench.settings.decode.steps


def test_the_better_sign_is_never_worse_than_either_sign_alone(bench: Bench, subjects: list[Subject]) -> None:
    vector = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0)) * subjects[0].masks["mouth"]
    case = Case(subjects[0], "mouth", "x", vector / vector.norm(), 5.0)
    (chosen,) = better_of_both_signs(bench, [case], "test")
    alone = [run_trials(bench, [Case(subjects[0], "mouth", "x", case.vector, g)], "test")[0] for g in (5.0, -5.0)]
    assert chosen.verdict.success == any(t.verdict.success for t in alone)
    assert chosen.verdict.roir <= max(t.verdict.roir for t in alone) * 1.01


def test_every_failed_trial_names_a_reason_and_a_successful_one_none() -> None:
    assert trial(verdict(True)).reasons() == ()
    assert trial(verdict(False, move=0.1)).reasons() == ("own factor moved by less than 0.15",)
    assert trial(verdict(False, other_move=-0.2)).reasons() == ("other factor moved: nose_width",)
    assert trial(verdict(False, roir=math.nan)).reasons() == ("ROIR above 1",)
    assert trial(verdict(False, move=-0.3)).reasons(like=verdict(True)) == ("own factor moved the other way",)


# --- figures ------------------------------------------------------------------------------------------------------


def test_a_refused_direction_counts_as_a_failure_and_never_flatters_the_median() -> None:
    found = [
        Edited("loco", "a", "mouth", None, trial(verdict(True, roir=0.2))),
        Edited("loco", "b", "mouth", None, None),
    ]
    figures = by_region(found)["all"]
    assert figures["success"].estimate == 0.5
    assert figures["roir_median"].estimate == math.inf
    assert figures["failures"] == {"direction refused": 1}


def test_the_transfer_headline_counts_overlapping_pairs_only_and_failures_at_home_too() -> None:
    good = Edited("loco", "a", "mouth", None, trial(verdict(True)))
    bad = Edited("loco", "b", "mouth", None, trial(verdict(False, roir=2.0)))
    pairs = [
        Transferred(good, "b", 0.5, trial(verdict(True)), perfect=True),
        Transferred(bad, "a", 1.0, trial(verdict(False, roir=3.0)), perfect=False),
        Transferred(good, "c", 0.1, trial(verdict(False, move=-0.3)), perfect=True),
    ]
    figures = transfer_figures(pairs)
    assert figures["success_overlapping"].estimate == 0.5
    assert figures["success_overlapping_of_home_successes"].estimate == 1.0
    assert sum(part["success"].count for part in figures["curve"]) == 3
    assert figures["failures_overlapping"] == {"ROIR above 1": 1}
    assert figures["perfect_editor_overlapping"].estimate == 0.5
    assert figures["success_overlapping_where_perfect"].estimate == 1.0
    assert figures["perfect_editor_by_factor"] == {"mouth_smile": {"pairs": 2, "success": 0.5, "perfect": 0.5}}


def test_a_perfect_edit_is_just_visible_and_needs_room_in_the_factors_range(
    bench: Bench, subjects: list[Subject]
) -> None:
    middle = replace(subjects[0], factors={**subjects[0].factors, "mouth_opening": 0.5})
    before, after = perfect_images(middle.factors, middle.masks["mouth"], "mouth_opening", 1.0)
    assert 0.15 <= float(rms_inside((after - before)[None], middle.masks["mouth"])) < 0.2
    wide = replace(middle, factors={**middle.factors, "mouth_opening": 1.0})
    before, after = perfect_images(wide.factors, wide.masks["mouth"], "mouth_opening", 1.0)
    assert torch.equal(before, after)
    opened = EditSuccess(True, "mouth_opening", 0.3, "nose_width", 0.0, 0.1)
    assert perfect_transfer(bench.read, middle.factors, middle.masks["mouth"], "mouth", opened)
    assert not perfect_transfer(bench.read, wide.factors, wide.masks["mouth"], "mouth", opened)


def test_intervals_are_drawn_over_images_so_repeating_an_images_values_does_not_narrow_them() -> None:
    values, images = [0.0, 1.0, 0.0, 1.0], ["a", "b", "c", "d"]
    once = figure(values, images, "mean")
    often = figure(values * 50, images * 50, "mean")
    assert (once.low, once.high) == (often.low, often.high)
    assert (once.estimate, often.count) == (0.5, 200)
    assert math.isnan(figure([], []).estimate)


# --- rank ---------------------------------------------------------------------------------------------------------


def known_operator(decay: float) -> tuple[Dense, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    u, v = (torch.linalg.qr(torch.randn(192, 192, generator=generator)).Q for _ in range(2))
    sigma = decay ** torch.arange(192.0)
    return Dense((u * sigma) @ v.T, (3, 8, 8), (3, 8, 8)), sigma


def test_the_matrix_free_rank_ratio_agrees_with_the_whole_spectrum() -> None:
    operator, sigma = known_operator(0.97)
    found = rank_figures(operator, 160, seed=0)
    truth = rank_ratio(sigma, 192)
    assert found.ratio.resolved
    assert abs(found.ratio.ratio - truth) <= 0.02
    dense = dense_figures(operator.matrix, found.vectors)
    assert abs(dense.ratio - truth) <= 1 / 192
    assert abs(found.captured.estimate - dense.captured) <= 0.01
    assert abs(asymmetry(operator, seed=0) - dense.asymmetry) <= 0.1


def test_too_few_vectors_leave_the_rank_ratio_unresolved() -> None:
    operator, _ = known_operator(0.999)
    found = rank_figures(operator, 8, seed=0)
    assert not found.ratio.resolved
    assert found.captured.high < 0.2


# --- answers ------------------------------------------------------------------------------------------------------


def test_targets_are_met_at_their_bar_and_never_by_a_value_that_is_not_a_number() -> None:
    assert at_least("a", 0.8, 0.8).met and at_most("a", 0.5, 0.5).met and between("a", 1.25, 0.75, 1.25).met
    assert not any(
        t.met for t in (at_least("a", math.nan, 0.8), at_most("a", math.nan, 1), between("a", math.nan, 0, 1))
    )


def test_json_holds_null_where_a_figure_is_not_finite() -> None:
    content = document("x", False, [Target("a", math.inf, "<= 1", False)], {"b": (math.nan, 1.0)}, Clock())
    assert content["targets"][0]["value"] is None
    assert plain(content)["details"]["b"] == [None, 1.0]


def test_a_setting_tried_again_replaces_its_row_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "results" / "tuning.json"
    for rank, success in ((10, 0.1), (30, 0.2), (10, 0.3)):
        row = {"model": "m", "timestep": 0.3, "space": "x", "null_rank": rank, "success": success}
        save_json(tuning.merged(path, row), path)
    rows = json.loads(path.read_text())["rows"]
    assert [(row["null_rank"], row["success"]) for row in rows] == [(30, 0.2), (10, 0.3)]


def test_svd_benchmark_measures_every_target_in_the_run_and_its_json_is_strict(random_bench: Bench) -> None:
    size = svd.Size(("mouth",), ("x", "h"), ((1, 1), (1, 2)), (1, 1), 2, images=1, neighbours=1, most_public=200)
    targets, details = svd.measure(random_bench, size, dense=("mouth",))
    content = json.loads(json.dumps(document("svd", True, targets, details, random_bench.clock), allow_nan=False))
    bars = [target["target"] for target in content["targets"]]
    assert bars[:14] == 2 * [">= 20", ">= 15", ">= 5", ">= 1.5", ">= 1.5", "<= 3", "<= 0.01"]
    assert len(bars) == 19
    rows = content["details"]["rows"]
    methods = ["cold", "public", "oracle", "warm", "perfect start", "cold", "deflation", "cold", "warm"]
    assert [row["method"] for row in rows] == [*methods[:5], "symmetric start", *methods[5:], *methods]
    assert all(row["residual"] <= 0.01 for row in rows if row["method"] in ("cold", "warm", "perfect start"))
    for angle in content["details"]["angles"].values():
        assert angle["mouth"]["cold"] <= angle["mouth"]["certified"] + 1e-4
