"""Warm starts while mining: whose directions an image starts from, and that the catalog stays what it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flows.miner
from catalog.deposits import Deposit, Target, whole_deposits
from catalog.manifest import load
from catalog.reader import Catalog
from catalog.store import open_store
from catalog.verify import verify
from flows.datasets.dataset import Dataset, load_dataset
from flows.miner import Miner, MiningReport
from flows.neighbours import Neighbours
from flows.opening import open_model
from flows.recipe import load_recipe
from flows.runners.processes import in_processes
from flows.work import Desk, Job, Work
from pipeline.models.contract import Denoiser
from tests.flows import tiny

TOLERANCE = 1e-2
WARM = {"warm_start": True, "tolerance": TOLERANCE}
Starts = list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def denoiser(tiny_model: Path) -> Denoiser:
    return open_model(str(tiny_model))


def data_of(folder: Path, denoiser: Denoiser) -> Dataset:
    return load_dataset(load_recipe(folder / "recipe.yaml"), denoiser.info.image_shape)


def spied(monkeypatch: pytest.MonkeyPatch, *, quick: bool = False, interrupted_at: int = 0) -> Starts:
    """Every start that `mine_image` is given from now on; Ctrl-C at one of the calls, if asked."""
    seen: Starts = []
    real = tiny.quick_mine_image if quick else flows.miner.mine_image

    def spy(*asked: Any) -> Any:
        seen.append(asked[4])
        if len(seen) == interrupted_at:
            raise KeyboardInterrupt
        return real(*asked)

    monkeypatch.setattr(flows.miner, "mine_image", spy)
    return seen


def singular(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows of singular directions with their vectors, by what they are whatever their id."""
    with Catalog.open(folder) as catalog:
        rows = catalog.directions(kind="singular").to_pylist()
        names = ("image_id", "region", "space", "rank")
        return {tuple(row[n] for n in names): row | {"vector": catalog.vector(row["direction_id"])} for row in rows}


def test_images_after_the_first_chunk_start_warm_and_end_within_the_tolerance_of_cold_ones(
    world: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spied(monkeypatch)
    for name, method in (("cold", {"tolerance": TOLERANCE}), ("warm", WARM)):
        assert tiny.run("mine", tiny.recipe(world, tiny_model, method=method), "--out", world / name) == 0
        assert verify(world / name).ok
    assert [set(start) for start in seen] == [set()] * 5 + [{"x", "h"}]
    assert seen[5]["x"].shape[1:] == (3, 16, 16) and seen[5]["h"].shape[1:] == (8, 16, 16)
    cold, warm = singular(world / "cold"), singular(world / "warm")
    assert cold.keys() == warm.keys()
    apart = 0
    for key, one in cold.items():
        two = warm[key]
        assert one["direction_id"] != two["direction_id"]  # where a search starts is part of ids
        assert two["converged"] and two["checked"]
        assert two["sigma"] == pytest.approx(one["sigma"], abs=2 * TOLERANCE * one["spectrum"][0])
        if one["cluster_first"] == one["cluster_last"] and two["cluster_first"] == two["cluster_last"]:
            bound = one["angle"] + two["angle"] + 2e-3  # the rounding of both
            assert abs(float((one["vector"] * two["vector"]).sum())) >= np.cos(min(bound, np.pi / 2)) - 1e-6
            apart += bound < 0.5
    assert apart >= 2


def test_an_image_finds_itself_and_its_own_directions(mined: Path, denoiser: Denoiser) -> None:
    neighbours = Neighbours(mined / "catalog")
    neighbours.refresh()
    stored = singular(mined / "catalog")
    for image in data_of(mined, denoiser).images:
        for space, start in neighbours.start(image).items():
            own = [row["vector"].ravel() for key, row in stored.items() if (key[0], key[2]) == (image.image_id, space)]
            rows = torch.from_numpy(np.stack(own))
            basis = start.flatten(1)
            assert len(start) == len(own) <= 5
            assert float((rows - (rows @ basis.T) @ basis).norm(dim=1).max()) < 1e-3


def test_the_nearest_image_is_asked_and_each_chunk_read_once(
    mined: Path, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = Catalog.chunk
    monkeypatch.setattr(Catalog, "chunk", lambda self, name: (opened.append(name), real(self, name))[1])
    neighbours = Neighbours(mined / "catalog")
    for _ in range(3):
        neighbours.refresh()
    assert sorted(opened) == sorted(load(mined / "catalog").chunks)
    first, *others = data_of(mined, denoiser).images
    like = type(first)(**{**vars(first), "image": np.clip(first.image.astype(int) + 3, 0, 255).astype(np.uint8)})
    expected = neighbours.start(first)
    assert all(torch.equal(neighbours.start(like)[space], expected[space]) for space in ("x", "h"))
    assert not any(torch.equal(neighbours.start(other)["x"], expected["x"]) for other in others)


def test_what_cannot_be_read_leaves_the_search_cold(mined: Path, tmp_path: Path, denoiser: Denoiser) -> None:
    def damage(table: str) -> None:
        path = folder / "catalog" / load(folder / "catalog").chunks[chunk].shards[table][0]
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-20])

    folder = Path(shutil.copytree(mined, tmp_path / "world"))
    image = data_of(folder, denoiser).images[0]
    with Catalog.open(folder / "catalog") as catalog:
        chunk = next(c for c in catalog.manifest.chunks if image.image_id in _ids(catalog.chunk(c)))
    absent, whole = Neighbours(tmp_path / "none"), Neighbours(folder / "catalog")
    absent.refresh()
    assert absent.start(image) == {} == whole.start(image)
    whole.refresh()
    elsewhere = type(image)(**{**vars(image), "masks": {"nose": image.masks["eye"]}})
    assert whole.start(image) and whole.start(elsewhere) == {}
    damage("directions")
    assert whole.start(image) == {}
    damage("images")
    rest = Neighbours(folder / "catalog")
    rest.refresh()
    assert rest.start(image)  # the nearest of the others


def _ids(chunk: Catalog) -> list[str]:
    return [str(key) for key in chunk.images().column("image_id").to_pylist()]


def test_a_run_that_was_stopped_continues_warm(world: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("mine", tiny.recipe(world, tiny_model, method={"warm_start": True}), "--out", world / "catalog")
    with monkeypatch.context() as patch:
        spied(patch, quick=True, interrupted_at=3)
        assert tiny.run(*asked) == 130
    seen = spied(monkeypatch, quick=True)
    assert tiny.run(*asked) == 0
    assert [set(start) for start in seen] == [{"x"}]  # quick mining finds no h-space directions
    assert verify(world / "catalog").ok
    assert len(load(world / "catalog").chunks) == 2


def test_a_worker_starts_from_what_the_parent_has_committed(
    world: Path, tiny_model: Path, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = {"kind": "folder", "path": "photos", "masks": "masks", "limit": 2}
    written = tiny.recipe(world, tiny_model, method={"warm_start": True}, dataset=dataset)
    assert tiny.run("mine", written, "--out", world / "catalog") == 0
    recipe = load_recipe(tiny.recipe(world, tiny_model, method={"warm_start": True}))
    data = data_of(world, denoiser)
    target = Target.of(load(world / "catalog"))
    work = Work(tuple((image.source, image.image_id) for image in data.images[2:]))
    found = {}
    for name, place in (("here", world / "catalog"), ("cold", None)):
        found[name] = deposited(Job(recipe, str(world / name), target), Miner(recipe, denoiser, place), data, work)
    job = Job(recipe, str(world / "catalog"), target)
    desk = Desk(job, Miner(recipe, denoiser), data)
    list(in_processes(1)(desk, [work]))
    (found["there"],) = whole_deposits(open_store(world / "catalog"), job.job_id)
    products = {name: deposit.note["products"] for name, deposit in found.items()}
    assert products["there"] == products["here"] != products["cold"]
    assert found["there"].directions == found["here"].directions == found["cold"].directions


def deposited(job: Job, miner: Miner, data: Dataset, work: Work) -> Deposit:
    Desk(job, miner, data).do(work)
    (deposit,) = whole_deposits(open_store(job.store), job.job_id)
    return deposit


def test_without_the_key_no_catalog_is_read(world: Path, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.miner, "Neighbours", None)
    seen = spied(monkeypatch, quick=True)
    recipe = load_recipe(world / "recipe.yaml")
    Miner(recipe, denoiser, world / "catalog").mine(data_of(world, denoiser).images, MiningReport(world))
    assert seen == [{}, {}, {}]
