"""Packs that are damaged, or made to deceive: refused, with nothing written outside, and no catalog left."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from catalog import manifest as manifests
from catalog.hub.card_safety import check_card
from catalog.hub.parts import Part
from catalog.hub.pulling import pull
from pipeline.errors import CatalogError
from tests.catalog.packs import NAME, FolderHub, chunks_of_pack, files, write_pack

MOUTH = Part(regions=("mouth",))


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("packs") / "pack", chunks_of_pack())


@pytest.fixture
def hub(pack: Path) -> FolderHub:
    return FolderHub(pack)


def test_a_damaged_piece_in_the_cache_is_fetched_once_more(hub: FolderHub, tmp_path: Path) -> None:
    pull(NAME, tmp_path / "one", MOUTH, hub)
    before = files(tmp_path / "one")
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file() and path.suffix != ".held":
            data = bytearray(path.read_bytes())
            for at in (0, len(data) // 2, len(data) - 20):
                data[at] ^= 255
            path.write_bytes(bytes(data))
    pull(NAME, tmp_path / "two", MOUTH, hub)
    assert files(tmp_path / "two") == before


@pytest.fixture
def copy(pack: Path, tmp_path: Path) -> FolderHub:
    return FolderHub(Path(shutil.copytree(pack, tmp_path / "copy")))


@pytest.mark.parametrize("table", ["directions", "images", "regions", "concepts"])
@pytest.mark.parametrize("at", [0.02, 0.5, 0.999])
def test_a_damaged_pack_is_refused_and_leaves_no_catalog(
    copy: FolderHub, tmp_path: Path, table: str, at: float
) -> None:
    manifest = manifests.load(copy.own.folder)
    paths = [p for p in manifest.files if p.startswith(f"{table}/") and (table != "directions" or ".mouth-" in p)]
    for path in paths:
        data = bytearray((copy.own.folder / path).read_bytes())
        data[int(len(data) * at)] ^= 1
        (copy.own.folder / path).write_bytes(bytes(data))
    for part in (None, MOUTH):
        with pytest.raises(CatalogError, match=table):
            pull(NAME, tmp_path / "out", part, copy)
        assert not (tmp_path / "out" / "manifest.json").exists()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_a_file_that_is_missing_or_short_is_refused(copy: FolderHub, tmp_path: Path) -> None:
    path = next(p for p in manifests.load(copy.own.folder).files if p.startswith("directions/") and ".mouth-" in p)
    file = copy.own.folder / path
    file.write_bytes(file.read_bytes()[:-100])
    for part in (None, MOUTH):
        with pytest.raises(CatalogError, match=path):
            pull(NAME, tmp_path / str(bool(part)), part, copy)
    file.unlink()
    for part in (None, MOUTH):
        with pytest.raises(CatalogError, match="missing from the pack"):
            pull(NAME, tmp_path / f"{part is None} again", part, copy)


def forged(copy: FolderHub, change: Any) -> None:
    """Change the manifest of a pack as its publisher could: the checksum is right."""
    value = json.loads((copy.own.folder / "manifest.json").read_text())
    value.pop("checksum")
    change(value)
    text = lambda: (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()  # noqa: E731
    value["checksum"] = hashlib.sha256(text()).hexdigest()
    (copy.own.folder / "manifest.json").write_bytes(text())


def rename(name: str) -> Any:
    def change(value: dict[str, Any]) -> None:
        value["files"][name] = value["files"].pop(value["pictures"]["sheet"])
        value["pictures"]["sheet"] = name

    return change


HOSTILE = {
    "an absolute path": rename("/tmp/pwned.png"),
    "a path upwards": rename("pictures/../../pwned.png"),
    "a hidden file": rename("pictures/.bashrc"),
    "another folder": rename("secrets/pwned.png"),
    "files of another pack": lambda value: value["pack"].update(repository="org/other"),
    "another version": lambda value: value["pack"].update(version="2.0.0"),
    "no pack": lambda value: value.update(pack=None),
    "an absurd size": lambda value: [entry.update(bytes=2**53) for entry in value["files"].values()],
    "absurd rows": lambda value: [entry.update(rows=2**50) for entry in value["files"].values() if entry["rows"]],
    "another file's checksum": lambda value: [entry.update(sha256="0" * 64) for entry in value["files"].values()],
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("part", [None, MOUTH])
def test_a_hostile_pack_is_refused_and_writes_nothing_outside(
    copy: FolderHub, tmp_path: Path, name: str, part: Part | None
) -> None:
    forged(copy, HOSTILE[name])
    (tmp_path / "world").mkdir()
    with pytest.raises(CatalogError):
        pull(NAME, tmp_path / "world" / "out", part, copy)
    assert not (tmp_path / "world" / "out" / "manifest.json").exists()
    assert {path.name for path in (tmp_path / "world").iterdir()} <= {"out"}
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("cache", "copy", "world")) == []


CARDS = (
    "<script>alert(1)</script>", "</SCRIPT src=x>", "<img src=x onerror=alert(1)>", "<a/onclick = 'x'>", "<iframe>",
    "[x](javascript:alert(1))", "[x]( java\tscript:alert(1))", "[x](java&#115;cript:alert(1))", "[x]: data:text/html,x",
    "<a href='JavaScript:x'>", "<javascript:x>", "<svg/onload=x>", "\udcff",
)  # fmt: skip


@pytest.mark.parametrize("card", CARDS)
def test_a_card_with_script_is_refused(copy: FolderHub, tmp_path: Path, card: str) -> None:
    page = f"# A pack\n\n{card}\n".encode(errors="surrogateescape")
    (copy.own.folder / "README.md").write_bytes(page)
    forged(copy, lambda v: v["files"]["README.md"].update(sha256=hashlib.sha256(page).hexdigest(), bytes=len(page)))
    with pytest.raises(CatalogError, match="README.md"):
        pull(NAME, tmp_path / "out", None, copy)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / "out" / "README.md").exists()


def test_a_card_with_what_only_looks_like_script_is_none() -> None:
    for text in ("&lt;script&gt;", "javascript: a study", "a < b and on = 3", "[x](https://a.b/javascript:1)"):
        check_card(f"---\nsize_categories: [n<1K]\n---\n# A pack\n\n{text}\n".encode(), "card")


def test_no_card_takes_long_to_be_looked_at() -> None:
    start = time.perf_counter()
    for piece in ("<", "<a ", " ", " on", "<a on", "&#", "</", "](", "'"):
        check_card((piece * (2**18 // len(piece))).encode(), "card")
    assert time.perf_counter() - start < 10


def test_links_in_the_target_are_refused(hub: FolderHub, tmp_path: Path) -> None:
    pull(NAME, tmp_path / "out", hub=hub)
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(tmp_path / "out" / "directions")
    (tmp_path / "out" / "directions").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CatalogError, match="symbolic link"):
        pull(NAME, tmp_path / "out", hub=hub)
    assert list((tmp_path / "elsewhere").iterdir()) == []
