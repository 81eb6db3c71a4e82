"""What a pack asks to be cited: the model, the data sets, whatever drew the masks, and the papers of its methods."""

from __future__ import annotations

from collections.abc import Sequence

from catalog.card import shown
from catalog.hub.licences import sources_of
from catalog.manifest import Provenance

_MOST, _LONGEST = 200, 4000
_IN_BLOCK = str.maketrans("`<>[]", "'\u2039\u203a()")  # nothing in it ends the block, or is markup where it is undone


def citations_of(provenance: Provenance) -> tuple[str, ...]:
    """The citations that model, data sets and the models of their masks ask for, each once."""
    parts = [provenance.model]
    for source in sources_of(provenance):
        masks = source.get("mask_model")
        parts += [dict(source), dict(masks) if isinstance(masks, dict) else {}]
    found = (part.get("citation") for part in parts)
    return tuple(dict.fromkeys(text.strip() for text in found if isinstance(text, str) and text.strip()))


def cited(citations: Sequence[str]) -> str:
    """Markdown: plain citations as a list, BibTeX entries in a block that can be copied."""
    entries = [entry[:_LONGEST] for entry in citations[:_MOST]]
    lines = [f"- {shown(entry)}" for entry in entries if not entry.startswith("@")]
    blocks = [_block(entry) for entry in entries if entry.startswith("@")]
    parts = ["\n".join(lines)] if lines else []
    if blocks:
        parts.append("```bibtex\n{}\n```".format("\n\n".join(blocks)))
    return "\n\n".join(parts) or "- none given"


def _block(entry: str) -> str:
    safe = "".join(c for c in entry.translate(_IN_BLOCK).expandtabs(2) if c.isprintable() or c == "\n")
    return "\n".join(line.rstrip() for line in safe.split("\n") if line.strip())
