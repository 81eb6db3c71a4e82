"""The command line: parsing and dispatch only. Every command is one function in `flows.commands`.

Exit codes: 0 done, 1 a check found problems, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catalog.fs import disk_error
from flows.console import complain
from pipeline.errors import RhumbError

Spec = tuple[str, dict[str, Any]]

ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # An embedded server takes about as long to start as Prefect's own limit of 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
"""Set for this process unless the user has set them."""


def _arguments(parser: argparse.ArgumentParser, *specs: Spec) -> None:
    for name, options in specs:
        parser.add_argument(name, **options)


CATALOG: Spec = ("catalog", {"type": Path, "metavar": "CATALOG", "help": "catalog folder"})
MODEL: Spec = (
    "--model",
    {"default": None, "help": "the catalog's model, where it is no longer at the place that the recipe names"},
)
JSON: Spec = ("--json", {"action": "store_true", "help": "print one JSON document"})
OUT: dict[str, Any] = {"type": Path, "required": True}


def build_parser() -> argparse.ArgumentParser:
    """The parser of every `rhumb` command."""
    parser = argparse.ArgumentParser(
        prog="rhumb", description="Mine, index and share the local editing directions of diffusion models."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, *specs: Spec) -> None:
        _arguments(commands.add_parser(name, help=text, description=text), *specs)

    add(
        "demo",
        "mine the built-in faces, publish a pack, pull it back and write the report",
        ("--out", {"type": Path, "default": Path("rhumb-demo"), "help": "output folder (default: rhumb-demo)"}),
        ("--recipe", {"type": Path, "default": None, "help": "another recipe than the built-in one"}),
        ("--limit", {"type": int, "default": None, "help": "fewer images than the recipe says"}),
        JSON,
    )
    add(
        "mine",
        "mine the directions of every image of a recipe into a catalog; run again to resume",
        ("recipe", {"type": Path, "metavar": "RECIPE", "help": "YAML recipe"}),
        ("--out", OUT | {"metavar": "CATALOG", "help": "catalog folder, new or from the same recipe"}),
        ("--workers", {"type": int, "default": None, "help": "processes (default: one per core, one on a GPU)"}),
        ("--prefect", {"action": "store_true", "help": "run as a Prefect flow (embedded server, or PREFECT_API_URL)"}),
        JSON,
    )
    add("index", "build the FAISS indexes of a catalog", CATALOG, JSON)
    add(
        "similar",
        "directions like this one on other images",
        CATALOG,
        ("id", {"metavar": "ID", "help": "direction id, or its first digits"}),
        ("-k", {"type": int, "default": 10, "help": "how many (default: 10)"}),
        ("--by", {"choices": ("effect", "vector"), "default": "effect", "help": "what to compare (default: effect)"}),
        JSON,
    )
    add(
        "homogeneity",
        "how alike a region's directions are over the images",
        CATALOG,
        ("--region", {"required": True}),
        ("--by", {"choices": ("effect", "vector"), "default": "effect", "help": "what to compare (default: effect)"}),
        JSON,
    )
    add(
        "transfer",
        "catalogued directions likely to work on a new image",
        CATALOG,
        ("--image", {"type": Path, "required": True, "metavar": "PNG"}),
        ("--region", {"required": True}),
        ("--mask", {"type": Path, "default": None, "metavar": "PNG", "help": "the region on the new image"}),
        ("-k", {"type": int, "default": 10, "help": "how many (default: 10)"}),
        JSON,
    )
    add(
        "edit",
        "apply directions of a catalog to an image",
        CATALOG,
        ("--image", {"type": Path, "required": True, "metavar": "PNG"}),
        ("--direction", {"action": "append", "required": True, "metavar": "ID=STRENGTH", "help": "may be repeated"}),
        ("--out", OUT | {"metavar": "PNG"}),
        MODEL,
        JSON,
    )
    add(
        "publish",
        "publish a catalog as a versioned pack on a local hub",
        CATALOG,
        ("repo", {"metavar": "REPO", "help": "file:///HUB/ORG/NAME or a path HUB/ORG/NAME"}),
        ("--version", {"required": True, "metavar": "X.Y.Z"}),
        ("--licence", {"default": None, "help": "licence of the pack (default: as the data set says)"}),
        JSON,
    )
    add(
        "pull",
        "download one version of a pack; the result is a catalog",
        ("repo", {"metavar": "REPO", "help": "file:///HUB/ORG/NAME or a path HUB/ORG/NAME"}),
        ("--version", {"required": True, "metavar": "X.Y.Z"}),
        ("--out", OUT | {"metavar": "FOLDER"}),
        JSON,
    )
    add("verify", "check every file, row and id of a catalog", CATALOG, JSON)
    add("status", "what a catalog holds and what failed", CATALOG, JSON)
    add(
        "report",
        "write the page and the contact sheet of a catalog",
        CATALOG,
        ("--out", {"type": Path, "default": None, "metavar": "FOLDER", "help": "default: CATALOG/../report"}),
        MODEL,
        JSON,
    )
    add(
        "inspect",
        "print what a model is: family, prediction type, shapes, schedule",
        ("model", {"metavar": "MODEL", "help": "builtin, a diffusers folder or a Hub id"}),
        JSON,
    )
    _add_training(commands)
    return parser


def _add_training(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser("train", help="train the built-in networks and write the built-in data")
    _arguments(
        train,
        ("what", {"choices": ("builtin", "reader", "data"), "help": "denoiser, attribute reader, or the images"}),
        ("--out", {"type": Path, "default": None, "help": "folder of the result (default: data/builtin)"}),
        ("--work", {"type": Path, "default": None, "help": "folder of checkpoints (default: OUT/../training)"}),
        ("--steps", {"type": int, "default": None, "help": "training steps"}),
        JSON,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the console entry point."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    parsed = build_parser().parse_args(arguments)
    name = f"rhumb {parsed.command}"
    try:
        # Commands are imported late: `rhumb --help` must not wait for torch.
        commands = importlib.import_module("flows.commands")
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
