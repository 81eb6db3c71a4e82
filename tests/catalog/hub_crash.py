"""Run by test_store_hub: publishes in forked children that die by SIGKILL just before their n-th change to the disk.

Prints how each child ended, as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from catalog.hub.contract import Draft
from catalog.hub.stores import StoreHub
from tests.catalog import faulty  # noqa: F401  its filesystem is registered
from tests.catalog.crash_driver import arm
from tests.catalog.drafts import draft, quiet


def hub_in(folder: Path, job: str) -> StoreHub:
    return StoreHub(folder / "hub" if job == "publish_local" else f"faulty://{folder}/hub")


def next_draft(folder: Path, former: str) -> Draft:
    return draft(folder, "1.1.0", (1, 3), held=(1,), former=former)


def main(job: str, start: Path, work: Path) -> None:
    endings: list[int] = []
    while not endings or endings[-1] == -signal.SIGKILL:
        folder = work / str(len(endings))
        shutil.copytree(start, folder)
        hub = hub_in(folder, job)
        (former,) = hub.versions("org/pack").values()
        mine = next_draft(folder, former)
        child = os.fork()
        if child == 0:
            arm(len(endings))
            hub.publish(mine, quiet)
            os._exit(0)
        endings.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.stdout.write(json.dumps(endings))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
