"""How a run is executed, as options of a command say it."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any, get_args

from flows.runners import RunnerName
from pipeline.errors import InputError

if TYPE_CHECKING:
    from flows.run_settings import RunSettings

RUN: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--runner",
        {"choices": get_args(RunnerName), "default": "processes", "help": "who mines: this process, several of this "
         "machine, or tasks of Prefect, Dask or Ray (default: processes)"},
    ),
    (
        "--workers",
        {"type": int, "default": None, "help": "how many (default: one per core that free memory has room for, or one "
         "per GPU; with --address as many as there are)"},
    ),
    (
        "--address",
        {"default": None, "metavar": "ADDRESS", "help": "of a Dask scheduler or Ray cluster that is running (default: "
         "one is started on this machine)"},
    ),
    (
        "--image-timeout",
        {"type": float, "default": None, "metavar": "SECONDS", "help": "an image that takes longer counts as failed "
         "(default: no limit)"},
    ),
)  # fmt: skip


def run_settings(arguments: Namespace) -> RunSettings:
    """What `RUN` was given. Raises InputError naming the option that does not fit."""
    from pydantic import ValidationError  # a sixth of a second, which the parser of every command must not wait for

    from flows.run_settings import RunSettings

    values = {name: getattr(arguments, name) for name in ("runner", "workers", "address", "image_timeout")}
    try:
        return RunSettings(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        expected = first["msg"].removeprefix("Input should be ").replace("greater than or equal to", "at least")
        raise InputError(option, first["input"], expected) from error
