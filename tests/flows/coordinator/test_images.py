"""Images that fail, runs that are stopped, and what is done once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import flows.coordinator
import flows.image_errors
import flows.miner
from catalog.deposits import folder_of
from catalog.verify import verify
from catalog.writer import CatalogWriter
from flows.datasets.folder import FolderSource
from flows.image_errors import RunError
from flows.stopping import Stopped, StopRequest
from flows.work import Desk, Work
from pipeline.models.contract import Denoiser
from tests.flows import tiny
from tests.flows.coordinator.bench import (
    IMAGES,
    Bench,
    check,
    count,
    leave_deposits,
    leftovers,
    mine_with,
    raising,
)

# -- images that fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RuntimeError("out of memory"), "RuntimeError: out of memory"), (ArithmeticError("nan"), "ArithmeticError: nan"),
     (MemoryError("big"), "MemoryError: big"), (IndexError("7"), "IndexError: 7"),
     (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error")],
)  # fmt: skip
def test_a_poisoned_image_fails_alone(error: Exception, reason: str, bench: Bench, mined: list[int]) -> None:
    out = bench.folder / "out"
    report = mine_with(bench, out, 2, raising(error))
    assert (report.images, report.failed) == (IMAGES - 1, {"b.jpg": reason})
    assert count(out) == IMAGES - 1
    assert verify(out).ok
    assert bench.mine(out).images == 1


def test_what_makes_all_images_fail_ends_the_run_with_one_clear_error_and_keeps_what_was_mined(
    bench: Bench, mined: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = bench.folder / "out"
    monkeypatch.setattr(flows.image_errors, "ALIKE", 3)
    real = flows.miner.mine_image

    def broken(*asked: Any) -> Any:
        if len(mined) >= 2:
            raise TypeError("an argument too many")
        return real(*asked)

    with monkeypatch.context() as patch:
        patch.setattr(flows.miner, "mine_image", broken)
        with pytest.raises(RunError, match="3 in a row that failed alike, by TypeError: an argument too many"):
            bench.mine(out)
    assert (count(out), verify(out).ok) == (2, True)
    assert bench.mine(out).images == IMAGES - 2


def test_a_lost_connection_while_an_image_is_mined_is_tried_again_and_the_image_is_mined(
    bench: Bench, mined: list[int], impatient: list[float]
) -> None:
    report = mine_with(bench, bench.folder / "out", 3, raising(ConnectionResetError("reset by peer")))
    assert (report.images, report.failed, impatient) == (IMAGES, {}, [1.0])


def test_a_picture_that_cannot_be_read_for_whatever_reason_fails_alone(
    bench: Bench, mined: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FolderSource.read

    def reading(self: FolderSource, key: str, parts: Any) -> Any:
        if key == "d.png":
            raise OSError(5, "Input/output error")
        return real(self, key, parts)

    monkeypatch.setattr(FolderSource, "read", reading)
    report = bench.mine(bench.folder / "out")
    assert (report.images, report.failed) == (IMAGES - 1, {"d.png": "OSError: [Errno 5] Input/output error"})


def test_an_image_that_takes_longer_than_it_may_fails_alone_with_that_reason(bench: Bench, mined: list[int]) -> None:
    def endless() -> None:
        while True:
            pass

    report = mine_with(bench, bench.folder / "out", 3, endless, image_timeout=0.5)
    assert report.images == IMAGES - 1
    assert report.failed == {"c.png": "TookTooLongError: longer than the 0.5 s it may take"}
    assert bench.mine(bench.folder / "out").images == 1


def test_a_picture_whose_reading_takes_longer_than_it_may_fails_alone(
    bench: Bench, mined: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FolderSource.read

    def endless(self: FolderSource, key: str, parts: Any) -> Any:
        while key == "d.png":
            pass
        return real(self, key, parts)

    monkeypatch.setattr(FolderSource, "read", endless)
    report = bench.mine(bench.folder / "out", image_timeout=0.4)
    assert (report.images, list(report.failed)) == (IMAGES - 1, ["d.png"])
    assert "longer than the 0.4 s" in report.failed["d.png"]


def test_an_image_whose_pixels_change_during_the_run_fails_and_is_mined_as_it_is_by_the_next(
    bench: Bench, mined: list[int]
) -> None:
    changed = bench.folder / "photos" / "c.png"

    def meddling(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
        for work in works:
            if ("c.png", work.items[0][1]) in work.items:
                with Image.open(changed) as picture:
                    picture.rotate(180).save(changed)
            desk.do(work)
            yield

    out = bench.folder / "out"
    report = bench.mine(out, meddling)
    assert report.images == IMAGES - 1
    assert "its pixels changed while the run was going on" in report.failed.pop("c.png")
    assert report.failed == {}
    report = bench.mine(out)
    assert (report.images, report.failed) == (1, {})
    assert (count(out), verify(out).problems) == (IMAGES, ())


# -- asked to stop -----------------------------------------------------------------------------------------------------


def test_a_stop_ends_with_the_image_in_hand_commits_it_and_the_rerun_does_only_the_rest(
    bench: Bench, mined: list[int], whole: dict[str, bytes]
) -> None:
    stop, out = StopRequest(), bench.folder / "out"
    with pytest.raises(Stopped):
        mine_with(bench, out, 3, stop.ask, stop=stop)
    assert (count(out), leftovers(out)) == (3, [])
    mined.clear()
    report = bench.mine(out)
    assert (len(mined), report.images, report.already_done) == (2, 2, 3)
    check(out, whole)


def test_a_stop_marker_of_a_killed_run_stops_no_later_one(bench: Bench, mined: list[int]) -> None:
    out = bench.folder / "out"
    leave_deposits(bench, out)
    job = next((out / ".incoming").iterdir()).name
    (out / folder_of(job) / "stop").write_bytes(b"")
    assert bench.mine(out).already_done == IMAGES
    assert leftovers(out) == []


# -- what is done once -------------------------------------------------------------------------------------------------


def test_a_raised_limit_mines_only_what_is_new(
    world: Path, tiny_model: Path, denoiser: Denoiser, mined: list[int]
) -> None:
    dataset = {"kind": "folder", "path": "photos", "masks": "masks"}
    done = []
    for limit in (2, 2, 5):
        tiny.recipe(world, tiny_model, dataset={**dataset, "limit": limit})
        report = Bench(world, denoiser).mine(world / "out")
        done.append((report.images, report.already_done))
    assert done == [(2, 0), (0, 2), (3, 2)]
    assert len(mined) == IMAGES


def test_commits_have_a_fiftieth_of_the_time_however_slow_they_are(
    bench: Bench, mined: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, commits = 0.0, 0
    real = CatalogWriter.adopt

    def slow(self: CatalogWriter, *asked: Any) -> Any:
        nonlocal now, commits
        now, commits = now + 10.0, commits + 1
        return real(self, *asked)

    def waiting(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
        nonlocal now
        for work in works:
            desk.do(work)
            for _ in range(600):
                now += 1.0
                yield

    monkeypatch.setattr(CatalogWriter, "adopt", slow)
    monkeypatch.setattr(flows.coordinator, "time", SimpleNamespace(monotonic=lambda: now))
    bench.mine(bench.folder / "out", waiting)
    assert count(bench.folder / "out") == IMAGES
    assert commits == 3  # one for each work, as 600 s pass for each
    assert 10.0 * commits <= flows.coordinator.COMMIT_SHARE * now
