"""JSON in one form only, with a checksum of itself: every changed byte of a manifest or a receipt is noticed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from json.encoder import encode_basestring
from typing import Any

from pipeline.errors import CatalogError

CHECKSUM = "checksum"
_CONSTANTS = {None: "null", True: "true", False: "false"}


class Ready:
    """A part that is in its form already, for the value of a key of a key of the whole."""

    def __init__(self, value: Mapping[str, Any]) -> None:
        self.text = _text(value, "\n  ")


def canonical(value: Mapping[str, Any]) -> bytes:
    """`json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)` and a newline; finite numbers only.

    Written out here, because of a manifest of thousands of files nearly all is `Ready` from the commit before.
    """
    try:
        text = _text(value, "\n")
    except TypeError:  # keys that are no strings, which json.dumps makes some, or refuses
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


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
    bare = canonical(value)
    return _with_checksum(bare, hashlib.sha256(bare).hexdigest())


def _with_checksum(bare: bytes, checksum: str) -> bytes:
    """A canonical object with its checksum, which is the first key of all, without serialising it again."""
    return b'{\n "checksum": ' + json.dumps(checksum).encode() + b"," + bare[1:]


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
    if _with_checksum(bare, str(checksum)) != data:
        raise CatalogError(name, "a form other than the canonical one", "the bytes as committed")
