"""What reaches the terminal or a pipe."""

from __future__ import annotations

import pytest

from flows.console import complain, say, stage, table


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
