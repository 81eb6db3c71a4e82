"""A distant store for tests: an fsspec filesystem over a folder whose changes fail, stall, or are counted by a killer.

Like an object store: files appear whole or not at all, and creating one is conditional.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractFileSystem


class FaultyFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """`faulty:///folder`. `before` is called with the name of each change before it is made, `after` once it was."""

    protocol = "faulty"
    before: ClassVar[Callable[[str], None]] = staticmethod(lambda name: None)
    after: ClassVar[Callable[[str], None]] = staticmethod(lambda name: None)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        here = Path(self._strip_protocol(path))
        if not here.exists():
            raise FileNotFoundError(path)
        if here.is_dir():  # as in an object store: a prefix
            return {"name": str(here), "size": 0, "type": "directory"}
        return {"name": str(here), "size": here.stat().st_size, "type": "file"}

    def find(self, path: str, *_: Any, **__: Any) -> list[str]:
        return sorted(str(file) for file in Path(path).rglob("*") if file.is_file() and file.suffix != ".half")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        found = [self.info(str(entry)) for entry in sorted(Path(path).iterdir())]
        return found if detail else [entry["name"] for entry in found]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return Path(path).read_bytes()[start:end]

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        shutil.copyfile(rpath, lpath)

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        self.pipe_file(path2, Path(path1).read_bytes())

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self.before(path)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        half = Path(f"{path}.{secrets.token_hex(4)}.half")
        half.write_bytes(value)
        if mode == "create":
            try:
                os.link(half, path)
            finally:
                half.unlink()
        else:
            os.replace(half, path)
        self.after(path)

    def rm_file(self, path: str) -> None:
        self.before(path)
        Path(path).unlink()
        self.after(path)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


class EveryNth:
    """Raises, or stalls, at every nth change and `burst - 1` that follow it."""

    def __init__(self, n: int, error: Exception | None = None, stall: float = 0.0, burst: int = 1) -> None:
        self.n, self.error, self.stall, self.burst, self.count, self.hit = n, error, stall, burst, -1, 0

    def __call__(self, name: str) -> None:
        self.count += 1
        if self.count >= self.n - 1 and (self.count + 1) % self.n < self.burst:
            self.hit += 1
            time.sleep(self.stall)
            if self.error is not None:
                raise self.error
