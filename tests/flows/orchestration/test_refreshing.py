"""A refresh does what is new or changed since the last version, and nothing else; without Prefect."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import flows.miner
from catalog.hub.stores import StoreHub
from catalog.reader import Catalog
from catalog.verify import verify
from flows.orchestration import refreshing
from flows.orchestration.places import absolute
from flows.orchestration.refreshing import generation_for, latest, refresh
from flows.recipe import load_recipe
from flows.run_settings import RunSettings
from pipeline.errors import BusyError, ConflictError, NotFoundError
from tests.catalog import faulty, local_hub
from tests.flows import tiny

HERE = RunSettings(runner="here")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)


def refreshed(world: Path, **changes: Any) -> refreshing.Refreshed:
    """`rhumb refresh` of the recipe there with these changes."""
    if changes:
        present = load_recipe(world / "recipe.yaml").model.reference
        tiny.recipe(world, Path(changes.pop("model", present)), **changes)
    recipe = load_recipe(world / "recipe.yaml")
    return refresh(recipe, world / "catalog", str(world / "hub/org/pack"), HERE)


def grow(world: Path, name: str = "z") -> None:
    """One more photograph with its masks."""
    tiny.photograph(len(name) + 70, (23, 23)).save(world / "photos" / f"{name}.png")
    tiny.box((23, 23), tiny.BOXES["eye"]).save(world / "masks" / f"{name}_eye.png")


def versions(world: Path) -> list[str]:
    return local_hub.versions(world / "hub/org/pack")


def test_the_first_version_is_1_0_0_and_without_anything_new_there_is_no_other(world: Path) -> None:
    first = refreshed(world)
    assert (first.images, first.version, first.generation) == (3, "1.0.0", 1)
    before = tiny.tree(world / "catalog")
    second = refreshed(world)
    assert (second.images, second.already_done, second.version) == (0, 3, None)
    assert second.said == "nothing changed since 1.0.0"
    after = tiny.tree(world / "catalog")
    assert {k: v for k, v in before.items() if ".run" not in k} == {k: v for k, v in after.items() if ".run" not in k}
    assert versions(world) == ["1.0.0"]


def test_a_new_image_alone_is_mined_and_raises_the_minor_number(world: Path) -> None:
    refreshed(world)
    grow(world)
    done = refreshed(world)
    assert (done.images, done.already_done, done.version) == (1, 3, "1.1.0")
    pack = local_hub.snapshot(world / "hub/org/pack", "1.1.0")
    assert tiny.direction_ids(pack) == tiny.direction_ids(world / "catalog")
    with Catalog.open(pack) as opened:
        assert opened.images().num_rows == 4
        assert all(entry.covers(opened.manifest.shards("directions")) for entry in opened.manifest.indexes.values())


def test_a_changed_setting_gets_a_generation_and_a_major_number_of_its_own_and_the_former_stays(world: Path) -> None:
    refreshed(world)
    before = tiny.tree(world / "catalog")
    done = refreshed(world, seed=5)
    assert (done.generation, done.catalog, done.images, done.version) == (2, str(world / "catalog-2"), 3, "2.0.0")
    assert "another recipe than 1.0.0" in done.said
    assert tiny.tree(world / "catalog") == before
    assert verify(world / "catalog").ok
    assert verify(world / "catalog-2").ok
    assert refreshed(world).version is None
    assert latest(str(world / "catalog")) == str(world / "catalog-2")


def test_another_model_gets_a_generation_and_going_back_continues_the_former_one(world: Path, tmp_path: Path) -> None:
    refreshed(world)
    own = load_recipe(world / "recipe.yaml").model.reference
    other = tiny.model(tmp_path / "other-model", block_out_channels=(16,))
    assert refreshed(world, model=other).version == "2.0.0"
    back = refreshed(world, model=own)
    assert (back.generation, back.images, back.already_done, back.version) == (1, 0, 3, "3.0.0")


def test_what_was_mined_and_not_published_is_published_by_the_next_refresh(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*asked: Any, **keywords: Any) -> None:
        raise OSError("the hub is away")

    with monkeypatch.context() as patch:
        patch.setattr(StoreHub, "publish", dies)
        with pytest.raises(OSError, match="away"):
            refreshed(world)
    assert versions(world) == []
    done = refreshed(world)
    assert (done.images, done.already_done, done.version) == (0, 3, "1.0.0")


def test_other_gates_are_another_choice_of_the_same_catalog(world: Path) -> None:
    refreshed(world)
    done = refreshed(world, gates={"psnr": 10_000.0})
    assert (done.generation, done.version) == (1, None)
    assert "every direction" in done.said
    assert refreshed(world, gates={"psnr": -1.0}).version is None
    assert versions(world) == ["1.0.0"]


def test_a_worse_quality_is_not_published_until_it_is_overridden(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refreshed(world)
    grow(world)
    monkeypatch.setattr("flows.publishing.regression", lambda now, before: ["psnr: 40 before, 3 now"])
    with pytest.raises(ConflictError, match="psnr: 40 before, 3 now"):
        refreshed(world)
    assert versions(world) == ["1.0.0"]
    recipe = load_recipe(world / "recipe.yaml")
    done = refresh(recipe, world / "catalog", str(world / "hub/org/pack"), HERE, override=True)
    assert done.version == "1.1.0"


def test_without_a_repository_nothing_is_published_and_the_catalog_is_indexed(world: Path) -> None:
    done = refresh(load_recipe(world / "recipe.yaml"), world / "catalog", None, HERE)
    assert (done.version, done.said) == (None, "no repository was given")
    with Catalog.open(world / "catalog") as catalog:
        assert catalog.manifest.indexes


def test_a_folder_that_holds_something_else_is_refused_and_stays(world: Path) -> None:
    (world / "catalog").mkdir()
    (world / "catalog" / "mine.txt").write_text("mine")
    with pytest.raises(ConflictError, match="other content"):
        refreshed(world)
    assert [entry.name for entry in (world / "catalog").iterdir()] == ["mine.txt"]


def test_a_recipe_changed_while_its_refresh_is_going_waits_for_its_turn_and_is_published_last(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: list[str] = []

    def meanwhile(*asked: Any) -> Any:
        with pytest.raises(BusyError, match=rf"another refresh \(process {os.getpid()}\)") as told:
            refreshed(world, seed=5)
        busy.append(str(told.value))
        return tiny.quick_mine_image(*asked)

    with monkeypatch.context() as patch:
        patch.setattr(flows.miner, "mine_image", meanwhile)
        assert refreshed(world).version == "1.0.0"
    assert len(busy) == 3
    assert versions(world) == ["1.0.0"]
    assert not (world / "catalog-2").exists()
    assert refreshed(world, seed=5).version == "2.0.0"


def test_a_refresh_of_a_store_is_alone_on_its_machine_and_leaves_nothing_in_the_working_folder(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("RHUMB_CACHE", str(world / "cache"))
    recipe, url = load_recipe(world / "recipe.yaml"), f"{faulty.FaultyFileSystem.protocol}://store"
    before = {entry.name for entry in world.iterdir()}
    with refreshing.alone(absolute(Path(url))), pytest.raises(BusyError, match="another refresh"):
        refresh(recipe, Path(url), None, HERE)
    assert refresh(recipe, Path(url), None, HERE).images == 3
    assert {entry.name for entry in world.iterdir()} - before <= {"store", "cache"}


def test_the_first_generation_needs_no_model_to_be_found(world: Path) -> None:
    recipe = load_recipe(world / "recipe.yaml")
    assert generation_for(recipe, str(world / "catalog")) == (1, str(world / "catalog"))
    with pytest.raises(NotFoundError, match="catalog"):
        latest(str(world / "catalog"))


def test_the_command_says_what_it_did(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("refresh", world / "recipe.yaml", "--out", world / "catalog", "--repo", world / "hub/org/pack")
    assert tiny.run(*command, "--runner", "here", "--json") == 0
    said = tiny.parsed(capsys.readouterr().out)
    assert (said["images"], said["version"], said["failed"]) == (3, "1.0.0", {})
    assert tiny.run(*command, "--runner", "here") == 0
    assert "no version: nothing changed since 1.0.0" in capsys.readouterr().out
    assert tiny.run(*command, "--workers", "0") == 2
