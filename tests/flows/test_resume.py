"""Runs that are killed, interrupted or cut by a full disk: nothing is lost, and the same command finishes the job."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import flows.miner
from catalog.reader import Catalog
from catalog.verify import verify
from catalog.writer import CatalogWriter
from tests.flows import tiny

ROOT = Path(__file__).parents[2]


def copy_of(mined: Path, folder: Path, *, catalog: bool = False) -> Path:
    """The session's photographs, masks and recipe (and its catalog) in a folder of one's own."""
    shutil.copytree(mined, folder, ignore=None if catalog else shutil.ignore_patterns("catalog"))
    return folder


def content(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Every direction by id: its region, space, kind, rank and the bytes of its float16 vector."""
    with Catalog.open(folder) as catalog:
        rows = catalog.directions().to_pylist()
        return {
            row["direction_id"]: (row["region"], row["space"], row["kind"], row["rank"], row["parents"],
                                  catalog.vector(row["direction_id"]).astype(np.float16).tobytes())
            for row in rows
        }  # fmt: skip


def images(folder: Path) -> int:
    with Catalog.open(folder) as catalog:
        return catalog.images().num_rows


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Python's own answer to SIGINT, which a shell that started us in the background may have switched off."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def at_call(monkeypatch: pytest.MonkeyPatch, target: str, number: int, happen: Callable[[], None]) -> None:
    """Let something happen just before the `number`-th call of `target`."""
    module, name = target.rsplit(".", 1)
    real = getattr(__import__(module, fromlist=[name]), name)
    left = number

    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            happen()
        return real(*arguments, **keywords)

    monkeypatch.setattr(target, call)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# How the run ends, and in how many processes it mines: in the middle of the second chunk, or before its commit.
ENDINGS = {
    "killed while mining": ("kill:flows.miner/mine_image:4", 1, -signal.SIGKILL),
    "killed with its workers at work": ("kill:flows.mining/CatalogWriter/adopt:2", 2, -signal.SIGKILL),
    "interrupted with its workers at work": ("interrupt:flows.mining/CatalogWriter/adopt:2", 2, 130),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_run_ended_half_way_continues_and_ends_with_the_same_catalog(
    ending: str, mined: Path, tmp_path: Path
) -> None:
    plan, workers, code = ENDINGS[ending]
    folder = copy_of(mined, tmp_path / "world")
    command = [sys.executable, "-m", "tests.flows.driver", plan, "mine", "recipe.yaml", "--out", "catalog"]
    process = subprocess.Popen(
        [*command, "--workers", str(workers)], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    # Both pipes stay open as long as a worker lives: that they end shows that none is left behind.
    _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    if code == 130:
        first, last = [line for line in tiny.lines(said) if not line.startswith("mining: ")]
        assert first.startswith("stopping after the images that are being mined")
        assert last.startswith("rhumb mine: interrupted; what was committed is kept")
    assert 1 <= images(folder / "catalog") <= 5
    assert verify(folder / "catalog").ok
    assert tiny.run("mine", folder / "recipe.yaml", "--out", folder / "catalog") == 0
    assert content(folder / "catalog") == content(mined / "catalog")
    assert verify(folder / "catalog").ok


def test_images_whose_worker_dies_each_time_fail_alone_and_are_tried_again(
    world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        """A pool whose every result is the news that a process died."""

        _processes: ClassVar[dict[int, Any]] = {}

        def __init__(self, *_: object) -> None: ...

        def submit(self, *_: object) -> Future[None]:
            future: Future[None] = Future()
            future.set_exception(BrokenProcessPool("a process was killed"))
            return future

        def shutdown(self, cancel_futures: bool) -> None: ...

    asked = ("mine", world / "recipe.yaml", "--out", world / "catalog")
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)
    with monkeypatch.context() as patch:
        patch.setattr("flows.runners.processes.ProcessPoolExecutor", Broken)
        assert tiny.run(*asked, "--workers", 2) == 1
    assert capfd.readouterr().out.count("the process that mined it died, twice") == 3
    assert tiny.run(*asked) == 0
    assert images(world / "catalog") == 3


def test_mining_again_what_is_done_computes_and_changes_nothing(
    mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(mined, tmp_path / "world", catalog=True)
    monkeypatch.setattr(flows.miner, "mine_image", None)
    assert tiny.run("mine", folder / "recipe.yaml", "--out", folder / "catalog", "--json") == 0
    report = tiny.parsed(capsys.readouterr().out)
    assert (report["images"], report["already_done"], report["directions"]) == (0, 5, 0)
    assert content(folder / "catalog") == content(mined / "catalog")


# Command (with {w} for the folder), where it is cut and at which call, and what must not be there afterwards.
STAGES: dict[str, tuple[str, str, int]] = {
    "loading the model": ("mine {w}/recipe.yaml --out {w}/new", "flows.running.open_model", 1),
    "inverting": ("mine {w}/recipe.yaml --out {w}/new", "flows.miner.invert_pictures", 2),
    "mining": ("mine {w}/recipe.yaml --out {w}/new", "flows.miner.mine_image", 2),
    "committing": ("mine {w}/recipe.yaml --out {w}/new", "catalog.deposits._draft", 5),
    "indexing": ("index {w}/catalog --rebuild", "catalog.index.search_vectors", 2),
    "searching": ("similar {w}/catalog {id}", "flows.lookup_commands.find_similar", 1),
    "publishing": ("publish {w}/catalog {w}/hub/org/pack --version 1.0.0", "catalog.hub.stores.check_relative", 3),
    "pulling": ("pull {w}/shop/org/pack --version 1.0.0 --out {w}/pulled", "catalog.hub.pulling._fetch", 3),
    "verifying": ("verify {w}/catalog", "catalog.verify.sha256_of", 2),
    "transferring": ("transfer {w}/catalog --image {w}/photos/a.png --region eye --mask {w}/masks/a_eye.png",
                     "flows.transferring.transfer_candidates", 1),
    "editing": ("edit {w}/catalog --image {w}/photos/a.png --direction {id}=2 --out {w}/edited.png",
                "flows.editing.apply_edits", 2),
    "reporting": ("report {w}/catalog --out {w}/report", "flows.report.assemble.decode", 2),
    "showing": ("demo --recipe {w}/recipe.yaml --out {w}/demo", "flows.demo.write_report", 1),
    "training": ("train builtin --steps 2 --out {w}/model --work {w}/work", "pipeline.training.training_batch", 2),
}  # fmt: skip


@pytest.fixture
def stand(mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a catalog, a published pack and a recipe, where mining is quick and training is small."""
    folder = copy_of(mined, tmp_path / "world", catalog=True)
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)
    monkeypatch.setattr("flows.training.DenoiserTraining", tiny.small_training)
    monkeypatch.setattr("flows.training.sample_sheet", lambda *_: np.zeros((4, 4, 3), np.uint8))
    return folder


def arguments(command: str, folder: Path) -> list[str]:
    with Catalog.open(folder / "catalog") as catalog:
        key = catalog.directions(space="x", kind="local").column("direction_id").to_pylist()[0]
    return command.format(w=folder, id=key).split()


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_ends_with_one_line_and_the_same_command_finishes(
    stage: str, stand: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command, target, call = STAGES[stage]
    asked = arguments(command, stand)
    if stage == "pulling":
        assert tiny.run("publish", stand / "catalog", f"{stand}/shop/org/pack", "--version", "1.0.0") == 0
    before = content(stand / "catalog")
    capfd.readouterr()
    with monkeypatch.context() as patch:
        at_call(patch, target, call, press_ctrl_c)
        assert tiny.run(*asked) == 130
    captured = capfd.readouterr()
    said = [line for line in tiny.lines(captured.err) if line.startswith("rhumb")]
    assert said == [f"rhumb {asked[0]}: interrupted; what was committed is kept, run the same command to continue"]
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert content(stand / "catalog") == before
    assert verify(stand / "catalog").ok
    assert tiny.run(*asked) == 0
    for folder in ("new", "pulled", "demo/pulled"):
        if (stand / folder).exists():
            assert verify(stand / folder).ok
            assert images(stand / folder) == 5


FULL = ("committing", "indexing", "publishing", "pulling", "editing", "reporting", "training")


@pytest.mark.parametrize("stage", FULL)
def test_a_full_disk_is_one_clear_error_and_the_same_command_finishes(
    stage: str, stand: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = arguments(STAGES[stage][0], stand)
    if stage == "pulling":
        assert tiny.run("publish", stand / "catalog", f"{stand}/shop/org/pack", "--version", "1.0.0") == 0
    if stage == "indexing":
        with CatalogWriter.open(stand / "catalog") as writer:
            writer.replace_indexes({}, {})
    before = content(stand / "catalog")
    capfd.readouterr()
    with monkeypatch.context() as patch:
        at_call(patch, "os.fsync", 1 if stage in ("editing", "reporting", "training") else 4, fill_the_disk)
        assert tiny.run(*asked) == 2
    captured = capfd.readouterr()
    said = [line for line in tiny.lines(captured.err) if line.startswith("rhumb")]
    assert len(said) == 1
    assert "no space left" in said[0]
    assert "Traceback" not in captured.err
    assert content(stand / "catalog") == before
    assert verify(stand / "catalog").ok
    left = {file for file in tiny.tree(stand) if file.endswith(".tmp")}
    assert left == set()
    assert not (stand / "edited.png").exists()
    assert not (stand / "report" / "index.html").exists()
    assert tiny.run(*asked) == 0


def test_a_disk_that_fills_while_mining_keeps_the_chunks_before(
    stand: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = arguments(STAGES["mining"][0], stand)
    with monkeypatch.context() as patch:
        at_call(patch, "catalog.deposits._draft", 6, fill_the_disk)
        assert tiny.run(*asked) == 2
    assert "no space left" in capfd.readouterr().err
    assert images(stand / "new") == tiny.CHUNK
    assert verify(stand / "new").ok
    assert tiny.run(*asked) == 0
    assert images(stand / "new") == 5


def test_a_failed_image_is_recorded_not_counted_and_tried_again(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("mine", world / "recipe.yaml", "--out", world / "catalog", "--json")
    calls = 0

    def fails_once(*asked: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("out of memory")
        return tiny.quick_mine_image(*asked)

    monkeypatch.setattr(flows.miner, "mine_image", fails_once)
    assert tiny.run(*command) == 1
    report = tiny.parsed(capsys.readouterr().out)
    assert (report["images"], report["failed"]) == (2, {"b.jpg": "RuntimeError: out of memory"})
    assert tiny.run("status", world / "catalog", "--json") == 0
    status = tiny.parsed(capsys.readouterr().out)
    assert (status["images"], status["failures"]) == (2, {"b.jpg": "RuntimeError: out of memory"})
    assert verify(world / "catalog").ok

    assert tiny.run(*command) == 0
    report = tiny.parsed(capsys.readouterr().out)
    assert (report["images"], report["already_done"], report["failed"]) == (1, 2, {})
    assert calls == 4
    assert tiny.run("status", world / "catalog", "--json") == 0
    status = tiny.parsed(capsys.readouterr().out)
    assert (status["images"], status["failures"]) == (3, {})
    assert verify(world / "catalog").ok


def test_an_image_that_fails_again_and_again_stays_failed_and_the_catalog_sound(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*asked: Any) -> Any:
        raise ArithmeticError("not finite")

    monkeypatch.setattr(flows.miner, "mine_image", fails)
    for _ in range(3):
        assert tiny.run("mine", world / "recipe.yaml", "--out", world / "catalog") == 1
        assert images(world / "catalog") == 0
        assert verify(world / "catalog").ok


def test_a_broken_file_is_recorded_and_mined_once_it_is_repaired(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)
    command = ("mine", world / "recipe.yaml", "--out", world / "catalog", "--json")
    whole = (world / "photos" / "b.jpg").read_bytes()
    (world / "photos" / "b.jpg").write_bytes(whole[:40])
    for _ in range(2):
        assert tiny.run(*command) == 1
        report = tiny.parsed(capsys.readouterr().out)
        assert list(report["failed"]) == ["b.jpg"]
        assert "cannot be read" in report["failed"]["b.jpg"]
        assert images(world / "catalog") == 2
    (world / "photos" / "b.jpg").write_bytes(whole)
    for already in (2, 3):
        assert tiny.run(*command) == 0
        report = tiny.parsed(capsys.readouterr().out)
        assert (report["already_done"], report["images"], report["failed"]) == (already, 3 - already, {})
    assert tiny.run("status", world / "catalog", "--json") == 0
    assert tiny.parsed(capsys.readouterr().out)["failures"] == {}
    assert verify(world / "catalog").ok


def test_new_pictures_join_a_catalog_and_a_changed_mask_is_told_while_the_catalog_keeps_the_old_one(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)
    command = ("mine", world / "recipe.yaml", "--out", world / "catalog", "--json")
    assert tiny.run(*command) == 0
    tiny.photograph(77, (23, 23)).save(world / "photos" / "z.png")
    tiny.box((23, 23), tiny.BOXES["eye"]).save(world / "masks" / "z_eye.png")
    capsys.readouterr()
    assert tiny.run(*command) == 0
    report = tiny.parsed(capsys.readouterr().out)
    assert (report["images"], report["already_done"]) == (1, 3)
    assert verify(world / "catalog").ok
    before = tiny.tree(world / "catalog")
    tiny.box((37, 29), tiny.BOXES["mouth"]).save(world / "masks" / "a_eye.png")
    tiny.box((23, 23), tiny.BOXES["mouth"]).save(world / "masks" / "z_mouth.png")
    assert tiny.run(*command) == 1
    report = tiny.parsed(capsys.readouterr().out)
    assert "its mask of eye is another than the image was mined with" in report["failed"].pop("a.png")
    assert "its mask of mouth is new since the image was mined" in report["failed"].pop("z.png")
    assert (report["failed"], report["already_done"]) == ({}, 4)
    assert tiny.tree(world / "catalog") == before
