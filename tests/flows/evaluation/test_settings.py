"""What settings a method is given: the recipe's where they are meant for it, its papers' own otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.evaluation.captions import NO_CAPTIONS, captions_of
from flows.evaluation.comparison import base_settings, merit, rank_of
from flows.evaluation.world import World
from flows.recipe import load_recipe
from pipeline.errors import InputError
from pipeline.methods.choices import METHODS
from pipeline.methods.contract import Settings
from tests.flows.tiny import model, photographs, recipe

OWN_RANKS = {"haas": 10, "haas-masked": 10, "haas-pca": 20, "pullback": 1}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A recipe with ranks, a window, a convention and noise of its own."""
    photographs(tmp_path)
    method = {
        "timestep": 0.4,
        "loco": {"rank": 5, "null_rank": 7},
        "jive": {"rank": 6, "joint_rank": 3, "orthogonal_individuals": True},
        "edit": {"steps": 3, "h_window": [0.4, 0.1], "convention": "both", "eta": 0.5, "eta_share": 0.4},
    }
    path = recipe(tmp_path, model(tmp_path / "model", size=8), method=method)
    return World(load_recipe(path), tmp_path / "evaluation")


def settings(name: str, world: World) -> Any:
    return base_settings(METHODS[name], world)


@pytest.mark.parametrize(("name", "rank"), OWN_RANKS.items())
def test_a_recipes_ranks_are_those_of_its_own_methods_only(name: str, rank: int, world: World) -> None:
    assert settings(name, world).rank == rank
    assert (settings("loco", world).rank, settings("loco", world).null_rank) == (5, 7)
    assert (settings("individual", world).rank, settings("individual", world).joint_rank) == (6, 3)
    assert settings("individual", world).orthogonal_individuals


def test_asyrp_stays_asymmetric_whatever_the_recipe_says(world: World) -> None:
    kind = METHODS["asyrp"]
    assert {one.convention for one in kind.grid(settings("asyrp", world))} == {"x0"}
    assert settings("individual", world).convention == "both"


def test_blended_diffusion_samples_as_its_paper_does(world: World) -> None:
    own = settings("blended", world)
    assert (own.timestep, own.steps) == (0.5, 25)


def test_noise_in_the_last_steps_is_the_recipes_for_vectors_of_both_spaces(world: World) -> None:
    for name in ("loco", "individual", "pullback", "haas"):
        assert (settings(name, world).eta, settings(name, world).eta_share) == (0.5, 0.4)
    assert settings("asyrp", world).eta == 0.0  # its boosting is a setting of its own


@pytest.mark.parametrize("name", [name for name in METHODS if name != "asyrp"])
def test_a_window_keeps_its_shares_of_the_timestep_all_over_a_grid(name: str, world: World) -> None:
    grid = METHODS[name].grid(settings(name, world))
    assert len({str(one.as_dict()) for one in grid}) == len(grid)  # each is tried once
    for one in grid:
        if one.window is not None:
            assert one.window == pytest.approx((one.timestep, one.timestep / 4))


def test_settings_without_a_window_have_none_at_another_timestep() -> None:
    assert Settings(window=None).at_timestep(0.9) == Settings(timestep=0.9)


def test_where_nothing_reads_attributes_visible_edits_come_before_local_ones() -> None:
    def edits(reached: bool, roir: float, **more: Any) -> dict[str, float]:
        return merit([{"reached": reached, "roir": roir, **more}])

    assert "success" not in edits(True, 0.4)
    assert rank_of(edits(True, 0.4)) > rank_of(edits(False, 0.1))
    assert rank_of(edits(True, 0.3)) > rank_of(edits(True, 0.4))
    assert rank_of(edits(False, 0.4, success=True)) > rank_of(edits(True, 0.1, success=False))


def test_captions_are_a_goal_for_each_region() -> None:
    given = captions_of(
        Path("clip"), ["mouth: a face -> a smiling face", " eye:a face->closed eyes "], ["eye", "mouth"]
    )
    told = [(goal.region, goal.index, goal.source, goal.target) for goal in given.goals]
    assert told == [("mouth", 0, "a face", "a smiling face"), ("eye", 1, "a face", "closed eyes")]
    assert captions_of(None, [], ["eye"]) is NO_CAPTIONS


@pytest.mark.parametrize(
    ("folder", "texts", "message"),
    [
        (None, ["eye: a, b"], "before -> after"),
        (Path("clip"), [], "one without the other"),
        (Path("clip"), ["nose: a -> b"], "one of eye"),
        (Path("clip"), ["eye: a, b"], "before -> after"),
        (Path("clip"), ["eye: -> b"], "before -> after"),
    ],
)
def test_captions_of_another_form_are_one_clear_error(folder: Path | None, texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        captions_of(folder, texts, ["eye"])
