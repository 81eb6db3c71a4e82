"""The comparison: settings chosen on images that are not reported on, cells that know what they depend on."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from flows.datasets.dataset import Dataset
from flows.evaluation.captions import NO_CAPTIONS, captions_of
from flows.evaluation.cells import Cells
from flows.evaluation.comparison import Comparison, Learned, Size, Task, base_settings, merit
from flows.evaluation.evaluating import Wanted, evaluate
from flows.evaluation.experiment import Setup
from flows.evaluation.filling import fill, open_cells
from flows.evaluation.method_run import chosen_targets
from flows.evaluation.tables import line, winners
from flows.evaluation.world import World
from flows.recipe import load_recipe
from pipeline.errors import InputError
from pipeline.methods.choices import METHODS
from pipeline.methods.components import Individual
from pipeline.methods.contract import Found, Refused, Settings, Subject
from pipeline.methods.loco import LocoSettings
from pipeline.methods.singular import varied
from pipeline.metrics import mask_iou
from tests.flows.evaluation.linear_world import PLACES, SIDE, Planted, linear_setup
from tests.flows.evaluation.small_world import small_setup
from tests.flows.tiny import METHOD, box, recipe
from tests.pipeline.methods.tiny_clip import tiny_clip

SIZE = Size(images=3, choosing=2, others=1, chunk=2)


class Leaking(Planted):
    """Planted edits that change everything, unless the null rank is 1. The grid has that in its middle."""

    name = "leaking"
    asked: ClassVar[list[str]] = []

    @classmethod
    def grid(cls, settings: Settings) -> Sequence[Settings]:
        return varied(settings, {"null_rank": 1}, {"null_rank": 3})  # type: ignore[type-var]

    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        self.asked.append(subject.name)
        assert isinstance(self.settings, LocoSettings)
        if self.settings.null_rank == 1:
            return super().find(subject)
        plain = torch.ones_like(subject.picture)
        return {region: Found(region, 0.5, plain / plain.norm()) for region in subject.masks}


class Learning(Planted):
    """Planted edits that are refused until something was learned from two images."""

    name = "learning"
    lessons: ClassVar[list[str]] = []
    weight: torch.Tensor | None = None

    @property
    def images(self) -> int:
        return 2

    def learn(self, subjects: Sequence[Subject], progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        self.lessons.extend(subject.name for subject in subjects)
        self.cost.backward += 5
        self.weight = torch.full((3,), 2.0)
        progress(2, 2)

    def learned(self) -> dict[str, torch.Tensor]:
        return {} if self.weight is None else {"weight": self.weight}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if set(tensors) != {"weight"}:
            raise InputError("what learning has learned", sorted(tensors), "weight")
        self.weight = tensors["weight"]


class Reconstructing(Planted):
    """Planted edits; `remade` names the image of every picture that was decoded without an edit."""

    name = "reconstructing"
    remade: ClassVar[list[str]] = []

    def apply(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> torch.Tensor:
        self.remade.extend(one.name for one, at in zip(subjects, strengths.tolist(), strict=True) if not at)
        return super().apply(edits, subjects, strengths)


PLANTED = (Leaking, Learning, Reconstructing)


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The methods above beside the real ones, having been asked nothing."""
    for kind in PLANTED:
        monkeypatch.setitem(METHODS, kind.name, kind)
    monkeypatch.setattr(Leaking, "asked", [])
    monkeypatch.setattr(Learning, "lessons", [])
    monkeypatch.setattr(Reconstructing, "remade", [])


def plant(monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> None:
    """`planted`: edits that are perfect, but for class attributes."""
    monkeypatch.setitem(METHODS, "planted", type("Some", (Planted,), {"name": "planted", **attributes}))


def comparison_of(setup: Setup, **size: Any) -> Comparison:
    return Comparison(setup.world, setup.cells, replace(SIZE, **size))


def task(comparison: Comparison, name: str) -> Task:
    """The first cell to be reported, with the recipe's settings."""
    return comparison.reporting(name, base_settings(METHODS[name], comparison.world))[0]


def test_the_best_settings_of_a_grid_are_chosen_and_no_held_out_image_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    splits: list[str] = []
    real = setup.world.images

    def images(split: Any, *arguments: Any, **options: Any) -> Any:
        splits.append(split)
        return real(split, *arguments, **options)

    monkeypatch.setattr(setup.world, "images", images)
    chosen = comparison_of(setup).chosen("leaking")
    assert isinstance(chosen.settings, LocoSettings) and chosen.settings.null_rank == 1
    assert (chosen.by, [row["success"] for row in chosen.tried]) == (2, [0.0, 1.0, 0.0])
    assert set(splits) == {"mine"}
    mine, holdout = ({image.image_id for image in real(split, 3)} for split in ("mine", "holdout"))
    assert set(Leaking.asked) < mine and not mine & holdout


def test_settings_that_are_no_better_leave_the_recipes_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, grid=classmethod(lambda cls, settings: varied(settings, {"null_rank": 9})))
    setup = linear_setup(tmp_path, monkeypatch)
    chosen = comparison_of(setup).chosen("planted")
    assert chosen.settings == base_settings(METHODS["planted"], setup.world)


def test_without_images_to_choose_on_the_first_settings_are_taken_untried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = comparison_of(linear_setup(tmp_path, monkeypatch), choosing=0)
    chosen = comparison.chosen("leaking")
    assert (chosen.tried, chosen.by, Leaking.asked) == ([], 0, [])
    assert comparison.choosing("leaking") == []


def test_every_held_out_image_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = comparison_of(linear_setup(tmp_path, monkeypatch))
    tasks = comparison.reporting("leaking", LocoSettings())
    assert [(own.start, own.count, own.split) for own in tasks] == [(0, 2, "holdout"), (2, 1, "holdout")]
    fill(comparison, tasks, 1, "comparing")
    images = [image.image_id for image in comparison.world.images("holdout", 3)]
    assert Leaking.asked == images
    fill(comparison, tasks, 1, "comparing")
    assert Leaking.asked == images  # measured once


def test_an_image_is_reconstructed_once_by_a_method_with_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    comparison, name = comparison_of(setup), Reconstructing.name
    tasks = comparison.reporting(name, base_settings(Reconstructing, setup.world))
    rows = [comparison.cell(task).rows for task in tasks]
    assert sorted(Reconstructing.remade) == sorted(image.image_id for image in setup.world.images("holdout", 3))
    alone = Comparison(setup.world, Cells(tmp_path / "others"), comparison.size)
    again = alone.cell(tasks[1]).rows
    assert [row for row in again if row["kind"] != "cost"] == [row for row in rows[1] if row["kind"] != "cost"]
    Reconstructing.remade.clear()
    comparison.cell(replace(tasks[0], settings=replace(tasks[0].settings, steps=3)))
    assert len(Reconstructing.remade) >= 2  # other settings, other reconstructions


def test_a_cell_is_another_with_other_settings_images_targets_masks_or_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    comparison = comparison_of(setup, images=2)
    own = task(comparison, "leaking")
    comparison.cell(own)
    assert comparison.missing([own]) == []
    others = [replace(own, settings=replace(own.settings, seed=1)), replace(own, start=1), replace(own, others=0)]
    assert comparison.missing(others) == others
    assert comparison_of(setup, images=3).missing([own]) == [own]  # more images to draw targets from
    assert comparison_of(setup, images=2, choosing=0, chunk=1).missing([own]) == []  # these say nothing here
    box((SIDE, SIDE), (0.0, 0.0, 0.25, 0.25)).save(tmp_path / "masks" / "1_mouth.png")
    again = World(setup.world.recipe, setup.world.folder)
    assert Comparison(again, setup.cells, comparison.size).missing([own]) == [own]
    with monkeypatch.context() as patch:
        info = replace(setup.world.denoiser.info, fingerprint="0" * 8)
        patch.setattr(setup.world.denoiser, "info", info)
        assert comparison.missing([own]) == [own]
    assert comparison.missing([own]) == []


def test_what_was_learned_is_restored_and_learned_from_images_that_choose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    settings = base_settings(Learning, setup.world)
    comparison = comparison_of(setup, choosing=1)
    method = comparison.method("learning", settings)
    mine = [image.image_id for image in setup.world.images("mine", 3)]
    assert Learning.lessons == mine[1:]
    again = comparison_of(setup, choosing=1)
    restored = again.method("learning", settings)
    assert isinstance(restored, Learning) and isinstance(method, Learning)
    assert restored.weight is not None and method.weight is not None and torch.equal(restored.weight, method.weight)
    cost = again.learning("learning", settings)
    assert (cost.images, cost.passes) == (2, 2 * settings.inversion_steps + 5) and cost.seconds > 0
    assert len(Learning.lessons) == 2
    again.method("learning", replace(settings, seed=1))
    assert len(Learning.lessons) == 4  # other settings are learned anew
    assert comparison.learning("leaking", settings) == Learned(1, 0.0, 0.0, None)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 64, None], ids=["empty", "short", "noise", "foreign"])
def test_a_damaged_file_of_what_was_learned_is_told_and_learned_again(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save

    setup = linear_setup(tmp_path, monkeypatch)
    comparison, settings = comparison_of(setup, choosing=1), base_settings(Learning, setup.world)
    comparison.method("learning", settings)
    (file,) = (setup.world.folder / "learned").iterdir()
    whole = file.read_bytes()
    file.write_bytes(save({"other": torch.zeros(1)}) if content is None else content)
    capsys.readouterr()
    method = comparison.method("learning", settings)
    assert isinstance(method, Learning) and method.weight is not None and len(Learning.lessons) == 4
    assert file.name in capsys.readouterr().err
    assert file.read_bytes() == whole


def test_weights_of_which_nobody_knows_the_cost_are_learned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    comparison, settings = comparison_of(setup, choosing=1), base_settings(Learning, setup.world)
    comparison.method("learning", settings)
    (cell,) = (setup.cells.folder / "learning").iterdir()
    cell.write_text("{")
    comparison.method("learning", settings)
    assert len(Learning.lessons) == 4 and comparison.learning("learning", settings).images == 2


def test_what_learning_takes_counts_its_passes_and_the_inversion_whether_or_not_it_was_made_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    comparison, settings = comparison_of(setup, choosing=1), base_settings(Learning, setup.world)

    def learn(self: Learning, subjects: Sequence[Subject], progress: Any) -> None:
        setup.world.counter.passes += 3
        self.cost.backward += 5
        self.weight = torch.zeros(3)

    monkeypatch.setattr(Learning, "learn", learn)
    comparison.method("learning", settings)
    (path,) = (setup.cells.folder / "learning").iterdir()
    content = json.loads(path.read_text())
    inverting = 2 * settings.inversion_steps
    assert (content["passes"], content["rows"][0]["passes"]) == (inverting + 3, inverting + 3)
    path.unlink()
    comparison.method("learning", settings)  # its images are inverted now
    assert json.loads(path.read_text())["rows"][0]["passes"] == inverting + 3
    assert comparison.learning("learning", settings).passes == inverting + 3 + 5
    former = {"seconds": 2.0, "backward": 5, "images": 2}  # as rows were before
    path.write_text(json.dumps({**content, "rows": [former]}))
    found = comparison.learning("learning", settings)
    assert (found.images, found.seconds) == (2, 2.0) and math.isnan(found.passes)
    path.unlink()
    lost = comparison.learning("learning", settings)
    assert lost.images == 2 and math.isnan(lost.seconds) and math.isnan(lost.passes)
    assert not path.exists()


def test_a_method_learns_from_a_single_image_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learning, "images", 1)
    setup = linear_setup(tmp_path, monkeypatch)
    method = comparison_of(setup).method("learning", base_settings(Learning, setup.world))
    assert isinstance(method, Learning) and method.weight is not None and len(Learning.lessons) == 1
    assert "learns from 1 `mine` images" in comparison_of(setup, choosing=3).lacking("learning")


def test_weights_that_are_lost_are_not_learned_again_while_no_cell_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learning, "images", 1)
    world = small_setup(tmp_path).world
    wanted = Wanted(methods=("learning",), images=1, choosing=0)
    first = evaluate(world.recipe, tmp_path / "out", wanted)
    assert len(Learning.lessons) == 1
    shutil.rmtree(tmp_path / "out" / "learned")
    again = evaluate(world.recipe, tmp_path / "out", wanted)
    assert len(Learning.lessons) == 1 and not (tmp_path / "out" / "learned").exists()
    assert again.lines[0].learn_passes == first.lines[0].learn_passes > 0


def test_the_middle_of_an_even_number_of_edits_is_between_both() -> None:
    home = [{"roir": ratio, "reached": True} for ratio in (4.0, 1.0, 2.0, 3.0)]
    assert merit(home)["roir"] == 2.5
    assert merit([*home, {"roir": math.inf}, {"roir": math.inf}])["roir"] == 3.5
    assert merit([])["roir"] == math.inf


def test_targets_overlap_and_are_the_same_whatever_order_they_are_given_in() -> None:
    def subject(number: int) -> Subject:
        mask = torch.zeros(8, 8, dtype=torch.bool)
        mask[:4, number : number + 4] = True
        masks = {"mouth": mask} if number != 2 else {"hair": mask}
        return Subject(f"image-{number}", torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), masks)

    pool = [subject(number) for number in range(5)]
    home = pool[0]
    near = chosen_targets(home, "mouth", pool, 9)
    assert [other.name for other in near] == ["image-1"]  # not itself, none without the mask, none further away
    assert all(float(mask_iou(home.masks["mouth"], other.masks["mouth"])) >= 0.5 for other in near)
    twins = [replace(home, name=f"twin-{i}") for i in range(20)]
    drawn = [other.name for other in chosen_targets(home, "mouth", [home, *twins], 3)]
    assert len(set(drawn)) == 3 and home.name not in drawn
    assert [other.name for other in chosen_targets(home, "mouth", [home, *twins], 3)] == drawn
    others = [[o.name for o in chosen_targets(replace(home, name=n), "mouth", twins, 3)] for n in ("x", "y", "z")]
    assert len({tuple(names) for names in [*others, drawn]}) > 1  # other images draw others


def test_edits_are_tried_on_other_images_as_they_are_and_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    comparison = comparison_of(linear_setup(tmp_path, monkeypatch))
    cell = comparison.cell(task(comparison, "planted"))
    rows = [row for row in cell.rows if row["kind"] == "transfer"]
    assert len(rows) == 2 * 2 * len(PLACES)  # images, ways, regions: one other image each
    assert sum(row["moved"] for row in rows) == len(rows) // 2
    holdout = {image.image_id for image in comparison.world.images("holdout", 3)}
    assert all(row["iou"] == 1.0 and row["success"] and row["target"] in holdout - {row["image"]} for row in rows)
    assert all(row["perfect"] is None for row in rows)  # of photographs nobody knows the factors
    costs = [row for row in cell.rows if row["kind"] == "cost"]
    assert [row["what"] for row in costs] == ["find", "find", "edit"] and all(row["seconds"] >= 0 for row in costs)


def test_a_method_that_cannot_transfer_is_not_tried_on_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, about=replace(Planted.about, transfers=False))
    comparison = comparison_of(linear_setup(tmp_path, monkeypatch), images=2)
    assert not [row for row in comparison.cell(task(comparison, "planted")).rows if row["kind"] == "transfer"]


def test_a_refused_edit_has_failed_at_home_and_wherever_it_would_have_been_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, refused=("mouth",))
    comparison = comparison_of(linear_setup(tmp_path, monkeypatch), images=2)
    cell = comparison.cell(task(comparison, "planted"))
    own = line("planted", Planted.about, {}, 1, 0.0, [cell])
    assert (own.edits, own.refused, own.success.estimate) == (8, 2, 0.75)
    assert own.failures == {"refused: nothing there": 2}
    assert own.transfer.estimate == own.transfer_as_is.estimate == 0.75
    tried = [row for row in cell.rows if row["kind"] == "transfer"]
    assert {row["region"] for row in tried if not row["success"]} == {"mouth"}
    assert merit([row for row in cell.rows if row["kind"] == "home"])["success"] == 0.75


def test_a_method_that_refuses_everything_is_a_row_of_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, refused=tuple(PLACES))
    comparison = comparison_of(linear_setup(tmp_path, monkeypatch), images=2)
    own = line("planted", Planted.about, {}, 1, 0.0, [comparison.cell(task(comparison, "planted"))])
    assert own.refused == own.edits == 8 and own.success.estimate == 0.0 and own.roir.estimate == float("inf")


def test_where_nothing_reads_attributes_there_is_no_success_not_even_of_refused_edits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, refused=("mouth",))
    comparison = comparison_of(linear_setup(tmp_path, monkeypatch, reader=False), images=2)
    own = line("planted", Planted.about, {}, 1, 0.0, [comparison.cell(task(comparison, "planted"))])
    assert own.success.count == own.transfer.count == own.own_move.count == 0
    assert own.roir.estimate < 0.01 and (own.edits, own.refused) == (8, 2)
    assert "local edit success" not in winners([own])


def test_a_model_without_bottleneck_and_data_without_reader_leave_out_what_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = small_setup(tmp_path).world
    own = [name for name in METHODS if name not in {kind.name for kind in PLANTED}]
    comparison = Comparison(world, open_cells(world), SIZE)
    lacking = {name for name in own if comparison.lacking(name)}
    assert lacking == {"asyrp", "blended", "haas-pca", "noise-clr", "t-loco"}
    assert "attributes" in comparison.lacking("asyrp") and "learns from 100" in comparison.lacking("haas-pca")
    monkeypatch.setattr(world.denoiser, "info", replace(world.denoiser.info, bottleneck_shape=None))
    assert {name for name in own if not comparison.lacking(name)} == {"loco", "loco-plain", "eps-x", "random-x"}
    assert "no bottleneck" in comparison.lacking("pullback")


def test_every_method_of_one_image_that_lacks_nothing_runs_on_a_strangers_model(tmp_path: Path) -> None:
    setup = small_setup(tmp_path)
    comparison = comparison_of(setup, images=1, choosing=0, chunk=1, others=0, quick=True)
    for name, kind in METHODS.items():
        settings = comparison.grid(name)[0]
        if comparison.lacking(name) or kind(setup.world.denoiser, settings).images > 1:
            continue
        rows = comparison.cell(comparison.reporting(name, settings)[0]).rows
        home = [row for row in rows if row["kind"] == "home"]
        assert len(home) == 2, name
        assert all("strength" in row or row["failure"].startswith("refused") for row in home), name
        assert not any("success" in row for row in home), name


def test_captions_under_clip_tell_asyrp_and_blended_diffusion_what_no_reader_does(tmp_path: Path) -> None:
    world = small_setup(tmp_path).world
    clip, words = tiny_clip(tmp_path / "clip"), ("eye: a face -> a face with closed eyes",)
    size = Wanted(
        methods=("asyrp", "blended"), images=1, choosing=0, quick=True,
        captions=captions_of(clip, words, world.recipe.region_names),
    )  # fmt: skip
    shutil.copytree(tmp_path / "photos", tmp_path / "more")
    for copy in range(3):  # Asyrp learns from four, and every second image is held out
        for name in ("a.png", "c.png", "d.png"):
            picture = Image.open(tmp_path / "more" / name).convert("RGB").rotate(90 * (copy + 1), expand=True)
            picture.save(tmp_path / "photos" / f"{copy}{name}")
            for region in ("eye", "mouth"):
                box(picture.size, (0.2, 0.2, 0.7, 0.7)).save(tmp_path / "masks" / f"{copy}{name[0]}_{region}.png")
    result = evaluate(world.recipe, tmp_path / "out", size)
    assert [own.name for own in result.lines] == ["asyrp", "blended"]
    assert all((own.edits, own.refused) == (1, 0) for own in result.lines)  # nothing was said of the mouth
    assert {own.about.supervision for own in result.lines} == {"CLIP"}
    untold = evaluate(world.recipe, tmp_path / "silent", replace(size, captions=NO_CAPTIONS))
    assert not untold.lines and "--caption" in untold.absent["Asyrp"]


def test_what_is_lacking_is_left_out_and_told_while_the_rest_is_measured(tmp_path: Path) -> None:
    world = small_setup(tmp_path).world
    result = evaluate(
        world.recipe, tmp_path / "out", Wanted(methods=("random-x", "blended"), images=2, choosing=0, workers=1)
    )
    assert [own.name for own in result.lines] == ["random-x"]
    assert "attributes" in result.absent["Blended Diffusion"]
    assert "Blended Diffusion: " in (tmp_path / "out" / "index.html").read_text()


def test_too_few_images_are_told_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    comparison_of(setup, choosing=1).check()
    assert comparison_of(setup, choosing=1).lacking("learning") == ""
    assert "learns from 2 `mine` images" in comparison_of(setup).lacking("learning")  # 3 of which 2 choose its settings
    assert comparison_of(setup).lacking("leaking") == ""
    with pytest.raises(InputError, match=r"3 of the mine split; expected at least 4"):
        comparison_of(setup, choosing=4).check()
    with pytest.raises(InputError, match=r"3 of the holdout split; expected at least 4.*--images"):
        comparison_of(setup, images=4).check()
    assert Learning.lessons == Leaking.asked == []
    assert not setup.world.folder.exists()


def test_the_recipe_decides_the_settings_of_its_own_methods(tmp_path: Path) -> None:
    setup = small_setup(tmp_path)
    settings = base_settings(Individual, setup.world)
    jive = METHOD["jive"]
    assert (settings.timestep, settings.steps, settings.window) == (0.35, 2, (0.35, 0.0))
    assert (settings.rank, settings.joint_rank) == (jive["rank"], jive["joint_rank"])  # type: ignore[attr-defined]
    path = recipe(tmp_path, tmp_path / "model", method={"jive": {"joint_rank": "auto", "individual_rank": "auto"}})
    open_ranks = World(load_recipe(path), tmp_path / "out")
    left = base_settings(Individual, open_ranks)
    assert (left.joint_rank, left.individual_rank) == ("auto", "auto")  # type: ignore[attr-defined]


def test_an_unknown_method_is_an_error_that_names_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"locco.*loco.*random-h"):
        comparison_of(linear_setup(tmp_path, monkeypatch)).grid("locco")


def test_other_data_is_split_in_halves_that_share_no_image_even_where_files_repeat(tmp_path: Path) -> None:
    world = small_setup(tmp_path).world
    for copy, source in (("0", "c"), ("a_again", "a")):
        shutil.copy(tmp_path / "photos" / f"{source}.png", tmp_path / "photos" / f"{copy}.png")
        for region in ("eye", "mouth"):
            shutil.copy(tmp_path / "masks" / f"{source}_{region}.png", tmp_path / "masks" / f"{copy}_{region}.png")
    mine, holdout = world.images("mine", 3), world.images("holdout", 2)
    names = [image.image_id for image in (*mine, *holdout)]
    assert len(set(names)) == 5
    assert world.images("mine", 1, skip=1)[0].image_id == mine[1].image_id
    assert np.array_equal(world.images("holdout", 1)[0].image, holdout[0].image)


def test_images_that_nothing_can_be_found_on_are_left_out_and_named_with_the_reason(tmp_path: Path) -> None:
    world = small_setup(tmp_path).world
    (tmp_path / "photos" / "a.png").write_bytes(b"no picture")
    for region in ("eye", "mouth"):
        Image.new("L", (16, 16), 255).save(tmp_path / "masks" / f"c_{region}.png")
    result = evaluate(world.recipe, tmp_path / "out", Wanted(methods=("random-x",), images=1, choosing=0))
    assert result.lines[0].edits == 2
    told = {name: reason for name, reason in result.absent.items() if name.startswith("image ")}
    assert set(told) == {"image a.png", "image c.png"}
    assert "covers the whole picture" in told["image c.png"]
    assert "image a.png" in (tmp_path / "out" / "index.html").read_text()


def test_of_one_image_none_is_held_out_and_the_advice_is_to_give_two(tmp_path: Path) -> None:
    world = small_setup(tmp_path).world
    for path in sorted((tmp_path / "photos").iterdir())[1:]:
        path.unlink()
    assert len(world.images("mine", 1)) == 1
    for ask in (world.up_to, world.images):
        with pytest.raises(InputError, match="0 of the holdout split.*Every second image is held out: give at least"):
            ask("holdout", 1)


def test_a_data_set_that_is_too_small_says_how_many_were_left_out_and_why(tmp_path: Path) -> None:
    world = small_setup(tmp_path).world
    (tmp_path / "photos" / "c.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="2 of the holdout.*with --images.*Left out: 1, of which the first is c.png"):
        world.images("holdout", 3)


def test_a_small_data_set_is_read_to_its_end_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = small_setup(tmp_path).world
    read: list[str] = []
    real = Dataset.read

    def counted(dataset: Dataset, key: str) -> Any:
        read.append(key)
        return real(dataset, key)

    monkeypatch.setattr(Dataset, "read", counted)
    assert len(world.up_to("holdout", 50)) == 2 and len(read) == 5
    assert len(world.up_to("holdout", 50)) == world.count("holdout", 9) == 2 and len(read) == 5
