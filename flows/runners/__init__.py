"""Who has work done. This names the runners, for the command line, which must not wait for more."""

from __future__ import annotations

from typing import Literal

RunnerName = Literal["here", "processes", "prefect", "dask", "ray"]
TASKS: tuple[RunnerName, ...] = ("prefect", "dask", "ray")  # runners that are tasks of a Prefect flow
