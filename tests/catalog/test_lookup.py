"""Indexes and lookups, against brute force on small random catalogs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from catalog import manifest as manifests
from catalog.index import DirectionIndex, build_indexes, faiss_id
from catalog.lookup import homogeneity, similar, transfer_candidates
from catalog.reader import Catalog
from catalog.records import Chunk
from catalog.sketch import sketch, spec_for
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, InputError, NotFoundError
from tests.catalog.samples import chunk_of, provenance, small_catalog, unit

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


def brute_force(catalog: Catalog, key: str, name: str) -> list[tuple[str, float]]:
    rows = {row["direction_id"]: row for row in catalog.directions().to_pylist()}
    same = [k for k, row in rows.items() if row["image_id"] != rows[key]["image_id"]]
    if name != "effect":
        same = [k for k in same if rows[k]["space"] == name]
    stored = catalog.effects([*same, key]) if name == "effect" else catalog.vectors([*same, key], name)
    stored = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    scores = np.abs(stored[:-1] @ stored[-1])
    return sorted(zip(same, scores.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))


@pytest.mark.parametrize("name", ["x", "h", "effect"])
def test_similar_agrees_with_brute_force(folder: Path, name: str) -> None:
    with Catalog.open(folder) as catalog:
        table = catalog.directions() if name == "effect" else catalog.directions(space=name)
        for key in table.column("direction_id").to_pylist()[:8]:
            found = similar(catalog, key, 5, by="effect" if name == "effect" else "vector")
            wanted = brute_force(catalog, key, name)[:5]
            assert [f.direction_id for f in found] == [k for k, _ in wanted]
            assert np.allclose([f.score for f in found], [s for _, s in wanted], atol=1e-4)


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


def test_similar_filters_by_image_and_region(folder: Path) -> None:
    key = chunk_of("one", 3, size=WIDE).directions[0].direction_id
    with Catalog.open(folder) as catalog:
        own = catalog.direction(key)
        anywhere = similar(catalog, key, 100, other_images=False)
        assert len(anywhere) == catalog.directions(space="x").num_rows - 1
        there = similar(catalog, key, 100, same_region=True)
        assert {s.region for s in there} == {own.region}
        assert own.image_id not in {s.image_id for s in there}
        assert len(there) == 5 * 4
        for wrong in ({"k": 0}, {"by": "colour"}):
            with pytest.raises(InputError):
                similar(catalog, key, **wrong)


def test_a_sketch_keeps_cosines_within_its_standard_error() -> None:
    generator = np.random.default_rng(0)
    one, two = unit(generator, 40, 5000) * np.sqrt(40), unit(generator, 40, 5000) * np.sqrt(40)
    mixed = 0.2 * one + np.sqrt(1 - 0.04) * two
    spec = spec_for(5000, seed=1)
    errors = (sketch(one, spec) * sketch(mixed, spec)).sum(axis=1) - [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(one, mixed, strict=True)
    ]
    assert np.sqrt((errors**2).mean()) < 1.3 / np.sqrt(spec.dimension)
    assert np.array_equal(sketch(one, spec), sketch(one, spec))
    assert not np.array_equal(sketch(one, spec), sketch(one, spec_for(5000, seed=2)))


def test_the_order_of_commits_does_not_change_the_index(tmp_path: Path) -> None:
    chunks = [chunk_of(f"chunk-{i}", 1) for i in range(3)]
    contents = []
    for name, order in (("a", chunks), ("b", chunks[::-1])):
        with CatalogWriter.create(tmp_path / name, provenance()) as writer:
            for chunk in order:
                writer.commit(chunk)
        build_indexes(tmp_path / name)
        with Catalog.open(tmp_path / name) as catalog:
            entries = [catalog.manifest.indexes[n] for n in ("x", "h", "effect")]
            contents.append([(tmp_path / name / p).read_bytes() for e in entries for p in (e.ids, e.faiss)])
            assert len({e.directions_fingerprint for e in entries}) == 1
    assert contents[0] == contents[1]


def test_ids_in_the_index_come_from_ids_not_from_rows(folder: Path) -> None:
    with Catalog.open(folder) as catalog:
        entry = catalog.manifest.indexes["x"]
        index = faiss.read_index(str(folder / entry.faiss))
        listed = pq.read_table(folder / entry.ids, partitioning=None).to_pylist()
    assert faiss.vector_to_array(index.id_map).tolist() == [faiss_id(row["direction_id"]) for row in listed]
    assert [row["faiss_id"] for row in listed] == [faiss_id(row["direction_id"]) for row in listed]


def test_a_missing_stale_or_damaged_index_says_what_to_run(tmp_path: Path) -> None:
    key = small_catalog(tmp_path / "c", 1)[0].directions[0].direction_id
    with Catalog.open(tmp_path / "c") as catalog, pytest.raises(CatalogError, match="rhumb index"):
        similar(catalog, key)
    build_indexes(tmp_path / "c")
    with CatalogWriter.open(tmp_path / "c") as writer:
        writer.commit(chunk_of("later"))
    with Catalog.open(tmp_path / "c") as catalog, pytest.raises(CatalogError, match="before the last commit"):
        similar(catalog, key)
    build_indexes(tmp_path / "c")
    assert len(list((tmp_path / "c" / "index").iterdir())) == 6
    with Catalog.open(tmp_path / "c") as catalog:
        assert similar(catalog, key)
        path = tmp_path / "c" / catalog.manifest.indexes["x"].faiss
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(CatalogError, match="changed file"):
            similar(catalog, key)


def test_an_index_is_read_as_faiss_wrote_it(folder: Path) -> None:
    with Catalog.open(folder) as catalog:
        for name in ("x", "h", "effect"):
            theirs = faiss.read_index(str(folder / catalog.manifest.indexes[name].faiss))
            ours = DirectionIndex(catalog, name)
            assert np.array_equal(ours.vectors, faiss.downcast_index(theirs.index).reconstruct_n(0, theirs.ntotal))
            assert faiss.serialize_index(ours.index).tobytes() == faiss.serialize_index(theirs).tobytes()


def test_an_empty_catalog_has_empty_indexes(tmp_path: Path) -> None:
    CatalogWriter.create(tmp_path / "c", provenance()).close()
    assert build_indexes(tmp_path / "c") == {"x": 0, "h": 0, "effect": 0}
    with Catalog.open(tmp_path / "c") as catalog:
        assert DirectionIndex(catalog, "h").search(np.ones(64, np.float32), 3) == []


def test_a_damaged_index_is_one_clear_error_and_never_ends_the_process(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 1)
    done = subprocess.run(
        [sys.executable, "-m", "tests.catalog.fuzz_driver", str(tmp_path / "c")],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert set(counts) == {"refused", "read", "verified"}, counts
    assert counts["refused"] > 300
    assert counts["verified"] > 30


@pytest.mark.parametrize(
    "sketch", [{"kind": "identity", "dimension": 64}, {"kind": "srht", "dimension": 1024}, {"kind": "identity"}]
)
def test_a_sketch_that_does_not_belong_to_the_vectors_is_refused(tmp_path: Path, sketch: dict[str, object]) -> None:
    small_catalog(tmp_path / "c", 1)
    build_indexes(tmp_path / "c")
    value = manifests.load(tmp_path / "c").model_dump()
    value["indexes"]["x"]["sketch"] = {"kind": "srht", "dimension": 60_000, "seed": 0, **sketch}
    (tmp_path / "c" / "manifest.json").write_bytes(manifests.dump(manifests.Manifest.model_validate(value)))
    with Catalog.open(tmp_path / "c") as catalog, pytest.raises(CatalogError, match="index x: sketch"):
        DirectionIndex(catalog, "x")


def test_homogeneity_agrees_with_brute_force_and_states_chance(folder: Path) -> None:
    with Catalog.open(folder) as catalog:
        for by in ("vector", "effect"):
            result = homogeneity(catalog, "mouth", "x", "local", by=by)
            assert (result.images, result.used, sorted(result.of_rank)) == (6, 6, [0, 1])
            ids = catalog.directions(region="mouth", kind="local", rank=1).column("direction_id").to_pylist()
            rows = catalog.vectors(ids, "x") if by == "vector" else catalog.effects(ids)
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
