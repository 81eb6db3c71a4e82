"""Structured logs: one JSON object a line, and no secrets in any."""

from __future__ import annotations

import json
import logging
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from flows.watching.events import LOGGER, JsonLines, event, log_to, without_secrets
from flows.watching.progress import Progress
from pipeline.errors import InputError


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_event_is_a_line_with_time_level_event_and_fields_appended_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for image in ("a.png", "two\nlines \u202e"):
        with log_to(path):
            event(
                "image failed", logging.WARNING, run_id="r1", image=image, reason="out of memory", seconds=float("nan")
            )
    first, second = lines(path)
    assert first["event"] == "image failed" and first["level"] == "warning" and first["time"].endswith("+00:00")
    assert (first["run_id"], first["image"], first["seconds"]) == ("r1", "a.png", None)
    assert second["image"] == "two\nlines \u202e"


def test_the_same_events_reach_whoever_listens_to_the_logger(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with log_to(tmp_path / "x"), caplog.at_level(logging.INFO, "rhumb"):
        event("chunk committed", chunk="c1", images=4)
        LOGGER.warning("plain words %d", 3)
    assert caplog.messages == ["chunk committed: chunk c1, images 4", "plain words 3"]
    assert lines(tmp_path / "x")[1]["text"] == "plain words 3"


def test_without_a_log_nothing_is_kept_and_nobody_hears(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to(None):
        event("image failed", logging.WARNING)
    assert capsys.readouterr() == ("", "")


SECRETS = {
    "s3://key:s3cr3tpass@bucket/x": "s3cr3tpass",
    "https://h/f?X-Amz-Signature=deadbeefcafe&x=1 failed": "deadbeefcafe",
    "token hf_abcdefghijklmnop refused": "hf_abcdefghijklmnop",
    "Authorization: Bearer abc.def-ghi": "abc.def-ghi",
    "aws_secret_access_key=wJalrXUtnFEMI": "wJalrXUtnFEMI",
    'PGPASSWORD="open sesame"': "open sesame",
    "AKIAIOSFODNN7EXAMPLE is unknown": "AKIAIOSFODNN7EXAMPLE",
    "postgresql+asyncpg://user:p4ss@db/x": "p4ss",
}


@pytest.mark.parametrize(("text", "secret"), SECRETS.items())
def test_no_secret_reaches_a_log(tmp_path: Path, text: str, secret: str) -> None:
    with log_to(tmp_path / "x"):
        event("failed", reason=text, nested={"list": [text]})
        LOGGER.warning("%s", text)
    written = (tmp_path / "x").read_text()
    assert secret not in written and "***" in written


def test_what_is_no_secret_stays() -> None:
    for text in ("tokens of a sentence", "s3://bucket/path/file.parquet", "a/b.png: found 3; expected 4", "user@host"):
        assert without_secrets(text) == text


def test_an_error_is_logged_with_its_kind(tmp_path: Path) -> None:
    with log_to(tmp_path / "x"):
        try:
            raise ValueError("odd")
        except ValueError:
            LOGGER.exception("went wrong")
    assert lines(tmp_path / "x")[0]["error"] == "ValueError: odd"


def test_a_log_that_cannot_be_opened_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--log"), log_to(tmp_path / "no" / "folder.jsonl"):
        pass
    assert not [handler for handler in LOGGER.handlers if isinstance(handler, JsonLines)]


def test_a_run_tells_its_beginning_chunks_failures_and_end(tmp_path: Path) -> None:
    with log_to(tmp_path / "x"):
        progress = Progress(3, "c", run_id="r1")
        progress.add({"chunk": "k1", "images": 2, "directions": 9, "failed": {"a.png": "out of memory"}})
        progress.end("finished")
    told = lines(tmp_path / "x")
    assert [line["event"] for line in told] == ["run begun", "chunk done", "image failed", "run ended"]
    assert {line["run_id"] for line in told} == {"r1"}
    failed = told[2]
    assert (failed["chunk"], failed["image"], failed["reason"]) == ("k1", "a.png", "out of memory")
    assert (told[3]["state"], told[3]["failed_images"]) == ("finished", 1)


def _many(path: Path, name: str) -> None:
    with log_to(path):
        for number in range(50):
            event("beat", name=name, number=number, padding="x" * 500)


def test_processes_that_share_a_log_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    path = tmp_path / "x"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_many, args=(path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(lines(path)) == 150


def test_a_full_disk_is_told_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with log_to(tmp_path / "x"):
        monkeypatch.setattr("os.write", full)
        event("one")
        event("two")
        monkeypatch.undo()
    assert capsys.readouterr().err.count("cannot be written") == 1
