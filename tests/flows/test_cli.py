"""The command line: every command's answer, and one clear error for everything that does not fit."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flows.commands
import flows.miner
from catalog.reader import Catalog
from flows.cli import MODULES, build_parser
from tests.flows import tiny

Capture = pytest.CaptureFixture[str]


def answer(capsys: Capture, *arguments: object, code: int = 0) -> dict[str, object]:
    """The JSON document of a command that must end with `code`."""
    capsys.readouterr()
    assert tiny.run(*arguments, "--json") == code
    document = tiny.parsed(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


@pytest.fixture
def catalog(mined: Path, tmp_path: Path) -> Path:
    """A copy of the session's catalog, to be changed."""
    return Path(shutil.copytree(mined / "catalog", tmp_path / "catalog"))


@pytest.fixture
def direction(mined: Path) -> str:
    with Catalog.open(mined / "catalog") as opened:
        return str(opened.directions(space="x", kind="local", region="eye").column("direction_id")[0])


def test_help_answers_without_loading_a_model_library() -> None:
    code = "import sys, flows.cli as c; c.build_parser().format_help(); print('torch' in sys.modules, len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout.startswith("False"), done.stderr


def test_every_command_that_answers_can_answer_in_json() -> None:
    parser = build_parser()
    text = parser.format_help()
    commands = (
        "demo mine index directions similar homogeneity concepts transfer edit publish pull search outdated diff "
        "verify status report inspect train"
    )
    for name in commands.split():
        assert name in text
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([name, "--no-such-option"])
        assert ended.value.code == 2


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command."""
    (action,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


def test_every_command_argument_and_option_has_a_help_text() -> None:
    silent = [
        f"{name} {action.dest}"
        for name, parser in parsers().items()
        for action in parser._actions
        if not (action.help or "").strip()
    ]
    assert silent == []
    assert all((parser.description or "").strip() for parser in parsers().values())


def test_every_command_has_its_function_and_no_other() -> None:
    for name, parser in parsers().items():
        commands = importlib.import_module(MODULES.get(name, "flows.commands"))
        assert f"`rhumb {name}" in (getattr(commands, name).__doc__ or "")
        if name == "catalog":
            continue  # its actions have options of their own
        assert "--json" in parser._option_string_actions
        parser.format_help()  # a stray % would raise


def test_directions_lists_ids_that_similar_takes(mined: Path, capsys: Capture) -> None:
    found = answer(capsys, "directions", mined / "catalog")
    rows = found["directions"]
    assert isinstance(rows, list)
    assert (found["total"], len(rows)) == (50, 50)
    assert sorted(row["direction_id"] for row in rows) == tiny.direction_ids(mined / "catalog")
    assert {row["source"] for row in rows} == {"a.png", "b.jpg", "c.png", "d.png", "e.tif"}
    assert all(row["gain"] > 0 and row["strength"] > 0 and row["leakage_ratio"] >= 0 for row in rows)
    image = rows[0]["image_id"]
    asked = ("--region", "eye", "--space", "x", "--kind", "local", "--image", image[:8])
    (one,) = answer(capsys, "directions", mined / "catalog", *asked)["directions"]  # type: ignore[misc]
    assert (one["region"], one["space"], one["kind"], one["rank"], one["image_id"]) == ("eye", "x", "local", 0, image)
    assert (
        answer(capsys, "similar", mined / "catalog", one["direction_id"], "-k", 1)["direction"] == one["direction_id"]
    )


def test_directions_says_when_there_are_more_than_it_shows(mined: Path, capsys: Capture) -> None:
    found = answer(capsys, "directions", mined / "catalog", "--kind", "local", "--limit", 3)
    rows = found["directions"]
    assert isinstance(rows, list)
    assert (found["total"], len(rows)) == (10, 3)
    assert tiny.run("directions", mined / "catalog", "--kind", "local", "--limit", 3) == 0
    text = capsys.readouterr().out
    assert "3 of 10 directions (--limit N for more)" in text
    assert all(row["direction_id"] in text for row in rows)
    assert answer(capsys, "directions", mined / "catalog", "--space", "h", "--kind", "local")["total"] == 0


def test_status_says_what_a_catalog_holds(mined: Path, capsys: Capture) -> None:
    found = answer(capsys, "status", mined / "catalog")
    assert (found["images"], found["directions"], found["failed"]) == (5, 50, 0)
    assert found["indexes"] == "effect, h, x"
    table_rows = found["table"]
    assert isinstance(table_rows, list)
    assert {(row["space"], row["kind"]) for row in table_rows} == {
        ("x", "singular"), ("x", "local"), ("h", "singular"), ("h", "joint"), ("h", "individual")
    }  # fmt: skip
    assert tiny.run("status", mined / "catalog") == 0
    assert "individual" in capsys.readouterr().out


def test_index_similar_and_homogeneity_answer_from_the_catalog(catalog: Path, direction: str, capsys: Capture) -> None:
    assert answer(capsys, "index", catalog) == {"x": 20, "h": 30, "effect": 50}
    for by in ("effect", "vector"):
        found = answer(capsys, "similar", catalog, direction[:8], "-k", 3, "--by", by)
        assert found["direction"] == direction
        similar = found["similar"]
        assert isinstance(similar, list)
        assert len(similar) == 3
        assert all(0 <= row["score"] <= 1 and row["sign"] in (-1, 1) for row in similar)
    spread = answer(capsys, "homogeneity", catalog, "--region", "eye")["homogeneity"]
    assert isinstance(spread, list)
    assert [(row["space"], row["kind"], row["images"]) for row in spread] == [("x", "local", 5), ("h", "individual", 5)]
    assert tiny.run("similar", catalog, direction) == 0
    assert tiny.run("homogeneity", catalog, "--region", "mouth") == 0
    text = capsys.readouterr().out
    assert direction[:12] in text
    assert "local" in text


def test_ids_come_out_whole_where_no_terminal_folds_them(mined: Path, direction: str, capsys: Capture) -> None:
    assert tiny.run("similar", mined / "catalog", direction, "-k", 2) == 0
    words = capsys.readouterr().out.split()
    assert sum(len(word) == 32 and set(word) <= set("0123456789abcdef") for word in words) == 2


def test_transfer_ranks_directions_for_a_new_picture(mined: Path, tmp_path: Path, capsys: Capture) -> None:
    size = (41, 30)
    tiny.photograph(9, size).save(tmp_path / "new.png")
    asked = ("transfer", mined / "catalog", "--image", tmp_path / "new.png", "--region", "eye", "-k", 4)
    by_mean_mask = answer(capsys, *asked)["candidates"]
    tiny.box(size, tiny.BOXES["eye"]).save(tmp_path / "new_eye.png")
    by_own_mask = answer(capsys, *asked)["candidates"]
    assert isinstance(by_mean_mask, list)
    assert isinstance(by_own_mask, list)
    assert len(by_mean_mask) == len(by_own_mask) == 4
    scores = [row["score"] for row in by_own_mask]
    assert scores == sorted(scores, reverse=True)
    assert tiny.run(*asked) == 0
    text = capsys.readouterr().out
    assert "transfer candidates" in text
    assert all("{:+.1f}, {:+.1f}".format(*row["shift"]) in text for row in by_own_mask)


def test_publish_pull_and_verify_pass_a_catalog_on(catalog: Path, tmp_path: Path, capsys: Capture) -> None:
    repository = (tmp_path / "hub" / "org" / "pack").as_uri()
    published = answer(capsys, "publish", catalog, repository, "--version", "1.0.0", "--licence", "cc0-1.0")
    assert published["repository"] == "org/pack"
    pulled = answer(capsys, "pull", repository, "--version", "1.0.0", "--out", tmp_path / "pulled")
    assert pulled["rows"] == {"directions": 50, "images": 5, "regions": 10}
    checked = answer(capsys, "verify", tmp_path / "pulled")
    assert (checked["ok"], checked["problems"]) == (True, [])
    assert answer(capsys, "status", tmp_path / "pulled")["pack"] == "org/pack 1.0.0"
    shard = next((tmp_path / "pulled" / "images").glob("*.parquet"))
    shard.chmod(0o644)
    shard.write_bytes(shard.read_bytes()[:-9])
    damaged = answer(capsys, "verify", tmp_path / "pulled", code=1)
    assert damaged["ok"] is False
    assert tiny.run("verify", tmp_path / "pulled") == 1
    assert shard.name in capsys.readouterr().out


def test_edit_writes_a_picture_that_differs_from_its_reconstruction(
    mined: Path, direction: str, tmp_path: Path, capsys: Capture
) -> None:
    asked = ("edit", mined / "catalog", "--image", mined / "photos" / "a.png", "--out", tmp_path / "edited.png")
    done = answer(capsys, *asked, "--direction", f"{direction[:10]}=-3.5")
    assert done["directions"] == {direction: -3.5}
    assert float(str(done["change_rms"])) > 0
    with Image.open(tmp_path / "edited.png") as edited:
        assert (edited.size, edited.mode) == ((16, 16), "RGB")
    nothing = answer(capsys, *asked, "--direction", f"{direction[:10]}=0")
    assert nothing["change_rms"] == 0


def test_edit_says_by_how_much_each_direction_was_shifted(
    mined: Path, direction: str, tmp_path: Path, capsys: Capture
) -> None:
    tiny.photograph(9, (16, 16)).save(tmp_path / "new.png")
    tiny.box((16, 16), (0.5, 0.5, 0.75, 0.75)).save(tmp_path / "given.png")
    asked = ("edit", mined / "catalog", "--image", tmp_path / "new.png", "--out", tmp_path / "edited.png",
             "--direction", f"{direction}=2")  # fmt: skip
    given = ("--mask", f"eye={tmp_path / 'given.png'}")
    assert answer(capsys, *asked)["shifts"] == {direction: None}
    done = answer(capsys, *asked, *given)["shifts"]
    with Catalog.open(mined / "catalog") as opened:
        home = opened.mask(opened.direction(direction).image_id, "eye")
    rows, columns = np.nonzero(home)
    right, down = 9.5 - columns.mean(), 9.5 - rows.mean()
    assert isinstance(done, dict)
    assert done[direction] == pytest.approx([right, down])
    capsys.readouterr()
    for options, said in ((given, f"{right:+.1f}, {down:+.1f}"), ((*given, "--no-shift"), "none"), ((), "none")):
        assert tiny.run(*asked, *options) == 0
        assert capsys.readouterr().out.endswith(f"{direction[:12]} {said}\n")


def test_report_is_one_page_and_one_sheet_without_the_attribute_reader(
    mined: Path, tmp_path: Path, capsys: Capture
) -> None:
    done = answer(capsys, "report", mined / "catalog", "--out", tmp_path / "report")
    assert done["page"] == str(tmp_path / "report" / "index.html")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "Mouth" in page
    with Image.open(tmp_path / "report" / "contact-sheet.png") as sheet:
        assert np.asarray(sheet).std() > 0


def test_inspect_prints_what_a_model_is(tiny_model: Path, capsys: Capture) -> None:
    info = answer(capsys, "inspect", tiny_model)
    assert (info["prediction"], info["image_shape"], info["bottleneck_shape"]) == (
        "v_prediction", [3, 16, 16], [8, 16, 16]
    )  # fmt: skip
    assert tiny.run("inspect", tiny_model) == 0
    assert "3 x 16 x 16" in capsys.readouterr().out


def test_train_resumes_and_leaves_a_model_with_its_evidence(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.training.DenoiserTraining", tiny.small_training)
    monkeypatch.setattr("flows.training.sample_sheet", lambda *_: np.zeros((4, 4, 3), np.uint8))
    asked = ("train", "builtin", "--out", tmp_path / "model", "--work", tmp_path / "work")
    done = answer(capsys, *asked, "--steps", 2)
    assert done["steps"] == 2
    names = {file.name for file in (tmp_path / "model").iterdir()}
    assert names >= {"model_index.json", "training.json", "loss.png", "samples.png", "unet", "scheduler"}
    first = json.loads((tmp_path / "work" / "losses.json").read_text())
    assert answer(capsys, *asked, "--steps", 2)["loss"] == first[-1]
    assert answer(capsys, "inspect", tmp_path / "model")["prediction"] == "v_prediction"
    assert tiny.run(*asked, "--steps", 3) == 2
    assert "training: phases: found" in capsys.readouterr().err


# -- bad input ---------------------------------------------------------------------------------------------------------


def unknown_region(world: Path, model: Path) -> None:
    tiny.recipe(world, model, regions=["eye", "nose"])


def empty_mask(world: Path, model: Path) -> None:
    tiny.recipe(world, model, dataset={"kind": "folder", "path": "photos", "masks": "masks", "limit": 1})
    for region in tiny.REGIONS:
        Image.new("L", (37, 29), 0).save(world / "masks" / f"a_{region}.png")


def masks_of_wrong_size(world: Path, model: Path) -> None:
    tiny.recipe(world, model, dataset={"kind": "folder", "path": "photos", "masks": "masks", "limit": 1})
    for region in tiny.REGIONS:
        Image.new("L", (64, 16), 255).save(world / "masks" / f"a_{region}.png")


def no_images(world: Path, model: Path) -> None:
    for file in (world / "photos").iterdir():
        file.unlink()


def broken_image(world: Path, model: Path) -> None:
    for file in (world / "photos").iterdir():
        file.write_bytes(file.read_bytes()[:30])


def misspelt_key(world: Path, model: Path) -> None:
    path = tiny.recipe(world, model)
    path.write_text(path.read_text().replace("inversion_steps", "inversion_step"))


def large_x_rank(world: Path, model: Path) -> None:
    tiny.recipe(world, model, method={"loco": {"rank": 500, "null_rank": 2}})


def large_null_rank(world: Path, model: Path) -> None:
    tiny.recipe(world, model, method={"loco": {"rank": 1, "null_rank": 766}})


def large_h_rank(world: Path, model: Path) -> None:
    tiny.recipe(world, model, method={"jive": {"rank": 400, "joint_rank": 1, "individual_rank": 1}})


def large_joint_rank(world: Path, model: Path) -> None:
    tiny.recipe(world, model, method={"jive": {"rank": 2, "joint_rank": 6, "individual_rank": 1}})


def large_individual_rank(world: Path, model: Path) -> None:
    tiny.recipe(world, model, method={"jive": {"rank": 2, "joint_rank": 0, "individual_rank": 3}})


def without_weights(world: Path, model: Path) -> None:
    folder = Path(shutil.copytree(model, world / "bare"))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    tiny.recipe(world, folder)


def pointer_weights(world: Path, model: Path) -> None:
    folder = Path(shutil.copytree(model, world / "pointer"))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 4097\n"
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_text(pointer)
    tiny.recipe(world, folder)


def no_model(world: Path, model: Path) -> None:
    tiny.recipe(world, world / "nowhere")


def foreign_folder(world: Path, model: Path) -> None:
    (world / "catalog").mkdir()
    (world / "catalog" / "thesis.tex").write_text("all my work")


def file_in_the_way(world: Path, model: Path) -> None:
    (world / "catalog").write_text("all my work")


BAD: dict[Callable[[Path, Path], None], str] = {
    unknown_region: "regions: found nose; expected one of the regions with masks: eye, mouth",
    empty_mask: "the mask of eye is empty",
    masks_of_wrong_size: "64 x 16 pixels; expected its image's size, 37 x 29",
    no_images: "no images in",
    broken_image: "cannot be read as an image",
    misspelt_key: "Did you mean 'inversion_steps'?",
    large_x_rank: "recipe: method.loco.rank: found 500; expected at most",
    large_null_rank: "recipe: method.loco.null_rank: found 766; expected at most",
    large_h_rank: "recipe: method.jive.rank: found 400; expected at most",
    large_joint_rank: "recipe: method.jive.joint_rank: found 6; expected at most 5",
    large_individual_rank: "recipe: method.jive.individual_rank: found 3; expected at most 2",
    without_weights: "no weights",
    pointer_weights: "a Git-LFS pointer; expected the weights themselves. Run `git lfs pull`",
    no_model: "expected an existing model folder",
    foreign_folder: "a folder with other content and no manifest.json",
    file_in_the_way: "found a file; expected a folder for the catalog",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_mined_is_one_clear_error_and_nothing_is_written(
    spoil: Callable[[Path, Path], None], world: Path, tiny_model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.miner, "mine_image", None)
    spoil(world, tiny_model)
    before = tiny.tree(world)
    assert tiny.run("mine", world / "recipe.yaml", "--out", world / "catalog") == 2
    captured = capsys.readouterr()
    said = tiny.lines(captured.err)
    assert [line for line in said if not line.startswith("mining: 0/")] == said[-1:]
    assert said[-1].startswith("rhumb mine: ")
    assert BAD[spoil] in said[-1]
    assert captured.out == ""
    assert tiny.tree(world) == before


def test_a_folder_of_another_recipe_is_refused_and_left_alone(
    catalog: Path, world: Path, tiny_model: Path, capsys: Capture
) -> None:
    before = tiny.tree(catalog)
    path = tiny.recipe(world, tiny_model, seed=1)
    assert tiny.run("mine", path, "--out", catalog) == 2
    said = tiny.lines(capsys.readouterr().err)[-1]
    assert "recipe: found a catalog of" in said
    assert "Choose another --out" in said
    assert tiny.tree(catalog) == before


COMMANDS = {
    "region without directions": ("directions {c} --region nose", "--region: found nose; expected one of eye, mouth"),
    "no directions": ("directions {c} --limit 0", "--limit: found 0; expected at least 1"),
    "image without directions": ("directions {c} --image ffffffff", "Nearest: "),
    "missing recipe": ("mine {w}/none.yaml --out {w}/new", "which is not a file"),
    "no catalog": ("status {w}/photos", "expected a folder with manifest.json"),
    "no catalog to verify": ("verify {w}/photos", "expected a folder with manifest.json"),
    "unknown id": ("similar {c} ffffffffffff", "Nearest: "),
    "short id": ("similar {c} ff", "at least 6 digits"),
    "no neighbours": ("similar {c} {id} -k 0", "k: found 0; expected at least 1"),
    "unknown region": ("homogeneity {c} --region nose", "--region: found nose; expected one of eye, mouth"),
    "region of a transfer": ("transfer {c} --image {w}/photos/a.png --region nose", "expected one of eye, mouth"),
    "broken picture": ("transfer {c} --image {w}/recipe.yaml --region eye", "expected a readable image file"),
    "broken mask": ("transfer {c} --image {w}/photos/a.png --region eye --mask {w}/recipe.yaml", "--mask: found"),
    "mask of another picture": (
        "transfer {c} --image {w}/photos/a.png --region eye --mask {w}/masks/b/eye.png",
        "31 x 40 pixels; expected its image's size, 37 x 29",
    ),
    "missing picture": ("edit {c} --image {w}/none.png --direction {id}=1 --out {w}/e.png", "No such file"),
    "no strength": ("edit {c} --image {w}/photos/a.png --direction {id} --out {w}/e.png", "ID=STRENGTH"),
    "endless strength": ("edit {c} --image {w}/photos/a.png --direction {id}=inf --out {w}/e.png", "ID=STRENGTH"),
    "no folder for the edit": (
        "edit {c} --image {w}/photos/a.png --direction {id}=1 --out {w}/no/e.png",
        "ending in .png in a folder that exists",
    ),
    "an edit over its original": (
        "edit {c} --image {w}/photos/a.png --direction {id}=1 --out {w}/photos/a.png",
        "An edit keeps its original",
    ),
    "mask of no region": (
        "edit {c} --image {w}/photos/a.png --direction {id}=1 --mask {w}/masks/a_eye.png --out {w}/e.png",
        "expected REGION=PNG, such as mouth=face_mouth.png",
    ),
    "mask of a region without a file": (
        "edit {c} --image {w}/photos/a.png --direction {id}=1 --mask eye= --out {w}/e.png",
        "--mask: found eye=; expected REGION=PNG",
    ),
    "mask of another region": (
        "edit {c} --image {w}/photos/a.png --direction {id}=1 --mask mouth={w}/masks/a_mouth.png --out {w}/e.png",
        "a_mouth.png; expected a region of the chosen directions: eye",
    ),
    "two masks of a region": (
        "edit {c} --image {w}/photos/a.png --direction {id}=1 --mask eye=a.png --mask eye=b.png --out {w}/e.png",
        "--mask: found a.png and b.png; expected one mask of eye",
    ),
    "no mask there": (
        "edit {c} --image {w}/photos/a.png --direction {id}=1 --mask eye={w}/none.png --out {w}/e.png",
        "none.png, which cannot be read as an image",
    ),
    "an edit over its mask": (
        "edit {c} --image {w}/photos/a.png --direction {id}=1 --out {w}/photos/a_eye.png",
        "a_eye.png, a mask of the picture; expected another file",
    ),
    "another model": (
        "edit {c} --image {w}/photos/a.png --direction {id}=1 --out {w}/e.png --model {m}",
        "Use the model the catalog was mined with",
    ),
    "no model there": ("report {c} --out {w}/report --model {w}/none", "expected an existing model folder"),
    "version": ("publish {c} {w}/hub/org/pack --version v1", "a semantic version"),
    "repository": ("publish {c} pack --version 1.0.0", "ORG/NAME for the Hugging Face Hub, or HUB/ORG/NAME"),
    "nothing published": ("pull {w}/hub/org/pack --version 1.0.0 --out {w}/pulled", "no such version"),
    "limit": ("demo --out {w}/demo --limit 0", "--limit: found 0; expected at least 1"),
    "other things": ("demo --out {w}", "expected a new folder or one of an earlier demo"),
    "workers": ("mine {w}/recipe.yaml --out {w}/new --workers 0", "--workers: found 0; expected at least 1"),
    "steps": ("train builtin --steps 0 --out {w}/model", "--steps: found 0; expected at least 1"),
    "unwritable": ("report {c} --out {w}/recipe.yaml", "recipe.yaml"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_every_command_names_what_is_wrong_in_one_line_and_writes_nothing(
    case: str, mined: Path, world: Path, direction: str, other_model: Path, capsys: Capture
) -> None:
    command, expected = COMMANDS[case]
    asked = command.format(c=mined / "catalog", w=world, id=direction, m=other_model).split()
    before = tiny.tree(world)
    assert tiny.run(*asked) == 2
    captured = capsys.readouterr()
    said = [line for line in tiny.lines(captured.err) if line.startswith("rhumb")]
    assert len(said) == 1
    assert expected in said[0]
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert tiny.tree(world) == before


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model(tmp_path_factory.mktemp("other") / "model", seed=1)


def test_skipped_regions_are_named(world: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)
    Image.new("L", (37, 29), 0).save(world / "masks" / "a_mouth.png")
    assert tiny.run("mine", world / "recipe.yaml", "--out", world / "catalog") == 0
    assert "skipped: a.png: the mask of mouth is empty" in capsys.readouterr().out


def test_a_model_beside_its_recipe_is_found_from_any_folder(
    world: Path, tiny_model: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.miner, "mine_image", tiny.quick_mine_image)
    shutil.copytree(tiny_model, world / "models" / "mine")
    path = tiny.recipe(world, Path("models/mine"))
    assert tiny.run("mine", path, "--out", world / "catalog") == 0
    with Catalog.open(world / "catalog") as opened:
        key = opened.directions().column("direction_id")[0].as_py()
    asked = ("edit", world / "catalog", "--image", world / "photos" / "a.png", "--direction", f"{key}=1",
             "--out", world / "e.png")  # fmt: skip
    capsys.readouterr()
    assert tiny.run(*asked) == 2
    assert "name its folder with --model" in capsys.readouterr().err
    assert tiny.run(*asked, "--model", world / "models" / "mine") == 0
