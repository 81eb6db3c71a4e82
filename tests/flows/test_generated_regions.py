"""Regions that no data set names, from a recipe to a catalog: the Jacobian's segments, and a mask-generation model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import flows.miner
from catalog.reader import Catalog
from catalog.verify import verify
from tests.flows import tiny
from tests.pipeline.tiny_sam import small_sam


def recipe(world: Path, model: Path, regions: dict[str, Any]) -> Path:
    dataset = {"kind": "folder", "path": "photos", "limit": 2}
    return tiny.recipe(world, model, dataset=dataset, regions=regions)


def names(catalog: Catalog) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in catalog.regions().to_pylist():
        found.setdefault(row["image_id"], set()).add(row["region"])
    return found


def test_segments_of_the_jacobian_are_mined_without_any_annotation(
    world: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = recipe(world, tiny_model, {"provider": "segments", "count": 3, "rank": 4, "min_share": 0.05})
    assert tiny.run("mine", written, "--out", world / "catalog", "--json") == 0
    report = tiny.parsed(capsys.readouterr().out)
    assert verify(world / "catalog").ok
    with Catalog.open(world / "catalog") as catalog:
        found = names(catalog)
        assert len(found) == 2
        assert all(regions and regions <= {"segment-1", "segment-2", "segment-3"} for regions in found.values())
        kinds = {(row["space"], row["kind"]) for row in catalog.directions().to_pylist()}
    assert {("x", "local"), ("h", "individual")} <= kinds
    assert report["products"]["jvp"] > 0
    assert tiny.run("mine", written, "--out", world / "catalog", "--json") == 0
    assert tiny.parsed(capsys.readouterr().out)["already_done"] == 2


def test_a_mask_generation_models_masks_are_mined_and_its_files_recorded(
    world: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)
    model = small_sam(world / "masks-model")
    regions = {"provider": "mask-generation", "model": str(model), "count": 2, "points_per_side": 2}
    generous = {"min_share": 0.001, "max_share": 0.999, "min_score": -1e9, "min_stability": 0.0}
    written = recipe(world, tiny_model, {**regions, **generous})
    assert tiny.run("mine", written, "--out", world / "catalog") in (0, 1)
    assert verify(world / "catalog").ok
    with Catalog.open(world / "catalog") as catalog:
        said = catalog.manifest.provenance.data["mask_model"]
    assert any(name.endswith(".safetensors") for name in said["files"])
    assert yaml.safe_load(written.read_text())["regions"]["model"] == said["reference"]


def test_a_mask_generation_model_that_is_not_there_is_one_error_before_any_image(
    world: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = recipe(world, tiny_model, {"provider": "mask-generation", "model": str(world / "nowhere")})
    assert tiny.run("mine", written, "--out", world / "catalog") == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (world / "catalog").exists()
