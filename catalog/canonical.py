"""JSON in one form only, with a checksum of itself: every changed byte of a manifest or a receipt is noticed."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from json.encoder import encode_basestring
from typing import Any

from pipeline.errors import CatalogError

CHECKSUM = "checksum"
_PLACE = "\n  "  # what lines begin with there
_CONSTANTS = {None: "null", True: "true", False: "false"}


class Ready(ABC):
    """What knows its form, for the value of a key of a key of the whole."""

    __slots__ = ()

    @property
    @abstractmethod
    def text(self) -> str:
        """Its form there."""


def form_of(value: Mapping[str, Any]) -> str:
    """The form of a value of a key of a key of the whole."""
    return _text(value, _PLACE)


def canonical(value: Mapping[str, Any]) -> bytes:
    """`json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)` and a newline; finite numbers only.

    Written out here, because nearly all of a manifest are thousands of entries that know their form.
    """
    return b"".join(_encoded(value))


def _encoded(value: Mapping[str, Any]) -> list[bytes]:
    """The canonical form in pieces, the first of which is the bracket: joined once, it never lies in memory thrice."""
    try:
        return [piece.encode() for piece in (*_pieces(value, "\n", 2), "\n")]
    except TypeError:  # keys that are no strings, which json.dumps makes some, or refuses
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return [text[:1].encode(), text[1:].encode(), b"\n"]


def _pieces(value: Any, margin: str, depth: int) -> Iterator[str]:
    """`_text` in pieces, which are entries of objects `depth` levels down."""
    if not value or depth == 0 or not isinstance(value, dict):
        yield _text(value, margin)
        return
    inner, mark = margin + " ", ""
    yield "{"
    for key in sorted(value):
        yield f"{mark}{inner}{encode_basestring(key)}: "
        yield from _pieces(value[key], inner, depth - 1)
        mark = ","
    yield margin + "}"


def _text(value: Any, margin: str) -> str:
    """A value whose lines begin with `margin`: a newline and the indentation."""
    if isinstance(value, Ready):
        return value.text
    if isinstance(value, str):
        return encode_basestring(value)
    if value is None or value is True or value is False:
        return _CONSTANTS[value]
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float) and math.isfinite(value):
        return float.__repr__(value)
    inner = margin + " "
    if isinstance(value, dict):
        parts = [f"{encode_basestring(key)}: {_text(value[key], inner)}" for key in sorted(value)]
        return f"{{{inner}{f',{inner}'.join(parts)}{margin}}}" if parts else "{}"
    if isinstance(value, list | tuple):
        parts = [_text(part, inner) for part in value]
        return f"[{inner}{f',{inner}'.join(parts)}{margin}]" if parts else "[]"
    return json.dumps(value, allow_nan=False)  # raises, as it would have


def sealed(value: Mapping[str, Any]) -> bytes:
    """The canonical form of an object without the key `checksum`, with that key, the sha256 of what it is without."""
    bare, digest = _encoded(value), hashlib.sha256()
    for piece in bare:
        digest.update(piece)
    bare[0] = _head(digest.hexdigest())
    return b"".join(bare)


def _head(checksum: str) -> bytes:
    """What a canonical object begins with where it has a checksum, which is the first key of all."""
    return b'{\n "checksum": ' + json.dumps(checksum).encode() + b","


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def read_json(data: bytes, name: str) -> Any:
    """What `data` says; only finite numbers. Raises CatalogError naming `name`."""
    try:
        return json.loads(data.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CatalogError(name, f"no readable JSON ({str(error)[:120]})", "a catalog manifest") from error


def check_seal(value: dict[str, Any], data: bytes, name: str) -> None:
    """Take the checksum out of `value`, which was read from `data`. Raises CatalogError unless it is `data`'s own."""
    checksum = value.pop(CHECKSUM, None)
    try:
        bare = canonical(value)
    except (ValueError, RecursionError) as error:
        raise CatalogError(name, f"no canonical JSON ({str(error)[:120]})", "the form of format.md") from error
    if checksum != hashlib.sha256(bare).hexdigest():
        raise CatalogError(f"{name}: checksum", "a file changed after it was written", "the bytes as committed")
    if _head(str(checksum)) + bare[1:] != data:
        raise CatalogError(name, "a form other than the canonical one", "the bytes as committed")
