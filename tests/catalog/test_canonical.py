"""The canonical form is that of json.dumps, byte for byte, and every changed byte of a sealed file is noticed."""

from __future__ import annotations

import enum
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.canonical import Ready, canonical, check_seal, form_of, read_json, sealed
from pipeline.errors import CatalogError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(), part, max_size=4),
    max_leaves=25,
)


def reference(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


@given(value=st.dictionaries(st.text(), PLAIN), part=st.dictionaries(st.text(), PLAIN))
def test_the_form_is_that_of_json_dumps(value: dict[str, Any], part: dict[str, Any]) -> None:
    assert canonical(value) == reference(value)
    assert canonical({**value, "files": {"a": Formed(part)}}) == reference({**value, "files": {"a": part}})


class Formed(Ready):
    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value

    @property
    def text(self) -> str:
        return form_of(self.value)


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize("value", [{1: "a", 2: {3: True}}, {"a": (1, (), {})}, {"a": Colour.RED}, {"a": True, "b": 1}])
def test_what_json_dumps_converts_is_converted_alike(value: dict[Any, Any]) -> None:
    assert canonical(value) == reference(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical({"a": [{"b": value}]})


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        canonical({"a": object()})


@given(data=st.data())
def test_a_changed_byte_is_noticed(data: st.DataObject) -> None:
    whole = sealed({"version": 1, "name": "catalog", "files": {"a": [1.5, None]}})
    place, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    changed = whole[:place] + bytes([byte]) + whole[place + 1 :]
    if changed == whole:
        check_seal(read_json(whole, "file"), whole, "file")
        return
    with pytest.raises(CatalogError, match="file"):
        value = read_json(changed, "file")
        check_seal(value, changed, "file")
