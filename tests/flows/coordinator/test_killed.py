"""A run that is killed or cheated by its workers, and run again: the catalog of an undisturbed one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import flows.coordinator
from flows.work import Desk, Work
from pipeline.errors import CatalogError, InputError
from tests.flows.coordinator.bench import (
    IMAGES,
    Bench,
    check,
    count,
    deposited,
    leave_deposits,
    leftovers,
)

ROOT = Path(__file__).parents[3]
STRIDE = 17  # changes to the disk between one kill and the next


# -- killed ------------------------------------------------------------------------------------------------------------


def test_a_run_killed_before_any_change_to_the_disk_ends_alike_when_run_again_and_mines_nothing_twice(
    bench: Bench, mined: list[int], whole: dict[str, bytes]
) -> None:
    work = bench.folder / "work"
    work.mkdir()
    asked = [str(bench.folder / "recipe.yaml"), str(work), str(STRIDE)]
    command = [sys.executable, "-m", "tests.flows.coordinator.crash_driver", *asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    endings = json.loads(done.stdout or "[]")
    assert endings[-1:] == [0], done.stderr
    assert len(endings) > 8
    assert set(endings[:-1]) == {-signal.SIGKILL}
    states = set()
    for folder in (work / str(STRIDE * step) for step in range(len(endings))):
        began = (folder / "manifest.json").is_file()
        there = (count(folder), deposited(folder)) if began else (0, 0)
        states.add(there)
        mined.clear()
        report = bench.mine(folder)
        assert len(mined) == report.images == IMAGES - sum(there)
        check(folder, whole)
    assert {(0, 0), (2, 2), (5, 0)} <= states, states  # before any, with a deposit that waits, and after all


def test_a_receipt_that_is_torn_is_no_deposit_and_its_images_are_mined_again(
    bench: Bench, mined: list[int], whole: dict[str, bytes]
) -> None:
    out = bench.folder / "out"
    leave_deposits(bench, out)
    receipts = sorted(out.rglob("receipt.json"))
    receipts[0].write_bytes(receipts[0].read_bytes()[:-40])
    mined.clear()
    bench.mine(out)
    assert len(mined) == 2
    check(out, whole)


def test_a_deposit_whose_shard_was_damaged_is_dropped_and_its_images_are_mined_again(
    bench: Bench, mined: list[int], whole: dict[str, bytes]
) -> None:
    out = bench.folder / "out"
    leave_deposits(bench, out)
    shard = sorted(out.rglob(".incoming/*/*/directions-*.parquet"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    mined.clear()
    bench.mine(out)
    assert len(mined) in (1, 2)
    check(out, whole)


# -- workers that cheat ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 512])
def test_deposits_of_a_dead_run_are_taken_in_however_many_at_once_and_not_mined_again(
    at_once: int, bench: Bench, mined: list[int], whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.coordinator, "AT_ONCE", at_once)
    out = bench.folder / "out"
    leave_deposits(bench, out)
    mined.clear()
    report = bench.mine(out)
    assert (mined, report.images, report.already_done) == ([], 0, IMAGES)
    check(out, whole)


def test_a_deposit_that_a_worker_of_a_dead_run_leaves_late_is_dropped(
    bench: Bench, mined: list[int], whole: dict[str, bytes]
) -> None:
    out = bench.folder / "out"
    late: list[tuple[Desk, Work]] = []

    def remembering(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
        for work in works:
            late.append((desk, work))
            desk.do(work)
            yield

    bench.mine(out, remembering)
    for desk, work in late:
        desk.do(work)
    late_one, rest = late[0]
    rest_of_it = Work(rest.items[:1])
    late_one.do(rest_of_it)
    assert len(list(out.rglob("receipt.json"))) == 4
    assert bench.mine(out).images == 0
    check(out, whole)


def test_a_worker_that_ended_without_a_word_has_its_work_handed_out_again(
    bench: Bench, mined: list[int], whole: dict[str, bytes]
) -> None:
    rounds: list[int] = []

    def forgetful(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
        rounds.append(0)
        for work in works:
            rounds[-1] += 1
            if len(rounds) > 1 or rounds[-1] != 2:
                desk.do(work)
            yield

    report = bench.mine(bench.folder / "out", forgetful)
    assert (rounds, report.images) == ([3, 1], IMAGES)
    check(bench.folder / "out", whole)


def test_work_that_never_comes_to_anything_is_one_clear_error_and_the_rest_is_kept(
    bench: Bench, mined: list[int]
) -> None:
    def lazy(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
        for work in works:
            if work.items[0][0] != "c.png":
                desk.do(work)
            yield

    out = bench.folder / "out"
    with pytest.raises(CatalogError, match="no result for c.png, d.png"):
        bench.mine(out, lazy)
    assert count(out) == 3
    assert bench.mine(out).images == 2


def test_what_ends_a_worker_is_raised_and_what_was_mined_before_is_kept(bench: Bench, mined: list[int]) -> None:
    def breaking(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
        for number, work in enumerate(works):
            if number == 2:
                raise InputError("--workers", "a process that died", "one that lives")
            desk.do(work)
            yield

    out = bench.folder / "out"
    with pytest.raises(InputError, match="a process that died"):
        bench.mine(out, breaking)
    assert (count(out), leftovers(out)) == (4, [])
    assert bench.mine(out).images == 1
