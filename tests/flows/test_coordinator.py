"""A run that is killed, stopped, cheated by workers or its store, and run again: the catalog of an undisturbed one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import flows.coordinator
import flows.image_errors
import flows.miner
import flows.transient
from catalog.deposits import folder_of, whole_deposits
from catalog.reader import Catalog
from catalog.store import LocalStore, StoreError
from catalog.verify import verify
from catalog.writer import CatalogWriter
from flows.datasets.dataset import Dataset, load_dataset
from flows.datasets.folder import FolderSource
from flows.image_errors import RunError
from flows.miner import MiningReport
from flows.mining import mine
from flows.opening import open_model
from flows.recipe import Recipe, load_recipe
from flows.runners.contract import Runner, run_here
from flows.stopping import Stopped, StopRequest
from flows.work import Desk, Work
from pipeline.errors import CatalogError, InputError
from pipeline.models.contract import Denoiser
from tests.catalog.faulty import EveryNth, FaultyFileSystem
from tests.flows import tiny

ROOT = Path(__file__).parents[2]
IMAGES = 5
STRIDE = 17  # changes to the disk between one kill and the next


@pytest.fixture(scope="module")
def denoiser(tiny_model: Path) -> Denoiser:
    return open_model(str(tiny_model))


@pytest.fixture
def world(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with five photographs, their masks and a recipe."""
    tiny.photographs(tmp_path)
    tiny.recipe(tmp_path, tiny_model)
    return tmp_path


@pytest.fixture
def mined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every image that is mined, quickly."""
    calls: list[int] = []

    def counting(*asked: Any) -> Any:
        calls.append(1)
        return tiny.quick_mine_image(*asked)

    monkeypatch.setattr(flows.miner, "mine_image", counting)
    return calls


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits between tries are noted, not waited."""
    waits: list[float] = []
    monkeypatch.setattr(flows.transient, "time", SimpleNamespace(sleep=waits.append))
    return waits


class Bench:
    """A recipe with its model and data open, to be mined again and again."""

    def __init__(self, folder: Path, denoiser: Denoiser) -> None:
        self.folder, self.denoiser = folder, denoiser
        self.recipe: Recipe = load_recipe(folder / "recipe.yaml")

    @property
    def data(self) -> Dataset:
        return load_dataset(self.recipe, self.denoiser.info.image_shape)

    def mine(self, out: Path | str, runner: Runner = run_here, **settings: Any) -> MiningReport:
        return mine(self.recipe, out, self.denoiser, self.data, runner, **settings)


@pytest.fixture
def bench(world: Path, denoiser: Denoiser) -> Bench:
    return Bench(world, denoiser)


@pytest.fixture
def whole(bench: Bench, mined: list[int]) -> dict[str, bytes]:
    """What an undisturbed run finds."""
    bench.mine(bench.folder / "whole")
    mined.clear()
    return content(bench.folder / "whole")


def content(folder: Path) -> dict[str, bytes]:
    """Every direction's vector by id, and every image's and region's id."""
    with Catalog.open(folder) as catalog:
        found = {key.decode(): catalog.vector(key.decode()).astype(np.float16).tobytes() for key in catalog.ids()}
        return found | {key.decode(): b"" for table in ("images", "regions") for key in catalog.ids(table)}


def count(folder: Path) -> int:
    with Catalog.open(folder) as catalog:
        return catalog.images().num_rows


def leftovers(folder: Path) -> list[str]:
    """What a run that ended must not leave in a catalog; in a distant store there are no folders."""
    paths = (path for path in folder.rglob("*") if path.is_file() or folder.name != "store")
    names = [str(path.relative_to(folder)) for path in paths]
    return [name for name in names if name.startswith((".incoming", ".staging")) or name.endswith(".tmp")]


def check(folder: Path, expected: dict[str, bytes]) -> None:
    assert content(folder) == expected
    assert verify(folder).problems == ()
    assert leftovers(folder) == []


def deposited(folder: Path) -> int:
    """Images in deposits that no catalog holds."""
    incoming = folder / ".incoming"
    jobs = [path.name for path in incoming.iterdir()] if incoming.is_dir() else []
    held = LocalStore(folder)
    with Catalog.open(folder) as catalog:
        done = {key.decode() for key in catalog.ids("images")}
    return len({image for job in jobs for one in whole_deposits(held, job) for image in one.images} - done)


# -- killed ------------------------------------------------------------------------------------------------------------


def test_a_run_killed_before_any_change_to_the_disk_ends_alike_when_run_again_and_mines_nothing_twice(
    bench: Bench, mined: list[int], whole: dict[str, bytes]
) -> None:
    work = bench.folder / "work"
    work.mkdir()
    asked = [str(bench.folder / "recipe.yaml"), str(work), str(STRIDE)]
    command = [sys.executable, "-m", "tests.flows.crash_driver", *asked]
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


def leave_deposits(bench: Bench, out: Path) -> None:
    """A catalog without images whose deposits all wait, as when the coordinator is killed before its first commit."""

    def killed(self: CatalogWriter, *_: Any) -> Any:
        raise SystemExit("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CatalogWriter, "adopt", killed)
        with pytest.raises(SystemExit):
            bench.mine(out, all_before_the_first_beat)
    assert (count(out), deposited(out)) == (0, IMAGES)


def all_before_the_first_beat(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
    """A runner that comes back only when everything is done."""
    for work in list(works):
        desk.do(work)
    yield


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


def mine_with(bench: Bench, out: Path, number: int, happen: Callable[[], None], **settings: Any) -> MiningReport:
    """Mine, and let something happen when the `number`-th image is being mined."""
    with pytest.MonkeyPatch.context() as patch:
        at_image(patch, number, happen)
        return bench.mine(out, **settings)


def at_image(patch: pytest.MonkeyPatch, number: int, happen: Callable[[], None]) -> None:
    real, left = flows.miner.mine_image, number

    def call(*asked: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            happen()
        return real(*asked)

    patch.setattr(flows.miner, "mine_image", call)


def raising(error: Exception) -> Callable[[], None]:
    def happen() -> None:
        raise error

    return happen


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


def all_at_once(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
    """A runner that never beats."""
    for work in list(works):
        desk.do(work)
    yield from ()


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
