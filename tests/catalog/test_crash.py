"""A process killed at every step of a commit, a publication or a pull leaves a whole version; a rerun finishes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from catalog.compaction import compact
from catalog.deposits import Deposit, Target, clean, discard, whole_deposits, write_deposit
from catalog.merging import merge
from catalog.pictures import encode_png
from catalog.reader import Catalog
from catalog.records import Chunk
from catalog.store import LocalStore, UrlStore
from catalog.verify import verify
from catalog.writer import CatalogWriter
from tests.catalog import faulty  # noqa: F401  its filesystem is registered
from tests.catalog.local_hub import publish, pull, versions
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
        assert verify(folder / "c").problems == ()  # a commit that was cut off is no damage
        with CatalogWriter.open(folder / "c") as writer:
            assert ("next" in writer.done_chunks) >= (images == 2)  # a claimed version is finished by the next writer
            writer.commit(chunk_of("next", 1, ("mouth",)))
        assert verify(folder / "c").problems == ()
    assert seen == {1, 2}


def test_a_killed_worker_leaves_a_whole_deposit_or_waste(start: Path, tmp_path: Path) -> None:
    seen = set()
    for folder in killed_everywhere("deposit", start, tmp_path):
        store = LocalStore(folder / "c")
        assert verify(folder / "c").problems == ()
        left = list(whole_deposits(store, "job"))
        seen.add(len(left))
        deposit = left[0] if left else written(store, chunk_of("next", 1, ("mouth",)))
        with CatalogWriter.open(folder / "c") as writer:
            assert writer.adopt([deposit], store).dropped == {}
        clean(store)
        assert not (folder / "c" / ".incoming").exists()
    assert verify(folder / "c").rows["images"] == 2
    assert seen == {0, 1}


def written(store: LocalStore, chunk: Chunk) -> Deposit:
    with Catalog.open(store.folder) as catalog:
        return write_deposit(store, "job", chunk.chunk_id, chunk, Target.of(catalog.manifest))


def test_a_killed_adoption_leaves_the_former_or_the_new_version_and_loses_no_deposit(
    start: Path, tmp_path: Path
) -> None:
    for name in ("second", "third"):
        written(LocalStore(start / "c"), chunk_of(name, 1, ("mouth",)))
    with Catalog.open(start / "c") as catalog:
        before = catalog.manifest.version
    seen = set()
    for folder in killed_everywhere("adopt", start, tmp_path, stride=2):
        store = LocalStore(folder / "c")
        with Catalog.open(folder / "c") as catalog:
            rows = catalog.images().num_rows
            catalog.effects([key.decode() for key in catalog.ids()])
            assert catalog.manifest.version == before + (rows == 3)
        with CatalogWriter.open(folder / "c") as writer:
            left = list(whole_deposits(store, "job"))
            assert len(writer.done_images) == 3 or len(left) == 2
            seen.add((rows, len(left)))
            writer.adopt(left, store)
            assert writer.manifest.version == before + 1
        report = verify(folder / "c")
        assert report.problems == ()
        assert report.rows["images"] == 3
        clean(store)
        assert sorted(path.name for path in (folder / "c").glob(".*")) == [".lock", ".versions"]
    assert {(1, 2), (3, 2), (3, 1), (3, 0)} <= seen


@pytest.fixture
def distant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a catalog of a chunk and a picture in a distant store, and two deposits."""
    folder = tmp_path / "start"
    monkeypatch.setenv("RHUMB_CACHE", str(tmp_path / "cache"))
    with CatalogWriter.create(f"faulty://{folder}/store", provenance()) as writer:
        writer.commit(chunk_of("first", 1, ("mouth",)))
        writer.add_picture("sheet", encode_png(np.full((2, 2, 3), 9, np.uint8)))
        for name in ("second", "third"):
            write_deposit(writer.store, "job", name, chunk_of(name, 1, ("mouth",)), Target.of(writer.manifest))
    return folder


def only_whats_listed(url: str) -> bool:
    own = (".versions/", ".receipts/", ".lease/", ".probe")
    names = {name for name in UrlStore(url).list() if not name.startswith(own)}
    return names == {"manifest.json", *Catalog.open(url).manifest.files}


def test_a_killed_adoption_in_a_distant_store_leaves_one_of_the_versions(
    distant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for number, folder in enumerate(killed_everywhere("distant_adopt", distant, tmp_path, stride=3)):
        url = f"faulty://{folder}/store"
        monkeypatch.setenv("RHUMB_CACHE", str(folder / ("cache" if number % 2 else "of another machine")))
        with Catalog.open(url) as catalog:
            images = catalog.images().num_rows
            catalog.effects([key.decode() for key in catalog.ids()])
        assert verify(url).problems == ()
        with CatalogWriter.open(url) as writer:
            left = list(whole_deposits(writer.store, "job"))
            assert len(writer.done_images) == images
            seen.add((images, len(left)))
            writer.adopt(left)
            clean(writer.store)
        report = verify(url)
        assert report.problems == ()
        assert report.rows["images"] == 3
        assert only_whats_listed(url)
    assert {(1, 2), (3, 2), (3, 0)} <= seen


def test_a_killed_creation_or_replacement_in_a_distant_store_can_be_repeated(
    distant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = set()
    for folder in killed_everywhere("distant_replace", distant, tmp_path, stride=2):
        monkeypatch.setenv("RHUMB_CACHE", str(folder / "cache"))
        url = f"faulty://{folder}/store"
        with Catalog.open(url) as catalog:
            pictures.add(catalog.picture("sheet"))
        CatalogWriter.open(url).close()
        discard(UrlStore(url), *whole_deposits(UrlStore(url), "job"))
        assert only_whats_listed(url)
    assert len(pictures) == 2
    shutil.rmtree(tmp_path / "work")
    (tmp_path / "empty").mkdir()
    for folder in killed_everywhere("distant_create", tmp_path / "empty", tmp_path, stride=2):
        monkeypatch.setenv("RHUMB_CACHE", str(folder / "cache"))
        url = f"faulty://{folder}/store"
        CatalogWriter.create(url, provenance()).close()
        assert verify(url).problems == ()
        assert only_whats_listed(url)


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
        assert verify(folder / "c").problems == ()
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
        there = versions("org/pack", folder / "hub")
        assert there[0] == "1.0.0"
        if len(there) == 1:
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
