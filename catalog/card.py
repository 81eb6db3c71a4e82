"""The dataset card: YAML that `datasets` reads, and a page that people read."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catalog.manifest import Provenance
from catalog.schema import TABLES

_NOT_STATED = "not stated"
_MARKS = frozenset("\\`*_[]|#!~$")
_LOOKALIKES = str.maketrans("[]<>", "()\u2039\u203a")


@dataclass(frozen=True)
class CardFields:
    """What only the publisher knows. Licences are SPDX-like names or plain words; `citations` are whole entries.

    `remarks`: sentences about this version: what was left out of it, and what it was published in spite of. `changes`:
    sentences on what it changes, besides what manifests and figures tell.
    """

    title: str = ""
    summary: str = ""
    licence: str = _NOT_STATED
    model_licence: str = _NOT_STATED
    data_licence: str = _NOT_STATED
    citations: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


def _yaml(fields: Mapping[str, Any], tables: Sequence[str] = TABLES) -> str:
    """YAML front matter; JSON values are valid YAML, and quoting them keeps every name a string."""
    configs = "\n".join(
        f"- config_name: {table}\n  data_files:\n  - split: train\n    path: {table}/*.parquet"
        + ("\n  default: true" if table == "directions" else "")
        for table in tables
    )
    head = "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items())
    return f"---\n{head}configs:\n{configs}\n---\n"


def escape(text: object) -> str:
    """Text from data or recipes made safe for Markdown and HTML, on one line, every character of it to be seen."""
    flat = "".join(c for c in " ".join(str(text).split()) if c.isprintable())
    return "".join(f"&#{ord(c)};" if c in _MARKS else html.escape(c, quote=False) for c in flat)


def shown(text: object) -> str:
    """`escape` for cards that travel: without brackets and angles, so safe even where entities are undone again."""
    return escape(str(text).translate(_LOOKALIKES))


def size_category(rows: int) -> str:
    """What the Hub calls a number of rows."""
    for top, label in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if rows < top:
            return label
    return "n>1M"


def catalog_card(provenance: Provenance) -> bytes:
    """The card of a working catalog. It holds no counts, so it never changes while the catalog grows.

    It names the concepts from the beginning: `datasets` looks for a table's files when that table is asked for.
    """
    text = f"""{_yaml({"tags": ["rhumb", "editing-directions"]}, [*TABLES, "concepts"])}
# Catalog of editing directions

Directions in the latent and bottleneck spaces of a diffusion model, found per image and region.
Model `{escape(provenance.model["fingerprint"])}`, data `{escape(provenance.data["fingerprint"])}`, recipe
`{escape(provenance.recipe_fingerprint)}`. `manifest.json` lists what has been committed so far.

```python
from datasets import load_dataset
directions = load_dataset("PATH/TO/THIS/FOLDER", "directions", split="train")
```
"""
    return text.encode()
