"""What people look at of a run: one moment of it, as plain JSON without NaN, and where it lies in a catalog.

The terminal, Prefect, `rhumb status` and the report all draw a `Snapshot`; `flows.watching.progress` makes them.
"""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from catalog.fs import RUN
from catalog.lease import born
from pipeline.errors import CatalogError

FILE = "progress.json"
_LARGEST = 4 * 2**20  # bytes of a progress file

State = Literal["running", "finished", "stopped", "failed"]


def _moment(value: str) -> str:
    if datetime.fromisoformat(value).tzinfo is None:
        raise ValueError("a moment of some time zone")
    return value


Moment = Annotated[str, AfterValidator(_moment)]
"""ISO 8601, with a time zone."""


class Spread(BaseModel):
    """Quartiles of a figure, and of how many numbers."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    count: int
    low: float
    median: float
    high: float


class Snapshot(BaseModel):
    """A run at one moment. `failed` counts images, `failures` by reason; `failed_sources` names the first of them.

    `rate` and `recent_rate` are images a second, of the whole run and of late; `left` seconds, None where nobody can
    tell; `worker_seconds` of all workers together.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, extra="ignore")

    run_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    name: str = ""
    catalog: str
    state: State
    pid: Annotated[int, Field(gt=0)]
    born: str | None = None
    host: str
    started: Moment
    updated: Moment
    seconds: float
    total: int | None = None
    done: int = 0
    images: int = 0
    already_done: int = 0
    failed: int = 0
    failures: dict[str, int] = {}
    failed_sources: dict[str, str] = {}
    skipped: dict[str, str] = {}
    directions: int = 0
    refused: int = 0
    rejected: dict[str, int] = {}
    products: dict[str, int] = {}
    products_per_image: float | None = None
    passes: int = 0
    bytes: int = 0
    worker_seconds: float = 0.0
    rate: float | None = None
    recent_rate: float | None = None
    left: float | None = None
    quality: dict[str, Spread] = {}

    @property
    def alive(self) -> bool | None:
        """Whether the process of a running run still runs; None where another machine has it."""
        if self.state != "running":
            return False
        if self.host != socket.gethostname():
            return None
        return born(self.pid) is not None and (self.born is None or born(self.pid) == self.born)

    @property
    def age(self) -> float:
        """Seconds since it was written, by this machine's clock."""
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(self.updated)).total_seconds())


def runs_folder(catalog: Path) -> Path:
    """The folder of a catalog's runs, made if it is not there. Raises CatalogError for a link in its place."""
    folder = catalog / RUN
    if folder.is_symlink():
        raise CatalogError(str(folder), "a symbolic link", "a plain folder", "Remove it, and run the command again")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read(catalog: Path) -> Snapshot | None:
    """What the last run of a catalog said of itself; None where there was none, or where it cannot be read."""
    path = catalog / RUN / FILE
    try:
        if path.parent.is_symlink() or path.is_symlink() or path.stat().st_size > _LARGEST:
            return None
        return Snapshot.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
