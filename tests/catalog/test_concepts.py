"""Clusters of known truth, and concepts that depend on nothing but the directions."""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog import concept_building
from catalog import manifest as manifests
from catalog.alignment import moved, unit_rows
from catalog.clustering import sign_blind_clusters
from catalog.compaction import compact
from catalog.concept_building import between_owners, build_concepts
from catalog.concept_files import stored_table
from catalog.concept_tables import former_form, rewritten, stored_form, written_form
from catalog.concepts import (
    Concept,
    concepts_table,
    disagreeing_images,
    find_concept,
    load_concepts,
    read_concepts,
)
from catalog.reader import Catalog
from catalog.records import Chunk, content_id
from catalog.schema import parquet_settings
from catalog.shards import write_shard
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, InputError, NotFoundError
from tests.catalog.former_concepts import formerly, made_former
from tests.catalog.samples import chunk_of, provenance, unit

EFFECT = (3, 16, 16)
SIDE = 5  # of a mask
SHIPPED = next((Path(__file__).parents[2] / "data/builtin/hub/datasets/builtin/faces64/snapshots").iterdir())


def clustered(
    generator: np.random.Generator, truths: int, images: int, noise: float, size: int = 60
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(unit rows of random sign, owners, truth): each image has every truth once; size entries."""
    basis = np.linalg.qr(generator.standard_normal((size, truths)))[0].T
    truth, owners = np.tile(np.arange(truths), images), np.repeat(np.arange(images), truths)
    rows = basis[truth] + noise * generator.standard_normal((len(truth), size)) / np.sqrt(size)
    rows *= generator.choice([-1, 1], len(rows))[:, None]
    return unit_rows(rows), owners, truth


@settings(max_examples=25, deadline=None)
@given(
    truths=st.integers(1, 6), images=st.integers(3, 9), noise=st.floats(0, 0.8), seed=st.integers(0, 99)
)  # fmt: skip
def test_clusters_of_known_truth_are_found_whatever_their_number(
    truths: int, images: int, noise: float, seed: int
) -> None:
    rows, owners, truth = clustered(np.random.default_rng(seed), truths, images, noise)
    found = sign_blind_clusters(rows, owners)
    assert len(found.axes) == truths
    pairs = set(zip(found.labels.tolist(), truth.tolist(), strict=True))
    assert len(pairs) == truths
    assert found.labels.min() == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999))
def test_clusters_are_blind_to_signs_to_the_last_bit(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, owners, _ = clustered(generator, 4, 6, 1.2)
    flips = generator.choice([-1, 1], len(rows)).astype(np.float32)[:, None]
    one, two = sign_blind_clusters(rows, owners), sign_blind_clusters(rows * flips, owners)
    assert np.array_equal(one.labels, two.labels)
    assert np.array_equal(np.abs(one.axes), np.abs(two.axes))


def test_random_vectors_and_directions_of_a_single_image_make_no_cluster() -> None:
    generator = np.random.default_rng(0)
    rows = unit_rows(generator.standard_normal((300, 200)))
    assert len(sign_blind_clusters(rows, np.arange(300)).axes) == 0
    same = unit_rows(np.ones((50, 1)) * rows[:1] + 0.01 * rows[:50])
    assert len(sign_blind_clusters(same, np.zeros(50, dtype=int)).axes) == 0
    assert sign_blind_clusters(rows[:0], np.arange(0)).labels.shape == (0,)


def test_clusters_beyond_the_first_sample_are_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, owners, truth = clustered(np.random.default_rng(1), 3, 120, 0.5)
    rare, rare_owners, _ = clustered(np.random.default_rng(2), 1, 12, 0.3)
    every, owner = np.concatenate([rows, rare]), np.concatenate([owners, rare_owners])
    whole = sign_blind_clusters(every, owner)
    monkeypatch.setattr("catalog.clustering.SAMPLE", 40)
    sampled = sign_blind_clusters(every, owner)
    assert len(whole.axes) == len(sampled.axes) == 4
    for found in (whole, sampled):
        assert len(set(zip(found.labels[: len(truth)].tolist(), truth.tolist(), strict=True))) == 3
        assert len(set(found.labels[len(truth) :].tolist())) == 1


@settings(max_examples=25, deadline=None)
@given(down=st.integers(-6, 6), right=st.integers(-6, 6), seed=st.integers(0, 99))
def test_whole_shifts_move_cells_and_partial_ones_lie_between(down: int, right: int, seed: int) -> None:
    array = np.random.default_rng(seed).standard_normal((1, 2, 5, 6)).astype(np.float32)
    wanted = np.zeros_like(array)
    for y in range(5):
        for x in range(6):
            if 0 <= y + down < 5 and 0 <= x + right < 6:
                wanted[:, :, y + down, x + right] = array[:, :, y, x]
    assert np.allclose(moved(array, np.array([[down / 5, right / 6]])), wanted, atol=1e-5)
    half = moved(array, np.array([[(down + 0.5) / 5, right / 6]]))
    ends = [moved(array, np.array([[d / 5, right / 6]])) for d in (down, down + 1)]
    assert np.allclose(half, (ends[0] + ends[1]) / 2, atol=1e-5)
    assert np.array_equal(moved(array, np.full((1, 2), np.nan)), array)


def test_agreement_between_owners_is_the_mean_over_their_pairs() -> None:
    generator = np.random.default_rng(0)
    rows, owners = generator.standard_normal((9, 4)), np.array([5, 5, 1, 1, 1, 2, 7, 7, 2])
    pairs = [rows[i] @ rows[j] for i in range(9) for j in range(9) if owners[i] != owners[j]]
    assert between_owners(rows, owners) == pytest.approx(np.mean(pairs))
    assert between_owners(rows[:2], owners[:2]) == 0


def chunks_of_truth(images: int, noise: float = 0.2, flip: int | None = None) -> list[Chunk]:
    """Chunks of two images whose two local x directions of the mouth are two patterns, turned at random and lying
    where the mask is; the hair's, and all others, are random. `flip` seeds which vectors and effects are negated."""
    generator = np.random.default_rng(4)
    patterns = np.linalg.qr(generator.standard_normal((3 * SIDE * SIDE, 2)))[0].T.reshape(2, 3, SIDE, SIDE)
    flips = None if flip is None else np.random.default_rng(flip)
    chunks = []
    for number in range(images // 2):
        chunk = chunk_of(f"chunk-{number}")
        regions, directions, place = [], [], {}
        for region in chunk.regions:
            down, right = (int(s) for s in generator.integers(0, 11, 2))
            place[region.image_id] = down, right
            mask = np.zeros((16, 16), bool)
            mask[down : down + SIDE, right : right + SIDE] = True
            regions.append(dataclasses.replace(region, mask=mask))
        masks = {r.image_id: r.mask for r in regions if r.region == "mouth"}
        for d in chunk.directions:
            if (d.region, d.kind) == ("mouth", "local"):
                vector = np.zeros((3, 16, 16), np.float32)
                own = patterns[d.rank] + noise * unit(generator, 3, SIDE, SIDE)
                rows = np.argwhere(masks[d.image_id])
                (top, left), (bottom, end) = rows.min(axis=0), rows.max(axis=0) + 1
                vector[:, top:bottom, left:end] = generator.choice([-1, 1]) * own / np.linalg.norm(own)
                sign = 1 if flips is None else flips.choice([-1, 1])
                d = dataclasses.replace(d, vector=sign * vector, effect=sign * vector)
            directions.append(d)
        chunks.append(dataclasses.replace(chunk, regions=tuple(regions), directions=tuple(directions)))
    return chunks


def written(path: Path, chunks: list[Chunk]) -> Path:
    with CatalogWriter.create(path, provenance()) as writer:
        for chunk in chunks:
            writer.commit(chunk)
    return path


def built(path: Path, former: pa.Table | None = None) -> tuple[pa.Table, list[Concept]]:
    with Catalog.open(path) as catalog:
        table = build_concepts(catalog, former=former)
        return table, read_concepts(table, catalog)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("concepts") / "c", chunks_of_truth(8))


def test_concepts_are_the_patterns_and_nothing_random_makes_one(truth: Path) -> None:
    _, concepts = built(truth)
    assert len(concepts) == 2
    with Catalog.open(truth) as catalog:
        for concept in concepts:
            ranks = {row["rank"] for row in catalog.rows(concept.members, ["rank"])}
            assert (concept.region, concept.space, concept.kind, len(ranks)) == ("mouth", "x", "local", 1)
            assert (concept.images, concept.of_images, concept.agreement) == (8, 8, 1.0)
            assert concept.effect_agreement > 0.9
            assert concept.spread[0] > 0.95
            assert min(concept.effect_cosines) > 0.9
            assert disagreeing_images(catalog, concept) == []
            assert (concept.gain, concept.gain_range, concept.strength) == (2.0, (2.0, 2.0), 4.0)


def test_a_prototype_is_a_unit_direction_where_its_medoid_lies(truth: Path) -> None:
    _, concepts = built(truth)
    with Catalog.open(truth) as catalog:
        for concept in concepts:
            assert np.linalg.norm(concept.vector) == pytest.approx(1, abs=1e-3)
            assert concept.vector.flat[np.abs(concept.vector).argmax()] > 0
            home = catalog.rows([concept.medoid], ["image_id", "region_id"])[0]
            assert (home["image_id"], home["region_id"]) == (concept.image_id, concept.region_id)
            sign = concept.signs[concept.members.index(concept.medoid)]
            assert sign * float((concept.vector * catalog.vector(concept.medoid)).sum()) > 0.95
            assert sign * float((concept.effect * catalog.effect(concept.medoid)).sum()) > 0.95
            inside = (concept.vector**2)[:, catalog.mask(concept.image_id, "mouth")].sum()
            assert inside > 0.98
            thirds = np.split(catalog.preview(concept.medoid), 3, axis=1)
            assert np.array_equal(concept.pictures(), np.concatenate(thirds[::sign], axis=1))


def test_concepts_depend_neither_on_signs_nor_on_the_order_or_size_of_shards(truth: Path, tmp_path: Path) -> None:
    table, concepts = built(truth)
    chunks = chunks_of_truth(8)
    one = Chunk("all", *(tuple(r for c in chunks for r in getattr(c, n)) for n in ("images", "regions", "directions")))
    for name, order in (("reversed", chunks[::-1]), ("one", [one])):
        again, _ = built(written(tmp_path / name, order))
        assert again.equals(table), name
    turned = built(written(tmp_path / "turned", chunks_of_truth(8, flip=1)))[1]
    for was, now in zip(concepts, turned, strict=True):
        assert (was.concept_id, was.members, was.medoid) == (now.concept_id, now.members, now.medoid)
        assert was.signs != now.signs
        assert np.array_equal(was.vector, now.vector)
        assert np.array_equal(was.effect, now.effect)
        assert was.cosines == now.cosines


@pytest.mark.parametrize("whole", [0, concept_building.WHOLE])
def test_concepts_are_the_same_to_the_last_bit_after_compaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    monkeypatch.setattr(concept_building, "WHOLE", whole)
    monkeypatch.setattr(concept_building, "_BLOCK", 3)
    folder = written(tmp_path / "c", chunks_of_truth(8, noise=0.6))
    before, concepts = built(folder)
    assert concepts
    compact(folder)
    assert built(folder)[0].equals(before)


def test_a_concept_keeps_its_id_and_sign_when_the_catalog_grows(truth: Path, tmp_path: Path) -> None:
    table, before = built(truth)
    grown = written(tmp_path / "grown", chunks_of_truth(16))
    _, after = built(grown, table)
    assert {c.concept_id for c in after} == {c.concept_id for c in before}
    for was, now in zip(before, after, strict=True):
        assert set(was.members) < set(now.members)
        assert now.images == 16
        signs = dict(zip(now.members, now.signs, strict=True))
        assert [signs[key] for key in was.members] == list(was.signs)
    backwards = [
        dataclasses.replace(
            c, vector=-c.vector, effect=-c.effect, signs=tuple(-s for s in c.signs), concept_id=content_id("old", i)
        )
        for i, c in enumerate(before)
    ]
    _, renamed = built(grown, concepts_table(backwards, before[0].catalog.layout))
    assert {c.concept_id for c in renamed} == {c.concept_id for c in backwards}
    for was in backwards:
        now = find_concept(renamed, was.concept_id)
        signs = dict(zip(now.members, now.signs, strict=True))
        assert [signs[key] for key in was.members] == list(was.signs)


def test_a_concept_whose_members_are_all_new_keeps_its_id_by_its_prototype(truth: Path) -> None:
    _, before = built(truth)
    others = [
        dataclasses.replace(
            c, concept_id=content_id("old", i), members=tuple(sorted(content_id(i, m) for m in c.members)),
            medoid=content_id(i, c.medoid),
        )
        for i, c in enumerate(before)
    ]  # fmt: skip
    _, after = built(truth, concepts_table(others, before[0].catalog.layout))
    assert {c.concept_id for c in after} == {c.concept_id for c in others}


def test_other_regions_keep_their_concepts_when_one_is_built(truth: Path) -> None:
    table, before = built(truth)
    with Catalog.open(truth) as catalog:
        again = build_concepts(catalog, former=table, regions=["hair"])
    assert again.equals(table)
    assert before


def test_images_that_do_not_bear_a_concept_out_are_named(tmp_path: Path) -> None:
    chunks = chunks_of_truth(8)
    odd = chunks[0].images[0].image_id
    generator = np.random.default_rng(9)
    directions = tuple(
        dataclasses.replace(d, vector=unit(generator, 3, 16, 16), effect=unit(generator, *EFFECT))
        if (d.image_id, d.region, d.space) == (odd, "mouth", "x") else d
        for d in chunks[0].directions
    )  # fmt: skip
    path = written(tmp_path / "c", [dataclasses.replace(chunks[0], directions=directions), *chunks[1:]])
    _, concepts = built(path)
    with Catalog.open(path) as catalog:
        for concept in concepts:
            assert (concept.images, concept.of_images, concept.agreement) == (7, 8, 7 / 8)
            assert disagreeing_images(catalog, concept) == [odd]


def test_sketched_vectors_make_the_same_concepts(truth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = built(truth)
    monkeypatch.setattr("catalog.concept_building.WHOLE", 0)
    _, sketched = built(truth)
    assert [c.members for c in sketched] == [c.members for c in whole]
    for a, b in zip(whole, sketched, strict=True):
        assert abs(float((a.vector * b.vector).sum())) > 0.9 or a.medoid != b.medoid


WRONG = [
    ("concept_id", "../../etc"), ("medoid", "0" * 32), ("signs", [2] * 8), ("signs", [1]), ("gain", float("nan")),
    ("cosines", [float("inf")] * 8), ("images", 9), ("images", 0), ("space", "y"), ("region", "a\nb"),
    ("members", ["x"] * 8), ("x_vector", None),
]  # fmt: skip
CODED = [("effect_vector", b""), ("effect_vector", b"\1"), ("x_vector", b"\1junk"), ("h_vector", b"\1")]
FORMERLY = [
    ("effect_vector", [0.0] * 768), ("x_vector", [float("nan")] * 768), ("preview", None), ("parents", ["0" * 32]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "column", "value"),
    [(form, *case) for form, own in (("coded", CODED), ("former", FORMERLY)) for case in WRONG + own],
)
def test_a_hostile_table_is_refused_with_its_field_named(truth: Path, form: str, column: str, value: object) -> None:
    table, concepts = built(truth)
    catalog = concepts[0].catalog
    table = table if form == "coded" else formerly(table, catalog)
    rows = table.to_pylist()
    rows[0][column] = value
    with pytest.raises(CatalogError, match="concept"):
        read_concepts(pa.Table.from_pylist(rows, schema=table.schema), catalog)
    with pytest.raises(CatalogError, match="an id twice"):
        read_concepts(pa.concat_tables([table, table]), catalog)
    with pytest.raises(CatalogError, match="columns"):
        read_concepts(table.drop_columns(["gain"]), catalog)


def test_concepts_are_stored_read_and_found_by_their_ids(tmp_path: Path) -> None:
    path = written(tmp_path / "c", chunks_of_truth(8))
    with Catalog.open(path) as catalog, pytest.raises(CatalogError, match="--build"):
        load_concepts(catalog)
    table, concepts = built(path)
    with CatalogWriter.open(path) as writer:
        writer.replace_concepts(table)
    with Catalog.open(path) as catalog:
        loaded = load_concepts(catalog)
        entry = catalog.manifest.concepts
    assert entry is not None
    for was, now in zip(concepts, loaded, strict=True):
        assert np.array_equal(was.vector, now.vector)
        assert dataclasses.replace(was, vector=now.vector, effect=now.effect) == now
    assert find_concept(loaded, loaded[0].concept_id[:8]) is loaded[0]
    with pytest.raises(InputError):
        find_concept(loaded, "ab")
    with pytest.raises(NotFoundError):
        find_concept(loaded, "f" * 32)
    (path / entry.path).write_bytes(b"PAR1")
    with Catalog.open(path) as catalog, pytest.raises(CatalogError, match="changed file"):
        load_concepts(catalog)
    with CatalogWriter.open(path) as writer:
        writer.commit(chunk_of("later"))
    with Catalog.open(path) as catalog, pytest.raises(CatalogError, match="before the last commit"):
        load_concepts(catalog)


def test_the_schema_shows_its_pictures_to_datasets(truth: Path) -> None:
    with Catalog.open(truth) as catalog:
        forms = {form: form(catalog.layout).schema for form in (written_form, former_form)}
    for form, pictures, columns in ((written_form, 1, set()), (former_form, 2, {"parents", "preview"})):
        schema = forms[form]
        assert schema.metadata is not None
        assert schema.metadata[b"huggingface"].count(b'"_type": "Image"') == pictures
        assert {"x_vector", "h_vector", "effect_vector", "region_id"} | columns <= set(schema.names)


def test_prototypes_keep_the_cosines_of_their_codecs_and_are_stored_again_to_the_byte(truth: Path) -> None:
    with Catalog.open(truth) as catalog:
        found = [
            concept
            for values in concept_building._groups(catalog, ["mouth"])
            for concept in concept_building._concepts(concept_building._group(catalog, values), 0, 0.5, 3)
        ]
        table = concepts_table(found, catalog.layout)
        stored = {concept.concept_id: concept for concept in read_concepts(table, catalog)}
        assert found
        for was in found:
            now = stored[was.concept_id]
            assert float((was.vector * now.vector).sum()) >= catalog.layout.codecs[was.space].cosine  # type: ignore[union-attr]
            assert float((was.effect * now.effect).sum()) >= 0.999
        assert concepts_table(list(stored.values()), catalog.layout).equals(table)


def test_concepts_of_the_former_form_are_read_followed_and_written_in_the_present_one(
    truth: Path, tmp_path: Path
) -> None:
    table, concepts = built(truth)
    old = formerly(table, concepts[0].catalog)
    folder = Path(shutil.copytree(truth, tmp_path / "c"))
    with CatalogWriter.open(folder) as writer:
        writer.replace_concepts(table)
    assert made_former(folder).equals(old)
    assert "concept-codecs" not in manifests.load(folder).required_features
    assert verify(folder).problems == ()
    with Catalog.open(folder) as catalog:
        for now, was in zip(load_concepts(catalog), concepts, strict=True):
            assert (now.concept_id, now.members, now.signs) == (was.concept_id, was.members, was.signs)
            assert float((now.vector * was.vector).sum()) > 0.9999
            assert np.array_equal(now.pictures(), was.pictures())
        assert build_concepts(catalog, former=stored_table(catalog)).equals(table)
        kept = build_concepts(catalog, former=old, regions=["hair"])
    assert kept.select(["concept_id", "members", "effect"]).equals(table.select(["concept_id", "members", "effect"]))
    with CatalogWriter.open(folder) as writer:
        writer.replace_concepts(old)
    assert "concept-codecs" in manifests.load(folder).required_features
    assert verify(folder).problems == ()


def test_a_concept_takes_less_than_a_quarter_of_what_it_took_in_the_shipped_pack() -> None:
    with Catalog.open(SHIPPED) as catalog:
        former = stored_table(catalog)
        assert former is not None and stored_form(catalog.manifest).schema.equals(former_form(catalog.layout).schema)
        now = rewritten(former, stored_form(catalog.manifest), catalog.layout)
        for was, is_ in zip(read_concepts(former, catalog), read_concepts(now, catalog), strict=True):
            assert was.concept_id == is_.concept_id
            assert float((was.vector * is_.vector).sum()) >= 0.9997 * float(np.linalg.norm(was.vector))
            assert float((was.effect * is_.effect).sum()) >= 0.999 * float(np.linalg.norm(was.effect))
        sizes = []
        for rows in (former, now):
            stream = io.BytesIO()
            write_shard(rows, stream, parquet_settings("concepts", rows.schema, catalog.layout))
            sizes.append(len(stream.getvalue()) / rows.num_rows)
    assert sizes[0] > 40_000  # bytes of a concept in the former form, 54,299
    assert sizes[1] < 11_000  # and now, 10,063


def test_of_two_concepts_that_merge_the_one_with_more_members_in_common_gives_its_id() -> None:
    larger, smaller, new = (
        SimpleNamespace(concept_id=key, members=tuple(members), signs=(1,) * len(members))
        for key, members in (("a" * 32, "abcdefghi"), ("b" * 32, "wxyz"), ("c" * 32, "abcdewxy"))
    )
    paired = concept_building._paired([new], [smaller, larger], concept_building._by_members)
    assert paired == {0: (1, 1)}
