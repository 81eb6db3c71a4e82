"""`rhumb status` on a running, an interrupted and a finished catalog."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from catalog.verify import verify
from catalog.writer import CatalogWriter
from flows.gates import Gates, adopt_gates
from flows.watching.progress import Progress, kept_in
from tests.flows import tiny

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def catalog(mined: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mined / "catalog", tmp_path / "catalog"))


def status(catalog: Path, capsys: Capture) -> tuple[str, dict[str, Any]]:
    """What `rhumb status` says, and its document."""
    capsys.readouterr()
    assert tiny.run("status", catalog) == 0
    text = capsys.readouterr().out
    assert tiny.run("status", catalog, "--json") == 0
    return text, tiny.parsed(capsys.readouterr().out)


def begun(catalog: Path, **changes: Any) -> Progress:
    """A run that has mined two of five images and goes on; `changes` of what its file says."""
    progress = Progress(5, str(catalog), [kept_in(catalog)])
    note = {"images": 2, "directions": 20, "products": {"jvp": 30, "vjp": 10}, "seconds": 8.0, "passes": 60}
    progress.add({**note, "bytes": 40_000, "psnr": [41.0, 43.0], "failed": {"x": "RuntimeError: odd"}})
    path = catalog / ".run" / "progress.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return progress


def test_a_running_catalog_says_how_far_it_is(catalog: Path, capsys: Capture) -> None:
    begun(catalog)
    text, document = status(catalog, capsys)
    assert "running, 3/5 images" in text
    assert "failed: 1: 1 RuntimeError: odd" in text
    assert "round trip 42 dB" in text
    assert (document["run"]["state"], document["run"]["done"]) == ("running", 3)


def test_a_run_that_died_is_told_as_interrupted_and_how_to_go_on(catalog: Path, capsys: Capture) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    begun(catalog, pid=done.pid)
    text, document = status(catalog, capsys)
    assert "interrupted at 3/5 images" in text and "run the same command again" in text
    assert document["run"]["state"] == "interrupted"


@pytest.mark.parametrize(("minutes", "words"), [(0, "running, 3/5"), (5, "nothing heard for 5 min")])
def test_a_run_on_another_machine_is_believed_while_it_is_heard_of(
    catalog: Path, capsys: Capture, minutes: int, words: str
) -> None:
    heard = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()
    begun(catalog, host="elsewhere", updated=heard)
    assert words in status(catalog, capsys)[0]


def test_a_finished_catalog_says_what_the_last_run_cost_and_how_good_it_is(catalog: Path, capsys: Capture) -> None:
    begun(catalog).end("finished")
    text, document = status(catalog, capsys)
    assert "finished after" in text
    assert "cost of a direction: 0.4 s, 2 Jacobian products, 3 network passes, 2 kB" in text
    assert document["run"]["cost"]["bytes"] == 2000
    assert verify(catalog).ok  # what runs say of themselves is no part of the catalog


def test_what_gates_keep_out_of_packs_is_counted_and_explained(catalog: Path, capsys: Capture) -> None:
    with CatalogWriter.open(catalog) as writer:
        adopt_gates(writer, Gates(psnr=500))
    text, document = status(catalog, capsys)
    assert f"packs: left out: {document['directions']} directions, round trip below 500 dB" in text
    assert document["rejected"]["reasons"] == {"round trip below 500 dB": document["directions"]}


def changed(key: str, value: object) -> Callable[[Path], object]:
    """What puts another value under a key of a file."""
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_text("{"), lambda p: p.unlink(), lambda p: p.write_bytes(b"\xff"),
        lambda p: p.write_text(p.read_text()[:200]), lambda p: p.write_text("[" * 100_000),
        changed("updated", "x026-01-01T00:00:00+00:00"), changed("updated", "2026-01-01T00:00:00"),
        changed("started", ""), changed("updated", "2026-13-41T00:00:00+00:00"), changed("updated", None),
        changed("pid", -1), changed("pid", 0), changed("seconds", "Infinity"), changed("quality", {"psnr": 3}),
    ],
)  # fmt: skip
def test_a_catalog_without_a_readable_run_says_what_it_holds(
    catalog: Path, capsys: Capture, damage: Callable[[Path], object]
) -> None:
    begun(catalog)
    damage(catalog / ".run" / "progress.json")
    text, document = status(catalog, capsys)
    assert "directions:" in text and document["run"] is None
