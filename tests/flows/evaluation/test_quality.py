"""KID of edits against their own sources, judged by distances that are known."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from flows.evaluation.cells import Rows
from flows.evaluation.quality import kid
from pipeline.intervals import Figure
from pipeline.perception.distributions import kernel_distance
from tests.flows.evaluation.rows import find, home, line_of

WIDTH, REGIONS = 16, ("left_eye", "mouth", "hair", "nose")


def packed(features: np.ndarray) -> str:
    return base64.b64encode(features.astype("<f4").tobytes()).decode()


def rows(edited: np.ndarray, originals: np.ndarray) -> tuple[Rows, Rows]:
    """Edits (regions, images, d) and originals (images, d) as rows of cells."""
    edits = [
        home(str(i), region, features=packed(edited[r, i]))
        for r, region in enumerate(REGIONS[: len(edited)])
        for i in range(len(originals))
    ]
    return edits, [find(str(i), features=packed(features)) for i, features in enumerate(originals)]


def repeats(images: int, change: float, shift: float = 0.0, count: int = 200) -> Iterator[Figure]:
    """KID of edits with features distributed as their sources', but for `shift`; of correlation sqrt(1 - change^2)."""
    numbers = np.random.default_rng(images)
    for _ in range(count):
        originals = numbers.normal(size=(images, WIDTH))
        drawn = numbers.normal(size=(len(REGIONS), images, WIDTH))
        yield kid(*rows(math.sqrt(1 - change**2) * originals + change * drawn + shift, originals))


@pytest.mark.parametrize(("images", "change"), [(50, 0.05), (50, 0.5), (10, 0.05)])
def test_edits_that_hardly_differ_from_their_sources_are_at_distance_zero(images: int, change: float) -> None:
    """As often as a 95 % interval should be, or somewhat more: the jackknife is wide where the distance is 0."""
    found = list(repeats(images, change))
    assert np.mean([each.low <= 0 <= each.high for each in found]) >= 0.93
    values = np.array([each.estimate for each in found])
    assert abs(values.mean()) <= 3 * values.std() / math.sqrt(len(values))
    widths = np.mean([each.high - each.low for each in found])
    assert 3 * values.std() <= widths <= 8 * values.std()  # 3.9 were a normal one's
    assert {each.count for each in found} == {4 * images}


def shift_distance(shift: float) -> float:
    """The kernel's squared MMD of N(0, 1) and N(shift, 1) in every coordinate, by Gaussian moments."""
    d, c = WIDTH, WIDTH * shift**2  # c: squared length of the difference of means
    within, cross = 3 / d, 3 * (d + c) / d**2  # means of the kernel over independent pairs, less 1
    cubic = c**3 + 3 * c**2 + 3 * c * (d + 2 + c)
    return within + 3 * c / d + 3 * (d + 2 * c + c**2) / d**2 + cubic / d**3 - 2 * cross


def test_a_shift_of_the_edits_is_seen_and_its_size_covered() -> None:
    found = list(repeats(50, 0.05, shift=0.3, count=400))
    assert all(each.low > 0 for each in found)
    assert np.mean([each.low <= shift_distance(0.3) <= each.high for each in found]) >= 0.91


def test_it_is_the_mean_over_all_halves_of_edits_of_one_against_originals_of_the_other() -> None:
    numbers = np.random.default_rng(0)
    edited, originals = (numbers.normal(size=(6, WIDTH)).astype("<f4") for _ in range(2))
    halves = [
        kernel_distance(torch.from_numpy(edited[list(half)]), torch.from_numpy(np.delete(originals, half, axis=0)))
        for half in combinations(range(6), 3)
    ]
    assert kid(*rows(edited[None], originals)).estimate == pytest.approx(np.mean([each.value for each in halves]))


def test_regions_weigh_the_same_and_the_interval_is_that_of_plain_deletion() -> None:
    numbers = np.random.default_rng(1)
    originals = numbers.normal(size=(7, WIDTH))
    edits, finds = rows(originals + 0.5 * numbers.normal(size=(2, 7, WIDTH)), originals)
    edits = edits[:-2]  # the second region has two images fewer

    def value(out: str = "") -> float:
        kept = [[row for row in edits if row["region"] == region and row["image"] != out] for region in REGIONS[:2]]
        return float(np.mean([kid(own, finds).estimate for own in kept]))

    without = [value(str(i)) for i in range(7)]
    edge = 2.4469 * math.sqrt(6 / 7 * sum((each - np.mean(without)) ** 2 for each in without))  # t of 6 degrees
    found = kid(edits, finds)
    assert (found.estimate, found.count) == (pytest.approx(value()), 12)
    assert (found.high - found.estimate, found.estimate - found.low) == (pytest.approx(edge, rel=1e-3),) * 2


def test_only_images_with_features_of_both_count_and_fewer_than_three_of_them_are_nothing() -> None:
    numbers = np.random.default_rng(2)
    edits, finds = rows(numbers.normal(size=(2, 4, WIDTH)), numbers.normal(size=(4, WIDTH)))
    plain: list[dict[str, Any]] = [{k: v for k, v in row.items() if k != "features"} for row in edits]
    assert kid(edits[:4] + plain[4:], finds) == kid(edits[:4] + edits[4:6], finds) == kid(edits[:4], finds)
    assert kid(edits, finds[:3]).count == 6
    for nothing in (kid(edits, finds[:2]), kid(plain, finds), kid([], [])):
        assert nothing.count == 0 and math.isnan(nothing.estimate)


def test_a_line_of_the_tables_has_it() -> None:
    numbers = np.random.default_rng(3)
    edits, finds = rows(numbers.normal(size=(1, 5, WIDTH)), numbers.normal(size=(5, WIDTH)))
    assert line_of("loco", *edits, *finds).kid == kid(edits, finds)
