"""The same job under Prefect, with a real embedded server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from catalog.verify import verify
from tests.flows import tiny

ROOT = Path(__file__).parents[2]


def test_a_prefect_run_with_an_embedded_server_mines_the_same_catalog(world: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "tests.flows.driver", "quick", "mine", "recipe.yaml", "--out", "catalog"]
    done = subprocess.run(
        [*command, "--prefect", "--json"], cwd=world, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    report = tiny.parsed(done.stdout)
    assert (report["images"], report["failed"]) == (3, {})
    assert done.stderr.count("Finished in state Completed()") == 3  # two chunks and the flow
    assert "chunk of a.png" in done.stderr
    assert verify(world / "catalog").ok
    direct = subprocess.run(
        [*command[:-1], "direct"], cwd=world, env=environment, capture_output=True, text=True, timeout=300
    )
    assert direct.returncode == 0, direct.stderr
    assert "Prefect" not in direct.stderr
    assert tiny.direction_ids(world / "direct") == tiny.direction_ids(world / "catalog")
