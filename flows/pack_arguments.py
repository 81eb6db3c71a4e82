"""The arguments of the commands about packs. Imported with the command line: nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Spec = tuple[str, dict[str, Any]]

COMMANDS = ("publish", "pull", "search", "outdated", "diff")
SHOWING = ("effect", "image", "latent", "mask", "preview")
_SEVERAL: dict[str, Any] = {"action": "append", "default": []}
_WITHOUT = "--without", {**_SEVERAL, "choices": SHOWING}


def _repo(text: str) -> Spec:
    return "repo", {"metavar": "PACK", "help": text}


def add_packs(add: Callable[..., None], catalog: Spec, kinds: tuple[str, ...]) -> None:
    """`rhumb publish`, `pull`, `search`, `outdated` and `diff`; `catalog` as the other commands take it."""
    _add_transport(add, catalog, kinds)
    _add_registry(add)


def _add_transport(add: Callable[..., None], catalog: Spec, kinds: tuple[str, ...]) -> None:
    add(
        "publish",
        "publish a catalog as a version of a pack",
        catalog,
        _repo("ORG/NAME on the Hugging Face Hub, or HUB/ORG/NAME with the folder or URL of a local hub"),
        ("--version", {"required": True, "metavar": "X.Y.Z", "help": "version of the pack"}),
        ("--licence", {"default": None, "help": "licence of the pack (default: what follows from its sources)"}),
        (
            "--override",
            {"action": "store_true", "help": "publish although the quality is worse than the version before's"},
        ),
        (_WITHOUT[0], {**_WITHOUT[1], "help": "leave this column out; may be repeated"}),
        ("--private", {"action": "store_true", "default": None, "help": "make a new repository of the Hub private"}),
        ("--dry-run", {"action": "store_true", "help": "say what would be sent, and send nothing"}),
    )
    add(
        "pull",
        "download a version of a pack, or a part of it; the result is a catalog",
        _repo("ORG/NAME of the Hugging Face Hub, HUB/ORG/NAME of a local hub, or builtin/faces64; @VERSION may follow"),
        (
            "--version",
            {"default": "", "metavar": "RANGE", "help": 'X.Y.Z, or a range such as ">=1.2,<2" (default: the newest)'},
        ),
        (
            "--out",
            {"type": Path, "default": None, "metavar": "FOLDER", "help": "new, or of the same pull (default: NAME)"},
        ),
        ("--region", {**_SEVERAL, "metavar": "R", "help": "only this region; may be repeated, as all of these may"}),
        ("--dataset", {**_SEVERAL, "metavar": "NAME", "help": "only this data set"}),
        ("--space", {**_SEVERAL, "choices": ("x", "h"), "help": "only this space"}),
        ("--kind", {**_SEVERAL, "choices": kinds, "help": "only this kind"}),
        ("--prototypes", {"action": "store_true", "help": "only the concepts, and the direction each is named after"}),
        (_WITHOUT[0], {**_WITHOUT[1], "help": "do without this column, such as preview"}),
        ("--list", {"action": "store_true", "help": "show what there is to pull, and pull nothing"}),
    )


def _add_registry(add: Callable[..., None]) -> None:
    add(
        "search",
        "packs that have all of some words in their name, title or tags",
        ("words", {"nargs": "*", "metavar": "WORD", "help": "such as celeba mouth (default: all packs)"}),
        (
            "--hub",
            {**_SEVERAL, "metavar": "HUB", "help": "folder or URL of a local hub; may be repeated (default: the "
             "Hugging Face Hub and the packs that come with the project)"},
        ),
    )  # fmt: skip
    add(
        "outdated",
        "which pulled catalogs have a newer version; exit code 1 where one has",
        (
            "folders",
            {"nargs": "*", "type": Path, "default": [Path()], "metavar": "FOLDER",
             "help": "pulled catalogs, or folders with some in them (default: the working directory)"},
        ),
    )  # fmt: skip
    add(
        "diff",
        "what B adds to A, changes and drops; exit code 1 where they differ",
        ("former", {"type": Path, "metavar": "A", "help": "PACK@X.Y.Z, or a catalog folder"}),
        ("later", {"type": Path, "metavar": "B", "help": "the same of another version"}),
    )
