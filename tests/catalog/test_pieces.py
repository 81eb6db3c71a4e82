"""Pieces of published files: each byte fetched once, whoever asks, whatever fails; what is recorded is on disk."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog.hub import pieces
from catalog.hub.pieces import Pieces, joined, pieces_folder, without
from catalog.manifest import FileEntry
from catalog.store import StoreError
from pipeline.errors import CatalogError, InputError
from tests.catalog.packs import Fails, FolderSnapshot

NAME = "directions/data.parquet"
SIZE = 300_000
DATA = np.random.default_rng(5).bytes(SIZE)
ENTRY = FileEntry(sha256=hashlib.sha256(DATA).hexdigest(), bytes=SIZE)

ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda r: (min(r), max(r))), max_size=6)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pieces, "AGAIN", (0.0, 0.0))
    yield


@pytest.fixture
def far(tmp_path: Path) -> FolderSnapshot:
    (tmp_path / "far" / "directions").mkdir(parents=True)
    (tmp_path / "far" / NAME).write_bytes(DATA)
    return FolderSnapshot(tmp_path / "far", "far")


def opened(far: FolderSnapshot, entry: FileEntry = ENTRY) -> Pieces:
    return Pieces(far.folder.parent / "cache", far, NAME, entry)


def bytes_in(found: list[tuple[int, int]]) -> set[int]:
    return {at for start, end in found for at in range(start, end)}


@given(ranges, ranges, st.integers(0, 9))
def test_ranges_are_joined_and_taken_from_each_other_byte_by_byte(
    one: list[tuple[int, int]], two: list[tuple[int, int]], gap: int
) -> None:
    assert bytes_in(joined(one)) == bytes_in(one)
    assert all(start < end for start, end in joined(one))
    assert all(there - end >= max(1, gap) for (_, end), (there, _) in pairwise(joined(one, gap)))
    assert bytes_in(joined(one, gap)) >= bytes_in(one)
    left = without(joined(one), joined(two))
    assert bytes_in(left) == bytes_in(one) - bytes_in(two)
    assert left == joined(left)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, 50_000)), min_size=1, max_size=8), st.booleans())
def test_every_byte_that_is_asked_for_is_there_and_was_fetched_once(
    far: FolderSnapshot, asked: list[tuple[int, int]], reopened: bool
) -> None:
    shutil.rmtree(far.folder.parent / "cache", ignore_errors=True)
    far.read_spans.clear()
    own = opened(far)
    for start, size in asked:
        size = min(size, SIZE - start)
        own = opened(far) if reopened else own
        own.need([(start, size)])
        if size:
            assert own.path.read_bytes()[start : start + size] == DATA[start : start + size]
    seen: set[int] = set()
    for _, start, size in far.read_spans:
        assert seen.isdisjoint(range(start, start + size))
        seen.update(range(start, start + size))


def test_neighbours_come_together_and_what_lies_far_apart_does_not(far: FolderSnapshot) -> None:
    opened(far).need([(0, 100), (5_000, 100), (200_000, 100)])
    assert sorted(far.read_spans) == [(NAME, 0, 5_100), (NAME, 200_000, 100)]


def test_large_pieces_come_in_several_requests(far: FolderSnapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_LARGEST", 10_000)
    monkeypatch.setattr(pieces, "_BATCH", 50_000)
    own = opened(far)
    own.need([(0, SIZE)])
    assert own.path.read_bytes() == DATA
    assert len(far.read_spans) == 30
    assert own.fetched == SIZE


def test_what_came_before_a_failure_is_kept(far: FolderSnapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_LARGEST", 10_000)
    monkeypatch.setattr(pieces, "_ABREAST", 1)
    far.before = Fails(8, 10**9)
    with pytest.raises(StoreError):
        opened(far).need([(0, SIZE)])
    assert len(far.read_spans) == 7
    far.before = lambda what: None
    own = opened(far)
    own.need([(0, SIZE)])
    assert own.path.read_bytes() == DATA
    assert sum(size for _, _, size in far.read_spans) == SIZE


def test_a_failure_that_passes_is_waited_for(far: FolderSnapshot) -> None:
    far.before = Fails(1, 2)
    own = opened(far)
    own.need([(10, 10)])
    assert own.path.read_bytes()[10:20] == DATA[10:20]


@pytest.mark.parametrize("held", [[], [(0, 1_000)], [(0, 200_000)]])
def test_a_whole_file_is_fetched_or_filled_and_compared(far: FolderSnapshot, held: list[tuple[int, int]]) -> None:
    own = opened(far)
    own.need([(start, end - start) for start, end in held])
    assert own.whole().read_bytes() == DATA
    assert far.bytes == SIZE == own.fetched
    assert opened(far).whole().read_bytes() == DATA
    opened(far).need([(1_000, 250_000)])
    assert far.bytes == SIZE


def test_a_damaged_piece_is_dropped_and_only_that_fetched_again(far: FolderSnapshot) -> None:
    own = opened(far)
    own.need([(0, 1_000)])
    own.mark()
    own.need([(100_000, 500)])
    own.drop()
    far.read_spans.clear()
    own.need([(0, 1_000), (100_000, 500)])
    assert far.read_spans == [(NAME, 100_000, 500)]


def test_a_whole_file_with_a_damaged_piece_is_fetched_anew(far: FolderSnapshot) -> None:
    own = opened(far)
    own.need([(0, 1_000)])
    own.path.write_bytes(b"x" + own.path.read_bytes()[1:])
    assert own.whole().read_bytes() == DATA


def test_a_file_that_is_not_what_was_published_is_refused_after_another_try(far: FolderSnapshot) -> None:
    told: list[str] = []
    far.before = told.append
    (far.folder / NAME).write_bytes(b"x" + DATA[1:])
    with pytest.raises(CatalogError, match="far/directions/data.parquet: found changed bytes"):
        opened(far).whole()
    assert told == [f"fetch {NAME} False", f"fetch {NAME} True"]
    assert [path.suffix for path in (far.folder.parent / "cache").iterdir() if path.suffix] == []
    (far.folder / NAME).write_bytes(DATA)
    assert opened(far).whole().read_bytes() == DATA


def test_a_short_or_missing_file_is_refused(far: FolderSnapshot) -> None:
    (far.folder / NAME).write_bytes(DATA[:1_000])
    with pytest.raises(CatalogError, match="0 bytes from byte 2000 on"):
        opened(far).need([(2_000, 10)])
    (far.folder / NAME).unlink()
    for call in (lambda: opened(far).need([(2_000, 10)]), lambda: opened(far).whole()):
        with pytest.raises(CatalogError, match="missing from the pack"):
            call()


@pytest.mark.parametrize("record", [b"", b"{", b'{"held": [[5, 2]]}', b'{"held": [[0, 9999999]]}', b"[1]"])
def test_a_record_that_says_nothing_right_counts_for_nothing(far: FolderSnapshot, record: bytes) -> None:
    own = opened(far)
    own.need([(0, 100)])
    (own.path.parent / f"{ENTRY.sha256}.held").write_bytes(record)
    again = opened(far)
    again.need([(0, 100)])
    assert far.read_spans == [(NAME, 0, 100)] * 2


def test_pieces_of_a_file_that_was_deleted_or_cut_are_fetched_again(far: FolderSnapshot) -> None:
    own = opened(far)
    for change in (lambda: own.path.unlink(), lambda: own.path.write_bytes(b"short")):
        opened(far).need([(0, 100)])
        change()
        again = opened(far)
        again.need([(0, 100)])
        assert again.path.read_bytes()[:100] == DATA[:100]
        assert again.path.stat().st_size == SIZE


def test_a_full_disk_and_an_absurd_size_are_told(far: FolderSnapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(CatalogError, match="no space left"):
            opened(far).need([(0, 100)])
    with pytest.raises(CatalogError, match=r"9007199254740992 bytes|bytes from byte"):
        opened(far, ENTRY.model_copy(update={"bytes": 2**53})).need([(2**52, 100)])


def test_a_cache_that_cannot_be_written_is_told(far: FolderSnapshot) -> None:
    (far.folder.parent / "cache").write_text("a file")
    with pytest.raises(InputError, match="RHUMB_CACHE"):
        opened(far).need([(0, 100)])


def test_repositories_share_no_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RHUMB_CACHE", str(tmp_path))
    assert pieces_folder("hub/org/pack") != pieces_folder("hub/org/other")
    assert pieces_folder("hub/org/pack").parent == tmp_path / "pieces"


def _in_process(folder: Path, number: int, kill_at: int) -> None:
    """Ask for pieces that overlap with those of others; die before a change of the disk where `kill_at` says so."""
    far = FolderSnapshot(folder / "far", "far")
    left = kill_at

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in ("pwrite", "fsync", "replace", "ftruncate", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    for start in range(number * 1_000, 200_000, 40_000):
        opened(far).need([(start, 30_000)])
    (folder / f"asked-{number}").write_text(json.dumps([size for _, _, size in far.read_spans]))


def _children(folder: Path, kills: list[int]) -> list[int | None]:
    context = multiprocessing.get_context("fork")
    own = [context.Process(target=_in_process, args=(folder, n, kill)) for n, kill in enumerate(kills)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of later Pythons, which see the threads of libraries
        for child in own:
            child.start()
    for child in own:
        child.join(60)
    return [child.exitcode for child in own]


def test_several_processes_fill_one_file_and_fetch_nothing_twice(far: FolderSnapshot, tmp_path: Path) -> None:
    assert _children(tmp_path, [0, 0, 0]) == [0, 0, 0]
    asked = [size for n in range(3) for size in json.loads((tmp_path / f"asked-{n}").read_text())]
    own = opened(far)
    own.need([(0, 30_000)])
    held = json.loads((tmp_path / "cache" / f"{ENTRY.sha256}.held").read_text())["held"]
    assert sum(asked) == sum(end - start for start, end in held)
    for start, end in held:
        assert own.path.read_bytes()[start:end] == DATA[start:end]


def test_a_process_killed_at_any_step_leaves_only_pieces_that_are_there(far: FolderSnapshot, tmp_path: Path) -> None:
    endings = []
    for step in range(1, 14):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        endings += _children(tmp_path, [step])
        record = tmp_path / "cache" / f"{ENTRY.sha256}.held"
        data = (tmp_path / "cache" / ENTRY.sha256).read_bytes()
        for start, end in json.loads(record.read_text())["held"] if record.exists() else []:
            assert data[start:end] == DATA[start:end]
        own = opened(far)
        own.need([(0, 200_000)])
        assert own.path.read_bytes()[:200_000] == DATA[:200_000]
    assert set(endings) == {-signal.SIGKILL}
