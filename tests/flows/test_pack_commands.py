"""The commands about packs, as a user types them, on a local hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from catalog.concepts import load_concepts
from catalog.hub.hugging_face import HuggingFaceHub
from catalog.reader import Catalog
from catalog.store import StoreError
from catalog.verify import verify
from pipeline.errors import InputError
from tests.catalog.local_hub import versions
from tests.catalog.samples import chunk_of, small_catalog
from tests.flows import tiny

Capture = pytest.CaptureFixture[str]
LICENCE = ("--licence", "cc0-1.0")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub with org/pack 1.0.0 and 1.1.0, the second of more chunks."""
    root = tmp_path_factory.mktemp("packs")
    for chunks, version in ((1, "1.0.0"), (2, "1.1.0")):
        small_catalog(root / version, chunks)
        command = ("publish", root / version, root / "hub" / "org" / "pack", "--version", version, *LICENCE)
        assert tiny.run(*command) == 0
    return root / "hub"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHUMB_CACHE", str(tmp_path / "cache"))


def answer(capsys: Capture, *arguments: Any, code: int = 0) -> Any:
    capsys.readouterr()
    assert tiny.run(*arguments, "--json") == code
    return tiny.parsed(capsys.readouterr().out)


def refused(capsys: Capture, *arguments: Any) -> str:
    capsys.readouterr()
    assert tiny.run(*arguments) == 2
    (said,) = [line for line in tiny.lines(capsys.readouterr().err) if line.startswith("rhumb")]
    return said


def test_the_newest_version_of_a_range_is_pulled_into_a_folder_of_its_name(
    hub: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = answer(capsys, "pull", f"{hub}/org/pack@>=1,<1.1")
    assert (done["version"], Path(done["folder"])) == ("1.0.0", Path("pack"))
    assert verify(tmp_path / "pack").ok
    again = answer(capsys, "pull", f"{hub}/org/pack@1.0.0")
    assert again["new_bytes"] == 0
    assert answer(capsys, "pull", f"{hub}/org/pack", "--out", "newest")["version"] == "1.1.0"


def test_a_part_is_pulled_and_searched_and_merged(hub: Path, tmp_path: Path, capsys: Capture) -> None:
    asked = ("--region", "mouth", "--kind", "singular", "--without", "preview", "--without", "image")
    done = answer(capsys, "pull", f"{hub}/org/pack", *asked, "--out", tmp_path / "part")
    with Catalog.open(tmp_path / "part") as part:
        rows = part.directions().to_pydict()
        assert set(rows["region"]) == {"mouth"} and set(rows["kind"]) == {"singular"}
        assert part.lacks("preview") and part.lacks("image") and not part.lacks("mask")
        assert done["rows"]["directions"] == len(rows["region"]) > 0
    assert answer(capsys, "verify", tmp_path / "part")["ok"]
    assert answer(capsys, "status", tmp_path / "part")["pack"] == "a part of org/pack 1.1.0"


def test_the_list_names_every_part_and_pulls_nothing(hub: Path, tmp_path: Path, capsys: Capture) -> None:
    found = answer(capsys, "pull", f"{hub}/org/pack", "--list", "--out", tmp_path / "none")
    assert found["versions"] == ["1.0.0", "1.1.0"]
    assert sum(share["rows"] for share in found["shares"]) == found["rows"]["directions"] == 40
    assert {share["region"] for share in found["shares"]} == {"mouth", "hair"}
    assert not (tmp_path / "none").exists()


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(hub: Path, tmp_path: Path, capsys: Capture) -> None:
    small_catalog(tmp_path / "c", 3)
    asked = ("publish", tmp_path / "c", f"{hub}/org/pack", "--version", "1.2.0", *LICENCE)
    dry = answer(capsys, *asked, "--dry-run")
    assert dry["revision"] is None
    assert 0 < dry["new_bytes"] < dry["bytes"]
    assert versions(hub / "org" / "pack") == ["1.0.0", "1.1.0"]
    shutil.copytree(hub, tmp_path / "hub")
    real = answer(capsys, "publish", tmp_path / "c", f"{tmp_path}/hub/org/pack", "--version", "1.2.0", *LICENCE)
    assert (real["new_bytes"], real["new_files"]) == (dry["new_bytes"], dry["new_files"])


def test_outdated_tells_which_pulled_catalogs_have_a_newer_version(hub: Path, tmp_path: Path, capsys: Capture) -> None:
    for version in ("1.0.0", "1.1.0"):
        assert tiny.run("pull", f"{hub}/org/pack", "--version", version, "--out", tmp_path / version) == 0
    found = answer(capsys, "outdated", tmp_path, code=1)["catalogs"]
    assert [(one["version"], one["newest"], one["outdated"]) for one in found] == [
        ("1.0.0", "1.1.0", True), ("1.1.0", "1.1.0", False),
    ]  # fmt: skip
    assert not answer(capsys, "outdated", tmp_path / "1.1.0")["catalogs"][0]["outdated"]
    assert "no pulled catalog" in refused(capsys, "outdated", hub)


def test_search_finds_packs_by_all_of_the_words(hub: Path, capsys: Capture) -> None:
    found = answer(capsys, "search", "pack mouth", "--hub", hub)["packs"]
    assert [(one["repository"], one["versions"]) for one in found] == [("org/pack", ["1.0.0", "1.1.0"])]
    assert answer(capsys, "search", "pack", "cathedral", "--hub", hub)["packs"] == []


@pytest.mark.parametrize(
    "error",
    [InputError("search", "HF_HUB_OFFLINE", "the Hub"), InputError("search", "HTTP 401", "a token"),
     StoreError("search", "no connection", "an answer")],
    ids=["offline", "expired token", "no connection"],
)  # fmt: skip
def test_the_packs_on_this_machine_are_found_whatever_is_wrong_with_the_hub(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(HuggingFaceHub, "find", fail)
    found = answer(capsys, "search", "faces64")["packs"]
    assert [one["repository"] for one in found] == ["builtin/faces64"]
    assert tiny.run("search", "faces64") == 0
    assert str(error) in " ".join(capsys.readouterr().err.split())


def test_two_versions_differ_by_what_was_added(hub: Path, capsys: Capture) -> None:
    found = answer(capsys, "diff", f"{hub}/org/pack@1.0.0", f"{hub}/org/pack@1.1.0", code=1)
    assert len(found["added"]["directions"]) == len(chunk_of("chunk-1").directions)
    assert found["dropped"]["directions"] == found["changed"] == []
    assert answer(capsys, "diff", f"{hub}/org/pack@1.0.0", hub.parent / "1.0.0")["same"]


def test_the_pack_that_comes_along_holds_prototypes_of_every_region_in_both_spaces(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answer(capsys, "pull", "builtin/faces64", "--out", tmp_path / "all")
    assert whole["bytes"] < 10e6
    assert verify(tmp_path / "all").ok
    with Catalog.open(tmp_path / "all") as catalog:
        found = {(concept.region, concept.space) for concept in load_concepts(catalog)}
    regions = {"left_eye", "right_eye", "brows", "nose", "mouth", "hair", "skin", "background"}
    assert found == {(region, space) for region in regions for space in ("x", "h")}
    part = answer(capsys, "pull", "builtin/faces64", "--region", "mouth", "--out", tmp_path / "mouth")
    assert 0 < part["concepts"] < len(found)
    monkeypatch.setenv("RHUMB_CACHE", str(tmp_path / "empty"))
    part = answer(
        capsys, "pull", "builtin/faces64", "--region", "nose", "--without", "preview", "--out", tmp_path / "nose"
    )
    assert 0 < part["new_bytes"] <= 0.2 * whole["new_bytes"]
    assert answer(capsys, "search", "faces64 mouth", "--hub", "builtin")["packs"][0]["repository"] == "builtin/faces64"


def test_a_pack_without_a_licence_is_not_published(hub: Path, tmp_path: Path, capsys: Capture) -> None:
    small_catalog(tmp_path / "c", 1)
    said = refused(capsys, "publish", tmp_path / "c", tmp_path / "hub" / "org" / "pack", "--version", "1.0.0")
    assert "--licence" in said and "nothing was published" in said
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("pull {hub}/org/pack@9.0.0 --out {w}/o", "1.0.0, 1.1.0"),
        ("pull {hub}/org/none --out {w}/o", "none"),
        ("pull {hub}/org/pack --version 1.x --out {w}/o", "a range such as"),
        ("pull {hub}/org/pack --region nose --out {w}/o", "regions hair, mouth"),
        ("publish {hub} {hub}/org/pack --version 1.2.0", "manifest.json"),
        ("publish {c} {hub}/org/pack@1.2.0 --version 1.2.0", "the version apart"),
        ("publish {c} {hub}/org/pack --version 1.1.0 --licence mit", "never change"),
        ("diff {hub}/org/pack {c}", "PACK@X.Y.Z"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_and_leaves_nothing(
    command: str, said: str, hub: Path, tmp_path: Path, capsys: Capture
) -> None:
    asked = command.format(hub=hub, w=tmp_path, c=hub.parent / "1.0.0").split()
    assert said in refused(capsys, *asked)
    assert not (tmp_path / "o").exists()
    assert versions(hub / "org" / "pack") == ["1.0.0", "1.1.0"]
