"""What a run says of itself while it goes."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from catalog.lease import born
from flows.watching.progress import KINDS, LISTED, OTHER, Progress, folded, kept_in
from flows.watching.samples import SIZE, Reservoir
from flows.watching.snapshots import Snapshot, read
from pipeline.errors import CatalogError


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def note(images: int = 4, **fields: object) -> dict[str, object]:
    return {
        "images": images,
        "directions": 10 * images,
        "products": {"jvp": 100 * images, "vjp": 50 * images},
        **fields,
    }


def test_counts_add_up_over_deposits(clock: Clock) -> None:
    progress = Progress(20, "c", clock=clock)
    progress.skip(3)
    progress.add(note(4, seconds=2.0, passes=7, bytes=1000, refused=1, rejected={"residual above 1": 2}))
    progress.add(
        note(3, failed={"a.png": "out of memory"}, skipped={"b.png": "no mouth"}, rejected={"residual above 1": 1})
    )
    assert (progress.done, progress.images, progress.already_done, progress.failed_images) == (11, 7, 3, 1)
    assert (progress.directions, progress.refused, progress.products) == (70, 1, {"jvp": 700, "vjp": 350})
    assert (progress.worker_seconds, progress.passes, progress.bytes) == (2.0, 7, 1000)
    assert (progress.failed, progress.skipped) == ({"a.png": "out of memory"}, {"b.png": "no mouth"})
    assert progress.rejected == {"residual above 1": 3}
    assert progress.products_per_image == 150.0


def test_rate_and_time_left_follow_what_is_mined_of_late_and_not_what_was_there(clock: Clock) -> None:
    progress = Progress(1000, "c", clock=clock)
    assert (progress.rate, progress.recent_rate, progress.left) == (None, None, None)
    progress.skip(500)
    assert (progress.rate, progress.left) == (None, None)
    for _ in range(100):  # one a second
        clock.now += 4
        progress.add(note(4))
    assert progress.rate == progress.recent_rate == pytest.approx(1.0)
    assert progress.left == pytest.approx(100.0)
    clock.now += 1000  # nothing comes in any more
    assert progress.recent_rate is not None and progress.recent_rate < 0.25
    assert Progress(None, "c", clock=clock).left is None


def test_a_run_that_is_over_has_nothing_left_and_its_clock_stands(clock: Clock) -> None:
    progress = Progress(4, "c", clock=clock)
    clock.now += 8
    progress.add(note(4))
    progress.end("finished")
    clock.now += 100
    assert (progress.left, progress.seconds, progress.rate, progress.state) == (0.0, 8.0, 0.5, "finished")


def test_watchers_are_called_at_most_once_a_second_and_at_the_end(clock: Clock) -> None:
    seen: list[int] = []
    progress = Progress(None, "c", [lambda p: seen.append(p.images)], clock)
    for _ in range(12):
        progress.add(note(1))
        clock.now += 0.25
    progress.beat()
    assert len(seen) == 4
    progress.end("stopped")
    assert seen[-1] == 12 and len(seen) == 5


def test_a_watcher_that_fails_ends_nothing_and_is_told_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def broken(progress: Progress) -> None:
        raise OSError("no server")

    progress = Progress(9, "c", [broken, lambda p: seen.append(p.images)], clock)
    for _ in range(3):
        clock.now += 2
        progress.add(note(1))
    assert seen == [1, 2, 3]
    assert capsys.readouterr().err == "progress could not be shown: OSError: no server\n"


def test_like_failures_are_counted_together(clock: Clock) -> None:
    progress = Progress(9, "c", clock=clock)
    for i in range(3):
        progress.add(note(0, failed={f"{i}.png": f"RuntimeError: /data/img_{i}.png: {i} bytes missing at 0.{i}"}))
    progress.add(note(0, failed={"z.png": "RuntimeError: out of memory"}))
    assert progress.failures == {"RuntimeError: PATH: # bytes missing at #": 3, "RuntimeError: out of memory": 1}
    progress.add(note(0, failed={"z.png": "RuntimeError: out of memory"}))  # the same image again
    assert progress.failed_images == 4
    assert folded("found 'x1'; id 0123456789abcdef") == "found '...'; id ID"
    assert folded(" ") == "no reason given"


def test_memory_does_not_grow_with_the_images(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "rhumb")  # pytest keeps every record
    progress = Progress(None, "c", clock=clock)

    def run(start: int, count: int) -> None:
        for i in range(start, start + count):
            clock.now += 1
            word = "".join(chr(97 + int(digit)) for digit in str(i))
            progress.add(note(4, failed={f"{i}.png": f"odd {word}"}, psnr=[40.0 + i % 7] * 4, residual=[0.1] * 4))

    run(0, 2000)
    assert (len(progress.failed), len(progress.failures), progress.failed_images) == (LISTED, KINDS + 1, 2000)
    assert progress.failures[OTHER] == 2000 - KINDS
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    run(2000, 3000)
    assert tracemalloc.get_traced_memory()[0] - before < 50_000
    tracemalloc.stop()
    assert len(progress.as_json()) < 100_000


def test_quartiles_of_a_long_stream_come_from_a_sample_that_is_the_same_each_time() -> None:
    one, two = Reservoir(1), Reservoir(1)
    for reservoir in (one, two):
        reservoir.add(float(i) for i in range(20 * SIZE))
    assert one.quartiles() == two.quartiles()
    low, middle, high = one.quartiles() or (0, 0, 0)
    for found, share in ((low, 0.25), (middle, 0.5), (high, 0.75)):
        assert found / (20 * SIZE) == pytest.approx(share, abs=0.05)
    few = Reservoir()
    few.add([float("nan"), None, float("inf")])
    assert (few.seen, few.quartiles()) == (0, None)
    few.add([3.0])
    assert few.quartiles() == (3.0, 3.0, 3.0)


def test_a_snapshot_survives_json_and_holds_no_nan(tmp_path: Path, clock: Clock) -> None:
    progress = Progress(8, "c", [kept_in(tmp_path)], clock, name="recipe")
    progress.add(note(4, psnr=[float("nan"), 41.0, None, 39.0], residual=[0.1, float("inf")], failed={"a": "b"}))
    clock.now += 5
    progress.end("finished")
    found = read(tmp_path)
    assert found is not None
    assert found == Snapshot.model_validate_json(progress.as_json()).model_copy(update={"updated": found.updated})
    assert (found.quality["psnr"].median, found.quality["psnr"].count, found.state) == (40.0, 2, "finished")
    json.loads(progress.as_json(), parse_constant=lambda name: pytest.fail(name))
    assert [path.name for path in (tmp_path / ".run").iterdir()] == ["progress.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"run_id": "../x"}', b"\xff\xfe", b"null"])
def test_a_damaged_progress_file_is_no_progress_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".run").mkdir()
    (tmp_path / ".run" / "progress.json").write_bytes(content)
    assert read(tmp_path) is None


def test_nothing_is_written_through_a_link(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".run").symlink_to(tmp_path / "elsewhere")
    Progress(1, "c", [kept_in(tmp_path / "c")], clock).end("finished")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert read(tmp_path / "c") is None


def test_file_names_that_are_no_utf8_are_told_with_question_marks(tmp_path: Path, clock: Clock) -> None:
    progress = Progress(2, "c\udc80", [kept_in(tmp_path)], clock)
    progress.skip(0, {"a\udc80.png": "unreadable \udc80"})
    progress.add(note(0, failed={"b\udc80.png": "odd"}))
    progress.end("finished")
    found = read(tmp_path)
    assert found is not None and found.failed_sources == {"a?.png": "unreadable ?", "b?.png": "odd"}


def test_a_note_that_is_none_is_refused_by_its_key(clock: Clock) -> None:
    with pytest.raises(CatalogError, match="note of a deposit: images"):
        Progress(1, "c", clock=clock).add({"images": "many"})
    with pytest.raises(CatalogError, match="products"):
        Progress(1, "c", clock=clock).add({"products": {"dvp": 3}})


def test_a_run_is_known_to_live_by_its_process_and_to_be_dead_when_that_is_gone(tmp_path: Path) -> None:
    progress = Progress(1, "c", [kept_in(tmp_path)])
    progress.beat()
    alive = read(tmp_path)
    assert alive is not None and alive.alive is True and alive.age < 60
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert alive.model_copy(update={"pid": done.pid, "born": None}).alive is False
    assert alive.model_copy(update={"born": "1"}).alive is False  # another process has its number now
    assert alive.model_copy(update={"host": "elsewhere"}).alive is None
    assert alive.model_copy(update={"state": "finished"}).alive is False
    assert born(os.getpid()) and born(2**40) is None
    assert alive.host == socket.gethostname()
