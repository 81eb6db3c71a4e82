"""A run on the terminal while it goes."""

from __future__ import annotations

import pytest
from rich.console import Console

from flows import console
from flows.watching import live
from flows.watching.live import per_time, reasons, spelt
from flows.watching.progress import Progress
from tests.flows.test_console import HOSTILE

Capture = pytest.CaptureFixture[str]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(total: int | None, title: str = "mining", name: str = "a.png") -> Progress:
    """A run of six images in three deposits, one of them failed."""
    clock = Clock()
    with live.live(title, total) as watch:
        progress = Progress(total, "c", [watch], clock)
        quality = {"psnr": [41.0, 42.0], "residual": [0.004, 0.005], "leakage_ratio": [0.5, 0.6]}
        for failed in ({}, {name: f"{name} is broken"}, {}):
            clock.now += 10
            fields = {
                "images": 2 - len(failed),
                "directions": 12,
                "failed": failed,
                "products": {"jvp": 600, "vjp": 300},
            }
            progress.add({**fields, **quality, "rejected": {"residual above 0.1": 1}})
        progress.end("finished")
    return progress


def test_a_pipe_gets_plain_lines_at_the_start_and_at_the_end(capsys: Capture) -> None:
    run(6)
    assert capsys.readouterr().err.splitlines() == [
        "mining: 0/6", "mining: 2/6, 20 s left 12 directions", "mining: 6/6, 0 s left 36 directions, 1 failed"
    ]  # fmt: skip


def test_where_nobody_knows_how_many_only_how_far_is_told(capsys: Capture) -> None:
    run(None)
    assert capsys.readouterr().err.splitlines()[::2] == ["mining: 0/?", "mining: 6 36 directions, 1 failed"]


def test_a_terminal_shows_pace_products_quality_and_reasons(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(stderr=True, force_terminal=True, color_system=None, width=140)
    monkeypatch.setattr(console, "stderr", terminal)
    progress = run(6)
    shown = capsys.readouterr().err
    for words in (
        "6/6 images", "finished after 30 s", "12 images/min", "20 s left", "540 an image",
        "round trip 41.5 dB (41 to 42)",
        "residual 0.0045", "leakage / gain 0.55", "a.png is broken",
        "3: 3 residual above 0.1",
    ):  # fmt: skip
        assert words in shown, words
    assert progress.products_per_image == 540.0


def test_no_name_steers_the_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(stderr=True, force_terminal=True, color_system=None, width=200)
    run(6, HOSTILE, HOSTILE)
    monkeypatch.setattr(console, "stderr", terminal)
    with terminal.capture() as captured:
        terminal.print(live.panel(HOSTILE, run(6, HOSTILE, HOSTILE).snapshot()))
    text = captured.get() + capsys.readouterr().err
    assert "is broken" in text
    assert not set("\x07\x9b\u202e\udc80") & set(captured.get())
    assert "\x1b]0" not in text and "\x1b[2J" not in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59, "59 s"), (60, "1 min"), (250, "4 min 10 s"), (7500, "2 h 5 min"), (360000, "4 d 4 h")],
)
def test_durations_are_told_by_their_two_largest_units(seconds: float, words: str) -> None:
    assert spelt(seconds) == words


def test_rates_are_told_by_a_unit_that_has_more_than_one() -> None:
    assert [per_time(r) for r in (3.2, 0.5, 0.001)] == ["3.2 images/s", "30 images/min", "3.6 images/h"]


def test_the_most_frequent_reasons_are_told_and_the_rest_counted() -> None:
    told = reasons({f"reason {i}": i for i in range(1, 9)})
    assert told.startswith("8 reason 8; 7 reason 7") and told.endswith("and 3 other reasons")
