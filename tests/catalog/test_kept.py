"""What a writer knows of a catalog's masks takes little memory, and says what a dictionary would."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import catalog.kept
from catalog.kept import KnownMasks
from catalog.records import content_id

ZEROS = ("0" * 32, "ab" + "0" * 30, "f" * 32)  # of which numpy takes the zeros at the end for padding
PAIRS = st.tuples(st.sampled_from([*ZEROS, content_id("image", 1)]), st.sampled_from(["mouth", "left eye", ""]))
MASKS = st.dictionaries(PAIRS, st.sampled_from([*ZEROS, content_id("mask", 1)]), max_size=9)


@pytest.fixture(autouse=True)
def soon_joined(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(catalog.kept, "_AWAITING", 5)
    return None


@given(batches=st.lists(MASKS, max_size=6))
def test_they_say_what_a_dictionary_would_whatever_is_added_when(batches: list[dict[tuple[str, str], str]]) -> None:
    known, truth = KnownMasks(), dict[tuple[str, str], str]()
    for masks in batches:
        known.add(masks)
        truth |= masks
        assert known == truth and len(known) == len(truth)
    for image in (*ZEROS, content_id("image", 2), "no id", "0" * 31, "F" * 32):
        for region in ("mouth", "hair", ""):
            assert known.get((image, region)) == truth.get((image, region))


def test_a_table_of_regions_is_taken_in_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.kept, "_SLICE", 3)
    names = [("image_id", "image"), ("region", "mouth"), ("region_id", "mask")]
    rows = {name: [content_id(kind, i) if kind != "mouth" else kind for i in range(10)] for name, kind in names}
    expected = {(image, "mouth"): mask for image, mask in zip(rows["image_id"], rows["region_id"], strict=True)}
    assert KnownMasks.of(pa.table(rows)) == expected


def test_a_mask_takes_thirty_six_bytes_once_it_has_joined_the_others() -> None:
    known = KnownMasks()
    known.add({(content_id(i), "mouth"): content_id("mask", i) for i in range(2_000)})
    arrays = [value for value in vars(known).values() if hasattr(value, "nbytes")]
    assert sum(array.nbytes for array in arrays) == 36 * 2_000
    assert sum(sys.getsizeof(value) for value in vars(known).values() if isinstance(value, dict)) < 1_000
