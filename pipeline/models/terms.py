"""What those who made a model have it licensed under, and ask to be cited: in the record of its conversion or its card.

What a card says is read for people, not obeyed: any card may say anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

CARD = "README.md"
MOST_CARD = 2**20
"""Bytes of a card that are read."""
_LONGEST = 4000  # characters of a licence or a citation
_MOST_LINES = 4096  # characters of the lines of YAML that are parsed
_HEAD = re.compile(r"\ufeff?\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_LICENCE_LINES = re.compile(r"^license(?:_name|_link)?[ \t]*:[^\n]*(?:\n(?:[ \t]+[^\n]*|-[^\n]*))*", re.MULTILINE)
_BIBTEX = re.compile(r"^[ \t]*```[ \t]*\w*[ \t]*\n(\s*@\w+[ \t]*\{[^`]*\})\s*\n[ \t]*```", re.MULTILINE)
_UNNAMED = frozenset({"", "other", "unknown", "none"})


@dataclass(frozen=True)
class Terms:
    """Licence, a name or words, and citation, BibTeX or words; None where nothing is said."""

    licence: str | None = None
    citation: str | None = None

    def or_else(self, other: Terms) -> Terms:
        """These, and those of `other` where these say nothing."""
        return Terms(self.licence or other.licence, self.citation or other.citation)


NOTHING_SAID = Terms()


def recorded_terms(record: Mapping[str, Any]) -> Terms:
    """The entries `licence` and `citation` of a record of conversion."""
    return Terms(_told(record.get("licence")), _told(record.get("citation"), lines=True))


def card_terms(card: bytes) -> Terms:
    """The licence that the YAML of a Hub card names, with its own name and link where it is none that the Hub knows,
    and the first entries of BibTeX that stand in a block of their own on the page.
    """
    text = card[:MOST_CARD].decode(errors="replace").replace("\r\n", "\n")
    head = _HEAD.match(text)
    entries = _BIBTEX.search(text, head.end() if head is not None else 0)
    licence = _licence(head[1]) if head is not None else None
    return Terms(licence, _told(entries[1], lines=True) if entries is not None else None)


def _licence(head: str) -> str | None:
    """Only lines on the licence are parsed, whatever else a card has: results of evaluations make some heads long."""
    lines = "\n".join(found[0] for found in _LICENCE_LINES.finditer(head))
    try:
        fields = yaml.safe_load(lines[:_MOST_LINES])
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    named = fields.get("license")
    names = [name for item in (named if isinstance(named, list) else [named]) if (name := _told(item)) is not None]
    own = _told(fields.get("license_name"))
    known = [name for name in names if name.lower() not in _UNNAMED] or ([own] if own is not None else [])
    link = _told(fields.get("license_link"))
    if not known and link is None:
        return None
    licence = ", ".join(known) or "a licence of its own"
    return f"{licence} ({link})" if link is not None and link.startswith("https://") else licence


def _told(value: object, *, lines: bool = False) -> str | None:
    """Text that can be stored and shown, on one line or, with `lines`, on its own; None for none."""
    if not isinstance(value, str):
        return None
    text = value if lines else " ".join(value.split())
    clean = "".join(c for c in text.expandtabs(2) if c.isprintable() or c == "\n").strip()
    return clean[:_LONGEST] or None
