"""Parts of packs: parents of directions and members of concepts may be missing from them, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog import manifest as manifests
from catalog.compaction import compact
from catalog.comparing import diff
from catalog.concept_building import build_concepts
from catalog.concept_files import stored_table
from catalog.concepts import disagreeing_images, load_concepts
from catalog.exporting import export
from catalog.index import build_indexes
from catalog.lookup import homogeneity, homogeneity_of, similar, transfer_candidates
from catalog.manifest import PackPart
from catalog.merging import merge
from catalog.reader import Catalog
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, ConflictError
from tests.catalog.forging import put, rewritten
from tests.catalog.published import PART, ids_of, published
from tests.catalog.samples import SIZE, chunk_of, provenance
from tests.catalog.test_concepts import chunks_of_truth, written
from tests.catalog.test_manifest import forged

MERGED = PackPart(repository="org/pack", version="1.2.0", revision="a1" * 20, filters={"merged": (
    "org/other@2.0.0", "org/pack@1.2.0 region=mouth")})  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog with two concepts of eight members each."""
    folder = written(tmp_path_factory.mktemp("parts") / "c", chunks_of_truth(8))
    with CatalogWriter.open(folder) as writer, Catalog.open(folder) as catalog:
        writer.replace_concepts(build_concepts(catalog))
    return folder


@pytest.fixture(scope="module")
def local(whole: Path) -> list[str]:
    """Ids of the local directions of the mouth: members, whose parents are of another kind."""
    return ids_of(whole, region="mouth", kind="local")


@pytest.fixture(scope="module")
def medoids(whole: Path) -> list[str]:
    with Catalog.open(whole) as catalog:
        return [concept.medoid for concept in load_concepts(catalog)]


def told(folder: Path) -> list[str]:
    return [problem.what for problem in verify(folder).problems]


def test_parents_may_be_missing_from_a_part_and_from_nothing_else(
    whole: Path, local: list[str], tmp_path: Path
) -> None:
    part = published(whole, tmp_path / "part", part=PART, keep=local)
    assert verify(part).problems == ()
    assert manifests.load(part).part == PART
    odd = told(published(whole, tmp_path / "c", keep=local))
    assert len(odd) == len(local)
    assert all(": parent " in what for what in odd)


@pytest.mark.parametrize(("table", "column"), [("images", "image_id"), ("regions", "region_id")])
def test_images_and_regions_may_not_be_missing_from_a_part(
    whole: Path, local: list[str], tmp_path: Path, table: str, column: str
) -> None:
    part = published(whole, tmp_path / "part", part=PART, keep=local)
    rewritten(part, table, put(column, 0, "0" * 32))
    assert any("is not in the catalog" in problem.what for problem in verify(part).problems)


def test_members_may_be_missing_but_not_the_medoid(
    whole: Path, local: list[str], medoids: list[str], tmp_path: Path
) -> None:
    part = published(whole, tmp_path / "part", part=PART, keep=medoids)
    assert verify(part).problems == ()
    with Catalog.open(whole) as known, Catalog.open(part) as catalog:
        concepts = load_concepts(catalog)
        assert [c.members for c in concepts] == [c.members for c in load_concepts(known)]
        assert [disagreeing_images(catalog, c) for c in concepts] == [[], []]
        assert all(c.pictures().shape == (SIZE, 3 * SIZE, 3) for c in concepts)
    odd = told(published(whole, tmp_path / "odd", part=PART, keep={*local} - {medoids[0]}))
    assert any(f"member {medoids[0]} is not in the catalog" in what for what in odd)
    broken = told(published(whole, tmp_path / "c", keep=ids_of(whole, kind="singular")))
    assert sum(": member " in what for what in broken) == 16


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("region", "hair", "region hair is not that of its members"),
        ("datasets", ["another"], "datasets are not those of its members"),
        ("image_id", "0" * 32, "are not those of its medoid"),
    ],
)
def test_what_is_there_of_a_concept_must_be_as_it_says(
    whole: Path, medoids: list[str], tmp_path: Path, column: str, value: object, words: str
) -> None:
    part = published(whole, tmp_path / "part", part=PART, keep=medoids)
    path = rewritten(part, "concepts", put(column, 0, value))
    assert [(p.file, words in p.what) for p in verify(part).problems] == [(path, True)]


def test_a_part_is_searched_compared_exported_and_compacted_like_any_catalog(
    whole: Path, local: list[str], tmp_path: Path
) -> None:
    part = published(whole, tmp_path / "part", part=PART, keep=local)
    build_indexes(part)
    compact(part)
    assert verify(part).problems == ()
    assert manifests.load(part).part == PART
    image, mask = np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, SIZE), bool)
    mask[4:9, 4:9] = True
    with Catalog.open(part) as catalog, Catalog.open(whole) as known:
        assert len(similar(catalog, local[0], 5, "both")) == 5
        assert homogeneity_of(catalog, local[0]) == homogeneity_of(known, local[0])
        assert homogeneity(catalog, "mouth") == homogeneity(known, "mouth")
        assert len(transfer_candidates(catalog, image, mask, "mouth", 99)) == len(local)
        assert export(catalog, local, "safetensors") == export(known, local, "safetensors")
        found = diff(known, catalog)
        assert not found.changed
        assert sorted(set(ids_of(whole)) - set(local)) == found.dropped["directions"]
        assert found.added == {"directions": [], "images": [], "regions": []}


def test_concepts_of_a_part_are_built_of_what_is_there_beside_those_that_came_with_it(
    whole: Path, local: list[str], medoids: list[str], tmp_path: Path
) -> None:
    part = published(whole, tmp_path / "part", part=PART, keep=[*medoids, *ids_of(whole, region="hair", kind="local")])
    with CatalogWriter.open(part) as writer, Catalog.open(part) as catalog:
        before = {c.concept_id: c.members for c in load_concepts(catalog)}
        writer.replace_concepts(build_concepts(catalog, former=stored_table(catalog), regions=["hair"], alike=0.01))
    assert verify(part).problems == ()
    with Catalog.open(part) as catalog:
        after = {c.concept_id: c.members for c in load_concepts(catalog)}
    assert before.items() <= after.items()
    assert len(after) > len(before)


def test_parts_merge_to_a_part_that_says_what_it_was_made_of(whole: Path, local: list[str], tmp_path: Path) -> None:
    mouth = published(whole, tmp_path / "mouth", part=PART, keep=local)
    other = PackPart(repository="org/other", version="2.0.0", revision="b2" * 20)
    hair = published(whole, tmp_path / "hair", part=other, keep=ids_of(whole, region="hair", kind="local"))
    merge([mouth, hair], tmp_path / "both")
    assert manifests.load(tmp_path / "both").part == MERGED
    assert verify(tmp_path / "both").problems == ()
    assert merge([mouth, hair], tmp_path / "both").rows["directions"] == 32
    with CatalogWriter.create(tmp_path / "new", provenance()) as writer:
        writer.commit(chunk_of("new", 1))
    merge([tmp_path / "new", tmp_path / "both"], tmp_path / "all")
    assert manifests.load(tmp_path / "all").part == MERGED
    assert verify(tmp_path / "all").problems == ()


def test_mining_does_not_go_on_with_a_part(whole: Path, local: list[str], tmp_path: Path) -> None:
    part = published(whole, tmp_path / "part", part=PART, keep=local)
    with pytest.raises(ConflictError, match=r"a part of org/pack 1\.2\.0.*a whole catalog, as mining makes it"):
        CatalogWriter.create(part, provenance())
    with CatalogWriter.open(part) as writer, pytest.raises(ConflictError, match=r"a part of org/pack 1\.2\.0"):
        writer.commit(chunk_of("new"))
    with pytest.raises(ConflictError, match=r"as mining makes it; expected a part of org/pack 1\.2\.0"):
        CatalogWriter.create(whole, provenance(), part=PART)


FEATURES = ["codec-dct", "part"]
SOUND = PART.model_dump(mode="json")
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "without the feature": ({"part": SOUND, "required_features": ["codec-dct"]}, "leaves out part"),
    "feature of nothing": ({"required_features": FEATURES}, "names part"),
    "none, said": ({"part": None, "required_features": ["codec-dct"]}, "other than the canonical one"),
    "no repository": ({"part": {**SOUND, "repository": "../x"}}, "part.repository"),
    "no version": ({"part": {**SOUND, "version": "latest"}}, "part.version"),
    "no revision": ({"part": {**SOUND, "revision": "main"}}, "part.revision"),
    "another key": ({"part": {**SOUND, "url": "http://x"}}, "part.url"),
    "no filters": ({"part": {key: value for key, value in SOUND.items() if key != "filters"}}, "canonical"),
    "values out of order": ({"part": {**SOUND, "filters": {"region": ["b", "a"]}}}, "part.filters.region"),
    "a value that is long": ({"part": {**SOUND, "filters": {"region": ["a" * 201]}}}, "part.filters.region"),
    "an escape": ({"part": {**SOUND, "filters": {"region": ["\x1b[2J"]}}}, "part.filters.region"),
    "a name that is none": ({"part": {**SOUND, "filters": {"RE GION": ["a"]}}}, "part.filters"),
    "many names": ({"part": {**SOUND, "filters": {f"f{'x' * i}": [] for i in range(17)}}}, "part.filters"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_of_a_part_that_is_none_is_refused_by_name(name: str) -> None:
    changes, words = HOSTILE[name]
    with pytest.raises(CatalogError, match=rf"manifest\.json.*{words}"):
        manifests.parse(forged(**{"required_features": FEATURES, **changes}))


def test_the_forged_part_of_these_tests_parses_where_nothing_is_wrong() -> None:
    assert manifests.parse(forged(required_features=FEATURES, part=SOUND)).part == PART
