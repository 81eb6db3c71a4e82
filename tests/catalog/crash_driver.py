"""Run by test_crash: does a job in a forked child that dies by SIGKILL just before its n-th change to the disk.

The parent only imports and forks, so no thread of a library is ever copied. Prints how each child ended, as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet  # noqa: F401  loaded once, before the forks

from catalog.compaction import compact
from catalog.deposits import Target, whole_deposits, write_deposit
from catalog.merging import merge
from catalog.pictures import encode_png
from catalog.reader import Catalog
from catalog.store import LocalStore
from catalog.writer import CatalogWriter
from tests.catalog import faulty  # noqa: F401  its filesystem is registered
from tests.catalog.local_hub import publish, pull
from tests.catalog.samples import chunk_of, provenance

CHANGES = ("replace", "rename", "fsync", "unlink", "mkdir", "rmdir", "link")


def arm(steps: int) -> None:
    """Count every call that may change the disk and die before call number `steps`."""
    left = steps

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # a kill, unlike a power cut, loses no write
    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))


def create(folder: Path) -> None:
    CatalogWriter.create(folder / "c", provenance()).close()


def commit(folder: Path) -> None:
    with CatalogWriter.open(folder / "c") as writer:
        writer.commit(chunk_of("next", 1, ("mouth",)))


def deposit(folder: Path) -> None:
    with Catalog.open(folder / "c") as catalog:
        target = Target.of(catalog.manifest)
    write_deposit(LocalStore(folder / "c"), "job", "next", chunk_of("next", 1, ("mouth",)), target)


def adopt(folder: Path) -> None:
    store = LocalStore(folder / "c")
    with CatalogWriter.open(folder / "c") as writer:
        writer.adopt(list(whole_deposits(store, "job")), store)


def distant(folder: Path) -> str:
    """Where a catalog lies in a distant store, of which this machine has no mirror yet."""
    os.environ["RHUMB_CACHE"] = str(folder / "cache")
    return f"faulty://{folder}/store"


def distant_create(folder: Path) -> None:
    CatalogWriter.create(distant(folder), provenance()).close()


def distant_adopt(folder: Path) -> None:
    with CatalogWriter.open(distant(folder)) as writer:
        writer.adopt(list(whole_deposits(writer.store, "job")))


def distant_replace(folder: Path) -> None:
    with CatalogWriter.open(distant(folder)) as writer:
        writer.add_picture("sheet", encode_png(np.zeros((2, 2, 3), np.uint8)))


def replace_picture(folder: Path) -> None:
    with CatalogWriter.open(folder / "c") as writer:
        writer.add_picture("sheet", encode_png(np.zeros((2, 2, 3), np.uint8)))


def compact_all(folder: Path) -> None:
    compact(folder / "c")


def merge_both(folder: Path) -> None:
    merge([folder / "c", folder / "other"], folder / "m")


def publish_next(folder: Path) -> None:
    publish(folder / "c", "org/pack", "1.1.0", folder / "hub")


def pull_first(folder: Path) -> None:
    pull("org/pack", "1.0.0", folder / "out", folder / "hub").close()


JOBS = {
    job.__name__: job
    for job in [
        *(create, commit, deposit, adopt, replace_picture, compact_all, merge_both, publish_next, pull_first),
        *(distant_create, distant_adopt, distant_replace),
    ]
}


def main(job: str, start: Path, work: Path, first: int, stride: int) -> None:
    endings = []
    step = first
    while True:
        folder = work / str(step)
        shutil.copytree(start, folder)
        child = os.fork()
        if child == 0:
            arm(step)
            JOBS[job](folder)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        endings.append(os.waitstatus_to_exitcode(status))
        if endings[-1] != -signal.SIGKILL:
            break
        step += stride
    sys.stdout.write(json.dumps(endings))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
