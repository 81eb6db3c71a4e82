"""What a worker does with one piece of work, and what it leaves to the coordinator."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flows.miner
import flows.time_limit
import flows.work
from catalog.deposits import Target, has_deposit, read_deposit
from catalog.writer import CatalogWriter
from flows.datasets.dataset import Dataset, load_dataset
from flows.image_errors import DeviceLostError
from flows.miner import Miner
from flows.mining import provenance
from flows.opening import open_model
from flows.recipe import load_recipe
from flows.work import Desk, Job, Work, desk_of, do_batch, keep, stop_marker
from pipeline.errors import NotFoundError
from pipeline.models.contract import Denoiser
from tests.flows import tiny


@pytest.fixture(scope="module")
def denoiser(tiny_model: Path) -> Denoiser:
    return open_model(str(tiny_model))


@pytest.fixture(autouse=True)
def mined(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Grows by one with every image that is mined, quickly; no desk is kept before or after a test."""
    calls: list[int] = []

    def counting(*asked: Any) -> Any:
        calls.append(1)
        return tiny.quick_mine_image(*asked)

    monkeypatch.setattr(flows.miner, "mine_image", counting)
    monkeypatch.setattr(flows.work, "_desk", None)
    yield calls


@pytest.fixture
def data(world: Path, denoiser: Denoiser) -> Dataset:
    return load_dataset(load_recipe(world / "recipe.yaml"), denoiser.info.image_shape)


@pytest.fixture
def job(world: Path, denoiser: Denoiser, data: Dataset) -> Job:
    """That of an empty catalog beside three photographs."""
    recipe = load_recipe(world / "recipe.yaml")
    with CatalogWriter.create(world / "catalog", provenance(recipe, denoiser, data)) as writer:
        return Job(recipe, str(world / "catalog"), Target.of(writer.manifest))


@pytest.fixture
def desk(job: Job, denoiser: Denoiser, data: Dataset) -> Desk:
    return Desk(job, Miner(job.recipe, denoiser, Path(job.store)), data)


@pytest.fixture
def work(data: Dataset) -> Work:
    return Work(tuple((item.source, item.image_id) for item in data))


def test_a_work_is_named_by_what_is_mined_whoever_does_it(work: Work) -> None:
    assert Work(work.items).work_id == work.work_id
    assert len({work.work_id, Work(work.items[:2]).work_id, Work(work.items[::-1]).work_id}) == 3


def test_work_travels_as_ids_and_a_job_as_a_few_kilobytes(job: Job, work: Work) -> None:
    assert len(pickle.dumps(work)) < 100 * len(work.items) + 200
    assert len(pickle.dumps(job)) < 8_000
    assert pickle.loads(pickle.dumps((job, work))) == (job, work)  # noqa: S301  its own bytes


def test_what_is_mined_is_left_whole_in_the_store_with_what_it_took(desk: Desk, work: Work, mined: list[int]) -> None:
    desk.do(work)
    deposit = read_deposit(desk.store, desk.job.job_id, work.work_id)
    assert set(deposit.images) == {image_id for _, image_id in work.items}
    note = deposit.note
    assert (len(mined), note["images"], note["directions"]) == (3, 3, len(deposit.directions))
    assert note["seconds"] > 0
    assert json.loads(json.dumps(note)) == note


def test_work_that_has_a_deposit_is_not_done_again(desk: Desk, work: Work, mined: list[int]) -> None:
    desk.do(work)
    desk.do(work)
    assert len(mined) == 3


def test_once_a_run_was_asked_to_stop_its_workers_begin_nothing(desk: Desk, work: Work, mined: list[int]) -> None:
    desk.store.replace(stop_marker(desk.job.job_id), b"")
    desk.do(work)
    assert mined == []
    with pytest.raises(NotFoundError):
        read_deposit(desk.store, desk.job.job_id, work.work_id)


def test_a_worker_asked_to_stop_leaves_the_images_it_has_mined(
    desk: Desk, work: Work, mined: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = flows.miner.mine_image

    def stopped_meanwhile(*asked: Any) -> Any:
        desk.store.replace(stop_marker(desk.job.job_id), b"")
        return real(*asked)

    monkeypatch.setattr(flows.miner, "mine_image", stopped_meanwhile)
    desk.do(work)
    assert len(mined) == 1
    deposit = read_deposit(desk.store, desk.job.job_id, work.work_id)
    assert list(deposit.images) == [work.items[0][1]]


def test_an_image_that_changed_since_it_was_listed_is_no_part_of_what_is_mined(
    desk: Desk, work: Work, world: Path, mined: list[int]
) -> None:
    tiny.photograph(99, (37, 29)).save(world / "photos" / "a.png")
    desk.do(work)
    deposit = read_deposit(desk.store, desk.job.job_id, work.work_id)
    assert len(mined) == len(deposit.images) == 2
    (failed,) = deposit.failed.values()
    assert (failed.source, "its pixels changed" in failed.reason) == ("a.png", True)


def test_a_file_that_could_not_be_read_and_was_repaired_meanwhile_is_mined(
    desk: Desk, world: Path, mined: list[int]
) -> None:
    path = world / "photos" / "b.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    work = Work(tuple((item.source, item.image_id) for item in desk.data))
    path.write_bytes(whole)
    desk.do(work)
    assert len(read_deposit(desk.store, desk.job.job_id, work.work_id).images) == 3


def test_a_process_opens_a_model_once_for_a_job_and_again_for_another(
    job: Job, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    real = flows.work.open_model

    def opening(*asked: Any) -> Denoiser:
        opened.append(asked)
        return real(*asked)

    monkeypatch.setattr(flows.work, "open_model", opening)
    assert do_batch(job, [work, Work(work.items[:1])]) < 60  # seconds for each, and not a count
    assert has_deposit(desk_of(job).store, job.job_id, work.work_id)
    assert desk_of(job) is desk_of(pickle.loads(pickle.dumps(job)))  # noqa: S301  its own bytes
    assert len(opened) == 1
    desk_of(replace(job, image_timeout=5.0))
    assert len(opened) == 2


def test_a_desk_that_is_open_already_lends_its_model_and_not_its_data_which_another_thread_reads(
    desk: Desk, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.work, "open_model", None)
    keep(desk)
    do_batch(desk.job, [work])
    assert has_deposit(desk.store, desk.job.job_id, work.work_id)
    kept = desk_of(desk.job)
    assert kept.miner is desk.miner
    assert kept.data.source is not desk.data.source


def test_work_that_is_given_up_leaves_its_images_as_failed_with_the_reason(
    desk: Desk, work: Work, mined: list[int]
) -> None:
    desk.give_up(Work(work.items[1:2]), "the process died")
    deposit = read_deposit(desk.store, desk.job.job_id, Work(work.items[1:2]).work_id)
    assert (mined, dict(deposit.images), deposit.note["failed"]) == ([], {}, {"b.jpg": "the process died"})
    assert [one.reason for one in deposit.failed.values()] == ["the process died"]


def test_a_worker_that_stays_mines_images_that_were_added_for_the_next_run_with_the_model_it_has(
    job: Job, work: Work, world: Path, mined: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    do_batch(replace(job, run="first"), [work])
    monkeypatch.setattr(flows.work, "open_model", None)
    tiny.photograph(9, (20, 20)).save(world / "photos" / "new.png")
    tiny.box((20, 20), tiny.BOXES["mouth"]).save(world / "masks" / "new_mouth.png")
    recipe = load_recipe(world / "recipe.yaml")
    (new,) = (item for item in load_dataset(recipe, (3, 16, 16)) if item.source == "new.png")
    later = Work((("new.png", new.image_id),))
    do_batch(replace(job, recipe=recipe, run="second"), [later])
    deposit = read_deposit(desk_of(replace(job, run="second")).store, job.job_id, later.work_id)
    assert (list(deposit.images), dict(deposit.failed), len(mined)) == ([new.image_id], {}, 4)


class EndedError(BaseException):
    """In place of the end of this process."""


def test_a_worker_whose_gpu_is_gone_ends_and_a_coordinator_raises(
    desk: Desk, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> None:
        raise DeviceLostError("device", "cuda:0", "a GPU")

    def end(code: int) -> None:
        raise EndedError(code)

    monkeypatch.setattr(Miner, "mine", lost)
    monkeypatch.setattr("os._exit", end)
    keep(desk)
    with pytest.raises(DeviceLostError):
        do_batch(desk.job, [work])
    monkeypatch.setattr(flows.work, "_desk", None)
    with pytest.raises(EndedError):
        do_batch(desk.job, [work])


def test_a_worker_whose_image_goes_on_for_long_after_a_stop_leaves_what_it_has_finished(
    desk: Desk, work: Work, mined: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.time_limit, "GRACE", 0.2)
    monkeypatch.setattr(flows.time_limit, "POLL", 0.05)
    real = flows.miner.mine_image

    def endless(*asked: Any) -> Any:
        found = real(*asked)
        if len(mined) == 2:
            desk.store.replace(stop_marker(desk.job.job_id), b"")
            while True:
                pass
        return found

    monkeypatch.setattr(flows.miner, "mine_image", endless)
    desk.do(work)
    deposit = read_deposit(desk.store, desk.job.job_id, work.work_id)
    assert (list(deposit.images), dict(deposit.failed)) == ([work.items[0][1]], {})
    assert deposit.note["images"] == 1


def test_reading_an_image_counts_against_its_time_and_leaves_the_others_right(
    job: Job, work: Work, mined: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desk_of(replace(job, image_timeout=0.3))
    real, resets = desk.data.source.read, []

    def endless(key: str, parts: Any) -> Any:
        while key == "b.jpg":
            pass
        return real(key, parts)

    monkeypatch.setattr(desk.data.source, "read", endless)
    monkeypatch.setattr(desk.data.source, "reset", lambda: resets.append(1))
    desk.do(work)
    deposit = read_deposit(desk.store, desk.job.job_id, work.work_id)
    assert (len(deposit.images), len(mined), resets) == (2, 2, [1])
    assert [one.reason for one in deposit.failed.values()] == ["TookTooLongError: longer than the 0.3 s it may take"]
