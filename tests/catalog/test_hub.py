"""Packs: published once, pulled with every checksum, hostile ones refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from catalog import manifest as manifests
from catalog.fs import footer_sha256
from catalog.index import build_indexes
from catalog.lookup import similar
from catalog.reader import Catalog
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, ConflictError, InputError, NotFoundError
from tests.catalog.local_hub import publish, pull, snapshot, versions
from tests.catalog.samples import chunk_of, provenance, small_catalog


def files(folder: Path) -> dict[str, bytes]:
    listed = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in listed}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    small_catalog(tmp_path / "c", 1)
    build_indexes(tmp_path / "c")
    return tmp_path / "c"


def put(source: Path, hub: Path) -> Path:
    """The snapshot of a catalog published as 1.0.0 of org/pack."""
    publish(source, "org/pack", "1.0.0", hub)
    return snapshot("org/pack", "1.0.0", hub)


def test_a_pulled_pack_is_a_catalog_like_any_other(source: Path, tmp_path: Path) -> None:
    before = files(source)
    made = put(source, tmp_path / "hub")
    assert files(source) == before
    assert versions(f"{tmp_path}/hub/org/pack") == ["1.0.0"]
    with pull("org/pack", "1.0.0", tmp_path / "out", tmp_path / "hub") as catalog:
        assert catalog.manifest.pack is not None
        assert (catalog.manifest.pack.repository, catalog.manifest.pack.version) == ("org/pack", "1.0.0")
        key = chunk_of("chunk-0").directions[0].direction_id
        assert similar(catalog, key, 3)
        assert not (catalog.folder / "README.md").samefile(made / "README.md")
    assert verify(tmp_path / "out").problems == verify(made).problems == ()
    with CatalogWriter.create(tmp_path / "out", provenance()) as writer:
        writer.commit(chunk_of("later"))
    assert verify(made).ok


def test_a_version_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    publish(source, "org/pack", "1.0.0", hub)
    before = files(hub)
    with CatalogWriter.open(source) as writer:
        writer.commit(chunk_of("more"))
    with pytest.raises(ConflictError, match="never change"):
        publish(source, "org/pack", "1.0.0", hub)
    assert files(hub) == before
    build_indexes(source)
    made = publish(source, "org/pack", "1.10.0", hub)
    assert made.new_bytes < made.bytes
    publish(source, "org/pack", "1.9.0", hub)
    assert versions("org/pack", hub) == ["1.0.0", "1.9.0", "1.10.0"]
    with pull("org/pack", "1.0.0", tmp_path / "old", hub) as catalog:
        assert catalog.images().num_rows == 2
    folders = [snapshot("org/pack", v, hub) for v in ("1.0.0", "1.10.0")]
    name = manifests.load(folders[0]).chunks["chunk-0"].shards["images"][0]
    shards = [folder / name for folder in folders]
    assert shards[0].samefile(shards[1])


@pytest.mark.parametrize("version", ["1", "1.0", "v1.0.0", "1.0.0-rc1", "01.0.0", "../1.0.0", "", "1.0.0\n"])
def test_only_semantic_versions_are_published(source: Path, tmp_path: Path, version: str) -> None:
    with pytest.raises(InputError, match="semantic"):
        publish(source, "org/pack", version, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_a_damaged_catalog_is_not_published(source: Path, tmp_path: Path) -> None:
    path = source / manifests.load(source).shards("images")[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CatalogError, match=f"images/{path.name}"):
        publish(source, "org/pack", "1.0.0", tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_a_pull_goes_only_into_an_empty_folder_or_its_own(source: Path, tmp_path: Path) -> None:
    hub, out = tmp_path / "hub", tmp_path / "out"
    publish(source, "org/pack", "1.0.0", hub)
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ConflictError, match="nothing was written"):
        pull("org/pack", "1.0.0", out, hub)
    assert files(out) == {"mine.txt": b"keep"}
    (out / "mine.txt").unlink()
    pull("org/pack", "1.0.0", out, hub).close()
    before = files(out)
    (out / "README.md").unlink()  # a damaged copy is completed again
    pull("org/pack", "1.0.0", out, hub).close()
    assert files(out) == before
    publish(source, "org/pack", "2.0.0", hub)
    with pull("org/pack", "2.0.0", out, hub) as newer:
        assert newer.manifest.pack is not None and newer.manifest.pack.version == "2.0.0"
    with pytest.raises(NotFoundError, match=r"1\.0\.0, 2\.0\.0"):
        pull("org/pack", "3.0.0", out, hub)


def test_a_damaged_pack_is_refused_and_leaves_no_catalog(source: Path, tmp_path: Path) -> None:
    made = put(source, tmp_path / "hub")
    path = made / manifests.load(made).shards("regions")[0]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(CatalogError, match=f"regions/{path.name}"):
        pull("org/pack", "1.0.0", tmp_path / "out", tmp_path / "hub")
    with pytest.raises(NotFoundError):
        Catalog.open(tmp_path / "out")
    with CatalogWriter.open(source) as writer:
        writer.commit(chunk_of("more"))
    build_indexes(source)
    publish(source, "org/pack", "1.1.0", tmp_path / "hub")  # the damaged blob is not used again
    pull("org/pack", "1.1.0", tmp_path / "fresh", tmp_path / "hub").close()
    assert verify(tmp_path / "fresh").ok


def test_a_hostile_pack_writes_nothing_outside(source: Path, tmp_path: Path) -> None:
    made = put(source, tmp_path / "hub")
    secret = tmp_path / "secret"
    secret.write_text("private")
    path = made / "README.md"
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(CatalogError, match="symbolic link"):
        pull("org/pack", "1.0.0", tmp_path / "out", tmp_path / "hub")
    tag = made.parents[1] / "refs" / "tags" / "v1.0.0"
    tag.unlink()
    tag.write_text("../../../../secret")
    with pytest.raises(CatalogError, match="snapshot"):
        pull("org/pack", "1.0.0", tmp_path / "out2", tmp_path / "hub")
    assert not (tmp_path / "out2").exists()


def republished(made: Path, value: dict[str, Any]) -> None:
    """Put another manifest in place of a published one, with a tag that names it: a pack made to deceive."""
    data = manifests.dump(manifests.Manifest.model_validate(value))
    path = made / "manifest.json"
    path.unlink()
    path.write_bytes(data)
    revision = hashlib.sha256(data).hexdigest()[:40]
    made.rename(made.with_name(revision))
    (made.parents[1] / "refs" / "tags" / "v1.0.0").write_text(revision)


def test_a_pack_whose_index_was_forged_with_right_checksums_is_refused(source: Path, tmp_path: Path) -> None:
    made = put(source, tmp_path / "hub")
    value = manifests.load(made).model_dump()
    name = next(iter(value["indexes"]["effect"]["codes"].values()))
    path = made / name
    path.unlink()
    path.write_bytes(b"PAR1 crafted")
    value["files"][name] |= {"sha256": hashlib.sha256(b"PAR1 crafted").hexdigest(), "bytes": 12, "footer": None}
    republished(made, value)
    with pytest.raises(CatalogError, match=name):
        pull("org/pack", "1.0.0", tmp_path / "out", tmp_path / "hub")
    with pytest.raises(NotFoundError):
        Catalog.open(tmp_path / "out")


def test_a_pack_with_right_checksums_and_wrong_rows_is_refused(source: Path, tmp_path: Path) -> None:
    made = put(source, tmp_path / "hub")
    value = manifests.load(made).model_dump()
    name = manifests.load(made).shards("directions")[0]
    path = made / name
    rows = pq.read_table(path, partitioning=None)
    path.unlink()
    pq.write_table(rows.rename_columns(["id", *rows.column_names[1:]]), path)
    value["files"][name].update(
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(), bytes=path.stat().st_size, footer=footer_sha256(path)
    )
    republished(made, value)
    with pytest.raises(CatalogError, match="columns or types differ"):
        pull("org/pack", "1.0.0", tmp_path / "out", tmp_path / "hub")
    with pytest.raises(NotFoundError):
        Catalog.open(tmp_path / "out")


def test_a_pulled_index_that_was_damaged_is_fetched_again(source: Path, tmp_path: Path) -> None:
    publish(source, "org/pack", "1.0.0", tmp_path / "hub")
    pull("org/pack", "1.0.0", tmp_path / "out", tmp_path / "hub").close()
    before = files(tmp_path / "out")
    for path in (tmp_path / "out" / "index").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    pull("org/pack", "1.0.0", tmp_path / "out", tmp_path / "hub").close()
    assert files(tmp_path / "out") == before


def test_a_changed_manifest_is_not_the_published_revision(source: Path, tmp_path: Path) -> None:
    made = put(source, tmp_path / "hub")
    path = made / "manifest.json"
    path.chmod(0o644)
    path.write_bytes(manifests.dump(manifests.load(made).model_copy(update={"version": 99})))
    with pytest.raises(CatalogError, match="revision"):
        pull("org/pack", "1.0.0", tmp_path / "out", tmp_path / "hub")
    assert not (tmp_path / "out").exists()


def test_an_empty_catalog_is_not_published(tmp_path: Path) -> None:
    CatalogWriter.create(tmp_path / "c", provenance()).close()
    with pytest.raises(CatalogError, match="no directions"):
        publish(tmp_path / "c", "org/pack", "1.0.0", tmp_path / "hub")
