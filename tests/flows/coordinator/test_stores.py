"""Stores that fail, are away, or lose their answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import flows.coordinator
from catalog.store import LocalStore, StoreError
from catalog.writer import CatalogWriter
from flows.stopping import Stopped, StopRequest
from flows.work import Desk, Work
from pipeline.errors import CatalogError, InputError
from tests.catalog.faulty import EveryNth, FaultyFileSystem
from tests.flows.coordinator.bench import (
    IMAGES,
    Bench,
    all_at_once,
    check,
)

# -- stores ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def distant(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a store that does what a test says with changes."""
    monkeypatch.setenv("RHUMB_CACHE", str(world / "cache"))
    (world / "store").mkdir()
    yield f"faulty://{world}/store"
    FaultyFileSystem.before = staticmethod(lambda name: None)


@pytest.mark.parametrize("n", [3, 7, 11])
def test_a_store_that_fails_every_nth_change_is_tried_again_and_ends_alike(
    n: int, distant: str, bench: Bench, whole: dict[str, bytes], impatient: list[float]
) -> None:
    faults = EveryNth(n, ConnectionResetError("reset by peer"))
    FaultyFileSystem.before = staticmethod(faults)
    bench.mine(distant)
    assert faults.hit > 2
    check(bench.folder / "store", whole)


def test_a_store_that_may_not_be_written_is_one_clear_error(distant: str, bench: Bench, mined: list[int]) -> None:
    def refuse(name: str) -> None:
        raise PermissionError("AccessDenied: secret=abc")

    FaultyFileSystem.before = staticmethod(refuse)
    with pytest.raises(InputError, match="access denied, or credentials missing or expired") as raised:
        bench.mine(distant)
    assert "abc" not in str(raised.value)
    assert mined == []


def test_credentials_that_expire_half_way_lose_nothing(
    distant: str, bench: Bench, mined: list[int], whole: dict[str, bytes]
) -> None:
    left = 45

    def expire(name: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise PermissionError("ExpiredToken")

    FaultyFileSystem.before = staticmethod(expire)
    with pytest.raises(InputError, match="credentials"):
        bench.mine(distant)
    FaultyFileSystem.before = staticmethod(lambda name: None)
    done = len(mined)
    assert done > 0
    bench.mine(distant)
    assert len(mined) <= IMAGES + 2  # at most the chunk in hand is mined again
    check(bench.folder / "store", whole)


class Away:
    """A store whose commits find no answer from one call to another; `asked` counts all calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> None:
        self.asked, real = 0, CatalogWriter.adopt

        def adopt(writer: CatalogWriter, *asked: Any) -> Any:
            self.asked += 1
            if first <= self.asked <= last:
                raise StoreError("store", "no answer", "one")
            return real(writer, *asked)

        monkeypatch.setattr(CatalogWriter, "adopt", adopt)


def test_commits_are_put_off_for_longer_and_longer_while_the_store_is_away_which_is_told_once(
    bench: Bench,
    mined: list[int],
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    now, tried = 0.0, list[float]()

    def beating(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
        nonlocal now
        for work in works:
            desk.do(work)
            for _ in range(40):
                before = away.asked
                now += 1.0
                yield
                tried.extend([now] if away.asked != before and away.asked > 1 else [])

    away = Away(monkeypatch, 2, 5)
    monkeypatch.setattr(flows.coordinator, "time", SimpleNamespace(monotonic=lambda: now))
    with caplog.at_level("INFO", "rhumb"):
        report = bench.mine(bench.folder / "out", beating)
    assert (report.images, len(mined)) == (IMAGES, IMAGES)
    assert np.diff(tried[:5]).tolist() == [1.0, 2.0, 4.0, 8.0]
    told = [getattr(record, "rhumb_event", "") for record in caplog.records]
    assert (told.count("store away"), told.count("store back")) == (1, 1)
    assert capfd.readouterr().err.count("commits are put off") == 1
    check(bench.folder / "out", whole)


def test_the_last_commit_waits_for_a_store_for_minutes_and_not_for_ever(
    bench: Bench, mined: list[int], impatient: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Away(patch, 1, 6)
        assert bench.mine(bench.folder / "out", all_at_once).images == IMAGES
    assert impatient == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    with monkeypatch.context() as patch:
        Away(patch, 1, 99)
        with pytest.raises(StoreError):
            bench.mine(bench.folder / "other", all_at_once)
    assert 120 < sum(impatient[6:]) < 600
    mined.clear()
    assert (bench.mine(bench.folder / "other").already_done, mined) == (IMAGES, [])


def test_what_is_wrong_with_a_store_for_good_ends_the_run_at_once(
    bench: Bench, mined: list[int], impatient: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise CatalogError("store", "no space left", "room for the new files")

    monkeypatch.setattr(CatalogWriter, "adopt", full)
    with pytest.raises(CatalogError, match="no space left"):
        bench.mine(bench.folder / "out")
    assert (len(mined), impatient) == (2, [])


def test_what_was_committed_without_an_answer_is_counted_once(
    bench: Bench, mined: list[int], whole: dict[str, bytes], impatient: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = CatalogWriter.adopt, list[int]()

    def adopt(writer: CatalogWriter, *asked: Any) -> Any:
        if lost:
            return real(writer, *asked)
        lost.append(1)
        with monkeypatch.context() as patch:
            patch.setattr("catalog.writer.discard", lambda *_: None)
            real(writer, *asked)
        raise StoreError("store", "no answer", "one")

    monkeypatch.setattr(CatalogWriter, "adopt", adopt)
    report = bench.mine(bench.folder / "out", all_at_once)
    assert (report.images, len(mined)) == (IMAGES, IMAGES)
    check(bench.folder / "out", whole)


def test_a_stop_asked_for_while_the_store_is_away_is_told_to_workers_once_it_is_back(
    bench: Bench, mined: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, real, marked = StopRequest(), LocalStore.replace, list[bool]()

    def replace(store: LocalStore, name: str, data: bytes) -> None:
        if name.endswith("/stop"):
            marked.append(len(marked) > 1)
            if not marked[-1]:
                raise StoreError("store", "no answer", "one")
        real(store, name, data)

    def stopping(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
        for work in works:
            stop.ask()
            while not desk.stopping():
                yield
            desk.do(work)

    monkeypatch.setattr(LocalStore, "replace", replace)
    with pytest.raises(Stopped):
        bench.mine(bench.folder / "out", stopping, stop=stop)
    assert (marked, mined) == ([False, False, True], [])
