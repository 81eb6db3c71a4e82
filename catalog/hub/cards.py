"""The title and tags that a card of a pack begins with, as read by a search; nothing of it is trusted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

_FRONT_BYTES = 2**18
_DEEPEST = 16
_TEXT = 200
_TAGS = 100
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast


def front_matter(card: bytes) -> tuple[str, tuple[str, ...]]:
    """(title, tags) of the YAML that a card begins with; "" and none where there are none, or it is no such YAML."""
    head, mark, rest = card[:_FRONT_BYTES].decode(errors="replace").partition("---\n")
    text, end, _ = rest.partition("\n---")
    if head.strip("\ufeff") or not mark or not end:
        return "", ()
    try:
        fields = _fields(yaml.parse(text, Loader=_LOADER))
    except (yaml.YAMLError, ValueError):
        return "", ()
    return plain_fields((fields.get("pretty_name") or [""])[0], fields.get("tags"))


def _fields(events: Iterable[Any]) -> dict[str, list[str]]:
    """The strings, or lists of strings, of a mapping, by key; all else in it is passed over.

    From events, since what is nested deeply makes the loader in C overflow its stack. Raises ValueError.
    """
    fields: dict[str, list[str]] = {}
    key: str | None = None
    depth, listed = 0, False
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            if depth == _DEEPEST or (depth == 0 and not isinstance(event, yaml.MappingStartEvent)):
                raise ValueError("no plain mapping")
            if depth == 1:
                listed = isinstance(event, yaml.SequenceStartEvent)
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and depth == 1 and key is None:
            key = event.value
            continue
        elif isinstance(event, yaml.ScalarEvent) and key is not None and (depth == 1 or (depth == 2 and listed)):
            fields.setdefault(key, []).append(event.value)
        if depth == 1:
            key = None
    return fields


def plain_fields(title: object, tags: object) -> tuple[str, tuple[str, ...]]:
    """A title and tags fit to be shown: strings of printable characters, of a length that people read."""
    listed = tags if isinstance(tags, list | tuple) else []
    shown = (plain(tag) for tag in listed[:_TAGS] if isinstance(tag, str))
    return plain(title) if isinstance(title, str) else "", tuple(tag for tag in shown if tag)


def plain(text: str) -> str:
    """Text on one line, without characters that a terminal would obey."""
    return "".join(c for c in " ".join(text[: 4 * _TEXT].split()) if c.isprintable())[:_TEXT]
