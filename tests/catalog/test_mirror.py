"""A catalog in a distant store: committed there first, by one writer at a time, and read through a sparse folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from catalog.compaction import compact
from catalog.deposits import Target, clean, whole_deposits, write_deposit
from catalog.fs import CACHE, MANIFEST
from catalog.index import DirectionIndex, build_indexes
from catalog.merging import merge
from catalog.mirror import Mirror, local_folder, mirror_of, refreshed
from catalog.pictures import encode_png
from catalog.reader import Catalog
from catalog.store import LocalStore, StoreError, UrlStore
from catalog.transaction import Lock
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, ConflictError, InputError, NotFoundError
from tests.catalog.faulty import EveryNth, FaultyFileSystem
from tests.catalog.local_hub import publish
from tests.catalog.samples import chunk_of, provenance, small_catalog

pytestmark = pytest.mark.usefixtures("elsewhere")  # mirrors lie below the test's folder


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Where a catalog of one chunk, "chunk-0", and a picture lies."""
    place = f"faulty://{tmp_path}/store"
    with CatalogWriter.create(place, provenance()) as writer:
        writer.commit(chunk_of("chunk-0"))
        writer.add_picture("sheet", encode_png(np.full((2, 2, 3), 9, np.uint8)))
    return place


@pytest.fixture
def store(url: str) -> UrlStore:
    return UrlStore(url)


@pytest.fixture
def unleased(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lease keeps writers apart: as where one of them is far into its commit when its lease is taken over."""
    monkeypatch.setattr("catalog.mirror.StoreLock", lambda folder, store, patient: Lock(folder))


def deposit(store: UrlStore, writer: CatalogWriter, *names: str) -> None:
    for name in names:
        write_deposit(store, "job", name, chunk_of(name, 1, ("mouth",)), Target.of(writer.manifest))


def content(store: UrlStore) -> set[str]:
    """What is in the store beside the claims of versions, receipts that are kept, the lease and the probe."""
    return {name for name in store.list() if not name.startswith((".versions/", ".receipts/", ".lease/", ".probe"))}


def rows(url: str) -> int:
    with Catalog.open(url) as catalog:
        catalog.effects([key.decode() for key in catalog.ids()])
        return catalog.images().num_rows


def test_what_a_killed_reader_had_begun_to_fetch_goes_and_what_one_is_fetching_stays(url: str) -> None:
    CatalogWriter.create(url, provenance()).close()
    cache = mirror_of(url) / CACHE
    cache.mkdir(exist_ok=True)
    left, fetched = cache / "0123456789abcdef.tmp", cache / "123456789abcdef0.tmp"
    for draft in (left, fetched):
        draft.write_bytes(b"half")
    os.utime(left, (0, 0))
    CatalogWriter.open(url).close()
    assert list(cache.iterdir()) == [fetched]


def test_a_catalog_in_a_store_is_that_of_a_folder_file_by_file(url: str, store: UrlStore, tmp_path: Path) -> None:
    small_catalog(tmp_path / "local", 1)
    with CatalogWriter.open(tmp_path / "local") as writer:
        writer.add_picture("sheet", encode_png(np.full((2, 2, 3), 9, np.uint8)))
    local = LocalStore(tmp_path / "local")
    names = {name for name in local.list() if name != ".lock"}
    last = next(name for name in store.list() if name.startswith(".lease/"))
    assert names | {".probe", last} == set(store.list())
    assert all(local.read(name) == store.read(name) for name in names)
    assert verify(url).problems == ()
    assert verify(url).folder == url


def test_deposits_are_adopted_within_the_store_and_nothing_passes_through_the_mirror(url: str, store: UrlStore) -> None:
    with CatalogWriter.open(url) as writer:
        deposit(store, writer, "one", "two")
        done = writer.adopt(list(whole_deposits(store, "job")))
        assert len(done.adopted) == 2
        folder = writer.folder
        new = {path for one in done.adopted for path in one.files}
        assert not any((folder / path).exists() for path in new)
    assert content(store) == {MANIFEST, *Mirror.at(folder).refresh().files}  # type: ignore[union-attr]
    assert rows(url) == 4
    assert all((folder / path).exists() for path in new if path.startswith("directions"))
    assert verify(url).problems == ()


def test_a_reader_fetches_what_it_asks_for_and_nothing_else(
    url: str, elsewhere: Callable[[str], None], tmp_path: Path
) -> None:
    elsewhere("second")
    with Catalog.open(url) as catalog:
        fetched = lambda: {path.parent.name for path in catalog.folder.rglob("*.p*")}  # noqa: E731
        assert fetched() == set()
        assert catalog.images().num_rows == 2
        assert fetched() == {"images"}
        catalog.picture("sheet")
        assert fetched() == {"images", "pictures"}
    with Catalog.open(catalog.folder) as again:  # by its folder, as the truth stands now
        assert again.ids("regions").size == 4
    (catalog.folder / next(iter(again.manifest.shards("images")))).write_bytes(b"torn")  # as by a power cut
    assert rows(url) == 2


def test_who_goes_on_elsewhere_learns_what_is_done_from_receipts_and_fetches_no_shards_of_deposits(
    url: str, store: UrlStore, elsewhere: Callable[[str], None]
) -> None:
    with CatalogWriter.open(url) as writer:
        deposit(store, writer, "one", "two", "three")
        done = writer.adopt(list(whole_deposits(store, "job")))
        images, masks = writer.done_images, writer.masks
    elsewhere("second")
    with CatalogWriter.open(url) as writer:
        assert writer.done_images == images
        assert writer.masks == masks
        assert not any((writer.folder / path).exists() for one in done.adopted for path in one.files)
    torn, missing, _ = store.list(".receipts")
    store.replace(torn, store.read(torn)[:-9])
    store.delete([missing])
    elsewhere("third")
    with CatalogWriter.open(url) as writer:
        assert writer.done_images == images
        assert writer.masks == masks
        with pytest.raises(CatalogError, match="twice"):
            writer.commit(dataclasses.replace(chunk_of("two", 1), chunk_id="again"))


def test_damage_in_the_store_is_told_and_never_read(
    url: str, store: UrlStore, elsewhere: Callable[[str], None]
) -> None:
    shard = next(name for name in store.list("directions"))
    data = store.read(shard)
    store.replace(shard, data[:-20] + b"x" + data[-19:])
    store.replace("images/stray.parquet", b"")
    found = {problem.file: problem.what for problem in verify(url).problems}
    assert found.keys() == {shard, "images/stray.parquet"}
    elsewhere("second")
    with Catalog.open(url) as catalog, pytest.raises(CatalogError, match="changed bytes"):
        catalog.ids()
    store.delete([shard])
    with Catalog.open(url) as catalog, pytest.raises(CatalogError, match="no such file"):
        catalog.ids()
    assert {problem.file for problem in verify(url).problems} == {shard, "images/stray.parquet"}


def test_index_compaction_merging_and_publication_work_on_a_url(url: str, store: UrlStore, tmp_path: Path) -> None:
    with CatalogWriter.open(url) as writer:
        deposit(store, writer, "one")
        writer.adopt(list(whole_deposits(store, "job")))
    assert build_indexes(url)["x"] == 20
    with Catalog.open(url) as catalog:
        key = catalog.ids()[0].decode()
        assert len(DirectionIndex(catalog, "effect").search(catalog.effects([key])[0], 3)) == 3
    assert compact(url).shards == 3
    assert content(store) == {MANIFEST, *Catalog.open(url).manifest.files}
    assert verify(url).problems == ()
    small_catalog(tmp_path / "other", 2)
    assert merge([url, tmp_path / "other"], tmp_path / "merged").rows["images"] == 5
    assert publish(url, "org/pack", "1.0.0", tmp_path / "hub").version == "1.0.0"


@pytest.mark.usefixtures("unleased")
def test_of_two_machines_that_commit_one_version_one_is_told_and_goes_on_from_the_other(
    url: str, store: UrlStore, elsewhere: Callable[[str], None]
) -> None:
    slow = CatalogWriter.open(url)
    elsewhere("second")
    quick = CatalogWriter.open(url)
    quick.commit(chunk_of("quick", 1))
    with pytest.raises(ConflictError, match="another writer committed"):
        slow.commit(chunk_of("slow", 1))
    slow.commit(chunk_of("slow", 1))  # it knows the version that stands by now
    with pytest.raises(ConflictError):
        quick.commit(chunk_of("late", 1))
    slow.close()
    quick.close()
    assert Catalog.open(url).manifest.chunks.keys() == {"chunk-0", "quick", "slow"}
    assert verify(url).problems == ()
    with CatalogWriter.open(url):  # what the slower one had put is cleared away
        pass
    assert content(store) == {MANIFEST, *Catalog.open(url).manifest.files}


@pytest.mark.usefixtures("unleased")
def test_two_that_reach_the_claim_together_make_one_version(
    url: str, store: UrlStore, elsewhere: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = CatalogWriter.open(url)
    elsewhere("second")
    quick = CatalogWriter.open(url)

    def overtake(name: str) -> None:
        if name.endswith(f".versions/{slow.manifest.version + 1}.json"):
            monkeypatch.setattr(FaultyFileSystem, "before", staticmethod(lambda name: None))
            quick.commit(chunk_of("quick", 1))

    monkeypatch.setattr(FaultyFileSystem, "before", staticmethod(overtake))
    with pytest.raises(ConflictError, match="another writer committed"):
        slow.commit(chunk_of("slow", 1))
    assert slow.manifest.chunks.keys() == {"chunk-0", "quick"}
    slow.commit(chunk_of("slow", 1))
    slow.close()
    quick.close()
    assert verify(url).rows["images"] == 4


def test_a_second_writer_on_the_same_machine_is_refused(url: str) -> None:
    with CatalogWriter.open(url), pytest.raises(ConflictError, match="one writer at a time"):
        CatalogWriter.open(url)


def test_a_manifest_that_a_slow_writer_put_over_a_later_one_takes_nothing_back(url: str, store: UrlStore) -> None:
    with CatalogWriter.open(url) as writer:
        writer.commit(chunk_of("one", 1))
        former = store.read(MANIFEST)
        writer.commit(chunk_of("two", 1))
    store.replace(MANIFEST, former)
    assert rows(url) == 4  # what is claimed is committed
    with CatalogWriter.open(url) as writer:
        assert writer.done_chunks == {"chunk-0", "one", "two"}
    assert json.loads(store.read(MANIFEST))["chunks"].keys() == {"chunk-0", "one", "two"}


@pytest.mark.usefixtures("unleased")
def test_who_was_thought_dead_cannot_commit_after_its_files_were_cleared_away(
    url: str, store: UrlStore, elsewhere: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = CatalogWriter.open(url)
    elsewhere("second")

    def clear_away(name: str) -> None:
        if ".versions" in name:
            monkeypatch.setattr(FaultyFileSystem, "before", staticmethod(lambda name: None))
            CatalogWriter.open(url).close()
            assert content(store) == {MANIFEST, *Catalog.open(url).manifest.files}

    monkeypatch.setattr(FaultyFileSystem, "before", staticmethod(clear_away))
    with pytest.raises(ConflictError, match="another writer committed"):
        slow.commit(chunk_of("slow", 1))
    assert verify(url).problems == ()
    slow.commit(chunk_of("slow", 1))
    slow.close()
    assert verify(url).rows["images"] == 3


@pytest.mark.parametrize(("n", "burst"), [(2, 1), (3, 1), (5, 1), (8, 5), (11, 9), (23, 7)])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_store_that_fails_at_every_nth_change_delays_and_loses_nothing(
    url: str, store: UrlStore, monkeypatch: pytest.MonkeyPatch, n: int, burst: int, moment: str
) -> None:
    fault = EveryNth(n, ConnectionResetError("reset by peer"), burst=burst)
    monkeypatch.setattr("catalog.store.AGAIN", (0.0, 0.0, 0.0))

    def again(job: Callable[[], object]) -> object:
        for attempt in range(200):
            if attempt == 5:  # a store that fails more often than a commit is long has to recover
                fault.n = 40
            try:
                return job()
            except StoreError:
                continue
        raise AssertionError("never came to an end")

    with CatalogWriter.open(url) as writer, monkeypatch.context() as patch:
        target = Target.of(writer.manifest)
        patch.setattr(FaultyFileSystem, moment, staticmethod(fault))
        for name in ("one", "two"):
            chunk = chunk_of(name, 1, ("mouth",))
            again(partial(write_deposit, store, "job", name, chunk, target))
        again(lambda: writer.adopt(list(whole_deposits(store, "job"))))
        again(lambda: writer.commit(chunk_of("three", 1, ("mouth",))))
    assert fault.hit
    with CatalogWriter.open(url) as writer:
        assert writer.adopt(list(whole_deposits(store, "job"))).adopted == ()
        assert writer.done_chunks == {"chunk-0", "one", "two", "three"}
    clean(store)
    assert verify(url).problems == ()
    assert verify(url).rows["images"] == 5
    assert content(store) == {MANIFEST, *writer.manifest.files}


def test_a_commit_whose_outcome_was_unknown_is_asked_for_before_the_next_one(
    url: str, store: UrlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CatalogWriter.open(url) as writer:

        def vanish(name: str) -> None:
            if ".versions" in name:  # the claim was made, and then nothing answers any more
                monkeypatch.setattr(UrlStore, "_bounded", unreachable)
                raise ConnectionResetError("gone")

        def unreachable(*_: object) -> None:
            raise StoreError("store", "no answer", "an answer")

        with monkeypatch.context() as patch:
            before = UrlStore._bounded
            patch.setattr(FaultyFileSystem, "after", staticmethod(vanish))
            with pytest.raises(StoreError):
                writer.commit(chunk_of("one", 1))
            monkeypatch.setattr(UrlStore, "_bounded", before)
        writer.commit(chunk_of("two", 1))
        assert writer.done_chunks == {"chunk-0", "one", "two"}
    assert verify(url).problems == ()


def test_a_claim_that_landed_late_without_its_files_blocks_nobody(url: str, store: UrlStore) -> None:
    with CatalogWriter.open(url) as writer:
        folder = {name: store.read(name) for name in store.list()}
        writer.commit(chunk_of("one", 1))
        late = f".versions/{writer.manifest.version}.json"
        claim = store.read(late)
    store.delete(store.list())
    for name, data in folder.items():
        store.replace(name, data)
    with CatalogWriter.open(url) as writer:
        store.replace(late, claim)  # of a call that was given up, and whose files were cleared away since
        writer.commit(chunk_of("two", 1))
        assert writer.done_chunks == {"chunk-0", "two"}
    assert verify(url).problems == ()


def test_a_folder_that_says_it_mirrors_a_url_is_not_believed(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 1)
    (tmp_path / "c" / ".origin").write_text("faulty:///elsewhere/store")
    assert Mirror.at(tmp_path / "c") is None
    with Catalog.open(tmp_path / "c") as catalog:
        assert catalog.images().num_rows == 2


def test_a_place_with_other_content_is_left_alone(tmp_path: Path) -> None:
    store = UrlStore(f"faulty://{tmp_path}/holiday")
    store.replace("photos/beach.png", b"sea")
    with pytest.raises(ConflictError, match="photos/beach.png"):
        CatalogWriter.create(store.place, provenance())
    assert store.list() == ["photos/beach.png"]


def test_another_recipe_in_the_same_place_is_refused_before_anything_is_written(url: str, store: UrlStore) -> None:
    before = store.list()
    with pytest.raises(ConflictError, match="recipe"):
        CatalogWriter.create(url, provenance("another recipe"))
    assert store.list() == before


def test_a_store_that_was_emptied_begins_anew_whatever_the_mirror_holds(url: str, store: UrlStore) -> None:
    assert rows(url) == 2
    store.delete(name for name in store.list() if not name.startswith("."))
    with pytest.raises(NotFoundError, match="faulty://"):
        Catalog.open(url)
    with CatalogWriter.create(url, provenance("another recipe")) as writer:
        for number in range(9):
            writer.commit(chunk_of(f"new-{number}", 1, ("mouth",)))
    assert rows(url) == 9
    assert verify(url).problems == ()


def test_a_mirror_is_found_by_its_url_however_that_is_written_and_may_be_deleted(url: str, tmp_path: Path) -> None:
    folder = mirror_of(url)
    assert local_folder(f"{url}/") == folder
    assert local_folder(Path("memory://bucket/name")) == local_folder("memory://bucket/name") != folder
    assert local_folder(tmp_path) == tmp_path
    shutil.rmtree(folder)
    assert refreshed(url) == folder
    assert rows(str(folder)) == 2


def test_expired_credentials_are_one_clear_error_and_the_catalog_still_reads(
    url: str, store: UrlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.list()
    with monkeypatch.context() as patch:
        expired = EveryNth(1, PermissionError("The provided token has expired."))
        patch.setattr(FaultyFileSystem, "before", staticmethod(expired))
        with pytest.raises(InputError, match="credentials missing or expired"):
            CatalogWriter.open(url)
        assert rows(url) == 2
    assert store.list() == before
    with CatalogWriter.open(url) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(FaultyFileSystem, "before", staticmethod(expired))
            with pytest.raises(InputError, match="credentials missing or expired"):
                writer.commit(chunk_of("one", 1))
        writer.commit(chunk_of("one", 1))
    assert rows(url) == 3
