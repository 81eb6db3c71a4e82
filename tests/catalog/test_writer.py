"""Round trip, rules of evidence, conflicts, full disks."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog import manifest as manifests
from catalog.codecs import Float16Spec
from catalog.deposits import Target, write_deposit
from catalog.pictures import encode_png
from catalog.reader import Catalog
from catalog.records import Chunk, DirectionRecord
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, ConflictError, InputError, NotFoundError
from tests.catalog.samples import SPACES, alike, chunk_of, failed_chunk, provenance, small_catalog


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def visible(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if not name.startswith((".lock", ".versions"))}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    chunks = small_catalog(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        for chunk in chunks:
            for record in chunk.directions:
                read = catalog.direction(record.direction_id)
                assert alike(read.vector, record.vector)
                assert read.vector.shape == SPACES[record.space]
                assert read.effect.shape == (3, 16, 16)
                assert np.array_equal(read.preview, record.preview)
                assert (read.parents, read.sigma, read.kept_share, read.converged, read.roir) == (
                    record.parents, record.sigma, record.kept_share, record.converged, None)  # fmt: skip
            for image in chunk.images:
                assert np.array_equal(catalog.image(image.image_id), image.image)
                assert np.array_equal(catalog.latent(image.image_id), image.latent)
            for region in chunk.regions:
                assert np.array_equal(catalog.mask(region.image_id, region.region), region.mask)
    assert verify(tmp_path / "c").problems == ()


def test_one_chunk_reads_as_a_catalog_of_its_own_whatever_became_of_the_others(tmp_path: Path) -> None:
    chunk, *others = small_catalog(tmp_path / "c")
    for other in others:
        for path in manifests.load(tmp_path / "c").chunks[other.chunk_id].paths:
            (tmp_path / "c" / path).unlink()
    with Catalog.open(tmp_path / "c") as catalog:
        one = catalog.chunk(chunk.chunk_id)
        assert one.directions().column("direction_id").to_pylist() == sorted(d.direction_id for d in chunk.directions)
        for record in chunk.directions:
            assert alike(one.vector(record.direction_id), record.vector)
        one.close()
        with pytest.raises(NotFoundError, match="chunk: found none-such"):
            catalog.chunk("none-such")
    assert others


def test_metadata_is_filtered_by_column_and_sorted_by_id(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c")
    with Catalog.open(tmp_path / "c") as catalog:
        rows = catalog.directions(region="mouth", kind=["local"])
        ids = rows.column("direction_id").to_pylist()
        assert len(ids) == 8
        assert ids == sorted(ids)
        assert set(rows.column("region").to_pylist()) == {"mouth"}
        assert not any("vector" in name for name in rows.column_names)
        with pytest.raises(InputError, match="colour"):
            catalog.directions(colour="red")


def test_a_unique_prefix_of_six_digits_stands_for_an_id(tmp_path: Path) -> None:
    chunk = small_catalog(tmp_path / "c", 1)[0]
    key = chunk.directions[0].direction_id
    with Catalog.open(tmp_path / "c") as catalog:
        assert catalog.resolve(key[:8]) == key
        with pytest.raises(InputError, match="at least 6"):
            catalog.vector(key[:5])
        with pytest.raises(NotFoundError, match="Nearest"):
            catalog.vector("0" * 32)
        with pytest.raises(NotFoundError, match="hair, mouth"):
            catalog.mask(chunk.images[0].image_id, "nose")


def test_committing_a_done_chunk_again_changes_nothing(tmp_path: Path) -> None:
    chunk = small_catalog(tmp_path / "c", 1)[0]
    before = visible(tmp_path / "c")
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        assert writer.done_chunks == {"chunk-0"}
        writer.commit(chunk)
        other = dataclasses.replace(chunk_of("elsewhere"), chunk_id="chunk-0")
        with pytest.raises(ConflictError, match="chunk-0"):
            writer.commit(other)
    assert visible(tmp_path / "c") == before


def test_a_failed_image_is_recorded_and_forgotten_once_mined(tmp_path: Path) -> None:
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        failed = failed_chunk("first", "late-0")
        writer.commit(failed)
        assert writer.failed_images == {failed.images[0].image_id: "round trip of 12 dB"}
        assert writer.manifest.rows("images") == 0
        writer.commit(chunk_of("late"))
        assert writer.failed_images == {}
    assert verify(tmp_path / "c").ok


def test_an_image_mined_from_a_repaired_file_is_no_failure_though_its_id_is_another(tmp_path: Path) -> None:
    broken = failed_chunk("first", "late-0")
    record = dataclasses.replace(broken.images[0], image_id="f" * 32, source="late-0.png", failure="cannot be read")
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        writer.commit(dataclasses.replace(broken, images=(record,)))
        assert b"repaired_as" not in (tmp_path / "c" / "manifest.json").read_bytes()
        writer.commit(chunk_of("unrelated"))
        assert writer.failed_images == {"f" * 32: "cannot be read"}
        mined = chunk_of("late")
        writer.commit(mined)
        assert writer.failed_images == {}
        entry = writer.manifest.failed_images["f" * 32]
        assert entry.repaired_as == mined.images[0].image_id
        again = dataclasses.replace(record, failure="cannot be read at all")
        writer.commit(Chunk("again", (again,), (), ()))
        assert writer.failed_images == {}
    assert verify(tmp_path / "c").ok


def _changed(**changes: Any) -> Any:
    return lambda d: dataclasses.replace(d, **changes)


SPLIT = {"kind": "individual", "converged": False, "iterations": 1000, "change": 2e-6, "joint_rank": 0,
         "individual_rank": 2, "rank_rule": "given"}  # fmt: skip
BROKEN = {
    "no residual": ("singular", _changed(residual=None)),
    "no sigma": ("singular", _changed(sigma=float("nan"))),
    "no gap": ("singular", _changed(gap=None)),
    "an angle beyond the right one": ("singular", _changed(angle=1.6)),
    "not checked, not unchecked": ("singular", _changed(checked=None)),
    "a cluster without its own triplet": ("singular", _changed(cluster_first=5, cluster_last=6)),
    "no converged": ("singular", _changed(converged=None)),
    "no spectrum": ("singular", _changed(spectrum=np.empty(0))),
    "no parents": ("local", _changed(parents=())),
    "unknown parent": ("local", _changed(parents=("0" * 32,))),
    "no kept share": ("local", _changed(kept_share=None)),
    "half a triplet": ("local", _changed(sigma=2.0)),
    "two ends of one search": ("local", _changed(strength_reached=True, strength_limited=True)),
    "half an end": ("local", _changed(strength_reached=True)),
    "a split without an end": ("local", _changed(**SPLIT | {"converged": None})),
    "a split without rounds": ("local", _changed(**SPLIT | {"iterations": 0})),
    "a split without a last change": ("local", _changed(**SPLIT | {"change": None})),
    "a split without its joint rank": ("local", _changed(**SPLIT | {"joint_rank": None})),
    "a joint direction of rank 0": ("local", _changed(**SPLIT | {"kind": "joint"})),
    "a split without a rank rule": ("local", _changed(**SPLIT | {"rank_rule": None})),
    "infinite gain": ("local", _changed(gain=float("inf"))),
    "NaN strength": ("local", _changed(strength=float("nan"))),
    "norm": ("local", lambda d: dataclasses.replace(d, vector=d.vector * 1.01)),
    "NaN vector": ("local", lambda d: dataclasses.replace(d, vector=d.vector * np.nan)),
    "overflow": ("local", lambda d: dataclasses.replace(d, vector=d.vector + np.float32(1e6))),
    "vector shape": ("local", lambda d: dataclasses.replace(d, vector=d.vector[:1])),
    "effect shape": ("local", lambda d: dataclasses.replace(d, effect=d.effect[:1])),
    "unknown image": ("local", _changed(image_id="0" * 32)),
    "unknown region": ("local", _changed(region="ear")),
    "other model": ("local", _changed(model="another")),
    "id": ("local", _changed(direction_id="../../etc/passwd")),
    "preview": ("local", _changed(preview=np.zeros((0, 3, 3), np.uint8))),
    "space": ("local", _changed(space="z")),
    "kind": ("local", _changed(kind="other")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_direction_that_breaks_a_rule_is_refused_and_nothing_written(tmp_path: Path, name: str) -> None:
    kind, change = BROKEN[name]
    good = chunk_of("chunk", 1)
    position = next(i for i, d in enumerate(good.directions) if d.kind == kind)
    directions: list[DirectionRecord] = list(good.directions)
    directions[position] = change(directions[position])
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        before = visible(tmp_path / "c")
        with pytest.raises(CatalogError) as caught:
            writer.commit(dataclasses.replace(good, directions=tuple(directions)))
        assert visible(tmp_path / "c") == before
        assert "direction" in caught.value.field
        writer.commit(good)
    assert verify(tmp_path / "c").ok


def test_evidence_comes_back_as_it_was_written(tmp_path: Path) -> None:
    good = chunk_of("chunk", 1)
    evidence: list[dict[str, Any]] = [
        {"strength_reached": True, "strength_limited": False},
        {"sigma": 1.5, "residual": 0.2, "converged": False, "checked": False, "gap": 0.0, "angle": 1.5,
         "cluster_first": 0, "cluster_last": 3, "strength_reached": False, "strength_limited": False},
        {**SPLIT, "strength_reached": False, "strength_limited": True},
    ]  # fmt: skip
    local = [d for d in good.directions if d.kind == "local"]
    changed = [dataclasses.replace(d, **part) for d, part in zip(local, evidence, strict=False)]
    others = [d for d in good.directions if d.direction_id not in {d.direction_id for d in changed}]
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        writer.commit(dataclasses.replace(good, directions=(*others, *changed)))
    assert verify(tmp_path / "c").ok
    with Catalog.open(tmp_path / "c") as catalog:
        for d, part in zip(changed, evidence, strict=True):
            read = catalog.direction(d.direction_id)
            assert {name: getattr(read, name) for name in part} == part
            (row,) = [row for row in catalog.directions().to_pylist() if row["direction_id"] == d.direction_id]
            assert {name: row[name] for name in part} == part
        assert catalog.direction(others[0].direction_id).strength_reached is None


def test_ids_are_unique_over_all_chunks(tmp_path: Path) -> None:
    chunk = small_catalog(tmp_path / "c", 1)[0]
    with CatalogWriter.open(tmp_path / "c") as writer:
        with pytest.raises(CatalogError, match="twice"):
            writer.commit(dataclasses.replace(chunk, chunk_id="copy", regions=()))
        twice = dataclasses.replace(chunk_of("new"), directions=chunk_of("new").directions * 2)
        with pytest.raises(CatalogError, match="twice"):
            writer.commit(twice)


@pytest.mark.parametrize("name", ["../up", "", "a/b", ".hidden", "x" * 200])
def test_a_chunk_id_cannot_name_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        before = visible(tmp_path)
        with pytest.raises(CatalogError):
            writer.commit(dataclasses.replace(chunk_of("chunk", 1), chunk_id=name))
    assert visible(tmp_path).keys() - {"c/.lock"} == before.keys() - {"c/.lock"}


def test_a_second_writer_is_told_and_loses_nothing(tmp_path: Path) -> None:
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        with pytest.raises(ConflictError, match=f"process {os.getpid()}"):
            CatalogWriter.create(tmp_path / "c", provenance())
        with pytest.raises(ConflictError, match="another writer"):
            CatalogWriter.open(tmp_path / "c")
        writer.commit(chunk_of("one"))
    with CatalogWriter.open(tmp_path / "c") as writer:
        writer.commit(chunk_of("two"))
    assert verify(tmp_path / "c").ok
    with pytest.raises(ConflictError, match="closed"):
        writer.commit(chunk_of("three"))


@pytest.mark.parametrize("other", ["recipe-2", "model"])
def test_a_folder_of_another_recipe_or_model_is_refused_by_name(tmp_path: Path, other: str) -> None:
    small_catalog(tmp_path / "c", 1)
    before = tree(tmp_path / "c")
    wanted = provenance(model="other") if other == "model" else provenance(recipe=other)
    with pytest.raises(ConflictError) as caught:
        CatalogWriter.create(tmp_path / "c", wanted)
    assert caught.value.found.endswith("recipe-1" if other != "model" else "m" * 8)
    assert tree(tmp_path / "c") == before


def test_a_folder_with_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConflictError, match="nothing was written"):
        CatalogWriter.create(tmp_path, provenance())
    assert tree(tmp_path) == {"notes.txt": b"mine"}
    with pytest.raises(ConflictError, match="a file"):
        CatalogWriter.create(tmp_path / "notes.txt", provenance())
    with pytest.raises(NotFoundError, match="catalog"):
        CatalogWriter.open(tmp_path)


class _FullDisk:
    """Lets `budget` flushes to disk through, then reports a full one."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.real = os.fsync

    def __call__(self, descriptor: int) -> None:
        self.budget -= 1
        if self.budget < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.real(descriptor)


def test_a_full_disk_at_any_flush_leaves_one_whole_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_catalog(tmp_path / "c", 1)
    chunk, before, failures = chunk_of("next", 1), visible(tmp_path / "c"), 0
    for budget in range(40):
        with CatalogWriter.open(tmp_path / "c") as writer:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", _FullDisk(budget))
                try:
                    writer.commit(chunk)
                    break
                except CatalogError as error:
                    assert "no space left" in str(error)
                    failures += 1
            if "next" in writer.done_chunks:  # the disk filled up just after the manifest was replaced
                break
            assert visible(tmp_path / "c") == before
            assert not (tmp_path / "c" / ".staging").exists()
    assert failures >= 8
    assert verify(tmp_path / "c").ok
    assert verify(tmp_path / "c").rows["images"] == 3


def test_an_interrupted_commit_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_catalog(tmp_path / "c", 1)
    before = visible(tmp_path / "c")
    with CatalogWriter.open(tmp_path / "c") as writer:
        with monkeypatch.context() as patch:
            patch.setattr("catalog.transaction.flush_folder", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                writer.commit(chunk_of("next", 1))
        assert visible(tmp_path / "c") == before
        writer.commit(chunk_of("next", 1))
    assert verify(tmp_path / "c").ok


def _interrupt(_: Path) -> None:
    raise KeyboardInterrupt


def test_pictures_are_replaced_whole_and_kept_by_name(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 1)
    one, two = (encode_png(np.full((4, 4, 3), value, np.uint8)) for value in (10, 200))
    with CatalogWriter.open(tmp_path / "c") as writer:
        first = writer.add_picture("contact sheet", one)
        assert writer.add_picture("contact sheet", one) == first
        writer.add_picture("contact-sheet", one)
        second = writer.add_picture("contact sheet", two)
        assert (tmp_path / "c" / first).exists()  # still the other name's
        writer.add_picture("contact-sheet", two)
        assert not (tmp_path / "c" / first).exists()
        with pytest.raises(InputError, match="PNG"):
            writer.add_picture("page", b"<script>")
        assert second.startswith("pictures/contact-sheet")
    with Catalog.open(tmp_path / "c") as catalog:
        assert catalog.picture("contact-sheet") == two
        with pytest.raises(NotFoundError, match="contact-sheet"):
            catalog.picture("none")
    assert verify(tmp_path / "c").ok


def test_a_model_without_a_bottleneck_has_no_column_for_it(tmp_path: Path) -> None:
    chunk = chunk_of("one", 1)
    only_x = Chunk("one", chunk.images, chunk.regions, tuple(d for d in chunk.directions if d.space == "x"))
    with CatalogWriter.create(tmp_path / "c", provenance(spaces={"x": SPACES["x"]})) as writer:
        writer.commit(only_x)
        assert "h_vector" not in writer.manifest.schemas["directions"]
    assert verify(tmp_path / "c").ok


def test_provenance_that_is_not_json_is_refused(tmp_path: Path) -> None:
    bad = provenance().model_copy(update={"recipe": {"rank": float("nan")}})
    with pytest.raises(InputError, match="provenance"):
        CatalogWriter.create(tmp_path / "c", bad)
    assert not (tmp_path / "c").exists()


def test_a_catalog_keeps_the_codecs_that_it_was_begun_with(tmp_path: Path) -> None:
    exact = {"x": Float16Spec(), "h": Float16Spec()}
    with CatalogWriter.create(tmp_path / "c", provenance(), exact) as writer:
        writer.commit(chunk_of("one", 1))
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        assert writer.manifest.layout.codecs == exact
        writer.commit(chunk_of("two", 1))
    with Catalog.open(tmp_path / "c") as catalog:
        for record in (*chunk_of("one", 1).directions, *chunk_of("two", 1).directions):
            assert np.array_equal(catalog.vector(record.direction_id), record.vector.astype(np.float16))


def test_of_two_writers_whose_lock_was_lost_the_first_to_commit_wins_and_the_other_is_told(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 1)
    slow = CatalogWriter.open(tmp_path / "c")
    (tmp_path / "c" / ".lock").unlink()
    with CatalogWriter.open(tmp_path / "c") as quick:
        quick.commit(chunk_of("quick", 1))
        with pytest.raises(ConflictError, match="another writer committed"):
            slow.commit(chunk_of("slow", 1))
        assert verify(tmp_path / "c").ok
        slow.commit(chunk_of("slow", 1))  # it knows the version that stands by now
        with pytest.raises(ConflictError):
            quick.commit(chunk_of("late", 1))
    slow.close()
    with Catalog.open(tmp_path / "c") as catalog:
        assert catalog.manifest.chunks.keys() == {"chunk-0", "quick", "slow"}
    assert verify(tmp_path / "c").ok


def test_a_version_that_another_writer_has_claimed_is_finished_and_not_overwritten(tmp_path: Path) -> None:
    """The claim is put if absent: a writer that has read the version before it cannot get past it."""
    small_catalog(tmp_path / "c", 1)
    before = (tmp_path / "c" / "manifest.json").read_bytes()
    with CatalogWriter.open(tmp_path / "c") as writer:
        writer.commit(chunk_of("theirs", 1))
        claimed = writer.manifest
    with CatalogWriter.open(tmp_path / "c") as writer:  # as if theirs had died between its claim and its manifest
        (tmp_path / "c" / "manifest.json").unlink()  # its bytes are the claim's too
        (tmp_path / "c" / "manifest.json").write_bytes(before)
        writer.manifest = manifests.load(tmp_path / "c")
        writer.forget()
        with pytest.raises(ConflictError, match="another writer committed"):
            writer.commit(chunk_of("ours", 1))
        assert manifests.dump(writer.manifest) == manifests.dump(claimed)
        writer.commit(chunk_of("ours", 1))
    assert verify(tmp_path / "c").ok
    assert verify(tmp_path / "c").rows["images"] == 4


def test_a_catalog_that_was_deleted_but_for_hidden_files_stays_deleted(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 12)
    for path in sorted((tmp_path / "c").rglob("*"), reverse=True):
        if not any(part.startswith(".") for part in path.relative_to(tmp_path / "c").parts):
            path.rmdir() if path.is_dir() else path.unlink()
    assert {path.name for path in (tmp_path / "c").iterdir()} == {".lock", ".versions"}
    with CatalogWriter.create(tmp_path / "c", provenance("another recipe")) as writer:
        for number in range(12):
            writer.commit(chunk_of(f"new-{number}", 1, ("mouth",)))
    assert manifests.load(tmp_path / "c").chunks.keys() == {f"new-{number}" for number in range(12)}
    assert verify(tmp_path / "c").problems == ()


def test_an_older_manifest_that_was_put_back_is_what_stands(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 1)
    path = tmp_path / "c" / "manifest.json"
    before = path.read_bytes()
    with CatalogWriter.open(tmp_path / "c") as writer:
        writer.commit(chunk_of("regretted", 1))
    path.unlink()
    path.write_bytes(before)
    with CatalogWriter.open(tmp_path / "c") as writer:
        assert writer.manifest.chunks.keys() == {"chunk-0"}
        writer.add_picture("sheet", encode_png(np.full((2, 2, 3), 9, np.uint8)))
    assert path.read_bytes() != before


def test_what_a_living_writer_has_staged_is_left_alone_by_one_that_opens(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 1)
    slow = CatalogWriter.open(tmp_path / "c")
    (tmp_path / "c" / ".lock").unlink()
    with slow.transaction() as transaction:
        path, staged = transaction.stage("pictures/sheet-{digest}.png", lambda out: out.write(encode_png(SHEET)))
        CatalogWriter.open(tmp_path / "c").close()
        assert staged.exists()
        slow.finish(transaction, slow.manifest, {"pictures": {"sheet": path}})
    slow.close()
    assert verify(tmp_path / "c").problems == ()


def test_what_a_dead_writer_left_is_removed_whatever_it_is(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 1)
    for name in ("1-dead/deep/er", "2-dead"):
        (tmp_path / "c" / ".staging" / name).mkdir(parents=True)
    (tmp_path / "c" / ".staging" / "2-dead" / "intent.json").write_text("{ torn")
    (tmp_path / "c" / ".staging" / "stray.tmp").write_text("x")
    (tmp_path / "c" / ".versions" / "a folder").mkdir()
    CatalogWriter.open(tmp_path / "c").close()
    assert not (tmp_path / "c" / ".staging").exists()
    assert verify(tmp_path / "c").problems == ()


def test_a_damaged_file_is_repaired_by_storing_the_same_again(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 1)
    for damage in (lambda path: path.write_bytes(path.read_bytes()[:-1]), Path.unlink):
        with CatalogWriter.open(tmp_path / "c") as writer:
            path = tmp_path / "c" / writer.add_picture("sheet", encode_png(SHEET))
            damage(path)
            assert not verify(tmp_path / "c").ok
            writer.add_picture("sheet", encode_png(SHEET))
        assert verify(tmp_path / "c").ok


SHEET = np.full((2, 2, 3), 9, np.uint8)


@pytest.mark.parametrize("place", ["file/c", "n" * 300, "/proc/c", "/sys/c", "loop/c"])
def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"folder: found .*--out"):
        CatalogWriter.create(tmp_path / place, provenance())


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_file_system_that_became_read_only_is_one_clear_error_and_the_former_version_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        target = Target.of(writer.manifest)
        monkeypatch.setattr("catalog.transaction.write_flushed_by", refuse)
        with pytest.raises(InputError, match=os.strerror(number)):
            writer.commit(chunk_of("a", 1))
        monkeypatch.setattr("catalog.deposits.write_flushed_by", refuse)
        with pytest.raises(InputError, match=os.strerror(number)):  # a worker
            write_deposit(writer.store, "job", "work", chunk_of("a", 1), target)
    assert verify(tmp_path / "c").problems == ()
