"""The command line: parsing and dispatch only. Every command is one function of a module of commands.

Exit codes: 0 done, 1 a check found problems, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from catalog.fs import disk_error
from flows import pack_arguments as packs
from flows.console import complain
from flows.evaluation import arguments as evaluation
from flows.orchestration import arguments as orchestration
from flows.run_arguments import RUN
from pipeline.errors import RhumbError

Spec = tuple[str, dict[str, Any]]
Add = Callable[..., None]
"""Called as add(name, text, *specs): one more command, with `--json`."""

KINDS = ("singular", "local", "joint", "individual")
MODULES = {
    "catalog": "flows.catalog_commands",
    **dict.fromkeys(("similar", "homogeneity", "concepts"), "flows.lookup_commands"),
    **dict.fromkeys(orchestration.COMMANDS, "flows.orchestration_commands"),
    **dict.fromkeys(packs.COMMANDS, "flows.pack_commands"),
    "evaluate": "flows.evaluation.commands",
}
"""Where the function of a command lies, if not in `flows.commands`."""
ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # An embedded server takes about as long to start as Prefect's own limit of 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
"""Set for this process unless the user has set them."""


CATALOG: Spec = ("catalog", {"type": Path, "metavar": "CATALOG", "help": "catalog folder"})
RECIPE: Spec = (
    "recipe",
    {"type": Path, "metavar": "RECIPE", "help": "YAML recipe, or the name of a built-in one such as celebahq, whose "
     "relative paths then start at the working directory"},
)  # fmt: skip
IMAGE: Spec = (
    "--image",
    {"type": Path, "required": True, "metavar": "PNG", "help": "the picture, of any common format, size and mode"},
)
REGION: Spec = ("--region", {"required": True, "metavar": "R", "help": "a region of the catalog"})
MANY: Spec = ("-k", {"type": int, "default": 10, "help": "how many (default: 10)"})
BY: Spec = (
    "--by",
    {"choices": ("effect", "vector", "both"), "default": "effect", "help": "what to compare (default: effect)"},
)
OFFSET: Spec = ("--offset", {"type": int, "default": 0, "metavar": "N", "help": "leave out the first N (default: 0)"})
PICTURE: Spec = ("--picture", {"type": Path, "default": None, "metavar": "PNG", "help": "write a contact sheet"})
SEVERAL: dict[str, Any] = {"action": "append", "default": []}
MODEL: Spec = (
    "--model",
    {"default": None, "help": "the catalog's model, where it is no longer at the place that the recipe names"},
)
JSON: Spec = ("--json", {"action": "store_true", "help": "print one JSON document"})


def _out(metavar: str, text: str) -> Spec:
    return "--out", {"type": Path, "required": True, "metavar": metavar, "help": text}


def build_parser() -> argparse.ArgumentParser:
    """The parser of every `rhumb` command."""
    parser = argparse.ArgumentParser(
        prog="rhumb", description="Mine, index and share the local editing directions of diffusion models."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, *specs: Spec) -> None:
        command = commands.add_parser(name, help=text, description=text)
        for argument, options in (*specs, JSON):
            command.add_argument(argument, **options)

    for group in (_add_mining, _add_lookup, _add_transfer, _add_edits, _add_checks, _add_training):
        group(add)
    packs.add_packs(add, CATALOG, KINDS)
    evaluation.add_evaluation(add)
    orchestration.add_orchestration(add, RECIPE)
    _add_catalog(commands)
    return parser


def _add_catalog(commands: Any) -> None:
    """`rhumb catalog ACTION ...`: what concerns a catalog as a whole."""
    text = "describe, compare, merge, export or compact catalogs"
    actions = commands.add_parser("catalog", help=text, description=text).add_subparsers(
        dest="action", required=True, metavar="ACTION", help="`rhumb catalog ACTION --help` lists its options"
    )
    place = {"type": Path, "metavar": "CATALOG", "help": "catalog folder, or PACK@X.Y.Z"}

    def add(name: str, text: str, *specs: Spec) -> None:
        action = actions.add_parser(name, help=text, description=text)
        for argument, options in (*specs, JSON):
            action.add_argument(argument, **options)

    add("info", "what a catalog is: format, tables, how its vectors and indexes are stored", ("catalog", place))
    add(
        "diff",
        "what B adds to A, changes and drops; exit code 1 where they differ",
        ("former", {**place, "metavar": "A"}),
        ("later", {**place, "metavar": "B"}),
    )
    add(
        "merge",
        "make one catalog of several of the same model and method",
        ("sources", {"type": Path, "nargs": "+", "metavar": "CATALOG", "help": "catalog folders, two or more"}),
        _out("FOLDER", "the merged catalog, new"),
    )
    add(
        "export",
        "write directions as .npz or .safetensors",
        ("catalog", place),
        ("ids", {"nargs": "*", "metavar": "ID", "help": "direction ids, or their first digits (default: all)"}),
        (
            "--region",
            {"action": "append", "default": [], "metavar": "R", "help": "only of this region; may be repeated"},
        ),
        ("--space", {"choices": ("x", "h"), "default": None, "help": "only those of this space"}),
        ("--kind", {"choices": KINDS, "default": None, "help": "only those of this kind"}),
        _out("FILE", "FILE.npz or FILE.safetensors"),
    )
    add(
        "compact",
        "merge small shards; ids and indexes stay",
        CATALOG,
        ("--shard-size", {"type": float, "default": 128.0, "metavar": "MB", "help": "of a shard (default: 128)"}),
    )


def _add_mining(add: Add) -> None:
    add(
        "demo",
        "mine the built-in faces, publish a pack, pull it back and write the report",
        ("--out", {"type": Path, "default": Path("rhumb-demo"), "help": "output folder (default: rhumb-demo)"}),
        ("--recipe", {"type": Path, "default": None, "help": "another recipe than the built-in one"}),
        ("--limit", {"type": int, "default": None, "help": "fewer images than the recipe says"}),
    )
    add(
        "plan",
        "check that everything a recipe needs is here, and estimate what it costs; nothing is run or downloaded",
        RECIPE,
        (
            "--out",
            {"type": Path, "default": None, "metavar": "CATALOG", "help": "the catalog's place, if free disk is to be "
             "checked"},
        ),
        ("--no-measure", {"action": "store_true", "help": "do not time a forward pass on this machine"}),
    )  # fmt: skip
    add(
        "mine",
        "mine the directions of every image of a recipe into a catalog; run again to resume",
        RECIPE,
        _out("CATALOG", "catalog folder, new or from the same recipe"),
        *RUN,
        ("--log", {"type": Path, "default": None, "metavar": "FILE", "help": "append events to it, as lines of JSON"}),
    )
    add(
        "index",
        "build the search indexes of a catalog, or add to them what is new",
        CATALOG,
        ("--rebuild", {"action": "store_true", "help": "train the quantisers anew and encode every direction"}),
    )


def _add_lookup(add: Add) -> None:
    add(
        "directions",
        "list the directions of a catalog with their ids, for `similar` and `edit`",
        CATALOG,
        ("--region", {"default": None, "metavar": "R", "help": "only those of this region"}),
        ("--space", {"choices": ("x", "h"), "default": None, "help": "only those of this space"}),
        ("--kind", {"choices": KINDS, "default": None, "help": "only those of this kind"}),
        (
            "--image",
            {"default": None, "metavar": "ID", "help": "only those of this image: its id, or its first digits"},
        ),
        ("--limit", {"type": int, "default": 50, "metavar": "N", "help": "at most this many (default: 50)"}),
    )
    add(
        "similar",
        "directions like this one, on other images unless asked; one an image",
        CATALOG,
        ("id", {"metavar": "ID", "help": "direction id, or its first digits; `rhumb directions` lists them"}),
        MANY,
        OFFSET,
        BY,
        ("--region", {**SEVERAL, "metavar": "R", "help": "only of this region; may be repeated, as all of these may"}),
        ("--space", {**SEVERAL, "choices": ("x", "h"), "help": "only of this space"}),
        ("--kind", {**SEVERAL, "choices": KINDS, "help": "only of this kind"}),
        ("--dataset", {**SEVERAL, "metavar": "NAME", "help": "only of this data set"}),
        ("--image", {**SEVERAL, "metavar": "ID", "help": "only of this image: its id, or its first digits"}),
        ("--timestep", {**SEVERAL, "type": int, "metavar": "T", "help": "only of this timestep"}),
        ("--same-image", {"action": "store_true", "help": "directions of the same image as well"}),
        PICTURE,
    )
    add(
        "homogeneity",
        "how alike a region's directions are over the images, or how alike others are to one direction",
        CATALOG,
        ("--region", {"default": None, "metavar": "R", "help": "a region of the catalog"}),
        ("--direction", {"default": None, "metavar": "ID", "help": "a direction, in place of a region"}),
        BY,
        PICTURE,
    )
    add(
        "concepts",
        "directions of many images that mean the same, and what stands for them",
        CATALOG,
        ("--region", {"default": None, "metavar": "R", "help": "only those of this region"}),
        ("--build", {"action": "store_true", "help": "find them first, and store them in the catalog"}),
        ("--seed", {"type": int, "default": 0, "help": "of a build (default: 0)"}),
        ("-k", {"type": int, "default": 50, "help": "how many (default: 50)"}),
        OFFSET,
        PICTURE,
    )


def _add_transfer(add: Add) -> None:
    add(
        "transfer",
        "predict which catalogued directions will do on a new image what they did at home, and try the best",
        CATALOG,
        IMAGE,
        REGION,
        ("--mask", {"type": Path, "default": None, "metavar": "PNG", "help": "the region on the new image"}),
        MANY,
        (
            "--candidates",
            {"type": int, "default": 32, "metavar": "N",
             "help": "how many, by likeness, are predicted: one Jacobian product each (default: 32)"},
        ),
        (
            "--no-predict",
            {"action": "store_true", "help": "rank by likeness of masks, pictures and effects; no model is loaded"},
        ),
        (
            "--verify",
            {"type": int, "default": None, "metavar": "N",
             "help": "really edit with the best N and measure (default: none; with --picture, all that are shown)"},
        ),
        (
            "--picture",
            {"type": Path, "default": None, "metavar": "PNG", "help": "write a contact sheet of the edits tried"},
        ),
        MODEL,
    )  # fmt: skip


def _add_edits(add: Add) -> None:
    add(
        "edit",
        "apply directions of a catalog to an image",
        CATALOG,
        IMAGE,
        (
            "--direction",
            {"action": "append", "required": True, "metavar": "ID=STRENGTH",
             "help": "a direction and how far to go, negative for the other way; may be repeated"},
        ),
        (
            "--mask",
            {"action": "append", "default": [], "metavar": "REGION=PNG",
             "help": "where the picture has the region of a direction, which is shifted there; may be repeated "
             "(default: IMAGE_REGION.png beside the picture, if there is one)"},
        ),
        ("--no-shift", {"action": "store_true", "help": "apply every direction where it was mined"}),
        _out("PNG", "the edited picture"),
        MODEL,
    )  # fmt: skip
    add(
        "report",
        "write the page and the contact sheet of a catalog",
        CATALOG,
        ("--out", {"type": Path, "default": None, "metavar": "FOLDER", "help": "default: CATALOG/../report"}),
        MODEL,
    )


def _add_checks(add: Add) -> None:
    add("verify", "check every file, row and id of a catalog", CATALOG)
    add("status", "what a catalog holds and what failed", CATALOG)
    add(
        "inspect",
        "print what a model is: family, prediction type, shapes, schedule",
        ("model", {"metavar": "MODEL", "help": "builtin, a diffusers folder or a Hub id"}),
        ("--revision", {"default": None, "help": "branch, tag or commit of a Hub id"}),
        ("--class-label", {"type": int, "default": None, "metavar": "N", "help": "class of a class-conditional model"}),
    )
    add(
        "convert",
        "turn a guided-diffusion, improved-diffusion or P2 checkpoint into a diffusers folder",
        ("checkpoint", {"type": Path, "metavar": "CHECKPOINT", "help": "the .pt file; nothing in it is run"}),
        (
            "--preset",
            {"required": True, "metavar": "NAME",
             "help": "which published model it is, such as metfaces-p2 or lsun-cat-adm, or custom, with --set"},
        ),
        (
            "--set",
            {"action": "append", "default": [], "metavar": "KEY=VALUE", "dest": "settings",
             "help": "a flag of the original scripts that differs, such as num_channels=128; may be repeated"},
        ),
        _out("FOLDER", "the diffusers folder, new or empty"),
    )  # fmt: skip


def _add_training(add: Add) -> None:
    add(
        "train",
        "train the built-in networks and write the built-in data",
        ("what", {"choices": ("builtin", "reader", "data"), "help": "denoiser, attribute reader, or the images"}),
        (
            "--out",
            {"type": Path, "default": None,
             "help": "folder of the result (default: in data/builtin of a checkout, else in ./builtin)"},
        ),
        ("--work", {"type": Path, "default": None, "help": "folder of checkpoints (default: OUT/../../training)"}),
        ("--steps", {"type": int, "default": None, "help": "a shorter training of this many steps in all"}),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the console entry point."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    parsed = build_parser().parse_args(arguments)
    name = f"rhumb {parsed.command}"
    try:
        # Commands are imported late: `rhumb --help` must not wait for torch.
        commands = importlib.import_module(MODULES.get(parsed.command, "flows.commands"))
        return int(getattr(commands, parsed.command)(parsed) or 0)
    except RhumbError as error:
        complain(f"{name}: {error}", style="red")
    except OSError as error:
        where = Path(str(error.filename or "disk"))
        complain(f"{name}: {disk_error(where, error) or error}", style="red")
    except KeyboardInterrupt:
        complain(f"{name}: interrupted; what was committed is kept, run the same command to continue")
        return 130
    return 2


if __name__ == "__main__":
    sys.exit(main())
