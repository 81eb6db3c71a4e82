"""Licences as people write them: what the Hub calls them, and which of them forbid commercial use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from catalog.manifest import Provenance

NOT_STATED = "not stated"
_CREATIVE = ("by-2.0", "by-2.5", "by-3.0", "by-4.0", "by-sa-3.0", "by-sa-4.0", "by-nc-2.0", "by-nc-3.0", "by-nc-4.0",
             "by-nd-4.0", "by-nc-nd-3.0", "by-nc-nd-4.0", "by-nc-sa-2.0", "by-nc-sa-3.0", "by-nc-sa-4.0")  # fmt: skip
KNOWN: frozenset[str] = frozenset(
    [
        *(f"cc-{name}" for name in _CREATIVE), "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0",
        "bigcode-openrail-m", "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause",
        "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc", "cc0-1.0", "cdla-permissive-1.0",
        "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m", "deepfloyd-if-license", "ecl-2.0",
        "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl",
        "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by",
        "ofl-1.1", "openrail", "openrail++", "osl-3.0", "pddl", "postgresql", "unlicense", "wtfpl", "zlib",
    ]
)  # fmt: skip
"""Names that the Hub knows."""
_NON_COMMERCIAL = re.compile(r"\bnc\b|non[- ]?commercial|(?:academic|research) (?:use|purposes) only", re.IGNORECASE)
_LINK = re.compile(r"https://[^\s()<>\"']+")
_LONGEST = 60


def hub_licence(text: str) -> dict[str, str]:
    """What the YAML of a card says of a licence: its name on the Hub, or `other` with a name made of the words.

    `CC BY-NC 4.0 (NAVER Corporation)` is cc-by-nc-4.0; a licence that is one of several in a text is not looked for.
    """
    found = text.strip().lower()
    if found in KNOWN:
        return {"license": found}
    words = re.sub(r"[^a-z0-9.+]+", "-", re.split(r"[(;:,]", found)[0]).strip("-.")
    if words in KNOWN:
        return {"license": words}
    fields = {"license": "other", "license_name": words[:_LONGEST].strip("-.") or "other"}
    link = _LINK.search(text)
    return fields if link is None else {**fields, "license_link": link[0].rstrip(".,;")}


def non_commercial(text: str | None) -> bool:
    """Whether a licence allows no commercial use, as far as its name or text says so."""
    return text is not None and _NON_COMMERCIAL.search(text) is not None


def stated(text: object) -> str | None:
    """A licence that somebody stated; None for none, and for the word that says so."""
    known = isinstance(text, str) and text.strip().lower() not in ("", NOT_STATED, "unknown")
    return str(text).strip() if known else None


def sources_of(provenance: Provenance) -> list[Mapping[str, Any]]:
    """What is known of each data set a catalog was mined from."""
    merged = provenance.data.get("sources")
    if not isinstance(merged, Sequence) or isinstance(merged, str) or not merged:
        return [provenance.data]
    return [source for source in merged if isinstance(source, Mapping)] or [provenance.data]


def may_be_passed_on(provenance: Provenance) -> bool:
    """Whether every data set's pictures may be passed on."""
    return all(source.get("redistributable") is not False for source in [provenance.data, *sources_of(provenance)])


def carried_over(provenance: Provenance, model: str | None, data: str | None) -> str | None:
    """The licence that a pack has where its publisher names none: that of its sources; None where they do not tell.

    Where some forbid commercial use, it is theirs. Else model and data must have one licence between them.
    """
    known = [stated(source.get("licence")) for source in sources_of(provenance)]
    if data is not None and known == [None]:
        known = [data]
    bound = sorted({text for text in [*known, model] if text is not None and non_commercial(text)})
    if bound:
        return bound[0] if len(bound) == 1 else f"several licences: {'; '.join(bound)}"
    free = {None if text is None else text.lower() for text in [*known, model]}
    return next(text for text in [*known, model] if text) if len(free) == 1 and None not in free else None
