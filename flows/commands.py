"""What each `rhumb` command does. Every function takes the parsed arguments and returns an exit code (None is 0).

What needs a model is imported inside its command: the others must not wait seconds for torch and diffusers.
"""

from __future__ import annotations

import dataclasses
import json
import math
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog import hub
from catalog.card import CardFields
from catalog.index import build_indexes
from catalog.lookup import homogeneity as measure_homogeneity
from catalog.lookup import similar as find_similar
from catalog.lookup import transfer_candidates
from catalog.reader import Catalog
from catalog.verify import verify as verify_catalog
from flows.console import answer, say, stage, table
from flows.model_choice import ModelChoice
from flows.named_recipes import open_recipe
from pipeline.errors import InputError

if TYPE_CHECKING:
    from flows.miner import MiningReport


def plain(value: Any) -> Any:
    """A value as JSON: dataclasses and arrays unfolded, NaN and infinity as null, paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


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
    from flows.running import run_mining

    report = run_mining(open_recipe(arguments.recipe), arguments.out, arguments.prefect, arguments.workers)
    if (report.images or report.already_done) and not _indexed(arguments.out):
        build_indexes(arguments.out)
    answer(plain(report), arguments.json, lambda: _print_mining(report))
    return 1 if report.failed else 0


def _indexed(folder: Path) -> bool:
    """Whether the catalog has indexes of the directions that it holds now."""
    with Catalog.open(folder) as catalog:
        entries = catalog.manifest.indexes.values()
        now = catalog.manifest.directions_fingerprint
        return bool(entries) and all(entry.directions_fingerprint == now for entry in entries)


def index(arguments: Namespace) -> None:
    """`rhumb index CATALOG`."""
    built = build_indexes(arguments.catalog)
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


def similar(arguments: Namespace) -> None:
    """`rhumb similar CATALOG ID`."""
    with Catalog.open(arguments.catalog) as catalog:
        key = catalog.resolve(arguments.id)
        found = find_similar(catalog, key, arguments.k, by=arguments.by)
    rows = [(f"{s.sign * s.score:+.3f}", s.direction_id, s.region, s.space, s.kind, s.rank) for s in found]
    header = ("cosine", "direction", "region", "space", "kind", "rank")
    answer(
        {"direction": key, "by": arguments.by, "similar": plain(found)},
        arguments.json,
        lambda: table(f"directions on other images like {key[:12]} (by {arguments.by})", header, rows),
    )


def homogeneity(arguments: Namespace) -> None:
    """`rhumb homogeneity CATALOG --region R`."""
    with Catalog.open(arguments.catalog) as catalog:
        _check_region(catalog, arguments.region)
        found = []
        for space, kind in (("x", "local"), ("h", "individual")):
            if catalog.directions(region=arguments.region, space=space, kind=kind).num_rows > 0:
                found.append(measure_homogeneity(catalog, arguments.region, space, kind, by=arguments.by))
        if not found:
            raise InputError("--region", arguments.region, "one with local or individual directions")
    rows = [
        (h.space, h.kind, rank, s.n, s.q10, s.q50, s.q90, s.random[1])
        for h in found
        for rank, s in sorted(h.of_rank.items())
    ]
    header = ("space", "kind", "rank", "images", "10 %", "50 %", "90 %", "random 50 %")
    title = f"|cos| between {arguments.region} directions of different images (by {arguments.by})"
    answer({"homogeneity": plain(found)}, arguments.json, lambda: table(title, header, rows))


def transfer(arguments: Namespace) -> None:
    """`rhumb transfer CATALOG --image PNG --region R`."""
    from flows.editing import fit_of, load_picture, picture_shape, region_mask

    with Catalog.open(arguments.catalog) as catalog:
        image = load_picture(arguments.image, picture_shape(catalog), fit_of(catalog))
        mask = region_mask(catalog, arguments.mask, arguments.image, arguments.region, image)
        found = transfer_candidates(catalog, image, mask, arguments.region, arguments.k)
    rows = [
        (f"{c.score:.3f}", c.direction_id, c.space, c.kind, c.rank, c.mask_iou, c.image_similarity, c.effect_inside,
         _shift(c.shift))
        for c in found
    ]  # fmt: skip
    header = ("score", "direction", "space", "kind", "rank", "mask IoU", "image", "effect inside", "shift x, y")
    answer({"candidates": plain(found)}, arguments.json, lambda: table("transfer candidates", header, rows))


def edit(arguments: Namespace) -> None:
    """`rhumb edit CATALOG --image PNG --direction ID=STRENGTH --out PNG`."""
    from flows.editing import edit_picture

    done = edit_picture(
        arguments.catalog, arguments.image, arguments.direction, arguments.out,
        arguments.model, arguments.mask, not arguments.no_shift,
    )  # fmt: skip
    shifts = "; ".join(f"{key[:12]} {_shift(shift)}" for key, shift in done.shifts.items())
    answer(plain(done), arguments.json, lambda: say(f"wrote {arguments.out}; shifted by pixels x, y: {shifts}"))


def _shift(shift: tuple[float, float] | None) -> str:
    """Pixels to the right and down."""
    return "none" if shift is None else f"{shift[0]:+.1f}, {shift[1]:+.1f}"


def publish(arguments: Namespace) -> None:
    """`rhumb publish CATALOG REPO --version X.Y.Z`."""
    done = hub.publish(
        arguments.catalog, arguments.repo, arguments.version, card=card_fields(arguments.catalog, arguments.licence)
    )
    answer(
        plain(done),
        arguments.json,
        lambda: say(f"published {done.repository} {done.version} ({done.bytes / 1e6:.1f} MB) -> {done.folder}"),
    )


def card_fields(catalog: Path, licence: str | None) -> CardFields:
    """What the dataset card says about licences and sources."""
    with Catalog.open(catalog) as opened:
        provenance = opened.manifest.provenance
    builtin_data = provenance.recipe["dataset"]["kind"] == "builtin"
    builtin_model = provenance.model["reference"] == "builtin"
    own = "apache-2.0"
    fields = {
        "title": str(provenance.recipe["name"]),
        "summary": "Local editing directions of a diffusion model, mined by Rhumb.",
        "citations": (
            "Chen et al., Exploring Low-Dimensional Subspaces in Diffusion Models for Controllable Image Editing, "
            "NeurIPS 2024 (arXiv:2409.02374)",
            "Kouzelis et al., Enabling Local Editing in Diffusion Models by Joint and Individual Component Analysis, "
            "BMVC 2024 (arXiv:2408.16845)",
        ),
    }
    if builtin_model:
        fields["model_licence"] = own
    if builtin_data:
        fields["data_licence"] = own
    if licence or (builtin_data and builtin_model):
        fields["licence"] = licence or own
    return CardFields(**fields)  # type: ignore[arg-type]


def pull(arguments: Namespace) -> None:
    """`rhumb pull REPO --version X.Y.Z --out FOLDER`."""
    with hub.pull(arguments.repo, arguments.version, arguments.out) as catalog:
        rows = {name: catalog.manifest.rows(name) for name in ("directions", "images", "regions")}
    text = ", ".join(f"{count} {name}" for name, count in rows.items())
    answer(
        {"folder": str(arguments.out), "rows": rows},
        arguments.json,
        lambda: say(f"pulled {text} -> {arguments.out}"),
    )


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
        header = ("region", "space", "kind", "directions", "median gain", "median leakage / gain", "median ROIR")
        table("directions", header, [tuple(row.values()) for row in summary["table"]])
        for source, reason in summary["failures"].items():
            say(f"failed: {source}: {reason}")

    answer(plain(summary), arguments.json, text)


def report(arguments: Namespace) -> None:
    """`rhumb report CATALOG`."""
    from flows.report.assemble import write_report

    out = arguments.out or arguments.catalog.resolve().parent / "report"
    with stage("drawing the report", 1) as advance:
        page = write_report(arguments.catalog, out, advance, arguments.model)
    answer({"page": str(page)}, arguments.json, lambda: say(f"wrote {page}"))


def inspect(arguments: Namespace) -> None:
    """`rhumb inspect MODEL`."""
    from flows.mining import open_model

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
