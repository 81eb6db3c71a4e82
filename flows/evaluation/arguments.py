"""The options of `rhumb evaluate`; nothing heavy is imported here, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Add = Callable[..., None]
SEVERAL: dict[str, Any] = {"action": "append", "default": [], "metavar": "NAME"}


def add_evaluation(add: Add) -> None:
    """The one command; `add(name, text, *specs)` makes it."""
    add(
        "evaluate",
        "measure the papers' tables and figures again, every rival in the same harness; run again to resume",
        (
            "recipe",
            {"type": Path, "nargs": "?", "default": Path("faces64-demo"), "metavar": "RECIPE",
             "help": "model, images, regions and settings (default: faces64-demo, the built-in faces)"},
        ),
        ("--out", {"type": Path, "default": Path("rhumb-evaluation"), "metavar": "FOLDER",
                   "help": "where everything goes (default: rhumb-evaluation)"}),
        ("--quick", {"action": "store_true", "help": "few images: a smoke test with wide intervals, minutes"}),
        ("--method", {**SEVERAL, "help": "only this method; may be repeated; `none` leaves out the comparison"}),
        ("--figure", {**SEVERAL, "help": "this figure too; may be repeated; `all` for all"}),
        ("--list", {"action": "store_true", "help": "list methods and figures; nothing is measured"}),
        ("--images", {"type": int, "default": None, "metavar": "N", "help": "held-out images (default: 50; quick 3)"}),
        ("--choosing", {"type": int, "default": None, "metavar": "N",
                        "help": "`mine` images that settings are chosen on; 0: the recipe's (default: 4; quick 0)"}),
        ("--workers", {"type": int, "default": None, "metavar": "N", "help": "processes (default: one a core)"}),
        (
            "--backbones",
            {"type": Path, "default": None, "metavar": "FOLDER",
             "help": "weights of LPIPS, ArcFace and Inception (default: $RHUMB_BACKBONES); never downloaded"},
        ),
        (
            "--clip",
            {"type": Path, "default": None, "metavar": "FOLDER",
             "help": "a CLIPModel of transformers, which guides Asyrp and Blended Diffusion by --caption"},
        ),
        (
            "--caption",
            {**SEVERAL, "metavar": "TEXT",
             "help": 'what a region\'s edit is to change, as "mouth: a face -> a smiling face"; one for each region'},
        ),
        ("--tune", {"action": "store_true", "help": "search the recipe's settings instead, and write the best recipe"}),
        ("--budget", {"type": int, "default": 200_000, "metavar": "PASSES",
                      "help": "network passes that --tune may spend (default: 200000)"}),
    )  # fmt: skip
