"""Which settings were tried, and what came of them: the search behind the recipe, on `mine` images only.

`python -m tests.benchmarks.edits --tune` tries a grid of timesteps, null ranks, joint and individual ranks and windows,
judges each exactly as the benchmark does, and adds its rows to `tests/benchmarks/results/tuning.json`; a digest of them
lies beside the recipe, where the report finds it. One set of singular vectors per image and timestep serves all ranks:
the leading null vectors and the leading rows of the blocks are nested.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from flows.console import answer, stderr
from flows.paths import builtin_recipe
from pipeline.directions import MINIMAL_KEPT_SHARE, loco_inside, null_space_projection
from pipeline.inversion import Convention
from pipeline.jacobian import jacobian
from pipeline.jive import jive
from pipeline.mining import REST, Direction
from pipeline.operators import LinearOperator
from pipeline.strengths import linear_strength, measure
from pipeline.svd import TruncatedSVD, masked_svds
from tests.benchmarks.edit_figures import Edited, by_region, transfer_figures
from tests.benchmarks.edits import transfers
from tests.benchmarks.harness import Options, plain, save_json, table
from tests.benchmarks.subjects import Bench, Subject, load_images, make_subjects, open_bench
from tests.benchmarks.trials import Case, better_of_both_signs

RESULTS = Path(__file__).parent / "results" / "tuning.json"
DIGEST = builtin_recipe().with_suffix(".tuning.json")
IMAGES, OTHERS = 4, 2
Variant = Literal["projected", "inside"]


@dataclass(frozen=True)
class LocalSetting:
    """x-space: `null_rank` 0 is the plain singular direction; `inside` takes the SVD in the null space itself."""

    null_rank: int
    variant: Variant = "projected"
    space: Literal["x", "h"] = "x"


@dataclass(frozen=True)
class ComponentSetting:
    """h-space: ranks of the blocks, of the joint and of the individual part (0, 0 is the plain SVD), and the window.

    `window` is in shares of the timestep: (1, 0) shifts h all the way down.
    """

    rank: int
    joint_rank: int
    individual_rank: int
    window: tuple[float, float] = (1.0, 0.0)
    convention: Convention = "both"
    space: Literal["x", "h"] = "h"


Setting = LocalSetting | ComponentSetting
Singulars = dict[str, TruncatedSVD]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `--tune`."""
    group = parser.add_argument_group("tuning", "a grid on `mine` images; lists are comma-separated")
    group.add_argument("--tune", action="store_true", help=f"try settings and add them to {RESULTS.name}")
    group.add_argument("--spaces", default="x,h", help="x, h or both (default)")
    group.add_argument("--timesteps", default="0.25,0.35,0.45,0.6", help="fractions of T")
    group.add_argument("--null-ranks", default="0,10,30,60", help="ranks of the null space removed (x)")
    group.add_argument("--variants", default="projected", help="projected, inside: where the SVD is taken (x)")
    group.add_argument("--ranks", default="20/0/0,20/5/3,20/30/1,20/30/3", help="block/joint/individual ranks (h)")
    group.add_argument("--windows", default="1:0", help="HIGH:LOW in shares of the timestep (h)")
    group.add_argument("--conventions", default="both", help="both, x0 (h)")
    group.add_argument("--steps", type=int, help="decoding steps (default: the recipe's)")
    group.add_argument("--tune-recipe", type=Path, help="take other settings from this recipe")


def grid(given: argparse.Namespace) -> list[Setting]:
    """All settings to be tried at each timestep."""
    spaces, found = given.spaces.split(","), list[Setting]()
    if "x" in spaces:
        for null_rank in map(int, given.null_ranks.split(",")):
            variants = ["projected"] if null_rank == 0 else given.variants.split(",")
            found += [LocalSetting(null_rank, "inside" if v == "inside" else "projected") for v in variants]
    if "h" in spaces:
        for ranks in given.ranks.split(","):
            for window in given.windows.split(","):
                for convention in given.conventions.split(","):
                    high, low = (float(edge) for edge in window.split(":"))
                    rank, joint, individual = (int(part) for part in ranks.split("/"))
                    found.append(ComponentSetting(rank, joint, individual, (high, low), convention))
    return found


def _blocks(masks: Mapping[str, torch.Tensor], space: str) -> dict[str, torch.Tensor]:
    """Masks whose singular vectors are needed: regions and complements in x-space, regions and the rest in h-space."""
    if space == "x":
        return {**masks, **{f"not {region}": ~mask for region, mask in masks.items()}}
    rest = ~torch.stack(list(masks.values())).any(0)
    return {**masks, **({REST: rest} if bool(rest.any()) else {})}


def _singulars(bench: Bench, operator: LinearOperator, subject: Subject, settings: Sequence[Setting]) -> Singulars:
    """One search for everything that any of the settings (of one space) needs."""
    space = settings[0].space
    blocks = _blocks(subject.masks, space)
    if space == "x":
        null = max(s.null_rank for s in settings if isinstance(s, LocalSetting))
        ranks = {name: null if name.startswith("not ") else bench.recipe.method.loco.rank for name in blocks}
    else:
        ranks = dict.fromkeys(blocks, max(s.rank for s in settings if isinstance(s, ComponentSetting)))
    seed = bench.settings.seed + (space == "h")
    return masked_svds(
        operator,
        blocks,
        {name: rank for name, rank in ranks.items() if rank > 0},
        generator=torch.Generator().manual_seed(seed),
        tolerance=bench.settings.tolerance,
    )


def _local(operator: LinearOperator, subject: Subject, svds: Singulars, setting: LocalSetting) -> list[Direction]:
    found = []
    for region, mask in subject.masks.items():
        svd = svds[region]
        vector, kept = svd.v[0], 1.0
        if setting.null_rank > 0 and setting.variant == "projected":
            vector, share = null_space_projection(svd.v[0], svds[f"not {region}"].v[: setting.null_rank])
            kept = float(share)
        elif setting.null_rank > 0:
            complement, generator = svds[f"not {region}"], torch.Generator().manual_seed(0)
            inside, _ = loco_inside(operator, mask, complement, 1, setting.null_rank, generator=generator, region=svd)
            vector = inside.vectors[0]
        if kept >= MINIMAL_KEPT_SHARE:
            kind: Literal["singular", "local"] = "singular" if setting.null_rank == 0 else "local"
            found.append(Direction(region, "x", kind, 0, vector, svd.sigma, parents=(0,), kept_share=kept))
    return found


def _components(subject: Subject, svds: Singulars, setting: ComponentSetting, scale: bool) -> list[Direction]:
    if setting.individual_rank == 0:
        return [Direction(r, "h", "singular", 0, svds[r].v[0], svds[r].sigma) for r in subject.masks]
    stacked = [(svd.sigma[:, None] * svd.v.flatten(1))[: setting.rank] for svd in svds.values()]
    split = jive(stacked, setting.joint_rank, [setting.individual_rank] * len(stacked), scale=scale)
    found = []
    for i, region in enumerate(svds):
        rows = split.individual_directions(i)
        if region != REST and len(rows):
            vector = rows[0].view_as(svds[region].v[0]).to(svds[region].v)
            found.append(Direction(region, "h", "individual", 0, vector, svds[region].sigma))
    return found


def _directions(
    bench: Bench, subject: Subject, settings: Sequence[Setting]
) -> Iterator[tuple[Setting, dict[str, Direction]]]:
    """First directions by region of one image for every setting, with gains."""
    t, network = bench.settings.timestep, bench.denoiser.differentiable()
    for space in ("x", "h"):
        wanted = [s for s in settings if s.space == space]
        if not wanted:
            continue
        operator = jacobian(network, subject.x_t, t, "x0/x" if space == "x" else "x0/h")
        svds = _singulars(bench, operator, subject, wanted)
        for setting in wanted:
            if isinstance(setting, LocalSetting):
                found = _local(operator, subject, svds, setting)
            else:
                found = _components(subject, svds, setting, bench.recipe.method.jive.scale)
            yield setting, {d.region: d for d in measure(operator, found, subject.masks)}


def _evaluate(
    bench: Bench, subjects: Sequence[Subject], setting: Setting, found: Sequence[dict[str, Direction]], others: int
) -> dict[str, Any]:
    """Figures of one setting: its edits at home and on `others` more images."""
    t = bench.settings.timestep
    if isinstance(setting, ComponentSetting):
        window = (round(setting.window[0] * t), round(setting.window[1] * t))
        bench = bench.at(t, replace(bench.settings.decode, h_window=window, convention=setting.convention))
    label = "plain" if _is_plain(setting) else "local" if setting.space == "x" else "individual"
    wanted = [(s, r, each.get(r)) for s, each in zip(subjects, found, strict=True) for r in s.masks]
    cases = [Case(s, r, d.space, d.vector, linear_strength(d, s.masks[r])) for s, r, d in wanted if d is not None]
    trials = iter(better_of_both_signs(bench, cases, "editing") if cases else [])
    edits = [Edited(label, s.name, r, d, None if d is None else next(trials)) for s, r, d in wanted]
    parts = by_region(edits)
    directions = [d for _, _, d in wanted if d is not None]
    linear = torch.tensor([d.leakage / max(d.gain, 1e-12) for d in directions] or [math.nan])
    moved = transfer_figures(transfers(bench, subjects, edits, others)) if others else None
    return {
        "method": label,
        "edits": len(edits),
        "success": parts["all"]["success"],
        "roir_median": parts["all"]["roir_median"],
        "roir_median_small": parts.get("small regions", parts["all"])["roir_median"],
        "linear_roir_median": float(linear.median()),
        "by_region": {r: (f["success"].estimate, f["roir_median"].estimate) for r, f in parts.items()},
        "limit_hits": parts["all"]["limit_hits"],
        "failures": parts["all"]["failures"],
        "transfer": moved["success_overlapping"] if moved else None,
        "transfer_perfect_editor": moved["perfect_editor_overlapping"] if moved else None,
        "transfer_failures": moved["failures_overlapping"] if moved else None,
    }


def _is_plain(setting: Setting) -> bool:
    return (setting.null_rank if isinstance(setting, LocalSetting) else setting.individual_rank) == 0


def tune(
    bench: Bench,
    timesteps: Sequence[float],
    settings: Sequence[Setting],
    images: int,
    others: int,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Try every setting at every timestep (fractions of T) on the first `images` of `mine`; `keep` gets each row."""
    sources = load_images("faces64", "mine", images, bench.recipe.region_names, bench.denoiser.info.image_shape)
    for share in timesteps:
        t = bench.fraction(share)
        here = bench.at(t, replace(bench.settings.decode, h_window=(t, 0)))
        subjects = make_subjects(here, sources)
        found: dict[Setting, list[dict[str, Direction]]] = {setting: [] for setting in settings}
        with bench.clock.stage("mining"):
            for subject in subjects:
                for setting, directions in _directions(here, subject, settings):
                    found[setting].append(directions)
                stderr.print(f"t = {share:g} T: mined {subject.name[:12]}", highlight=False)
        for setting in settings:
            begun, before = time.monotonic(), bench.clock.passes
            row = {"timestep": share, **asdict(setting), "images": len(subjects), "others": others}
            row |= _evaluate(here, subjects, setting, found[setting], others)
            row |= {"steps": here.settings.decode.steps, "model": bench.denoiser.info.fingerprint}
            row |= {"seconds": time.monotonic() - begun, "network_passes": bench.clock.passes - before}
            keep(plain(row))


_KEY = ("model", "timestep", "space", "null_rank", "variant", "rank", "joint_rank", "individual_rank", "window",
        "convention", "steps", "images", "others")  # fmt: skip


def merged(path: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """The table in `path` with `row` added, or put in place of the same setting tried before."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    rows = [old for old in rows if any(old.get(key) != row.get(key) for key in _KEY)]
    return {"benchmark": "edits --tune", "data": "faces64/mine", "rows": [*rows, dict(row)]}


def digest(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the report shows of the rows of the newest model, x-space first."""
    newest = [row for row in rows if row["model"] == rows[-1]["model"]]
    return [
        {
            "space": row["space"],
            "method": row["method"],
            "t / T": row["timestep"],
            "settings": _named(row),
            "edits": row["edits"],
            "success": _rounded(row["success"]),
            "median ROIR": _rounded(row["roir_median"]),
            "transfer": _rounded(row["transfer"]),
            "a perfect editor": _rounded(row["transfer_perfect_editor"]),
        }
        for row in sorted(newest, key=lambda row: (row["space"] != "x", row["timestep"], row["method"]))
    ]


def _named(row: Mapping[str, Any]) -> str:
    """The settings of a row in words."""
    if row["space"] == "x":
        return f"null rank {row['null_rank']}, {row['variant']}" if row["null_rank"] else "no null space"
    window = "all the way" if row["window"] == [1.0, 0.0] else f"{row['window'][0]:g} t to {row['window'][1]:g} t"
    return f"ranks {row['rank']} / {row['joint_rank']} / {row['individual_rank']}, {window}, {row['convention']}"


def _rounded(figure: Mapping[str, Any] | None) -> float | None:
    return None if figure is None or figure["estimate"] is None else round(figure["estimate"], 2)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """The settings tried, as a table."""
    cells = []
    for r in rows:
        ranks = f"null {r['null_rank']} {r['variant']}" if r["space"] == "x" else (
            f"{r['rank']}/{r['joint_rank']}/{r['individual_rank']} {r['window'][0]:g}:{r['window'][1]:g} "
            f"{r['convention']}")  # fmt: skip
        regions = " ".join(f"{n} {_two(s)}/{_two(v)}" for n, (s, v) in r["by_region"].items() if n in _SHOWN)
        failures = ", ".join(f"{name} {count}" for name, count in list(r["failures"].items())[:3])
        transfer = _two(r["transfer"]["estimate"]) if r["transfer"] else "-"
        figures = (r["success"], r["roir_median"], r["roir_median_small"])
        cells.append((f"{r['timestep']:g}", r["method"], ranks, *(_two(f["estimate"]) for f in figures),
                      _two(r["linear_roir_median"]), transfer, r["limit_hits"], regions, failures))  # fmt: skip
    header = ("t/T", "method", "settings", "success", "ROIR", "small", "linear", "transfer", "limit",
              "success/ROIR by region", "failures")  # fmt: skip
    table("settings tried on mine images", header, cells)


_SHOWN = ("left_eye", "right_eye", "mouth", "hair")


def _two(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def run(given: Options) -> int:
    """`--tune`: try the grid, adding each row to the results file as it comes."""
    from flows.recipe import load_recipe

    extra, path = given.extra, given.save or RESULTS
    bench = open_bench(load_recipe(extra.tune_recipe) if extra.tune_recipe else None)
    if extra.steps:
        bench = bench.at(bench.settings.timestep, replace(bench.settings.decode, steps=extra.steps))
    timesteps = [float(t) for t in extra.timesteps.split(",")]
    images = extra.images or (2 if given.quick else IMAGES)
    others = OTHERS if extra.others is None else extra.others
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        content = merged(path, row)
        save_json(content, path)
        if path == RESULTS:
            save_json(digest(content["rows"]), DIGEST)
        stderr.print(f"t = {row['timestep']:g} T, setting {len(rows)}: success {row['success']['estimate']}, "
                     f"median ROIR {row['roir_median']['estimate']}, {row['seconds']:.0f} s",
                     highlight=False)  # fmt: skip

    tune(bench, timesteps, grid(extra), images, others, keep)
    answer({"rows": rows}, given.json, lambda: show(rows))
    return 0
