"""Packs are fetched once, whole or in parts, and taken from the cache ever after, without a hub to ask."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import catalog.hub.opening
from catalog.hub import pieces
from catalog.hub.contract import Hub
from catalog.hub.names import PackName
from catalog.reader import Catalog
from catalog.store import StoreError
from catalog.verify import verify
from flows.direction_pack import DirectionPack
from flows.pack_cache import cache_folder
from pipeline.errors import CatalogError, InputError, NotFoundError
from tests.catalog.packs import Fails, FolderHub, chunks_of_pack, write_pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack `org/pack`, version 1.0.0; not to be changed."""
    return write_pack(tmp_path_factory.mktemp("cached") / "pack", chunks_of_pack(8, ("mouth", "hair")))


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FolderHub]:
    """A hub of that pack in place of every other, and an empty cache."""
    monkeypatch.setenv("RHUMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pieces, "AGAIN", ())
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # guards against power cuts, which no test makes
    made = FolderHub(folder)

    def opened(name: PackName, **_: Any) -> Hub:
        return made

    monkeypatch.setattr(catalog.hub.opening, "open_hub", opened)
    yield made


def unreachable(what: str) -> None:
    raise StoreError("hub", "no connection", "an answer")


def never(what: str) -> None:
    raise AssertionError(f"the hub was asked for {what}")


def test_a_version_is_pulled_once_and_then_opened_without_asking_anybody(hub: FolderHub) -> None:
    first = DirectionPack.from_pretrained("org/pack", revision="v1.0.0", region="mouth")
    assert {entry.region for entry in first.entries()} == {"mouth"}
    assert first.name == "org/pack@1.0.0"
    assert cache_folder() in first.catalog.folder.parents
    hub.own.before = never
    again = DirectionPack.from_pretrained("org/pack@1.0.0", region=["mouth"])
    assert again.entries() == first.entries()
    assert again.catalog.folder == first.catalog.folder


@pytest.mark.parametrize("wanted", ["", ">=1,<2", "v1.0.0"])
@pytest.mark.parametrize("name", ["org/pack", "hubs/org/pack", "s3://hubs/org/pack"])
def test_without_a_connection_the_newest_that_is_meant_comes_from_the_cache(
    hub: FolderHub, wanted: str, name: str
) -> None:
    DirectionPack.from_pretrained(name)
    hub.own.before = unreachable
    assert DirectionPack.from_pretrained(name, revision=wanted).entries()
    with pytest.raises(NotFoundError, match="1.0.0"):
        DirectionPack.from_pretrained(name, revision=">=2")
    with pytest.raises(StoreError):
        DirectionPack.from_pretrained(name, region="hair")


@pytest.mark.parametrize("wanted", ["", ">=1,<2"])
def test_a_newer_version_of_which_only_the_name_is_known_does_not_hide_the_cached_one(
    hub: FolderHub, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = DirectionPack.from_pretrained("org/pack", region="mouth").entries()
    hub._version, hub.away = hub._version.parse("1.1.0"), True  # as its client's cache tells them
    hub.own.before = lambda what: None if what == "versions" else unreachable(what)
    found = DirectionPack.from_pretrained("org/pack", revision=wanted, region="mouth")
    assert (found.name, found.entries()) == ("org/pack@1.0.0", expected)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.own.before = never
    assert DirectionPack.from_pretrained("org/pack", revision=wanted, region="mouth").name == "org/pack@1.0.0"


def test_a_hub_that_is_lost_while_a_newer_version_comes_leaves_the_cached_one_with_a_warning(hub: FolderHub) -> None:
    DirectionPack.from_pretrained("org/pack", region="mouth")
    hub._version = hub._version.parse("1.1.0")
    hub.own.before = lambda what: None if what == "versions" else unreachable(what)
    with pytest.warns(UserWarning, match=r"1\.1\.0 could not be pulled, so 1\.0\.0 is used .*no connection"):
        assert DirectionPack.from_pretrained("org/pack", region="mouth").name == "org/pack@1.0.0"
    with pytest.raises(StoreError):
        DirectionPack.from_pretrained("org/pack", revision=">1.0", region="mouth")


def test_parts_and_hubs_and_versions_are_kept_apart(hub: FolderHub, folder: Path) -> None:
    asked: list[dict[str, Any]] = [
        {}, {"region": "mouth"}, {"region": ("mouth", "hair")}, {"space": "h"}, {"kind": "local"},
        {"dataset": "random"}, {"prototypes": True}, {"previews": True},
    ]  # fmt: skip
    folders = {DirectionPack.from_pretrained("org/pack", **one).catalog.folder for one in asked}
    folders.add(DirectionPack.from_pretrained("hubs/org/pack").catalog.folder)
    assert len(folders) == len(asked) + 1
    with Catalog.open(folder) as whole:
        for one, pulled in zip(asked, (DirectionPack.from_pretrained("org/pack", **one) for one in asked), strict=True):
            equals = {key: value for key, value in one.items() if key in ("region", "space", "kind", "dataset")}
            expected = {key.decode() for key in whole.ids()[whole.select(**equals)]}
            found = {entry.id for entry in pulled.entries(concepts=False)}
            assert found == (set() if one.get("prototypes") else expected)
    hub._version = hub._version.parse("1.0.1")  # the same bytes under another tag
    with pytest.raises(CatalogError):
        DirectionPack.from_pretrained("org/pack", revision="v1.0.1")


def test_previews_come_only_when_they_are_asked_for(hub: FolderHub) -> None:
    without = DirectionPack.from_pretrained("org/pack")
    key = without.entries()[0].id
    with pytest.raises(NotFoundError, match="preview"):
        without.preview(key)
    assert DirectionPack.from_pretrained("org/pack", previews=True).preview(key).size == (48, 16)


def test_prototypes_come_alone_with_all_that_applies_them(hub: FolderHub) -> None:
    prototypes = DirectionPack.from_pretrained("org/pack", prototypes=True)
    assert {entry.what for entry in prototypes.entries()} == {"prototype"}
    whole = DirectionPack.from_pretrained("org/pack")
    assert set(prototypes.entries()) == {entry for entry in whole.entries() if entry.what == "prototype"}
    assert prototypes.catalog.manifest.rows("directions") < whole.catalog.manifest.rows("directions")
    assert all(prototypes.home_of(entry.id) == whole.home_of(entry.id) for entry in prototypes.entries())
    assert prototypes.vector(prototypes.search()[0].id).shape in ((3, 16, 16), (4, 4, 4))


def test_a_pull_that_was_cut_off_leaves_nothing_that_passes_for_a_pack(hub: FolderHub) -> None:
    hub.own.before = Fails(4, times=10**6)
    with pytest.raises(StoreError):
        DirectionPack.from_pretrained("org/pack", region="mouth")
    assert not list(cache_folder().rglob("manifest.json"))
    hub.own.before = lambda what: None
    assert DirectionPack.from_pretrained("org/pack", region="mouth").entries()


def test_who_asks_while_another_pulls_waits_and_nothing_is_fetched_twice(hub: FolderHub) -> None:
    told: list[str] = []
    hub.own.before = told.append
    with ThreadPoolExecutor(4) as pool:
        packs = list(pool.map(lambda _: DirectionPack.from_pretrained("org/pack", region="mouth"), range(4)))
    assert len({pack.catalog.folder for pack in packs}) == 1
    assert all(pack.entries() == packs[0].entries() for pack in packs)
    assert told.count("manifest") == 1
    assert len(set(hub.own.read_spans)) == len(hub.own.read_spans)


@pytest.mark.parametrize("damage", ["shorter", "missing", "manifest"])
def test_what_was_damaged_in_the_cache_is_fetched_again(hub: FolderHub, damage: str) -> None:
    pulled = DirectionPack.from_pretrained("org/pack", revision="v1.0.0")
    expected, folder = pulled.entries(), pulled.catalog.folder
    victim = folder / "manifest.json" if damage == "manifest" else next((folder / "directions").iterdir())
    content = victim.read_bytes()
    victim.unlink()
    if damage != "missing":
        victim.write_bytes(content[:-1])
    assert DirectionPack.from_pretrained("org/pack", revision="v1.0.0").entries() == expected


@pytest.mark.parametrize("table", ["directions", "concepts"])
def test_bytes_that_changed_in_the_cache_are_found_when_they_are_read_and_fetched_again(
    hub: FolderHub, table: str
) -> None:
    sound = DirectionPack.from_pretrained("org/pack", revision="v1.0.0", region="mouth")
    entries = sound.entries()
    vectors = [sound.vector(entry.id) for entry in entries]
    for place in (0.5, 0.99):
        for path in (sound.catalog.folder / table).iterdir():
            content = bytearray(path.read_bytes())
            content[int(len(content) * place)] ^= 255
            path.write_bytes(content)
        again = DirectionPack.from_pretrained("org/pack", revision="v1.0.0", region="mouth")
        assert all(map(np.array_equal, (again.vector(entry.id) for entry in entries), vectors))
        assert all(again.effect(entry.id).any() for entry in entries)
        assert again.entries() == entries
    assert verify(again.catalog.folder).ok
    path.write_bytes(path.read_bytes()[::-1])
    hub.own.before = unreachable
    shutil.rmtree(cache_folder().parent / "pieces")
    lost = DirectionPack.from_pretrained("org/pack", revision="v1.0.0", region="mouth")
    with pytest.raises(CatalogError, match=f"{lost.catalog.folder}: found a damaged copy of org/pack 1.0.0.*no con"):
        for entry in entries:
            lost.vector(entry.id)


def test_a_catalog_of_ones_own_that_is_damaged_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "own")
    shard = next((tmp_path / "own" / "directions").iterdir())
    shard.write_bytes(shard.read_bytes()[::-1])
    with pytest.raises(CatalogError, match=shard.name):
        DirectionPack.from_pretrained(tmp_path / "own").entries()
    assert shard.exists()


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache in which nothing may be made from now on."""
    make, access, cache = os.mkdir, os.access, tmp_path / "cache"

    def refuse(path: str | Path, *told: Any, **more: Any) -> None:
        if cache in (Path(path), *Path(path).parents):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        make(path, *told, **more)

    def denied(path: str | Path, mode: int, **more: Any) -> bool:
        return Path(path) != cache and access(path, mode, **more)

    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(os, "access", denied)
    return cache


def test_where_the_cache_cannot_be_written_packs_are_kept_for_as_long_as_the_process_lives(
    hub: FolderHub, read_only: Path
) -> None:
    found = DirectionPack.from_pretrained("org/pack", region="mouth")
    assert found.entries()
    assert not read_only.exists()
    hub.own.before = lambda what: None if what == "versions" else never(what)
    assert DirectionPack.from_pretrained("org/pack", region="mouth").catalog.folder == found.catalog.folder


def test_a_cache_that_can_only_be_read_is_read(hub: FolderHub, request: pytest.FixtureRequest) -> None:
    kept = DirectionPack.from_pretrained("org/pack", region="mouth").catalog.folder
    request.getfixturevalue("read_only")
    hub.own.before = lambda what: None if what == "versions" else never(what)
    assert DirectionPack.from_pretrained("org/pack", region="mouth").catalog.folder == kept


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (None, {}),
        (3, {}),
        ("x" * 5000, {}),
        ("org/pack", {"revision": None}),
        ("org/pack", {"region": ""}),
        ("org/pack", {"region": ("mouth", "x" * 300)}),
        ("pack", {}),
        ("org/../pack", {}),
        ("org/pack\0", {}),
        ("org/pack", {"revision": "newest"}),
        ("org/pack", {"region": "no\nse"}),
        ("org/pack", {"space": "y"}),
        ("org/pack", {"region": 3}),
    ],
)
def test_a_name_that_can_be_none_is_refused_before_anything_is_asked(
    hub: FolderHub, name: Any, options: dict[str, Any]
) -> None:
    hub.own.before = never
    with pytest.raises(InputError):
        DirectionPack.from_pretrained(name, **options)
    assert not cache_folder().exists()


def test_a_region_that_a_pack_does_not_have_is_told(hub: FolderHub) -> None:
    with pytest.raises(NotFoundError, match="nose"):
        DirectionPack.from_pretrained("org/pack", region="nose")


def test_a_folder_has_no_versions(folder: Path) -> None:
    with pytest.raises(InputError, match="revision: found v1.0.0"):
        DirectionPack.from_pretrained(folder, revision="v1.0.0")


def test_a_cache_that_cannot_be_written_is_named(
    hub: FolderHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RHUMB_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="RHUMB_CACHE: found .*file"):
        DirectionPack.from_pretrained("org/pack")
