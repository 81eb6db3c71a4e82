"""Where the files of a catalog lie: a local folder, or a place that fsspec knows by its URL, such as s3://bucket/name.

Few operations, each whole or not at all; names are relative and cannot leave the place. Credentials come from the
environment alone, and no error shows them.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from catalog.fs import PROBE, sha256_of
from catalog.local_store import LocalStore, Store, checked_name, other_bytes, whole_piece
from catalog.store_calls import StoreError, bounded, clear_error, without_secrets
from pipeline.errors import CatalogError, InputError, NotFoundError

__all__ = ["LocalStore", "Store", "StoreError", "UrlStore", "as_url", "open_store"]

PATIENCE = 120.0  # seconds that one operation of a distant store may take before it counts as stalled
AGAIN = (0.1, 0.5, 2.0)  # seconds before an operation is tried again
_SOON = 10.0  # seconds after which it is not: who asked for it knows better
_LOCAL = ("file", "local")
_ABREAST = 8  # copies and deletions of a distant store at once
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(.*)", re.DOTALL)  # a Path keeps one slash of two


def as_url(place: str | Path) -> str | None:
    """The URL that `place` is, None for a local path. What a Path made of a URL is one again."""
    found = _URL.fullmatch(str(place))
    if found is None:
        return None
    return f"{found[1].lower()}://{found[2].rstrip('/')}" if found[1].lower() not in _LOCAL else None


def open_store(place: str | Path, patience: float = PATIENCE) -> Store:
    """The store at a local folder (or file:// URL), or at any other URL that fsspec knows.

    Raises InputError: a URL with a password or a query, of an unknown protocol, or whose package is not installed.
    """
    url = as_url(place)
    if url is not None:
        return UrlStore(url, patience)
    found = _URL.fullmatch(str(place))
    if found is None and "://" in str(place):
        raise InputError("store", without_secrets(str(place)), "a folder, or PROTOCOL://place/name")
    return LocalStore(Path(found[2] if found[2].startswith("/") else f"/{found[2]}") if found else Path(place))


class UrlStore(Store):
    """A place that fsspec knows. Its files must appear whole or not at all, as those of object stores do."""

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        self.place, self._patience = _plain(url), patience
        self._files, self._root = self._opened(url)

    def _opened(self, url: str) -> tuple[Any, str]:
        from fsspec.asyn import AsyncFileSystem  # type: ignore[import-untyped]
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        try:
            files, root = url_to_fs(url, use_listings_cache=False)
        except ImportError:
            action = "pip install 'rhumb[s3]'" if url.startswith("s3") else "Install the fsspec package for it"
            raise InputError("store", self.place, "a URL whose package is installed", action) from None
        except ValueError:
            raise InputError("store", self.place, "a URL of a protocol that fsspec knows") from None
        except Exception as error:
            raise clear_error(self.place, error) from None
        own = type(files).__dict__
        self._create = isinstance(files, AsyncFileSystem) or "pipe_file" in own  # else that of the base, which races
        return files, root.rstrip("/")

    def _call(self, name: str, call: Any) -> Any:
        """`call(path)` within the patience of this store. Raises what `clear_error` makes of its errors."""
        return self._bounded(name, f"{self._root}/{checked_name(name)}", call)

    def _bounded(self, name: str, path: str, call: Any) -> Any:
        """`call(path)`, tried again at once where that may help: every operation may be repeated."""
        until = time.monotonic() + _SOON
        for pause in AGAIN:
            try:
                return self._once(name, path, call)
            except StoreError:
                if time.monotonic() > until:
                    raise
            time.sleep(pause)
        return self._once(name, path, call)

    def _once(self, name: str, path: str, call: Any) -> Any:
        try:
            return bounded(lambda: call(path), self._patience)
        except FileNotFoundError:
            raise NotFoundError(f"{self.place}: {name}", "no such file", "a file of the store") from None
        except FileExistsError:
            raise
        except Exception as error:
            raise clear_error(self.place, error) from None

    def read(self, name: str) -> bytes:
        return bytes(self._call(name, self._files.cat_file))

    def read_range(self, name: str, start: int, size: int) -> bytes:
        piece = b""
        if size:
            piece = bytes(self._call(name, lambda path: self._files.cat_file(path, start=start, end=start + size)))
        return whole_piece(f"{self.place}: {name}", piece, start, size)

    def fetch(self, name: str, target: Path) -> None:
        self._call(name, lambda path: self._files.get_file(path, str(target)))

    def put(self, name: str, source: Path) -> None:
        self._written(name, lambda path: self._files.put_file(str(source), path))

    def keep(self, name: str, source: bytes | Path, sha256: str) -> None:
        found = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else sha256_of(source)
        if found != sha256:
            raise other_bytes(source, name)
        if isinstance(source, bytes):
            self.replace(name, source)
        else:
            self.put(name, source)

    def replace(self, name: str, data: bytes) -> None:
        self._written(name, lambda path: self._files.pipe_file(path, data))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        try:
            self._written(name, lambda path: self._put_new(path, data))
        except FileExistsError:  # perhaps by this very call, whose answer was lost and which was tried again
            return self.read(name) == data
        return True

    def _put_new(self, path: str, data: bytes) -> None:
        if self._create:
            self._files.pipe_file(path, data, mode="create")
        else:
            with self._files.open(path, "xb") as stream:
                stream.write(data)

    def _written(self, name: str, call: Any) -> None:
        """A change, where a path that is not found is that of the store itself."""
        try:
            self._call(name, call)
        except NotFoundError:
            raise InputError("store", f"{self.place}: no such bucket or folder", "one that exists") from None

    def copy(self, pairs: Iterable[tuple[str, str]]) -> None:
        def one(pair: tuple[str, str]) -> None:
            to = f"{self._root}/{checked_name(pair[1])}"
            self._call(pair[0], lambda path: self._files.cp_file(path, to))

        with ThreadPoolExecutor(_ABREAST) as pool:
            list(pool.map(one, pairs))

    def delete(self, names: Iterable[str]) -> None:
        def one(name: str) -> None:
            with suppress(NotFoundError):
                self._call(name, self._files.rm_file)

        with ThreadPoolExecutor(_ABREAST) as pool:
            list(pool.map(one, names))

    def tidy(self, below: str) -> None:
        """Nothing: an object store has no folders."""

    def folders(self, below: str) -> list[str]:
        try:
            found = self._call(below, lambda path: self._files.ls(path, detail=True))
        except NotFoundError:
            return []
        names = {str(one["name"]).rstrip("/").rsplit("/", 1)[-1] for one in found if one["type"] == "directory"}
        return sorted(name for name in names if not name.startswith("."))

    def list(self, below: str = "") -> list[str]:
        try:
            top = f"{self._root}/{checked_name(below)}" if below else self._root
            found: list[str] = self._bounded(below, top, self._files.find)
        except NotFoundError:
            return []
        start = len(self._files._strip_protocol(self._root)) + 1
        return sorted(path[start:] for path in map(self._files._strip_protocol, found) if path[start:])

    def size(self, name: str) -> int | None:
        try:
            found = self._call(name, self._files.info)
        except NotFoundError:
            return None
        return int(found["size"]) if found["type"] == "file" else None

    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        wanted = list(names)
        with ThreadPoolExecutor(_ABREAST) as pool:
            return dict(zip(wanted, pool.map(self.size, wanted), strict=True))

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.read(name)).hexdigest()

    @contextmanager
    def drafts(self, below: str) -> Iterator[Path]:
        checked_name(below)
        with tempfile.TemporaryDirectory(prefix="rhumb-") as folder:
            yield Path(folder)

    def check_creates(self) -> None:
        """Raise CatalogError unless a second file of one name is refused: versions of a catalog depend on it.

        Two small requests, which show too whether the store may be written at all. The file stays: a second writer may
        be looking at it.
        """
        if not self.put_if_absent(PROBE, b"kept\n") or self.put_if_absent(PROBE, b"replaced\n"):
            raise CatalogError(
                "store", f"{self.place}: a file put over one that was to be kept", "conditional writes",
                "Use a store that knows If-None-Match, or a local folder",
            )  # fmt: skip


def _plain(url: str) -> str:
    """`url` if it is safe to be shown. Raises InputError for one with credentials or a query in it."""
    rest = url.split("://", 1)[1]
    if "@" in rest.split("/", 1)[0]:
        found = "a URL with credentials in it"
        raise InputError("store", found, "a URL without", "Credentials are taken from the environment alone")
    if any(mark in url for mark in ("?", "#", "::")) or ".." in rest.split("/"):
        raise InputError("store", without_secrets(url.split("#")[0]), "PROTOCOL://place/name, without query or ..")
    return url
