"""Whole versions and parts of them, pulled: only what is asked for travels, and what arrives is what was published."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog import manifest as manifests
from catalog.card import CardFields
from catalog.concepts import load_concepts
from catalog.fs import sha256_of
from catalog.hub import pieces
from catalog.hub.listing import listed
from catalog.hub.names import PackName
from catalog.hub.opening import open_hub
from catalog.hub.parts import Part
from catalog.hub.publishing import publish
from catalog.hub.pulled import Keeper, pulled_from
from catalog.hub.pulling import pull
from catalog.hub.stores import StoreHub, StoreSnapshot
from catalog.index import build_indexes
from catalog.lookup import similar
from catalog.merging import merge
from catalog.pictures import encode_png
from catalog.reader import Catalog
from catalog.schema import LEFT_OUT
from catalog.store import StoreError
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, ConflictError, InputError, NotFoundError
from tests.catalog.packs import NAME, REGIONS, SETS, Fails, FolderHub, chunks_of_pack, files, write_pack
from tests.catalog.pull_crash import pull_to
from tests.catalog.samples import provenance

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_pack(tmp_path_factory.mktemp("pulling") / "pack", chunks_of_pack())
    assert verify(folder).problems == ()
    return folder


@pytest.fixture(autouse=True)
def _quick_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "AGAIN", (0.0, 0.0))


@pytest.fixture
def hub(pack: Path) -> FolderHub:
    return FolderHub(pack)


def expected(pack: Path, part: Part) -> set[str]:
    """Ids that a part should hold: those that match, or the medoids of concepts that do; these in any case."""
    with Catalog.open(pack) as catalog:
        rows = catalog.directions().to_pylist()
        own = {r["direction_id"] for r in rows if part.takes(r["dataset"], r["region"], r["space"], r["kind"])}
        concepts = [
            c for c in load_concepts(catalog) if any(part.takes(d, c.region, c.space, c.kind) for d in c.datasets)
        ]
    medoids = {concept.medoid for concept in concepts}
    return medoids if part.prototypes else own | medoids


PARTS = {
    "a region": Part(regions=("mouth",)),
    "two regions without previews": Part(regions=("hair", "left eye"), without=("preview",)),
    "a data set": Part(datasets=("Other Set",)),
    "a space": Part(spaces=("h",), without=("image", "latent")),
    "a kind of a region": Part(regions=("nose",), kinds=("local",)),
    "prototypes": Part(prototypes=True),
    "prototypes of a region in one data set": Part(regions=("brow",), datasets=("random",), prototypes=True),
    "bare vectors": Part(regions=("hair",), without=("effect", "image", "latent", "mask", "preview")),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_what_the_whole_holds_of_it(pack: Path, hub: FolderHub, tmp_path: Path, name: str) -> None:
    part = PARTS[name]
    done = pull(NAME, tmp_path / "out", part, hub)
    assert verify(tmp_path / "out").problems == ()
    assert (done.repository, done.version, done.revision) == ("org/pack", "1.0.0", hub.own.revision)
    with Catalog.open(pack) as whole, Catalog.open(tmp_path / "out") as own:
        ids = [key.decode() for key in own.ids()]
        assert set(ids) == expected(pack, part)
        assert own.rows(ids) == whole.rows(ids)
        for space in whole.layout.spaces:
            of_space = [row["direction_id"] for row in own.rows(ids) if row["space"] == space]
            assert np.array_equal(own.vectors(of_space, space), whole.vectors(of_space, space))
        assert np.array_equal(own.effects(ids), whole.effects(ids))
        joined = {row["image_id"] for row in own.rows(ids)}
        assert joined == {key.decode() for key in own.ids("images")}
        assert {row["region_id"] for row in own.rows(ids)} == {key.decode() for key in own.ids("regions")}
        assert own.manifest.left_out == tuple(sorted(part.without))
        assert own.manifest.part is not None
        assert own.manifest.part.filters == part.filters
        assert own.manifest.pack is None
        if "preview" not in part.without:
            assert np.array_equal(own.preview(ids[0]), whole.preview(ids[0]))
        wanted = {c.concept_id: c for c in load_concepts(whole) if c.medoid in ids}
        for concept in load_concepts(own) if own.manifest.concepts else []:
            assert np.array_equal(concept.vector, wanted[concept.concept_id].vector)
            assert concept.members == wanted[concept.concept_id].members
        beside = [row for row in own.rows(ids) if row["space"] == own.space_of(ids[0])][1:]
        assert bool(similar(own, ids[0], 3)) == bool(beside)


parts = st.builds(
    Part,
    regions=st.lists(st.sampled_from(REGIONS[:3]), max_size=2, unique=True).map(tuple),
    datasets=st.lists(st.sampled_from(SETS), max_size=1).map(tuple),
    kinds=st.lists(st.sampled_from(("local", "singular", "joint")), max_size=2, unique=True).map(tuple),
    spaces=st.lists(st.sampled_from(("x", "h")), max_size=1).map(tuple),
    without=st.lists(st.sampled_from(LEFT_OUT), max_size=2, unique=True).map(tuple),
)


@pytest.fixture(scope="module", params=[True, False], ids=["pack layout", "shards of chunks"])
def bare_pack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare") / "pack"
    return write_pack(folder, chunks_of_pack(4, REGIONS[:3]), arranged=request.param, searchable=False)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=parts)
def test_any_part_is_the_filter_of_the_whole(bare_pack: Path, tmp_path: Path, part: Part) -> None:
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    with Catalog.open(bare_pack) as whole:
        rows = whole.directions().to_pylist()
        ids = [r["direction_id"] for r in rows if part.takes(r["dataset"], r["region"], r["space"], r["kind"])]
        if not ids:
            with pytest.raises(NotFoundError, match="what it holds"):
                pull(NAME, tmp_path / "out", part, FolderHub(bare_pack))
            return
        pull(NAME, tmp_path / "out", part, FolderHub(bare_pack))
        with Catalog.open(tmp_path / "out") as own:
            assert [key.decode() for key in own.ids()] == ids
            assert own.rows(ids) == whole.rows(ids)
            assert np.array_equal(own.effects(ids), whole.effects(ids))
            assert own.manifest.part is not None or part.filters == {}


def test_parts_are_merged(pack: Path, hub: FolderHub, tmp_path: Path) -> None:
    for region in ("mouth", "hair"):
        pull(NAME, tmp_path / region, Part(regions=(region,)), hub)
    merge([tmp_path / "mouth", tmp_path / "hair"], tmp_path / "both")
    assert verify(tmp_path / "both").problems == ()
    with Catalog.open(tmp_path / "both") as both:
        assert {key.decode() for key in both.ids()} == expected(pack, Part(regions=("mouth", "hair")))


def test_one_region_of_six_takes_a_fifth_of_the_bytes_at_most_and_nothing_the_second_time(
    pack: Path, hub: FolderHub, tmp_path: Path
) -> None:
    size = sum(entry.bytes for entry in manifests.load(pack).files.values())
    done = pull(NAME, tmp_path / "out", Part(regions=("mouth",), without=("preview",)), hub)
    assert 0 < hub.own.bytes <= 0.2 * size
    assert done.new_bytes == hub.own.bytes
    before = hub.own.bytes
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert pull(NAME, tmp_path / "out", Part(regions=("mouth",), without=("preview",)), hub).new_bytes == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    pull(NAME, tmp_path / "again", Part(regions=("mouth",), without=("preview",)), hub)
    assert hub.own.bytes == before
    names = [spans for spans in hub.own.read_spans if spans[0].startswith("directions/")]
    assert names and all(".mouth-" in name for name, _, _ in names)


def test_no_byte_of_a_shard_is_read_twice_whatever_parts_are_pulled(hub: FolderHub, tmp_path: Path) -> None:
    for number, part in enumerate([PARTS["a kind of a region"], PARTS["a region"], PARTS["prototypes"]]):
        pull(NAME, tmp_path / str(number), part, hub)
    seen: dict[str, list[tuple[int, int]]] = {}
    for name, start, size in hub.own.read_spans:
        assert all(start + size <= first or end <= start for first, end in seen.get(name, ()))
        seen.setdefault(name, []).append((start, start + size))


def test_a_finished_pull_needs_no_hub(hub: FolderHub, tmp_path: Path) -> None:
    for part in (None, PARTS["prototypes"]):
        pull(NAME, tmp_path / str(bool(part)), part, hub)
    hub.own.before = Fails(1, 10**9)
    for part in (None, PARTS["prototypes"]):
        assert pull(NAME, tmp_path / str(bool(part)), part, hub).new_bytes == 0
    newest = PackName("nowhere", "org", "pack")
    with pytest.raises(StoreError):
        pull(newest, tmp_path / "True", PARTS["prototypes"], hub)


def test_a_whole_version_is_the_pack_as_it_was_published(pack: Path, hub: FolderHub, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    done = pull(NAME, tmp_path / "out", hub=hub, progress=lambda *what: told.append(what))
    mine = files(tmp_path / "out")
    record = json.loads(mine.pop(".pulled.json"))
    assert mine == files(pack)
    assert record["manifest"] == sha256_of(pack / "manifest.json")
    assert verify(tmp_path / "out").problems == ()
    assert done.bytes == sum(map(len, mine.values()))
    assert all(0 <= part <= total for _, part, total in told) and told[-1][1] == told[-1][2]
    known = pulled_from(tmp_path / "out")
    assert known is not None
    assert (known.repository, known.version, known.place, known.filters) == ("org/pack", "1.0.0", "nowhere", {})


def test_a_damaged_copy_is_completed(pack: Path, hub: FolderHub, tmp_path: Path) -> None:
    for part in (None, PARTS["a region"]):
        out = tmp_path / str(bool(part))
        pull(NAME, out, part, hub)
        before, fetched = files(out), hub.own.bytes
        (out / "README.md").unlink()
        shard = next((out / "directions").iterdir())
        shard.write_bytes(shard.read_bytes()[:-9])
        pull(NAME, out, part, hub)
        assert files(out) == before
        assert hub.own.bytes - fetched <= (shard.stat().st_size + 20_000 if part is None else 0)


def test_only_a_new_folder_or_its_own_is_pulled_into(pack: Path, hub: FolderHub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    for part in (None, PARTS["a region"]):
        with pytest.raises(ConflictError, match="nothing was written"):
            pull(NAME, out, part, hub)
    assert files(out) == {"mine.txt": b"keep"}
    (out / "mine.txt").unlink()
    pull(NAME, out, PARTS["a region"], hub)
    before = files(out)
    for part in (None, PARTS["a kind of a region"]):
        with pytest.raises(ConflictError, match="this very part"):
            pull(NAME, out, part, hub)
    assert files(out) == before


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> PackName:
    """A pack of a local hub with versions 1.0.0 and 1.1.0, whose directions differ; not to be changed."""
    root = tmp_path_factory.mktemp("grown")
    name = PackName.parse(f"{root}/hub/org/pack")
    chunks = chunks_of_pack(6, REGIONS[:2])
    for version, own in (("1.0.0", chunks[:2]), ("1.1.0", chunks[1:])):
        with CatalogWriter.create(root / version, provenance()) as writer:
            for chunk in own:
                writer.commit(chunk)
        with Catalog.open(root / version) as catalog:
            publish(catalog, name, version, open_hub(name), CardFields(licence="mit"))
    return name


BOTH = pytest.mark.parametrize("part", [None, Part(regions=("mouth",))], ids=["whole", "part"])


def of_version(name: PackName, version: str) -> PackName:
    return dataclasses.replace(name, wanted=version)


@BOTH
def test_a_pull_that_was_cut_off_is_finished_at_a_newer_version(
    grown: PackName, tmp_path: Path, part: Part | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise StoreError("hub", "a cut connection", "an answer")

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "finish", cut)
        with pytest.raises(StoreError):
            pull(of_version(grown, "1.0.0"), tmp_path / "out", part)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert any((tmp_path / "out" / "directions").iterdir())
    assert pull(grown, tmp_path / "out", part).version == "1.1.0"
    assert verify(tmp_path / "out").problems == ()
    pull(grown, tmp_path / "fresh", part)
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


@BOTH
def test_a_finished_pull_is_brought_to_another_version_in_place(
    grown: PackName, tmp_path: Path, part: Part | None
) -> None:
    for version in ("1.0.0", "1.1.0", "1.0.0"):
        pull(of_version(grown, version), tmp_path / version, part)
        pull(of_version(grown, version), tmp_path / "out", part)
        assert verify(tmp_path / "out").problems == ()
        assert files(tmp_path / "out") == files(tmp_path / version)


@BOTH
def test_the_version_that_stands_in_a_folder_stands_until_the_other_has_come(
    grown: PackName, tmp_path: Path, part: Part | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(of_version(grown, "1.0.0"), tmp_path / "out", part)
    monkeypatch.setenv("RHUMB_CACHE", str(tmp_path / "empty"))
    fails = Fails(4, 10**9)
    for name in ("fetch", "read"):
        real = getattr(StoreSnapshot, name)
        monkeypatch.setattr(StoreSnapshot, name, lambda *told, real=real: (fails(""), real(*told))[1])
    with pytest.raises(StoreError):
        pull(grown, tmp_path / "out", part)
    with Catalog.open(tmp_path / "out") as former:
        assert all(np.isfinite(former.vector(key.decode())).all() for key in former.ids())
    known = pulled_from(tmp_path / "out")
    assert known is not None and known.version == "1.0.0"
    fails.first = 10**9
    pull(grown, tmp_path / "out", part)
    assert verify(tmp_path / "out").problems == ()


def test_what_a_folder_holds_that_may_not_be_replaced_is_named(grown: PackName, tmp_path: Path) -> None:
    out, part = tmp_path / "out", Part(regions=("mouth",))
    pull(of_version(grown, "1.0.0"), out, part)
    with pytest.raises(ConflictError, match=r"found org/pack 1\.0\.0 \(regions mouth\); .*nothing was written"):
        pull(grown, out)
    with CatalogWriter.open(out) as writer:
        writer.add_picture("mine", encode_png(np.zeros((2, 2, 3), np.uint8)))
    before = files(out)
    with pytest.raises(ConflictError, match=r"found org/pack 1\.0\.0 \(regions mouth\), changed since it was pulled"):
        pull(grown, out, part)
    assert files(out) == before


def test_of_a_hub_that_is_away_the_newest_version_is_pulled_that_the_caches_have(
    grown: PackName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Part(regions=("mouth",))
    pull(of_version(grown, "1.0.0"), tmp_path / "first", part)
    monkeypatch.setattr(StoreHub, "away", True)
    for name in ("fetch", "read"):
        monkeypatch.setattr(StoreSnapshot, name, Fails(1, 10**9, InputError("org/pack", "HF_HUB_OFFLINE", "the Hub")))
    done = pull(grown, tmp_path / "out", part)
    assert done.version == "1.0.0"
    assert verify(tmp_path / "out").problems == ()
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        pull(of_version(grown, ">1.0"), tmp_path / "newer", part)
    assert not (tmp_path / "newer").exists()


@pytest.mark.parametrize("part", [None, Part(regions=("mouth",))])
def test_cut_connections_are_waited_for_and_lasting_ones_leave_what_came(
    pack: Path, hub: FolderHub, tmp_path: Path, part: Part | None
) -> None:
    hub.own.before = Fails(4, 2)
    pull(NAME, tmp_path / "patient", part, hub)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    whole = hub.own.bytes
    for first in (1, 2, 5):
        hub.own.before = Fails(first, 10**9)
        with pytest.raises(StoreError):
            pull(NAME, tmp_path / "out", part, hub)
        with pytest.raises(NotFoundError):
            Catalog.open(tmp_path / "out")
    hub.own.before = lambda what: None
    pull(NAME, tmp_path / "out", part, hub)
    assert verify(tmp_path / "out").problems == ()
    assert hub.own.bytes == 2 * whole


@pytest.mark.parametrize("part", [None, Part(regions=("mouth",))])
def test_a_full_disk_is_told_and_leaves_no_catalog(
    hub: FolderHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: Part | None
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for where, what in ((os, "pwrite"), (shutil, "copyfile")):
        with monkeypatch.context() as patch:
            patch.setattr(where, what, full)
            if (part is None) == (what == "copyfile"):
                with pytest.raises(CatalogError, match="no space left"):
                    pull(NAME, tmp_path / "out", part, hub)
                with pytest.raises(NotFoundError):
                    Catalog.open(tmp_path / "out")
    pull(NAME, tmp_path / "out", part, hub)
    assert verify(tmp_path / "out").ok


def test_what_is_not_there_is_named_with_what_is(hub: FolderHub, tmp_path: Path) -> None:
    for part in (Part(regions=("mouht",)), Part(datasets=("celeba",)), Part(kinds=("joint",))):
        with pytest.raises(NotFoundError, match="regions brow, hair, left eye, mouth, nose, right eye"):
            pull(NAME, tmp_path / "out", part, hub)
        assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(NotFoundError, match=r"1\.0\.0"):
        pull(PackName("nowhere", "org", "pack", "2.0.0"), tmp_path / "out", None, hub)
    with pytest.raises(InputError, match="spaces"):
        Part(spaces=("z",))
    with pytest.raises(InputError, match="regions"):
        Part(regions=("",))


@pytest.mark.parametrize(("kind", "stride"), [("whole", 9), ("part", 71)])
def test_a_pull_killed_at_any_step_leaves_no_half_catalog_and_a_rerun_finishes(
    tmp_path: Path, kind: str, stride: int
) -> None:
    write_pack(tmp_path / "start" / "pack", chunks_of_pack(4, REGIONS[:2]))
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-m", "tests.catalog.pull_crash", kind, str(tmp_path / "start"), str(tmp_path / "work")]
    done = subprocess.run(
        [*command, "1", str(stride)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    endings = json.loads(done.stdout or "[]")
    assert endings[-1:] == [0], done.stderr
    assert len(endings) > 5
    folders = sorted((tmp_path / "work").iterdir(), key=lambda folder: int(folder.name))
    whole = files(folders[-1] / "out")
    for folder in folders:
        if (folder / "out" / "manifest.json").exists():
            assert verify(folder / "out").problems == ()
        pull_to(folder, kind)
        assert files(folder / "out") == whole | {".pulled.json": (folder / "out" / ".pulled.json").read_bytes()}


@pytest.mark.parametrize("place", ["{}/hub", "memory://{}/hub"])
def test_what_was_published_in_a_store_is_pulled_from_it(tmp_path: Path, place: str) -> None:
    catalog = tmp_path / "mined"
    with CatalogWriter.create(catalog, provenance()) as writer:
        for chunk in chunks_of_pack(4, REGIONS[:3]):
            writer.commit(chunk)
    build_indexes(catalog)
    name = PackName.parse(f"{place.format(tmp_path)}/org/pack@>=1.0,<2")
    with Catalog.open(catalog) as source:
        publish(source, name, "1.0.0", open_hub(name), CardFields(licence="mit"))
        done = publish(source, name, "2.0.0", open_hub(name), CardFields(licence="mit"), left_out=LEFT_OUT)
    pull(name, tmp_path / "whole")
    part = Part(regions=("mouth",), without=("preview",))
    pull(name, tmp_path / "part", part)
    assert pull(name, tmp_path / "part", part).version == "1.0.0" < done.version
    assert pull(PackName.parse(str(name)), tmp_path / "newest", part).version == "2.0.0"
    for folder in ("whole", "part", "newest"):
        assert verify(tmp_path / folder).problems == ()
    with Catalog.open(tmp_path / "newest") as bare:
        assert bare.manifest.left_out == LEFT_OUT
    with Catalog.open(catalog) as mined, Catalog.open(tmp_path / "part") as own:
        ids = [row["direction_id"] for row in mined.directions(region="mouth").to_pylist()]
        assert [key.decode() for key in own.ids()] == ids
        assert np.array_equal(own.effects(ids), mined.effects(ids))
        assert similar(own, ids[0], 2)
    known = pulled_from(tmp_path / "part")
    assert known is not None
    assert PackName(known.hub, "org", "pack") == PackName.parse(str(name))
    assert {(one.dataset, one.region) for one in listed(name).shares} == {(d, r) for d in SETS for r in REGIONS[:3]}
