"""What the user sees on the terminal: progress with time left on stderr, answers on stdout, one line per error."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

Advance = Callable[[int, str], None]
"""Called as advance(steps, note) after each finished step of a stage."""

LINE_SECONDS = 2.0  # between lines where there is no terminal to draw a bar on
PIPE_WIDTH = 200  # of tables that no terminal folds: ids must come out whole

# Control characters but newlines and tabs, what turns the direction of writing, and halves of characters: a name in a
# catalog from elsewhere must not steer the terminal.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

stderr = Console(stderr=True)
stdout = Console()


def seen(text: object) -> str:
    """Text without the characters that would steer a terminal."""
    return _UNSEEN.sub("", str(text))


def say(text: str) -> None:
    """One line on stdout, as it is but for control characters: never wrapped, and brackets in a path are no markup."""
    stdout.print(seen(text), highlight=False, markup=False, soft_wrap=True)


def complain(text: str, style: str | None = None) -> None:
    """One line on stderr, as it is but for control characters."""
    stderr.print(seen(" ".join(text.split())), highlight=False, markup=False, soft_wrap=True, style=style)


def silent(steps: int, note: str = "") -> None:
    """An `Advance` that shows nothing."""


@contextmanager
def stage(title: str, total: int | None) -> Iterator[Advance]:
    """A progress bar for one stage: what, how far, how long still. Plain lines when stderr is not a terminal.

    `total` is None where nobody knows it: then only how far is shown.
    """
    if not stderr.is_terminal:
        done, shown = 0, 0.0
        started = time.monotonic()
        complain(f"{title}: 0/{'?' if total is None else total}")

        def line(steps: int, note: str = "") -> None:
            nonlocal done, shown
            done += steps
            now = time.monotonic()
            if not steps or (done != total and now - shown < LINE_SECONDS):
                return
            shown = now
            if total is None:
                complain(f"{title}: {done} {note}")
                return
            left = (now - started) / done * (total - done)
            complain(f"{title}: {done}/{total}, {left:.0f} s left {note}")

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=stderr) as progress:
        task = progress.add_task(escape(seen(title)), total=total, note="")

        def bar(steps: int, note: str = "") -> None:
            progress.update(task, advance=steps, note=seen(note))

        yield bar


def answer(value: Mapping[str, Any], as_json: bool, text: Callable[[], None]) -> None:
    """Print `value` as one JSON document, or let `text` print it for people."""
    if as_json:  # JSON's own escapes leave out some control characters
        document = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        sys.stdout.write(_UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", document) + "\n")
    else:
        text()


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a small table on stdout."""
    grid = Table(title=Text(seen(title)), title_justify="left", header_style="bold")
    for name in header:
        grid.add_column(Text(seen(name)), overflow="fold")
    for row in rows:
        grid.add_row(*(Text(f"{cell:.4g}" if isinstance(cell, float) else seen(cell)) for cell in row))
    (stdout if stdout.is_terminal else Console(width=PIPE_WIDTH)).print(grid)
