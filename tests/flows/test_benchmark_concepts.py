"""The benchmark of concepts on directions of known truth: what it counts must be right, whatever the model."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.concept_building import build_concepts
from catalog.concepts import Concept
from catalog.reader import Catalog
from catalog.records import Chunk
from catalog.writer import CatalogWriter
from flows.paths import builtin_recipe
from flows.recipe import load_recipe
from pipeline.faces.factors import FACTORS
from tests.benchmarks import concept_figures, concepts
from tests.benchmarks.concept_figures import (
    Group,
    auc,
    homogeneity,
    labels_of,
    pair_figure,
    pooled,
    purity,
    same_factor,
    sign_agreement,
    weighted_mean,
)
from tests.benchmarks.concepts import Size, drawn, first_half, found_again, growth, measure, recipe_for, together
from tests.benchmarks.harness import Clock, document
from tests.catalog.samples import chunk_of, provenance, unit

MOVED = ("mouth_width", "lip_colour")  # what the two patterns of the mouth move
IMAGES = 24  # enough for the interval of a purity of 1 to lie over that of chance
STEP = 40  # of a preview's first pixel, of 255


def read(reader: object, images: Sequence[np.ndarray]) -> np.ndarray:
    """A reader that finds the two factors in the first pixel's red and green."""
    readings = np.zeros((len(images), len(FACTORS)))
    for channel, name in enumerate(MOVED):
        readings[:, FACTORS.index(name)] = [image[0, 0, channel] / 255 for image in images]
    return readings


def chunks(images: int) -> list[Chunk]:
    """Images whose local directions of the mouth are two patterns, of either sign, whose previews move one factor."""
    generator = np.random.default_rng(0)
    patterns = [unit(generator, 3, 16, 16) for _ in MOVED]
    found = []
    for chunk in (chunk_of(f"chunk-{i}") for i in range(images // 2)):
        directions = []
        for d in chunk.directions:
            if (d.region, d.kind) == ("mouth", "local"):
                sign = int(generator.choice([-1, 1]))
                preview = np.full((16, 48, 3), 128, np.uint8)
                preview[0, [0, 32], d.rank] = 128 - sign * STEP, 128 + sign * STEP
                vector = sign * patterns[d.rank]
                d = dataclasses.replace(d, vector=vector, effect=vector, preview=preview)
            directions.append(d)
        found.append(dataclasses.replace(chunk, directions=tuple(directions)))
    return found


def written(folder: Path, parts: Sequence[Chunk]) -> Path:
    with CatalogWriter.create(folder, provenance()) as writer:
        for part in parts:
            writer.commit(part)
    return folder


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("concepts") / "catalog", chunks(IMAGES))


def test_concepts_of_known_truth_are_pure_and_their_ids_stay(truth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concept_figures, "read_factors", read)
    clock = Clock()
    targets, details = measure(truth, Size(0, 700), clock, None)  # type: ignore[arg-type]
    content = json.loads(json.dumps(document("concepts", True, targets, details, clock), allow_nan=False))
    assert [t["name"] for t in content["targets"] if not t["met"]] == [m["target"] for m in details["missed"]]
    assert [m["target"] for m in details["missed"]] == ["x local, hair: the same"]  # random directions: no concepts
    (mouth,) = [g for g in details["groups"] if (g["region"], g["space"], g["kind"]) == ("mouth", "x", "local")]
    assert (mouth["directions"], mouth["concepts"], mouth["labelled"]) == (2 * IMAGES, 2, 2 * IMAGES)
    assert mouth["labels"] == {"mouth_width": 0.5, "mouth_smile": 0, "mouth_opening": 0, "lip_colour": 0.5}
    assert mouth["purity"]["real"].estimate == mouth["sign_agreement"]["real"].estimate == 1
    assert 0.5 <= mouth["purity"]["chance"].estimate < 0.8
    assert mouth["same_factor_auc"]["both, moved"].estimate == 1
    assert mouth["homogeneity"]["in a concept"].low > 0.99
    assert details["growth"]["concepts_of_half"] == details["growth"]["found_again"] == 2
    assert details["growth"]["members_kept"] == 1
    assert details["seeds"] == dict.fromkeys(details["seeds"], 1)
    assert details["cost"]["peak_bytes"] > 0
    white = details["drawn"]["white noise"]
    assert white["clusters"] == white["of_one_axis_or_none"] == concepts.AXES
    assert (white["coverage"], white["coverage_of_no_axis"]) == (1, 0)
    concepts.tables(details)


def test_a_catalog_of_too_few_images_misses_its_targets_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concept_figures, "read_factors", read)
    targets, details = measure(written(tmp_path / "c", chunks(2)), Size(0, 60), Clock(), None)  # type: ignore[arg-type]
    assert details["growth"]["concepts_of_half"] == 0
    assert {m["target"] for m in details["missed"]} == {t.name for t in targets if not t.met}
    assert "too few images" in details["missed"][-1]["why"]
    assert details["missed"][0]["why"].startswith("none of 0 members")
    concepts.tables(details)


def test_part_of_a_catalog_gives_the_concepts_that_it_had_with_those_images_alone(truth: Path, tmp_path: Path) -> None:
    with Catalog.open(truth) as catalog:
        part = first_half(catalog)
        kept = set(part.images_kept)
        assert len(kept) == IMAGES // 2

        def own(rows: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(row for row in rows if row.image_id in kept)

        fewer = [
            Chunk(f"{chunk.chunk_id}-part", own(chunk.images), own(chunk.regions), own(chunk.directions))
            for chunk in chunks(IMAGES)
        ]
        with Catalog.open(written(tmp_path / "c", [chunk for chunk in fewer if chunk.images])) as alone:
            built = build_concepts(part)
            assert built.num_rows == 2
            assert built.equals(build_concepts(alone))


def test_the_recipe_is_the_demos_on_held_out_images() -> None:
    recipe = recipe_for(4)
    demo = load_recipe(builtin_recipe())
    assert (recipe.numerical(), recipe.regions) == (demo.numerical(), demo.regions)
    assert (recipe.dataset.model_dump()["split"], recipe.dataset.limit) == ("holdout", 4)


# --- figures ----------------------------------------------------------------------------------------------------------


def group(labels: Sequence[int], numbers: Sequence[int], signs: Sequence[int], images: Sequence[str]) -> Group:
    """Directions that all move their factor up; the effects of one label are one vector, of others square to it."""
    moves = np.zeros((len(labels), 3))
    for row, label in enumerate(labels):
        if label >= 0:
            moves[row, label] = 0.2
    same = np.equal.outer(np.array(labels), np.array(labels)).astype(float)
    return Group(("mouth", "x", "local"), np.array(images), moves, labels_of(moves), np.array(numbers),
                 np.array(signs), {"effect, moved": same, "both": same})  # fmt: skip


def test_labels_are_the_largest_move_and_none_below_the_least() -> None:
    least = concept_figures.LEAST_MOVE
    assert labels_of(np.array([[0.0, -0.3], [least, 0.0], [0.9 * least, 0.0]])).tolist() == [1, 0, -1]
    assert labels_of(np.zeros((2, 0))).tolist() == [-1, -1]


def test_purity_and_signs_count_members_that_are_labelled_only() -> None:
    found = group([0, 0, 1, 2, 2, -1, 0], [4, 4, 4, 7, 7, 7, -1], [1, -1, 1, 1, 1, 1, 1], list("abcabcd"))
    pure, signs = purity(found), sign_agreement(found)
    assert pure.real.tolist() == [True, True, False, True, True]
    assert pure.images.tolist() == list("abcab")
    assert pure.chance.shape == (concept_figures.SHUFFLES, 5)
    assert (signs.real.sum(), len(signs.real)) == (3, 4)  # one of the first concept's two is turned the other way
    assert pooled([pure, pure]).figures()["real"].estimate == pytest.approx(0.8)
    assert math.isnan(purity(group([-1], [-1], [1], ["a"])).figures()["chance"].estimate)


def test_labels_that_ignore_concepts_are_no_purer_than_chance() -> None:
    generator = np.random.default_rng(1)
    found = purity(group(generator.integers(0, 3, 120).tolist(), generator.integers(0, 4, 120).tolist(), [1] * 120,
                         [str(i // 5) for i in range(120)])).figures()  # fmt: skip
    assert found["chance"].low < found["real"].estimate < found["chance"].high


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=1, max_size=15))
def test_auc_is_the_share_of_pairs_in_order_ties_half(rows: list[tuple[int, bool, int]]) -> None:
    scores, same, weights = (np.array(column) for column in zip(*rows, strict=True))
    pairs = [
        (w * v, (a > b) + 0.5 * (a == b)) for a, yes, w in rows if yes for b, no, v in rows if not no and w * v > 0
    ]
    found = auc(scores, same, weights.astype(float))
    if pairs:
        assert found == pytest.approx(np.average([p for _, p in pairs], weights=[w for w, _ in pairs]))
    else:
        assert math.isnan(found)


def test_pairs_of_one_image_do_not_count() -> None:
    found = group([0, 0, 1, 1], [0, 0, 0, -1], [1, -1, 1, 1], ["a", "a", "b", "c"])
    assert homogeneity(found)["any two"].count == 5
    assert homogeneity(found)["in a concept"].estimate == 0  # the two that are alike are of one image
    assert same_factor(found)["both"].estimate == 1
    first, second = np.array([0, 0, 1]), np.array([1, 2, 2])
    flat = pair_figure(lambda w: weighted_mean(np.array([0.5, 0.5, 0.5]), w), first, second)
    assert (flat.estimate, flat.low, flat.high, flat.count) == (0.5, 0.5, 0.5, 3)


# --- stability --------------------------------------------------------------------------------------------------------


def concept(key: str, members: str) -> Concept:
    """A concept that consists of its members; the rest is filled in."""
    values: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(Concept)), 0)
    return Concept(**values | {"concept_id": key, "members": tuple(members), "region": "mouth", "space": "x",
                               "kind": "local"})  # fmt: skip


def test_a_concept_found_again_under_another_id_is_told() -> None:
    half = [concept("1", "abcd"), concept("2", "efg"), concept("3", "xyz")]
    fresh = [concept("7", "abcdhi"), concept("8", "efgj"), concept("9", "klm")]
    assert [(old.concept_id, new.concept_id) for old, new in found_again(half, fresh)] == [("1", "7"), ("2", "8")]
    grown = [concept("1", "abcdhi"), concept("5", "efgj"), concept("6", "klm")]
    found = growth(half, grown, fresh)
    assert (found["found_again"], found["found_again_ids_kept"]) == (2, 0.5)
    assert found["members_kept"] == pytest.approx(4 / 10)
    larger = [concept("4", "abcdhi"), half[0]]
    assert [old.concept_id for old, _ in found_again(larger, [concept("7", "abcdz")])] == ["1"]  # as many in common
    assert len(found["lost"]) == 1
    assert "3 of 3 members lie in one of 4" in found["lost"][0]
    swapped = growth(half[:2], [concept("2", "abcdhi"), concept("1", "efgj")], fresh)
    assert (swapped["ids_on_another_concept"], swapped["found_again_ids_kept"]) == (2, 0)


members = st.lists(st.integers(-1, 4), min_size=2, max_size=12)


@given(members, st.data())
def test_together_is_the_jaccard_index_of_pairs(one: list[int], more: st.DataObject) -> None:
    other = more.draw(st.lists(st.integers(-1, 4), min_size=len(one), max_size=len(one)))

    def clusters(labels: list[int]) -> list[list[str]]:
        return [[str(i) for i, label in enumerate(labels) if label == number] for number in range(5)]

    def pairs(labels: list[int]) -> set[tuple[int, int]]:
        n = len(labels)
        return {(i, j) for i in range(n) for j in range(i) if labels[i] == labels[j] >= 0}

    either = pairs(one) | pairs(other)
    wanted = len(pairs(one) & pairs(other)) / len(either) if either else 1
    assert together(clusters(one), clusters(other)) == pytest.approx(wanted)


def test_drawn_directions_lie_around_their_axes_and_are_units_of_either_sign() -> None:
    rows, images, truth = drawn(2000)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert len(np.unique(truth)) == concepts.AXES + 1
    own = rows[truth == 0]
    cosines = own @ own.T
    assert np.abs(cosines).min() > 0.4
    assert cosines.min() < 0
    assert images.max() < 400
    flat, _, none = drawn(500, rank=2)
    assert np.linalg.matrix_rank(flat[none < 0], tol=1e-3) == 2
