"""Intervals judged by how often they cover a truth that is known."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.intervals import Figure, figure, student

EDITS = 4  # of each image
TRUTHS = (0.6, 0.9, 0.95, 0.98, 0.99)


@cache
def share(successes: tuple[int, ...]) -> Figure:
    """The figure of images with so many successes among their edits."""
    values = [float(edit < number) for number in successes for edit in range(EDITS)]
    return figure(values, [str(i) for i in range(len(successes)) for _ in range(EDITS)], "mean")


def shares(truth: float, images: int, alike: bool, repeats: int = 4000) -> list[Figure]:
    """Figures of repeats; `alike`: the edits of an image all succeed or all fail."""
    numbers = np.random.default_rng(round(1000 * truth) + images)
    shape = (repeats, images)
    drawn = EDITS * (numbers.random(shape) < truth) if alike else numbers.binomial(EDITS, truth, shape)
    return [share(tuple(sorted(row))) for row in drawn.tolist()]


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("images", [50, 10])
def test_the_interval_of_a_proportion_covers_the_truth_near_one_too(images: int, alike: bool) -> None:
    for truth in TRUTHS:
        covered = np.mean([each.low <= truth <= each.high for each in shares(truth, images, alike)])
        assert covered >= 0.94, truth


def crossed(reaching: float, giving: float, repeats: int = 500) -> tuple[float, list[Figure]]:
    """The truth, and figures of repeats: 30 images with two edits, each tried on two others. `reaching` and `giving`:
    how much the image an edit goes to and the one it is from decide, standard deviations of log odds."""
    numbers, images = np.random.default_rng(7), 30
    draw = numbers.standard_normal
    truth = float((1 / (1 + np.exp(-(0.7 + reaching * draw(10**5) + giving * draw(10**5))))).mean())
    sources = np.repeat(np.arange(images), 4)
    found = []
    for _ in range(repeats):
        targets = (sources + numbers.integers(1, images, len(sources))) % images
        odds = 0.7 + reaching * draw(images)[targets] + giving * draw(images)[sources]
        values = (numbers.random(len(sources)) < 1 / (1 + np.exp(-odds))).astype(float)
        names = [[str(i) for i in own.tolist()] for own in (sources, targets)]
        found.append(figure(values.tolist(), names[0], "mean", crossed=names[1]))
    return truth, found


@pytest.mark.parametrize(("reaching", "giving"), [(0.0, 0.0), (0.0, 2.0), (2.0, 0.0), (2.0, 0.8), (3.0, 3.0)])
def test_the_interval_of_values_of_two_images_each_covers_the_truth(reaching: float, giving: float) -> None:
    truth, found = crossed(reaching, giving)
    assert np.mean([each.low <= truth <= each.high for each in found]) >= 0.93


def test_a_second_image_that_says_nothing_new_changes_little_and_one_that_decides_much() -> None:
    images = [str(i) for i in range(20) for _ in range(5)]
    values = [float(i % 3 > 0) for i in range(100)]
    once = figure(values, images, "mean")
    assert figure(values, images, "mean", crossed=images) == once
    others = [f"other {i % 3}" for i in range(100)]
    wide = figure(values, images, "mean", crossed=others)
    assert wide.high - wide.low > 3 * (once.high - once.low)
    assert wide == figure(values, others, "mean", crossed=images)
    with pytest.raises(InputError, match="crossed: found a median"):
        figure(values, images, crossed=others)


def test_three_images_are_enough_to_say_how_little_is_known() -> None:
    for truth in TRUTHS:
        for alike in (False, True):
            assert np.mean([each.low <= truth <= each.high for each in shares(truth, 3, alike)]) >= 0.94


@pytest.mark.parametrize(("alike", "effective"), [(False, 50 * EDITS), (True, 50)])
def test_the_interval_of_a_proportion_is_not_much_wider_than_that_of_as_many_independent_values(
    alike: bool, effective: int
) -> None:
    ideal = 2 * 1.96 * math.sqrt(0.9 * 0.1 / effective)
    width = np.mean([each.high - each.low for each in shares(0.9, 50, alike)])
    assert ideal <= width <= 1.15 * ideal


def test_the_interval_of_a_proportion_holds_its_estimate_and_stays_between_0_and_1() -> None:
    for images in (1, 2, 3, 7, 50):
        for number in range(images * EDITS + 1):
            full, rest = divmod(number, EDITS)
            found = share((EDITS,) * full + (rest,) * (full < images) + (0,) * (images - full - 1))
            assert 0 <= found.low <= found.estimate == number / (images * EDITS) <= found.high <= 1
            assert found.high - found.low > 0.02


def test_the_interval_of_failures_mirrors_that_of_successes() -> None:
    good, bad = share((4, 4, 3, 4, 0)), share((0, 0, 1, 0, 4))
    assert (bad.low, bad.high) == (pytest.approx(1 - good.high), pytest.approx(1 - good.low))


def test_values_of_one_image_that_agree_count_once_and_images_of_unequal_size_for_less() -> None:
    once = figure([1.0] * 10, [str(i) for i in range(10)], "mean")
    often = figure([1.0] * 40, [str(i % 10) for i in range(40)], "mean")
    uneven = figure([1.0] * 40, ["0"] * 31 + [str(i) for i in range(1, 10)], "mean")
    assert (once.low, often.count) == (often.low, 40)
    assert uneven.low < once.low - 0.1


@pytest.mark.parametrize(
    ("images", "quantile"), [(2, 12.706), (4, 3.182), (6, 2.571), (7, 2.447), (11, 2.228), (31, 2.042), (201, 1.972)]
)
def teststudents_quantile_is_that_of_the_printed_tables(images: int, quantile: float) -> None:
    assert student(images - 1) == pytest.approx(quantile, abs=2e-3)


def test_other_means_and_medians_keep_the_bootstrap() -> None:
    values, images = [0.0, 0.5, 1.0, 1.0], ["a", "b", "c", "d"]
    assert figure(values, images, "mean", seed=1).low in (0.125, 0.25, 0.375)
    assert figure([0.0, 1.0, 1.0], ["a", "b", "c"]) == Figure(1.0, 0.0, 1.0, 3)
