"""Stores of every kind do the same, stay within their place, and tell clearly what is wrong without telling secrets."""

from __future__ import annotations

import errno
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from catalog import store as stores
from catalog.store import LocalStore, Store, StoreError, UrlStore, as_url, open_store
from catalog.store_calls import clear_error, without_secrets
from pipeline.errors import CatalogError, InputError, RhumbError
from tests.catalog.faulty import EveryNth, FaultyFileSystem
from tests.conformance.store_suite import StoreSuite


class TestLocalStore(StoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return open_store(tmp_path / "store")


class TestLocalStoreWithoutLinks(StoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr("os.link", refuse)
        return open_store(f"file://{tmp_path / 'store'}")


class TestMemoryStore(StoreSuite):
    @pytest.fixture
    def store(self) -> Store:
        return open_store(f"memory://{uuid.uuid4().hex}/catalog")


class TestFilesystemThatCreatesByOpening(StoreSuite):
    """One whose own way to create a file races, so that it is opened exclusively."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        store = UrlStore(f"faulty://{tmp_path}/store")
        from fsspec.implementations.local import LocalFileSystem

        store._files, store._create = LocalFileSystem(auto_mkdir=True), False
        return store


class TestDistantStore(StoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return open_store(f"faulty://{tmp_path}/store")


@pytest.fixture
def distant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], UrlStore]]:
    """A store whose changes run through what is given."""

    def opened(before: Any, patience: float = 60.0) -> UrlStore:
        monkeypatch.setattr(FaultyFileSystem, "before", staticmethod(before))
        return UrlStore(f"faulty://{tmp_path}/store", patience)

    yield opened


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("s3://bucket/name", "s3://bucket/name"),
        (Path("s3://bucket/name"), "s3://bucket/name"),
        ("S3://bucket/name/", "s3://bucket/name"),
        ("memory://x", "memory://x"),
        ("file:///tmp/x", None),
        ("/tmp/x", None),
        ("catalogs/x", None),
        ("C:/x", None),
    ],
)
def test_a_url_is_known_even_where_a_path_was_made_of_it(place: str | Path, url: str | None) -> None:
    assert as_url(place) == url


def test_a_file_url_is_its_folder(tmp_path: Path) -> None:
    for place in (f"file://{tmp_path}", Path(f"file://{tmp_path}"), str(tmp_path)):
        store = open_store(place)
        assert isinstance(store, LocalStore)
        assert store.folder == tmp_path


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:hunter2@bucket/name",
        "s3://hunter2@bucket/name",
        "s3://bucket/name?X-Amz-Signature=hunter2",
        "memory://x/../y#hunter2",
        "simplecache::s3://bucket?hunter2",
    ],
)
def test_a_url_with_credentials_or_a_query_is_refused_without_showing_them(url: str) -> None:
    with pytest.raises(InputError, match="store") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_an_unknown_protocol_and_a_missing_package_are_one_clear_error_each(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="protocol that fsspec knows"):
        open_store("nothing://bucket/name")

    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(InputError, match="rhumb\\[s3\\]"):
        open_store("s3://bucket/name")


def test_symbolic_links_in_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "images").symlink_to(tmp_path / "elsewhere")
    store = LocalStore(tmp_path / "store")
    with pytest.raises(CatalogError, match="symbolic link"):
        store.replace("images/a", b"x")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_call_that_stalls_ends_as_an_error_that_may_pass(distant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stall = EveryNth(1, stall=5.0)
    store = distant(stall, 0.2)
    monkeypatch.setattr(stores, "AGAIN", (0.0,))
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"no answer within 0\.2 s"):
        store.replace("manifest.json", b"x")
    assert time.monotonic() - started < 3.0
    assert isinstance(StoreError("a", "b", "c"), ConnectionError)


def test_after_a_lost_answer_creating_again_says_that_it_was_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = UrlStore(f"faulty://{tmp_path}/store")
    monkeypatch.setattr(stores, "AGAIN", ())
    monkeypatch.setattr(FaultyFileSystem, "after", staticmethod(EveryNth(1, ConnectionResetError("lost"))))
    with pytest.raises(StoreError):
        store.put_if_absent("v/1.json", b"mine")
    assert store.put_if_absent("v/1.json", b"mine")
    assert not store.put_if_absent("v/1.json", b"theirs")


def test_a_passing_fault_is_not_noticed_by_who_asked(distant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "AGAIN", (0.0, 0.0))
    fault = EveryNth(3, ConnectionResetError("reset"), burst=2)
    store = distant(fault)
    for number in range(5):
        assert store.put_if_absent(f"v/{number}.json", b"x")
    for name in store.list():
        store.delete([name])
    assert store.list() == []
    assert fault.hit >= 6


def test_a_store_that_overwrites_what_it_was_to_keep_is_refused(tmp_path: Path) -> None:
    class Careless(FaultyFileSystem):
        protocol = "careless"

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
            super().pipe_file(path, value)

    stores_ = UrlStore(f"faulty://{tmp_path}/store")
    stores_.check_creates()
    stores_._files = Careless()
    stores_.delete([".probe"])
    with pytest.raises(CatalogError, match="conditional writes"):
        stores_.check_creates()
    assert stores_.list() == [".probe"]


class Answer(Exception):
    """An error as HTTP clients raise it."""

    def __init__(self, status: int | None = None, code: str = "", text: str = "") -> None:
        super().__init__(text)
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class EndpointConnectionError(Exception):
    """As in botocore."""


class NoCredentialsError(Exception):
    """As in botocore."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionResetError("reset"), StoreError),
        (TimeoutError("slow"), StoreError),
        (EndpointConnectionError("unreachable"), StoreError),
        (Answer(503, "SlowDown"), StoreError),
        (Answer(429, "TooManyRequestsException"), StoreError),
        (Answer(500, "InternalError"), StoreError),
        (OSError(errno.EBUSY, "Slow Down"), StoreError),
        (caused(OSError(errno.EIO, "please reduce"), Answer(503, "Unheard")), StoreError),
        (caused(PermissionError("expired"), Answer(400, "ExpiredToken")), InputError),
        (Answer(403, "InvalidAccessKeyId"), InputError),
        (caused(OSError(errno.EINVAL, "Bad Request"), Answer(400, "400")), InputError),  # of HeadObject: no body
        (Answer(403, "RequestTimeTooSkewed"), InputError),
        (NoCredentialsError("Unable to locate credentials"), InputError),
        (PermissionError(errno.EACCES, "denied"), InputError),
        (OSError(errno.ENOSPC, "full"), CatalogError),
        (Answer(400, "MalformedXML"), CatalogError),
        (Answer(501, "NotImplemented"), CatalogError),
        (ValueError("something else"), CatalogError),
    ],
)
def test_what_may_pass_and_what_people_must_mend_are_told_apart(error: Exception, kind: type[RhumbError]) -> None:
    assert type(clear_error("s3://bucket/name", error)) is kind


def test_a_bad_request_without_a_reason_is_told_as_what_s3_means_by_it() -> None:
    told = str(clear_error("s3://bucket/name", caused(OSError(errno.EINVAL, "Bad Request"), Answer(400, "400"))))
    assert "credentials missing or expired" in told
    assert "Renew them" in told


def test_no_secret_is_in_an_error_or_in_what_caused_it(distant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "https://me:hunter2@host/x?X-Amz-Signature=hunter2 aws_secret_access_key=hunter2 Token: hunter2"
    assert "hunter2" not in without_secrets(text)
    monkeypatch.setattr(stores, "AGAIN", ())
    with pytest.raises(StoreError) as caught:
        distant(EveryNth(1, ConnectionError(text))).replace("a", b"x")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("catalog.local_store.write_flushed", refuse)
        with pytest.raises(InputError, match="read and written"):
            store.replace("manifest.json", b"x")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("catalog.local_store.write_flushed", full)
    with pytest.raises(CatalogError, match="no space left"):
        store.put_if_absent("receipt.json", b"x")
    assert store.list() == []
