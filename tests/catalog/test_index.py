"""Indexes of a catalog: they belong to its version, grow without being built anew, and find what brute force finds."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog import index as indexes
from catalog import manifest as manifests
from catalog.compaction import compact
from catalog.fs import CACHE
from catalog.index import DirectionIndex, build_indexes, check_codes
from catalog.reader import Catalog
from catalog.search import codes, plan
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError
from tests.catalog.samples import chunk_of, provenance, small_catalog

NAMES = ("x", "h", "effect")


@pytest.fixture
def small_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small catalogs get what large ones have: learned sketches, inverted lists, lists mapped from disk."""
    monkeypatch.setattr(plan, "LEARNED_FROM", 8)
    monkeypatch.setattr(plan, "FLAT_UP_TO", 8)
    monkeypatch.setattr(indexes, "_MAPPED_FROM", 0)


def stored(catalog: Catalog, name: str, ids: list[str]) -> np.ndarray:
    return catalog.effects(ids) if name == "effect" else catalog.vectors(ids, name)


def keys_of(catalog: Catalog, name: str) -> list[str]:
    table = catalog.directions() if name == "effect" else catalog.directions(space=name)
    return [str(key) for key in table.column("direction_id").to_pylist()]


def agrees_with_brute_force(catalog: Catalog, name: str) -> None:
    index, keys = DirectionIndex(catalog, name), keys_of(catalog, name)
    assert len(index) == len(keys)
    vectors = stored(catalog, name, keys)
    mask = catalog.select(region="mouth")
    inside = [
        key for key, row in zip(keys, np.searchsorted(catalog.ids(), np.array(keys, "S32")), strict=True) if mask[row]
    ]
    for key, vector in list(zip(keys, vectors, strict=True))[:6]:
        everything = index.search(vector, len(keys) + 5)
        assert everything[0][0] == key
        assert sorted(k for k, _ in everything) == keys
        assert sorted(k for k, _ in index.search(vector, len(keys), mask)) == inside
        assert [(k, -s) for k, s in index.search(-vector, 9)] == index.search(vector, 9)
        exact = dict(zip(keys, (vectors @ vector).tolist(), strict=True))
        assert max(abs(score - exact[k]) for k, score in everything) < 0.35  # five standard errors of 256 entries


@pytest.mark.parametrize("name", NAMES)
def test_an_index_finds_every_direction_by_itself_and_by_its_opposite(tmp_path: Path, name: str) -> None:
    small_catalog(tmp_path / "c")
    assert build_indexes(tmp_path / "c") == {"x": 32, "h": 8, "effect": 40}
    with Catalog.open(tmp_path / "c") as catalog:
        agrees_with_brute_force(catalog, name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("small_plans")
def test_so_does_one_of_inverted_lists_from_memory_and_from_the_cache(tmp_path: Path, name: str) -> None:
    small_catalog(tmp_path / "c", 3)
    build_indexes(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        assert catalog.manifest.indexes[name].spec.kind == "ivf-sq8"
        assert len(list((tmp_path / "c" / CACHE).iterdir())) == 3
        agrees_with_brute_force(catalog, name)
        for path in (tmp_path / "c" / CACHE).iterdir():
            path.unlink()
        agrees_with_brute_force(catalog, name)


def test_a_growing_catalog_encodes_what_is_new_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_catalog(tmp_path / "c", 2)
    build_indexes(tmp_path / "c")
    before = manifests.load(tmp_path / "c").indexes
    with CatalogWriter.open(tmp_path / "c") as writer:
        writer.commit(chunk_of("later"))
    encoded: list[int] = []
    original = indexes.search_vectors

    def counting(catalog: Catalog, name: str, ids: list[str], *rest: object) -> np.ndarray:
        encoded.append(len(ids))
        return original(catalog, name, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(indexes, "search_vectors", counting)
    build_indexes(tmp_path / "c")
    later = chunk_of("later").directions
    assert sum(encoded) == 2 * len(later)  # each direction by its vector and by its effect
    after = manifests.load(tmp_path / "c").indexes
    for name in NAMES:
        assert before[name].codes.items() < after[name].codes.items()
        assert before[name].spec == after[name].spec
    version = manifests.load(tmp_path / "c").version
    build_indexes(tmp_path / "c")
    assert manifests.load(tmp_path / "c").version == version


def test_a_catalog_that_outgrows_its_type_gets_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_catalog(tmp_path / "c", 2)
    build_indexes(tmp_path / "c")
    assert manifests.load(tmp_path / "c").indexes["x"].quantiser is None
    monkeypatch.setattr(plan, "LEARNED_FROM", 8)
    monkeypatch.setattr(plan, "FLAT_UP_TO", 8)
    build_indexes(tmp_path / "c")
    entry = manifests.load(tmp_path / "c").indexes["x"]
    assert (entry.spec.kind, entry.spec.sketch.kind) == ("ivf-sq8", "learned")
    assert entry.quantiser is not None
    listed = {path for e in manifests.load(tmp_path / "c").indexes.values() for path in e.files}
    assert {f"index/{path.name}" for path in (tmp_path / "c" / "index").iterdir()} >= listed
    with Catalog.open(tmp_path / "c") as catalog:
        for name in NAMES:
            agrees_with_brute_force(catalog, name)
            assert list(check_codes(catalog, name)) == []


@pytest.mark.usefixtures("small_plans")
def test_the_order_of_commits_changes_neither_quantiser_nor_codes(tmp_path: Path) -> None:
    chunks, found = [chunk_of(f"chunk-{i}", 1) for i in range(3)], []
    for name, order in (("a", chunks), ("b", chunks[::-1])):
        with CatalogWriter.create(tmp_path / name, provenance()) as writer:
            for chunk in order:
                writer.commit(chunk)
        build_indexes(tmp_path / name)
        found.append(manifests.load(tmp_path / name).indexes)
    assert found[0] == found[1]  # paths hold the digests of the files


@pytest.mark.usefixtures("small_plans")
def test_an_index_goes_on_when_shards_are_merged(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 3)
    build_indexes(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        key = keys_of(catalog, "x")[5]
        before = DirectionIndex(catalog, "x").search(catalog.vector(key).ravel(), 12)
    compact(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        assert len(catalog.manifest.indexes["x"].codes) == 1
        assert DirectionIndex(catalog, "x").search(catalog.vector(key).ravel(), 12) == before
    build_indexes(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        assert DirectionIndex(catalog, "x").search(catalog.vector(key).ravel(), 12) == before


def test_a_missing_stale_or_damaged_index_says_what_to_run(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 1)
    with Catalog.open(tmp_path / "c") as catalog, pytest.raises(CatalogError, match="rhumb index"):
        DirectionIndex(catalog, "x")
    build_indexes(tmp_path / "c")
    with CatalogWriter.open(tmp_path / "c") as writer:
        writer.commit(chunk_of("later"))
    with Catalog.open(tmp_path / "c") as catalog, pytest.raises(CatalogError, match="before the last commit"):
        DirectionIndex(catalog, "x")
    build_indexes(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        path = tmp_path / "c" / next(iter(catalog.manifest.indexes["x"].codes.values()))
        whole = path.read_bytes()
        for spoilt in (whole[:-9], whole[:60] + bytes([whole[60] ^ 1]) + whole[61:], whole[:-20] + b"x" + whole[-19:]):
            path.write_bytes(spoilt)
            with pytest.raises(CatalogError, match="rhumb index|footer"):
                DirectionIndex(catalog, "x")
    build_indexes(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        agrees_with_brute_force(catalog, "x")


def test_codes_of_other_directions_are_refused(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 2)
    build_indexes(tmp_path / "c")
    with CatalogWriter.open(tmp_path / "c") as writer:
        entry = writer.manifest.indexes["x"]
        (one, a), (two, b) = entry.codes.items()
        writer.replace_indexes({"x": entry.model_copy(update={"codes": {one: b, two: a}})}, {})
    with Catalog.open(tmp_path / "c") as catalog:
        with pytest.raises(CatalogError, match="other ids"):
            DirectionIndex(catalog, "x")
        assert [what[:9] for _, what in check_codes(catalog, "x")] == ["other ids", "other ids"]


def test_codes_that_are_not_those_of_their_vectors_are_found(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 1)
    build_indexes(tmp_path / "c")
    with CatalogWriter.open(tmp_path / "c") as writer:
        entry = writer.manifest.indexes["x"]
        ((shard, path),) = entry.codes.items()
        table = pq.read_table(tmp_path / "c" / path, partitioning=None)
        swapped = table.set_column(2, table.schema.field(2), table.column("code").combine_chunks()[::-1])
        pq.write_table(swapped, tmp_path / "swapped")
        data = (tmp_path / "swapped").read_bytes()
        changed = entry.model_copy(update={"codes": {shard: "index/swapped.parquet"}})
        writer.replace_indexes({"x": changed}, {"index/swapped.parquet": (data, len(table))})
    with Catalog.open(tmp_path / "c") as catalog:
        assert [path for path, _ in check_codes(catalog, "x")] == ["index/swapped.parquet"]


def replaced_codes(folder: Path, times: int) -> str:
    """The codes of x as a file that holds each of them several times, listed as it is; its path."""
    with CatalogWriter.open(folder) as writer:
        entry = writer.manifest.indexes["x"]
        ((shard, path),) = entry.codes.items()
        table = pa.concat_tables([pq.read_table(folder / path, partitioning=None)] * times)
        out = io.BytesIO()
        pq.write_table(table, out)
        changed = entry.model_copy(update={"codes": {shard: "index/longer.parquet"}})
        writer.replace_indexes({"x": changed}, {"index/longer.parquet": (out.getvalue(), len(table))})
    return "index/longer.parquet"


def test_more_codes_than_a_shard_has_directions_are_refused_before_any_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_catalog(tmp_path / "c", 1)
    build_indexes(tmp_path / "c")
    path = replaced_codes(tmp_path / "c", 3)
    with monkeypatch.context() as patch, Catalog.open(tmp_path / "c") as catalog:
        patch.setattr(codes, "read", lambda *_: pytest.fail("was read"))
        for use in (lambda: DirectionIndex(catalog, "x"), lambda: list(check_codes(catalog, "x"))):
            with pytest.raises(CatalogError, match=rf"{path}.*48 codes.*16, as directions"):
                use()
    build_indexes(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        agrees_with_brute_force(catalog, "x")


@pytest.mark.usefixtures("small_plans")
def test_more_lists_than_directions_are_refused_before_the_quantiser_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_catalog(tmp_path / "c", 1)
    build_indexes(tmp_path / "c")
    with CatalogWriter.open(tmp_path / "c") as writer:
        entry = writer.manifest.indexes["x"]
        spec = entry.spec.model_copy(update={"lists": 2**20})
        writer.replace_indexes({"x": entry.model_copy(update={"spec": spec})}, {})
    with monkeypatch.context() as patch, Catalog.open(tmp_path / "c") as catalog:
        patch.setattr(indexes, "parse", lambda *_: pytest.fail("was read"))
        with pytest.raises(CatalogError, match=r"lists.*1048576.*at most 16"):
            DirectionIndex(catalog, "x")
    build_indexes(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        agrees_with_brute_force(catalog, "x")


@pytest.mark.usefixtures("small_plans")
def test_an_interrupted_build_keeps_what_it_has_committed_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_catalog(tmp_path / "c", 4)
    small_catalog(tmp_path / "whole", 4)
    build_indexes(tmp_path / "whole")
    monkeypatch.setattr(indexes, "_STAGED", 1)
    original, staged = CatalogWriter.replace_indexes, []

    def counting(self: CatalogWriter, entries: Any, files: Any) -> None:
        if len(staged) == 3:
            raise KeyboardInterrupt
        staged.append(sorted(files))
        original(self, entries, files)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CatalogWriter, "replace_indexes", counting)
        build_indexes(tmp_path / "c")
    assert [len(files) for files in staged] == [1 + 1, 1, 1]  # a shard's codes each, the quantiser with the first
    with Catalog.open(tmp_path / "c") as catalog, pytest.raises(CatalogError, match="rhumb index"):
        DirectionIndex(catalog, "h")
    kept = manifests.load(tmp_path / "c").indexes["h"].codes
    assert len(kept) == 3
    assert build_indexes(tmp_path / "c") == {"x": 64, "h": 16, "effect": 80}
    assert manifests.load(tmp_path / "c").indexes == manifests.load(tmp_path / "whole").indexes
    with Catalog.open(tmp_path / "c") as catalog:
        agrees_with_brute_force(catalog, "x")


@pytest.mark.usefixtures("small_plans")
def test_merged_lists_outlive_compaction_and_what_a_killed_build_left_of_others_goes(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 3)
    build_indexes(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        key = keys_of(catalog, "x")[5]
        before = DirectionIndex(catalog, "x").search(catalog.vector(key).ravel(), 12)
    lists = sorted((tmp_path / "c" / CACHE).iterdir())
    torn = lists[0].with_name(f"{lists[0].name}.99.tmp")
    torn.write_bytes(b"half")
    fetched = lists[0].with_name("0123456789abcdef.tmp")  # by a reader, just now
    fetched.write_bytes(b"half")
    compact(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        for path in catalog.manifest.indexes["x"].codes.values():
            (tmp_path / "c" / path).unlink()  # it is searched by its merged lists alone
        assert DirectionIndex(catalog, "x").search(catalog.vector(key).ravel(), 12) == before
    build_indexes(tmp_path / "c")
    assert sorted((tmp_path / "c" / CACHE).iterdir()) == sorted([*lists, fetched])
    with CatalogWriter.open(tmp_path / "c") as writer:
        writer.commit(chunk_of("later"))
    build_indexes(tmp_path / "c")
    assert not {path.name for path in lists} & {path.name for path in (tmp_path / "c" / CACHE).iterdir()}


def test_damaged_codes_are_not_merged(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 2)
    build_indexes(tmp_path / "c")
    paths = {path for entry in manifests.load(tmp_path / "c").indexes.values() for path in entry.codes.values()}
    path = tmp_path / "c" / sorted(paths)[0]
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.set_column(2, table.schema.field(2), table.column("code").combine_chunks()[::-1]), path)
    before = manifests.load(tmp_path / "c").shards("directions")
    with pytest.raises(CatalogError, match=r"changed file.*rhumb index"):
        compact(tmp_path / "c")
    assert manifests.load(tmp_path / "c").shards("directions") == before
    build_indexes(tmp_path / "c")
    compact(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        assert [list(check_codes(catalog, name)) for name in NAMES] == [[], [], []]


def test_an_empty_catalog_has_empty_indexes(tmp_path: Path) -> None:
    CatalogWriter.create(tmp_path / "c", provenance()).close()
    assert build_indexes(tmp_path / "c") == {"x": 0, "h": 0, "effect": 0}
    with Catalog.open(tmp_path / "c") as catalog:
        assert DirectionIndex(catalog, "h").search(np.ones(64, np.float32), 3) == []


@pytest.mark.parametrize(
    ("kind", "dimension", "size"), [("identity", 64, 128), ("identity", 1024, 2048), ("srht", 1024, 2048)]
)
def test_a_sketch_that_does_not_belong_to_the_vectors_is_refused(
    tmp_path: Path, kind: str, dimension: int, size: int
) -> None:
    small_catalog(tmp_path / "c", 1)
    build_indexes(tmp_path / "c")
    value = manifests.load(tmp_path / "c").model_dump()
    spec = value["indexes"]["h" if kind == "srht" else "x"]["spec"]
    spec |= {"sketch": {"kind": kind, "dimension": dimension, "seed": 0}, "code_size": size}
    (tmp_path / "c" / "manifest.json").write_bytes(manifests.dump(manifests.Manifest.model_validate(value)))
    with Catalog.open(tmp_path / "c") as catalog, pytest.raises(CatalogError, match="sketch"):
        DirectionIndex(catalog, "h" if kind == "srht" else "x")


def test_damaged_index_files_are_one_clear_error_and_never_end_the_process(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 1)
    done = subprocess.run(
        [sys.executable, "-m", "tests.catalog.fuzz_driver", str(tmp_path / "c")],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert set(counts) <= {"refused", "read", "missed"}, counts
    assert counts["missed"] == 0
    assert counts["refused"] > 100
