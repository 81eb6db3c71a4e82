from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flows.datasets.builtin import BuiltinSource
from flows.datasets.contract import image_id
from flows.datasets.dataset import Dataset, fit_mask, load_dataset
from flows.datasets.folder import find_masks
from flows.datasets.pictures import shown_name
from flows.recipe import parse_recipe
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


def load_folder(root: Path, *regions: str, shape: tuple[int, int, int] = SHAPE, **keys: Any) -> Dataset:
    dataset = {"kind": "folder", "path": str(root / "photos"), "masks": str(root / "masks"), **keys}
    return load(dataset, regions or ("eye",), shape)


def load(dataset: dict[str, Any], regions: Any, shape: tuple[int, int, int] = SHAPE) -> Dataset:
    regions = list(regions) if isinstance(regions, tuple) else regions
    return load_dataset(parse_recipe({"name": "a", "dataset": dataset, "regions": regions}), shape)


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


def test_a_mask_of_another_aspect_fails_its_image_alone_with_both_sizes(photos: Path) -> None:
    left_half((48, 32)).save(photos / "masks" / "a" / "eye.png")
    loaded = load_folder(photos)
    assert [image.source for image in loaded.images] == ["b.webp"]
    assert "48 x 32 pixels; expected its image's size, 32 x 32" in loaded.failures[0].reason


def test_a_missing_an_empty_and_a_broken_mask_skip_that_region_only(photos: Path) -> None:
    left_half().save(photos / "masks" / "a_mouth.png")
    Image.new("L", (32, 32), 0).save(photos / "masks" / "b_mouth.png")
    first, second = load_folder(photos, "eye", "mouth").images
    assert set(first.masks) == {"eye", "mouth"}
    assert set(second.masks) == {"eye"}
    assert second.skipped == {"mouth": "the mask of mouth is empty at 16 x 16 pixels"}
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
    with pytest.raises(InputError, match="dataset.path: found .*not a folder"):
        load_folder(photos, path=str(photos / "nowhere"))
    with pytest.raises(InputError, match="dataset.masks: found .*not a folder"):
        load_folder(photos, masks=str(photos / "nowhere"))
    for file in (photos / "photos").iterdir():
        file.unlink()
    (photos / "photos" / "notes.txt").write_text("none here")
    with pytest.raises(InputError, match="no images in"):
        load_folder(photos)


def test_a_folder_without_masks_is_refused_with_the_reason(photos: Path) -> None:
    with pytest.raises(InputError, match="regions: found eye; expected one of the regions with masks: none"):
        load_folder(photos, masks=None)


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
    loaded = load_folder(photos, limit=1)
    assert loaded.count() == 1
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
    loaded = load({"kind": "builtin", "limit": 3}, ("left_eye", "hair"), (3, 64, 64))
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
    with pytest.raises(InputError, match=r"found left_eyes; expected one of .*left_eye.* Did you mean 'left_eye'"):
        load({"kind": "builtin"}, ("left_eyes",))
    with pytest.raises(NotFoundError, match="mine.parquet"):
        BuiltinSource("faces64", "mine", tmp_path)


def test_unprintable_file_names_are_shown_escaped() -> None:
    assert shown_name("Screen Shot 9.41\u202fPM.png") == "Screen Shot 9.41\\u202fPM.png"
    assert len(shown_name("a" * 240 + ".png")) == 200


def test_a_grey_map_of_labels_gives_regions_by_name_and_by_value(photos: Path) -> None:
    (photos / "maps").mkdir()
    labels = np.zeros((32, 32), dtype=np.uint8)
    labels[:16], labels[16:, 16:] = 3, 7
    Image.fromarray(labels).save(photos / "maps" / "a.png")
    maps = {"masks": None, "label_maps": str(photos / "maps"), "labels": {"sky": 3}}
    loaded = load(
        {"kind": "folder", "path": str(photos / "photos"), **maps},
        {"top": {"labels": ["sky"]}, "corner": {"labels": [7]}, "both": {"labels": ["sky", 7]}},
    )
    first = loaded.images[0]
    assert np.array_equal(first.masks["top"], np.arange(16)[:, None] < np.full((16, 16), 8))
    assert np.array_equal(first.masks["both"], first.masks["top"] | first.masks["corner"])
    assert [failure.source for failure in loaded.failures] == ["b.webp"]
    with pytest.raises(InputError, match="found skyy; expected one of the data set's labels: sky. Did you mean 'sky'"):
        load({"kind": "folder", "path": str(photos / "photos"), **maps}, {"top": {"labels": ["skyy"]}})


def test_unions_take_the_parts_that_are_there_and_grow_by_pixels(photos: Path) -> None:
    right = Image.fromarray(255 - np.asarray(left_half()))
    right.save(photos / "masks" / "a_right.png")
    wide = Image.new("L", (32, 32), 0)
    wide.paste(255, (0, 0, 8, 32))
    wide.save(photos / "masks" / "b_strip.png")
    first, second = load_folder(photos, "eye").images
    regions = {
        "any": ["eye", "strip"],
        "grown": {"parts": ["strip"], "dilate": 2},
        "shrunk": {"parts": ["eye"], "dilate": -1},
    }
    one, two = load_folder_with(photos, regions).images
    assert np.array_equal(one.masks["any"], first.masks["eye"])
    assert one.skipped == {"grown": "no mask of strip"}
    assert two.masks["grown"].sum() == 6 * 16
    assert two.masks["shrunk"].sum() == second.masks["eye"].sum() - 16
    assert list(two.masks) == ["any", "grown", "shrunk"]


def load_folder_with(photos: Path, regions: Any, **keys: Any) -> Dataset:
    return load({"kind": "folder", "path": str(photos / "photos"), "masks": str(photos / "masks"), **keys}, regions)


def test_boxes_polygons_and_templates_need_no_annotation(photos: Path) -> None:
    left_half((64, 64)).save(photos / "left.png")
    regions = {
        "box": {"box": [0.0, 0.0, 1.0, 0.5]},
        "corner": {"polygon": [[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]]},
        "own": {"template": str(photos / "left.png")},
        "mouth": {"template": "mouth"},
    }
    image = load({"kind": "folder", "path": str(photos / "photos")}, regions).images[0]
    assert image.masks["box"][:8].all() and not image.masks["box"][8:].any()
    assert np.array_equal(image.masks["own"], np.asarray(left_half((16, 16))) > 0)
    assert np.array_equal(image.masks["corner"], image.masks["box"] & image.masks["own"])
    assert 0 < image.masks["mouth"].sum() < 20
    for wrong, match in (
        ({"box": [0.5, 0.0, 0.5, 1.0]}, "regions.r.box"),
        ({"polygon": [[0, 0], [1, 1]]}, "regions.r.polygon"),
        ({"template": "mouht"}, "regions.r.template"),
    ):
        with pytest.raises(InputError, match=match):
            load({"kind": "folder", "path": str(photos / "photos")}, {"r": wrong})


@pytest.mark.parametrize("crop", ["center", "none", [0.25, 0.0, 0.75, 1.0]])
def test_masks_follow_every_crop_of_their_pictures(photos: Path, crop: Any) -> None:
    wide = np.zeros((32, 64), dtype=np.uint8)
    wide[:, 24:56] = 255
    Image.fromarray(wide).save(photos / "photos" / "a.png")
    Image.fromarray(wide).save(photos / "masks" / "a" / "eye.png")
    image = load_folder(photos, resize={"crop": crop, "filter": "nearest"}).images[0]
    assert np.array_equal(image.masks["eye"], image.image[..., 0] > 127)
    assert image.source_size == (64, 32)


def test_another_crop_is_another_data_set_and_other_images(photos: Path) -> None:
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8))
    wide.save(photos / "photos" / "a.png")
    left_half((64, 32)).save(photos / "masks" / "a" / "eye.png")
    plain, stretched = load_folder(photos), load_folder(photos, resize={"crop": "none"})
    assert plain.fingerprint() != stretched.fingerprint()
    assert plain.images[0].image_id != stretched.images[0].image_id
    with pytest.raises(InputError, match="resize.crop"):
        load_folder(photos, resize={"crop": [0.5, 0.0, 0.5, 1.0]})
    with pytest.raises(InputError, match="dataset.resize.filter: found 'blurred'"):
        load_folder(photos, resize={"filter": "blurred"})


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_together_the_whole_in_any_number(photos: Path, count: int) -> None:
    for seed in range(4):
        picture(seed + 5).save(photos / "photos" / f"x{seed}.png")
        left_half().save(photos / "masks" / f"x{seed}_eye.png")
    whole = load_folder(photos)
    shards = [whole.shard(index, count) for index in range(count)]
    assert sorted(chain.from_iterable(shard.keys() for shard in shards)) == sorted(whole.keys())
    assert [shard.count() for shard in shards] == [len(list(shard)) for shard in shards]
    halves = list(chain.from_iterable(whole.shard(0, 2).shard(index, 2).keys() for index in range(2)))
    assert sorted(halves) == sorted(whole.shard(0, 2).keys())
    with pytest.raises(InputError, match="shard"):
        whole.shard(count, count)


def test_images_are_read_one_at_a_time(photos: Path) -> None:
    items = iter(load_folder(photos))
    first = next(items)
    (photos / "photos" / "b.webp").write_bytes(b"broken since")
    second = next(items)
    assert (first.source, second.source) == ("a.png", "b.webp")
    assert "cannot be read" in getattr(second, "reason", "")


def test_nested_folders_are_taken_with_masks_in_the_same_places(photos: Path) -> None:
    for place in ("photos", "masks"):
        (photos / place / "more").mkdir()
    picture(9).save(photos / "photos" / "more" / "a.png")
    left_half().save(photos / "masks" / "more" / "a_eye.png")
    assert [image.source for image in load_folder(photos).images] == ["a.png", "b.webp"]
    assert [image.source for image in load_folder(photos, nested=True).images] == ["a.png", "b.webp", "more/a.png"]


def test_a_union_goes_on_without_a_part_that_is_not_there_and_not_without_a_broken_one(photos: Path) -> None:
    left_half().save(photos / "masks" / "a_left.png")
    regions = {"both": ["eye", "left"], "left": ["left"]}
    assert {name: mask.sum() for name, mask in load_folder_with(photos, regions).images[0].masks.items()} == {
        "both": 128,
        "left": 128,
    }
    whole = (photos / "masks" / "a" / "eye.png").read_bytes()
    (photos / "masks" / "a" / "eye.png").write_bytes(whole[: len(whole) // 2])
    broken = load_folder_with(photos, regions).images[0]
    assert set(broken.masks) == {"left"}
    assert "mask of eye: cannot be read" in broken.skipped["both"]
    left_half((48, 32)).save(photos / "masks" / "a" / "eye.png")
    assert "48 x 32 pixels" in load_folder_with(photos, regions).images[0].skipped["both"]
    (photos / "masks" / "a" / "eye.png").unlink()
    assert set(load_folder_with(photos, regions).images[0].masks) == {"both", "left"}


def test_what_no_image_can_have_is_one_error_before_any_image_is_read(photos: Path) -> None:
    folder = {"kind": "folder", "path": str(photos / "photos")}
    with pytest.raises(InputError, match="regions.top.labels: found no label map"):
        load(folder, {"top": {"labels": [3]}})
    left_half((48, 32)).save(photos / "wide.png")
    with pytest.raises(InputError, match="template of own: found 48 x 32 pixels"):
        load(folder, {"own": {"template": str(photos / "wide.png")}})
    with pytest.raises(InputError, match="Did you mean 'left_eye'"):
        load(folder, {"own": {"template": "lefteye"}})
    with pytest.raises(InputError, match="min_share below max_share"):
        load(folder, {"provider": "segments", "min_share": 0.6})
