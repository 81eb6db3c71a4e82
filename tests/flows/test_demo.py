"""`rhumb demo`: the whole walk, on the built-in data and on a stranger's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import flows.miner
from catalog.verify import verify
from tests.flows import tiny

LEFT = ("catalog", "hub", "pulled", "report")


def left_by(out: Path) -> list[str]:
    return sorted(entry.name for entry in out.iterdir())


def test_the_built_in_demo_leaves_catalog_hub_pack_page_and_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.yaml"
    method = {
        "timestep": 0.35, "inversion_steps": 4, "tolerance": 0.5, "loco": {"rank": 1, "null_rank": 1},
        "jive": {"rank": 1, "joint_rank": 1, "individual_rank": 1}, "edit": {"steps": 2},
    }  # fmt: skip
    content = {"name": "small", "dataset": {"kind": "builtin", "limit": 2}, "regions": ["mouth"], "method": method}
    path.write_text(yaml.safe_dump(content))
    out = tmp_path / "demo"
    assert tiny.run("demo", "--out", out, "--recipe", path, "--json") == 0
    done = tiny.parsed(capsys.readouterr().out)
    assert left_by(out) == list(LEFT)
    assert done["images"] == 2
    assert done["directions"] == 10
    assert set(done["seconds"]) == {"mine", "index", "publish", "pull", "verify", "report"}
    page = (out / "report" / "index.html").read_text()
    assert len(page) > 10_000
    with Image.open(out / "report" / "contact-sheet.png") as sheet:
        assert np.asarray(sheet).std() > 0
    assert verify(out / "catalog").ok
    assert verify(out / "pulled").ok
    assert (out / "hub" / "datasets" / "rhumb" / "faces64-demo" / "refs" / "tags" / "v1.0.0").is_file()


def test_a_demo_run_again_keeps_what_is_published(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)
    asked = ("demo", "--out", world / "demo", "--recipe", world / "recipe.yaml")
    assert tiny.run(*asked) == 0
    assert "open " in capsys.readouterr().out
    pack = tiny.tree(world / "demo" / "pulled")
    assert tiny.run(*asked) == 0
    assert tiny.tree(world / "demo" / "pulled") == pack


def test_a_demo_whose_catalog_grew_after_publication_says_so(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)
    whole = (world / "photos" / "b.jpg").read_bytes()
    (world / "photos" / "b.jpg").write_bytes(b"")
    asked = ("demo", "--out", world / "demo", "--recipe", world / "recipe.yaml")
    assert tiny.run(*asked) == 0
    (world / "photos" / "b.jpg").write_bytes(whole)
    capsys.readouterr()
    assert tiny.run(*asked) == 2
    assert "published versions never change" in capsys.readouterr().err


def test_a_strangers_grey_noise_predicting_model_and_photographs_go_all_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.model(tmp_path / "model", prediction="epsilon", channels=1)
    tiny.photographs(tmp_path, count=4)
    path = tiny.recipe(tmp_path, model)
    out = tmp_path / "demo"
    assert tiny.run("demo", "--out", out, "--recipe", path, "--limit", 2, "--json") == 0
    assert left_by(out) == list(LEFT)
    assert tiny.run("status", out / "pulled", "--json") == 0
    text = capsys.readouterr().out
    assert '"images": 2' in text
    assert verify(out / "pulled").ok
    ids = tiny.direction_ids(out / "pulled", kind=["local", "individual"])
    picture = tmp_path / "photos" / "d.png"
    directions = [part for key in ids[:2] for part in ("--direction", f"{key}=1.5")]
    at = ("--image", picture, "--model", model)  # where it lies here, a pack does not tell
    assert tiny.run("edit", out / "pulled", *at, *directions, "--out", tmp_path / "edited.png") == 0
    assert tiny.run("transfer", out / "pulled", *at, "--region", "eye") == 0
    assert tiny.run("similar", out / "pulled", ids[0]) == 0
    assert (out / "report" / "contact-sheet.png").stat().st_size > 0
    assert (tmp_path / "edited.png").is_file()
