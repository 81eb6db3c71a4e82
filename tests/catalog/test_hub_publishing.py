"""Publishing into a hub: what travels, what is refused, and what a cut leaves behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog import manifest as manifests
from catalog.card import CardFields
from catalog.compaction import compact
from catalog.fs import MANIFEST, RUN
from catalog.hub import publishing
from catalog.hub.contract import Draft, Hub, Progress
from catalog.hub.names import PackName, Version
from catalog.hub.pack_indexes import carry_indexes
from catalog.hub.parts import Part
from catalog.hub.publishing import Published, publish, with_licences, workplace
from catalog.hub.pulling import pull
from catalog.hub.stores import StoreHub
from catalog.index import build_indexes
from catalog.manifest import PackInfo, Provenance
from catalog.reader import Catalog
from catalog.schema import LEFT_OUT
from catalog.selecting import select_into
from catalog.store import StoreError
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, ConflictError, InputError
from tests.catalog.samples import chunk_of, failed_chunk, provenance, small_catalog

FIELDS = CardFields(title="Faces", licence="cc-by-4.0")
NAME = PackName(None, "org", "pack")


def snapshot(hub: Path, done: Published) -> Path:
    return hub / "datasets" / "org" / "pack" / "snapshots" / str(done.revision)


def out(source: Path, hub: Path, version: str, **options: object) -> Published:
    return published(source, NAME, version, StoreHub(hub), options.pop("card", FIELDS), **options)  # type: ignore[arg-type]


def published(
    folder: Path, name: PackName, version: str, hub: Hub, card: CardFields = FIELDS, **options: Any
) -> Published:
    with Catalog.open(folder) as catalog:
        return publish(catalog, name, version, hub, card, **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    small_catalog(tmp_path / "source", chunks=3)
    build_indexes(tmp_path / "source")
    return tmp_path / "source"


def grown(source: Path, name: str = "later") -> Path:
    with CatalogWriter.open(source) as writer:
        writer.commit(chunk_of(name, images=1))
    build_indexes(source)
    return source


def test_a_published_pack_is_a_whole_catalog_with_a_card(source: Path, tmp_path: Path) -> None:
    done = out(source, tmp_path / "hub", "1.0.0")
    pack = snapshot(tmp_path / "hub", done)
    assert verify(pack).problems == ()
    files = [path for path in pack.rglob("*") if path.is_file()]
    assert done.bytes == done.new_bytes == sum(path.stat().st_size for path in files)
    assert (done.new_files, done.reused, done.left_out) == (len(files), 0, ())
    assert "Version 1.0.0 of `org/pack`" in (pack / "README.md").read_text()
    with Catalog.open(pack) as one, Catalog.open(source) as two:
        assert np.array_equal(one.ids(), two.ids())


def test_the_next_version_sends_what_is_new_and_says_what_changed(source: Path, tmp_path: Path) -> None:
    first = out(source, tmp_path / "hub", "1.0.0")
    second = out(grown(source), tmp_path / "hub", "1.1.0")
    assert verify(snapshot(tmp_path / "hub", second)).problems == ()
    assert second.reused > 0
    assert second.new_bytes < first.bytes / 2
    page = (snapshot(tmp_path / "hub", second) / "README.md").read_text()
    assert "Compared with 1.0.0" in page
    assert "directions: 70; 10 added, 0 dropped" in page
    assert "no median differs by more than 5 %" in page


def test_a_patch_of_an_older_line_is_made_after_that_line(source: Path, tmp_path: Path) -> None:
    out(source, tmp_path / "hub", "1.0.0")
    out(grown(source), tmp_path / "hub", "2.0.0")
    done = out(grown(source, "patch"), tmp_path / "hub", "1.0.1")
    page = (snapshot(tmp_path / "hub", done) / "README.md").read_text()
    assert "Compared with 1.0.0" in page
    assert verify(snapshot(tmp_path / "hub", done)).problems == ()


def test_what_the_gates_of_a_recipe_keep_is_published_without_sending_the_rest_again(
    source: Path, tmp_path: Path
) -> None:
    out(source, tmp_path / "hub", "1.0.0")
    with Catalog.open(source) as catalog:
        image = catalog.images().column("image_id")[0].as_py()
        select_into(catalog, tmp_path / "chosen", ~catalog.select(image_id=image))
    done = out(tmp_path / "chosen", tmp_path / "hub", "1.1.0")
    pack = snapshot(tmp_path / "hub", done)
    assert verify(pack).problems == ()
    with Catalog.open(pack) as one, Catalog.open(tmp_path / "chosen") as two:
        assert np.array_equal(one.ids(), two.ids())


def test_a_selection_has_the_codes_of_its_catalog_so_that_none_travel_twice(source: Path, tmp_path: Path) -> None:
    with CatalogWriter.open(source) as writer:
        for number in range(10):
            writer.commit(chunk_of(f"more-{number}", images=6))  # enough for a quantiser that is learned
    build_indexes(source)
    chosen = []
    for name in ("one", "two"):
        with Catalog.open(source) as catalog:
            assert catalog.manifest.indexes["x"].quantiser is not None
            image = catalog.images().column("image_id")[0].as_py()
            chosen.append(select_into(catalog, tmp_path / name, ~catalog.select(image_id=image)))
            assert sorted(carry_indexes(catalog, chosen[-1])) == ["effect", "h", "x"]
        assert verify(chosen[-1]).problems == ()
        if name == "one":
            grown(source)
    before, after = (manifests.load(folder).indexes["x"] for folder in chosen)
    assert before.quantiser == after.quantiser
    assert set(before.codes.items()) <= set(after.codes.items())
    first, second = (
        out(folder, tmp_path / "hub", version) for folder, version in zip(chosen, ("1.0.0", "1.1.0"), strict=True)
    )
    assert second.new_bytes < first.bytes / 5


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(source: Path, tmp_path: Path) -> None:
    told = out(source, tmp_path / "hub", "1.0.0", dry_run=True)
    assert told.revision is None
    assert not (tmp_path / "hub" / "datasets").exists()
    done = out(source, tmp_path / "hub", "1.0.0")
    assert replace(done, revision=None) == told


def test_a_version_is_never_published_twice(source: Path, tmp_path: Path) -> None:
    done = out(source, tmp_path / "hub", "1.0.0")
    before = (snapshot(tmp_path / "hub", done) / MANIFEST).read_bytes()
    with pytest.raises(ConflictError, match="higher one; there are 1.0.0"):
        out(grown(source), tmp_path / "hub", "1.0.0")
    assert (snapshot(tmp_path / "hub", done) / MANIFEST).read_bytes() == before
    with pytest.raises(InputError, match="semantic version"):
        out(source, tmp_path / "hub", "v2")


def test_nothing_is_published_of_a_damaged_or_empty_catalog(source: Path, tmp_path: Path) -> None:
    with CatalogWriter.create(tmp_path / "empty", provenance()) as writer:
        writer.commit(failed_chunk("failed", "broken"))
    with pytest.raises(CatalogError, match="no directions"):
        out(tmp_path / "empty", tmp_path / "hub", "1.0.0")
    path = source / manifests.load(source).shards("regions")[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(CatalogError, match="passes `rhumb verify`"):
        out(source, tmp_path / "hub", "1.0.0")
    assert not (tmp_path / "hub" / "datasets").exists()


def story(**data: object) -> Provenance:
    plain = provenance()
    return plain.model_copy(update={"data": {**plain.data, **data}})


def test_after_compaction_only_new_rows_are_sent(source: Path, tmp_path: Path) -> None:
    first = out(source, tmp_path / "hub", "1.0.0")
    with CatalogWriter.open(source) as writer:
        writer.commit(chunk_of("later", images=1))
    compact(source)
    build_indexes(source)
    second = out(source, tmp_path / "hub", "1.1.0")
    assert second.new_bytes < first.bytes / 2
    assert verify(snapshot(tmp_path / "hub", second)).problems == ()
    third = out(source, tmp_path / "hub", "1.2.0")
    assert third.new_files == 2  # the card and the manifest


def test_a_part_is_published_under_another_name_and_goes_on_saying_what_it_is_of(source: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    out(source, hub, "1.0.0")
    first = PackName.parse("org/pack", hub=str(hub))
    pull(first, tmp_path / "part", Part(regions=("mouth",)))
    second = PackName(str(hub), "org", "mouths")
    published(tmp_path / "part", second, "1.0.0", StoreHub(hub), FIELDS)
    pull(second, tmp_path / "again")
    manifest = manifests.load(tmp_path / "again")
    assert manifest.part is not None and manifest.part.repository == "org/pack"
    assert manifest.pack == PackInfo(repository="org/mouths", version="1.0.0")
    assert verify(tmp_path / "again").problems == ()
    with Catalog.open(tmp_path / "part") as one, Catalog.open(tmp_path / "again") as two:
        assert (one.ids() == two.ids()).all()


def test_no_pack_goes_without_a_licence(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--licence"):
        out(source, tmp_path / "hub", "1.0.0", card=CardFields())
    assert not (tmp_path / "hub" / "datasets").exists()


def test_licences_of_the_sources_are_carried_over() -> None:
    fields = with_licences(CardFields(), story(licence="CC BY-NC 4.0 (NAVER Corporation)"))
    assert fields.licence == fields.data_licence == "CC BY-NC 4.0 (NAVER Corporation)"
    assert fields.model_licence == "not stated"
    given = with_licences(CardFields(licence="mit", model_licence="apache-2.0"), story())
    assert (given.licence, given.model_licence, given.data_licence) == ("mit", "apache-2.0", "not stated")
    for nothing in ("none", "N/A", " unknown "):
        with pytest.raises(InputError, match="nothing was published"):
            with_licences(CardFields(licence=nothing), story(licence="mit"))
    cited = with_licences(CardFields(citations=("LOCO",), licence="mit"), story(citation="@misc{data}")).citations
    assert cited == ("@misc{data}", "LOCO")
    merged = story(sources=[{"licence": "CC0-1.0"}, {"licence": "MIT"}, {"licence": "MIT"}])
    assert with_licences(FIELDS, merged).data_licence == "CC0-1.0; MIT"


@pytest.mark.parametrize("data", [{"redistributable": False}, {"sources": [{"redistributable": False}, {}]}])
def test_pictures_that_may_not_be_passed_on_are_not(tmp_path: Path, data: dict[str, object]) -> None:
    with CatalogWriter.create(tmp_path / "c", story(**data)) as writer:
        writer.commit(chunk_of("one"))
    done = out(tmp_path / "c", tmp_path / "hub", "1.0.0")
    assert done.left_out == tuple(sorted(LEFT_OUT))
    pack = snapshot(tmp_path / "hub", done)
    assert verify(pack).problems == ()
    assert all(b"\x89PNG" not in path.read_bytes() for path in pack.rglob("*") if path.is_file())
    with Catalog.open(pack) as catalog:
        assert catalog.images().column("source").to_pylist()


def test_a_column_can_be_left_out_of_any_pack(source: Path, tmp_path: Path) -> None:
    done = out(source, tmp_path / "hub", "1.0.0", left_out=["preview"])
    assert done.left_out == ("preview",)
    with pytest.raises(InputError, match="left_out"):
        out(source, tmp_path / "hub", "1.1.0", left_out=["x_vector"])


def test_no_path_of_the_machine_travels(tmp_path: Path) -> None:
    plain = provenance()
    recipe = {**plain.recipe, "dataset": {"path": "/home/alice/faces"}}
    of = plain.model_copy(update={"recipe": recipe, "model": {**plain.model, "reference": "/home/alice/model"}})
    failed = failed_chunk("failed", "broken")
    image = replace(failed.images[0], failure="OSError: /home/alice/faces/broken.png is torn")
    with CatalogWriter.create(tmp_path / "c", of) as writer:
        writer.commit(chunk_of("one"))
        writer.commit(replace(failed, images=(image,)))
    done = out(tmp_path / "c", tmp_path / "hub", "1.0.0")
    for path in (tmp_path / "hub").rglob("*"):
        assert not path.is_file() or b"alice" not in path.read_bytes()
    entry = next(iter(manifests.load(snapshot(tmp_path / "hub", done)).failed_images.values()))
    assert entry.reason == "OSError: broken.png is torn"


class Cut(StoreHub):
    """A hub whose connection breaks after some files."""

    left: Sequence[int] = ()

    def publish(self, draft: Draft, progress: Progress) -> str:
        count = self.left.pop(0) if isinstance(self.left, list) and self.left else None

        def told(what: str, done: int, of: int) -> None:
            nonlocal count
            count = None if count is None else count - 1
            if count is not None and count < 0:
                raise StoreError("store", "a cut", "an answer", "Try again")
            progress(what, done, of)

        return super().publish(draft, told)


def test_after_a_cut_anywhere_nothing_is_visible_and_the_next_run_publishes_the_same(
    source: Path, tmp_path: Path
) -> None:
    expected = out(source, tmp_path / "whole", "1.0.0")
    hub = Cut(tmp_path / "hub")
    hub.left = [0, 3, 7]
    for _ in hub.left[:]:
        with pytest.raises(StoreError):
            published(source, NAME, "1.0.0", hub, FIELDS)
        assert hub.versions("org/pack") == {}
        assert not list((source / RUN).glob("*publication*"))
    assert published(source, NAME, "1.0.0", hub, FIELDS) == expected
    assert verify(snapshot(tmp_path / "hub", expected)).problems == ()


def _killed(source: Path, hub: Path, after: int) -> None:
    count = 0

    def told(what: str, done: int, of: int) -> None:
        nonlocal count
        count += 1
        if count > after:
            os.kill(os.getpid(), signal.SIGKILL)

    published(source, NAME, "1.0.0", StoreHub(hub), FIELDS, progress=told)


@pytest.mark.parametrize("after", [0, 5, 14])
def test_a_killed_publication_leaves_nothing_visible_and_what_it_left_is_swept(
    source: Path, tmp_path: Path, after: int
) -> None:
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(source, tmp_path / "hub", after))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert StoreHub(tmp_path / "hub").versions("org/pack") == {}
    assert list((source / RUN).glob("publication-*"))
    done = out(source, tmp_path / "hub", "1.0.0")
    assert verify(snapshot(tmp_path / "hub", done)).problems == ()
    assert not list((source / RUN).glob("publication-*"))


def test_the_place_of_a_living_publication_is_left_alone(source: Path) -> None:
    with workplace(source) as one, workplace(source) as two:
        assert one != two
        assert one.is_dir()
    assert not one.exists()


def test_a_catalog_that_may_only_be_read_can_be_published(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publishing._held_folder

    def refused(parent: Path) -> object:
        if parent == source / RUN:
            raise PermissionError(13, "read only")
        return made(parent)

    monkeypatch.setattr(publishing, "_held_folder", refused)
    assert out(source, tmp_path / "hub", "1.0.0").revision is not None


def test_a_catalog_in_a_distant_store_is_published_as_any_other(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    small_catalog(url, chunks=1)  # type: ignore[arg-type]
    shutil.rmtree(tmp_path / "cache")
    done = out(url, tmp_path / "hub", "1.0.0")  # type: ignore[arg-type]
    assert verify(snapshot(tmp_path / "hub", done)).problems == ()


def test_a_full_disk_is_said_in_plain_words(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing, "arrange", full)
    with pytest.raises(CatalogError, match="no space left"):
        out(source, tmp_path / "hub", "1.0.0")


class Wrong(StoreHub):
    """A hub whose version before is another pack's."""

    def versions(self, repository: str) -> dict[Version, str]:
        own = super().versions("org/other")
        return own if repository == "org/pack" else super().versions(repository)


def test_a_version_before_that_is_of_another_pack_is_refused(source: Path, tmp_path: Path) -> None:
    other = replace(NAME, name="other")
    done = published(source, other, "1.0.0", StoreHub(tmp_path / "hub"), FIELDS)
    root = tmp_path / "hub" / "datasets" / "org"
    (root / "pack" / "snapshots").mkdir(parents=True)
    (root / "pack" / "snapshots" / str(done.revision)).symlink_to(root / "other" / "snapshots" / str(done.revision))
    with pytest.raises((CatalogError, InputError)):
        published(source, NAME, "1.1.0", Wrong(tmp_path / "hub"), FIELDS)


def test_what_is_told_while_publishing_comes_to_its_end(source: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    out(source, tmp_path / "hub", "1.0.0", progress=lambda *step: told.append(step))
    arranging = [(done, of) for what, done, of in told if what == "arranging"]
    assert [done for done, _ in arranging] == sorted(done for done, _ in arranging)
    assert all(0 <= done <= of for _, done, of in told)
    assert json.dumps(told)
