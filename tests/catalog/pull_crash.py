"""Run by test_pulling: pulls in forked children that die by SIGKILL just before their n-th change to the disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from catalog.hub.parts import Part
from catalog.hub.pulling import pull
from tests.catalog import crash_driver
from tests.catalog.packs import NAME, FolderHub

PARTS = {"whole": None, "part": Part(regions=("mouth",), without=("preview",))}


def pull_to(folder: Path, kind: str) -> Path:
    """Pull the pack in `folder`, or a part of it, to `out` beside it, with a cache of its own."""
    os.environ["RHUMB_CACHE"] = str(folder / "cache")
    return pull(NAME, folder / "out", PARTS[kind], FolderHub(folder / "pack")).folder


if __name__ == "__main__":
    crash_driver.JOBS["pull"] = lambda folder: pull_to(folder, sys.argv[1]) and None
    crash_driver.main("pull", Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
