"""`rhumb demo`: the whole walk on the built-in data, from images to a published pack and the page that shows it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from catalog.hub.names import PackName, Version
from catalog.hub.opening import open_hub
from catalog.hub.pulling import pull
from catalog.index import build_indexes
from catalog.verify import verify
from flows.console import stage
from flows.opening import model_place
from flows.paths import builtin_recipe
from flows.publishing import is_published, publish_catalog
from flows.recipe import load_recipe
from flows.report.assemble import write_report
from flows.running import run_mining
from pipeline.errors import CatalogError, ConflictError, InputError

FOLDERS = ("catalog", "hub", "pulled", "report")
REPOSITORY = "rhumb/faces64-demo"
VERSION = "1.0.0"


def run_demo(out: Path, recipe_path: Path | None = None, limit: int | None = None) -> dict[str, Any]:
    """Mine, index, publish, pull back, verify and report; leaves `catalog/ hub/ pulled/ report/` in `out`.

    A killed demo continues where it stopped.

    Raises:
        ConflictError: `out` holds other things than a demo's folders; nothing is written.
    """
    _check_folder(out)
    recipe = load_recipe(recipe_path or builtin_recipe())
    if limit is not None:
        if limit < 1:
            raise InputError("--limit", limit, "at least 1")
        recipe = recipe.limited_to(limit)
    seconds: dict[str, float] = {}
    report = _timed(seconds, "mine", lambda: run_mining(recipe, out / "catalog"))
    with stage("index, publish, pull, verify", 4) as advance:
        _timed(seconds, "index", lambda: build_indexes(out / "catalog"))
        advance(1, "indexed")
        _timed(seconds, "publish", lambda: _publish_once(out))
        advance(1, "published")
        _timed(seconds, "pull", lambda: pull(_pack(out), out / "pulled"))
        advance(1, "pulled")
        _timed(seconds, "verify", lambda: _verify(out / "pulled"))
        advance(1, "verified")
    with stage("drawing the report", 1) as advance:
        place = model_place(recipe).reference
        page = _timed(seconds, "report", lambda: write_report(out / "pulled", out / "report", advance, place))
    return {
        "images": report.images + report.already_done,
        "failed": report.failed,
        "directions": report.directions,
        "products": report.products,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "page": page,
        "contact_sheet": out / "report" / "contact-sheet.png",
    }


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConflictError("--out", f"{out}, a file", "a folder")
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in FOLDERS) if out.is_dir() else []
    if foreign:
        raise ConflictError(
            "--out", f"{out} with {foreign[0]} in it", "a new folder or one of an earlier demo",
            "Choose another --out; nothing was written.",
        )  # fmt: skip


def _pack(out: Path) -> PackName:
    return PackName.parse(str(out / "hub" / REPOSITORY), VERSION)


def _publish_once(out: Path) -> None:
    """Publish the catalog; a demo that is run again finds its own version there and keeps it if it is the same."""
    pack, repository = _pack(out), str(out / "hub" / REPOSITORY)
    if Version.parse(VERSION) in open_hub(pack).versions(pack.repository):
        if not is_published(out / "catalog", repository, VERSION):
            raise ConflictError(
                "--out", f"{out / 'hub'} with {VERSION} of other directions", "a new folder or one of this demo",
                "Choose another --out: published versions never change.",
            )  # fmt: skip
        return
    publish_catalog(out / "catalog", repository, VERSION)


def _verify(folder: Path) -> None:
    found = verify(folder)
    if not found.ok:
        problem = found.problems[0]
        raise CatalogError(problem.file, problem.what, "a pack as it was published")


def _timed(seconds: dict[str, float], name: str, work: Any) -> Any:
    started = time.monotonic()
    result = work()
    seconds[name] = time.monotonic() - started
    return result
