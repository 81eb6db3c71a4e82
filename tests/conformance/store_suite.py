"""What every store of catalogs must do; inherit it with a fixture `store`, an empty one."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from catalog.store import Store
from pipeline.errors import CatalogError, NotFoundError


class StoreSuite:
    """Operations are whole or not at all, and names stay inside."""

    def test_what_was_put_reads_back_by_every_way(self, store: Store, tmp_path: Path) -> None:
        source = tmp_path / "draft"
        source.write_bytes(b"rows" * 1000)
        store.put("directions/one.parquet", source)
        store.replace("manifest.json", b"first")
        store.replace("manifest.json", b"second")
        assert store.read("manifest.json") == b"second"
        assert store.size("directions/one.parquet") == 4000
        assert store.sha256("directions/one.parquet") == hashlib.sha256(b"rows" * 1000).hexdigest()
        store.fetch("directions/one.parquet", tmp_path / "fetched")
        store.lend("directions/one.parquet", tmp_path / "lent")
        assert (tmp_path / "fetched").read_bytes() == (tmp_path / "lent").read_bytes() == b"rows" * 1000

    def test_a_copy_leaves_the_first_and_replaces_what_stood_there(self, store: Store) -> None:
        store.replace(".incoming/job/work/a", b"new")
        store.replace("images/a", b"old")
        store.copy([(".incoming/job/work/a", "images/a"), (".incoming/job/work/a", "images/b")])
        assert store.list("images") == ["images/a", "images/b"]
        assert store.read("images/a") == store.read("images/b") == store.read(".incoming/job/work/a") == b"new"

    def test_a_piece_is_what_was_asked_for_or_an_error(self, store: Store) -> None:
        store.replace("directions/one", b"0123456789")
        assert store.read_range("directions/one", 3, 4) == b"3456"
        assert store.read_range("directions/one", 10, 0) == b""
        with pytest.raises(CatalogError, match="directions/one.*expected 4 bytes"):
            store.read_range("directions/one", 8, 4)
        with pytest.raises(NotFoundError):
            store.read_range("directions/two", 0, 4)

    def test_what_is_kept_is_compared_and_has_second_names(self, store: Store, tmp_path: Path) -> None:
        source = tmp_path / "shard"
        source.write_bytes(b"rows")
        sha256 = hashlib.sha256(b"rows").hexdigest()
        store.keep(f"blobs/{sha256}", source, sha256)
        store.keep("blobs/again", b"rows", sha256)
        assert source.read_bytes() == store.read("blobs/again") == b"rows"
        for _ in range(2):
            store.link([(f"blobs/{sha256}", "snapshots/a/one"), ("blobs/again", "snapshots/b/two")])
        assert store.read("snapshots/a/one") == store.read("snapshots/b/two") == b"rows"
        with pytest.raises(CatalogError, match="changed while being copied"):
            store.keep("blobs/other", source, "0" * 64)
        assert len(store.list()) == 4

    def test_folders_are_named_without_what_is_below_or_hidden(self, store: Store) -> None:
        for name in ("a/b/c/d", "a/e", "a/.hidden/f", "a/g/h"):
            store.replace(name, b"x")
        assert store.folders("a") == ["b", "g"]
        assert store.folders("x") == []

    def test_of_many_who_create_one_file_one_succeeds_and_may_say_so_twice(self, store: Store) -> None:
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda i: store.put_if_absent("v/1.json", b"%d" % i), range(8)))
        assert won.count(True) == 1
        assert store.read("v/1.json") == b"%d" % won.index(True)
        assert store.put_if_absent("v/1.json", b"%d" % won.index(True))
        assert not store.put_if_absent("v/1.json", b"another")

    def test_lists_name_all_below_and_deleting_leaves_the_others(self, store: Store) -> None:
        assert store.list() == store.list("a") == []
        for name in ("a/b/c", "a/d", ".hidden/e", "ab/f"):
            store.replace(name, b"x")
        assert store.list() == [".hidden/e", "a/b/c", "a/d", "ab/f"]
        assert store.list("a") == ["a/b/c", "a/d"]
        assert store.sizes(["a/d", "a/x", "a"]) == {"a/d": 1, "a/x": None, "a": None}
        store.delete(["a/b/c", "a/x", "a/d"])
        store.delete([])
        assert store.list() == [".hidden/e", "ab/f"]
        assert not store.exists("a/d")
        assert store.exists("ab/f")

    def test_a_missing_file_is_named(self, store: Store, tmp_path: Path) -> None:
        for ask in (
            lambda: store.read("not/there"),
            lambda: store.sha256("not/there"),
            lambda: store.fetch("not/there", tmp_path / "x"),
            lambda: store.copy([("not/there", "images/a")]),
        ):
            with pytest.raises(NotFoundError, match="not/there"):
                ask()
        assert store.list() == []

    @pytest.mark.parametrize("name", ["../up", "/etc/x", "a/../../b", "a//b", "", ".", "a/..", "a\\b", "a\0", "-x"])
    def test_no_name_leaves_the_store(self, store: Store, name: str) -> None:
        for ask in (
            lambda: store.read(name),
            lambda: store.replace(name, b""),
            lambda: store.put_if_absent(name, b""),
            lambda: store.copy([("manifest.json", name)]),
            lambda: store.delete([name]),
        ):
            with pytest.raises(CatalogError, match="name in the store"):
                ask()
        assert store.list() == []

    def test_drafts_are_gone_afterwards_whatever_happens(self, store: Store) -> None:
        with pytest.raises(KeyboardInterrupt), store.drafts(".incoming/job") as folder:
            (folder / "half").write_bytes(b"x")
            raise KeyboardInterrupt
        assert not folder.exists()
        assert store.list() == []
