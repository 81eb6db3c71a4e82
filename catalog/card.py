"""The dataset card: YAML that `datasets` reads, and a page that people read."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from catalog.manifest import Manifest, Provenance
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


def _median(rows: list[dict[str, Any]], value: Any) -> str:
    numbers = [n for n in (value(row) for row in rows) if n is not None and np.isfinite(n)]
    return f"{np.median(numbers):.3g}" if numbers else "-"


def quality_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown table of medians per region, space and kind, from the metadata rows of `directions`."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["region"], row["space"], row["kind"]), []).append(dict(row))
    lines = [
        "| region | space | kind | directions | images | gain | leakage / gain | residual | converged | kept share "
        "| ROIR of the edit |",
        "|" + "---|" * 11,
    ]
    for (region, space, kind), group in sorted(groups.items()):
        known = [row["converged"] for row in group if row["converged"] is not None]
        cells = [
            escape(region), space, kind, str(len(group)), str(len({row["image_id"] for row in group})),
            _median(group, lambda r: r["gain"]),
            _median(group, lambda r: r["leakage"] / r["gain"] if r["gain"] > 0 else None),
            _median(group, lambda r: r["residual"]),
            f"{100 * sum(known) / len(known):.0f} %" if known else "-",
            _median(group, lambda r: r["kept_share"]),
            _median(group, lambda r: r["roir"]),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _front_matter(manifest: Manifest, fields: CardFields, title: str) -> str:
    known = fields.licence != _NOT_STATED
    head: dict[str, Any] = {"pretty_name": title, "license": fields.licence.lower() if known else "other"}
    if not known:
        head["license_name"] = "not-stated"
    head["tags"] = sorted({"rhumb", "editing-directions", "diffusion", *fields.tags})
    head["size_categories"] = [size_category(manifest.rows("directions"))]
    return _yaml(head, [*TABLES, *(["concepts"] if manifest.concepts is not None else [])])


def _describe(part: Mapping[str, Any]) -> str:
    """A line per plain entry of a provenance section."""
    plain = {k: v for k, v in sorted(part.items()) if isinstance(v, str | int | float | bool)}
    return "\n".join(f"- {escape(key)}: {escape(value)}" for key, value in plain.items())


def pack_card(
    manifest: Manifest, rows: list[dict[str, Any]], fields: CardFields, repository: str, version: str
) -> bytes:
    """The card of a published pack. `rows` are the metadata rows of `directions`."""
    provenance = manifest.provenance
    title = fields.title or f"{repository} {version}"
    regions = ", ".join(escape(r) for r in sorted({row["region"] for row in rows}))
    size = sum(entry.bytes for entry in manifest.files.values()) / 1e6
    shapes = ", ".join(f"{s} {tuple(v.shape)} as {v.codec.kind}" for s, v in sorted(manifest.vectors.items()))
    cited = "\n".join(f"- {escape(entry)}" for entry in fields.citations) or "- none given"
    failed = len(manifest.failures)
    remarks = "".join(f"- {escape(remark)}\n" for remark in fields.remarks)
    about = f"## About this version\n{remarks}\n" if remarks else ""
    failures = f" {failed} images could not be mined; `manifest.json` says why." if failed else ""
    text = f"""{_front_matter(manifest, fields, title)}
# {escape(title)}

{escape(fields.summary) or "Editing directions of a diffusion model, per image and region, with their evidence."}

Version {version} of `{repository}`: {manifest.rows("directions")} directions for the regions {regions} on
{manifest.rows("images")} images, {size:.1f} MB; vectors {shapes}.{failures}

## Load it

```python
from datasets import load_dataset
directions = load_dataset("PATH/TO/THIS/FOLDER", "directions", split="train")
row = directions[0]                      # row["preview"] and row["effect"] are pictures
images = load_dataset("PATH/TO/THIS/FOLDER", "images", split="train")

from catalog.reader import Catalog       # of rhumb; how it decodes vectors is in its catalog/format.md

vector = Catalog.open("PATH/TO/THIS/FOLDER").vector(row["direction_id"])
```

## Quality
Medians over the directions of each group. Gain is the length of the change inside the region per unit step, leakage
the length outside; the residual is that of the singular triplet; ROIR (outside over inside, smaller is more local)
is of the decoded edit, where it was measured.

{quality_table(rows)}

{about}## Model
{_describe(provenance.model)}
- licence: {escape(fields.model_licence)}

## Data
{_describe(provenance.data)}
- licence: {escape(fields.data_licence)}

## Licence and citations
This pack: {escape(fields.licence)}. Licences of the model and of the data apply to what is made from them.

{cited}

## Provenance
Recipe `{escape(provenance.recipe_fingerprint)}`, code {escape(provenance.code_version)}; the whole recipe, seeds,
package versions and a checksum of every file are in `manifest.json`.
"""
    return text.encode()
