"""What cells and learned weights are named by: all that they depend on, and nothing of a machine, a place or a name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from flows.evaluation import absence, cells, far_transfers, transfers
from flows.evaluation.cells import Cells, Rows
from flows.evaluation.comparison import Comparison, Size, Task, base_settings
from flows.evaluation.homes import Homes
from flows.evaluation.kept import held_out, identity
from flows.evaluation.world import World
from flows.plain import plain
from flows.recipe import load_recipe
from pipeline.faces.factors import FACTORS
from pipeline.methods.asyrp import AsyrpSettings
from pipeline.methods.choices import METHODS
from pipeline.methods.contract import Subject
from pipeline.methods.haas_pca import HaasPCASettings
from pipeline.perception.backbones import Backbones
from pipeline.reader import AttributeReader
from tests.flows.evaluation.linear_world import SIDE, Planted, linear_setup
from tests.flows.evaluation.small_world import small_setup
from tests.flows.tiny import box, recipe

SIZE = Size(images=2, choosing=1, others=1, chunk=1)


class Learning(Planted):
    """Planted edits after a lesson of two images, of which it keeps what it was given."""

    name = "learning"
    lessons: ClassVar[list[Subject]] = []
    weight: torch.Tensor | None = None

    @property
    def images(self) -> int:
        return 2

    def learn(self, subjects: Sequence[Subject], progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        self.lessons.extend(subjects)
        self.weight = torch.full((3,), 2.0)

    def learned(self) -> dict[str, torch.Tensor]:
        return {} if self.weight is None else {"weight": self.weight}


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "planted", type("Plain", (Planted,), {"name": "planted"}))
    monkeypatch.setitem(METHODS, "learning", Learning)
    monkeypatch.setattr(Learning, "lessons", [])


def comparison_of(world: World, **size: Any) -> Comparison:
    return Comparison(world, Cells(world.folder / "cells"), replace(SIZE, **size))


def key(comparison: Comparison, name: str, split: Any = "holdout") -> dict[str, Any]:
    """The key of one cell of one image; a reported one has other images to try edits on."""
    settings = base_settings(METHODS[name], comparison.world)
    return comparison._key(Task(name, settings, split, 0, 1, comparison.size.others if split == "holdout" else 0))


def lesson(comparison: Comparison, name: str, **changes: Any) -> dict[str, Any]:
    """The key of what a method learns."""
    settings = replace(base_settings(METHODS[name], comparison.world), **changes)
    return comparison._lessons(name, comparison._made(name, settings))[1]


def redrawn(folder: Path, source: str) -> None:
    """Another mask of the mouth of an image of `linear_setup`."""
    box((SIDE, SIDE), (0.0, 0.5, 0.25, 0.75)).save(folder / "masks" / f"{source.removesuffix('.png')}_mouth.png")


def test_a_cell_is_another_where_regions_of_the_images_that_edits_are_tried_on_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = linear_setup(tmp_path, monkeypatch).world
    before = [key(comparison_of(world), "planted", split) for split in ("holdout", "mine")]
    redrawn(tmp_path, world.images("holdout", 2)[1].source)
    again = comparison_of(World(world.recipe, world.folder))
    again.world.reader = world.reader
    assert key(again, "planted") != before[0] and key(again, "planted")["masks"] == before[0]["masks"]
    assert key(again, "planted", "mine") == before[1]


def test_cells_of_every_transfer_are_others_where_regions_of_the_pool_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    homes, pool = Homes(setup, 1), setup.world.images("holdout", 3)
    masks = {**pool[1].masks, "mouth": np.roll(pool[1].masks["mouth"], 2, axis=1)}
    other = [pool[0], replace(pool[1], masks=masks), pool[2]]

    def measured(images: Any) -> int:
        """How many cells of transfers there are with those to a pool."""
        transfers._image_rows(homes, "loco", pool[0], images, 1)
        far_transfers._style_rows(homes, "loco", pool[0], images, 1, shown=False)
        absence._image_rows(homes, "loco", pool[0], images, 1, shown=False)
        return len([path for path in setup.cells.folder.rglob("*.json") if path.parent.name.startswith("transfer")])

    assert [measured(images) for images in (pool, pool, other, other)] == [3, 3, 6, 6]


def test_what_reads_attributes_is_in_the_keys_of_all_that_it_judges_and_of_what_it_teaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    world, homes = setup.world, Homes(setup, 1)
    told = replace(Planted.about, supervision="attribute reader")
    monkeypatch.setitem(METHODS, "told", type("Told", (Learning,), {"name": "told", "about": told}))

    def keys() -> list[Any]:
        comparison = comparison_of(world)
        judged = [key(comparison, "planted"), key(comparison, "planted", "mine"), identity(world)]
        judged += [homes.key(homes.method("loco"), homes.images[0]), lesson(comparison, "told")]
        return [*judged, lesson(comparison, "learning")]

    before = keys()
    monkeypatch.setattr(type(world.reader), "fingerprint", lambda reader: "another")
    *judged, untold = keys()
    assert not any(one == other for one, other in zip(before, judged, strict=False)) and untold == before[-1]
    world.reader = None
    assert key(comparison_of(world), "planted") not in (before[0], judged[0])


def test_a_reader_is_known_by_its_weights() -> None:
    torch.manual_seed(0)
    reader = AttributeReader((2, 2, 2), 4)
    assert reader.fingerprint() == reader.double().float().fingerprint() != AttributeReader((2, 2, 2), 4).fingerprint()
    assert len(reader.fingerprint()) == 32 and len(FACTORS) == 22


def test_cells_of_methods_that_learn_know_from_which_images_and_those_of_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = linear_setup(tmp_path, monkeypatch).world
    none, one = comparison_of(world, choosing=0), comparison_of(world, choosing=1)
    assert key(none, "learning") != key(one, "learning") and key(none, "planted") == key(one, "planted")
    assert lesson(none, "learning") != lesson(one, "learning")


def test_what_is_learned_depends_on_no_region_and_sees_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = linear_setup(tmp_path, monkeypatch).world
    comparison = comparison_of(world)
    before, whole = lesson(comparison, "learning"), key(comparison, "learning")
    comparison.method("learning", base_settings(Learning, world))
    assert [dict(subject.masks) for subject in Learning.lessons] == [{}, {}]
    assert all(subject.x_t.shape == (3, SIDE, SIDE) for subject in Learning.lessons)
    for source in {image.source for image in world.images("mine", 3)}:
        redrawn(tmp_path, source)
    again = comparison_of(World(world.recipe, world.folder))
    again.world.reader = world.reader
    assert lesson(again, "learning") == before and key(again, "learning") == whole
    again.method("learning", base_settings(Learning, world))
    assert len(Learning.lessons) == 2  # the same weights serve


def test_settings_that_a_lesson_does_not_look_at_are_not_in_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = comparison_of(small_setup(tmp_path).world)

    def changed(name: str, used: dict[str, Any], unused: dict[str, Any]) -> None:
        first = {"haas-pca": {"samples": 2}, "noise-clr": {"learning_images": 2, "batch": 2}}[name]
        own = lesson(comparison, name, **first)
        assert all(lesson(comparison, name, **{**first, field: value}) == own for field, value in unused.items())
        assert not any(lesson(comparison, name, **{**first, field: value}) == own for field, value in used.items())

    changed("haas-pca", {"timestep": 0.5, "rank": 3, "at": "window"}, {"tolerance": 0.5, "seed": 1, "steps": 7})
    unused = {"tolerance": 0.5, "steps": 7, "timestep": 0.5}  # a recipe's window stands before its timestep
    changed("noise-clr", {"seed": 1, "radius": 0.3, "window": (0.3, 0.0)}, unused)
    window = HaasPCASettings(at="window")
    assert (
        window.lesson() != replace(window, steps=7).lesson()
        and window.lesson() != replace(window, window=(0.1, 0.0)).lesson()
    )


def test_a_method_that_looks_at_pictures_alone_has_none_inverted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = small_setup(tmp_path).world
    comparison = comparison_of(world, choosing=0)
    settings = replace(
        base_settings(METHODS["noise-clr"], world), learning_images=2, batch=2, directions=3, drawn=2, learning_steps=2
    )  # type: ignore[call-arg]
    comparison.method("noise-clr", settings)
    assert not (world.folder / "latents").exists()
    row = json.loads(next((world.folder / "cells" / "learning").iterdir()).read_text())["rows"][0]
    encoder, behind = 2, 1 + 2  # up to h; without and with the directions drawn
    assert (row["passes"], row["backward"]) == (2 + 2 * 2 * (encoder + behind), 2 * 2 * 2)


def test_a_higher_version_learns_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = linear_setup(tmp_path, monkeypatch).world
    comparison, settings = comparison_of(world), base_settings(Learning, world)
    comparison.method("learning", settings)
    monkeypatch.setattr(cells, "VERSION", cells.VERSION + 1)
    new = lesson(comparison, "learning")
    comparison.cells.get("learning", new, lambda: [{"seconds": 1.0, "backward": 0, "images": 2}])  # as shipped ones
    comparison.method("learning", settings)
    assert len(Learning.lessons) == 4
    assert len(list((world.folder / "learned").iterdir())) == 2


class Judges(Backbones):
    """Backbones of which only the hashes are known."""

    def __init__(self, *hashes: str) -> None:
        super().__init__(None, None, None, None, {})
        object.__setattr__(self, "known", {"LPIPS (AlexNet)": list(hashes)} if hashes else {})

    def hashes(self) -> dict[str, list[str]]:
        known: dict[str, list[str]] = self.__dict__["known"]
        return known


def test_backbones_judge_what_is_reported_by_their_hashes_and_never_what_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = linear_setup(tmp_path, monkeypatch).world
    monkeypatch.setattr(world, "perception", lambda *pictures: {"lpips": 0.5})
    monkeypatch.setattr(world, "features", lambda picture: {"features": "AAAA"})
    comparison = comparison_of(world)
    plain = [key(comparison, "planted", split) for split in ("mine", "holdout")]
    world.backbones = Judges("a", "b")
    chosen, reported = (key(comparison, "planted", split) for split in ("mine", "holdout"))
    assert chosen == plain[0] and reported != plain[1]
    assert reported["backbones"] == {"LPIPS (AlexNet)": ["a", "b"]}
    settings = base_settings(METHODS["planted"], world)

    def columns(split: Any) -> set[str]:
        rows: Rows = comparison.cell(Task("planted", settings, split, 0, 1)).rows
        return {name for row in rows for name in row} & {"lpips", "features"}

    assert columns("mine") == set() and columns("holdout") == {"lpips", "features"}


def test_no_key_holds_the_folder_of_clip() -> None:
    here, there = (AsyrpSettings(clip=folder).as_dict() for folder in ("/home/anna/clip", "/mnt/clip"))
    assert here == there != AsyrpSettings().as_dict() and "anna" not in json.dumps(here)


def test_keys_are_the_same_wherever_files_lie_and_however_many_threads_there_are(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads, name in ((1, "here"), (2, "a place far away")):
            torch.set_num_threads(threads)
            world = small_setup(tmp_path / name).world
            comparison = comparison_of(world, images=1)
            own = [key(comparison, name, split) for name in METHODS if name not in ("haas-pca", "noise-clr", "asyrp")
                   for split in ("mine", "holdout")]  # fmt: skip
            found.append([*own, lesson(comparison, "haas-pca", samples=2), held_out(world, 2)])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]
    assert str(tmp_path) not in json.dumps(plain(found, float))


def test_a_figure_is_of_all_held_out_images_that_were_asked_for(tmp_path: Path) -> None:
    world = small_setup(tmp_path).world
    assert world.asked == 0
    world.images("mine", 2)
    world.up_to("holdout", 9)
    assert world.asked == 9
    own = [held_out(world, count) for count in (1, 2)]
    stem = world.images("holdout", 2)[1].source.partition(".")[0]
    layouts = (tmp_path / "masks" / stem / "mouth.png", tmp_path / "masks" / f"{stem}_mouth.png")
    (mask,) = [path for path in layouts if path.exists()]
    size = (31, 40)
    box(size, (0.0, 0.0, 0.3, 0.3)).save(mask)
    again = World(load_recipe(recipe(tmp_path, tmp_path / "model")), world.folder)
    assert held_out(again, 1) == own[0] and held_out(again, 2) != own[1]
