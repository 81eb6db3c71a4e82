"""A process killed at every step of a commit, a publication or a pull leaves a whole version; a rerun finishes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from catalog.compaction import compact
from catalog.hub import list_versions, publish, pull
from catalog.merging import merge
from catalog.pictures import encode_png
from catalog.reader import Catalog
from catalog.verify import verify
from catalog.writer import CatalogWriter
from tests.catalog.samples import chunk_of, provenance

ROOT = Path(__file__).parents[2]


def killed_everywhere(job: str, start: Path, tmp_path: Path, stride: int = 1) -> list[Path]:
    """Folders in which `job` was killed before step 0, stride, 2 stride, ...; the last one finished."""
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-m", "tests.catalog.crash_driver", job, str(start), str(work), "0", str(stride)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    endings = json.loads(done.stdout or "[]")
    assert endings[-1:] == [0], done.stderr
    assert len(endings) > 8
    return sorted(work.iterdir(), key=lambda folder: int(folder.name))


@pytest.fixture
def start(tmp_path: Path) -> Path:
    folder = tmp_path / "start"
    folder.mkdir()
    with CatalogWriter.create(folder / "c", provenance()) as writer:
        writer.commit(chunk_of("first", 1, ("mouth",)))
        writer.add_picture("sheet", encode_png(np.full((2, 2, 3), 9, np.uint8)))
    return folder


def test_a_killed_commit_leaves_the_former_or_the_new_version(start: Path, tmp_path: Path) -> None:
    seen = set()
    for folder in killed_everywhere("commit", start, tmp_path):
        with Catalog.open(folder / "c") as catalog:
            images = catalog.images().num_rows
            assert len(catalog.effects(catalog.directions().column("direction_id").to_pylist())) == 5 * images
        seen.add(images)
        with CatalogWriter.open(folder / "c") as writer:
            assert ("next" in writer.done_chunks) >= (images == 2)  # a claimed version is finished by the next writer
            writer.commit(chunk_of("next", 1, ("mouth",)))
        assert verify(folder / "c").problems == ()
    assert seen == {1, 2}


def test_a_killed_compaction_leaves_every_row_where_it_is_found(start: Path, tmp_path: Path) -> None:
    with CatalogWriter.open(start / "c") as writer:
        writer.commit(chunk_of("second", 1, ("mouth",)))
    with Catalog.open(start / "c") as catalog:
        ids = [key.decode() for key in catalog.ids()]
        vectors = catalog.effects(ids)
    shards = set()
    for folder in killed_everywhere("compact_all", start, tmp_path, stride=2):
        with Catalog.open(folder / "c") as catalog:
            assert [key.decode() for key in catalog.ids()] == ids
            assert np.array_equal(catalog.effects(ids), vectors)
            shards.add(len(catalog.manifest.shards("directions")))
        compact(folder / "c")
        assert verify(folder / "c").problems == ()
    assert shards == {1, 2}


def test_a_killed_merge_leaves_a_whole_version_and_a_rerun_finishes_it(start: Path, tmp_path: Path) -> None:
    with CatalogWriter.create(start / "other", provenance(recipe="recipe-2")) as writer:
        writer.commit(chunk_of("other", 1, ("hair",)))
    for folder in killed_everywhere("merge_both", start, tmp_path, stride=3):
        if (folder / "m" / "manifest.json").exists():
            with Catalog.open(folder / "m") as catalog:
                catalog.effects([key.decode() for key in catalog.ids()])
        assert merge([folder / "c", folder / "other"], folder / "m").rows == {
            "directions": 10,
            "images": 2,
            "regions": 2,
        }
        assert verify(folder / "m").problems == ()


def test_a_killed_creation_can_be_repeated(tmp_path: Path) -> None:
    empty = tmp_path / "start"
    empty.mkdir()
    for folder in killed_everywhere("create", empty, tmp_path):
        CatalogWriter.create(folder / "c", provenance()).close()
        assert verify(folder / "c").problems == ()


def test_a_killed_replacement_of_a_picture_leaves_one_of_the_two(start: Path, tmp_path: Path) -> None:
    sizes = set()
    for folder in killed_everywhere("replace_picture", start, tmp_path):
        with Catalog.open(folder / "c") as catalog:
            sizes.add(catalog.picture("sheet"))
        CatalogWriter.open(folder / "c").close()
        assert verify(folder / "c").problems == ()
    assert len(sizes) == 2


def test_a_killed_publication_is_invisible_and_a_rerun_finishes_it(start: Path, tmp_path: Path) -> None:
    publish(start / "c", "org/pack", "1.0.0", start / "hub")
    for folder in killed_everywhere("publish_next", start, tmp_path, stride=4):
        versions = list_versions("org/pack", folder / "hub")
        assert versions[0] == "1.0.0"
        if len(versions) == 1:
            publish(folder / "c", "org/pack", "1.1.0", folder / "hub")
        assert verify(pull("org/pack", "1.1.0", folder / "out", folder / "hub").folder).problems == ()
        assert not list((folder / "hub").rglob(".staging*"))


def test_a_killed_pull_is_no_catalog_and_a_rerun_finishes_it(start: Path, tmp_path: Path) -> None:
    publish(start / "c", "org/pack", "1.0.0", start / "hub")
    for folder in killed_everywhere("pull_first", start, tmp_path, stride=2):
        out = folder / "out"
        assert not (out / "manifest.json").exists() or all(
            (out / name).is_file() for name in Catalog.open(out).manifest.files
        )
        pull("org/pack", "1.0.0", out, folder / "hub").close()
        assert verify(out).problems == ()
