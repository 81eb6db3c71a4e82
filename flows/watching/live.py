"""A run on the terminal while it goes: a panel that renews itself, or plain lines where stderr is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows import console
from flows.console import LINE_SECONDS, complain, seen
from flows.watching.progress import Progress, Watcher
from flows.watching.snapshots import Snapshot, Spread

REASONS = 5  # shown on the terminal, the most frequent first
FIGURES = {"psnr": ("round trip", "dB"), "residual": ("residual", ""), "leakage_ratio": ("leakage / gain", "")}
_BAR = 40


@contextmanager
def live(title: str, total: int | None) -> Iterator[Watcher]:
    """A watcher of a `Progress` that shows it on stderr, until the block ends."""
    if not console.stderr.is_terminal:
        yield _lines(title, total)
        return
    with Live(console=console.stderr, auto_refresh=False) as shown:
        yield lambda progress: shown.update(panel(title, progress.snapshot()), refresh=True)


def _lines(title: str, total: int | None) -> Watcher:
    """One line at the start, one at most every LINE_SECONDS while images come in, and one at the end."""
    complain(f"{title}: 0/{'?' if total is None else total}")
    said, when = (0, 0, 0), 0.0

    def line(progress: Progress) -> None:
        nonlocal said, when
        now, key = time.monotonic(), (progress.done, progress.directions, progress.failed_images)
        over = progress.state != "running" or progress.done == progress.total
        if key == said or (not over and now - when < LINE_SECONDS):
            return
        said, when = key, now
        of = "" if progress.total is None else f"/{progress.total}"
        left = "" if progress.left is None else f", {progress.left:.0f} s left"
        failed = f", {progress.failed_images} failed" if progress.failed_images else ""
        complain(f"{title}: {progress.done}{of}{left} {progress.directions} directions{failed}")

    return line


def panel(title: str, run: Snapshot) -> RenderableType:
    """What the terminal shows of a run."""
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(seen(title), style="bold"),
        ProgressBar(total=run.total, completed=run.done, width=_BAR, pulse=run.total is None),
        Text(f"{run.done:,}/{'?' if run.total is None else f'{run.total:,}'} images"),
        Text(pace(run)),
    )
    body = Table.grid(padding=(0, 2))
    for name, value in facts(run).items():
        body.add_row(Text(name, style="dim"), Text(seen(value)))
    return Group(head, body)


def pace(run: Snapshot) -> str:
    """How fast, and how long still; how it ended, and after how long."""
    if run.state != "running":
        return f"{run.state} after {spelt(run.seconds)}"
    rate = run.recent_rate or run.rate
    parts = [] if rate is None else [per_time(rate)]
    parts += [f"{spelt(run.left)} left"] if run.left is not None else [f"{spelt(run.seconds)} so far"]
    return ", ".join(parts)


def facts(run: Snapshot) -> dict[str, str]:
    """The rest of what there is to say of a run, by name; nothing that nobody knows."""
    told = {"directions": f"{run.directions:,}" + (f", {run.refused:,} refused as noise" if run.refused else "")}
    if run.already_done:
        told["there already"] = f"{run.already_done:,} images"
    if run.products_per_image is not None:
        told["products"] = f"{run.products_per_image:,.0f} an image"
    known = [quality(name, run.quality[name]) for name in FIGURES if name in run.quality]
    if known:
        told["quality"] = "; ".join(known)
    if run.failed:
        told["failed"] = f"{run.failed:,}: {reasons(run.failures)}"
    if run.rejected:
        told["rejected"] = f"{sum(run.rejected.values()):,}: {reasons(run.rejected)}"
    return told


def quality(name: str, figure: Spread) -> str:
    """A figure over the images: its median and quartiles."""
    words, unit = FIGURES[name]
    space = " " if unit else ""
    return f"{words} {figure.median:.3g}{space}{unit} ({figure.low:.3g} to {figure.high:.3g})"


def reasons(counts: Mapping[str, int]) -> str:
    """The most frequent reasons with how many each."""
    shown = sorted(counts.items(), key=lambda item: -item[1])
    told = [f"{count:,} {reason[:120]}" for reason, count in shown[:REASONS]]
    return "; ".join(told + ([f"and {len(shown) - REASONS} other reasons"] if len(shown) > REASONS else []))


def per_time(rate: float) -> str:
    """Images a second, minute or hour, whichever is more than one."""
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        if rate * seconds >= 1 or unit == "h":
            return f"{rate * seconds:.3g} images/{unit}"
    raise AssertionError("an hour takes every rate")


def spelt(seconds: float) -> str:
    """A duration by its two largest units: 3 d 4 h, 2 h 5 min, 4 min 10 s, 12 s."""
    whole = round(seconds)
    for (large, one), (small, other) in (
        (("d", 86400), ("h", 3600)),
        (("h", 3600), ("min", 60)),
        (("min", 60), ("s", 1)),
    ):
        if whole >= one:
            rest = whole % one // other
            return f"{whole // one} {large}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"
