"""Catalogs in S3, over HTTP: what the tests of stores and mirrors show with a folder, shown of the real protocol."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto")

from catalog.deposits import Target, whole_deposits, write_deposit
from catalog.fs import MANIFEST
from catalog.reader import Catalog
from catalog.store import Store, StoreError, open_store
from catalog.transaction import Lock
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import BusyError, ConflictError, InputError, NotFoundError
from tests.catalog.s3 import BUCKET, SECRET, serving
from tests.catalog.samples import chunk_of, provenance
from tests.conformance.store_suite import StoreSuite


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture
def url() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def move(name: str) -> None:
        monkeypatch.setenv("RHUMB_CACHE", str(tmp_path / name))

    move("first")
    return move


class TestS3Store(StoreSuite):
    @pytest.fixture
    def store(self, url: str) -> Store:
        return open_store(url)


def test_a_run_in_s3_resumes_from_deposits_and_is_read_elsewhere(url: str, machine: Callable[[str], None]) -> None:
    with CatalogWriter.create(url, provenance()) as writer:
        writer.commit(chunk_of("first", 1))
        target = Target.of(writer.manifest)
    store = open_store(url)  # as workers do
    for name in ("second", "third"):
        write_deposit(store, "job", name, chunk_of(name, 1), target)
    machine("another")  # where the coordinator starts again
    with CatalogWriter.create(url, provenance()) as writer:
        assert writer.done_chunks == {"first"}
        assert len(writer.adopt(list(whole_deposits(writer.store, "job"))).adopted) == 2
    machine("reader")
    with Catalog.open(url) as catalog:
        assert catalog.images().num_rows == 3
        record = chunk_of("third", 1).directions[0]
        assert catalog.vector(record.direction_id).shape == record.vector.shape
    assert verify(url).problems == ()
    names = {name for name in store.list() if not name.startswith(".")}
    assert names == {MANIFEST, *catalog.manifest.files}
    assert store.list(".incoming") == store.list(".staging") == []


def test_of_two_writers_one_wins_and_the_other_goes_on_from_it(
    url: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.mirror.StoreLock", lambda folder, store, patient: Lock(folder))
    CatalogWriter.create(url, provenance()).close()
    with CatalogWriter.open(url) as slow:
        machine("another")
        with CatalogWriter.open(url) as quick:
            quick.commit(chunk_of("quick", 1))
            with pytest.raises(ConflictError, match="another writer committed"):
                slow.commit(chunk_of("slow", 1))
            slow.commit(chunk_of("slow", 1))
    with Catalog.open(url) as catalog:
        assert catalog.manifest.chunks.keys() == {"quick", "slow"}
    assert verify(url).problems == ()


def test_a_missing_bucket_catalog_or_credential_is_one_clear_error_without_secrets(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError, match="s3://"):
        Catalog.open(url)
    with pytest.raises(InputError, match="no such bucket"):
        CatalogWriter.create("s3://no-such-bucket/x", provenance())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = open_store(url)
    store._files = type(store._files)(skip_instance_cache=True)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="credentials") as caught:
        store.read(MANIFEST)
    assert SECRET not in str(caught.value)


def test_a_server_that_cannot_be_reached_is_an_error_that_may_pass(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(url)
    files = type(store._files)  # type: ignore[attr-defined]
    monkeypatch.setattr("catalog.store.AGAIN", ())
    monkeypatch.setattr(files, "retries", 1)
    settings = {"connect_timeout": 1, "retries": {"max_attempts": 1}}
    store._files = files(endpoint_url="http://127.0.0.1:1", config_kwargs=settings, skip_instance_cache=True)  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match="Could not connect"):
        store.read(MANIFEST)


def test_one_machine_at_a_time_writes_to_a_catalog_in_s3(url: str, machine: Callable[[str], None]) -> None:
    with CatalogWriter.create(url, provenance()) as writer:
        machine("another")
        with pytest.raises(BusyError, match="another writer"):
            CatalogWriter.open(url)
        writer.commit(chunk_of("first", 1))
    with CatalogWriter.open(url) as writer:
        writer.commit(chunk_of("second", 1))
    assert Catalog.open(url).manifest.chunks.keys() == {"first", "second"}
