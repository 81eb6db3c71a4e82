"""The benchmarks themselves, at settings too small to say anything about the model: what they count must be right."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from flows.evaluation.comparison import Size
from flows.recipe import Recipe, parse_recipe
from pipeline.errors import InputError
from pipeline.intervals import figure
from pipeline.metrics import rank_ratio
from pipeline.operators import Dense
from pipeline.rank import rank_figures
from tests.benchmarks import edits, jive, model, products, svd
from tests.benchmarks.harness import Clock, Target, at_least, at_most, between, document, plain
from tests.benchmarks.rank import asymmetry, dense_figures
from tests.benchmarks.subjects import Bench, open_bench
from tests.pipeline.tiny_models import tiny_pipeline_folder


def tiny_recipe(network: str) -> Recipe:
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
def random_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A random network of a few channels at the built-in images' size, where the numbers themselves do not matter."""
    folder = tiny_pipeline_folder(tmp_path_factory.mktemp("model"), size=64, block_out_channels=(4, 8, 8),
        down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3)  # fmt: skip
    with open_bench(tiny_recipe(str(folder))) as bench:
        yield bench


# --- the two commands ---------------------------------------------------------------------------------------------


def test_edits_benchmark_measures_every_target_in_the_run_and_its_json_is_strict(random_bench: Bench) -> None:
    passes = random_bench.clock.passes
    targets, details = edits.measure(random_bench, Size(images=2, choosing=0, others=1, chunk=1))
    content = json.loads(json.dumps(document("edits", True, targets, details, random_bench.clock), allow_nan=False))
    bars = [target["target"] for target in content["targets"]]
    assert bars == [">= 0.8", "<= 0.5", "<= 1", "<= 0.8", *[">= 0.8"] * 4]
    assert {method: f["all"]["edits"] for method, f in content["details"]["methods"].items()} == dict.fromkeys(
        edits.COMPARED, 2
    )
    pairs = {method: f["pairs"] for method, f in content["details"]["transfer"].items()}
    assert pairs == dict.fromkeys(("loco", "loco registered", "individual", "individual registered"), 2)
    assert [row["method"] for row in content["details"]["edits"]] == [name for name in edits.COMPARED for _ in range(2)]
    assert all(found["jvp"] > 0 < found["vjp"] for found in content["details"]["products"].values())
    assert random_bench.clock.passes > passes and {*edits.COMPARED} <= set(content["cost"]["stages"])
    edits.tables(details)


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


# --- figures ------------------------------------------------------------------------------------------------------


def transferred(image: str, iou: float, success: bool, **row: Any) -> dict[str, Any]:
    return {"kind": "transfer", "image": image, "region": "mouth", "iou": iou, "success": success, "perfect": True,
            "home_success": True, "roir": 0.5, "factor": "mouth_smile", "limited": False, "failure": "",
            **row}  # fmt: skip


def test_the_curve_holds_every_pair_once_and_failures_at_home_and_of_a_perfect_editor_count() -> None:
    rows = [
        transferred("a", 0.5, True),
        transferred("a", 0.6, False, failure="ROIR above 1"),
        transferred("b", 1.0, False, perfect=False, home_success=False, failure="ROIR above 1", factor="mouth_opening"),
        transferred("c", 0.99, True, home_success=False),
    ]
    found = edits.transfer_figures(rows)
    assert [part["success"].count for part in found["curve"]] == [1, 1, 0, 0, 2]
    assert (found["success"].estimate, found["perfect_editor"].estimate) == (0.5, 0.75)
    assert found["where_perfect"].estimate == pytest.approx(2 / 3)
    assert found["of_home_successes"].estimate == 0.5
    assert found["failures"] == {"ROIR above 1": 2}
    assert found["by_factor"]["mouth_opening"]["perfect"].estimate == 0.0


def test_small_regions_are_eyes_and_mouth_and_a_refused_edit_never_flatters_their_median() -> None:
    head = {"kind": "home", "success": True, "limited": False, "strength": 1.0}
    rows = [
        {**head, "image": "a", "region": "mouth", "roir": 0.2},
        {**head, "image": "a", "region": "hair", "roir": 0.9},
        {"kind": "home", "image": "b", "region": "left_eye", "success": False, "roir": math.inf, "failure": "refused"},
    ]
    parts = edits.by_region("loco", rows)
    assert {name: part.edits for name, part in parts.items()} == {
        "all": 3, "small regions": 2, "mouth": 1, "hair": 1, "left_eye": 1,
    }  # fmt: skip
    assert parts["small regions"].roir.estimate == math.inf and parts["small regions"].success.estimate == 0.5
    assert (parts["all"].roir.estimate, parts["all"].refused) == (0.9, 1)


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


# --- the world ----------------------------------------------------------------------------------------------------


def test_an_image_is_inverted_once_for_every_timestep_and_the_clock_counts_it(random_bench: Bench) -> None:
    images, clock = random_bench.images("holdout", 3), random_bench.clock
    first = random_bench.inverted(images, 0.2, 2)
    before = clock.passes
    again = random_bench.inverted(images, 0.2, 2)
    assert clock.passes == before and clock.stages["inversion"]["network_passes"] > 0
    assert all(torch.equal(one.x_t, other.x_t) for one, other in zip(first, again, strict=True))
    random_bench.inverted(images, 0.3, 2)
    assert clock.passes == before + 3 * 2


def test_images_whose_attributes_nothing_reads_are_no_world_of_a_benchmark(
    random_bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    small = tiny_pipeline_folder(tmp_path_factory.mktemp("small"), size=16)
    with pytest.raises(InputError, match="built-in images"), open_bench(tiny_recipe(str(small))):
        pass


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
