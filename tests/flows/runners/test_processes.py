"""Worker processes: how many there is room for, and whose error it is when one fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

import flows.runners.capacity
import flows.runners.processes
from catalog.verify import verify
from flows.datasets.dataset import load_dataset
from flows.mining import mine
from flows.model_choice import ModelChoice
from flows.opening import open_model
from flows.recipe import load_recipe
from flows.runners.capacity import free_bytes, usable_workers, worker_bytes
from flows.runners.processes import in_processes
from flows.work import Job, Work
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


def test_processes_that_keep_dying_are_one_clear_error(world: Path, tiny_model: Path) -> None:
    recipe = load_recipe(world / "recipe.yaml")
    denoiser = open_model(str(tiny_model))
    data = load_dataset(recipe, denoiser.info.image_shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows.runners.processes, "_in_pool", dying)
        with pytest.raises(InputError, match="2 processes, of which 5 died"):
            mine(recipe, world / "catalog", denoiser, data, in_processes(2))


def dying(workers: int, job: Job, works: Iterable[Work], waiting: dict[object, Work]) -> Iterator[None]:
    """In place of a pool: its processes die before anything is handed out."""
    yield
    raise BrokenProcessPool("a process was killed")
