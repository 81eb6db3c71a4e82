"""The commands on a pack that came without pictures: they go on without, and say so in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from catalog.index import build_indexes
from catalog.reader import Catalog
from catalog.schema import LEFT_OUT
from catalog.verify import verify
from flows.editing import edit_picture
from flows.watching.run_sheet import sheet_of
from tests.catalog.published import PART, ids_of, published
from tests.flows import tiny

Capture = pytest.CaptureFixture[str]
NO_PREVIEWS = "previews are left out of this pack: the contact sheet shows effects alone"
NO_MASKS = "masks are left out of this pack: directions are"


@pytest.fixture(scope="module")
def bare(mined: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mined catalog without any picture, with its indexes and concepts."""
    folder = tmp_path_factory.mktemp("bare")
    published(mined / "catalog", folder / "c", LEFT_OUT)
    build_indexes(folder / "c")
    assert tiny.run("concepts", folder / "c", "--build", "--json") == 0
    assert verify(folder / "c").problems == ()
    return folder / "c"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A picture with its mask of the eye beside it."""
    tiny.photograph(9, (41, 30)).save(tmp_path / "new.png")
    tiny.box((41, 30), tiny.BOXES["eye"]).save(tmp_path / "new_eye.png")
    return tmp_path / "new.png"


def said(capsys: Capture, *arguments: object) -> str:
    assert tiny.run(*arguments) == 0
    return capsys.readouterr().out


def answer(capsys: Capture, *arguments: object) -> Any:
    return json.loads(said(capsys, *arguments, "--json"))


def test_info_and_status_name_what_is_left_out_and_what_it_is_a_part_of(
    mined: Path, bare: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert "left out of this pack: effect, image, latent, mask, preview" in said(capsys, "catalog", "info", bare)
    assert answer(capsys, "catalog", "info", bare)["without"] == list(LEFT_OUT)
    part = published(mined / "catalog", tmp_path / "part", part=PART, keep=ids_of(mined / "catalog", region="eye"))
    assert "pack: a part of org/pack 1.2.0" in said(capsys, "catalog", "info", part)
    assert "pack: a part of org/pack 1.2.0" in said(capsys, "status", part)
    assert "left out" not in said(capsys, "catalog", "info", mined / "catalog")


def test_lookups_draw_effects_alone_and_say_that_there_are_no_previews(
    bare: Path, tmp_path: Path, capsys: Capture
) -> None:
    key = ids_of(bare, region="eye", kind="local", space="x")[0]
    asked = {
        "similar": ("similar", bare, key), "nearest": ("homogeneity", bare, "--direction", key),
        "region": ("homogeneity", bare, "--region", "eye"), "concepts": ("concepts", bare),
    }  # fmt: skip
    for name, arguments in asked.items():
        picture = tmp_path / f"{name}.png"
        told = said(capsys, *arguments, "--picture", picture)
        assert told.count(NO_PREVIEWS) == 1, name
        assert (f"{NO_MASKS} compared where they lie" in told) == (name == "nearest")
        with Image.open(picture) as drawn:
            assert drawn.size[1] > 30
        assert NO_PREVIEWS not in said(capsys, *arguments)
    assert NO_PREVIEWS in answer(capsys, *asked["similar"], "--picture", tmp_path / "x.png")["remarks"]


def test_an_edit_of_a_new_picture_takes_directions_alone(
    mined: Path, bare: Path, new: Path, tmp_path: Path, capsys: Capture
) -> None:
    key = ids_of(bare, region="eye", kind="local", space="x")[0]
    edit = ("--image", new, "--direction", f"{key}=3", "--out", tmp_path / "out.png")
    told = said(capsys, "edit", bare, *edit)
    assert told.count(f"{NO_MASKS} applied where they were mined") == 1
    plain = edit_picture(mined / "catalog", new, [f"{key}=3"], tmp_path / "plain.png", shift=False)
    lean = edit_picture(bare, new, [f"{key}=3"], tmp_path / "lean.png")
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "lean.png").read_bytes()
    assert (plain.remarks, len(lean.remarks), lean.shifts) == ((), 1, {key: None})
    new.with_name("new_eye.png").unlink()
    assert NO_MASKS not in said(capsys, "edit", bare, *edit)


def test_a_prototype_is_applied_without_pictures_and_from_a_part_that_has_its_medoid_alone(
    mined: Path, new: Path, tmp_path: Path, capsys: Capture
) -> None:
    whole = published(mined / "catalog", tmp_path / "whole")
    concept = answer(capsys, "concepts", whole, "--build", "-k", 1)["concepts"][0]
    lean = published(whole, tmp_path / "part", LEFT_OUT, PART, keep=[concept["medoid"]])
    assert verify(lean).problems == ()
    wanted = [f"{concept['concept_id']}=3"]
    edit_picture(lean, new, wanted, tmp_path / "lean.png")
    edit_picture(whole, new, wanted, tmp_path / "whole.png", shift=False)
    assert (tmp_path / "lean.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


def test_transfer_asks_for_the_pictures_own_mask_and_says_what_it_goes_by(
    bare: Path, new: Path, capsys: Capture
) -> None:
    found = answer(capsys, "transfer", bare, "--image", new, "--region", "eye", "-k", 3)
    assert len(found["candidates"]) == 3
    assert found["shifted"] is False
    assert all(candidate["mask_iou"] is None for candidate in found["candidates"])
    told = said(capsys, "transfer", bare, "--image", new, "--region", "eye", "--no-predict")
    assert told.count("left out of this pack") == 2
    new.with_name("new_eye.png").unlink()
    assert tiny.run("transfer", bare, "--image", new, "--region", "eye") == 2
    error = capsys.readouterr().err
    assert "the catalog's own masks are left out of this pack" in error
    assert "put new_eye.png beside the picture" in error


def test_a_report_has_figures_and_says_why_it_has_no_pictures(bare: Path, tmp_path: Path, capsys: Capture) -> None:
    sentence = "latents and masks are left out of this pack: the report has figures, and no pictures of edits"
    assert said(capsys, "report", bare, "--out", tmp_path / "report").count(sentence) == 1
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count(sentence) >= 3  # at the head, and for each of two regions
    assert "No directions were kept" not in page
    assert "How local they are" in page
    assert (tmp_path / "report" / "contact-sheet.png").is_file()


def test_a_report_goes_without_previews_alone(mined: Path, tmp_path: Path, capsys: Capture) -> None:
    lean = published(mined / "catalog", tmp_path / "c", ["effect", "image", "preview"])
    assert "left out of this pack" not in said(capsys, "report", lean, "--out", tmp_path / "report")
    assert "data:image/png" in (tmp_path / "report" / "index.html").read_text()


def test_exports_and_sheets_of_runs_need_no_pictures(bare: Path, tmp_path: Path, capsys: Capture) -> None:
    assert "wrote" in said(capsys, "catalog", "export", bare, "--region", "eye", "--out", tmp_path / "eye.npz")
    assert np.load(tmp_path / "eye.npz", allow_pickle=False)["x"].shape[1:] == (3, 16, 16)
    with Catalog.open(bare) as catalog:
        assert sheet_of(catalog, "title", "headline") is None


def test_concepts_of_a_part_are_shown_with_the_members_that_are_there(
    mined: Path, tmp_path: Path, capsys: Capture
) -> None:
    whole = published(mined / "catalog", tmp_path / "whole")
    listed = answer(capsys, "concepts", whole, "--build", "-k", 99)["concepts"]
    medoids = [concept["medoid"] for concept in listed]
    part = published(whole, tmp_path / "part", part=PART, keep=medoids)
    assert verify(part).problems == ()
    told = said(capsys, "concepts", part, "--picture", tmp_path / "c.png")
    assert told.count("a part of org/pack 1.2.0: members may be missing") == 1
    of_part = answer(capsys, "concepts", part, "-k", 99)["concepts"]
    assert [concept["members"] for concept in of_part] == [concept["members"] for concept in listed]
