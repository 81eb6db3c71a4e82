"""Catalogs laid out as versions of a pack: what is written anew, what is taken over, and that nothing is lost."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog import manifest as manifests
from catalog.canonical import sealed
from catalog.compaction import compact
from catalog.concept_building import build_concepts
from catalog.concept_files import stored_table
from catalog.fs import CARD, MANIFEST, sha256_of
from catalog.hub import arranging, reuse, waiting
from catalog.hub.arranging import Arranged, arrange
from catalog.hub.parts import part_name, part_of
from catalog.hub.reuse import reuse_of
from catalog.index import DirectionIndex, build_indexes
from catalog.manifest import Manifest, PackInfo
from catalog.pictures import encode_png
from catalog.places import texts
from catalog.reader import Catalog
from catalog.records import Chunk, content_id
from catalog.schema import LEFT_OUT, TABLES
from catalog.verify import check_content, verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, NotFoundError
from tests.catalog.samples import chunk_of, failed_chunk, provenance

PACK = PackInfo(repository="org/pack", version="1.0.0")
NEXT = PackInfo(repository="org/pack", version="1.1.0")


def catalog_of(folder: Path, *chunks: Chunk) -> Path:
    with CatalogWriter.create(folder, provenance()) as writer:
        for chunk in chunks:
            writer.commit(chunk)
    return folder


def some(count: int, first: int = 0) -> list[Chunk]:
    return [chunk_of(f"chunk-{i}", images=1) for i in range(first, first + count)]


def arranged(
    source: Path, into: Path, former: Manifest | None = None, pack: PackInfo = PACK, **options: object
) -> Arranged:
    into.mkdir(parents=True)
    with Catalog.open(source) as catalog:
        return arrange(catalog, pack, former, into, **options).with_card(b"# card\n")  # type: ignore[arg-type]


def assembled(version: Arranged, into: Path, former: Path | None = None) -> Path:
    """The whole pack in one folder, as a hub would have it: what is new, and the rest from the version before."""
    for name in version.manifest.files:
        origin = version.places.get(name, former / name if former is not None else None)
        assert origin is not None, name
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin, into / name)
        assert sha256_of(into / name) == version.manifest.files[name].sha256
    (into / MANIFEST).write_bytes(manifests.dump(version.manifest))
    return into


def rows_of(folder: Path) -> dict[str, list[dict[str, object]]]:
    with Catalog.open(folder) as catalog:
        read = {"directions": catalog.directions(), "images": catalog.images(), "regions": catalog.regions()}
        return {table: rows.to_pylist() for table, rows in read.items()}


def assert_same_content(one: Path, two: Path) -> None:
    """The same rows, vectors, effects and pictures under the same ids."""
    assert rows_of(one) == rows_of(two)
    with Catalog.open(one) as first, Catalog.open(two) as second:
        ids = texts(first.ids())
        assert np.array_equal(first.effects(ids), second.effects(ids))
        for space in first.layout.spaces:
            own = texts(first.ids()[first.select(space=space)])
            assert np.array_equal(first.vectors(own, space), second.vectors(own, space))
        for key in ids[:3]:
            assert np.array_equal(first.preview(key), second.preview(key))
        for key in texts(first.ids("images"))[:2]:
            assert np.array_equal(first.image(key), second.image(key))
            assert np.array_equal(first.latent(key), second.latent(key))
            assert np.array_equal(first.mask(key, "mouth"), second.mask(key, "mouth"))


def new_bytes(version: Arranged) -> int:
    return sum(version.manifest.files[name].bytes for name in version.places)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = catalog_of(tmp_path / "source", *some(4), failed_chunk("failed", "broken"))
    build_indexes(folder)
    return folder


def test_a_shard_of_a_pack_holds_one_region_of_one_data_set_and_is_named_after_it(source: Path, tmp_path: Path) -> None:
    version = arranged(source, tmp_path / "new")
    pack = assembled(version, tmp_path / "pack")
    with Catalog.open(pack) as catalog:
        for path in catalog.manifest.shards("directions"):
            rows = catalog.whole_shards("directions", [path]).select(["dataset", "region"]).to_pylist()
            assert {part_name(row["dataset"], row["region"]) for row in rows} == {part_of(path)}
            assert path.split("-")[-1].startswith(sha256_of(pack / path)[:16])
    assert {part_of(path) for path in catalog.manifest.shards("directions")} == {"random.hair", "random.mouth"}


def test_a_pack_has_the_rows_of_its_catalog_and_passes_verification(source: Path, tmp_path: Path) -> None:
    version = arranged(source, tmp_path / "new")
    pack = assembled(version, tmp_path / "pack")
    assert verify(pack).problems == ()
    assert check_content(pack, version.manifest) == []
    assert_same_content(pack, source)
    before = manifests.load(source)
    assert version.manifest.pack == PACK
    assert version.manifest.chunks.keys() == before.chunks.keys()
    assert version.manifest.directions_fingerprint == before.directions_fingerprint
    assert version.manifest.failed_images == before.failed_images


def test_a_search_in_a_pack_finds_what_one_in_its_catalog_finds(source: Path, tmp_path: Path) -> None:
    pack = assembled(arranged(source, tmp_path / "new"), tmp_path / "pack")
    with Catalog.open(source) as one, Catalog.open(pack) as two:
        for name in ("x", "h", "effect"):
            keys = texts(one.ids() if name == "effect" else one.ids()[one.select(space=name)])[:1]
            query = (one.effects(keys) if name == "effect" else one.vectors(keys, name))[0]
            found, expected = (DirectionIndex(catalog, name).search(query, 5) for catalog in (two, one))
            assert found == expected
            assert found[0][0] == keys[0]


def test_the_same_catalog_is_laid_out_in_the_same_bytes(source: Path, tmp_path: Path) -> None:
    versions = [arranged(source, tmp_path / name) for name in ("one", "two")]
    assert manifests.dump(versions[0].manifest) == manifests.dump(versions[1].manifest)
    for name, place in versions[0].places.items():
        assert place.read_bytes() == versions[1].places[name].read_bytes()


def test_nothing_is_written_again_of_chunks_that_are_the_same(source: Path, tmp_path: Path) -> None:
    first = arranged(source, tmp_path / "first")
    with CatalogWriter.open(source) as writer:
        for chunk in some(1, first=9):
            writer.commit(chunk)
    build_indexes(source)
    second = arranged(source, tmp_path / "second", first.manifest, NEXT)
    shards = [path for table in TABLES for path in first.manifest.shards(table)]
    assert set(shards) <= set(second.reused)
    codes = {path for entry in first.manifest.indexes.values() for path in entry.files}
    assert codes <= set(second.reused)
    former = assembled(first, tmp_path / "former")
    pack = assembled(second, tmp_path / "pack", former)
    assert verify(pack).problems == ()
    assert_same_content(pack, source)


def test_rows_of_a_chunk_that_went_go_and_those_beside_them_stay(tmp_path: Path) -> None:
    one = catalog_of(tmp_path / "one", *some(4))
    two = catalog_of(tmp_path / "two", *some(4)[1:])
    for folder in (one, two):
        build_indexes(folder)
    first = arranged(one, tmp_path / "first")
    second = arranged(two, tmp_path / "second", first.manifest, NEXT)
    pack = assembled(second, tmp_path / "pack", assembled(first, tmp_path / "former"))
    assert verify(pack).problems == ()
    assert_same_content(pack, two)


def test_only_shards_that_lose_rows_are_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "BUFFER_BYTES", 0)  # a shard for each chunk and part
    one = catalog_of(tmp_path / "one", *some(5))
    first = arranged(one, tmp_path / "first")
    second = arranged(catalog_of(tmp_path / "two", *some(5)[1:]), tmp_path / "second", first.manifest, NEXT)
    assert set(second.places) == {CARD}
    assert len(second.reused) == len(first.manifest.files) - 1 - 4  # its two shards of directions, image and regions


def test_a_chunk_whose_directions_changed_takes_only_its_own_parts_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "BUFFER_BYTES", 0)
    chunks = some(3)
    changed = Chunk(chunks[0].chunk_id, chunks[0].images, chunks[0].regions, chunks[0].directions[:-1])
    first = arranged(catalog_of(tmp_path / "one", *chunks), tmp_path / "first")
    two = catalog_of(tmp_path / "two", changed, *chunks[1:])
    second = arranged(two, tmp_path / "second", first.manifest, NEXT)
    assert {part_of(name) for name in second.places} == {None, "random.hair"}  # mouth is the same to the byte
    pack = assembled(second, tmp_path / "pack", assembled(first, tmp_path / "former"))
    assert verify(pack).problems == ()
    assert_same_content(pack, two)


def test_five_hundredths_more_directions_send_at_most_seven_hundredths(tmp_path: Path) -> None:
    chunks = [chunk_of(f"c{i}", images=4, size=32) for i in range(21)]
    source = tmp_path / "source"
    with CatalogWriter.create(source, provenance(spaces={"x": (3, 32, 32), "h": (4, 4, 4)})) as writer:
        for chunk in chunks[:20]:
            writer.commit(chunk)
    build_indexes(source)
    first = arranged(source, tmp_path / "first")
    with CatalogWriter.open(source) as writer:
        writer.commit(chunks[20])
    build_indexes(source)
    second = arranged(source, tmp_path / "second", first.manifest, NEXT)
    whole = sum(entry.bytes for entry in second.manifest.files.values())
    sent = new_bytes(second) + len(manifests.dump(second.manifest))
    assert 0.03 * whole < sent <= 0.07 * whole


def test_a_compacted_catalog_is_laid_out_too_and_one_that_was_published_before_it_keeps_every_row(
    source: Path, tmp_path: Path
) -> None:
    first = arranged(source, tmp_path / "first")
    compact(source)
    same = arranged(source, tmp_path / "same", first.manifest, NEXT)
    assert set(same.places) == {CARD}
    with CatalogWriter.open(source) as writer:
        writer.commit(chunk_of("later", images=1))
    compact(source)
    build_indexes(source)
    second = arranged(source, tmp_path / "second", first.manifest, NEXT)
    pack = assembled(second, tmp_path / "pack", assembled(first, tmp_path / "former"))
    assert verify(pack).problems == ()
    assert_same_content(pack, source)


def test_what_was_compacted_with_new_rows_is_told_from_them_by_the_images_of_the_version_before(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arranging, "BATCH_BYTES", 1)  # row group by row group
    first = arranged(source, tmp_path / "first")
    former = assembled(first, tmp_path / "former")
    with CatalogWriter.open(source) as writer:
        writer.commit(chunk_of("later", images=1))
    build_indexes(source)
    compact(source)
    assert len(manifests.load(source).shards("directions")) == 1
    with Catalog.open(former) as before:
        images = partial(before.ids, "images")
        second = arranged(source, tmp_path / "second", first.manifest, NEXT, images_before=images)
    shards = {path for table in TABLES for path in first.manifest.shards(table)}
    assert shards <= set(second.reused)
    pack = assembled(second, tmp_path / "pack", former)
    assert verify(pack).problems == ()
    assert_same_content(pack, source)
    one, two = first.manifest.chunks, second.manifest.chunks
    assert {name: two[name] for name in one} == dict(one)


def test_many_small_shards_of_a_part_are_joined(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "MANY", 3)
    place: Path | None = None
    version: Arranged | None = None
    counts = []
    for number in range(4):
        with CatalogWriter.open(source) as writer:
            writer.commit(chunk_of(f"night-{number}", images=1))
        version = arranged(source, tmp_path / f"new-{number}", version.manifest if version is not None else None)
        place = assembled(version, tmp_path / f"pack-{number}", place)
        counts.append(len(version.manifest.shards("directions")))
    assert counts == [2, 4, 6, 2]
    assert place is not None
    assert verify(place).problems == ()
    assert_same_content(place, source)


def test_a_shard_that_says_another_region_than_its_rows_is_refused(source: Path, tmp_path: Path) -> None:
    version = arranged(source, tmp_path / "new")
    pack = assembled(version, tmp_path / "pack")
    path = next(name for name in version.manifest.shards("directions") if "mouth" in name)
    wrong = path.replace("random.mouth", "random.nose")
    text = manifests.dump(version.manifest).decode().replace(path, wrong)
    (pack / path).rename(pack / wrong)
    value = json.loads(text)
    value.pop("checksum")
    (pack / MANIFEST).write_bytes(sealed(value))
    problems = verify(pack).problems
    assert [problem.file for problem in problems] == [wrong] * len(problems)
    assert "mouth of random" in problems[0].what


def test_codes_are_made_anew_where_the_quantiser_is_another(source: Path, tmp_path: Path) -> None:
    first = arranged(source, tmp_path / "first")
    assert first.manifest.indexes["x"].spec.sketch.kind == "srht"
    with CatalogWriter.open(source) as writer:
        writer.replace_indexes({}, {})
    build_indexes(source, seed=3)
    second = arranged(source, tmp_path / "second", first.manifest, NEXT)
    assert set(first.manifest.shards("directions")) <= set(second.reused)
    pack = assembled(second, tmp_path / "pack", assembled(first, tmp_path / "former"))
    assert manifests.load(pack).indexes["x"].spec.sketch.seed == 3
    assert verify(pack).problems == ()


def test_an_index_that_is_not_whole_is_left_out(source: Path, tmp_path: Path) -> None:
    with CatalogWriter.open(source) as writer:
        writer.commit(chunk_of("later", images=1))
    version = arranged(source, tmp_path / "new")
    assert version.manifest.indexes == {}
    assert verify(assembled(version, tmp_path / "pack")).problems == ()


def with_concepts(folder: Path) -> None:
    with CatalogWriter.open(folder) as writer, Catalog(folder, writer.manifest) as catalog:
        writer.replace_concepts(build_concepts(catalog, least=1))


def test_concepts_travel_where_they_are_of_the_directions(source: Path, tmp_path: Path) -> None:
    with_concepts(source)
    version = arranged(source, tmp_path / "new")
    pack = assembled(version, tmp_path / "pack")
    assert verify(pack).problems == ()
    with Catalog.open(source) as catalog, Catalog.open(pack) as published:
        table = stored_table(catalog)
        assert table is not None and table.num_rows
        assert stored_table(published) == table
    with CatalogWriter.open(source) as writer:
        writer.commit(chunk_of("later", images=1))
    assert arranged(source, tmp_path / "later").manifest.concepts is None


def test_a_pack_without_pictures_holds_none_and_is_whole(source: Path, tmp_path: Path) -> None:
    with_concepts(source)
    with CatalogWriter.open(source) as writer, Catalog(source, writer.manifest) as catalog:
        key = texts(catalog.ids("images"))[0]
        shown, latent = catalog.image(key), catalog.latent(key)
        writer.add_picture("sheet", _png())
    version = arranged(source, tmp_path / "new", left_out=LEFT_OUT)
    pack = assembled(version, tmp_path / "pack")
    assert verify(pack).problems == ()
    assert version.manifest.left_out == tuple(sorted(LEFT_OUT))
    assert version.manifest.pictures == {}
    for path in pack.rglob("*"):
        assert not path.is_file() or b"\x89PNG" not in path.read_bytes()
        assert not path.is_file() or latent.tobytes()[:64] not in path.read_bytes()
    with Catalog.open(pack) as catalog, Catalog.open(source) as before:
        assert texts(catalog.ids()) == texts(before.ids())
        assert np.array_equal(catalog.effects(texts(catalog.ids())), before.effects(texts(before.ids())))
        assert catalog.images().column("source").to_pylist() == before.images().column("source").to_pylist()
        with pytest.raises(NotFoundError, match="left out"):
            catalog.image(key)
    assert shown.size


def _png() -> bytes:
    return encode_png(np.zeros((4, 4, 3), np.uint8))


def test_pictures_travel_by_their_names(source: Path, tmp_path: Path) -> None:
    with CatalogWriter.open(source) as writer:
        writer.add_picture("sheet", _png())
    version = arranged(source, tmp_path / "new", pictures={"a b/c": _png(), "sheet": b"other"})
    assert sorted(version.manifest.pictures) == ["a b/c", "sheet"]
    assert verify(assembled(version, tmp_path / "pack")).problems == ()


def test_rows_wait_in_bounded_memory_whatever_the_size_of_the_catalog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "SHARD_BYTES", 200_000)
    monkeypatch.setattr(waiting, "BUFFER_BYTES", 300_000)
    held: list[int] = []
    settle = waiting.Sorter.settle

    def counted(self: waiting.Sorter) -> None:
        held.append(self.held)
        settle(self)
        assert self.held <= waiting.BUFFER_BYTES

    monkeypatch.setattr(waiting.Sorter, "settle", counted)
    source = catalog_of(tmp_path / "source", *some(16))
    version = arranged(source, tmp_path / "new")
    largest = max(entry.bytes for entry in manifests.load(source).files.values())
    assert max(held) <= waiting.BUFFER_BYTES + 2 * largest
    assert len(version.manifest.shards("directions")) > 4
    assert verify(assembled(version, tmp_path / "pack")).problems == ()


def test_names_of_regions_and_data_sets_never_reach_a_path(tmp_path: Path) -> None:
    regions = ("../../etc", "Mund & Lippen", "口", "a" * 150, "mouth", "Mouth", "x.y-0123456789abcdef")
    source = catalog_of(tmp_path / "source", chunk_of("odd", images=1, regions=regions))
    version = arranged(source, tmp_path / "new")
    assert verify(assembled(version, tmp_path / "pack")).problems == ()
    parts = {part_of(path) for path in version.manifest.shards("directions")}
    assert len(parts) == len(regions)
    assert all(len(part) <= 81 and set(part) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") for part in parts if part)


def test_a_damaged_shard_is_never_laid_out(source: Path, tmp_path: Path) -> None:
    path = source / manifests.load(source).shards("directions")[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CatalogError):
        arranged(source, tmp_path / "new")


def test_a_former_version_of_another_layout_or_kind_is_not_taken_over(source: Path, tmp_path: Path) -> None:
    first = arranged(source, tmp_path / "first")
    without = arranged(source, tmp_path / "second", first.manifest, NEXT, left_out=("preview",))
    assert not [name for name in without.reused if name.startswith("directions/")]
    plain = arranged(source, tmp_path / "third", manifests.load(source), NEXT)  # shards named by no part
    assert plain.places.keys() == first.places.keys()


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_came_went_and_was_compacted_each_version_has_the_rows_of_its_catalog(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("versions")
    monkeypatch.setattr(waiting, "SHARD_BYTES", data.draw(st.sampled_from([2_000, 60_000, 2**26])))
    monkeypatch.setattr(waiting, "BUFFER_BYTES", data.draw(st.sampled_from([0, 2**26])))
    chunks = some(4)
    former: Arranged | None = None
    place: Path | None = None
    for number in range(3):
        held = data.draw(st.lists(st.sampled_from(chunks), unique_by=lambda c: c.chunk_id, min_size=1))
        source = catalog_of(folder / f"source-{number}", *held)
        if data.draw(st.booleans()):
            compact(source)
        if data.draw(st.booleans()):
            build_indexes(source, seed=data.draw(st.integers(0, 1)))
        now = arranged(source, folder / f"new-{number}", former.manifest if former is not None else None)
        place = assembled(now, folder / f"pack-{number}", place)
        assert verify(place).problems == ()
        assert rows_of(place) == rows_of(source)
        assert now.manifest.indexes.keys() == manifests.load(source).indexes.keys()
        former = now


def test_reuse_takes_steps_in_proportion_to_chunks_not_to_their_square(tmp_path: Path) -> None:
    manifest = manifests.load(catalog_of(tmp_path / "c", *some(1)))
    entry = next(iter(manifest.chunks.values()))
    chunks = {f"c{i}": entry.model_copy(update={"digest": content_id(i)}) for i in range(20_000)}
    shared = manifest.model_copy(update={"chunks": chunks})
    pack = shared.model_copy(update={"chunks": dict(list(chunks.items())[1:])})
    renamed = {path: f"directions/a.b-{hashlib.sha256(path.encode()).hexdigest()[:16]}.parquet" for path in entry.paths}
    moved = {path: to for path, to in renamed.items() if path.startswith("directions/")}
    files = {moved.get(path, path): own for path, own in manifest.files.items()}
    pack = pack.model_copy(
        update={"chunks": {name: own.moved(moved) for name, own in pack.chunks.items()}, "files": files}
    )
    found = reuse_of(shared, pack)  # minutes, were every chunk compared with every other in its shard
    assert found.fresh == {"c0"}
    assert found.shards == set()
