"""Pictures from outside: damaged in any way they are broken items, whose reasons are the same on every run."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import flows.datasets.pictures
from flows.datasets.contract import BrokenImageError
from flows.datasets.pictures import grey_mask, image_from_bytes, label_values, mask_picture, open_image
from pipeline.images import fit_image
from tests.flows.dataset_files import pixels

SHAPE = (3, 8, 8)


def file_of(form: str, exif: Image.Exif | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(1, (30, 20))).save(buffer, form, **({} if exif is None else {"exif": exif}))
    return buffer.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker of cameras"
    return exif


FILES = {form: file_of(form, None if form == "BMP" else turned()) for form in ("JPEG", "PNG", "WEBP", "TIFF", "BMP")}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_exif_block_turns_nothing_and_loses_no_picture(form: str) -> None:
    data = FILES[form]
    assert image_from_bytes(data, "a").size == (20, 30)
    start = data.index(b"MM\x00*")
    buffer = bytearray(data)
    buffer[start + 2 : start + 4] = b"\x00\xeb"
    if form == "PNG":  # its chunks have checksums
        at = data.index(b"eXIf")
        length = int.from_bytes(data[at - 4 : at], "big")
        check = zlib.crc32(bytes(buffer[at : at + 4 + length]))
        buffer[at + 4 + length : at + 8 + length] = check.to_bytes(4, "big")
    picture = image_from_bytes(bytes(buffer), "a")
    assert picture.size == (30, 20)
    assert fit_image(picture, SHAPE).shape == (8, 8, 3)


def test_a_picture_that_was_turned_upright_is_not_turned_again() -> None:
    picture = image_from_bytes(FILES["JPEG"], "a")
    assert not picture.getexif() and not set(picture.info) & {"exif", "xmp"}


def test_a_tiff_whose_tags_have_another_type_is_broken() -> None:
    data = FILES["TIFF"]
    kinds = [kind for kind in (3, 4) if struct.pack("<HH", 273, kind) in data]
    with pytest.raises(BrokenImageError, match="cannot be read as an image"):
        image_from_bytes(data.replace(struct.pack("<HH", 273, kinds[0]), struct.pack("<HH", 273, 7)), "a")


@pytest.mark.parametrize("form", list(FILES))
@settings(max_examples=60, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=5),
    kept=st.one_of(st.none(), st.integers(0, 800)),
)
def test_flipped_bytes_and_cut_files_are_broken_or_pictures(
    form: str, flips: list[tuple[int, int]], kept: int | None
) -> None:
    data = bytearray(FILES[form])
    for place, value in flips:
        data[place % len(data)] = value
    try:
        picture = image_from_bytes(bytes(data[:kept]), "a")
    except BrokenImageError as error:
        assert "0x" not in str(error) and "BytesIO" not in str(error)
        return
    assert fit_image(picture, SHAPE).shape == (8, 8, 3)
    assert grey_mask(picture).shape == (picture.height, picture.width)


@pytest.mark.parametrize("data", [b"", b"no picture", bytes(100)])
def test_the_reason_of_what_is_no_picture_holds_no_address_and_no_folder(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    reasons = set()
    for _ in range(2):
        for read in (lambda: image_from_bytes(data, "a.png"), lambda: open_image(tmp_path / "a.png")):
            with pytest.raises(BrokenImageError) as raised:
                read()
            reasons.add(str(raised.value))
    assert reasons == {"cannot be read as an image (of no format that is known)"}


def test_the_limit_of_pixels_is_our_own_and_warns_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    monkeypatch.setattr(flows.datasets.pictures, "MAX_PIXELS", 600)
    assert image_from_bytes(FILES["PNG"], "a").size == (20, 30)
    monkeypatch.setattr(flows.datasets.pictures, "MAX_PIXELS", 599)
    with pytest.raises(BrokenImageError, match="30 x 20 pixels, more than 599"):
        image_from_bytes(FILES["PNG"], "a")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(BrokenImageError, match="more than 599 pixels"):
        image_from_bytes(FILES["PNG"], "a")


@pytest.mark.parametrize(("kind", "white"), [(np.uint16, 65535), (np.int32, 255), (np.float32, 255), (np.float32, 1)])
def test_masks_of_any_depth_are_inside_where_they_are_white(kind: type, white: int) -> None:
    drawn = pixels(2)[..., 0] < 128
    mask = Image.fromarray((drawn * white).astype(kind))
    assert np.array_equal(grey_mask(mask), drawn)
    assert np.array_equal(grey_mask(mask_picture(mask)), drawn)


@pytest.mark.parametrize("brightest", [1, 127])
def test_a_mask_without_white_is_told_by_its_brightest_pixel(brightest: int) -> None:
    drawn = np.zeros((4, 4), dtype=np.uint8)
    assert not grey_mask(mask_picture(Image.fromarray(drawn))).any()
    drawn[0] = brightest
    with pytest.raises(BrokenImageError, match=f"brightest pixel is {brightest}; white .128 and more. is inside"):
        mask_picture(Image.fromarray(drawn))
    drawn[1] = 128
    assert grey_mask(mask_picture(Image.fromarray(drawn))).sum() == 4


def test_label_maps_are_whole_numbers() -> None:
    values = np.arange(12, dtype=np.int32).reshape(3, 4) * 1000
    for kind in (np.uint16, np.int32):
        assert np.array_equal(label_values(Image.fromarray(values.astype(kind))), values)
    with pytest.raises(BrokenImageError, match="a label map of mode F, not of whole numbers"):
        label_values(Image.fromarray(values.astype(np.float32)))
