"""Regions that no data set names, in an evaluation: found once an image, kept, paid for, and the same for everybody."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flows.evaluation.evaluating import Wanted, evaluate
from flows.evaluation.world import World
from flows.finding import Finder
from flows.recipe import load_recipe
from pipeline.errors import InputError, ModelError
from tests.flows.evaluation.small_world import never, small_setup
from tests.pipeline.tiny_sam import small_sam

SEGMENTS = {"provider": "segments", "count": 3, "rank": 4}
MASKS = {"provider": "mask-generation", "count": 2, "points_per_side": 2, "min_share": 0.001, "max_share": 0.999,
         "min_score": -1e9, "min_stability": 0.0}  # fmt: skip


def world_of(folder: Path, **changes: Any) -> World:
    return small_setup(folder, **{"regions": SEGMENTS, **changes}).world


def again(world: World, **changes: Any) -> World:
    """The same folder opened anew, under a recipe that is changed."""
    path = world.recipe._folder / "recipe.yaml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, **changes}))
    return World(load_recipe(path), world.folder)


def files(world: World) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (world.folder / "regions").iterdir()}


def masks(world: World, count: int = 2) -> list[dict[str, np.ndarray]]:
    return [image.masks for image in world.images("holdout", count)]


def same(one: list[dict[str, np.ndarray]], other: list[dict[str, np.ndarray]]) -> bool:
    return [list(own) for own in one] == [list(own) for own in other] and all(
        np.array_equal(mask, theirs[region])
        for own, theirs in zip(one, other, strict=True)
        for region, mask in own.items()
    )


def test_regions_are_those_of_mining_and_found_once_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of(tmp_path)
    found, settings = masks(world), world.recipe.method
    assert all(own and set(own) <= {"segment-1", "segment-2", "segment-3"} for own in found)
    t = round(settings.timestep * world.denoiser.info.train_timesteps)
    finder = Finder(world.recipe, world.recipe.regions, world.denoiser, t)  # type: ignore[arg-type]
    image = world.images("holdout", 1)[0]
    (subject,) = world.subjects([image], t, settings.inversion_steps)
    assert same(found[:1], [finder.masked(image, subject.x_t)[0].masks])
    assert list(subject.masks) == list(image.masks) and len(files(world)) == 2
    monkeypatch.setattr(Finder, "masked", never)
    later = again(world)
    assert same(masks(later), found) and later.counter.passes == 0


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 7},
        {"regions": {**SEGMENTS, "rank": 5}},
        {"method": {"timestep": 0.5, "inversion_steps": 3, "edit": {"h_window": None}}},
        {"method": {"timestep": 0.35, "inversion_steps": 4, "edit": {"h_window": None}}},
    ],
)
def test_regions_are_found_anew_under_whatever_they_depend_on(tmp_path: Path, change: dict[str, Any]) -> None:
    world = world_of(tmp_path)
    masks(world)
    before = files(world)
    masks(again(world, **change))
    assert len(files(world)) == 4 and before.items() <= files(world).items()
    masks(again(world, licence="mit", name="other"))
    assert len(files(world)) == 4


@pytest.mark.parametrize("damage", ["", "half", "bit", "{}", "[]", '{"content": [], "digest": ""}'])
def test_regions_that_are_damaged_are_found_anew(tmp_path: Path, damage: str) -> None:
    world = world_of(tmp_path)
    found, sound = masks(world, 1), files(world)
    ((name, content),) = sound.items()
    text = content.decode()
    mask = json.loads(text)["content"]["masks"]["segment-2"]
    kinds = {"half": text[: len(text) // 2], "bit": text.replace(mask, mask[::-1])}
    (world.folder / "regions" / name).write_text(kinds.get(damage, damage))
    assert same(masks(again(world), 1), found)
    assert json.loads(files(world)[name])["content"]["masks"] == json.loads(content)["content"]["masks"]


def test_an_image_without_regions_is_left_out_and_the_next_one_taken_while_the_split_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of(tmp_path)
    holdout = [image.source for image in world.images("holdout", 2)]
    real = Finder.masked

    def picky(finder: Finder, image: Any, x_t: Any) -> Any:
        if image.source == "a.png":
            raise InputError("regions by segments", "none (all inert)", "at least one region")
        return real(finder, image, x_t)

    monkeypatch.setattr(Finder, "masked", picky)
    other = World(world.recipe, tmp_path / "other")
    assert [image.source for image in other.images("holdout", 2)] == holdout and not other.failures
    assert [image.source for image in other.images("mine", 2)] == ["c.png", "e.tif"]
    assert other.failures == {"a.png": "regions by segments: found none (all inert); expected at least one region"}
    with pytest.raises(InputError, match="2 of the mine split.*Left out: 1, of which the first is a.png"):
        other.images("mine", 3)
    monkeypatch.setattr(Finder, "masked", never)
    later = World(world.recipe, tmp_path / "other")
    assert len(later.up_to("mine", 9)) == 2 and later.failures == other.failures


def test_what_is_learned_from_has_no_regions_and_nothing_is_chosen_on_it(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    chosen, lessons = world.images("mine", 1), world.lessons(2, skip=1)
    assert len(lessons) == 2 and not any(image.masks for image in lessons) and len(files(world)) == 1
    assert chosen[0].image_id not in {image.image_id for image in lessons}
    assert world.count("mine", 9) == 3 and len(files(world)) == 1
    with pytest.raises(InputError, match="3 of the mine split"):
        world.lessons(3, skip=1)


def test_every_pass_and_product_of_finding_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of(tmp_path)
    assert world.found is not None and world.found.passes == 0
    products: list[int] = []
    real = Finder.masked

    def counted(finder: Finder, image: Any, x_t: Any) -> Any:
        found = real(finder, image, x_t)
        products.append(found[1].total)
        return found

    monkeypatch.setattr(Finder, "masked", counted)
    world.images("holdout", 2)
    assert world.counter.passes == 2 * world.recipe.method.inversion_steps and min(products) > 0
    assert world.found.passes == world.counter.passes + sum(products) and world.found.count == 2
    world.images("holdout", 1)
    assert world.found.count == len(products) == 2
    later = again(world)
    later.images("holdout", 2)
    assert later.found is not None and later.found.passes == world.found.passes and later.counter.passes == 0


def test_masks_of_a_mask_generation_model_need_no_inversion_and_depend_on_its_weights(tmp_path: Path) -> None:
    model = small_sam(tmp_path / "masks-model")
    world = world_of(tmp_path, regions={**MASKS, "model": str(model)})
    found = masks(world)
    assert all(own and set(own) <= {"segment-1", "segment-2"} for own in found)
    assert world.counter.passes == 0 and world.found is not None and world.found.passes == 0
    assert len(files(world)) == 2
    masks(again(world, seed=9))
    assert len(files(world)) == 2
    settings = model / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace('"resample": 2', '"resample": 3'))
    masks(again(world))
    assert len(files(world)) == 4


def test_a_process_that_is_told_what_regions_depend_on_opens_no_mask_generation_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of(tmp_path, regions={**MASKS, "model": str(small_sam(tmp_path / "masks-model"))})
    found, later = masks(world), again(world)
    assert world.found is not None and later.found is not None
    monkeypatch.setattr(Finder, "_mask_model", never)
    later.found.trust(world.found.depends())
    assert same(masks(later), found)


def test_a_mask_generation_model_that_is_not_there_is_one_error_for_all_images(tmp_path: Path) -> None:
    world = world_of(tmp_path, regions={**MASKS, "model": str(tmp_path / "nowhere")})
    with pytest.raises(ModelError, match="nowhere"):
        world.up_to("holdout", 1)
    assert not world.failures


def test_a_memory_budget_below_one_product_is_one_error_and_no_images_own(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    with pytest.raises(InputError, match="memory"):
        again(world, method={**world.recipe.method.model_dump(mode="json"), "memory": 1})


def test_several_processes_edit_the_regions_that_one_finds_and_the_page_tells_how(tmp_path: Path) -> None:
    world, figures = world_of(tmp_path), ("ablation-timestep", "attribute-linearity")
    asked = Wanted(methods=("loco", "random-x"), quick=True, images=2)
    alone = evaluate(world.recipe, tmp_path / "alone", replace(asked, figures=figures))
    several = evaluate(world.recipe, tmp_path / "several", replace(asked, workers=2))
    assert [each.edits for each in alone.lines] == [each.edits for each in several.lines]
    assert min(each.edits for each in alone.lines) >= 2
    for kind in ("regions", "cells/comparison"):
        one, other = ({path.name for path in (tmp_path / out / kind).iterdir()} for out in ("alone", "several"))
        assert one == other and len(one) == 2
    assert list(alone.figures) == ["ablation-timestep"]
    assert alone.absent["figure attribute-linearity"] == "nothing reads the attributes of these pictures"
    assert "by segments at t = 0.35 T" in (tmp_path / "alone" / "index.html").read_text()
