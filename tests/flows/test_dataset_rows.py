"""The same pictures as rows and as samples: one data set in four forms, and catalogs mined from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

import flows.miner
from catalog.reader import Catalog
from catalog.verify import verify
from flows.datasets.dataset import Dataset, load_dataset
from flows.miner import MiningReport
from flows.mining import mine
from flows.opening import open_model
from flows.recipe import Recipe, load_recipe, parse_recipe
from flows.runners.contract import Runner
from flows.work import Desk, Work
from pipeline.models.contract import Denoiser
from tests.flows import tiny
from tests.flows.table_files import PARTS, SIZE, parquet, rows, shard

SHAPE = (3, 16, 16)
COLUMNS = {"image_column": "image", "mask_columns": {part: part for part in PARTS}, "label_column": "map"}


@pytest.fixture(autouse=True)
def quick(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's cache in a folder of its own, and directions that cost nothing."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)


@pytest.fixture
def denoiser(tiny_model: Path) -> Denoiser:
    return open_model(str(tiny_model))


def forms(folder: Path, count: int) -> dict[str, dict[str, Any]]:
    """`dataset` of a recipe for the same `count` pictures in every form."""
    half = count // 2
    parquet(folder / "table" / "faces-0.parquet", rows(count)[:half], row_group_size=2)
    parquet(folder / "table" / "faces-1.parquet", rows(count)[half:])
    shard(folder / "shards" / "000.tar", range(half))
    shard(folder / "shards" / "001.tar", range(half, count))
    table = {"path": str(folder / "table"), "name": "faces", **COLUMNS}
    return {
        "parquet": {"kind": "parquet", **table},
        "map-style": {"kind": "huggingface", **table},
        "streaming": {"kind": "huggingface", "streaming": True, **table},
        "webdataset": {"kind": "webdataset", "path": str(folder / "shards" / "{000..001}.tar"), "name": "faces"},
    }


def loaded(dataset: dict[str, Any], **keys: Any) -> Dataset:
    return load_dataset(parse_recipe({"name": "a", "dataset": {**dataset, **keys}, "regions": list(PARTS)}), SHAPE)


def test_ten_pictures_are_the_same_in_every_form(tmp_path: Path) -> None:
    found = {form: loaded(dataset) for form, dataset in forms(tmp_path, 10).items()}
    reference = found["parquet"].images
    assert len(reference) == 10
    for form, data in found.items():
        assert data.failures == () and data.count() == (None if form == "streaming" else 10)
        assert len({image.source for image in data.images}) == 10
        for image, same in zip(data.images, reference, strict=True):
            assert (image.image_id, image.source_size) == (same.image_id, SIZE)
            assert np.array_equal(image.image, same.image)
            assert set(image.masks) == set(PARTS)
            assert all(np.array_equal(image.masks[part], same.masks[part]) for part in PARTS)


def test_parts_of_the_work_and_limits_are_the_same_in_every_form(tmp_path: Path) -> None:
    for dataset in forms(tmp_path, 6).values():
        whole = [image.image_id for image in loaded(dataset).images]
        limited = loaded(dataset, limit=5)
        assert [image.image_id for image in limited.images] == whole[:5]
        assert [image.image_id for image in limited.shard(1, 2).images] == whole[1:5:2]
        assert [len(chunk) for chunk in limited.chunks(2)] == [2, 2, 1]


def test_label_maps_are_cut_into_regions_by_name(tmp_path: Path) -> None:
    regions = {"left": {"labels": ["left"]}, "right": {"labels": [2]}}
    for form, dataset in forms(tmp_path, 2).items():
        if form == "webdataset":
            continue
        recipe = parse_recipe({"name": "a", "dataset": {**dataset, "labels": {"left": 1}}, "regions": regions})
        for image in load_dataset(recipe, SHAPE).images:
            assert image.masks["left"][:, :8].all() and not image.masks["left"][:, 8:].any()
            assert np.array_equal(image.masks["right"], ~image.masks["left"])


class Stopped(Exception):
    """What ends a run in its midst."""


def stopping_after(count: int) -> Runner:
    def runner(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
        for number, work in enumerate(works):
            if number == count:
                raise Stopped
            desk.do(work)
            yield

    return runner


def recipe_of(folder: Path, model: Path, dataset: dict[str, Any]) -> Recipe:
    return load_recipe(tiny.recipe(folder, model, dataset=dataset))


def run(recipe: Recipe, denoiser: Denoiser, out: Path, **options: Any) -> MiningReport:
    return mine(recipe, out, denoiser, load_dataset(recipe, SHAPE), **options)


@pytest.mark.parametrize("form", ["webdataset", "streaming"])
def test_a_stopped_run_is_finished_by_the_same_command(
    tmp_path: Path, tiny_model: Path, denoiser: Denoiser, form: str
) -> None:
    recipe = recipe_of(tmp_path, tiny_model, forms(tmp_path, 6)[form])
    with pytest.raises(Stopped):
        run(recipe, denoiser, tmp_path / "catalog", runner=stopping_after(1))
    report = run(recipe, denoiser, tmp_path / "catalog")
    assert (report.already_done, report.images, report.failed) == (2, 4, {})
    assert verify(tmp_path / "catalog").ok
    run(recipe, denoiser, tmp_path / "once")
    found = tiny.direction_ids(tmp_path / "catalog")
    assert found == tiny.direction_ids(tmp_path / "once") and len(found) == 6 * len(PARTS)
    with Catalog.open(tmp_path / "catalog") as catalog:
        assert catalog.manifest.provenance.data["images"] == (None if form == "streaming" else 6)
        factors = [row["factors"] for row in catalog.images().to_pylist()]
        assert all(bool(each) == (form == "webdataset") for each in factors)
    again = run(recipe, denoiser, tmp_path / "catalog")
    assert (again.already_done, again.images) == (6, 0)


def test_of_a_cut_shard_the_rest_is_mined_once_it_is_whole(
    tmp_path: Path, tiny_model: Path, denoiser: Denoiser
) -> None:
    recipe = recipe_of(tmp_path, tiny_model, forms(tmp_path, 6)["webdataset"])
    path = tmp_path / "shards" / "000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"0002.png") + 1000])
    report = run(recipe, denoiser, tmp_path / "catalog")
    assert (report.images, list(report.failed)) == (5, ["000.tar/0002"])
    assert "000.tar is cut here" in report.failed["000.tar/0002"]
    path.write_bytes(whole)
    report = run(recipe, denoiser, tmp_path / "catalog")
    assert (report.already_done, report.images, report.failed) == (5, 1, {})
    assert len(tiny.direction_ids(tmp_path / "catalog")) == 6 * len(PARTS)


def test_where_a_data_set_came_from_is_in_the_manifest(tmp_path: Path, tiny_model: Path, denoiser: Denoiser) -> None:
    recipe = recipe_of(tmp_path, tiny_model, forms(tmp_path, 2)["parquet"])
    origin = {"repository": "owner/name", "commit": "0" * 40}
    for told in ({}, origin):
        data = load_dataset(recipe, SHAPE)
        data.source.origin = told
        mine(recipe, tmp_path / f"catalog-{len(told)}", denoiser, data)
        with Catalog.open(tmp_path / f"catalog-{len(told)}") as catalog:
            assert catalog.manifest.provenance.data.get("origin", {}) == told
