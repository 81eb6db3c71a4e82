"""Where a catalog lies, written so that any process on the machine means the same place, and none tells a secret."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from catalog.mirror import local_folder, refreshed
from catalog.store import as_url
from pipeline.errors import InputError


def absolute(place: str | Path, field: str = "catalog") -> str:
    """A folder, or file:// URL, as an absolute path; the URL of a store as it is, even where a Path was made of it.

    Raises:
        InputError: nothing, or a URL with a user or password in it, which would be stored and shown.
    """
    text = str(place)
    if not text.strip():
        raise InputError(field, "nothing", "a folder or the URL of a store")
    url = as_url(text)
    if url is None:
        return str(local_folder(Path(text).expanduser()).absolute())
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query:
        raise InputError(
            field, f"a {parts.scheme} URL with credentials in it", "a URL without user, password and query",
            "Give credentials by the environment of the worker, as the store's own tools read them.",
        )  # fmt: skip
    return url


def folder_of(place: str) -> Path:
    """The folder to read a catalog in: its own, or the local mirror of a store, brought up to date."""
    return refreshed(place)
