"""What of a catalog's story may travel: everything but secrets, and where things lay on the machine that mined it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from catalog.card import CardFields
from catalog.manifest import FailedImage, Provenance
from catalog.secrecy import without_secrets

_NAMELESS = "local"
_CITATIONS = ("citation", "citations")
_ACCENT = re.compile(r"\\|[^:]*\\")
_HOMES = frozenset({"home", "Users", "users"})
_ROOTED = re.compile(r"(?:file:|~|/|\\|[A-Za-z]:[\\/]|\.\.?(?:[\\/]|$)).*")
_UPWARDS = re.compile(r"\S*[\\/]\.\.(?:[\\/]\S*)?")
_PROSE = re.compile(r"['\"`\n]|[:;,] ")
_QUOTED = re.compile(r"(['\"`])((?:file:|~[^'\"`/\\]*[\\/]|/|\\\\|[A-Za-z]:[\\/])[^'\"`]*)\1")
_PART = r"[^\s'\"`<>|;,()\[\]\\/]+"
_BARE = re.compile(
    r"(?:(?<=\\[nrt])|(?<![\w.~/\\>*)\]}]))"  # not within a relative path, a URL or a pattern
    rf"(?:(?:file:/*|~\w*[\\/]|[A-Za-z]:[\\/]|\\\\)(?!/){_PART}|(?!//)[\\/]{_PART}[\\/]{_PART})(?:[\\/]{_PART})*[\\/]?"
)
_ACCESS = re.compile(r"(?<=://)[^/\s@]+@|(?<=\w)\?[^\s)]*=[^\s)]*")


def portable(provenance: Provenance) -> Provenance:
    """The same without secrets and local paths: of each path its last component stays. What a catalog is known by are
    fingerprints.
    """
    parts = {name: _plain(getattr(provenance, name)) for name in ("recipe", "model", "data")}
    return provenance.model_copy(update=parts)


def portable_failures(failed: Mapping[str, FailedImage]) -> dict[str, FailedImage]:
    """The same with reasons that name no absolute path. Sources are names that their data set gives."""
    return {key: entry.model_copy(update={"reason": portable_text(entry.reason)}) for key, entry in failed.items()}


def portable_fields(card: CardFields) -> CardFields:
    """The same in texts that may travel."""
    texts: dict[str, Any] = {}
    for name in (field.name for field in fields(card)):
        value = getattr(card, name)
        texts[name] = type(value)(_plain(value, name))
    return replace(card, **texts)


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, str):
        return _portable_citation(value) if key in _CITATIONS else portable_text(value)
    if isinstance(value, Mapping):
        return {name: _plain(item, name) for name, item in value.items()}
    return [_plain(item, key) for item in value] if isinstance(value, list | tuple) else value


def _portable_citation(text: str) -> str:
    """BibTeX, whose backslashes lead to accents and not to files."""
    safe = without_secrets(_ACCESS.sub("", text))
    return _BARE.sub(lambda found: found[0] if _ACCENT.match(found[0]) else _last(found[0]), safe)


def portable_text(text: str) -> str:
    """A local path as its last component; other text with the absolute paths in it as theirs, and URLs as anybody may
    see them; neither with secrets. What is relative and leads nowhere else stays as it is, as names on the Hub do.
    """
    text = _ACCESS.sub("", without_secrets(_ACCESS.sub("", text)))
    if not _PROSE.search(text) and (_ROOTED.fullmatch(text) or _UPWARDS.fullmatch(text)):
        return _last(text)
    text = _QUOTED.sub(lambda found: f"{found[1]}{_last(found[2])}{found[1]}", text)
    return _BARE.sub(lambda found: _last(found[0]), text)


def _last(path: str) -> str:
    """The last component of a path; `local` where that would be somebody's name, or where there is none."""
    parts = [part for part in re.split(r"[\\/]+", path) if part not in ("", ".", "..", "file:")]
    bare = not parts or parts[-1].startswith("~") or re.fullmatch(r"[A-Za-z]:", parts[-1]) is not None
    return _NAMELESS if bare or (len(parts) > 1 and parts[-2] in _HOMES) else parts[-1]
