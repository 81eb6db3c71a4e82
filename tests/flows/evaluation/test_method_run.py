"""What one method does on a few images: what is unsuitable is refused, and what counts as finding and editing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from flows.evaluation.cells import Rows
from flows.evaluation.experiment import Setup
from flows.evaluation.method_run import MethodRun
from flows.evaluation.world import World
from flows.paths import builtin_recipe
from flows.recipe import load_recipe
from pipeline.errors import InputError
from pipeline.methods.contract import Found, Refused, Subject
from pipeline.methods.loco import LocoSettings
from pipeline.models.contract import Denoiser
from tests.flows.evaluation.linear_world import PLACES, Planted, linear_setup
from tests.pipeline.tiny_models import tiny_denoiser


class Counted(Planted):
    """Planted edits; `tried` names the image of every picture that was decoded with an edit."""

    name = "counted"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.tried: list[str] = []

    def apply(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> torch.Tensor:
        self.tried += [subject.name for subject, at in zip(subjects, strengths.tolist(), strict=True) if at]
        return super().apply(edits, subjects, strengths)


class Moving(Counted):
    """The same; an edit that is moved is a new one."""

    def moved(self, edit: Found, home: torch.Tensor, target: torch.Tensor) -> Found:
        return replace(edit)


class Unsuited(Counted):
    """Nothing can be found on the first image that it is asked about."""

    field = "rank of sky"
    asked = 0

    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        self.asked += 1
        if self.asked == 1:
            raise InputError(self.field, 30, "1 to 6")
        return super().find(subject)


class Probing(Counted):
    """Finding takes one backward pass, guessing a strength ten more and a while; the hair is refused only then."""

    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        self.cost.backward += 1
        return super().find(subject)

    def guessed(self, edits: Mapping[str, Found | Refused], subject: Subject) -> Mapping[str, Found | Refused]:
        self.cost.backward += 10
        return {**edits, "hair": Refused("hair", "nothing moves it")}


class Blurred(Counted):
    """A reconstruction that is 0.1 off everywhere."""

    def apply(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> torch.Tensor:
        return super().apply(edits, subjects, strengths) + 0.1


def run_of(setup: Setup, kind: type[Counted], count: int = 2) -> MethodRun:
    images = setup.world.images("holdout", 3)
    return MethodRun(setup.world, kind(setup.world.denoiser, LocoSettings(inversion_steps=2)), images[:count], images)


def of_kind(rows: Rows, kind: str, **values: Any) -> Rows:
    return [row for row in rows if row["kind"] == kind and all(row[name] == value for name, value in values.items())]


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    return linear_setup(tmp_path, monkeypatch)


def test_an_image_that_a_method_cannot_work_on_is_refused_with_the_reason_and_the_others_are_edited(
    setup: Setup,
) -> None:
    run = run_of(setup, Unsuited)
    rows = run.rows(1)
    failed = [row for row in of_kind(rows, "home") if row["failure"]]
    assert {(row["image"], row["region"]) for row in failed} == {(run.subjects[0].name, region) for region in PLACES}
    assert all(row["failure"] == "refused: rank of sky: found 30; expected 1 to 6" for row in failed)
    assert len(of_kind(rows, "home", success=True)) == len(PLACES)


def test_a_budget_that_is_too_small_for_any_image_is_an_error(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unsuited, "field", "memory")
    with pytest.raises(InputError, match="memory"):
        run_of(setup, Unsuited).rows(0)


def test_the_recipes_budget_of_memory_is_the_methods(setup: Setup) -> None:
    method = setup.world.recipe.method.model_copy(update={"memory": 12345})
    setup.world.recipe = setup.world.recipe.model_copy(update={"method": method})
    assert run_of(setup, Counted).method.memory == 12345


def test_edits_that_cannot_be_moved_are_tried_once_on_another_image_and_stand_for_both(setup: Setup) -> None:
    still, moving = run_of(setup, Counted), run_of(setup, Moving)
    own, other = still.rows(1), moving.rows(1)
    as_is, there = (of_kind(own, "transfer", moved=flag) for flag in (False, True))
    assert len(as_is) == 2 * len(PLACES) and there == [{**row, "moved": True} for row in as_is]
    assert there == of_kind(other, "transfer", moved=True)
    tried = [len(cast(Counted, run.method).tried) for run in (still, moving)]
    assert tried[1] - tried[0] == len(as_is)  # each settles at once: its strength at home is the first guess


def test_what_a_guess_of_the_strength_takes_is_not_charged_as_finding(setup: Setup) -> None:
    rows = run_of(setup, Probing).rows(0)
    assert [(row["backward"], row["edits"]) for row in of_kind(rows, "cost", what="find")] == [(1, len(PLACES) - 1)] * 2
    assert {row["failure"] for row in of_kind(rows, "home", region="hair")} == {"refused: nothing moves it"}


def test_regions_that_a_method_is_told_nothing_of_have_no_rows(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "find", lambda self, subject: {"mouth": Planted.find(self, subject)["mouth"]})
    rows = run_of(setup, Counted).rows(1)
    assert {row["region"] for row in rows if row["kind"] != "cost"} == {"mouth"}


def test_a_home_row_tells_how_far_the_reconstruction_is_from_the_source(setup: Setup) -> None:
    found = [row["reference_psnr"] for row in of_kind(run_of(setup, Blurred).rows(0), "home")]
    assert found == pytest.approx([26.0206] * len(found), abs=1e-3) and len(found) == 2 * len(PLACES)


def test_an_edit_without_a_strength_has_neither_quality_nor_pictures(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def jump(self: Counted, edits: Sequence[Found], subjects: Sequence[Subject], at: torch.Tensor) -> torch.Tensor:
        return Planted.apply(self, edits, subjects, 50 * at.sign())

    monkeypatch.setattr(Counted, "apply", jump)
    for row in of_kind(run_of(setup, Counted).rows(0), "home"):
        assert row["strength"] == 0.0 and row["failure"].startswith("refused")
        assert not {"psnr", "ssim", "lpips", "features", "pictures"} & set(row)


def test_the_clock_is_read_when_the_device_is_done(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    run = run_of(setup, Counted)
    real = run.method.apply
    monkeypatch.setattr(run.method, "apply", lambda *a: events.append("edit") or real(*a))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("done"))
    monkeypatch.setattr(time, "monotonic", lambda: events.append("clock") or 0.0)
    setup.world.denoiser.device = torch.device("cuda")
    subject = run.subjects[0]
    edit = cast(Found, run.method.find(subject)["mouth"])
    from flows.evaluation.trials import Case

    run._edit_seconds((Case(edit, subject), cast(Any, SimpleNamespace(strength=1.0))))
    assert events == ["done", "clock", "edit", "done", "clock"]


def test_the_reader_is_where_the_model_is(tmp_path: Path) -> None:
    inner = tiny_denoiser()
    elsewhere = SimpleNamespace(
        info=replace(inner.info, image_shape=(3, 64, 64)), device=torch.device("meta"), dtype=torch.float32, origin=None
    )
    world = World(load_recipe(builtin_recipe()), tmp_path, denoiser=cast(Denoiser, elsewhere))
    assert world.reader is not None
    parts = (*world.reader.parameters(), *world.reader.buffers())
    assert {part.device.type for part in parts} == {"meta"}
