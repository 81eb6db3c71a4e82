"""The harness judged by edits whose worth is known: rendered, not decoded."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from flows.evaluation.ceiling import perfect_images, perfect_transfer
from flows.evaluation.tables import over
from flows.evaluation.trials import NO_STRENGTH, Case, Trial, best_of_both_signs, run_trials
from flows.paths import builtin_folder
from pipeline.faces.factors import FACTORS, factors_of
from pipeline.faces.render import render
from pipeline.intervals import figure
from pipeline.methods.contract import About, Found, Method, Refused, Subject
from pipeline.metrics import EditSuccess, rms_inside
from pipeline.reader import AttributeReader

REGIONS = ("left_eye", "mouth", "hair")
PLANTED = {"left_eye": "left_iris", "mouth": "mouth_opening", "hair": "hair_colour"}
FACES = 6


@dataclass
class Judge:
    """The real reader; `labels` says under which region's name a region's factors are asked for."""

    reader: AttributeReader
    labels: Mapping[str, str]

    def read(self, pictures: torch.Tensor) -> list[dict[str, float]]:
        rows = self.reader.read(pictures.clamp(-1.0, 1.0)).tolist()
        return [dict(zip(FACTORS, row, strict=True)) for row in rows]

    def factors(self, region: str) -> tuple[str, ...]:
        return factors_of(self.labels[region])


class Rendered(Method):
    """An edit that is drawn: `x_t` of its subjects is their factors. No model takes part."""

    about = About("drawn", "none", "x")
    limit = 4.0

    def __init__(self) -> None:
        pass

    def at_once(self, most: int, *, backward: bool = False) -> int:
        return most

    def find(self, subject: Subject) -> dict[str, Found | Refused]:
        return {region: Found(region, 0.3) for region in subject.masks}


class Perfect(Rendered):
    """Moves one true factor of the region, and nothing else."""

    name = "perfect"

    def apply(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> torch.Tensor:
        factors = torch.stack([subject.x_t for subject in subjects]).clone()
        for row, edit, strength in zip(factors, edits, strengths, strict=True):
            column = FACTORS.index(PLANTED[edit.region])
            row[column] = (row[column] + strength).clamp(0.0, 1.0)
        return render(factors).images


class Global(Rendered):
    """Makes the whole picture lighter or darker."""

    name = "global"

    def apply(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> torch.Tensor:
        return torch.stack([s.picture for s in subjects]) + strengths.view(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    factors = 0.35 + 0.3 * torch.rand((FACES, len(FACTORS)), generator=torch.Generator().manual_seed(0))
    faces = render(factors)
    from pipeline.faces.factors import REGIONS as DRAWN

    return [
        Subject(str(i), faces.images[i], factors[i], {r: faces.masks[i][DRAWN.index(r)].bool() for r in REGIONS})
        for i in range(FACES)
    ]


@pytest.fixture(scope="module")
def reader() -> AttributeReader:
    return AttributeReader.load(builtin_folder() / "reader")


def trials_of(
    method: Method, subjects: Sequence[Subject], reader: AttributeReader, labels: Mapping[str, str] | None = None
) -> list[Trial]:
    judge = Judge(reader, labels or {region: region for region in REGIONS})
    cases = [Case(e, s) for s in subjects for e in method.find(s).values() if isinstance(e, Found)]
    return best_of_both_signs(judge, method, cases)


def test_a_planted_perfect_direction_scores_one(subjects: list[Subject], reader: AttributeReader) -> None:
    trials = trials_of(Perfect(), subjects, reader)
    assert all(trial.success for trial in trials), [t.verdict for t in trials if not t.success]
    assert max(trial.roir for trial in trials) < 0.25  # smooth edges reach over the masks
    assert {t.verdict.factor for t in trials if t.verdict} == set(PLANTED.values())


def test_a_planted_global_change_scores_zero_on_locality(subjects: list[Subject], reader: AttributeReader) -> None:
    trials = trials_of(Global(), subjects, reader)
    assert not any(trial.success for trial in trials)
    assert all(trial.reached and trial.roir > 1.0 for trial in trials)  # as much outside as inside, and more pixels


def test_shuffled_labels_give_chance(subjects: list[Subject], reader: AttributeReader) -> None:
    """With the factors of another region asked for, a perfect edit succeeds only where the shuffle left the label."""
    generator = random.Random(0)
    kept, scored = 0, 0
    for subject in subjects:
        shuffled = list(REGIONS)
        generator.shuffle(shuffled)
        trials = trials_of(Perfect(), [subject], reader, dict(zip(REGIONS, shuffled, strict=True)))
        kept += sum(a == b for a, b in zip(REGIONS, shuffled, strict=True))
        scored += sum(bool(trial.success) for trial in trials)
    assert scored == kept
    assert 0 < kept < FACES * len(REGIONS) / 2


def test_a_transfer_counts_only_with_the_factor_and_sign_of_home(
    subjects: list[Subject], reader: AttributeReader
) -> None:
    method, judge = Perfect(), Judge(reader, {region: region for region in REGIONS})
    home = trials_of(method, subjects[:1], reader)[1]
    edit = Found("mouth", home.strength)
    (same,) = run_trials(judge, method, [Case(edit, subjects[1], like=home.verdict)])
    (turned,) = run_trials(judge, method, [Case(edit, subjects[1], like=home.verdict).turned(-1.0)])
    assert same.success and not turned.success


def test_the_better_sign_is_never_worse_than_either_sign_alone(
    subjects: list[Subject], reader: AttributeReader
) -> None:
    method, judge = Perfect(), Judge(reader, {region: region for region in REGIONS})
    cases = [Case(Found(region, 0.3), subject) for subject in subjects for region in REGIONS]
    ways = [run_trials(judge, method, [case.turned(sign) for case in cases]) for sign in (1.0, -1.0)]
    for best, plus, minus in zip(best_of_both_signs(judge, method, cases), *ways, strict=True):
        assert best.success == (plus.success or minus.success)
        assert best.roir in [trial.roir for trial in (plus, minus) if trial.success == best.success]


def test_a_strength_already_tried_is_not_decoded_again(subjects: list[Subject], reader: AttributeReader) -> None:
    decoded: list[str] = []

    class Counted(Perfect):
        def apply(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> torch.Tensor:
            decoded.extend(subject.name for subject in subjects)
            return super().apply(edits, subjects, strengths)

    judge = Judge(reader, {region: region for region in REGIONS})
    settled = run_trials(judge, Counted(), [Case(Found("mouth", 0.3), subjects[0])])[0].strength
    decoded.clear()
    # The first settles at once, and waits while the second, far too weak, is searched for.
    cases = [Case(Found("mouth", settled), subjects[0]), Case(Found("mouth", 0.01), subjects[1])]
    assert all(trial.reached for trial in run_trials(judge, Counted(), cases))
    assert decoded.count("0") == 2 < decoded.count("1")  # once for the reconstruction


def test_a_perfect_edit_is_just_visible_and_needs_room_in_the_factors_range(
    subjects: list[Subject], reader: AttributeReader
) -> None:
    judge, mask = Judge(reader, {}), subjects[0].masks["mouth"]
    truth = dict(zip(FACTORS, subjects[0].x_t.tolist(), strict=True))
    middle, wide = {**truth, "mouth_opening": 0.5}, {**truth, "mouth_opening": 1.0}
    before, after = perfect_images(middle, mask, "mouth_opening", 1.0)
    assert 0.15 <= float(rms_inside((after - before)[None], mask)) < 0.2
    before, after = perfect_images(wide, mask, "mouth_opening", 1.0)
    assert torch.equal(before, after)
    opened = EditSuccess(True, "mouth_opening", 0.3, "nose_width", 0.0, 0.1)
    assert perfect_transfer(judge.read, middle, mask, "mouth", opened)
    assert not perfect_transfer(judge.read, wide, mask, "mouth", opened)
    assert perfect_transfer(judge.read, wide, mask, "mouth", replace(opened, move=-0.3))


def test_a_strength_limit_that_is_too_low_is_told(subjects: list[Subject], reader: AttributeReader) -> None:
    class Weak(Perfect):
        limit = 0.01

    trials = trials_of(Weak(), subjects[:1], reader)
    assert all(trial.limited and not trial.reached and not trial.success for trial in trials)


def test_an_edit_that_only_overshoots_is_none_and_has_no_picture_quality(
    subjects: list[Subject], reader: AttributeReader
) -> None:
    class Jumping(Global):
        def apply(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> torch.Tensor:
            return super().apply(edits, subjects, 0.5 * strengths.sign())

    for trial in trials_of(Jumping(), subjects[:1], reader):
        row = trial.row()
        assert (row["strength"], row["roir"], row["success"], row["failure"]) == (0.0, float("inf"), False, NO_STRENGTH)
        assert not {"psnr", "ssim"} & set(row)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_the_interval_covers_a_known_truth_in_nineteen_of_twenty_repeats(statistic: Any) -> None:
    """Edits of one image share its luck: 40 images of 4 edits each, as in the tables."""
    random_numbers = np.random.default_rng(0)
    repeats, truth, covered = 300, 0.6, 0
    for i in range(repeats):
        luck = np.repeat(random_numbers.normal(size=40), 4) * 0.2
        values = truth + luck + random_numbers.normal(size=160) * 0.2
        found = figure(values.tolist(), [str(k // 4) for k in range(160)], statistic, samples=400, seed=i)
        covered += found.low <= truth <= found.high
    assert 0.91 <= covered / repeats <= 0.985


def test_refused_edits_count_as_failed_and_figures_over_nothing_are_told_apart() -> None:
    rows = [
        {"image": "a", "success": True, "roir": 0.2},
        {"image": "b", "success": False, "roir": float("inf")},
    ]
    assert over(rows, "success", "mean").estimate == 0.5
    assert over(rows, "roir").estimate == float("inf")
    assert over(rows, "lpips").count == 0
