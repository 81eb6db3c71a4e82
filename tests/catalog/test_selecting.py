"""Some directions of a catalog as a catalog of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from catalog.compaction import compact
from catalog.fs import inside
from catalog.index import build_indexes
from catalog.reader import Catalog
from catalog.selecting import select_into
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, ConflictError, InputError
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
