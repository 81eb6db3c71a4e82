"""Catalogs of every released format version are read, added to and pulled; `golden/` keeps one of each."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from catalog import manifest as manifests
from catalog.compaction import compact
from catalog.concept_files import stored_table
from catalog.concepts import read_concepts
from catalog.index import build_indexes
from catalog.lookup import similar
from catalog.merging import merge
from catalog.reader import Catalog
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError
from tests.catalog.local_hub import publish, pull
from tests.catalog.make_golden import FAILED, RECORDS
from tests.catalog.samples import chunk_of

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.iterdir())


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / "c"))


def same_rows(folder: Path) -> None:
    with Catalog.open(folder) as catalog:
        for record in RECORDS:
            read = catalog.direction(record.direction_id)
            assert float(read.vector.ravel() @ record.vector.ravel()) > 0.9994
            assert (read.region, read.kind, read.rank, read.sigma) == (
                record.region,
                record.kind,
                record.rank,
                record.sigma,
            )
            assert np.array_equal(read.preview, record.preview)


def test_every_released_version_has_a_golden_catalog() -> None:
    assert [f"v{number}" for number in manifests.READABLE] == VERSIONS


def test_its_rows_are_read_as_they_were_written(old: Path) -> None:
    same_rows(old)
    assert verify(old).problems == ()
    with Catalog.open(old) as catalog:
        assert len(catalog.ids()) == len(RECORDS)
        assert [entry.source for entry in catalog.manifest.failures.values()] == [FAILED.images[0].source]
        assert catalog.picture("sheet").startswith(b"\x89PNG")


def test_it_is_added_to_and_indexed_in_the_present_format(old: Path) -> None:
    with CatalogWriter.open(old) as writer:
        writer.commit(chunk_of("later", 1))
    assert manifests.load(old).retired == ()
    build_indexes(old)
    compact(old)
    same_rows(old)
    assert verify(old).problems == ()
    with Catalog.open(old) as catalog:
        assert similar(catalog, RECORDS[0].direction_id, 3)


def test_its_concepts_are_read_and_written_in_the_present_form(old: Path) -> None:
    with Catalog.open(old) as catalog:
        former = stored_table(catalog)
        if former is None:  # version 1 had none
            return
        known = read_concepts(former, catalog)
        assert known and catalog.manifest.concepts is not None and catalog.manifest.concepts.effect is None
    with CatalogWriter.open(old) as writer:
        writer.replace_concepts(former)
    assert verify(old).problems == ()
    with Catalog.open(old) as catalog:
        now = stored_table(catalog)
        assert catalog.manifest.concepts is not None and catalog.manifest.concepts.effect is not None
        for was, is_ in zip(known, read_concepts(now, catalog), strict=True):
            assert (is_.concept_id, is_.members, is_.signs) == (was.concept_id, was.members, was.signs)
            for one, two in ((was.vector, is_.vector), (was.effect, is_.effect)):  # a float16 norm is off a little
                assert float((one * two).sum()) >= 0.9995 * float(np.linalg.norm(one))


def test_it_is_published_and_pulled(old: Path, tmp_path: Path) -> None:
    publish(old, "org/pack", "1.0.0", tmp_path / "hub")
    pull("org/pack", "1.0.0", tmp_path / "out", tmp_path / "hub").close()
    same_rows(tmp_path / "out")
    assert verify(tmp_path / "out").problems == ()


def test_it_is_merged(old: Path, tmp_path: Path) -> None:
    shutil.copytree(old, tmp_path / "twin")
    done = merge([old, tmp_path / "twin"], tmp_path / "out")
    assert done.rows["directions"] == done.shared["directions"] == len(RECORDS)
    same_rows(tmp_path / "out")
    assert verify(tmp_path / "out").problems == ()


def test_a_changed_byte_of_an_old_manifest_is_refused(old: Path) -> None:
    data = bytearray((old / "manifest.json").read_bytes())
    for place in range(0, len(data), 97):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(CatalogError):
            manifests.parse(bytes(changed))
