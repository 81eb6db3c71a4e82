"""Pictures in, pictures out: what `rhumb edit` and `rhumb transfer` stand on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import flows.editing
from catalog.concept_building import build_concepts
from catalog.concepts import load_concepts
from catalog.reader import Catalog
from catalog.writer import CatalogWriter
from flows.edit_settings import recipe_of
from flows.editing import edit_picture, load_picture, model_of, parse_directions, region_mask
from pipeline.editing import Edit
from pipeline.errors import InputError, ModelError, NotFoundError
from pipeline.models.contract import Denoiser
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


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The vectors that edits were made of, in order."""
    vectors: list[torch.Tensor] = []
    original = flows.editing.apply_edits

    def record(denoiser: Denoiser, x: torch.Tensor, t: int, edits: Sequence[Edit], *rest: Any) -> torch.Tensor:
        vectors.extend(edit.vector for edit in edits)
        return original(denoiser, x, t, edits, *rest)

    monkeypatch.setattr(flows.editing, "apply_edits", record)
    return vectors


def home_of(folder: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """A direction's vector as it was mined, and the mask it was mined with."""
    with Catalog.open(folder / "catalog") as catalog:
        row = catalog.direction(key)
        return row.vector, catalog.mask(row.image_id, row.region)


def saved(mask: np.ndarray, file: Path) -> Path:
    Image.fromarray(mask).save(file)
    return file


@pytest.mark.parametrize("space", ["x", "h"])
@pytest.mark.parametrize("beside", [True, False])
def test_a_direction_is_applied_where_the_picture_has_its_region(
    mined: Path, tmp_path: Path, space: str, beside: bool, applied: list[torch.Tensor]
) -> None:
    key = tiny.direction_ids(mined / "catalog", space=space, kind="singular", region="eye")[0]
    vector, home = home_of(mined, key)
    tiny.photograph(3, (16, 16)).save(tmp_path / "new.png")
    mask = saved(np.roll(home, (4, -2), (0, 1)), tmp_path / ("new_eye.png" if beside else "given.png"))
    given = [] if beside else [f"eye={mask}"]
    done = edit_picture(mined / "catalog", tmp_path / "new.png", [f"{key}=2"], tmp_path / "out.png", masks=given)
    assert done.shifts == {key: (-2.0, 4.0)}
    (moved,) = applied
    expected = np.zeros_like(vector)
    expected[:, 4:, :-2] = vector[:, :-4, 2:]  # h is as large as the picture here
    assert np.allclose(moved.numpy(), expected / np.linalg.norm(expected), atol=1e-4)


def test_a_given_mask_goes_before_the_one_beside_the_picture(
    mined: Path, tmp_path: Path, applied: list[torch.Tensor]
) -> None:
    key = tiny.direction_ids(mined / "catalog", space="x", region="eye")[0]
    _, home = home_of(mined, key)
    tiny.photograph(3, (16, 16)).save(tmp_path / "new.png")
    saved(np.roll(home, 5, 0), tmp_path / "new_eye.png")
    given = saved(np.roll(home, 1, 1), tmp_path / "given=1.png")
    done = edit_picture(
        mined / "catalog", tmp_path / "new.png", [f"{key}=2"], tmp_path / "out.png", masks=[f"eye={given}"]
    )
    assert done.shifts == {key: (1.0, 0.0)}


@pytest.mark.parametrize("why", ["home mask", "no mask", "not wanted", "no home mask"])
def test_without_a_shift_not_a_bit_of_a_direction_changes(
    mined: Path, tmp_path: Path, why: str, applied: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tiny.direction_ids(mined / "catalog", space="x", kind="local", region="mouth")[0]
    vector, home = home_of(mined, key)
    tiny.photograph(3, (16, 16)).save(tmp_path / "new.png")
    if why != "no mask":
        saved(home if why == "home mask" else np.roll(home, 3, 1), tmp_path / "new_mouth.png")
    if why == "no home mask":
        rows = Catalog.rows

        def without(catalog: Catalog, *arguments: Any) -> Any:
            return [row | {"region_id": None} for row in rows(catalog, *arguments)]

        monkeypatch.setattr(Catalog, "rows", without)
    done = edit_picture(
        mined / "catalog", tmp_path / "new.png", [f"{key}=2"], tmp_path / "out.png", shift=why != "not wanted"
    )
    assert done.shifts == {key: (0.0, 0.0) if why == "home mask" else None}
    assert [np.array_equal(moved.numpy(), vector) for moved in applied] == [True]


def test_each_of_several_directions_is_shifted_by_its_own_way(mined: Path, tmp_path: Path) -> None:
    eye, mouth = (tiny.direction_ids(mined / "catalog", space="x", kind="local", region=r)[0] for r in tiny.REGIONS)
    tiny.photograph(3, (16, 16)).save(tmp_path / "new.png")
    saved(np.roll(home_of(mined, eye)[1], 2, 1), tmp_path / "new_eye.png")
    asked = (mined / "catalog", tmp_path / "new.png", [f"{mouth}=1", f"{eye}=-1"], tmp_path / "out.png")
    assert edit_picture(*asked).shifts == {mouth: None, eye: (2.0, 0.0)}


def mask_that_is(kind: str, file: Path) -> None:
    if kind == "empty":
        Image.new("L", (16, 16), 0).save(file)
    elif kind == "broken":
        file.write_bytes(b"not a picture")
    else:
        tiny.box((16, 16), (0.8, 0.8, 1, 1)).save(file)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("empty", "eye.png, empty at 16 x 16 pixels; expected white pixels where the eye is"),
        ("broken", "eye.png, which cannot be read as an image"),
        ("far", "mask of eye: found a place so far away .* --no-shift applies the direction as it was mined"),
    ],
)
def test_a_mask_that_is_no_place_to_go_is_refused_and_nothing_written(
    mined: Path, tmp_path: Path, kind: str, expected: str, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tiny.direction_ids(mined / "catalog", space="x", kind="local", region="eye")[0]
    corner = np.zeros(SHAPE, np.float32)
    corner[0, 15, 15] = 1
    if kind == "far":
        monkeypatch.setattr(Catalog, "vector", lambda *_: corner)
    tiny.photograph(3, (16, 16)).save(tmp_path / "new.png")
    (tmp_path / "other").mkdir()
    mask = tmp_path / ("new_eye.png" if beside else "other/eye.png")
    mask_that_is(kind, mask)
    before = tiny.tree(tmp_path)
    asked = (mined / "catalog", tmp_path / "new.png", [f"{key}=1"], tmp_path / "out.png", None)
    masks = () if beside else (f"eye={mask}",)
    with pytest.raises(InputError, match=expected):
        edit_picture(*asked, masks)
    assert tiny.tree(tmp_path) == before
    assert edit_picture(*asked, masks, shift=False).shifts == {key: None}


def test_a_mask_of_the_picture_is_never_written_over(mined: Path, tmp_path: Path) -> None:
    key = tiny.direction_ids(mined / "catalog", region="eye")[0]
    tiny.photograph(3, (16, 16)).save(tmp_path / "new.png")
    tiny.box((16, 16), tiny.BOXES["eye"]).save(tmp_path / "given.png")
    given = [f"eye={tmp_path}/given.png"]
    before = tiny.tree(tmp_path)
    for out, masks in (("given.png", given), ("new_eye.png", given), ("new_eye.png", [])):
        with pytest.raises(InputError, match="An edit keeps its masks"):
            edit_picture(mined / "catalog", tmp_path / "new.png", [f"{key}=1"], tmp_path / out, masks=masks)
    assert tiny.tree(tmp_path) == before


def test_a_concept_is_applied_by_the_first_digits_of_its_id(
    mined: Path, tmp_path: Path, applied: list[torch.Tensor]
) -> None:
    folder = Path(shutil.copytree(mined / "catalog", tmp_path / "catalog"))
    with CatalogWriter.open(folder) as writer, Catalog(folder, writer.manifest) as catalog:
        writer.replace_concepts(build_concepts(catalog, least=1))
    with Catalog.open(folder) as catalog:
        concept = next(c for c in load_concepts(catalog) if c.space == "x" and c.region == "mouth")
    tiny.photograph(3, (16, 16)).save(tmp_path / "new.png")
    done = edit_picture(folder, tmp_path / "new.png", [f"{concept.concept_id[:10]}=2"], tmp_path / "out.png")
    assert done.directions == {concept.concept_id: 2.0}
    assert [np.array_equal(vector.numpy(), concept.vector) for vector in applied] == [True]
    with pytest.raises(NotFoundError, match="id of a concept"):
        edit_picture(folder, tmp_path / "new.png", [f"{'0' * 32}=2"], tmp_path / "out.png")
