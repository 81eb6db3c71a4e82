"""Catalogs that were published without pictures: whole without them, and clear about them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from catalog import manifest as manifests
from catalog.compaction import compact
from catalog.comparing import diff
from catalog.concept_building import build_concepts
from catalog.concepts import load_concepts
from catalog.deposits import Target, write_deposit
from catalog.exporting import export
from catalog.index import build_indexes
from catalog.lookup import homogeneity_of, similar, transfer_candidates
from catalog.merging import merge
from catalog.reader import Catalog
from catalog.schema import LEFT_OUT, TABLES, light_columns, row_group, table_schema
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, ConflictError, InputError, NotFoundError
from tests.catalog.forging import put, rewritten
from tests.catalog.published import published
from tests.catalog.samples import SIZE, alike, chunk_of, provenance, small_catalog
from tests.catalog.test_concepts import chunks_of_truth, written
from tests.catalog.test_manifest import EMPTY, forged

SUBSETS = [names for count in range(len(LEFT_OUT) + 1) for names in combinations(LEFT_OUT, count)]


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two catalogs, a and b, that share no row."""
    folder = tmp_path_factory.mktemp("left-out")
    small_catalog(folder / "a", 1)
    with CatalogWriter.create(folder / "b", provenance()) as writer:
        writer.commit(chunk_of("other", 1, ("mouth",)))
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of known concepts and its indexes, from which everything is left out that can be."""
    folder = tmp_path_factory.mktemp("bare")
    written(folder / "whole", chunks_of_truth(8))
    with CatalogWriter.open(folder / "whole") as writer, Catalog.open(folder / "whole") as catalog:
        writer.replace_concepts(build_concepts(catalog))
    published(folder / "whole", folder / "c", LEFT_OUT)
    build_indexes(folder / "c")
    return folder


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_a_catalog_without_any_of_its_pictures_is_whole_and_merges_and_compacts(
    mined: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    one, two = (published(mined / name, tmp_path / name, names) for name in "ab")
    merge([one, two], tmp_path / "both")
    assert manifests.load(tmp_path / "both").left_out == names
    compact(tmp_path / "both")
    assert verify(one).problems == verify(tmp_path / "both").problems == ()
    with Catalog.open(mined / "a") as whole, Catalog.open(tmp_path / "both") as lean:
        assert lean.manifest.rows("directions") == 15 + 10
        assert len(lean.manifest.shards("directions")) == 1
        for path in (path for table in TABLES for path in lean.manifest.shards(table)):
            assert not set(names) & set(pq.read_schema(lean.folder / path).names)
        for key in (key.decode() for key in whole.ids()):
            assert np.array_equal(lean.vector(key), whole.vector(key))
            assert np.array_equal(lean.effect(key), whole.effect(key))
        assert lean.rows([key], None) == whole.rows([key], None)
        assert [column for column in LEFT_OUT if _refused(lean, column)] == [n for n in names if n != "effect"]


def _refused(catalog: Catalog, column: str) -> bool:
    """Whether reading a column is refused as left out, by its name; `effect` is a picture that nothing reads."""
    image, direction = (catalog.ids(table)[0].decode() for table in ("images", "directions"))
    reads = {
        "image": lambda: catalog.image(image), "latent": lambda: catalog.latent(image),
        "mask": lambda: catalog.mask(image, "mouth"), "preview": lambda: catalog.preview(direction),
        "effect": lambda: catalog.effect(direction),
    }  # fmt: skip
    try:
        reads[column]()
    except NotFoundError as error:
        assert error.field.startswith(f"{column} of ")
        assert error.found == "left out of this pack"
        assert "a picture of your own" in error.action
        return True
    return False


def test_a_record_without_its_preview_is_refused_as_left_out(mined: Path, tmp_path: Path) -> None:
    lean = published(mined / "a", tmp_path / "c", ["preview"])
    with Catalog.open(lean) as catalog, pytest.raises(NotFoundError, match="preview of .*left out of this pack"):
        catalog.direction(catalog.ids()[0].decode())


def test_catalogs_with_other_columns_do_not_merge(mined: Path, tmp_path: Path) -> None:
    lean = published(mined / "b", tmp_path / "b", ["image"])
    with pytest.raises(ConflictError, match=r"left_out.*image.*same columns; nothing was written"):
        merge([mined / "a", lean], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mining_does_not_go_on_with_what_was_published_without_pictures(mined: Path, tmp_path: Path) -> None:
    lean = published(mined / "a", tmp_path / "c", ["image", "mask"])
    with pytest.raises(ConflictError, match=r"published without image, mask.*Choose another --out"):
        CatalogWriter.create(lean, provenance())
    with CatalogWriter.open(lean) as writer:
        with pytest.raises(ConflictError, match=r"published without image, mask.*Mine into another --out"):
            writer.commit(chunk_of("new"))
        deposit = write_deposit(writer.store, "job", "work", chunk_of("new"), Target.of(writer.manifest))
        with pytest.raises(ConflictError, match=r"published without image, mask"):
            writer.adopt([deposit])
    assert verify(lean).ok


def test_columns_that_are_no_pictures_cannot_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"left_out.*gain.*effect, image, latent, mask, preview"):
        CatalogWriter.create(tmp_path / "c", provenance(), left_out=["gain"])
    assert not (tmp_path / "c").exists()


def test_rows_without_latents_are_grouped_by_what_is_left() -> None:
    long = manifests.fresh(provenance(spaces={"x": (3, 512, 512)}))
    short = manifests.fresh(provenance(spaces={"x": (3, 512, 512)}), left_out=["latent"])
    assert row_group("images", long.layout) == 1
    assert row_group("images", short.layout) == 32
    for table in TABLES:
        assert light_columns(table_schema(table, long.layout)) == light_columns(table_schema(table, short.layout))


# -- what a manifest may say -------------------------------------------------------------------------------------------


def schemas(*names: str) -> dict[str, dict[str, str]]:
    """The schemas of a catalog without some columns."""
    found = manifests.fresh(provenance(), left_out=names).schemas
    return {str(table): dict(columns) for table, columns in found.items()}


FEATURES = ["codec-dct", "left-out"]
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "without the feature": ({"left_out": ["image"], "schemas": schemas("image")}, "leaves out left-out"),
    "feature of nothing": ({"required_features": FEATURES}, "names left-out"),
    "an unknown column": ({"left_out": ["gain"], "required_features": FEATURES}, "left_out.0"),
    "no list": ({"left_out": "image", "required_features": FEATURES}, "left_out"),
    "unsorted": ({"left_out": ["mask", "image"], "required_features": FEATURES}, "left_out.*in order"),
    "twice": ({"left_out": ["image", "image"], "required_features": FEATURES}, "left_out.*each once"),
    "none, said": ({"left_out": []}, "other than the canonical one"),
    "a column left out and there": (
        {"left_out": ["image"], "required_features": FEATURES}, r"schemas\.images\.image"),
    "a column neither left out nor there": ({"schemas": schemas("mask")}, r"schemas\.regions\.mask"),
    "a table without a schema": ({"schemas": {}}, r"schemas\.directions"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_that_contradicts_what_it_leaves_out_is_refused_by_name(name: str) -> None:
    changes, words = HOSTILE[name]
    with pytest.raises(CatalogError, match=rf"manifest\.json.*{words}"):
        manifests.parse(forged(**changes))


def test_a_manifest_of_a_whole_catalog_says_nothing_of_columns_and_parts() -> None:
    assert b"left_out" not in manifests.dump(EMPTY)
    assert b'"part"' not in manifests.dump(EMPTY)
    for names in SUBSETS:
        fresh = manifests.fresh(provenance(), left_out=names)
        assert manifests.parse(manifests.dump(fresh)) == fresh


@pytest.mark.parametrize("table", TABLES)
def test_a_shard_with_a_column_that_is_left_out_is_refused_by_name(mined: Path, tmp_path: Path, table: str) -> None:
    column = {"directions": "preview", "images": "image", "regions": "mask"}[table]
    whole, lean = published(mined / "a", tmp_path / "whole"), published(mined / "a", tmp_path / "c", [column])
    rows = pq.read_table(next((whole / table).iterdir()), partitioning=None)
    path = rewritten(lean, table, lambda _: rows)
    (problem,) = verify(lean).problems
    assert problem.file == path
    assert f"{path}: {column}" in problem.what
    with Catalog.open(lean) as catalog, pytest.raises(CatalogError, match=f"{path}: {column}"):
        catalog.ids(table)


def test_pictures_that_are_left_have_one_size_whatever_is_left_out(mined: Path, tmp_path: Path) -> None:
    from tests.catalog.test_hostile import shown

    for number, (names, table, column, picture) in enumerate([
        (["image"], "regions", "mask", shown(2, 2, value=255)),
        (["image", "mask"], "directions", "preview", shown(2, 6, 3)),
    ]):  # fmt: skip
        lean = published(mined / "a", tmp_path / str(number), names)
        path = rewritten(lean, table, put(column, 1, picture))
        assert any(p.file == path and "one size" in p.what for p in verify(lean).problems)


def test_an_area_of_no_pixel_is_wrong_without_its_mask_too(mined: Path, tmp_path: Path) -> None:
    lean = published(mined / "a", tmp_path / "c", ["mask"])
    path = rewritten(lean, "regions", put("area", 0, 0))
    assert [(p.file, "area" in p.what) for p in verify(lean).problems] == [(path, True)]


# -- what is asked of it -----------------------------------------------------------------------------------------------


def test_lookups_exports_and_differences_need_no_picture(bare: Path) -> None:
    assert verify(bare / "c").problems == ()
    with Catalog.open(bare / "whole") as whole, Catalog.open(bare / "c") as lean:
        key = lean.directions(region="mouth", kind="local").column("direction_id")[0].as_py()
        assert len(similar(lean, key, 3, "both")) == 3
        assert export(lean, [key], "npz")
        found = homogeneity_of(lean, key)
        assert not found.moved
        assert found == homogeneity_of(whole, key, move=False)
        assert homogeneity_of(whole, key).agreement > found.agreement
        difference = diff(whole, lean)
        assert difference.same
        assert difference.provenance["left_out"] == ((), tuple(LEFT_OUT))


def test_transfer_goes_by_what_is_there(bare: Path, tmp_path: Path) -> None:
    image, mask = np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, SIZE), bool)
    image[4:9], mask[4:9, 4:9] = 200, True
    with Catalog.open(bare / "whole") as whole, Catalog.open(bare / "c") as lean:
        known = {found.direction_id: found for found in transfer_candidates(whole, image, mask, "mouth", 99)}
        for found in transfer_candidates(lean, image, mask, "mouth", 99):
            assert (found.mask_iou, found.image_similarity, found.shift) == (None, None, None)
            assert found.score == found.effect_inside == known[found.direction_id].effect_inside
    with Catalog.open(published(bare / "whole", tmp_path / "c", ["mask"])) as faceless:
        for found in transfer_candidates(faceless, image, mask, "mouth", 99):
            assert found.image_similarity is not None
            assert found.score == pytest.approx((found.image_similarity + found.effect_inside) / 2)
        with pytest.raises(InputError, match="image size"):
            transfer_candidates(faceless, image[:8], mask[:8], "mouth")


def test_concepts_are_read_without_pictures_and_built_where_directions_lie(bare: Path, tmp_path: Path) -> None:
    with Catalog.open(bare / "whole") as whole, Catalog.open(bare / "c") as lean:
        for one, two in zip(load_concepts(whole), load_concepts(lean), strict=True):
            assert (one.concept_id, one.members) == (two.concept_id, two.members)
            assert np.array_equal(one.vector, two.vector)
            with pytest.raises(NotFoundError, match="left out of this pack"):
                two.pictures()
    again = published(bare / "whole", tmp_path / "c", LEFT_OUT)
    with CatalogWriter.open(again) as writer, Catalog.open(again) as catalog:
        writer.replace_concepts(build_concepts(catalog, least=2, alike=0.2))
    assert verify(again).problems == ()


def test_vectors_come_back_as_their_codec_promises_from_a_catalog_without_pictures(tmp_path: Path, mined: Path) -> None:
    with Catalog.open(published(mined / "b", tmp_path / "c", LEFT_OUT)) as catalog:
        for record in chunk_of("other", 1, ("mouth",)).directions:
            assert alike(catalog.vector(record.direction_id), record.vector)
