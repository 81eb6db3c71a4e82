"""The manifest's parser: canonical, strict, and never surprised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from catalog import manifest as manifests
from catalog.canonical import form_of
from catalog.fs import check_relative
from catalog.records import content_id
from catalog.tables import check_id
from pipeline.errors import CatalogError
from tests.catalog.samples import provenance

EMPTY = manifests.fresh(provenance())
DATA = manifests.dump(EMPTY)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def forged(**changes: Any) -> bytes:
    """A manifest with changed keys and a right checksum."""
    import hashlib

    value = json.loads(DATA)
    value.pop("checksum")
    value.update(changes)
    bare = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    value["checksum"] = hashlib.sha256(bare.encode()).hexdigest()
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def test_the_forger_of_these_tests_makes_manifests_that_parse() -> None:
    assert manifests.parse(forged(version=7)).version == 7


@given(st.dictionaries(st.text(), JSON, max_size=4))
@settings(max_examples=40, deadline=None)
def test_any_json_recipe_survives(recipe: dict[str, Any]) -> None:
    try:
        told = provenance().model_copy(update={"recipe": recipe})
        data = manifests.dump(EMPTY.model_copy(update={"provenance": told}))
    except UnicodeEncodeError:  # a lone surrogate is no text that a file can hold
        return
    assert manifests.parse(data).provenance.recipe == recipe
    assert manifests.dump(manifests.parse(data)) == data


@given(st.integers(0, len(DATA) - 1), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_is_refused(place: int, bit: int) -> None:
    changed = bytearray(DATA)
    changed[place] ^= 1 << bit
    with pytest.raises(CatalogError):
        manifests.parse(bytes(changed))


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=60, deadline=None)
def test_anything_else_is_refused_with_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(CatalogError):
        manifests.parse(data)


@given(JSON)
@settings(max_examples=60, deadline=None)
def test_any_value_in_a_wrong_place_is_refused_or_parsed(value: Any) -> None:
    for key in ("files", "chunks", "provenance", "indexes", "vectors", "version", "pictures"):
        try:
            data = forged(**{key: value})
        except UnicodeEncodeError:
            continue
        try:
            assert manifests.dump(manifests.parse(data)) == data
        except CatalogError as error:
            assert "manifest.json" in error.field


BAD_NAMES = [
    "../x", "/etc/passwd", "directions/../x", "directions//x", "directions/.hidden", "a", "pictures/a/b.png", "C:\\x",
    "directions/x\n", "directions/x\x00", "README.md/", "~/x", "index/..", "directions/", "\u202e",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_path_that_leaves_the_folder_is_refused(name: str) -> None:
    with pytest.raises(CatalogError):
        check_relative(name)
    with pytest.raises(CatalogError, match="files"):
        manifests.parse(forged(files={name: {"sha256": "0" * 64, "bytes": 1, "rows": None}}))


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_an_accepted_name_has_one_known_folder_and_no_dots_up(name: str) -> None:
    try:
        check_relative(name)
    except CatalogError:
        return
    assert ".." not in name
    assert not name.startswith(("/", "."))


def test_an_index_lies_in_its_own_folder_lest_it_pass_for_rows() -> None:
    spec = {"kind": "flat", "sketch": {"kind": "identity", "dimension": 4, "seed": 0}, "code_size": 8}
    entry = {"spec": spec, "quantiser": None, "codes": {"directions/a.parquet": "directions/b.parquet"}, "rows": 0}
    with pytest.raises(CatalogError, match=r"indexes\.x\.codes"):
        manifests.parse(forged(indexes={"x": entry}))


def test_an_unknown_version_or_feature_is_refused_by_name() -> None:
    with pytest.raises(CatalogError, match="format_version.*'9'"):
        manifests.parse(forged(format_version="9"))
    with pytest.raises(CatalogError, match="int8-blocks"):
        manifests.parse(forged(required_features=["codec-dct", "int8-blocks"]))
    with pytest.raises(CatalogError, match="colour"):
        manifests.parse(forged(colour="red"))


def test_what_only_a_writer_must_know_is_read_and_not_written_to() -> None:
    strange = manifests.parse(forged(writer_features=["sorted-by-moon"]))
    with pytest.raises(CatalogError, match=r"writer_features.*sorted-by-moon.*newer release to write"):
        manifests.check_writable(strange)


def test_a_codec_that_readers_are_not_warned_of_is_refused() -> None:
    with pytest.raises(CatalogError, match="required_features leaves out codec-dct"):
        manifests.parse(forged(required_features=[]))


def test_absurd_shapes_are_refused() -> None:
    for shape in ([2**30, 2], [0], [-1], [], [1] * 9):
        part = provenance().model_dump()
        part["spaces"] = {"x": shape}
        with pytest.raises(CatalogError):
            manifests.parse(forged(provenance=part))


@given(JSON, JSON)
@settings(max_examples=60, deadline=None)
def test_ids_depend_on_content_alone(one: Any, two: Any) -> None:
    try:
        first, second = content_id(one), content_id(two)
    except UnicodeEncodeError:
        return
    assert check_id(first, "id") == content_id(json.loads(json.dumps(one)))
    if json.dumps(one, sort_keys=True) != json.dumps(two, sort_keys=True):
        assert first != second


@given(st.text())
@settings(max_examples=60, deadline=None)
def test_only_hex_digests_are_ids(text: str) -> None:
    with pytest.raises(CatalogError):
        check_id(text + "!", "id")


def test_features_that_are_no_names_and_old_indexes_that_are_no_paths_are_refused() -> None:
    with pytest.raises(CatalogError, match="required_features"):
        manifests.parse(forged(required_features=[{}]))
    with pytest.raises(CatalogError):
        manifests.parse(forged(format_version="1", indexes={"x": {"faiss": ["a"], "ids": {}}}))


def test_a_manifest_of_a_former_version_has_no_keys_of_a_later_one() -> None:
    with pytest.raises(CatalogError, match=r"manifest\.json: concepts: found a key of a later version"):
        manifests.parse(forged(format_version="1", left_out=["image"]))


def test_parts_that_contradict_each_other_are_named_as_the_manifest() -> None:
    with pytest.raises(CatalogError, match=r"^manifest\.json: found parts that do not fit together"):
        manifests.parse(forged(pictures={"sheet": "pictures/a.png"}, files={}, retired=["pictures/b.png"]))


def test_an_entry_that_was_copied_with_changes_is_written_as_it_is_now() -> None:
    entry = manifests.FileEntry(sha256="0" * 64, bytes=10)
    other = manifests.FileEntry(sha256="0" * 64, bytes=11)
    assert entry.text != entry.model_copy(update={"bytes": 11}).text == other.text
    assert entry.model_copy(update={"bytes": 11}) == other


@given(
    size=st.integers(0, 2**53), rows=st.none() | st.integers(0, 2**53), footer=st.none() | st.just("c" * 64),
    counts=st.dictionaries(st.sampled_from(["directions", "images", "regions"]), st.integers(0, 9)),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_entries_know_the_form_that_their_keys_have(
    size: int, rows: int | None, footer: str | None, counts: dict[str, int]
) -> None:
    file = {"sha256": "b" * 64, "bytes": size, "rows": rows, "footer": footer}
    shards = {table: (f"{table}/a.b-c.parquet",) for table, count in counts.items() if count}
    chunk = {"digest": "d" * 32, "rows": counts, "shards": shards}
    assert manifests.FileEntry.model_validate(file).text == form_of(file)
    assert manifests.ChunkEntry.model_validate(chunk).text == form_of(chunk)


def test_entries_of_which_there_are_thousands_have_no_dictionary_and_share_what_is_equal() -> None:
    file = manifests.FileEntry(sha256="0" * 64, bytes=10)

    def chunk(number: int) -> manifests.ChunkEntry:
        shards = {"images": [f"images/{number}.parquet"]}
        return manifests.ChunkEntry.model_validate({"digest": "0" * 32, "rows": {"images": 4}, "shards": shards})

    one, two, again = chunk(1), chunk(2), chunk(1)
    assert not hasattr(file, "__dict__") and not hasattr(one, "__dict__")
    assert one.rows is two.rows and one.shards["images"][0] is again.shards["images"][0]


@pytest.mark.parametrize("changes", [{"bytes": -1}, {"sha256": "x"}, {"more": 1}])
def test_an_entry_is_not_copied_with_values_that_it_could_not_be_read_with(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        manifests.FileEntry(sha256="0" * 64, bytes=10).model_copy(update=changes)
