"""The search for settings: what it tries, when it stops, what it costs, and the recipe that it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.evaluation import tuning
from flows.evaluation.comparison import base_settings
from flows.evaluation.tuning import Tuned, changed, merged, tune
from flows.evaluation.world import World
from flows.recipe import Recipe, load_recipe
from pipeline.errors import InputError
from pipeline.methods.choices import METHODS
from pipeline.methods.components import Individual, IndividualSettings
from pipeline.methods.contract import Found, Refused, Subject
from pipeline.methods.loco import Loco, LocoSettings
from tests.flows.evaluation.linear_world import Planted
from tests.flows.evaluation.small_world import small_setup
from tests.flows.tiny import METHOD, parsed, run

BEST = {"timestep": 0.5, "null_rank": 10, "joint_rank": 16}


class Rival(Planted):
    """Planted edits that leak the more, the further settings are from `BEST`; an image costs ten products."""

    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        type(self).finds += 1
        self.cost.jvp += 10
        settings = self.settings
        leak = 0.01 + abs(settings.timestep - BEST["timestep"])
        if isinstance(settings, LocoSettings):
            leak += abs(settings.null_rank - BEST["null_rank"]) / 100
        if isinstance(settings, IndividualSettings):
            leak += abs(settings.joint_rank - BEST["joint_rank"]) / 100
        found: dict[str, Found | Refused] = {}
        for region, mask in subject.masks.items():
            patch = mask.to(subject.picture) + leak * (~mask).to(subject.picture)
            patch = patch.expand_as(subject.picture)
            found[region] = Found(region, 0.5, patch / patch.norm())
        return found


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> list[type[Rival]]:
    """Both methods planted, choosing on two images; the classes count what they find."""
    monkeypatch.setattr(tuning, "IMAGES", 2)
    kinds = [
        type(kind.name, (Rival,), {"name": kind.name, "about": kind.about, "settings_class": kind.settings_class,
                                   "told": kind.told, "finds": 0})
        for kind in (Loco, Individual)
    ]  # fmt: skip
    for kind in kinds:
        monkeypatch.setitem(METHODS, kind.name, kind)
    return kinds


@pytest.fixture
def small(tmp_path: Path) -> Recipe:
    return small_setup(tmp_path / "world").world.recipe


def settings_of(tuned: Tuned) -> tuple[Any, ...]:
    method = load_recipe(tuned.recipe).method
    return method.timestep, method.loco.null_rank, method.jive.joint_rank, method.edit.h_window


def test_each_round_tries_the_recipes_own_settings_first_and_only_valid_ones(small: Recipe) -> None:
    best: tuning.Values = {}
    own = small.method
    for _, candidates in tuning._rounds(small):
        recipes = [changed(small, merged(best, candidate)).method for candidate in candidates]
        assert recipes[0] == own
        assert len({repr(method) for method in recipes}) == len(candidates)
        assert all(
            method.edit.h_window is not None and method.edit.h_window[0] == method.timestep for method in recipes
        )
        best = merged(best, candidates[0])


def test_a_window_of_the_recipe_keeps_its_share_of_the_timestep(tmp_path: Path) -> None:
    from tests.flows.tiny import recipe

    edit = {**METHOD["edit"], "h_window": [0.35, 0.07]}
    small_setup(tmp_path)
    with_window = load_recipe(recipe(tmp_path, tmp_path / "model", method={"edit": edit}))
    rounds = dict(tuning._rounds(with_window))
    windows = [changed(with_window, merged({}, c)).method.edit.h_window for c in rounds["timestep"]]
    assert windows[0] == (0.35, 0.07) and (0.5, 0.1) in windows
    values = merged({}, rounds["timestep"][0])
    lows = [changed(with_window, merged(values, c)).method.edit.h_window for c in rounds["window"]]
    assert lows[0] == (0.35, 0.07) and len(set(lows)) == len(lows) > 3


def test_a_change_replaces_its_own_values_only() -> None:
    best: tuning.Values = {"": {"timestep": 0.5}, "loco": {"null_rank": 5, "variant": "inside"}}
    both = merged(best, {"loco": {"null_rank": 9}, "jive": {"joint_rank": 2}})
    assert both == {"": {"timestep": 0.5}, "loco": {"null_rank": 9, "variant": "inside"}, "jive": {"joint_rank": 2}}
    assert merged(best, {"edit": {"low": 0.5}})["edit"] == {"h_window": [0.5, 0.25]}
    assert best["loco"] == {"null_rank": 5, "variant": "inside"}


def test_a_change_that_no_recipe_may_have_is_refused(small: Recipe) -> None:
    with pytest.raises(ValueError, match="h_window"):
        changed(small, {"edit": {"h_window": [0.9, 0.0]}})


def test_the_search_finds_the_best_settings_and_writes_a_recipe_that_mines_them(
    small: Recipe, finds: Sequence[type[Rival]], tmp_path: Path
) -> None:
    tuned = tune(small, tmp_path / "elsewhere", budget=10**6)
    assert tuned.finished
    timestep, null_rank, joint_rank, window = settings_of(tuned)
    assert {"timestep": timestep, "null_rank": null_rank, "joint_rank": joint_rank} == BEST
    assert window == (0.5, 0.0)
    written = load_recipe(tuned.recipe)
    assert written.regions == small.regions and written.seed == small.seed
    assert written.dataset.name == small.dataset.name and written.gates == small.gates
    world, own = World(written, tmp_path / "a"), World(small, tmp_path / "b")
    assert world.denoiser.info.fingerprint == own.denoiser.info.fingerprint
    assert [i.image_id for i in world.images("mine", 3)] == [i.image_id for i in own.images("mine", 3)]
    assert base_settings(METHODS["loco"], world).timestep == 0.5
    assert tuned.recipe.read_text().startswith("# Chosen by `rhumb evaluate --tune` on 2 images: loco: visible 1.0")


def test_a_rerun_measures_nothing_and_says_the_same(
    small: Recipe, finds: Sequence[type[Rival]], tmp_path: Path
) -> None:
    first = tune(small, tmp_path / "out", budget=10**6)
    text, before = first.recipe.read_bytes(), [kind.finds for kind in finds]
    assert tune(small, tmp_path / "out", budget=10**6) == first
    assert [kind.finds for kind in finds] == before and first.recipe.read_bytes() == text


def test_every_cell_is_paid_once_though_candidates_share_it(
    small: Recipe, finds: Sequence[type[Rival]], tmp_path: Path
) -> None:
    tuned = tune(small, tmp_path / "out", budget=10**6)
    cells = [json.loads(path.read_text()) for path in (tmp_path / "out" / "cells" / "choosing").iterdir()]
    products = 10 * sum(kind.finds for kind in finds)
    assert len(cells) * 2 == sum(kind.finds for kind in finds)  # each measured once, on two images
    assert tuned.passes == products + sum(cell["passes"] for cell in cells)


def test_the_budget_stops_between_candidates_and_a_larger_one_goes_on(
    small: Recipe, finds: Sequence[type[Rival]], tmp_path: Path
) -> None:
    first = tune(small, tmp_path / "out", budget=1)
    assert not first.finished and len(first.tried) == 1 and first.passes > 1
    assert settings_of(first)[:2] == (small.method.timestep, small.method.loco.null_rank)
    before = sum(kind.finds for kind in finds)
    second = tune(small, tmp_path / "out", budget=first.passes + 1)
    assert not second.finished and len(second.tried) == 2 and second.tried[:1] == first.tried
    assert sum(kind.finds for kind in finds) - before == 2 * 2  # two methods on two images
    whole = len(tuning.TIMESTEPS)
    rows = tune(small, tmp_path / "out", budget=10**6).tried[:whole]
    third = tune(small, tmp_path / "out", budget=sum(row["passes"] for row in rows) + 1)
    assert third.tried[:whole] == rows and {row["setting"] for row in third.tried[whole:]} == {"null space"}
    assert settings_of(third)[0] == 0.5


def test_a_search_without_as_many_images_takes_those_there_are(
    small: Recipe, finds: Sequence[type[Rival]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "IMAGES", 100)
    tuned = tune(small, tmp_path / "out", budget=1)
    assert "on 3 images" in tuned.recipe.read_text() and finds[0].finds == 3


def test_options_that_a_search_would_ignore_are_refused(
    small: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "world" / "recipe.yaml"
    given = ("--tune", "--quick", "--images", 3, "--method", "loco", "--out", tmp_path / "out")
    assert run("evaluate", path, *given) == 2
    assert "--quick, --method, --images" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_evidence_is_json_that_anybody_reads(small: Recipe, finds: Sequence[type[Rival]], tmp_path: Path) -> None:
    refusing = type("R", (finds[0],), {"refused": ("eye", "mouth"), "find": Planted.find})
    METHODS["loco"] = refusing  # the fixture's patch puts the real one back
    tuned = tune(small, tmp_path / "out", budget=1)
    content = parsed((tmp_path / "out" / "tuned.json").read_text())
    assert (content["budget"], content["passes"], content["finished"]) == (1, tuned.passes, False)
    assert content["tried"][0]["loco: roir"] is None  # infinite: everything was refused
    assert content["recipe"] == small.name


def test_the_digest_beside_the_recipe_holds_every_row_that_was_tried_in_words(
    small: Recipe, finds: Sequence[type[Rival]], tmp_path: Path
) -> None:
    tuned = tune(small, tmp_path / "out", budget=1)
    rows = parsed(tuned.recipe.with_suffix(".tuning.json").read_text())
    assert [row["setting"] for row in rows] == ["timestep"] * len(tuned.tried)
    assert [row["individual: roir"] for row in rows] == [round(row["individual: roir"], 2) for row in tuned.tried]
    assert rows[0]["settings"] == "timestep 0.35, h_window [0.35, 0.0]"
    assert all(isinstance(cell, str | int | float) for row in rows for cell in row.values())


def test_a_model_without_bottleneck_is_tuned_in_x_space(
    small: Recipe, finds: Sequence[type[Rival]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tuning.open_comparison

    def without(*arguments: Any) -> Any:
        comparison = real(*arguments)
        denoiser = comparison.world.denoiser
        denoiser.info = replace(denoiser.info, bottleneck_shape=None)
        return comparison

    monkeypatch.setattr(tuning, "open_comparison", without)
    tuned = tune(small, tmp_path / "out", budget=10**6)
    assert finds[1].finds == 0 and settings_of(tuned)[:2] == (0.5, 10)


@pytest.mark.parametrize(("budget", "workers"), [(0, 1), (-5, 1), (100, 0)])
def test_a_budget_or_workers_of_nothing_are_refused(budget: int, workers: int, small: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 1"):
        tune(small, tmp_path / "out", budget, workers)
    assert not (tmp_path / "out").exists()


def test_the_command_tunes_and_says_what_it_tried(
    small: Recipe, finds: Sequence[type[Rival]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "world" / "recipe.yaml"
    command = ("evaluate", path, "--tune", "--budget", 1, "--workers", 1, "--out", tmp_path / "out")
    assert run(*command) == 0
    said = capsys.readouterr().out
    assert "the budget of 1 passes was spent" in said and "tuned.yaml" in said
    assert run(*command, "--json") == 0
    answer = parsed(capsys.readouterr().out)
    assert answer["recipe"] == str(tmp_path / "out" / "tuned.yaml") and len(answer["tried"]) == 1


def test_regions_are_found_once_for_all_that_is_tried_and_paid_from_the_budget(
    finds: Sequence[type[Rival]], tmp_path: Path
) -> None:
    world = small_setup(tmp_path / "world", regions={"provider": "segments", "count": 3, "rank": 4}).world
    assert world.found is not None
    world.images("mine", 2)
    nothing = tune(world.recipe, tmp_path / "out", budget=world.found.passes)
    assert (nothing.finished, nothing.tried, nothing.passes) == (False, [], world.found.passes)
    assert load_recipe(nothing.recipe).method == world.recipe.method
    tuned = tune(world.recipe, tmp_path / "out", budget=10**6)
    assert tuned.finished and settings_of(tuned)[0] == 0.5  # another timestep than that of the regions
    cells = [json.loads(path.read_text()) for path in (tmp_path / "out" / "cells" / "choosing").iterdir()]
    products = 10 * sum(kind.finds for kind in finds)
    assert tuned.passes == world.found.passes + products + sum(cell["passes"] for cell in cells)
    assert len(list((tmp_path / "out" / "regions").iterdir())) == 2
    assert tune(world.recipe, tmp_path / "out", budget=10**6) == tuned
