"""Some directions of a catalog as a catalog of their own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catalog.compaction import compact
from catalog.fs import inside
from catalog.index import build_indexes
from catalog.manifest import PackPart
from catalog.reader import Catalog
from catalog.selecting import select_into
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, ConflictError, InputError, NotFoundError
from tests.catalog.samples import chunk_of, failed_chunk, provenance, small_catalog


@pytest.fixture
def source(tmp_path: Path) -> Path:
    small_catalog(tmp_path / "source", chunks=3)
    with CatalogWriter.open(tmp_path / "source") as writer:
        writer.commit(failed_chunk("failed", "broken"))
    return tmp_path / "source"


def without_one_image(catalog: Catalog) -> np.ndarray:
    """All rows but those of the first image: its parents and what is derived from them go together."""
    image = catalog.images().column("image_id")[0].as_py()
    return ~catalog.select(image_id=image)


def shards(folder: Path, table: str) -> dict[str, bytes]:
    with Catalog.open(folder) as catalog:
        return {path: inside(folder, path).read_bytes() for path in catalog.manifest.shards(table)}


def test_a_selection_has_the_rows_that_stay_as_they_were_and_passes_verification(source: Path, tmp_path: Path) -> None:
    with Catalog.open(source) as catalog:
        keep = without_one_image(catalog)
        select_into(catalog, tmp_path / "out", keep)
        with Catalog.open(tmp_path / "out") as chosen:
            ids = catalog.ids()[keep]
            assert np.array_equal(chosen.ids(), ids)
            assert 0 < len(ids) < len(catalog.ids())
            assert chosen.directions().to_pylist() == [
                row for row, kept in zip(catalog.directions().to_pylist(), keep, strict=True) if kept
            ]
            for key in (ids[0].decode(), ids[-1].decode()):
                assert np.array_equal(chosen.vector(key), catalog.vector(key))
                assert np.array_equal(chosen.preview(key), catalog.preview(key))
            assert chosen.images().equals(catalog.images())
            assert chosen.manifest.failed_images == catalog.manifest.failed_images
    build_indexes(tmp_path / "out")
    assert verify(tmp_path / "out").problems == ()


def test_shards_whose_rows_all_stay_are_the_same_bytes_and_the_same_selection_gives_the_same_shards(
    source: Path, tmp_path: Path
) -> None:
    with Catalog.open(source) as catalog:
        keep = without_one_image(catalog)
        for name in ("one", "two"):
            select_into(catalog, tmp_path / name, keep)
    assert shards(tmp_path / "one", "directions") == shards(tmp_path / "two", "directions")
    before, after = shards(source, "directions"), shards(tmp_path / "one", "directions")
    assert len(before.items() & after.items()) == len(before) - 1
    for table in ("images", "regions"):
        assert shards(source, table) == shards(tmp_path / "one", table)


def test_rows_are_selected_out_of_compacted_shards_too(source: Path, tmp_path: Path) -> None:
    compact(source)
    with Catalog.open(source) as catalog:
        keep = without_one_image(catalog)
        select_into(catalog, tmp_path / "out", keep)
        assert np.array_equal(Catalog.open(tmp_path / "out").ids(), catalog.ids()[keep])
    assert verify(tmp_path / "out").problems == ()


def test_what_lies_in_a_distant_store_is_fetched_to_be_selected_from(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHUMB_CACHE", str(tmp_path / "cache"))
    url = f"memory://{tmp_path.name}"
    with CatalogWriter.create(url, provenance()) as writer:
        writer.commit(chunk_of("far"))
    shutil.rmtree(tmp_path / "cache")
    with Catalog.open(url) as catalog:
        keep = without_one_image(catalog)
        select_into(catalog, tmp_path / "out", keep)
        assert np.array_equal(Catalog.open(tmp_path / "out").ids(), catalog.ids()[keep])


def test_all_and_none_are_selections_too(source: Path, tmp_path: Path) -> None:
    with Catalog.open(source) as catalog:
        for name, value in (("all", True), ("none", False)):
            select_into(catalog, tmp_path / name, np.full(len(catalog.ids()), value))
            assert verify(tmp_path / name).problems == ()
    assert shards(tmp_path / "all", "directions") == shards(source, "directions")
    assert shards(tmp_path / "none", "directions") == {}


def test_a_direction_is_never_selected_without_its_parents(source: Path, tmp_path: Path) -> None:
    with Catalog.open(source) as catalog:
        with pytest.raises(InputError, match="without its parent"):
            select_into(catalog, tmp_path / "out", catalog.select(kind="local"))
        with pytest.raises(InputError, match="one for each direction"):
            select_into(catalog, tmp_path / "out", np.ones(3, dtype=bool))
    assert not (tmp_path / "out").exists()


def test_a_selection_goes_into_a_new_folder_only(source: Path, tmp_path: Path) -> None:
    small_catalog(tmp_path / "there", chunks=1)
    with Catalog.open(source) as catalog:
        keep = np.ones(len(catalog.ids()), dtype=bool)
        with pytest.raises(ConflictError, match="a new folder"):
            select_into(catalog, tmp_path / "there", keep)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "mine.txt").write_text("keep me")
        with pytest.raises(ConflictError):
            select_into(catalog, tmp_path / "other", keep)


def test_nothing_is_selected_from_a_damaged_shard(source: Path, tmp_path: Path) -> None:
    with Catalog.open(source) as catalog:
        path = inside(source, catalog.manifest.shards("images")[0])
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        keep = np.ones(len(catalog.ids()), dtype=bool)
        path.write_bytes(bytes(data))
        with pytest.raises(CatalogError):
            select_into(catalog, tmp_path / "out", keep)
    with CatalogWriter.create(tmp_path / "out", provenance()) as writer:
        assert not writer.manifest.chunks


# -- chunks ------------------------------------------------------------------------------------------------------------


def chunks(folder: Path) -> dict[str, str]:
    """Digest by chunk id."""
    with Catalog.open(folder) as catalog:
        return {name: entry.digest for name, entry in catalog.manifest.chunks.items()}


def select(source: Path, out: Path, choose: Callable[[Catalog], np.ndarray]) -> Path:
    with Catalog.open(source) as catalog:
        return select_into(catalog, out, choose(catalog))


def of_chunk(catalog: Catalog, name: str) -> np.ndarray:
    with catalog.chunk(name) as chunk:
        return np.isin(catalog.ids(), chunk.ids())


def test_a_chunk_whose_rows_all_stay_is_the_same_chunk(source: Path, tmp_path: Path) -> None:
    before = chunks(source)
    assert chunks(select(source, tmp_path / "all", lambda c: np.ones(len(c.ids()), bool))) == before
    after = chunks(select(source, tmp_path / "some", without_one_image))
    assert len(after.items() & before.items()) == len(before) - 1
    (new,) = after.keys() - before.keys()
    assert after[new] == new


def test_the_digest_of_a_chunk_follows_from_the_ids_it_holds_whatever_was_left_out(
    source: Path, tmp_path: Path
) -> None:
    lasting = select(source, tmp_path / "at once", without_one_image)
    first = select(source, tmp_path / "first", lambda c: without_one_image(c) & ~c.select(kind="local"))
    assert chunks(first).keys().isdisjoint(set(chunks(lasting)) - {"failed"})
    again = select(lasting, tmp_path / "again", lambda c: ~c.select(kind="local"))
    assert chunks(again) == chunks(first)


def test_chunks_that_share_a_shard_become_one_only_where_rows_go(source: Path, tmp_path: Path) -> None:
    before = chunks(source)
    compact(source)
    assert chunks(select(source, tmp_path / "all", lambda c: np.ones(len(c.ids()), bool))) == before
    with CatalogWriter.open(source) as writer:
        writer.commit(chunk_of("later"))
    after = chunks(select(source, tmp_path / "some", without_one_image))
    assert {"later", "failed"} <= set(after) and len(after) == 3
    assert verify(tmp_path / "some").problems == ()


def test_a_chunk_of_which_nothing_stays_but_its_images_is_one_of_images(source: Path, tmp_path: Path) -> None:
    select(source, tmp_path / "out", lambda c: ~of_chunk(c, "chunk-1"))
    with Catalog.open(tmp_path / "out") as catalog:
        rows = [dict(entry.rows) for name, entry in catalog.manifest.chunks.items() if name == entry.digest]
        assert rows == [{"directions": 0, "images": 2, "regions": 4}]
    assert verify(tmp_path / "out").problems == ()


# -- parts -------------------------------------------------------------------------------------------------------------

PART = PackPart(repository="org/pack", version="1.0.0", revision="a" * 40, filters={"regions": ("mouth",)})


@pytest.mark.parametrize("left_out", [(), ("preview",), ("effect", "image", "latent", "mask", "preview")])
def test_a_part_holds_only_what_its_directions_need(source: Path, tmp_path: Path, left_out: tuple[str, ...]) -> None:
    with Catalog.open(source) as catalog:
        first = catalog.images().column("image_id")[0].as_py()
        keep = catalog.select(region="mouth", kind="local", image_id=first)
        select_into(catalog, tmp_path / "out", keep, left_out, PART)
        with Catalog.open(tmp_path / "out") as own:
            ids = [key.decode() for key in catalog.ids()[keep]]
            assert [key.decode() for key in own.ids()] == ids
            assert own.rows(ids) == catalog.rows(ids)
            assert np.array_equal(own.vectors(ids, "x"), catalog.vectors(ids, "x"))
            assert [key.decode() for key in own.ids("images")] == [first]
            assert own.regions().column("region").to_pylist() == ["mouth"]
            assert own.manifest.left_out == left_out
            assert own.manifest.part == PART
            assert (own.manifest.failed_images, own.manifest.pictures) == ({}, {})
    build_indexes(tmp_path / "out")
    assert verify(tmp_path / "out").problems == ()


def test_columns_are_left_out_of_a_selection_and_stay_left_out(source: Path, tmp_path: Path) -> None:
    with Catalog.open(source) as catalog:
        keep = np.ones(len(catalog.ids()), dtype=bool)
        select_into(catalog, tmp_path / "one", keep, ("preview",))
    with Catalog.open(tmp_path / "one") as catalog:
        select_into(catalog, tmp_path / "two", keep, ("latent",))
        assert chunks(tmp_path / "one") == chunks(tmp_path / "two") == chunks(source)
    with Catalog.open(tmp_path / "two") as catalog:
        assert catalog.manifest.left_out == ("latent", "preview")
        with pytest.raises(NotFoundError, match="left out"):
            catalog.preview(catalog.ids()[0].decode())
    assert verify(tmp_path / "two").problems == ()


def test_of_a_shard_only_row_groups_with_rows_that_stay_are_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.schema.ROW_GROUP", 4)
    compact(source)
    read: list[int | None] = []
    real = Catalog._read

    def noted(self: Catalog, path: str, group: int | None, columns: Sequence[str]) -> pa.Table:
        if "preview" in columns and path.startswith("directions"):
            read.append(group)
        return real(self, path, group, columns)

    monkeypatch.setattr(Catalog, "_read", noted)
    with Catalog.open(source) as catalog:
        keep = catalog.select(space="h", region="hair")
        select_into(catalog, tmp_path / "out", keep, (), PART)
        groups = catalog.manifest.rows("directions") // 4
    assert None not in read
    assert 0 < len(read) < groups / 2
