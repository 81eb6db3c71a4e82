"""`rhumb plan`: everything that is missing at once, nothing run or fetched, and costs that a catalog then shows."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

import flows.needs
from catalog.reader import Catalog
from flows.estimating import estimate
from flows.known_models import outline_of
from flows.named_recipes import recipe_names
from flows.opening import model_place, open_model
from flows.planning import Plan, plan
from flows.recipe import load_recipe
from tests.benchmarks import fullsize
from tests.benchmarks.harness import Clock, document
from tests.flows import tiny
from tests.pipeline.tiny_models import tiny_denoiser


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing may be fetched: any connection is an error, and the Hub's cache is empty."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError("a plan opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def planned(world: Path, **changes: Any) -> Plan:
    """The plan of the world's recipe with some keys changed."""
    file = world / "recipe.yaml"
    content = {**yaml.safe_load(file.read_text()), **changes}
    file.write_text(yaml.safe_dump(content))
    return plan(file, measure=False)


def in_cache(cache: Path, model: Path) -> Path:
    """`model` as the Hub's client keeps owner/name; returns its snapshot."""
    commit = "0123456789" * 4
    folder = cache / "models--owner--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    shutil.copytree(model, folder / "snapshots" / commit)
    return folder / "snapshots" / commit


# --- ready --------------------------------------------------------------------------------------------------------


def test_a_recipe_with_everything_here_is_ready_and_shows_its_first_images(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.run("plan", world / "recipe.yaml", "--out", world / "catalog", "--json") == 0
    found = tiny.parsed(capsys.readouterr().out)
    assert found["ready"] and found["problems"] == [] and found["model"]["state"] == "here"
    assert found["data"]["images"] == found["estimate"]["images"] == 3
    assert [image["source"] for image in found["data"]["first"]] == ["a.png", "b.jpg", "c.png"]
    assert all(0 < share < 0.2 for image in found["data"]["first"] for share in image["masks"].values())
    assert found["estimate"]["pass_seconds"] > 0 and found["free"] > 0
    assert not (world / "catalog").exists()
    assert tiny.run("plan", world / "recipe.yaml", "--no-measure") == 0
    text = capsys.readouterr().out
    assert "ready" in text and "computed, not measured (H100" in text and "time here" not in text


def test_what_a_plan_reckons_with_is_what_the_catalog_then_takes(mined: Path) -> None:
    recipe = load_recipe(mined / "recipe.yaml")
    cost = estimate(recipe, outline_of(open_model(model_place(recipe))))
    files = [file for file in (mined / "catalog").rglob("*.parquet") if "index" not in str(file)]
    stored = sum(file.stat().st_size for file in files)
    with Catalog.open(mined / "catalog") as catalog:
        images, directions = len(catalog.images()), len(catalog.directions())
    assert directions == images * cost.directions
    # Tables of two rows hold more footers than rows; so only the order of magnitude can be compared here.
    assert cost.bytes.low / 2 <= stored / images <= 8 * cost.bytes.high


# --- what is missing ----------------------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_told_at_once_with_what_to_do(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "occupied").mkdir()
    (world / "occupied" / "letter.txt").write_text("not a catalog")
    regions = {"eye": ["eye"], "beak": ["beak"], "tail": ["tial"], "top": {"template": "nowhere.png"}}
    content = {**yaml.safe_load((world / "recipe.yaml").read_text()), "model": "ffhq-p2", "regions": regions}
    (world / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert tiny.run("plan", world / "recipe.yaml", "--out", world / "occupied", "--json") == 2
    found = tiny.parsed(capsys.readouterr().out)
    assert not found["ready"]
    fields = [problem["field"] for problem in found["problems"]]
    assert fields == ["model", "regions.top.template", "--out"]
    del content["regions"]["top"]
    (world / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert tiny.run("plan", world / "recipe.yaml", "--json") == 2
    found = tiny.parsed(capsys.readouterr().out)
    assert [problem["field"] for problem in found["problems"]] == ["model", "regions", "regions.tail"]
    assert all(problem[key] for problem in found["problems"] for key in ("field", "found", "expected", "action"))
    assert found["problems"][0]["action"].endswith("rhumb convert ffhq_p2.pt --preset ffhq-p2 --out ffhq-p2")


@pytest.mark.parametrize("name", [name for name in recipe_names() if name != "faces64-demo"])
def test_a_built_in_recipe_without_its_files_lists_what_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tiny.run("plan", name, "--json") == 2
    found = tiny.parsed(capsys.readouterr().out)
    fields = [problem["field"] for problem in found["problems"]]
    from_hub = found["model"]["where"].startswith("google/")
    assert fields == (["dataset.path"] if from_hub else ["model", "dataset.path"])
    assert all(problem["action"] for problem in found["problems"])
    assert ("downloads" in found["model"]["state"]) == from_hub
    assert found["estimate"]["multiply_adds"] > 1e11
    assert tiny.run("plan", name) == 2
    assert "not ready" in capsys.readouterr().out


def test_images_that_cannot_be_read_are_shown_and_only_missed_where_none_can(world: Path) -> None:
    (world / "photos" / "a.png").write_bytes(b"no picture")
    found = planned(world)
    assert found.ready and found.data is not None and found.data.first[0].failure
    for file in (world / "photos").iterdir():
        file.write_bytes(b"no picture")
    (problem,) = planned(world).problems
    assert problem.field == "dataset" and "none of the first 3 images" in problem.found


def test_ranks_without_room_and_settings_that_do_not_fit_are_problems(world: Path) -> None:
    method = {**tiny.METHOD, "loco": {"rank": 1, "null_rank": 700}}
    assert [p.field for p in planned(world, method=method).problems] == ["recipe: method.loco.null_rank"]
    method = {**tiny.METHOD, "jive": {"rank": 2, "individual_rank": 3, "joint_rank": 1}}
    assert "recipe: method.jive.individual_rank" in [p.field for p in planned(world, method=method).problems]


def test_a_damaged_model_is_a_problem_and_not_the_end(world: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, world / "broken")
    (world / "broken" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    found = planned(world, model="broken")
    assert [problem.expected for problem in found.problems] == ["a whole safetensors file"]
    assert found.estimate is None and found.data is not None and found.model.state == "missing"


# --- models of the Hub --------------------------------------------------------------------------------------------


def test_a_hub_model_that_is_not_here_is_no_problem_unless_nothing_may_be_fetched(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = planned(world, model="owner/name@main")
    assert found.ready and "downloads" in found.model.state and found.estimate is None
    assert tiny.run("plan", world / "recipe.yaml") == 0
    assert "cost: unknown until the model is here" in capsys.readouterr().out
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (problem,) = planned(world).problems
    assert problem.field == "model" and "HF_HUB_OFFLINE" in problem.found


def test_a_cached_hub_model_is_read_where_it_lies_and_an_incomplete_one_is_to_be_fetched(
    world: Path, tiny_model: Path
) -> None:
    snapshot = in_cache(world / "cache", tiny_model)
    found = planned(world, model={"reference": "owner/name", "revision": "main"})
    assert found.ready and found.model.state == "in the Hub's cache" and found.estimate is not None
    assert Path(found.model.where) == snapshot
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert "downloads" in planned(world).model.state


def test_a_mask_generation_model_is_looked_for_and_its_package_too(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions: dict[str, Any] = {"provider": "mask-generation", "count": 2}
    found = planned(world, regions=regions)
    assert found.ready and found.mask_model is not None and "downloads" in found.mask_model.state
    assert found.estimate is not None and "mask generation" in [work.kind for work in found.estimate.work]
    (world / "masks-model").mkdir()
    (world / "masks-model" / "config.json").write_text("{}")
    monkeypatch.setattr(flows.needs.importlib.util, "find_spec", lambda name: None)
    found = planned(world, regions={**regions, "model": str(world / "masks-model")})
    assert [problem.field for problem in found.problems] == ["regions.provider", "regions.model"]
    assert "pip install 'rhumb[masks]'" in found.problems[0].action
    assert found.estimate is not None and "not known" in found.estimate.left_out


# --- the disk -----------------------------------------------------------------------------------------------------


def test_a_full_disk_and_another_recipes_catalog_are_problems(
    world: Path, mined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(world)
    monkeypatch.setattr(flows.needs.shutil, "disk_usage", lambda place: usage._replace(free=1000))
    (problem,) = plan(world / "recipe.yaml", world / "new" / "catalog", measure=False).problems
    assert "GB free" in problem.found and problem.field == "--out"
    monkeypatch.undo()
    (problem,) = plan(world / "recipe.yaml", mined / "photos", measure=False).problems
    assert "something else" in problem.found
    assert plan(mined / "recipe.yaml", mined / "catalog", measure=False).ready
    content = {**yaml.safe_load((mined / "recipe.yaml").read_text()), "seed": 5}
    (world / "other.yaml").write_text(yaml.safe_dump(content))
    problems = plan(world / "other.yaml", mined / "catalog", measure=False).problems
    assert "another recipe" in problems[-1].found


# --- the benchmark of full-size networks --------------------------------------------------------------------------


def test_the_full_size_benchmark_measures_what_it_says_and_its_json_is_strict() -> None:
    denoiser = tiny_denoiser(size=16)
    found = fullsize.measure(denoiser, 30, 3, (slice(4, 9), slice(3, 9)), None)
    targets = fullsize.cpu_targets("p2", found)
    assert found["products"] <= fullsize.PRODUCTS and found["finite"] and found["steps"] == 3
    assert [target.met for target in targets][1:4] == [True, True, True] and not targets[0].met
    rate = fullsize.on_gpu(denoiser, fullsize.gpu_recipe(), 30, 2)
    assert rate["regions"] == 6 and rate["images_an_hour"] > 0
    content = document("fullsize", True, targets, {"p2": found, "gpu": rate}, Clock())
    assert json.loads(json.dumps(content, allow_nan=False))["targets"]


def test_without_a_gpu_the_benchmark_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fullsize.torch.cuda, "is_available", lambda: False)
    assert fullsize.run(["gpu"], 1, Clock())[1]["gpu"] == {"note": "no GPU here"}
