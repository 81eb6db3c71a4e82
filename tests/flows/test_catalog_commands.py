"""`rhumb catalog ...` on small catalogs: answers for people and for programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog.index import build_indexes
from catalog.writer import CatalogWriter
from flows.cli import main
from tests.catalog.samples import chunk_of, provenance

GOLDEN = Path(__file__).parents[1] / "catalog" / "golden"
ONE, TWO = chunk_of("chunk-1", 1, ("mouth",)), chunk_of("chunk-2", 1, ("hair",))


@pytest.fixture
def catalogs(tmp_path: Path) -> Path:
    for name, chunks in (("one", [ONE]), ("two", [TWO]), ("both", [ONE, TWO])):
        with CatalogWriter.create(tmp_path / name, provenance(name)) as writer:
            for chunk in chunks:
                writer.commit(chunk)
    build_indexes(tmp_path / "both")
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    assert main([str(a) for a in arguments] + ["--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_info_tells_how_a_catalog_is_stored(catalogs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "catalog", "info", catalogs / "both")
    assert {t["table"]: t["rows"] for t in found["tables"]} == {"directions": 10, "images": 2, "regions": 2}
    x, h = sorted(found["vectors"], key=lambda v: v["space"], reverse=True)
    assert (x["codec"], x["shape"], h["rows"]) == ("dct", [3, 16, 16], 2)
    assert x["bytes_each"] * x["smaller"] == pytest.approx(4 * 768)
    assert [i["current"] for i in found["indexes"]] == [True] * 3
    assert main(["catalog", "info", str(catalogs / "one")]) == 0
    text = capsys.readouterr().out
    assert "times smaller" in text
    assert "chunk" not in text


def test_diff_tells_what_a_later_catalog_adds_and_ends_with_1(
    catalogs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, "catalog", "diff", catalogs / "one", catalogs / "both", code=1)
    assert found["added"]["directions"] == sorted(d.direction_id for d in TWO.directions)
    assert not found["same"]
    assert told(capsys, "catalog", "diff", catalogs / "one", catalogs / "one")["same"]
    assert main(["catalog", "diff", str(catalogs / "both"), str(catalogs / "one")]) == 1
    assert f"- direction {TWO.directions[0].direction_id}" in capsys.readouterr().out


def test_a_published_version_is_compared_by_its_name(catalogs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = f"{catalogs}/hub/org/pack"
    assert main(["publish", str(catalogs / "both"), repository, "--version", "1.0.0", "--licence", "cc0-1.0"]) == 0
    capsys.readouterr()
    pack = f"{repository}@1.0.0"
    assert told(capsys, "catalog", "diff", catalogs / "both", pack)["same"]
    assert told(capsys, "catalog", "info", pack)["pack"] == "org/pack 1.0.0"
    assert main(["catalog", "info", f"{catalogs}/hub/org/pack@2.0.0"]) == 2


def test_merge_and_compact_keep_all(catalogs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = catalogs / "merged"
    merged = told(capsys, "catalog", "merge", catalogs / "one", catalogs / "two", "--out", out)
    assert merged["rows"]["directions"] == 10
    done = told(capsys, "catalog", "compact", out)
    assert (done["shards"], done["shards_before"]) == (3, 6)
    assert not told(capsys, "catalog", "diff", out, catalogs / "both", code=0)["changed"]
    assert main(["catalog", "merge", str(catalogs / "one"), "--out", str(catalogs / "x")]) == 2


@pytest.mark.parametrize("name", ["chosen.npz", "chosen.safetensors"])
def test_export_writes_what_was_chosen(catalogs: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = catalogs / name
    place = (catalogs / "both", "--region", "mouth", "--space", "x")
    assert told(capsys, "catalog", "export", *place, "--out", out)["directions"] == 4
    key = TWO.directions[0].direction_id
    assert told(capsys, "catalog", "export", catalogs / "both", key, "--out", out)["directions"] == 1
    if name.endswith("npz"):
        assert np.load(out, allow_pickle=False)["x"].shape == (1, 3, 16, 16)
    assert main(["catalog", "export", str(catalogs / "both"), "--out", str(catalogs / "x.pt")]) == 2
    assert main(["catalog", "export", str(catalogs / "both"), key, "--region", "hair", "--out", str(out)]) == 2


@pytest.mark.parametrize("size", ["nan", "inf", "1e400", "0", "-3"])
def test_shards_of_no_size_are_refused(catalogs: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", "compact", str(catalogs / "both"), "--shard-size", size]) == 2
    assert "--shard-size" in capsys.readouterr().err


def test_info_of_a_catalog_without_rows_or_of_version_1_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CatalogWriter.create(tmp_path / "empty", provenance()).close()
    assert main(["catalog", "info", str(tmp_path / "empty")]) == 0
    assert "format: 2" in capsys.readouterr().out
    old = shutil.copytree(GOLDEN / "v1", tmp_path / "old")
    assert told(capsys, "catalog", "info", old)["format"] == "1"


def test_status_of_a_recipe_and_a_model_without_names_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nameless = provenance().model_copy(update={"recipe": {}})
    with CatalogWriter.create(tmp_path / "c", nameless) as writer:
        writer.commit(ONE)
    assert main(["status", str(tmp_path / "c")]) == 0
    assert "no name" in capsys.readouterr().out
