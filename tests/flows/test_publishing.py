"""Publishing: gates keep directions out of packs, and a version that is worse than the one before is stopped."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flows.miner
from catalog.compaction import compact
from catalog.manifest import load
from catalog.reader import Catalog
from catalog.verify import verify
from catalog.writer import CatalogWriter
from flows.gates import Gates, adopt_gates
from flows.publishing import last_published, publish_catalog
from pipeline.mining import MinedImage, MiningSettings
from pipeline.models.contract import Denoiser
from pipeline.operators import Products
from tests.catalog.local_hub import snapshot, versions
from tests.flows import tiny

COUNT = 8  # as many as are needed to compare medians
Capture = pytest.CaptureFixture[str]


def mine_image(denoiser: Denoiser, x_t: torch.Tensor, masks: Any, settings: MiningSettings, start: Any) -> MinedImage:
    """Quick mining whose residual is what the recipe tolerates, and whose local directions leak as x_t decides."""
    found = []
    for d in tiny.quick_mine_image(denoiser, x_t, masks, settings).directions:
        leakage = float(x_t.abs().mean())
        found.append(replace(d, residual=settings.tolerance, leakage=leakage))
        proven = dict.fromkeys(
            ("sigma", "residual", "converged", "checked", "gap", "angle", "cluster_first", "cluster_last")
        )
        found.append(replace(d, kind="local", parents=(0,), kept_share=0.5, leakage=leakage / 2, **proven))
    return MinedImage(tuple(found), Products(2, 1), {})


def mined_with(folder: Path, model: Path, **method: object) -> Path:
    """A catalog of COUNT photographs in `folder`, mined with a method that is changed so."""
    folder.mkdir()
    (folder / "photos").mkdir()
    (folder / "masks").mkdir()
    for seed in range(COUNT):
        tiny.photograph(seed, (16, 16)).save(folder / "photos" / f"{seed}.png")
        for region, corners in tiny.BOXES.items():
            tiny.box((16, 16), corners).save(folder / "masks" / f"{seed}_{region}.png")
    recipe = tiny.recipe(folder, model, method=method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows.miner, "mine_image", mine_image)
        assert tiny.run("mine", recipe, "--out", folder / "catalog", "--workers", 1, "--json") == 0
    return folder / "catalog"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, small_chunks: None) -> Path:
    return mined_with(tmp_path_factory.mktemp("good") / "w", tiny_model, inversion_steps=12, tolerance=0.05)


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, small_chunks: None) -> Path:
    return mined_with(tmp_path_factory.mktemp("worse") / "w", tiny_model, inversion_steps=2, tolerance=0.9)


def halving(folder: Path) -> Gates:
    """A gate that half of the local directions fail."""
    with Catalog.open(folder) as catalog:
        ratios = catalog.directions(kind="local").to_pandas().eval("leakage / gain").to_numpy()
        return Gates(leakage=float(np.median(ratios)))


def publish(capsys: Capture, catalog: Path, repository: Path, version: str, *options: str) -> tuple[int, str]:
    capsys.readouterr()
    code = tiny.run("publish", catalog, repository, "--version", version, *options)
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_catalog_that_was_mined_worse_is_published_only_with_override_and_the_card_says_so(
    good: Path, worse: Path, tmp_path: Path, capsys: Capture
) -> None:
    repository = tmp_path / "hub" / "org" / "pack"
    assert publish(capsys, good, repository, "1.0.0")[0] == 0
    code, said = publish(capsys, worse, repository, "1.1.0")
    assert code == 2
    assert "PSNR: median" in said and "residual of eye x singular: median" in said and "--override" in said
    assert versions(repository) == ["1.0.0"]
    code, said = publish(capsys, worse, repository, "1.1.0", "--override")
    assert code == 0
    assert "published although worse: round-trip PSNR" in said
    card = (snapshot(repository, "1.1.0") / "README.md").read_text()
    assert "although worse than 1.0.0: round-trip PSNR" in card
    assert publish(capsys, good, repository, "1.2.0")[0] == 0  # better again
    record = last_published(good)
    assert record is not None and (record.version, record.place) == ("1.2.0", str(repository))
    assert publish(capsys, good, repository, "1.0.1")[0] == 0  # judged against 1.0.0, not against what came after


def test_rejected_directions_are_kept_out_of_the_pack_counted_and_explained(
    good: Path, tmp_path: Path, capsys: Capture
) -> None:
    gates = halving(good)
    with Catalog.open(good) as catalog:
        before = catalog.ids()
    try:
        with CatalogWriter.open(good) as writer:
            adopt_gates(writer, gates)
        repository = tmp_path / "hub" / "org" / "gated"
        code, said = publish(capsys, good, repository, "1.0.0")
        assert code == 0
        assert "left out: " in said and "leakage / gain above" in said
        pack = snapshot(repository, "1.0.0")
        assert verify(pack).ok
        with Catalog.open(pack) as opened:
            assert 0 < len(opened.ids()) < len(before)
            rows = opened.directions().to_pylist()
            needed = {parent for row in rows for parent in row["parents"]}
            outside = [row for row in rows if row["leakage"] / row["gain"] > gates.leakage]
            assert all(row["direction_id"] in needed for row in outside)
            assert set(opened.manifest.indexes) and all(
                entry.covers(opened.manifest.shards("directions")) for entry in opened.manifest.indexes.values()
            )
        assert "left out: " in (pack / "README.md").read_text()
        with Catalog.open(good) as catalog:
            assert np.array_equal(catalog.ids(), before)
        assert not list((good / ".run").glob("selection-*"))
    finally:
        with CatalogWriter.open(good) as writer:
            adopt_gates(writer, Gates())


def test_a_catalog_that_is_compacted_while_it_is_published_is_published_all_the_same(
    good: Path, tmp_path: Path
) -> None:
    catalog, repository = tmp_path / "catalog", tmp_path / "hub" / "org" / "pack"
    shutil.copytree(good, catalog)
    shards = len(load(catalog).shards("directions"))
    whats: list[str] = []

    def told(what: str, done: int, of: int) -> None:
        if not whats:
            compact(catalog)
        whats.append(what)

    release = publish_catalog(catalog, str(repository), "1.0.0", progress=told)
    assert len(load(catalog).shards("directions")) < shards
    assert whats.count(whats[0]) > 1  # begun anew
    assert release.published.version == "1.0.0"
    assert verify(snapshot(repository, "1.0.0")).problems == ()


def test_gates_that_leave_nothing_publish_nothing(good: Path, tmp_path: Path, capsys: Capture) -> None:
    try:
        with CatalogWriter.open(good) as writer:
            adopt_gates(writer, Gates(psnr=500))
        code, said = publish(capsys, good, tmp_path / "hub" / "org" / "none", "1.0.0")
        assert (code, versions(tmp_path / "hub" / "org" / "none")) == (2, [])
        assert "no directions" in said
    finally:
        with CatalogWriter.open(good) as writer:
            adopt_gates(writer, Gates())


def test_what_a_killed_publication_left_is_removed_by_the_next(good: Path, tmp_path: Path, capsys: Capture) -> None:
    left = good / ".run" / "publication-0123456789abcdef" / "selection"
    left.mkdir(parents=True)
    try:
        with CatalogWriter.open(good) as writer:
            adopt_gates(writer, halving(good))
        assert publish(capsys, good, tmp_path / "hub" / "org" / "again", "1.0.0")[0] == 0
        assert not left.exists()
    finally:
        with CatalogWriter.open(good) as writer:
            adopt_gates(writer, Gates())
