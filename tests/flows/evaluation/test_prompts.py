"""Methods that take prompts: named as absent where the model takes no text, and run by captions alone where it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.evaluation import world as worlds
from flows.evaluation.captions import NO_CAPTIONS, Captions, captions_of
from flows.evaluation.comparison import Comparison, Size, base_settings
from flows.evaluation.evaluating import Wanted, evaluate
from flows.evaluation.filling import open_cells
from flows.evaluation.world import World
from flows.recipe import Recipe, load_recipe
from pipeline.errors import InputError
from pipeline.methods.asyrp import Asyrp
from pipeline.methods.loco import Loco
from pipeline.methods.t_loco import TLoco, TLocoSettings
from pipeline.models.contract import Denoiser
from tests.flows.evaluation.small_world import small_setup
from tests.flows.tiny import model, photographs, recipe
from tests.pipeline.methods.prompted_world import Gaussians

TOLD = captions_of(None, ["eye: a face -> a smiling face"], ["eye", "mouth"])
SIZE = Size(images=1, choosing=0, others=1, chunk=1, quick=True)


def small(folder: Path) -> Recipe:
    """Photographs of a recipe whose model is to be replaced."""
    photographs(folder)
    return load_recipe(recipe(folder, model(folder / "model", size=8), method={"loco": {"rank": 1, "null_rank": 2}}))


def lacking(recipe: Recipe, folder: Path, denoiser: Denoiser | None, captions: Captions, name: str = "t-loco") -> str:
    world = World(recipe, folder, denoiser, captions=captions)
    return Comparison(world, open_cells(world), SIZE).lacking(name)


def test_a_model_that_takes_no_text_is_named_as_the_reason_and_the_rest_is_measured(tmp_path: Path) -> None:
    world = small_setup(tmp_path).world
    wanted = Wanted(methods=("t-loco", "random-x"), images=1, choosing=0, workers=1)
    result = evaluate(world.recipe, tmp_path / "out", wanted)
    assert [own.name for own in result.lines] == ["random-x"]
    assert result.absent["T-LOCO Edit"] == "this model takes no text"
    assert "T-LOCO Edit: this model takes no text" in (tmp_path / "out" / "index.html").read_text()
    assert "t-loco" in Wanted().methods


def test_prompts_are_captions_and_need_no_clip(tmp_path: Path) -> None:
    written, denoiser = small(tmp_path), Gaussians()
    assert "--caption" in lacking(written, tmp_path / "out", denoiser, NO_CAPTIONS)
    assert lacking(written, tmp_path / "out", denoiser, TOLD) == ""
    assert "--clip" in lacking(written, tmp_path / "out", denoiser, TOLD, "blended")
    settings = base_settings(TLoco, World(written, tmp_path / "out", denoiser, captions=TOLD))
    assert isinstance(settings, TLocoSettings)
    assert settings.goals == TOLD.goals and settings.null_rank == 2
    under_clip = Captions("clip", TOLD.goals)
    assert under_clip.told(TLoco.about) == TOLD  # whatever CLIP is there changes nothing
    assert under_clip.told(Asyrp.about) == under_clip
    assert under_clip.told(Loco.about) == TOLD.told(Loco.about) == TOLD.told(Asyrp.about) == NO_CAPTIONS


def test_an_attribute_reader_is_no_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(small(tmp_path), tmp_path / "out", Gaussians())
    monkeypatch.setattr(world, "reader", object())
    settings = base_settings(TLoco, world)
    assert isinstance(settings, TLocoSettings) and settings.goals == ()
    assert "--caption" in Comparison(world, open_cells(world), SIZE).lacking("t-loco")


def test_captions_that_nobody_can_be_told_are_one_clear_error(tmp_path: Path) -> None:
    world = small_setup(tmp_path).world
    with pytest.raises(InputError, match=r"--clip, --caption: found one without the other, .*takes no text"):
        World(world.recipe, tmp_path / "out", captions=TOLD)


def test_t_loco_runs_in_the_harness_on_a_model_that_takes_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "open_model", lambda place: Gaussians())
    wanted = Wanted(methods=("t-loco",), images=1, choosing=0, workers=1, captions=TOLD, quick=True)
    result = evaluate(small(tmp_path), tmp_path / "out", wanted)
    (own,) = result.lines
    assert (own.name, own.edits, own.refused) == ("t-loco", 1, 0)  # nothing was said of the mouth
    assert (
        own.regions == ("eye",)
        and own.about.supervision == "prompts"
        and own.find_passes > 4
        and "prompts" in (tmp_path / "out" / "comparison.md").read_text()
    )
