"""The same job under Prefect, with a real embedded server, and without any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import flows.miner
from catalog.verify import verify
from tests.flows import tiny

ROOT = Path(__file__).parents[2]
# A database on a slow disk takes a minute to be made.
IN_MEMORY = "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true&check_same_thread=false"


def driven(world: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """`rhumb mine` in a process of its own, where mining is quick and chunks are small."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(world / "prefect"), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "tests.flows.driver", "quick", "mine", "recipe.yaml", *arguments, "--json"]
    return subprocess.run(
        command, cwd=world, env=environment | settings, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_prefect_run_with_an_embedded_server_mines_the_same_catalog(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = driven(world, "--out", "catalog", "--prefect", PREFECT_SERVER_DATABASE_CONNECTION_URL=IN_MEMORY)
    assert done.returncode == 0, done.stderr
    report = tiny.parsed(done.stdout)
    assert (report["images"], report["failed"]) == (3, {})
    assert done.stderr.count("Finished in state Completed()") == 3  # two chunks and the flow
    assert "chunk of a.png" in done.stderr
    assert verify(world / "catalog").ok
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)
    assert tiny.run("mine", world / "recipe.yaml", "--out", world / "direct") == 0
    assert tiny.direction_ids(world / "direct") == tiny.direction_ids(world / "catalog")


def test_without_a_server_that_answers_there_is_one_clear_error_and_nothing_is_written(world: Path) -> None:
    done = driven(world, "--out", "catalog", "--prefect", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("rhumb")]
    assert len(said) == 1
    assert "no Prefect server" in said[0]
    assert not (world / "catalog").exists()
