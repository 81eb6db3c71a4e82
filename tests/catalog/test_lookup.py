"""Indexes and lookups, against brute force on small random catalogs."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.index import DirectionIndex, build_indexes
from catalog.lookup import (
    Filters,
    homogeneity,
    homogeneity_of,
    similar,
    similar_page,
    similar_to,
    transfer_candidates,
    uniformity,
)
from catalog.lookup.ask import random_quantiles
from catalog.reader import Catalog
from catalog.records import Chunk
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, InputError, NotFoundError
from tests.catalog.samples import SIZE, chunk_of, provenance, small_catalog, unit

WIDE = 24  # 3 * 24 * 24 = 1,728 entries: more than a sketch holds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog with wide x vectors, and one direction of another image that is nearly minus the first one."""
    path = tmp_path_factory.mktemp("lookup") / "c"
    generator = np.random.default_rng(3)
    with CatalogWriter.create(path, provenance(spaces={"x": (3, WIDE, WIDE), "h": (4, 4, 4)})) as writer:
        first = chunk_of("one", 3, size=WIDE)
        writer.commit(first)
        second = chunk_of("two", 3, size=WIDE)
        copied = first.directions[0].vector + 0.3 * unit(generator, 3, WIDE, WIDE)
        twin = dataclasses.replace(second.directions[0], vector=-copied / np.linalg.norm(copied))
        writer.commit(dataclasses.replace(second, directions=(twin, *second.directions[1:])))
    build_indexes(path)
    return path


def brute_force(catalog: Catalog, key: str, by: str) -> list[tuple[str, float]]:
    """Ids on other images and their signed cosines, best first."""
    rows = {row["direction_id"]: row for row in catalog.directions().to_pylist()}
    own = rows[key]
    same = [k for k, row in rows.items() if row["image_id"] != own["image_id"]]
    if by != "effect":
        same = [k for k in same if rows[k]["space"] == own["space"]]
    stored = [catalog.effects([*same, key])] if by != "vector" else []
    stored += [catalog.vectors([*same, key], own["space"])] if by != "effect" else []
    units = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in stored]
    scores = np.mean([part[:-1] @ part[-1] for part in units], axis=0)
    return sorted(zip(same, scores.tolist(), strict=True), key=lambda pair: (-abs(pair[1]), pair[0]))


@pytest.mark.parametrize("space", ["x", "h"])
@pytest.mark.parametrize("by", ["vector", "effect", "both"])
def test_similar_agrees_with_brute_force(folder: Path, by: str, space: str) -> None:
    with Catalog.open(folder) as catalog:
        for key in catalog.directions(space=space).column("direction_id").to_pylist()[:6]:
            found = similar(catalog, key, 5, by=by, grouped=False)
            wanted = brute_force(catalog, key, by)[:5]
            assert [f.direction_id for f in found] == [k for k, _ in wanted]
            assert np.allclose([f.sign * f.score for f in found], [s for _, s in wanted], atol=1e-4)


def test_by_both_vectors_and_effects_have_to_agree_about_the_sign(tmp_path: Path) -> None:
    one, two = chunk_of("one", 1, ("mouth",)), chunk_of("two", 1, ("mouth",))
    asked = one.directions[0]
    agreeing = dataclasses.replace(two.directions[0], vector=-asked.vector, effect=-asked.effect)
    torn = dataclasses.replace(two.directions[2], vector=-asked.vector, effect=asked.effect)
    kept = (agreeing, two.directions[1], torn)
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        writer.commit(one)
        writer.commit(dataclasses.replace(two, directions=kept))
    build_indexes(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        found = {s.direction_id: s for s in similar(catalog, asked.direction_id, 9, by="both", grouped=False)}
        assert found[agreeing.direction_id].score > 0.99
        assert found[agreeing.direction_id].sign == -1
        assert found[torn.direction_id].score < 0.01
        assert {s.score > 0.99 for s in similar(catalog, asked.direction_id, 2, by="vector", grouped=False)} == {True}


@settings(max_examples=5, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=3, max_size=6), by=st.sampled_from(["vector", "effect", "both"]))
def test_pages_join_without_gaps_or_repeats(folder: Path, sizes: list[int], by: str) -> None:
    with Catalog.open(folder) as catalog:
        key = catalog.directions(space="x").column("direction_id").to_pylist()[0]
        for grouped in (False, True):
            whole = similar(catalog, key, 100, by=by, grouped=grouped)
            joined, offset = [], 0
            for size in sizes:
                page = similar_page(catalog, key, size, by=by, offset=offset, grouped=grouped)
                joined += page.found
                offset += size
                assert page.more == (offset < len(whole))
            assert [s.direction_id for s in joined] == [s.direction_id for s in whole[:offset]]


def test_pages_join_where_the_answer_needs_more_than_the_first_candidates(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Catalog.open(folder) as catalog:
        key = catalog.directions(space="x").column("direction_id").to_pylist()[0]
        monkeypatch.setattr("catalog.lookup.similarity.RERANKED", 4)
        monkeypatch.setattr(DirectionIndex, "candidates", 4)
        among = similar_page(catalog, key, 1).among
        whole = similar(catalog, key, 100, grouped=False)
        assert len({s.direction_id for s in whole}) == len(whole) == among
        pages = [similar(catalog, key, 3, offset=offset, grouped=False) for offset in range(0, among, 3)]
        assert [s.direction_id for page in pages for s in page] == [s.direction_id for s in whole]


def test_directions_of_one_image_are_grouped_under_the_best(folder: Path) -> None:
    with Catalog.open(folder) as catalog:
        key = catalog.directions(space="x").column("direction_id").to_pylist()[0]
        flat, groups = similar(catalog, key, 100, grouped=False), similar(catalog, key, 100)
        assert len({g.image_id for g in groups}) == len(groups) == 5
        for group in groups:
            of_image = [s.direction_id for s in flat if s.image_id == group.image_id]
            assert [group.direction_id, *group.others] == of_image
        assert [g.score for g in groups] == sorted((g.score for g in groups), reverse=True)


def test_filters_are_applied_before_the_search_and_may_have_several_values(folder: Path) -> None:
    with Catalog.open(folder) as catalog:
        key = catalog.directions(space="x").column("direction_id").to_pylist()[0]
        own = catalog.direction(key)
        anywhere = similar(catalog, key, 100, other_images=False, grouped=False)
        assert len(anywhere) == catalog.directions(space="x").num_rows - 1
        there = similar(catalog, key, 100, same_region=True, grouped=False)
        assert {s.region for s in there} == {own.region}
        assert own.image_id not in {s.image_id for s in there}
        assert len(there) == 5 * 4
        images = tuple(sorted({s.image_id for s in anywhere})[:2])
        for filters, column, values in (
            (Filters(region=("mouth",)), "region", {"mouth"}),
            (Filters(region=("mouth", "hair")), "region", {"mouth", "hair"}),
            (Filters(kind=("local",), dataset=("random",), timestep=(350,)), "kind", {"local"}),
            (Filters(image=(images[0][:8], images[1])), "image_id", set(images)),
        ):
            page = similar_page(catalog, key, 100, other_images=False, grouped=False, filters=filters)
            assert {getattr(s, column) for s in page.found} == values
            assert len(page.found) == page.among
            kept = [s.direction_id for s in anywhere if getattr(s, column) in values]
            assert [s.direction_id for s in page.found] == kept
        by_effect = similar(catalog, key, 100, by="effect", grouped=False, filters=Filters(space=("h",)))
        assert {s.space for s in by_effect} == {"h"}
        for wrong in (Filters(region=("nose",)), Filters(timestep=(1,)), Filters(image=("ab",))):
            with pytest.raises(InputError):
                similar(catalog, key, filters=wrong)
        for bad in ({"k": 0}, {"by": "colour"}, {"offset": -1}):
            with pytest.raises(InputError):
                similar(catalog, key, **bad)


def test_a_vector_from_outside_finds_what_is_like_it(folder: Path, tmp_path: Path) -> None:
    with Catalog.open(folder) as catalog:
        for space in ("x", "h", "effect"):
            key = catalog.directions(**({} if space == "effect" else {"space": space})).column(0).to_pylist()[1]
            stored = catalog.effect(key) if space == "effect" else catalog.vector(key)
            np.save(tmp_path / "v.npy", -7.5 * stored.astype(np.float64))
            for query in (-7.5 * stored, tmp_path / "v.npy", str(tmp_path / "v.npy")):
                best = similar_to(catalog, query, space, 1)[0]
                assert (best.direction_id, best.sign) == (key, -1)
                assert best.score == pytest.approx(1, abs=1e-3)
        stored = catalog.vector(catalog.directions(space="h").column("direction_id").to_pylist()[0])
        (tmp_path / "text.npy").write_text("no array")
        np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
        for bad in (
            stored[:2], np.zeros(64), np.full(64, np.nan), np.array(["a"] * 64), [1.0] * 64,
            tmp_path / "text.npy", tmp_path / "objects.npy",
        ):  # fmt: skip
            with pytest.raises(InputError):
                similar_to(catalog, bad, "h")
        with pytest.raises(InputError, match="space"):
            similar_to(catalog, stored, "y")
        with pytest.raises(NotFoundError):
            similar_to(catalog, tmp_path / "none.npy", "h")


def test_a_missing_or_stale_index_says_what_to_run(tmp_path: Path) -> None:
    key = small_catalog(tmp_path / "c", 1)[0].directions[0].direction_id
    with Catalog.open(tmp_path / "c") as catalog, pytest.raises(CatalogError, match="rhumb index"):
        similar(catalog, key)
    build_indexes(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        assert similar(catalog, key)
    with CatalogWriter.open(tmp_path / "c") as writer:
        writer.commit(chunk_of("later"))
    with Catalog.open(tmp_path / "c") as catalog, pytest.raises(CatalogError, match="before the last commit"):
        similar(catalog, key)


def test_the_opposite_direction_is_similar_and_its_sign_told(folder: Path) -> None:
    one, two = chunk_of("one", 3, size=WIDE).directions[0], chunk_of("two", 3, size=WIDE).directions[0]
    with Catalog.open(folder) as catalog:
        best = similar(catalog, one.direction_id, 1)[0]
        assert (best.direction_id, best.sign) == (two.direction_id, -1)
        assert best.score > 0.9
        raw = DirectionIndex(catalog, "x").search(catalog.vector(two.direction_id).ravel(), 2)
        flipped = DirectionIndex(catalog, "x").search(-catalog.vector(two.direction_id).ravel(), 2)
        assert [k for k, _ in raw] == [k for k, _ in flipped]
        assert [s for _, s in raw] == pytest.approx([-s for _, s in flipped])


def test_homogeneity_agrees_with_brute_force_and_states_chance(folder: Path) -> None:
    with Catalog.open(folder) as catalog:
        for by in ("vector", "effect"):
            result = homogeneity(catalog, "mouth", "x", "local", by=by)
            assert (result.images, result.used, sorted(result.of_rank)) == (6, 6, [0, 1])
            ids = catalog.directions(region="mouth", kind="local", rank=1).column("direction_id").to_pylist()
            rows = catalog.vectors(ids, "x") if by == "vector" else catalog.effects(ids)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            cosines = np.abs(rows @ rows.T)[np.triu_indices(6, 1)]
            spread = result.of_rank[1]
            assert np.allclose((spread.q10, spread.q50, spread.q90), np.quantile(cosines, (0.1, 0.5, 0.9)), atol=1e-3)
            assert (spread.n, spread.pairs, result.overall.pairs) == (6, 15, 30)
            size = 3 * WIDE * WIDE if by == "vector" else 768
            assert spread.random[1] == pytest.approx(0.6745 / np.sqrt(size), rel=1e-3)
            assert 0.3 < spread.q50 / spread.random_shaped[1] < 3  # these directions are random ones
        assert list(homogeneity(catalog, "mouth", "x", "local", rank=1).of_rank) == [1]
        assert homogeneity(catalog, "mouth", "x", "local", limit=3).used == 3
        with pytest.raises(NotFoundError, match="mouth x local"):
            homogeneity(catalog, "nose")


def test_homogeneity_holds_the_vectors_of_one_rank_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, read = uniformity._stored, []

    def watched(*asked: Any) -> np.ndarray:
        assert not any(former() is not None for former in read)
        rows = original(*asked)
        read.append(weakref.ref(rows))
        return rows

    monkeypatch.setattr(uniformity, "_stored", watched)
    with Catalog.open(folder) as catalog:
        assert len(homogeneity(catalog, "mouth", "x", "local").of_rank) == len(read) == 2


def test_the_shaped_baseline_knows_that_effects_live_in_one_region(tmp_path: Path) -> None:
    chunk = chunk_of("one", 6, ("mouth",))
    generator, directions = np.random.default_rng(0), []
    for d in chunk.directions:
        effect = np.zeros((3, 16, 16), np.float32)
        effect[:, 3:6, 3:6] = unit(generator, 3, 3, 3)
        directions.append(dataclasses.replace(d, effect=effect))
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        writer.commit(dataclasses.replace(chunk, directions=tuple(directions)))
    with Catalog.open(tmp_path / "c") as catalog:
        spread = homogeneity(catalog, "mouth", by="effect").overall
    assert spread.q50 > 2.5 * spread.random[1]
    assert 0.6 < spread.q50 / spread.random_shaped[1] < 1.6


def transfer_catalog(path: Path) -> Chunk:
    chunk = chunk_of("one", 4, ("mouth",))
    regions = []
    for shift, region in enumerate(chunk.regions):
        mask = np.zeros((16, 16), bool)
        mask[2:7, 1 + 3 * shift : 5 + 3 * shift] = True
        regions.append(dataclasses.replace(region, mask=mask))
    chunk = dataclasses.replace(chunk, regions=tuple(regions))
    with CatalogWriter.create(path, provenance()) as writer:
        writer.commit(chunk)
    return chunk


def test_an_image_gets_its_own_directions_first(tmp_path: Path) -> None:
    chunk = transfer_catalog(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        for image, region in zip(chunk.images, chunk.regions, strict=True):
            found = transfer_candidates(catalog, image.image, region.mask, "mouth", 3)
            assert {f.image_id for f in found[:2]} == {image.image_id}
            assert found[0].mask_iou == 1
            assert found[0].shift == (0, 0)
            assert found[0].image_similarity == pytest.approx(1)
            for f in found:
                assert f.score == pytest.approx((f.mask_iou + f.image_similarity + f.effect_inside) / 3)
                effect = catalog.effect(f.direction_id)
                assert f.effect_inside == pytest.approx(float((effect[:, region.mask] ** 2).sum()), abs=2e-3)
            assert {f.kind for f in found} == {"local"}
        assert transfer_candidates(catalog, image.image, region.mask, "mouth", 9, "h", ["singular"])[0].space == "h"


def test_candidates_say_how_far_it_is_from_their_home_to_the_new_mask(tmp_path: Path) -> None:
    chunk = transfer_catalog(tmp_path / "c")
    mask = np.zeros((16, 16), bool)
    mask[5:10, 4:8] = True  # three below the homes, which begin at the columns 1, 4, 7 and 10
    with Catalog.open(tmp_path / "c") as catalog:
        found = transfer_candidates(catalog, chunk.images[0].image, mask, "mouth", 100)
    shifts = {f.image_id: f.shift for f in found}
    assert shifts == {image.image_id: (3 - 3 * i, 3) for i, image in enumerate(chunk.images)}


def test_a_new_image_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    chunk = transfer_catalog(tmp_path / "c")
    image, mask = chunk.images[0].image, chunk.regions[0].mask
    with Catalog.open(tmp_path / "c") as catalog:
        for bad_image, bad_mask in (
            (image, np.zeros_like(mask)), (image, mask.astype(np.uint8)), (image[:8], mask),
            (image.astype(np.float32), mask), (image[:8], mask[:8]),
        ):  # fmt: skip
            with pytest.raises(InputError):
                transfer_candidates(catalog, bad_image, bad_mask, "mouth")
        with pytest.raises(NotFoundError, match="Regions: mouth"):
            transfer_candidates(catalog, image, mask, "ear")


def face_like(path: Path, noise: float, images: int = 6, seed: int = 0) -> list[str]:
    """A catalog whose local mouth directions of rank 0 are one pattern plus noise, each of a random sign and shifted
    with its mask, and whose last image has a pattern of its own; returns the ids of the images."""
    generator = np.random.default_rng(seed)
    chunk = chunk_of("one", images, ("mouth",))
    pattern = unit(generator, 3, 4, 4)
    regions, directions = [], list(chunk.directions)
    for number, region in enumerate(chunk.regions):
        down, right = (int(s) for s in generator.integers(1, 11, 2))
        mask = np.zeros((16, 16), bool)
        mask[down : down + 4, right : right + 4] = True
        regions.append(dataclasses.replace(region, mask=mask))
        for place, d in enumerate(chunk.directions):
            if (d.image_id, d.kind, d.rank) == (region.image_id, "local", 0):
                here = unit(generator, 3, 4, 4) if number == images - 1 else pattern
                here = here + noise * unit(generator, 3, 4, 4)
                vector = np.zeros((3, 16, 16), np.float32)
                vector[:, down : down + 4, right : right + 4] = here / np.linalg.norm(here)
                vector *= generator.choice([-1, 1])
                directions[place] = dataclasses.replace(d, vector=vector, effect=vector)
    made = dataclasses.replace(chunk, regions=tuple(regions), directions=tuple(directions))
    with CatalogWriter.create(path, provenance()) as writer:
        writer.commit(made)
    return [image.image_id for image in made.images]


def first_of(catalog: Catalog, image: str) -> str:
    found = catalog.directions(image_id=image, kind="local", rank=0).column("direction_id").to_pylist()
    assert len(found) == 1
    return str(found[0])


@pytest.mark.parametrize("by", ["vector", "effect", "both"])
def test_a_direction_is_as_uniform_as_its_pattern_wherever_the_region_lies(tmp_path: Path, by: str) -> None:
    images = face_like(tmp_path / "same", 0.05)
    with Catalog.open(tmp_path / "same") as catalog:
        key = first_of(catalog, images[0])
        found = homogeneity_of(catalog, key, by=by)
        assert (found.images, found.used, found.region, found.kind) == (5, 5, "mouth", "local")
        assert found.agreement == pytest.approx(4 / 5)
        assert found.disagreeing == (images[-1],)
        own = catalog.vector(key)
        for n in found.nearest[:4]:
            assert n.score > 0.98
            assert n.effect > 0.95
            assert n.direction_id == first_of(catalog, n.image_id)
            turned = n.sign * catalog.vector(n.direction_id)
            assert np.sort(turned.ravel())[-1] == pytest.approx(np.sort(own.ravel())[-1], abs=0.1)
        in_place = homogeneity_of(catalog, key, by=by, move=False)
        assert in_place.q50 < 0.7 < found.q50
        assert homogeneity_of(catalog, key, by=by, limit=2).used == 2
        with pytest.raises(InputError):
            homogeneity_of(catalog, key, by="colour")  # type: ignore[arg-type]


def test_random_directions_are_as_uniform_as_chance_says(tmp_path: Path) -> None:
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        writer.commit(chunk_of("one", 40, ("mouth",)))
    with Catalog.open(tmp_path / "c") as catalog:
        keys = catalog.directions(kind="local").column("direction_id").to_pylist()
        for key in keys[:3]:
            found = homogeneity_of(catalog, key, by="vector")
            assert 0.5 < found.q50 / found.random[1] < 2
            assert found.agreement == 0
        region = homogeneity(catalog, "mouth", by="both")
        assert 0.7 < region.overall.q50 / region.overall.random[1] < 1.4
        assert len(region.disagreeing) == 40


def test_a_region_names_the_images_that_are_unlike_the_others(tmp_path: Path) -> None:
    chunk = chunk_of("one", 8, ("mouth",))
    pattern = unit(np.random.default_rng(0), 3, 16, 16)
    odd = chunk.images[3].image_id
    directions = [
        d if d.image_id == odd or d.space == "h" else dataclasses.replace(d, effect=pattern) for d in chunk.directions
    ]
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        writer.commit(dataclasses.replace(chunk, directions=tuple(directions)))
    with Catalog.open(tmp_path / "c") as catalog:
        found = homogeneity(catalog, "mouth", by="effect")
        assert found.disagreeing == (odd,)
        assert found.overall.q90 == pytest.approx(1, abs=1e-3)
        assert max(found.of_image, key=lambda image: found.of_image[image]) != odd
        with pytest.raises(NotFoundError, match="There are: .*mouth x local"):
            homogeneity(catalog, "mouth", "h", "joint")


@settings(max_examples=30, deadline=None)
@given(entries=st.integers(50, 500), of=st.integers(1, 8))
def test_quantiles_of_chance_are_those_of_random_vectors(entries: int, of: int) -> None:
    generator = np.random.default_rng(entries * 10 + of)
    rows = generator.standard_normal((3000, entries))[:, 0] / np.sqrt(entries)
    drawn = np.quantile(np.abs(rows[: 3000 // of * of].reshape(-1, of)).max(axis=1), (0.1, 0.5, 0.9))
    assert np.allclose(random_quantiles(entries, of)[1:], drawn[1:], rtol=0.15)


def test_of_very_many_candidates_those_are_compared_that_the_index_finds_in_the_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = [chunk_of(f"chunk-{i}") for i in range(3)]
    image, mask = chunks[0].images[0].image, chunks[0].regions[0].mask
    inside = np.zeros((3, SIZE, SIZE), np.float32)
    inside[1, mask] = 1 / np.sqrt(mask.sum())
    planted = [next(d for d in chunk.directions if d.kind == "local" and d.region == "mouth") for chunk in chunks]
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        for chunk, direction in zip(chunks, planted, strict=True):
            green = dataclasses.replace(direction, effect=inside)
            others = tuple(green if d is direction else d for d in chunk.directions)
            writer.commit(dataclasses.replace(chunk, directions=others))
    build_indexes(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        everything = transfer_candidates(catalog, image, mask, "mouth", 100)
        monkeypatch.setattr("catalog.lookup.transfer.COMPARED", 9)
        few = transfer_candidates(catalog, image, mask, "mouth", 100)
    assert len(few) <= 9 < len(everything)
    assert set(few) <= set(everything)
    assert {d.direction_id for d in planted} == {one.direction_id for one in few if one.effect_inside > 0.99}
