"""The benchmark of regions at settings too small to say anything about the model: what it counts must be right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flows.recipe import parse_recipe
from pipeline.faces.factors import REGIONS
from pipeline.regions.segments import SegmentSettings
from tests.benchmarks import regions
from tests.benchmarks.harness import document
from tests.benchmarks.subjects import Bench, open_bench
from tests.pipeline.tiny_models import tiny_pipeline_folder

LABELS = arrays.arrays(np.int64, (5, 6), elements=st.integers(0, 3))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A random network of a few channels at the built-in images' size."""
    folder = tiny_pipeline_folder(tmp_path_factory.mktemp("model"), size=64, block_out_channels=(4, 8, 8),
        down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3)  # fmt: skip
    recipe = parse_recipe(
        {
            "name": "tiny",
            "model": str(folder),
            "dataset": {"kind": "builtin"},
            "regions": ["mouth"],
            "method": {"timestep": 0.35, "inversion_steps": 2},
        }
    )
    with open_bench(recipe, REGIONS) as opened:
        yield opened


@settings(max_examples=30, deadline=None)
@given(labels=LABELS, turn=st.permutations(range(4)))
def test_pieces_that_are_the_parts_fit_perfectly_whatever_they_are_called(labels: np.ndarray, turn: list[int]) -> None:
    parts = {f"part {value}": labels == value for value in np.unique(labels)}
    found = regions.scores(np.asarray(turn)[labels], parts)
    assert set(found.best.values()) == {1.0} and found.purity == 1.0


@settings(max_examples=30, deadline=None)
@given(labels=LABELS)
def test_one_piece_is_as_pure_as_the_largest_part_is_large(labels: np.ndarray) -> None:
    parts = {f"part {value}": labels == value for value in np.unique(labels)}
    found = regions.scores(np.zeros_like(labels), parts)
    assert found.purity == pytest.approx(max(mask.mean() for mask in parts.values()))
    assert all(found.best[name] == pytest.approx(mask.mean()) for name, mask in parts.items())


@pytest.mark.parametrize("count", [1, 2, 6, 12, 13])
def test_the_grid_has_exactly_as_many_pieces_as_asked_for(count: int) -> None:
    areas = np.unique(regions.grid(count, (64, 64)), return_counts=True)[1]
    assert len(areas) == count and areas.min() > 0.7 * areas.max()


def test_the_benchmark_measures_every_way_and_its_json_is_strict(bench: Bench, tmp_path: Path) -> None:
    targets, details = regions.measure(bench, 1, SegmentSettings(count=4, rank=2))
    content = json.loads(json.dumps(document("regions", True, targets, details, bench.clock), allow_nan=False))
    assert set(content["details"]["ways"]) == {regions.OURS, *regions.BASELINES}
    assert all(figures["purity"]["count"] == 1 for figures in content["details"]["ways"].values())
    assert len(content["targets"]) == 6 and content["details"]["cost"]["products"] <= 16
    regions.tables(details)


def test_tuning_measures_every_change(bench: Bench) -> None:
    rows = regions.tune(bench, 1, [{"rank": 2, "count": 3}])
    assert [row["change"] for row in rows] == [{"rank": 2, "count": 3}]
    assert all(0 < row["small parts"] <= 1 for row in rows)
    regions.tables({"tuned": rows})
