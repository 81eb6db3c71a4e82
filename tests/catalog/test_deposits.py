"""What workers leave in the store enters the catalog whole and once, whatever its order, or not at all."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog.canonical import sealed
from catalog.deposits import (
    Deposit,
    Target,
    clean,
    discard,
    folder_of,
    has_deposit,
    read_deposit,
    whole_deposits,
    write_deposit,
)
from catalog.manifest import ChunkEntry
from catalog.reader import Catalog
from catalog.records import Chunk
from catalog.store import LocalStore, Store, UrlStore
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, InputError, NotFoundError
from tests.catalog.samples import chunk_of, failed_chunk, provenance, small_catalog

JOB = "job-1"


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[tuple[CatalogWriter, LocalStore]]:
    """A catalog of one chunk, "chunk-0", and its store."""
    small_catalog(tmp_path / "c", 1)
    with CatalogWriter.open(tmp_path / "c") as writer:
        yield writer, LocalStore(tmp_path / "c")


def put(writer: CatalogWriter, store: Store, chunk: Chunk, work: str | None = None) -> Deposit:
    return write_deposit(store, JOB, work or chunk.chunk_id, chunk, Target.of(writer.manifest), {"seconds": 1.5})


def hidden(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if ".incoming" in path.parts)


def test_a_deposit_reads_back_and_holds_what_the_chunk_does(begun: tuple[CatalogWriter, LocalStore]) -> None:
    writer, store = begun
    chunk = chunk_of("one", 2)
    mixed = dataclasses.replace(chunk, images=(*chunk.images, *failed_chunk("one", "bad").images))
    deposit = put(writer, store, mixed)
    assert list(whole_deposits(store, JOB)) == [deposit] == [read_deposit(store, JOB, "one")]
    assert set(deposit.images) == {record.image_id for record in chunk.images}
    assert set(deposit.directions) == {record.direction_id for record in chunk.directions}
    assert [entry.reason for entry in deposit.failed.values()] == ["round trip of 12 dB"]
    assert deposit.note == {"seconds": 1.5}
    assert has_deposit(store, JOB, "one")
    assert not has_deposit(store, JOB, "two")
    assert verify(writer.folder).problems == ()
    with Catalog.open(writer.folder) as catalog:
        assert catalog.images().num_rows == 2  # of chunk-0: a deposit is no part of the catalog


def test_adopted_chunks_are_those_of_commits_and_nothing_stays_of_the_deposits(
    begun: tuple[CatalogWriter, LocalStore], tmp_path: Path
) -> None:
    writer, store = begun
    chunks = [chunk_of("one"), failed_chunk("two", "broken"), chunk_of("three", 1)]
    version = writer.manifest.version
    deposits = [put(writer, store, chunk) for chunk in chunks]
    done = writer.adopt(deposits, store)
    assert done.adopted == tuple(deposits)
    assert done.dropped == {}
    assert writer.manifest.version == version + 1
    assert not (writer.folder / ".incoming").exists()
    assert {key for d in deposits for key in d.images} <= writer.done_images
    small_catalog(tmp_path / "other", 1)
    with CatalogWriter.open(tmp_path / "other") as one_by_one:
        for chunk in chunks:
            one_by_one.commit(chunk)
        assert one_by_one.manifest.files == writer.manifest.files
        assert one_by_one.manifest.chunks == writer.manifest.chunks
        assert one_by_one.manifest.failed_images == writer.manifest.failed_images
        assert one_by_one.masks == writer.masks
    assert verify(writer.folder).problems == ()


SHARED = [chunk_of("a", 1), chunk_of("b", 2, ("mouth",)), failed_chunk("f", "d-0"), chunk_of("d", 1), chunk_of("e", 1)]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_and_grouping_of_deposits_gives_the_rows_of_single_commits(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    order: Sequence[Chunk] = data.draw(st.permutations(SHARED))
    twice = data.draw(st.lists(st.sampled_from(SHARED), max_size=2))
    cuts = data.draw(st.sets(st.integers(1, len(order) + len(twice) - 1), max_size=3))
    folder = tmp_path_factory.mktemp("adopt")
    with (
        CatalogWriter.create(folder / "c", provenance()) as writer,
        CatalogWriter.create(folder / "s", provenance()) as single,
    ):
        store = LocalStore(folder / "c")
        todo = [(f"w{i}", chunk) for i, chunk in enumerate([*order, *twice])]
        bounds = [0, *sorted(cuts), len(todo)]
        for start, end in pairwise(bounds):
            writer.adopt([put(writer, store, chunk, work) for work, chunk in todo[start:end]], store)
        for chunk in order:
            single.commit(chunk)
        assert writer.manifest.chunks == single.manifest.chunks
        assert writer.manifest.files == single.manifest.files
        assert writer.manifest.failures == single.manifest.failures
        assert writer.masks == single.masks
    assert verify(folder / "c").problems == ()
    shutil.rmtree(folder)


def test_what_is_in_the_catalog_or_earlier_in_the_list_is_dropped_with_its_reason(
    begun: tuple[CatalogWriter, LocalStore],
) -> None:
    writer, store = begun
    before = writer.manifest
    known = put(writer, store, chunk_of("chunk-0"), "zombie")
    other_id = put(writer, store, dataclasses.replace(chunk_of("chunk-0"), chunk_id="elsewhere"), "renamed")
    first, again = (put(writer, store, chunk_of("new", 1), work) for work in ("first", "again"))
    foreign = write_deposit(
        store, JOB, "foreign", chunk_of("x", 1),
        Target.of(before).model_copy(update={"catalog": "0" * 32}),
    )  # fmt: skip
    done = writer.adopt([known, other_id, first, again, foreign], store)
    assert [deposit.work_id for deposit in done.adopted] == ["first"]
    assert done.dropped.keys() == {"zombie", "renamed", "again", "foreign"}
    assert "another catalog" in done.dropped["foreign"]
    assert "images" in done.dropped["renamed"]
    assert writer.manifest.version == before.version + 1
    assert not (writer.folder / ".incoming").exists()
    assert verify(writer.folder).problems == ()


def test_a_list_of_which_nothing_can_be_taken_makes_no_version(begun: tuple[CatalogWriter, LocalStore]) -> None:
    writer, store = begun
    before = writer.manifest
    assert writer.adopt([put(writer, store, chunk_of("chunk-0"))], store).adopted == ()
    assert writer.adopt([], store).adopted == ()
    assert writer.manifest == before
    assert not (writer.folder / ".incoming").exists()
    assert not (writer.folder / ".staging").exists()


def test_an_image_that_failed_is_no_failure_once_another_run_of_its_work_has_mined_it(
    begun: tuple[CatalogWriter, LocalStore],
) -> None:
    writer, store = begun
    mined = chunk_of("w", 1)
    failed = dataclasses.replace(mined.images[0], failure="too slow", latent=np.empty(0), round_trip_psnr=float("nan"))
    writer.adopt([put(writer, store, Chunk("w", (failed,), (), ()))], store)
    assert writer.failed_images == {failed.image_id: "too slow"}
    done = writer.adopt([put(writer, store, mined)], store)
    assert len(done.adopted) == 1
    assert writer.failed_images == {}
    writer.adopt([put(writer, store, Chunk("late", (failed,), (), ()))], store)  # of a worker thought dead
    assert writer.failed_images == {}
    assert verify(writer.folder).problems == ()


def test_of_two_workers_with_one_work_the_first_receipt_counts_and_the_files_of_the_other_go(
    begun: tuple[CatalogWriter, LocalStore],
) -> None:
    writer, store = begun
    first = put(writer, store, chunk_of("one", 1), "w")
    files = hidden(writer.folder)
    assert put(writer, store, chunk_of("two", 1), "w") == first
    assert hidden(writer.folder) == files
    assert put(writer, store, chunk_of("one", 1), "w") == first  # the same bytes under the same names stay
    assert hidden(writer.folder) == files
    assert len(writer.adopt([first], store).adopted) == 1


def test_a_receipt_that_is_torn_changed_or_of_another_work_is_told_and_cleaned_away(
    begun: tuple[CatalogWriter, LocalStore],
) -> None:
    writer, store = begun
    good = put(writer, store, chunk_of("good", 1))
    for work in ("torn", "changed", "moved", "empty", "list"):
        put(writer, store, chunk_of(work, 1))
    folder = writer.folder / ".incoming" / JOB
    receipt = (folder / "torn" / "receipt.json").read_bytes()
    (folder / "torn" / "receipt.json").write_bytes(receipt[:-40])
    (folder / "changed" / "receipt.json").write_bytes(receipt.replace(b'"seconds": 1.5', b'"seconds": 2.5'))
    shutil.copy(folder / "good" / "receipt.json", folder / "moved" / "receipt.json")
    (folder / "empty" / "receipt.json").write_bytes(b"")
    (folder / "list" / "receipt.json").write_bytes(b"[]\n")
    (folder / "half").mkdir()
    (folder / "half" / "directions-0123456789abcdef.parquet").write_bytes(b"PAR1")
    waste: list[str] = []
    assert list(whole_deposits(store, JOB, waste)) == [good]
    assert len(waste) == 5
    assert all(any(work in line for line in waste) for work in ("torn", "changed", "moved", "empty", "list"))
    assert clean(store) == 5 * 4 + 1
    assert {name.split("/")[2] for name in store.list(".incoming")} == {"good"}
    assert clean(store) == 0


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("files",), {}),
        (("entry", "rows", "images"), 2),
        (("directions",), []),
        (("entry", "digest"), "0" * 32),
        (("chunk_id",), "../up"),
        (("catalog",), "none"),
        (("extra",), 1),
    ],
)
def test_a_forged_receipt_is_refused_by_name(
    begun: tuple[CatalogWriter, LocalStore], path: tuple[str, ...], value: object
) -> None:
    writer, store = begun
    put(writer, store, chunk_of("one", 1))
    name = f"{folder_of(JOB, 'one')}/receipt.json"
    receipt = json.loads(store.read(name))
    receipt.pop("checksum")
    part = receipt
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    store.replace(name, sealed(receipt))
    with pytest.raises(CatalogError, match="one/receipt.json"):
        read_deposit(store, JOB, "one")


def test_a_damaged_or_missing_shard_is_dropped_and_the_others_are_taken(
    begun: tuple[CatalogWriter, LocalStore],
) -> None:
    writer, store = begun
    flipped, missing, good = (put(writer, store, chunk_of(name, 1)) for name in ("flipped", "missing", "good"))
    path = store.path(flipped.place(next(iter(flipped.files))))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    store.path(missing.place(next(iter(missing.files)))).unlink()
    done = writer.adopt([flipped, missing, good], store)
    assert done.adopted == (good,)
    assert done.dropped.keys() == {"flipped", "missing"}
    assert verify(writer.folder).problems == ()


def test_a_chunk_that_breaks_a_rule_leaves_nothing_in_the_store(begun: tuple[CatalogWriter, LocalStore]) -> None:
    writer, store = begun
    chunk = chunk_of("one", 1)
    for broken in (
        dataclasses.replace(chunk, images=()),
        dataclasses.replace(chunk, regions=()),
        dataclasses.replace(chunk, directions=chunk.directions[1:]),  # a parent is missing
        dataclasses.replace(chunk, directions=chunk.directions * 2),
    ):
        with pytest.raises(CatalogError):
            put(writer, store, broken)
    with pytest.raises(InputError, match="note"):
        write_deposit(store, JOB, "one", chunk, Target.of(writer.manifest), {"seconds": float("nan")})
    assert not (writer.folder / ".incoming").exists()
    for job, work in ((".hidden", "w"), ("job", "../w"), ("a/b", "w")):
        with pytest.raises(CatalogError):
            write_deposit(store, job, work, chunk, Target.of(writer.manifest))


def test_discarding_removes_exactly_the_named_deposits(begun: tuple[CatalogWriter, LocalStore]) -> None:
    writer, store = begun
    one, two = (put(writer, store, chunk_of(name, 1)) for name in ("one", "two"))
    discard(store, one)
    assert list(whole_deposits(store, JOB)) == [two]
    assert {name.split("/")[2] for name in store.list(".incoming")} == {"two"}
    with pytest.raises(NotFoundError):
        read_deposit(store, JOB, "one")
    discard(store, one, two)
    assert not (writer.folder / ".incoming").exists()


def test_a_target_survives_json_and_names_its_catalog(begun: tuple[CatalogWriter, LocalStore], tmp_path: Path) -> None:
    writer, _ = begun
    target = Target.of(writer.manifest)
    assert Target.model_validate_json(target.model_dump_json()) == target
    assert target.layout == writer.manifest.layout
    with CatalogWriter.create(tmp_path / "other", provenance("another recipe")) as other:
        assert Target.of(other.manifest).catalog != target.catalog


def test_a_deposit_lies_in_a_distant_store_as_in_a_folder(begun: tuple[CatalogWriter, LocalStore]) -> None:
    writer, _ = begun
    store = UrlStore("memory://deposits/here")
    deposit = put(writer, store, chunk_of("one", 1))
    put(writer, store, chunk_of("two", 1), "one")
    assert list(whole_deposits(store, JOB)) == [deposit]
    assert len(store.list(".incoming")) == 4
    entry: ChunkEntry = deposit.entry
    assert entry.rows == {"directions": 10, "images": 1, "regions": 2}
    discard(store, deposit)
    assert store.list() == []


STRAYS = ["foo bar.txt", "Thumbs~1.db", "a..b", "x\udcff", "(1)/shard.parquet", ".hidden/receipt.json", "-"]


@pytest.mark.parametrize("stray", STRAYS, ids=ascii)
@pytest.mark.parametrize("place", ["", JOB, f"{JOB}/half", f"{JOB}/one"])
def test_what_no_worker_can_have_left_is_in_nobodys_way(
    stray: str, place: str, begun: tuple[CatalogWriter, LocalStore]
) -> None:
    writer, store = begun
    put(writer, store, chunk_of("one", 1))
    put(writer, store, chunk_of("two", 1))
    incoming = store.folder / ".incoming"
    half = incoming / JOB / "half" / "directions-0.parquet"
    half.parent.mkdir()
    half.write_bytes(b"torn")
    path = incoming / place / stray
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    clean(store, JOB)
    clean(store)
    assert not half.exists()
    assert len(writer.adopt(list(whole_deposits(store, JOB))).adopted) == 2
    left = [file.read_text() for file in incoming.rglob("*") if file.is_file()]
    assert left == ["mine"] or (left == [] and stray.startswith(".") and place)


def test_links_among_deposits_are_never_followed(begun: tuple[CatalogWriter, LocalStore], tmp_path: Path) -> None:
    writer, store = begun
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "photo.png").write_text("mine")
    deposit = put(writer, store, chunk_of("one", 1))
    work = store.folder / ".incoming" / JOB / "one"
    for number, target in enumerate((elsewhere, elsewhere / "photo.png", tmp_path / "nowhere")):
        (work / f"link{number}").symlink_to(target)
        (work.parent / f"link{number}").symlink_to(target)
    assert clean(store, JOB) == clean(store) == 0
    assert writer.adopt([deposit]).adopted == (deposit,)
    assert (elsewhere / "photo.png").read_text() == "mine"
    assert verify(store.folder).ok
