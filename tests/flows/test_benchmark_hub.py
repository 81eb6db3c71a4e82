"""The benchmark of packs on a few random directions: what it moves, counts and compares must be right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from catalog.reader import Catalog
from catalog.verify import verify
from catalog.writer import CatalogWriter
from tests.benchmarks import hub
from tests.benchmarks.harness import Clock, document
from tests.benchmarks.hub_data import MovedImages, grow
from tests.catalog.samples import chunk_of, provenance

SIZE, CHUNKS = 32, 3


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of random directions in two regions."""
    folder = tmp_path_factory.mktemp("mined") / "catalog"
    with CatalogWriter.create(folder, provenance(spaces={"x": (3, SIZE, SIZE), "h": (4, 4, 4)})) as writer:
        for number in range(CHUNKS):
            writer.commit(chunk_of(f"chunk-{number}", 2, size=SIZE))
    return folder


def test_a_catalog_of_moved_images_is_whole_and_its_vectors_are_mined_ones_moved(mined: Path, tmp_path: Path) -> None:
    with Catalog.open(mined) as catalog:
        moved = MovedImages(catalog, 3)
        ids = catalog.ids()[catalog.select(space="x", kind="singular", rank=0)].astype(str).tolist()
        vectors = catalog.vectors(ids, "x").reshape(len(ids), 3, 4, 8, 4, 8)
    assert (moved.steps, moved.most, moved.per_image) == (4, 6 * 16, 15)
    assert list(moved.regions) == ["hair", "mouth", "hair 2"]
    advanced: list[int] = []
    grow(tmp_path / "made", moved, 12, 15, 2, lambda done, text: advanced.append(done))
    report = verify(tmp_path / "made")
    assert report.ok, report.problems
    assert (report.rows["images"], report.rows["regions"], report.rows["directions"]) == (3, 9, 45)
    assert advanced == [30, 15]
    with Catalog.open(tmp_path / "made") as made:
        (one,) = made.directions(space="x", kind="singular", rank=0, region="hair 2",
                                 image_id=str(made.ids("images")[0], "ascii"))["direction_id"].to_pylist()  # fmt: skip
        vector = made.vector(one).reshape(3, 4, 8, 4, 8)
    turns = [(down, across) for down in range(4) for across in range(4)]
    cosines = [abs(float((np.roll(v, turn, (1, 3)) * vector).sum())) for v in vectors for turn in turns]
    assert sorted(cosines)[-1] > 1 - 1e-6 and sorted(cosines)[-2] < 0.5


def test_more_images_than_there_are_places_are_refused(mined: Path, tmp_path: Path) -> None:
    with Catalog.open(mined) as catalog:
        moved = MovedImages(catalog, 2)
    with pytest.raises(AssertionError, match="96 images at most"):
        moved.chunk([96])


def test_only_ranks_that_are_asked_for_are_made_and_they_keep_a_parent(mined: Path) -> None:
    with Catalog.open(mined) as catalog:
        rows = MovedImages(catalog, 2, ranks=1).chunk([0])["directions"]
    assert set(rows.column("rank").to_pylist()) == {0}
    local = rows.filter(np.array([kind == "local" for kind in rows.column("kind").to_pylist()]))
    assert {len(parents) for parents in local.column("parents").to_pylist()} == {1}


def test_the_benchmark_counts_what_the_hub_saw_and_its_json_is_strict(mined: Path, tmp_path: Path) -> None:
    clock = Clock()
    targets, details = hub.measure(mined, replace(hub.QUICK, directions=360), tmp_path / "run", clock)
    content = json.loads(json.dumps(document("hub", True, targets, details, clock), allow_nan=False))
    assert [target["target"] for target in content["targets"]] == ["<= 0.07", "<= 0.2", "<= 0", "<= 0"]
    assert [target["met"] for target in content["targets"]][1:] == [True] * 3
    first = details["first"]
    assert first["directions"] == 360 and first["new_share"] == pytest.approx(1 / hub.SHARE)
    published, pulled, new = first["published"], first["pulled"], first["republished"]
    assert published["new_bytes"] == published["bytes"] < published["sent"] < 1.02 * published["bytes"]
    assert pulled["received"] == pytest.approx(published["bytes"], rel=0.01)
    concepts = first["new_files_bytes"]["concepts"]  # all of them, since each region has more images
    assert new["new_bytes"] == sum(first["new_files_bytes"].values()) < new["sent"] < concepts + 0.12 * new["bytes"]
    assert details["concepts"] and concepts > 0
    assert first["part"]["new_bytes"] == pytest.approx(first["part"]["received"], rel=0.1)
    assert all(work["peak"] >= work["idle"] > 0 and work["requests"] > 0 for work in details["work"])
    hub.tables(details)
