"""Worker processes: how many there is room for, and whose error it is when one fails."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch

import flows.runners.capacity
from catalog.reader import Catalog
from catalog.verify import verify
from flows.datasets.dataset import load_dataset
from flows.mining import mine
from flows.model_choice import ModelChoice
from flows.opening import open_model
from flows.recipe import load_recipe
from flows.runners.capacity import free_bytes, usable_workers, worker_bytes
from flows.runners.deaths import WorkerDied, surviving
from flows.runners.processes import in_processes
from flows.work import Desk, Work
from pipeline.errors import InputError, ModelError
from pipeline.models.contract import Denoiser
from tests.benchmarks.fault_driver import Plan
from tests.benchmarks.fault_world import answer_of, ended, leftovers, small_world, start
from tests.benchmarks.faults import METHOD
from tests.pipeline.tiny_models import tiny_denoiser

GIB = 2**30


@pytest.fixture
def denoiser() -> Denoiser:
    return tiny_denoiser()


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))


@pytest.mark.parametrize(("gib", "each", "expected"), [(16, 5, 2), (16, 0.5, 16), (1, 5, 1), (160, 5, 16)])
@pytest.mark.usefixtures("sixteen_cores")
def test_no_more_processes_than_the_free_memory_holds(
    gib: int, each: float, expected: int, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.runners.capacity, "free_bytes", lambda: gib * GIB)
    monkeypatch.setattr(flows.runners.capacity, "worker_bytes", lambda denoiser: round(each * GIB))
    assert usable_workers(None, 100, denoiser) == expected
    assert usable_workers(None, 1, denoiser) == 1
    assert usable_workers(7, 100, denoiser) == 7  # who names a number knows better
    assert usable_workers(7, 3, denoiser) == 3
    with pytest.raises(InputError, match="--workers: found 0"):
        usable_workers(0, 100, denoiser)


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize("count", [1, 4])
def test_every_gpu_is_used_by_one_process(count: int, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert usable_workers(None, 100, denoiser) == count
    assert usable_workers(None, 1, denoiser) == 1


def test_a_larger_picture_or_network_takes_more_memory() -> None:
    sizes = [worker_bytes(tiny_denoiser(size=size)) for size in (16, 64, 128)]
    assert sizes == sorted(sizes)
    per_pixel = (sizes[2] - sizes[1]) / (128**2 - 64**2)
    assert per_pixel == pytest.approx((sizes[1] - sizes[0]) / (64**2 - 16**2), rel=0.01)
    wide = worker_bytes(tiny_denoiser(size=64, block_out_channels=(32, 64)))
    assert wide > sizes[1]


def test_a_worker_with_the_built_in_model_is_estimated_near_what_was_measured() -> None:
    assert 0.7e9 < worker_bytes(open_model("builtin")) < 1.2e9  # 0.8 GB at the demo's peak


def test_the_estimate_leaves_no_hook_behind(denoiser: Denoiser) -> None:
    worker_bytes(denoiser)
    assert not torch.nn.modules.module._global_forward_hooks


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = free_bytes()
    assert 0 < everything <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, none = tmp_path / "memory.max", tmp_path / "unlimited"
    limit.write_text("1048576\n")
    none.write_text("max\n")
    monkeypatch.setattr(flows.runners.capacity, "_LIMITS", (none, tmp_path / "absent", limit))
    assert free_bytes() == 1048576


def test_a_model_that_a_worker_cannot_load_is_the_models_own_error(world: Path, tiny_model: Path) -> None:
    model = Path(shutil.copytree(tiny_model, world / "moved"))
    recipe = load_recipe(world / "recipe.yaml").model_copy(update={"model": ModelChoice(reference=str(model))})
    denoiser = open_model(str(model))
    data = load_dataset(recipe, denoiser.info.image_shape)
    shutil.rmtree(model)
    with pytest.raises(ModelError, match="expected an existing model folder"):
        mine(recipe, world / "catalog", denoiser, data, in_processes(2))


def test_an_image_that_kills_its_process_fails_alone_and_the_run_goes_on(tmp_path: Path) -> None:
    recipe = small_world(tmp_path / "world", 4, **METHOD)
    command = ["mine", str(recipe), "--out", str(tmp_path / "catalog"), "--json", "--workers", "2"]
    process = start(command, Plan(poison="00002.png"), tmp_path)
    assert ended(process, 240) == 1, (tmp_path / "log.err").read_text()
    report = answer_of(tmp_path)
    assert (report["images"], report["failed"]) == (3, {"00002.png": "the process that mined it died, twice"})
    assert verify(tmp_path / "catalog").ok
    assert leftovers(tmp_path / "catalog") == []


class FewWords:
    """In place of a desk: works are only counted."""

    def __init__(self) -> None:
        self.job = None
        self.done: list[str] = []
        self.failed: list[str] = []

    def stopping(self) -> bool:
        return False

    def give_up(self, work: Work, reason: str) -> None:
        self.failed += [key for key, _ in work.items]


ITEMS = [(f"{number}", f"{number:032x}") for number in range(80)]
WORKS = [Work(tuple(ITEMS[start : start + 4])) for start in range(0, 80, 4)]


def mined(desk: FewWords, poison: set[str], works: Iterable[Work]) -> Iterator[bool]:
    """An attempt that mines work after work, and dies of certain images."""
    for work in works:
        yield False
        if any(key in poison for key, _ in work.items):
            raise WorkerDied([work])
        desk.done += [key for key, _ in work.items]
        yield True


def ran(desk: FewWords, poison: set[str]) -> None:
    attempt = partial(mined, desk, poison)
    for _ in surviving(cast(Desk, desk), WORKS, 2, attempt, attempt):
        pass


def test_any_number_of_images_that_end_their_process_fail_alone_as_long_as_others_are_mined_between() -> None:
    desk = FewWords()
    poison = {str(number) for number in range(0, 80, 8)}
    ran(desk, poison)
    assert set(desk.failed) == poison
    assert sorted(desk.done, key=int) == [str(number) for number in range(80) if number % 8]


def test_processes_that_die_and_do_nothing_between_are_one_clear_error() -> None:
    desk = FewWords()
    with pytest.raises(InputError, match="2 processes, of which 5 died in a row"):
        ran(desk, {str(number) for number in range(80)})
    assert len(desk.failed) == 4 * 5
    assert desk.done == []


def test_processes_that_die_before_anything_is_handed_out_are_one_clear_error_too() -> None:
    def dying(works: Iterable[Work]) -> Iterator[bool]:
        yield False
        raise WorkerDied([])

    with pytest.raises(InputError, match="2 processes, of which 5 died in a row"):
        list(surviving(cast(Desk, FewWords()), WORKS, 2, dying, dying))


def test_a_signal_to_the_whole_group_loses_nothing_that_was_in_hand(tmp_path: Path) -> None:
    recipe = small_world(tmp_path / "world", 12, **METHOD)
    catalog = tmp_path / "catalog"
    command = ["mine", str(recipe), "--out", str(catalog), "--json", "--runner", "processes", "--workers", "2"]
    process = start(command, Plan(), tmp_path)
    while not list(catalog.glob(".incoming/*/*/receipt.json")) and not list(catalog.glob("directions/*")):
        assert process.poll() is None, (tmp_path / "log.err").read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)  # as systemd and a worker of Prefect do, one after the other
    assert ended(process, 240) == 130, (tmp_path / "log.err").read_text()
    assert "Traceback" not in (tmp_path / "log.err").read_text()
    with Catalog.open(catalog) as opened:
        assert 2 <= opened.images().num_rows < 12
    assert verify(catalog).ok
    assert leftovers(catalog) == []
