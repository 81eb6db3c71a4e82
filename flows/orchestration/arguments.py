"""The arguments of the commands that put work on a schedule. Imported with the command line: nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flows.run_arguments import RUN

Spec = tuple[str, dict[str, Any]]

COMMANDS = ("up", "deploy", "schedule", "refresh")
_POOL: Spec = ("--pool", {"default": "rhumb", "metavar": "NAME", "help": "work pool (default: rhumb)"})
_REPO: Spec = (
    "--repo",
    {"default": None, "metavar": "REPO", "help": "where versions are published: file:///HUB/ORG/NAME or HUB/ORG/NAME "
     "(default: nowhere)"},
)  # fmt: skip
_TIMEZONE: Spec = ("--timezone", {"default": None, "metavar": "ZONE", "help": "such as Europe/Berlin (default: UTC)"})


def _cron(text: str, **more: Any) -> Spec:
    return "--cron", {"default": None, "metavar": "CRON", "help": text, **more}


def _out(text: str, required: bool = True) -> Spec:
    return "--out", {"required": required, "default": None, "metavar": "CATALOG", "help": text}


def _kept(option: Spec, text: str) -> Spec:
    """An option of a deployment, where leaving it out leaves it as it was deployed."""
    return option[0], {**option[1], "default": None, "help": f"{text} (default: as it was deployed)"}


def add_orchestration(add: Callable[..., None], recipe: Spec) -> None:
    """`rhumb refresh`, `up`, `deploy` and `schedule`; `recipe` as the other commands take it."""
    add(
        "refresh",
        "mine and publish only what is new or changed since the last version",
        recipe,
        _out("catalog folder or store; one of another recipe or model gets its own beside it, CATALOG-2"),
        _REPO,
        (
            "--override",
            {"action": "store_true", "help": "publish even if the quality is worse than the last version's"},
        ),
        *RUN,
    )
    add(
        "up",
        "run a Prefect server and a worker on this machine until Ctrl-C",
        ("--host", {"default": "127.0.0.1", "help": "address to listen at (default: 127.0.0.1, this machine only)"}),
        ("--port", {"type": int, "default": 4200, "help": "default: 4200"}),
        ("--workers", {"type": int, "default": 1, "metavar": "N", "help": "runs at once (default: 1)"}),
        (
            "--database",
            {"default": None, "metavar": "URL", "help": "PostgreSQL for many workers; a password is better given in "
             "PREFECT_API_DATABASE_CONNECTION_URL (default: an embedded SQLite in PREFECT_HOME)"},
        ),
        _POOL,
    )  # fmt: skip
    add(
        "deploy",
        "make a recipe's flows known to the Prefect server, for workers to run; again after the recipe changed",
        recipe,
        _out("catalog folder or store, where workers find it"),
        _REPO,
        _cron("when it is refreshed, such as '0 3 * * *'"),
        _TIMEZONE,
        _POOL,
        *RUN,
    )
    add(
        "schedule",
        "say when a recipe is refreshed",
        recipe,
        _cron("minute, hour, day of month, month, day of week, such as '0 3 * * *'"),
        _TIMEZONE,
        ("--off", {"action": "store_true", "help": "no longer"}),
        _out("deploy it first, with its catalog there (default: as it was deployed)", required=False),
        _kept(_REPO, "where versions are published from now on"),
        _kept(_POOL, "work pool from now on"),
    )
