"""A run on Prefect's page: a progress bar, a table, and a text with the contact sheet, made once and then renewed."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from PIL import Image

from flows.watching.errands import Errand
from flows.watching.events import heard_by, line_of
from flows.watching.live import FIGURES, facts, pace
from flows.watching.progress import Progress
from flows.watching.run_report import SHEET, RunReport, markdown, safe
from flows.watching.snapshots import Snapshot

EVERY = 10.0  # seconds between two updates: the server keeps an event of each
_LARGEST = 300_000  # bytes of a contact sheet within a text; Prefect takes 1.5 MB with all else
_KEY = 60
KINDS = ("progress", "table", "markdown")


def keys(name: str) -> dict[str, str]:
    """The keys of the artifacts of a recipe's runs, by kind: lower-case letters, digits and dashes."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_KEY] or "catalog"
    return {kind: f"rhumb-{slug}-{word}" for kind, word in zip(KINDS, ("progress", "figures", "run"), strict=True)}


class Board:
    """The artifacts of one run, made with the first call: a `Watcher` that renews them at most every EVERY seconds, and
    has them sent by an errand.

    Raises what Prefect's client has raised since the last call; `Progress` tells it and goes on.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        from prefect.context import FlowRunContext, TaskRunContext

        flow, task = FlowRunContext.get(), TaskRunContext.get()
        self._flow_run = flow.flow_run.id if flow is not None and flow.flow_run is not None else None
        self._task_run = task.task_run.id if task is not None else None
        self._keys, self._ids = keys(name), dict[str, UUID]()
        self._clock, self._last = clock, -EVERY
        self._errand = Errand()

    def __call__(self, progress: Progress) -> None:
        """Show how far a run is."""
        now = self._clock()
        if progress.state != "running" or now - self._last >= EVERY:
            self._last = now
            self._errand.send(partial(self.show, progress.snapshot()))

    def settle(self) -> None:
        """Return once nothing is being sent. Raises TimeoutError where that takes longer than EVERY."""
        self._errand.wait(EVERY)

    def show(self, run: Snapshot, text: str | None = None) -> None:
        """Put all three artifacts."""
        words = f"{run.done}/{'?' if run.total is None else run.total} images, {pace(run)}"
        share = 100.0 * run.done / run.total if run.total else 100.0 if run.state == "finished" else 0.0
        self._put("progress", min(100.0, share), words)
        self._put("table", json.dumps(rows(run)), f"Quality and failures of {run.catalog}")
        self._put("markdown", text or told(run), words)

    def _put(self, kind: str, data: Any, words: str) -> None:
        """Make an artifact, or renew it."""
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

        with get_client(sync_client=True) as client:
            if kind in self._ids:
                client.update_artifact(self._ids[kind], ArtifactUpdate(data=data, description=words))
                return
            made = client.create_artifact(
                ArtifactCreate(
                    type=kind, key=self._keys[kind], data=data, description=words,
                    flow_run_id=self._flow_run, task_run_id=self._task_run,
                )
            )  # fmt: skip
            self._ids[kind] = made.id


def begin(progress: Progress) -> Board:
    """A watcher that shows a run as artifacts of the flow run that this is called in."""
    return Board(progress.name or Path(progress.catalog).name)


def finish(progress: Progress, report: RunReport, folder: Path | None = None) -> None:
    """Put the report of a run in the place of what `begin` shows, with the contact sheet that lies in `folder`.

    Raises what Prefect's client does where the server is away, TimeoutError where it hangs.
    """
    boards = [watcher for watcher in progress.watchers if isinstance(watcher, Board)]
    board = boards[0] if boards else Board(progress.name or report.recipe)
    board.settle()
    sheet = None if folder is None else folder / SHEET
    picture = data_uri(sheet.read_bytes()) if sheet is not None and sheet.is_file() else None
    board.show(report.run, markdown(report, picture))


def data_uri(png: bytes) -> str | None:
    """A picture as an address that holds it, made small enough for an artifact; None where it cannot be."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for quality, share in ((85, 1.0), (75, 1.0), (70, 0.7), (60, 0.4)):
        stream = io.BytesIO()
        size = (max(1, round(share * picture.width)), max(1, round(share * picture.height)))
        picture.resize(size).save(stream, format="JPEG", quality=quality)
        if stream.tell() <= _LARGEST:
            return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
    return None


def rows(run: Snapshot) -> list[dict[str, str]]:
    """The table of a run: figures of quality, then what failed and what gates reject."""
    found = []
    for name, (words, unit) in FIGURES.items():
        if (figure := run.quality.get(name)) is not None:
            space = " " if unit else ""
            quartiles = f"{figure.low:.3g} to {figure.high:.3g}{space}{unit}"
            found.append(
                {"what": words, "value": f"{figure.median:.3g}{space}{unit}", "more": f"quartiles {quartiles}"}
            )
    for what, counts in (("failed", run.failures), ("rejected", run.rejected)):
        found += [{"what": what, "value": str(count), "more": reason} for reason, count in counts.items()]
    return found or [{"what": "images", "value": str(run.done), "more": "no figures yet"}]


def told(run: Snapshot) -> str:
    """The text of a run that is not over."""
    lines = [f"# {safe(run.name or run.catalog)}", "", f"Run {safe(run.run_id)}, {pace(run)}", ""]
    return "\n".join(lines + [f"- **{name}**: {safe(value)}" for name, value in facts(run).items()]) + "\n"


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return line_of(record).decode().rstrip()


@contextmanager
def logged() -> Iterator[None]:
    """Send the events of the logger "rhumb" to the flow run's log while the block runs, each a line of JSON."""
    from prefect.logging.handlers import APILogHandler

    handler = APILogHandler()
    handler.setFormatter(_Line())
    try:
        with heard_by(handler):
            yield
    finally:
        handler.flush()
