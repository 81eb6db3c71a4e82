"""Licences as people write them: what the Hub calls them, and which of them forbid commercial use."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
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
_RESEARCH = r"(?:academic|education(?:al)?|personal|private|research|scientific|scholarly|teaching)"
_USE = r"(?:use|usage|purposes?|applications?|exploitation)"
_NON_COMMERCIAL = re.compile(
    r"\bnc\b|\bnon ?commercial"
    r"|\b(?:no|not|nor|never|without|prohibit\w*|forbid\w*|exclud\w*)"
    r"(?: (?:allow(?:ed)?|any|available|be|for|free|in|intended|licen[cs]ed|made|of|permit(?:ted)?|to|used?))*"
    r" commercial"
    rf"|\bcommercial(?: {_USE})?(?: (?:is|are))?(?: strictly)? (?:disallowed|excluded|forbidden|not|prohibited)\b"
    rf"|\b{_RESEARCH}(?:(?:,| and| or|/)? ?{_RESEARCH})*(?: {_USE})? only\b"
    rf"|\bonly (?:be used )?(?:for|in)(?: \w+)? {_RESEARCH}\b"
)
_BOUND_NAMES = frozenset({"apple-amlr", "deepfloyd-if-license", "intel-research"})  # that say it in their text alone
_NOTHING = frozenset({
    "", "?", "n.a.", "n/a", "na", "no licence", "no license", "none", "none given", "none stated", "noassertion",
    "not applicable", "not given", "not known", "not specified", NOT_STATED, "null", "tbd", "unknown", "unspecified",
})  # fmt: skip
"""Words of those who were asked for a licence and had none."""
_LABEL = re.compile(r"(?:code|data|images|model|pictures|weights) ?: ?")
_BOUND_MARK = "-with-non-commercial-sources"
_LINK = re.compile(r"https://[^\s()<>\"']+")
_LONGEST = 60


def hub_licence(text: str) -> dict[str, str]:
    """What the YAML of a card says of a licence: its name on the Hub, or `other` with a name made of the words.

    `CC BY-NC 4.0 (NAVER Corporation)` is cc-by-nc-4.0; a licence that is one of several in a text is not looked for.
    """
    normal = _normal(text)
    label = _LABEL.match(normal)
    found = normal[label.end() :] if label is not None else normal
    if found in KNOWN:
        return {"license": found}
    words = re.sub(r"[^a-z0-9.+]+", "-", re.split(r"[(;:,]", found)[0]).strip("-.")
    if words in KNOWN:
        return {"license": words}
    fields = {"license": "other", "license_name": words[:_LONGEST].strip("-.") or "other"}
    link = _LINK.search(text)
    return fields if link is None else {**fields, "license_link": link[0].rstrip(".,;")}


def pack_licence(own: str, bound: bool) -> dict[str, str]:
    """What the YAML of a pack's card says of its licence; with `bound`, some of its sources forbid commercial use.

    A name that does not say so does not stand there alone, where people and filters take it for the whole.
    """
    fields = hub_licence(own)
    if not bound:
        return fields
    name = fields.get("license_name", fields["license"])
    if non_commercial(name):
        return fields
    name = f"{name[: _LONGEST - len(_BOUND_MARK)].strip('-.')}{_BOUND_MARK}"
    return {**fields, "license": "other", "license_name": name}


def non_commercial(text: str | None) -> bool:
    """Whether a licence allows no commercial use, as far as its name or text says so, in the ways people write it."""
    if text is None:
        return False
    normal = _normal(text)
    return normal in _BOUND_NAMES or _NON_COMMERCIAL.search(normal.replace("-", " ")) is not None


def stated(text: object) -> str | None:
    """A licence that somebody stated; None for none, and for the words that say so."""
    if not isinstance(text, str) or _normal(text).replace("-", " ").strip() in _NOTHING:
        return None
    return text.strip()


def _normal(text: str) -> str:
    """Text as it is compared: one sort of dashes and blanks, nothing that is not seen, small letters."""
    plain = (c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    dashed = "".join("-" if c == "_" or unicodedata.category(c) == "Pd" else c for c in plain)
    return " ".join(dashed.lower().split())


def _sections(provenance: Provenance) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """Every section on data, and whether it is of one data set; catalogs that were merged may be so of merged ones."""
    waiting: list[Mapping[str, Any]] = [provenance.data]
    while waiting:
        section = waiting.pop(0)
        merged = section.get("sources")
        inner = merged if isinstance(merged, Sequence) and not isinstance(merged, str) else []
        found = [source for source in inner if isinstance(source, Mapping)]
        yield section, not found
        waiting[:0] = found


def sources_of(provenance: Provenance) -> list[Mapping[str, Any]]:
    """What is known of each data set a catalog was mined from."""
    return [section for section, single in _sections(provenance) if single]


def may_be_passed_on(provenance: Provenance) -> bool:
    """Whether every data set's pictures may be passed on."""
    return all(section.get("redistributable") is not False for section, _ in _sections(provenance))


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
    free = {None if text is None else _normal(text) for text in [*known, model]}
    return next(text for text in [*known, model] if text) if len(free) == 1 and None not in free else None
