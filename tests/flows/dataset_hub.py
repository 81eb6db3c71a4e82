"""A Hub of data sets on loopback, and a client of it in a process of its own, since the libraries read their
environment when they are imported.

The client's standard input is a JSON list of `dataset` parts of recipes; its standard output one result each: what was
opened, with a digest of every picture, or {"error": message}.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline import tiny_hub
from tests.pipeline.hub_driver import run_client
from tests.pipeline.tiny_hub import REPO, TinyHub

_TREE = re.compile(rf"api/datasets/{REPO}/tree/([^/]+)/?(.*)")


class _DataHandler(tiny_hub._Handler):
    """As for models, with the addresses of data sets listings of single folders, and pieces of files."""

    def _answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if match := _TREE.fullmatch(path):
            entries = list(_folder(self.hub.tree(str(self.hub.find(match[1]))), match[2]))
            return self._json(entries) if entries else tiny_hub._missing("EntryNotFound")
        path = path.replace("api/datasets/", "api/models/")
        status, headers, body = super()._answer(path.removeprefix("datasets/"))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if status != 200 or wanted is None:
            return status, headers, body
        piece = body[int(wanted[1]) : int(wanted[2] or len(body)) + 1]
        end = int(wanted[1]) + len(piece) - 1
        return 206, {**headers, "Content-Range": f"bytes {wanted[1]}-{end}/{len(body)}"}, piece


def _folder(tree: list[dict[str, object]], folder: str) -> Iterator[dict[str, object]]:
    start, folders = f"{folder}/" if folder else "", set()
    for entry in tree:
        path = str(entry["path"])
        first, deeper, _ = path.removeprefix(start).partition("/")
        if path.startswith(start) and not deeper:
            yield entry
        elif path.startswith(start) and first not in folders:
            folders.add(first)
            yield {"type": "directory", "path": start + first, "oid": "0" * 40, "size": 0}


@contextmanager
def serve() -> Iterator[TinyHub]:
    """An empty hub of data sets, reachable at its `url` until the end of the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_hub, "_Handler", _DataHandler)
        with tiny_hub.serve() as hub:
            yield hub


def run(jobs: list[dict[str, Any]], home: Path, endpoint: str, *, offline: bool = False) -> list[dict[str, Any]]:
    """The results of `jobs`, and at the end what the process wrote to standard error."""
    return run_client("tests.flows.dataset_hub", jobs, home, endpoint, offline=offline)


def digest(pixels: Any) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def _do(job: dict[str, Any]) -> dict[str, Any]:
    from flows.datasets.contract import BrokenImageError
    from flows.datasets.huggingface import HuggingFaceDataset
    from pipeline.errors import InputError

    def shown(key: str) -> str:
        try:
            return digest(source.read(key, []).picture.convert("RGB"))
        except BrokenImageError as error:
            return str(error)

    try:
        source = HuggingFaceDataset.model_validate({"kind": "huggingface", **job}).open(Path)
        pictures = {key: shown(key) for key in list(source.keys())}
    except InputError as error:
        return {"error": str(error)}
    told = {"name": source.name, "split": source.split, "licence": source.licence, "origin": dict(source.origin)}
    return {**told, "redistributable": source.redistributable, "pictures": pictures}


if __name__ == "__main__":
    print(json.dumps([_do(job) for job in json.load(sys.stdin)]))
