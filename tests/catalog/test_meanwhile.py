"""A catalog that is checked and published while a writer is at work in it: a commit under way is no damage."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from catalog.compaction import compact
from catalog.fs import STAGING
from catalog.index import build_indexes
from catalog.meanwhile import replaced
from catalog.reader import Catalog
from catalog.store import LocalStore
from catalog.transaction import Transaction
from catalog.verify import Problem, VerifyReport, verify
from catalog.writer import CatalogWriter
from tests.catalog import faulty  # noqa: F401  its filesystem is registered
from tests.catalog.samples import chunk_of, provenance


def written(place: str | Path) -> None:
    """Chunks, indexes over them, and all shards in one, which does away with the former ones and their codes."""
    for number in range(4):
        with CatalogWriter.open(place) as writer:
            writer.commit(chunk_of(f"chunk-{number}", 1, ("mouth", "hair")))
    build_indexes(place)
    compact(place)
    build_indexes(place)


@pytest.mark.parametrize("scheme", ["", "faulty://"])
def test_what_a_writer_does_meanwhile_is_no_damage(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHUMB_CACHE", str(tmp_path / "cache"))
    place = f"{scheme}{tmp_path}/c"
    CatalogWriter.create(place, provenance()).close()
    reports: list[VerifyReport] = []
    with ThreadPoolExecutor(1) as pool:
        writing: Future[None] = pool.submit(written, place)
        while not writing.done():
            reports.append(verify(place))
        writing.result()
    assert [problem for report in reports for problem in report.problems] == []
    assert len({report.version for report in [*reports, verify(place)]}) > 1


def test_a_foreign_file_is_found_beside_those_of_a_commit_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, claim, seen = tmp_path / "c", Transaction._claim, []

    def looked(self: Transaction, version: int, manifest: Path) -> None:
        assert list((folder / "images").iterdir())  # which no manifest lists yet
        seen.append(verify(folder).problems)
        (folder / "foreign.txt").write_text("x")
        seen.append(verify(folder).problems)
        claim(self, version, manifest)

    with CatalogWriter.create(folder, provenance()) as writer:
        monkeypatch.setattr(Transaction, "_claim", looked)
        writer.commit(chunk_of("one", 1, ("mouth",)))
    assert seen == [(), (Problem("foreign.txt", "not listed in the manifest"),)]


def test_a_version_is_replaced_once_files_of_it_are_gone(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with CatalogWriter.create(folder, provenance()) as writer:
        writer.commit(chunk_of("one", 1, ("mouth",)))
    with Catalog.open(folder) as catalog:
        with CatalogWriter.open(folder) as writer:
            writer.commit(chunk_of("two", 1, ("mouth",)))
        assert not replaced(folder, catalog.manifest)
        compact(folder)
        assert replaced(folder, catalog.manifest)
        LocalStore(folder).delete(["manifest.json"])
        assert not replaced(folder, catalog.manifest)
    assert not (folder / STAGING).exists()
