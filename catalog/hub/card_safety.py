"""What a card from elsewhere must not hold: it is Markdown, and whoever shows it may let HTML through."""

from __future__ import annotations

import html
import re

from pipeline.errors import CatalogError

MOST_BYTES = 2**22
_TAGS = re.compile(
    r"</?(script|i?frame|object|embed|applet|svg|math|style|link|meta|base|form|input|button|template)\b", re.IGNORECASE
)
_OPENS = re.compile(r"<[a-z]", re.IGNORECASE)
_HANDLER = re.compile(r"[\s/\"']on[a-z]+\s*=", re.IGNORECASE)
_LINK = re.compile(r"(?:\]\(|\]:|<|(?:href|src)=)[\"'<]{0,3}(javascript|vbscript|data):", re.IGNORECASE)
_UNSEEN = re.compile(r"[\s\x00-\x1f\x7f\u200b-\u200f\ufeff]+")


def check_card(page: bytes, name: str) -> None:
    """Raise CatalogError naming `name` for a card that could run something where it is shown, or that is no text."""
    if len(page) > MOST_BYTES:
        raise CatalogError(name, f"{len(page)} bytes", f"a card of at most {MOST_BYTES}")
    try:
        text = page.decode()
    except UnicodeDecodeError as error:
        raise CatalogError(name, "bytes that are no UTF-8", "a card in Markdown") from error
    # A link may be written with entities, and with blanks that a browser passes over.
    found = _TAGS.search(text) or _handler_in(text) or _LINK.search(_UNSEEN.sub("", html.unescape(text)))
    if found is not None:
        what = f"HTML that does something ({found[0][:40]!r})"
        raise CatalogError(name, what, "a card of plain Markdown", "Do not use this pack: it was made to deceive")


def _handler_in(text: str) -> re.Match[str] | None:
    """An attribute such as `onclick=` of any tag. Cost: a few steps for each character, whatever the text."""
    for piece in text.split(">"):
        opened = _OPENS.search(piece)
        found = _HANDLER.search(piece, opened.end()) if opened is not None else None
        if found is not None:
            return found
    return None
