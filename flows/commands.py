"""What each `rhumb` command does. Every function takes the parsed arguments and returns an exit code (None is 0).

What needs a model is imported inside its command: the others must not wait seconds for torch and diffusers.
"""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.index import build_indexes
from catalog.reader import Catalog
from catalog.verify import verify as verify_catalog
from flows.console import answer, say, stage, table
from flows.model_choice import ModelChoice
from flows.named_recipes import open_recipe
from flows.plain import plain
from flows.run_arguments import run_settings
from flows.watching.events import log_to
from pipeline.errors import InputError

if TYPE_CHECKING:
    from flows.miner import MiningReport


def _print_mining(report: MiningReport) -> None:
    say(
        f"{report.images} images mined, {report.already_done} already there, {len(report.failed)} failed; "
        f"{report.directions} directions, {report.products['jvp']} JVPs + {report.products['vjp']} VJPs, "
        f"{report.seconds:.0f} s -> {report.catalog}"
    )
    for word, sources in (("skipped", report.skipped), ("failed", report.failed)):
        for source, reason in sources.items():
            say(f"{word}: {source}: {reason}")


def plan(arguments: Namespace) -> int:
    """`rhumb plan RECIPE`."""
    from flows.planning import plan as make_plan
    from flows.planning import show

    found = make_plan(arguments.recipe, arguments.out, not arguments.no_measure)
    answer(plain(found), arguments.json, lambda: show(found))
    return 0 if found.ready else 2


def mine(arguments: Namespace) -> int:
    """`rhumb mine RECIPE --out CATALOG`."""
    from flows.runners import TASKS

    settings = run_settings(arguments)
    recipe = open_recipe(arguments.recipe)
    with log_to(arguments.log):
        if settings.runner in TASKS:
            from flows.orchestration.jobs import mine_here  # starting Prefect takes seconds: only when asked for

            report = mine_here(recipe, arguments.out, settings)
        else:
            from flows.running import run_mining

            report = run_mining(recipe, arguments.out, settings)
    if (report.images or report.already_done) and not _indexed(arguments.out):
        build_indexes(arguments.out)
    answer(plain(report), arguments.json, lambda: _print_mining(report))
    return 1 if report.failed else 0


def _indexed(folder: Path) -> bool:
    """Whether the catalog has indexes of the directions that it holds now."""
    with Catalog.open(folder) as catalog:
        shards, entries = catalog.manifest.shards("directions"), catalog.manifest.indexes.values()
        return bool(entries) and all(entry.covers(shards) for entry in entries)


def index(arguments: Namespace) -> None:
    """`rhumb index CATALOG`."""
    built = build_indexes(arguments.catalog, rebuild=arguments.rebuild)
    rows = [(name, count) for name, count in built.items()]
    answer(plain(built), arguments.json, lambda: table("indexes", ("index", "directions"), rows))


def directions(arguments: Namespace) -> None:
    """`rhumb directions CATALOG`."""
    if arguments.limit < 1:
        raise InputError("--limit", arguments.limit, "at least 1")
    with Catalog.open(arguments.catalog) as catalog:
        wanted = {name: getattr(arguments, name) for name in ("region", "space", "kind")}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        if arguments.image is not None:
            wanted["image_id"] = catalog.resolve(arguments.image, "images")
        _check_region(catalog, arguments.region)
        found = catalog.directions(**wanted).to_pylist()
        source = {row["image_id"]: row["source"] for row in catalog.images().to_pylist()}
    found.sort(key=lambda row: tuple(row[name] for name in ("region", "space", "kind", "rank", "image_id")))
    shown = [_listed(row, source[row["image_id"]]) for row in found[: arguments.limit]]
    names = ("direction", "image", "source", "region", "space", "kind", "rank", "strength", "gain", "ROIR")
    header = (*names, "leakage / gain")
    rows = [[_cell(name, value) for name, value in row.items()] for row in shown]
    title = f"{len(shown)} of {len(found)} directions" + ("" if len(shown) == len(found) else " (--limit N for more)")
    answer({"total": len(found), "directions": plain(shown)}, arguments.json, lambda: table(title, header, rows))


def _listed(row: dict[str, Any], source: str) -> dict[str, Any]:
    """A direction as `rhumb directions` shows it: which, and its evidence."""
    names = ("region", "space", "kind", "rank", "strength", "gain", "roir")
    ratio = row["leakage"] / row["gain"] if row["gain"] > 0 else None
    key = {"direction_id": row["direction_id"], "image_id": row["image_id"], "source": source}
    return {**key, **{name: row[name] for name in names}, "leakage_ratio": ratio}


def _cell(name: str, value: object) -> object:
    if value is None:
        return "-"
    return str(value)[:12] if name == "image_id" else value


def _check_region(catalog: Catalog, region: str | None) -> None:
    known = sorted(set(catalog.directions().column("region").to_pylist()))
    if region is not None and region not in known:
        raise InputError("--region", region, f"one of {', '.join(known)}")


def transfer(arguments: Namespace) -> None:
    """`rhumb transfer CATALOG --image PNG --region R`."""
    from flows.transferring import Ask, as_document, find_transfers, show

    ask = Ask(
        arguments.region, arguments.mask, arguments.k, arguments.candidates, not arguments.no_predict,
        arguments.verify, arguments.picture, arguments.model,
    )  # fmt: skip
    done = find_transfers(arguments.catalog, arguments.image, ask)
    answer(plain(as_document(done)), arguments.json, lambda: show(done))


def edit(arguments: Namespace) -> None:
    """`rhumb edit CATALOG --image PNG --direction ID=STRENGTH --out PNG`."""
    from flows.editing import edit_picture

    done = edit_picture(
        arguments.catalog, arguments.image, arguments.direction, arguments.out,
        arguments.model, arguments.mask, not arguments.no_shift,
    )  # fmt: skip
    shifts = "; ".join(f"{key[:12]} {_shift(shift)}" for key, shift in done.shifts.items())

    def text() -> None:
        for told in done.remarks:
            say(told)
        say(f"wrote {arguments.out}; shifted by pixels x, y: {shifts}")

    answer(plain(done), arguments.json, text)


def _shift(shift: tuple[float, float] | None) -> str:
    """Pixels to the right and down."""
    return "none" if shift is None else f"{shift[0]:+.1f}, {shift[1]:+.1f}"


def verify(arguments: Namespace) -> int:
    """`rhumb verify CATALOG`."""
    found = verify_catalog(arguments.catalog)

    def text() -> None:
        for problem in found.problems:
            say(f"{problem.file}: {problem.what}")
        verdict = "sound" if found.ok else f"{len(found.problems)} problems"
        say(f"{found.folder}: {verdict}; {found.files} files, {found.bytes / 1e6:.1f} MB")

    answer({**plain(found), "ok": found.ok}, arguments.json, text)
    return 0 if found.ok else 1


def status(arguments: Namespace) -> None:
    """`rhumb status CATALOG`."""
    from flows.summary import summarise

    summary = summarise(arguments.catalog)

    def text() -> None:
        for name in ("name", "model", "version", "images", "directions", "failed", "indexes", "pack"):
            say(f"{name}: {summary[name]}")
        for sentence in summary["left_out"]:
            say(f"packs: {sentence}")
        for name, words in (summary["run"] or {"says": {}})["says"].items():
            say(f"last run: {words}" if name == "run" else f"  {name}: {words}")
        header = ("region", "space", "kind", "directions", "median gain", "median leakage / gain", "median ROIR")
        table("directions", header, [tuple(row.values()) for row in summary["table"]])
        for source, reason in summary["failures"].items():
            say(f"failed: {source}: {reason}")

    answer(plain(summary), arguments.json, text)


def report(arguments: Namespace) -> None:
    """`rhumb report CATALOG`."""
    from flows.report.assemble import remarks_of, write_report

    out = arguments.out or arguments.catalog.resolve().parent / "report"
    with stage("drawing the report", 1) as advance:
        page = write_report(arguments.catalog, out, advance, arguments.model)
    with Catalog.open(arguments.catalog) as catalog:
        remarks = remarks_of(catalog)

    def text() -> None:
        for told in remarks:
            say(told)
        say(f"wrote {page}")

    answer({"page": str(page)} | ({"remarks": list(remarks)} if remarks else {}), arguments.json, text)


def inspect(arguments: Namespace) -> None:
    """`rhumb inspect MODEL`."""
    from flows.opening import open_model

    denoiser = open_model(
        ModelChoice.model_construct(
            reference=arguments.model, revision=arguments.revision, class_label=arguments.class_label
        )
    )
    info, origin = dataclasses.asdict(denoiser.info), denoiser.origin
    rows = [
        (name.replace("_", " "), " x ".join(map(str, v)) if isinstance(v, tuple) else v) for name, v in info.items()
    ]
    if origin is not None:
        info |= {"commit": origin.commit, "files": origin.files}
        rows += [("commit", origin.commit)] if origin.commit is not None else []
        rows += [(name, f"sha256 {record.sha256[:12]}, {record.bytes} bytes") for name, record in origin.files.items()]
    answer(plain(info), arguments.json, lambda: table(arguments.model, ("", ""), rows))


def convert(arguments: Namespace) -> None:
    """`rhumb convert CHECKPOINT --preset NAME --out FOLDER`."""
    from flows.converting import convert as run_conversion

    done = run_conversion(arguments.checkpoint, arguments.preset, arguments.out, arguments.settings)
    rows = [
        (name.replace("_", " "), " x ".join(map(str, v)) if isinstance(v, tuple) else v)
        for name, v in dataclasses.asdict(done).items()
        if v not in (None, "")
    ]
    answer(plain(done), arguments.json, lambda: table(f"converted -> {done.folder}", ("", ""), rows))


def demo(arguments: Namespace) -> None:
    """`rhumb demo`."""
    from flows.demo import run_demo

    done = run_demo(arguments.out, arguments.recipe, arguments.limit)

    def text() -> None:
        table("stages", ("stage", "seconds"), list(done["seconds"].items()))
        say(f"open {done['page']}")

    answer(plain(done), arguments.json, text)


def train(arguments: Namespace) -> None:
    """`rhumb train builtin|reader|data`."""
    from flows.training import train as run_training

    done = run_training(arguments.what, arguments.out, arguments.work, arguments.steps)
    answer(plain(done), arguments.json, lambda: say(json.dumps(plain(done))))
