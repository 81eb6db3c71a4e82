"""HTML and SVG built from elements: text is escaped unless it is already `Markup`, so nothing can be forgotten."""

from __future__ import annotations

import html
import re

_VOID = frozenset({"br", "img", "meta", "hr"})
# Characters that HTML forbids even as references, and lone surrogates, which no encoding can carry.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
# Direction overrides would let a data string turn its neighbours around.
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")


class Markup(str):
    """Text that is markup already. Made by `tag` and `join`, or from a literal in this package."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Any value as escaped text, safe between tags and inside double-quoted attributes."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(_BIDI.sub("", _FORBIDDEN.sub("\ufffd", str(value))), quote=True))


def join(*parts: object) -> Markup:
    """Parts one after another, each escaped unless it is markup."""
    return Markup("".join(text(part) for part in parts))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """One element. `class_` becomes class, other underscores hyphens; attributes that are None are left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")
