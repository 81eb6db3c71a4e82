"""A client of a Hub on loopback in a process of its own, since huggingface_hub reads its environment when imported.

    with client(hub, home) as user:
        user.do("publish", folder=..., version="1.0.0", numbers=[1, 2])   # as drafts.draft
        user.do("fetch", version="1.0.0", name=..., target=...)   # {"error": class, "message": ...} where it fails

Standard input and output of the process are JSON lines; what it wrote to standard error is `user.stderr()`.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.catalog.drafts import REPOSITORY, draft
from tests.catalog.hub_server import TOKEN, HubServer, environment

ROOT = Path(__file__).parents[2]


class Client:
    """The other end of such a process."""

    def __init__(self, variables: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("a") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.catalog.hub_client"], cwd=ROOT, env=variables, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            )  # fmt: skip

    def ask(self, what: str, **arguments: Any) -> None:
        """Begin something; `answer` is what becomes of it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the client has ended:\n{self.stderr()}"
        value = json.loads(line)
        assert isinstance(value, dict)
        return value

    def do(self, what: str, **arguments: Any) -> dict[str, Any]:
        self.ask(what, **arguments)
        return self.answer()

    def kill(self) -> None:
        """SIGKILL, at whatever it is."""
        self.process.kill()
        self.close()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def stderr(self) -> str:
        return self._log.read_text()


@contextmanager
def client(hub: HubServer, home: Path, token: str = TOKEN, *, offline: bool = False) -> Iterator[Client]:
    """A client whose caches lie in `home`."""
    home.mkdir(parents=True, exist_ok=True)
    variables = {**environment(hub, home, token, offline=offline), "RHUMB_CACHE": str(home / "rhumb")}
    user = Client(variables, home.with_suffix(".log"))
    try:
        yield user
    finally:
        if user.process.poll() is None:
            user.close()


def _publish(
    folder: str,
    patience: float = 60.0,
    files: int = 1_000,
    private: bool | None = None,
    page: str | None = None,
    contents: dict[str, str] | None = None,
    **told: Any,
) -> dict[str, Any]:
    from catalog.hub import hugging_face_calls, hugging_face_publishing
    from catalog.hub.hugging_face import HuggingFaceHub

    hugging_face_calls.PATIENCE, hugging_face_publishing.FILES_PER_COMMIT = patience, files
    lines: list[list[Any]] = []
    told = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
    read = {name: Path(path).read_bytes() for name, path in contents.items()} if contents else None
    mine = draft(Path(folder), page=page.encode() if page else None, contents=read, **told)
    revision = HuggingFaceHub(private).publish(mine, lambda *line: lines.append(list(line)))
    return {"revision": revision, "progress": lines}


def _versions(patience: float = 60.0) -> dict[str, Any]:
    from catalog.hub import hugging_face_calls
    from catalog.hub.hugging_face import HuggingFaceHub

    hugging_face_calls.PATIENCE = patience
    return {str(version): revision for version, revision in HuggingFaceHub().versions(REPOSITORY).items()}


def _snapshot(version: str, revision: str | None = None) -> Any:
    from catalog.hub.hugging_face import HuggingFaceHub
    from catalog.hub.names import Version

    hub, number = HuggingFaceHub(), Version.parse(version)
    return hub.snapshot(REPOSITORY, number, revision or hub.versions(REPOSITORY)[number])


def _manifest(version: str, revision: str | None = None, anew: bool = False) -> dict[str, Any]:
    return {"manifest": _snapshot(version, revision).manifest(anew).decode()}


def _entry(size: int) -> Any:
    from catalog.manifest import FileEntry

    return FileEntry(sha256="0" * 64, bytes=size)


def _fetch(
    version: str, name: str, target: str, revision: str | None = None, anew: bool = False, full: str = ""
) -> dict[str, Any]:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    places = {"target": "shutil.copyfile", "cache": "huggingface_hub.file_download._chmod_and_move"}
    with patch(places[full], fill) if full else nullcontext():
        _snapshot(version, revision).fetch(name, _entry(3000), Path(target), anew)
    return {}


def _read(version: str, name: str, start: int, size: int, revision: str | None = None) -> dict[str, Any]:
    return {"data": _snapshot(version, revision).read(name, _entry(3000), start, size).hex()}


def _find(words: list[str]) -> dict[str, Any]:
    from catalog.hub.hugging_face import HuggingFaceHub

    found = HuggingFaceHub().find(words)
    lines = [[one.repository, [str(v) for v in one.versions], one.title, one.tags, one.private] for one in found]
    return {"found": lines}


def _load(config: str, revision: str, streaming: bool, column: str, source: str = REPOSITORY) -> dict[str, Any]:
    import datasets

    told = {"revision": revision} if source == REPOSITORY else {}
    rows = datasets.load_dataset(source, config, **told, split="train", streaming=streaming)
    return {"values": [row[column] for row in rows]}


def _publish_catalog(catalog: str, version: str) -> dict[str, Any]:
    from catalog.card import CardFields
    from catalog.hub.hugging_face import HuggingFaceHub
    from catalog.hub.names import PackName
    from catalog.hub.publishing import publish
    from catalog.reader import Catalog

    fields = CardFields(title="Random faces", licence="cc-by-4.0")
    with Catalog.open(catalog) as source:
        done = publish(source, PackName.parse(REPOSITORY), version, HuggingFaceHub(), fields)
    return {"revision": done.revision, "bytes": done.bytes, "new_bytes": done.new_bytes}


def _pull(name: str, out: str, region: str | None = None) -> dict[str, Any]:
    from catalog.hub.names import PackName
    from catalog.hub.parts import Part
    from catalog.hub.pulling import pull

    done = pull(PackName.parse(name), out, Part(regions=(region,)) if region else None)
    return {"revision": done.revision, "bytes": done.bytes, "new_bytes": done.new_bytes, "version": done.version}


def _directions(name: str, region: str) -> dict[str, Any]:
    from flows.direction_pack import DirectionPack

    pack = DirectionPack.from_pretrained(name, region=region)
    return {"name": pack.name, "directions": len(pack.entries(concepts=False))}


_JOBS = {
    job.__name__.removeprefix("_"): job
    for job in (_publish, _versions, _manifest, _fetch, _read, _find, _load, _publish_catalog, _pull, _directions)
}


def main() -> None:
    for line in sys.stdin:
        told = json.loads(line)
        job = _JOBS[told.pop("do")]
        try:
            answer = job(**told)
        except Exception as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
