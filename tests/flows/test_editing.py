"""Pictures in, pictures out: what `rhumb edit` and `rhumb transfer` stand on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catalog.reader import Catalog
from flows.editing import edit_picture, load_picture, model_of, parse_directions, recipe_of, region_mask
from pipeline.errors import InputError, ModelError, NotFoundError
from tests.flows import tiny

SHAPE = (3, 16, 16)


def test_a_photograph_on_its_side_is_edited_upright(tmp_path: Path) -> None:
    upright = Image.new("RGB", (16, 16), "black")
    upright.paste("white", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_picture(tmp_path / "a.png", SHAPE), np.asarray(upright))


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_pictures_that_cannot_be_read_are_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match="--image"):
        load_picture(tmp_path / "a.png", SHAPE)


def test_a_mask_comes_from_its_file_else_from_beside_the_picture_else_from_the_catalog(
    mined: Path, tmp_path: Path
) -> None:
    size = (32, 32)
    tiny.photograph(3, size).save(tmp_path / "new.png")
    pixels = load_picture(tmp_path / "new.png", SHAPE)
    with Catalog.open(mined / "catalog") as catalog:
        mean = region_mask(catalog, None, tmp_path / "new.png", "eye", pixels)
        assert mean.dtype == bool
        assert mean.any()
        tiny.box(size, (0, 0, 0.5, 1)).save(tmp_path / "new_eye.png")
        beside = region_mask(catalog, None, tmp_path / "new.png", "eye", pixels)
        assert np.array_equal(beside, np.arange(16)[None, :].repeat(16, 0) < 8)
        tiny.box(size, (0, 0, 1, 0.5)).save(tmp_path / "given.png")
        given = region_mask(catalog, tmp_path / "given.png", tmp_path / "new.png", "eye", pixels)
        assert np.array_equal(given, beside.T)
        with pytest.raises(InputError, match="one of eye, mouth"):
            region_mask(catalog, None, tmp_path / "new.png", "nose", pixels)


def test_strengths_of_one_direction_add_up_and_prefixes_are_enough(mined: Path) -> None:
    key, other = tiny.direction_ids(mined / "catalog")[:2]
    with Catalog.open(mined / "catalog") as catalog:
        assert parse_directions([f"{key}=1.5", f"{key[:12]}=-0.5", f"{other}=2e0"], catalog) == {key: 1.0, other: 2.0}
        for wrong in (f"{key}=", "=1", key, f"{key}=nan", f"{key}=1=x"):
            with pytest.raises(InputError):
                parse_directions([wrong], catalog)
        with pytest.raises(NotFoundError):
            parse_directions([f"{'0' * 32}=1"], catalog)


def test_the_recipe_of_a_catalog_is_the_one_it_was_mined_with(mined: Path) -> None:
    with Catalog.open(mined / "catalog") as catalog:
        recipe = recipe_of(catalog)
    assert (recipe.name, recipe.regions, recipe.method.loco.null_rank) == ("tiny", tiny.REGIONS, 2)


def test_another_model_is_refused_by_its_fingerprint(mined: Path, tmp_path: Path, tiny_model: Path) -> None:
    with Catalog.open(mined / "catalog") as catalog:
        moved = shutil.copytree(tiny_model, tmp_path / "moved")
        denoiser, settings = model_of(catalog, str(moved))
        assert denoiser.info.image_shape == SHAPE
        assert settings.decode.steps == 2
        with pytest.raises(ModelError, match="fingerprint"):
            model_of(catalog, str(tiny.model(tmp_path / "other", seed=5)))


@pytest.mark.parametrize("space", ["x", "h"])
def test_opposite_strengths_pull_a_picture_in_opposite_ways(mined: Path, tmp_path: Path, space: str) -> None:
    key = tiny.direction_ids(mined / "catalog", space=space, kind="singular")[0]
    image = mined / "photos" / "c.png"
    pictures = []
    for strength in (-2, 0, 2):
        done = edit_picture(mined / "catalog", image, [f"{key}={strength}"], tmp_path / "out.png")
        assert (done.change_rms == 0) == (strength == 0)
        with Image.open(tmp_path / "out.png") as written:
            pictures.append(np.asarray(written).astype(int))
    minus, plus = pictures[0] - pictures[1], pictures[2] - pictures[1]
    assert np.abs(plus).max() > 0
    assert (minus * plus).sum() < 0


def test_an_edit_replaces_an_older_one_and_leaves_no_other_file(mined: Path, tmp_path: Path) -> None:
    key = tiny.direction_ids(mined / "catalog", space="x")[0]
    for strength in (1, 2):
        edit_picture(mined / "catalog", mined / "photos" / "a.png", [f"{key}={strength}"], tmp_path / "out.png")
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize("out", ["out.jpg", "no/out.png", "."])
def test_an_edit_goes_to_a_png_in_a_folder_that_exists(out: str, mined: Path, tmp_path: Path) -> None:
    key = tiny.direction_ids(mined / "catalog")[0]
    with pytest.raises(InputError, match="--out"):
        edit_picture(mined / "catalog", mined / "photos" / "a.png", [f"{key}=1"], tmp_path / out)
    assert list(tmp_path.iterdir()) == []
