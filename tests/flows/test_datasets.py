from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flows.datasets import (
    LoadedDataset,
    find_masks,
    fit_mask,
    image_id,
    load_builtin,
    load_dataset,
    shown_name,
)
from flows.datasets import load_folder as load_folder_raw
from flows.recipe import BuiltinDataset, parse_recipe
from pipeline.errors import InputError, NotFoundError
from pipeline.images import fit_image

SHAPE = (3, 16, 16)


def picture(seed: int = 0, size: tuple[int, int] = (32, 32)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def left_half(size: tuple[int, int] = (32, 32)) -> Image.Image:
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    mask[:, : size[0] // 2] = 255
    return Image.fromarray(mask)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "masks" / "a").mkdir(parents=True)
    picture(0).save(tmp_path / "photos" / "a.png")
    picture(1).save(tmp_path / "photos" / "b.webp", lossless=True)
    left_half().save(tmp_path / "masks" / "a" / "eye.png")
    left_half().save(tmp_path / "masks" / "b_eye.png")
    return tmp_path


def load_folder(root: Path, *regions: str, shape: tuple[int, int, int] = SHAPE) -> LoadedDataset:
    return load_folder_raw(root / "photos", root / "masks", regions or ("eye",), shape)


def test_both_mask_layouts_are_found_and_images_come_at_the_models_size(photos: Path) -> None:
    loaded = load_folder(photos)
    assert [image.source for image in loaded.images] == ["a.png", "b.webp"]
    assert loaded.name == "photos"
    for image in loaded.images:
        assert image.image.shape == (16, 16, 3)
        assert image.image.dtype == np.uint8
        assert image.masks["eye"].dtype == bool
        assert image.masks["eye"][:, :8].all()
        assert not image.masks["eye"][:, 8:].any()


def test_an_images_id_comes_from_its_content_and_not_from_its_name_or_place(photos: Path) -> None:
    before = {image.source: image.image_id for image in load_folder(photos).images}
    (photos / "photos" / "a.png").rename(photos / "photos" / "z.png")
    (photos / "masks" / "a").rename(photos / "masks" / "z")
    after = {image.source: image.image_id for image in load_folder(photos).images}
    assert after == {"b.webp": before["b.webp"], "z.png": before["a.png"]}
    assert load_folder(photos).fingerprint() == load_folder(photos).fingerprint()


def test_the_id_depends_on_pixels_shape_and_data_set() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    ids = {image_id("a", pixels), image_id("b", pixels), image_id("a", pixels + 1), image_id("a", pixels[:, ::-1])}
    assert len(ids) == 4
    assert image_id("a", pixels) != image_id("a", pixels.reshape(1, 4, 3))


def test_a_rotated_photograph_is_turned_upright_with_its_mask(photos: Path) -> None:
    upright = Image.new("RGB", (32, 32), "black")
    upright.paste("white", (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to view
    upright.transpose(Image.Transpose.ROTATE_90).save(photos / "photos" / "a.png", exif=exif)
    pixels = next(image for image in load_folder(photos).images if image.source == "a.png").image
    assert (pixels[:7] > 200).all()
    assert (pixels[9:] < 50).all()


def test_wide_pictures_are_cropped_at_the_centre_with_their_masks(photos: Path) -> None:
    wide = Image.new("RGB", (64, 32), "black")
    wide.paste("white", (16, 0, 32, 32))
    wide.save(photos / "photos" / "a.png")
    mask = Image.new("L", (64, 32), 0)
    mask.paste(255, (16, 0, 32, 32))
    mask.save(photos / "masks" / "a" / "eye.png")
    image = load_folder(photos).images[0]
    assert (image.image[:, :7] > 200).all()
    assert image.masks["eye"][:, :8].all()
    assert not image.masks["eye"][:, 8:].any()


def test_a_mask_twice_as_large_as_its_image_fits() -> None:
    mask = fit_mask(left_half((64, 64)), (32, 32), SHAPE, "m.png")
    assert np.array_equal(mask, fit_mask(left_half(), (32, 32), SHAPE, "m.png"))


def test_a_mask_of_another_aspect_is_refused_with_both_sizes(photos: Path) -> None:
    left_half((48, 32)).save(photos / "masks" / "a" / "eye.png")
    with pytest.raises(InputError, match="48 x 32 pixels; expected its image's size, 32 x 32"):
        load_folder(photos)


def test_a_missing_an_empty_and_a_broken_mask_skip_that_region_only(photos: Path) -> None:
    left_half().save(photos / "masks" / "a_mouth.png")
    Image.new("L", (32, 32), 0).save(photos / "masks" / "b_mouth.png")
    first, second = load_folder(photos, "eye", "mouth").images
    assert set(first.masks) == {"eye", "mouth"}
    assert set(second.masks) == {"eye"}
    assert second.skipped == {"mouth": "the mask of mouth is empty"}
    (photos / "masks" / "b_mouth.png").unlink()
    assert load_folder(photos, "eye", "mouth").images[1].skipped == {"mouth": "no mask of mouth"}
    (photos / "masks" / "b_mouth.png").write_bytes(b"not a picture")
    assert "cannot be read" in load_folder(photos, "eye", "mouth").images[1].skipped["mouth"]


def test_a_broken_image_is_recorded_and_the_rest_goes_on(photos: Path) -> None:
    content = (photos / "photos" / "a.png").read_bytes()
    (photos / "photos" / "a.png").write_bytes(content[: len(content) // 2])
    (photos / "photos" / "c.jpg").write_bytes(b"")
    loaded = load_folder(photos)
    assert [image.source for image in loaded.images] == ["b.webp"]
    assert [failure.source for failure in loaded.failures] == ["a.png", "c.jpg"]
    assert all(failure.reason for failure in loaded.failures)
    assert not any(str(photos) in failure.reason for failure in loaded.failures)


def test_the_same_picture_twice_counts_once(photos: Path) -> None:
    picture(0).save(photos / "photos" / "copy.png")
    left_half().save(photos / "masks" / "copy_eye.png")
    loaded = load_folder(photos)
    assert [image.source for image in loaded.images] == ["a.png", "b.webp"]
    assert loaded.failures[0].reason == "the same picture as a.png"


def test_an_unknown_region_names_those_with_masks(photos: Path) -> None:
    with pytest.raises(InputError, match="found nose; expected one of the regions with masks: eye"):
        load_folder(photos, "eye", "nose")


def test_folders_without_images_or_without_any_usable_one_are_refused(photos: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        load_folder_raw(photos / "nowhere", None, ("eye",), SHAPE)
    with pytest.raises(InputError, match="not a folder"):
        load_folder_raw(photos / "photos", photos / "nowhere", ("eye",), SHAPE)
    for file in (photos / "photos").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(InputError, match="no usable image"):
        load_folder(photos)
    for file in (photos / "photos").iterdir():
        file.unlink()
    (photos / "photos" / "notes.txt").write_text("none here")
    with pytest.raises(InputError, match="no images in"):
        load_folder(photos)


def test_a_folder_without_masks_is_refused_with_the_reason(photos: Path) -> None:
    with pytest.raises(InputError, match="regions: found eye; expected one of the regions with masks: none"):
        load_folder_raw(photos / "photos", None, ("eye",), SHAPE)


def test_two_images_of_one_name_and_two_masks_of_one_region_are_refused(photos: Path) -> None:
    left_half().save(photos / "masks" / "a_eye.png")
    with pytest.raises(InputError, match="one mask of eye for a"):
        load_folder(photos)
    (photos / "masks" / "a_eye.png").unlink()
    picture(3).save(photos / "photos" / "a.jpg")
    with pytest.raises(InputError, match="one image per name"):
        load_folder(photos)


def test_a_flat_mask_belongs_to_the_longest_name_that_fits(tmp_path: Path) -> None:
    for name in ("a_eye.png", "a_b_eye.png", "a_left_eye.png", "other_eye.png", "a_.png"):
        left_half().save(tmp_path / name)
    found = find_masks(tmp_path, ["a", "a_b"])
    assert {name: sorted(regions) for name, regions in found.items()} == {"a": ["eye", "left_eye"], "a_b": ["eye"]}


def test_a_limit_takes_the_first_images_by_name(photos: Path) -> None:
    loaded = load_folder_raw(photos / "photos", photos / "masks", ("eye",), SHAPE, limit=1)
    assert [image.source for image in loaded.images] == ["a.png"]


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 70), height=st.integers(1, 70), out=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_a_mask_follows_the_same_crop_as_its_image(width: int, height: int, out: tuple[int, int]) -> None:
    shape = (1, *out)
    black_and_white = (np.random.default_rng(width * 71 + height).random((height, width)) < 0.5).astype(np.uint8) * 255
    source = Image.fromarray(black_and_white)
    mask = fit_mask(source, source.size, shape, "m")
    assert mask.shape == out
    assert fit_image(source, shape).shape == (*out, 1)
    if out == (height, width):
        assert np.array_equal(mask, black_and_white > 0)


def test_built_in_images_come_with_masks_and_factors() -> None:
    loaded = load_builtin(BuiltinDataset(kind="builtin", name="faces64", split="mine", limit=3), ("left_eye", "hair"))
    assert len(loaded.images) == 3
    assert loaded.failures == ()
    for image in loaded.images:
        assert image.image.shape == (64, 64, 3)
        assert set(image.masks) == {"left_eye", "hair"}
        assert not (image.masks["left_eye"] & image.masks["hair"]).any()
        assert 0.0 <= image.factors["left_openness"] <= 1.0
        assert image.image_id == image_id("faces64", image.image)


def test_a_built_in_recipe_loads_for_a_smaller_grey_model_too() -> None:
    recipe = parse_recipe(
        {"name": "a", "dataset": {"kind": "builtin", "split": "holdout", "limit": 2}, "regions": ["mouth"]}
    )
    image = load_dataset(recipe, (1, 32, 32)).images[0]
    assert image.image.shape == (32, 32, 1)
    assert image.masks["mouth"].shape == (32, 32)
    with pytest.raises(InputError, match="1 .grey. or 3"):
        load_dataset(recipe, (4, 32, 32))


def test_an_unknown_built_in_region_and_missing_data_are_refused(tmp_path: Path) -> None:
    dataset = BuiltinDataset(kind="builtin")
    with pytest.raises(InputError, match=r"found left_eyes; expected one of .*left_eye"):
        load_builtin(dataset, ("left_eyes",))
    with pytest.raises(NotFoundError, match="mine.parquet"):
        load_builtin(dataset, ("mouth",), folder=tmp_path)


def test_unprintable_file_names_are_shown_escaped() -> None:
    assert shown_name(Path("Screen Shot 9.41\u202fPM.png")) == "Screen Shot 9.41\\u202fPM.png"
    assert len(shown_name(Path("a" * 240 + ".png"))) == 200
