"""The lease of a catalog in a store: one process of whichever machine writes at a time, a dead one hinders nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from catalog import lease as leases
from catalog.deposits import Target, whole_deposits, write_deposit
from catalog.lease import Holder, Lease, born
from catalog.reader import Catalog
from catalog.store import Store, StoreError, UrlStore, open_store
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import BusyError, ConflictError
from tests.catalog.faulty import EveryNth, FaultyFileSystem
from tests.catalog.samples import chunk_of, provenance

ELSEWHERE = Holder(id="5" * 32, host="another", scope="its own boot", process=7, born="99")


pytestmark = pytest.mark.usefixtures("elsewhere")  # mirrors lie below the test's folder


@pytest.fixture
def url(tmp_path: Path) -> str:
    place = f"faulty://{tmp_path}/store"
    with CatalogWriter.create(place, provenance()) as writer:
        writer.commit(chunk_of("chunk-0"))
    return place


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "STALE", 0.5)
    monkeypatch.setattr(leases, "_LOOK", 0.05)


@pytest.fixture(params=["memory", "faulty"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}" if request.param == "memory" else f"faulty://{tmp_path}/plain")


def number_of(name: str) -> int:
    stem = name.split("/")[1].removesuffix(".json")
    return int(stem) if stem.isdecimal() else 0


def last(store: Store) -> str:
    return max(store.list(".lease"), key=number_of)


def seize(store: Store, holder: Holder = ELSEWHERE) -> str:
    """Take a lease as a writer on another machine does that saw no sign of life; its name."""
    number = number_of(last(store)) + 1 if store.list(".lease") else 1
    assert store.put_if_absent(f".lease/{number}.json", holder.model_dump_json().encode())
    return f".lease/{number}.json"


def test_a_second_machine_is_told_at_once_who_writes_and_goes_on_when_that_has_ended(
    url: str, elsewhere: Callable[[str], None]
) -> None:
    first = CatalogWriter.open(url)
    elsewhere("second")
    with pytest.raises(BusyError, match=f"process {os.getpid()} of "):
        CatalogWriter.open(url)
    with pytest.raises(BusyError, match=f"process {os.getpid()} of "):
        CatalogWriter.create(url, provenance())
    first.commit(chunk_of("one", 1))
    first.close()
    with CatalogWriter.open(url) as second:
        second.commit(chunk_of("two", 1))
    assert Catalog.open(url).manifest.chunks.keys() == {"chunk-0", "one", "two"}


@pytest.fixture
def child(url: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes to the catalog, with a mirror of its own."""
    code = (
        "import sys, tests.catalog.faulty; from catalog.writer import CatalogWriter\n"
        "with CatalogWriter.open(sys.argv[1]): print('open', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "RHUMB_CACHE": str(tmp_path / "machines" / "child")}
    with subprocess.Popen(
        [sys.executable, "-c", code, url], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def test_a_process_of_this_machine_that_was_killed_is_followed_at_once(url: str, child: subprocess.Popen[str]) -> None:
    with pytest.raises(BusyError, match=f"process {child.pid} of "):
        CatalogWriter.open(url)
    child.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while born(child.pid) is not None and time.monotonic() < until:  # what is left of it counts as gone: nobody waits
        time.sleep(0.01)
    with CatalogWriter.open(url) as writer:
        writer.commit(chunk_of("one", 1))
    assert verify(url).problems == ()


@pytest.mark.usefixtures("quick")
def test_a_holder_elsewhere_is_followed_by_a_run_that_saw_no_sign_of_life_and_by_no_short_command(url: str) -> None:
    seize(UrlStore(url))
    with pytest.raises(BusyError, match="process 7 of another"):
        CatalogWriter.open(url)
    began = time.monotonic()
    CatalogWriter.create(url, provenance()).close()
    assert 0.5 <= time.monotonic() - began < 5
    CatalogWriter.open(url).close()


@pytest.mark.usefixtures("quick")
def test_a_holder_elsewhere_that_renews_its_lease_keeps_it_however_far_clocks_jump(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = seize(store)
    monkeypatch.setattr(time, "time", lambda: 4e9)

    def renew() -> None:
        time.sleep(0.2)
        store.replace(name, ELSEWHERE.model_copy(update={"beat": 1}).model_dump_json().encode())

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(BusyError, match="process 7 of another"):
        Lease(store, patient=True)
    thread.join()
    assert last(store) == name


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("torn", [b"", b"\xff{", b'{"id": 3}', ELSEWHERE.model_dump_json().encode()[:-9]])
def test_a_lease_that_cannot_be_read_is_one_of_somebody_unknown(store: Store, torn: bytes) -> None:
    store.replace(".lease/3.json", torn)
    store.replace(".lease/other.txt", b"")
    with pytest.raises(BusyError, match="unknown"):
        Lease(store, patient=False)
    lease = Lease(store, patient=True)
    assert last(store) == ".lease/4.json"
    lease.release()


@pytest.mark.usefixtures("quick")
def test_of_several_that_follow_a_dead_holder_one_gets_the_lease(store: Store) -> None:
    seize(store)
    got: list[Lease] = []
    refused: list[BusyError] = []

    def follow() -> None:
        try:
            got.append(Lease(store, patient=True))
        except BusyError as error:
            refused.append(error)

    threads = [threading.Thread(target=follow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 3)
    got[0].check()
    got[0].release()


def test_a_lease_is_renewed_while_it_is_held_and_not_after(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWED", 0.02)
    lease = Lease(store, patient=False)
    until = time.monotonic() + 10
    while Holder.model_validate_json(store.read(last(store))).beat < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    lease.release()
    lease.release()
    given_back = store.read(last(store))
    time.sleep(0.1)
    assert store.read(last(store)) == given_back
    assert Holder.model_validate_json(given_back).over
    Lease(store, patient=False).release()
    assert len(store.list(".lease")) == 1  # none piles up


def test_who_was_taken_for_dead_stops_before_its_next_commit_and_loses_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWED", 0.02)
    store = UrlStore(url)
    with CatalogWriter.open(url) as writer:
        write_deposit(store, "job", "work", chunk_of("one", 1), Target.of(writer.manifest))
        name = seize(store)
        theirs, version = store.read(name), writer.manifest.version
        with pytest.raises(ConflictError, match="process 7 of another has taken over") as told:
            writer.adopt(list(whole_deposits(store, "job")))
        assert not isinstance(told.value, BusyError)
        with pytest.raises(ConflictError, match="has taken over"):
            writer.commit(chunk_of("two", 1))
        time.sleep(0.1)
    assert store.read(name) == theirs  # neither renewed nor given back by who lost it
    assert Catalog.open(url).manifest.version == version
    store.replace(name, ELSEWHERE.model_copy(update={"over": True}).model_dump_json().encode())
    with CatalogWriter.open(url) as writer:
        assert len(writer.adopt(list(whole_deposits(store, "job"))).adopted) == 1
    assert verify(url).problems == ()


def test_a_store_that_fails_for_a_while_takes_no_lease_away(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWED", 0.02)
    monkeypatch.setattr("catalog.store.AGAIN", ())
    away = EveryNth(1, ConnectionResetError("reset by peer"))
    with CatalogWriter.open(url) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(FaultyFileSystem, "before", staticmethod(away))
            time.sleep(0.1)
            with pytest.raises(StoreError):
                writer.commit(chunk_of("one", 1))
        writer.commit(chunk_of("one", 1))
        monkeypatch.setattr(FaultyFileSystem, "before", staticmethod(away))
    assert away.hit
    monkeypatch.undo()
    monkeypatch.setenv("RHUMB_CACHE", str(writer.folder.parents[1]))
    CatalogWriter.open(url).close()  # it could not be said that the lease was given back, but this process knows


def test_a_place_that_cannot_be_a_catalog_gets_no_lease(tmp_path: Path) -> None:
    store = UrlStore(f"faulty://{tmp_path}/holiday")
    store.replace("photos/beach.png", b"sea")
    with pytest.raises(ConflictError, match=r"photos/beach\.png"):
        CatalogWriter.create(store.place, provenance())
    assert store.list() == ["photos/beach.png"]
