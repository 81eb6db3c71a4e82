"""What reaches the terminal or a pipe."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from flows import console
from flows.console import answer, complain, say, stage, table

HOSTILE = "\x1b]0;pwned\x07\x1b[2Jname\x9b31m\r\u202e\udc80"


def test_what_people_named_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    long_path = "/somewhere/" + 20 * "far/" + "[red]out[/red].png"
    say(f"wrote {long_path}")
    table("[bold]title", ("name",), [("[link]cell",), (1.23456,)])
    printed = capsys.readouterr().out
    assert f"wrote {long_path}\n" in printed
    assert "[bold]title" in printed
    assert "[link]cell" in printed
    assert "1.235" in printed


def test_an_error_is_one_line_however_long_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    complain("rhumb mine: " + 40 * "long " + "\n  two lines")
    assert capsys.readouterr().err.splitlines() == ["rhumb mine: " + 40 * "long " + "two lines"]


def test_progress_without_a_terminal_is_a_line_at_the_start_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with stage("mining", 3) as advance:
        for _ in range(3):
            advance(1, "[note]")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "mining: 0/3"
    assert lines[-1] == "mining: 3/3, 0 s left [note]"


def test_no_name_steers_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(force_terminal=True, color_system=None, width=100)
    monkeypatch.setattr(console, "stdout", terminal)
    say(HOSTILE)
    table(HOSTILE, (HOSTILE,), [(HOSTILE,)])
    complain(HOSTILE)
    with stage(HOSTILE, 1) as advance:
        advance(1, HOSTILE)
    printed = "".join(capsys.readouterr())
    assert printed.count("name") == 8
    assert not set("\x1b\x07\x9b\r\u202e\udc80") & set(printed)


def test_newlines_and_tabs_of_an_answer_stay(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\tb\nc")
    assert capsys.readouterr().out.expandtabs(8) == "a       b\nc\n"


def test_json_says_what_was_there_without_steering_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    answer({"name": HOSTILE}, True, lambda: None)
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"name": HOSTILE}
    assert not set("\x1b\x07\x9b\r\u202e\udc80") & set(printed)
