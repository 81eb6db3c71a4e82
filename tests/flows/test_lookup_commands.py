"""`rhumb similar`, `homogeneity` and `concepts` on a small mined catalog."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from catalog.concepts import load_concepts
from catalog.reader import Catalog
from tests.flows import tiny

Capture = pytest.CaptureFixture[str]


def answer(capsys: Capture, *arguments: object) -> dict[str, Any]:
    assert tiny.run(*arguments, "--json") == 0
    found = tiny.parsed(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def refusal(capsys: Capture, *arguments: object) -> str:
    assert tiny.run(*arguments) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def catalog(mined: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the mined catalog, with its indexes and concepts."""
    folder = tmp_path_factory.mktemp("lookups") / "catalog"
    shutil.copytree(mined / "catalog", folder)
    assert tiny.run("index", folder, "--json") == 0
    assert tiny.run("concepts", folder, "--build", "--json") == 0
    return folder


@pytest.fixture(scope="module")
def direction(catalog: Path) -> str:
    with Catalog.open(catalog) as opened:
        return str(opened.directions(region="eye", kind="local", rank=0).column("direction_id").to_pylist()[0])


def test_pages_of_an_answer_join_and_say_whether_there_is_more(catalog: Path, direction: str, capsys: Capture) -> None:
    whole = answer(capsys, "similar", catalog, direction, "--by", "both", "-k", 50)
    assert whole["more"] is False
    ids = [row["direction_id"] for row in whole["similar"]]
    assert len({row["image_id"] for row in whole["similar"]}) == len(ids) == 4
    first = answer(capsys, "similar", catalog, direction, "--by", "both", "-k", 3)
    rest = answer(capsys, "similar", catalog, direction, "--by", "both", "-k", 3, "--offset", 3)
    assert (first["more"], rest["more"], rest["offset"]) == (True, False, 3)
    assert [row["direction_id"] for page in (first, rest) for row in page["similar"]] == ids
    assert tiny.run("similar", catalog, direction, "-k", 2) == 0
    assert "--offset 2" in capsys.readouterr().out


def test_filters_may_be_repeated_and_join(catalog: Path, direction: str, capsys: Capture) -> None:
    asked = ("similar", catalog, direction, "-k", 99, "--by", "effect")
    found = answer(capsys, *asked, "--kind", "local", "--kind", "individual", "--region", "mouth")
    with Catalog.open(catalog) as opened:
        own = opened.rows([direction], ["image_id"])[0]["image_id"]
        others = opened.select(kind=["local", "individual"], region="mouth") & ~opened.select(image_id=own)
        named = {row["direction_id"] for row in found["similar"]} | {k for r in found["similar"] for k in r["others"]}
        assert found["among"] == int(others.sum()) == len(named)
        assert {row["region"] for row in opened.rows(sorted(named), ["region"])} == {"mouth"}
    own_too = answer(capsys, *asked, "--same-image", "--image", own[:8])
    assert {row["image_id"] for row in own_too["similar"]} == {own}
    assert "expected one of eye, mouth" in refusal(capsys, *asked, "--region", "nose")
    assert "expected at least 0" in refusal(capsys, *asked, "--offset", -1)


def test_one_direction_is_compared_with_every_other_image(catalog: Path, direction: str, capsys: Capture) -> None:
    found = answer(capsys, "homogeneity", catalog, "--direction", direction[:10], "--by", "both")["homogeneity"]
    assert (found["direction_id"], found["images"], len(found["nearest"])) == (direction, 4, 4)
    agreeing = {n["image_id"] for n in found["nearest"]} - set(found["disagreeing"])
    assert found["agreement"] == len(agreeing) / 4
    assert tiny.run("homogeneity", catalog, "--direction", direction) == 0
    assert "images agree" in capsys.readouterr().out
    assert "one of the two" in refusal(capsys, "homogeneity", catalog)
    assert "one of the two" in refusal(capsys, "homogeneity", catalog, "--region", "eye", "--direction", direction)


def test_concepts_are_built_listed_and_named_in_a_region_s_answer(catalog: Path, capsys: Capture) -> None:
    listed = answer(capsys, "concepts", catalog)
    with Catalog.open(catalog) as opened:
        known = {c.concept_id: c for c in load_concepts(opened)}
    assert listed["total"] == len(known)
    assert {c["concept_id"] for c in listed["concepts"]} == set(known)
    for row in listed["concepts"]:
        assert len(row["members"]) == len(row["signs"]) == len(known[row["concept_id"]].members)
        assert len(row["disagreeing"]) >= row["of_images"] - row["images"]
    for region in ("eye", "mouth"):
        of_region = answer(capsys, "concepts", catalog, "--region", region)
        assert {c["region"] for c in of_region["concepts"]} <= {region}
        of_answer = answer(capsys, "homogeneity", catalog, "--region", region)["concepts"]
        assert {c["concept_id"] for c in of_answer} <= {c["concept_id"] for c in of_region["concepts"]}
    again = answer(capsys, "concepts", catalog, "--build", "--region", "eye")
    assert {c["concept_id"] for c in again["concepts"]} == {c for c in known if known[c].region == "eye"}
    assert answer(capsys, "concepts", catalog)["total"] == len(known)
    assert tiny.run("concepts", catalog, "-k", 1) == 0
    assert "expected one of eye, mouth" in refusal(capsys, "concepts", catalog, "--region", "nose")


@pytest.mark.parametrize("asked", [("-k", 0), ("-k", -1), ("--offset", -3), ("--build", "--seed", -1)])
def test_counts_and_seeds_below_their_least_are_refused(
    catalog: Path, asked: tuple[object, ...], capsys: Capture
) -> None:
    before = (catalog / "manifest.json").read_bytes()
    option = next(part for part in asked if part != "--build")
    assert f"{option}: found" in refusal(capsys, "concepts", catalog, *asked)
    assert (catalog / "manifest.json").read_bytes() == before


def test_without_concepts_it_says_how_to_build_them(mined: Path, capsys: Capture) -> None:
    assert "--build" in refusal(capsys, "concepts", mined / "catalog")
    assert tiny.run("homogeneity", mined / "catalog", "--region", "eye") == 0
    assert "--build" in capsys.readouterr().out


def test_every_answer_can_be_looked_at(catalog: Path, direction: str, tmp_path: Path, capsys: Capture) -> None:
    asked = {
        "similar": ("similar", catalog, direction, "-k", 3),
        "direction": ("homogeneity", catalog, "--direction", direction),
        "region": ("homogeneity", catalog, "--region", "mouth"),
        "concepts": ("concepts", catalog, "-k", 5),
    }
    for name, arguments in asked.items():
        target = tmp_path / f"{name}.png"
        assert answer(capsys, *arguments, "--picture", target)["picture"] == str(target)
        with Image.open(target) as picture:
            shown = np.asarray(picture)
        assert shown.shape[2] == 3
        assert shown.shape[0] >= 128
        assert shown.std() > 5
        again = tmp_path / "again.png"
        answer(capsys, *arguments, "--picture", again)
        assert again.read_bytes() == target.read_bytes()
    rows = 1 + 3
    with Image.open(tmp_path / "similar.png") as picture:
        assert picture.height >= rows * 64
    for wrong in (tmp_path / "a.jpg", tmp_path / "none" / "a.png", tmp_path):
        assert "--picture" in refusal(capsys, *asked["similar"], "--picture", wrong)
