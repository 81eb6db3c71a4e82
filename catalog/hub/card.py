"""The card of a published pack: YAML by which it is found and loaded in parts, and a page that people read.

It says the same of the same pack, and does not grow with the number of its shards. What comes from data or recipes is
escaped, in the page and in the YAML.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import yaml

from catalog.card import CardFields, shown, size_category
from catalog.hub.changes import changes
from catalog.hub.citations import cited
from catalog.hub.figures import Figures, Group, Key
from catalog.hub.licences import NOT_STATED, may_be_passed_on, non_commercial, pack_licence, sources_of, stated
from catalog.hub.parts import part_name
from catalog.hub.usage import Use, usage
from catalog.manifest import Manifest
from catalog.schema import TABLES

FIGURES = "rhumb_figures"
"""Key of the YAML under which a card keeps the figures that the next version is compared with."""
_DIGEST = "?" * 16  # of a shard's name: no part's name that begins with another's ends so
_LISTED = 200  # lines of a table
_TAG, _TAGS = 60, 100
_OWN_TAGS = 30  # of those that a publisher gives, and of names of sources
_ALL = "all"
_MARKUP = re.compile(r"[<>`\[\]]")
_HIDDEN = {ord(c): f"\\u{ord(c):04x}" for c in "<>`[]"}  # in strings of YAML, where they mean the same so
_SAFE = re.compile(r"[\w][\w .+-]{0,79}", re.ASCII)
_WITHOUT = {"effect": "pictures of effects"}  # others are called by their plural


MOST_CARD = 2**21
"""Bytes of a card that is read."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast


@dataclass(frozen=True)
class CardContent:
    """All that a card is made of. `former`: the manifest of the version before; `before`: its figures, where known.
    `hub`: where it is published, as in `PackName`.
    """

    manifest: Manifest
    figures: Figures
    fields: CardFields
    former: Manifest | None = None
    before: Mapping[Key, Group] | None = None
    hub: str | None = None


def pack_card(content: CardContent) -> bytes:
    """The page, in UTF-8. The manifest must have `pack` set; its entry of the card itself is not looked at."""
    return f"{_front_matter(content)}\n{_page(content)}".encode()


# -- YAML --------------------------------------------------------------------------------------------------------------


def _front_matter(content: CardContent) -> str:
    manifest, fields = content.manifest, content.fields
    head: dict[str, Any] = dict(pack_licence(fields.licence, bool(bound_sources(content))))
    head["pretty_name"] = _MARKUP.sub("", _title(content))
    head["tags"] = tags(content)
    head["task_categories"] = ["image-to-image", "unconditional-image-generation"]
    head["size_categories"] = [size_category(manifest.rows("directions"))]
    lines = [f"{key}: {_yaml(value)}\n" for key, value in head.items()]
    lines.append(f"{FIGURES}:\n" + "".join(f"- {_yaml(group.plain())}\n" for group in content.figures.groups[:_LISTED]))
    lines.append("configs:\n")
    for name, pattern in configs(content):
        default = "\n  default: true" if name == "directions" else ""
        lines.append(
            f"- config_name: {_yaml(name)}\n  data_files:\n  - split: train\n    path: {_yaml(pattern)}{default}\n"
        )
    return f"---\n{''.join(lines)}---\n"


def figures_in(card: bytes) -> dict[Key, Group] | None:
    """The figures that the card of a pack keeps; None where there are none that can be read."""
    head, mark, rest = card[:MOST_CARD].decode(errors="replace").partition("---\n")
    try:
        content = yaml.load(rest.partition("\n---")[0], Loader=_LOADER) if mark and not head else None  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    listed = content.get(FIGURES) if isinstance(content, dict) else None
    groups = [Group.parse(value) for value in listed] if isinstance(listed, list) else []
    return {group.key: group for group in groups if group is not None} or None


def _yaml(value: Any) -> str:
    """JSON, which is YAML too, without characters that nobody sees, and with those of markup written otherwise."""
    if isinstance(value, str):
        return json.dumps(_flat(value), ensure_ascii=False).translate(_HIDDEN)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(key)}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return json.dumps(value, allow_nan=False)


def _flat(text: str) -> str:
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:300]


def tags(content: CardContent) -> list[str]:
    """Words by which the pack is found: what it is, its data sets, regions and model; of many sets and regions, some of
    each.
    """
    manifest = content.manifest
    reference = str(manifest.provenance.model.get("reference", "")).rpartition("/")[2]
    regions = sorted({group.region for group in content.figures.groups})
    datasets = sorted({group.dataset for group in content.figures.groups})
    named = [str(source.get("name", "")) for source in sources_of(manifest.provenance)]
    given = [*named[:_OWN_TAGS], reference, *content.fields.tags[:_OWN_TAGS]]
    turns = (word for pair in zip_longest(regions, datasets, fillvalue="") for word in pair)
    found = ["rhumb", "editing-directions", "diffusion", *given, *turns]
    words = (re.sub(r"[^\w.+-]+", "-", _flat(word).lower()).strip("-.")[:_TAG] for word in found)
    return list(dict.fromkeys(word for word in words if word))[:_TAGS]


def configs(content: CardContent) -> list[tuple[str, str]]:
    """(name, files) of each part that `load_dataset` can be asked for.

    The tables; `<data set>_<region>` for each such part; and, where there are several data sets, `all_<region>` over
    all of them and `<data set>_all`. Names are of lower-case letters, digits, '-' and one '_'.
    """
    manifest = content.manifest
    found = {table: f"{table}/*.parquet" for table in TABLES if manifest.rows(table)}
    if manifest.concepts is not None and manifest.concepts.rows:
        found["concepts"] = "concepts/*.parquet"
    parts = sorted({part_name(group.dataset, group.region) for group in content.figures.groups})
    for part in parts:
        found[_config(*part.split("."))] = f"directions/{part}-{_DIGEST}.parquet"
    datasets, regions = (sorted({part.split(".")[at] for part in parts}) for at in (0, 1))
    if len(datasets) > 1:
        for region in regions:
            found[f"{_ALL}_{_named(region)}"] = f"directions/*.{region}-{_DIGEST}.parquet"
        for dataset in datasets:
            found[f"{_named(dataset)}_{_ALL}"] = f"directions/{dataset}.*.parquet"
    return list(found.items())


def config_of(dataset: str, region: str) -> str:
    """The configuration of one region of a data set."""
    return _config(*part_name(dataset, region).split("."))


def _config(dataset: str, region: str) -> str:
    return f"{_named(dataset)}_{_named(region)}"


def _named(half: str) -> str:
    """Half of a part's name as configurations have it, where `all` is not the name of one."""
    return half if half != _ALL else f"{_ALL}-{hashlib.sha256(_ALL.encode()).hexdigest()[:6]}"


# -- the page ----------------------------------------------------------------------------------------------------------


def _page(content: CardContent) -> str:
    manifest, fields = content.manifest, content.fields
    summary = shown(fields.summary) or "Editing directions of a diffusion model, per image and region."
    sections = [
        f"# {shown(_title(content))}\n\n{summary}\n\n{_what(content)}",
        f"## Regions\n\n{_regions(content)}",
        f"## Use\n\n{_use(content)}",
        f"## Quality\n\n{_QUALITY}\n\n{quality_table(content.figures.groups)}",
        f"## Since the last version\n\n{_since(content)}",
        f"## Model and data\n\n{_sources(content)}",
        f"## Licence and citations\n\n{_licence(content)}",
        f"## Provenance\n\n{_provenance(manifest)}",
    ]
    return "\n\n".join(sections) + "\n"


_QUALITY = """Medians over the directions of each group. Gain is the length of the change inside the region per unit
step, leakage the length outside; the residual is that of the singular triplet; ROIR (outside over inside, smaller is
more local) is of the decoded edit, where it was measured."""


def _title(content: CardContent) -> str:
    pack = content.manifest.pack
    assert pack is not None  # it is a pack
    return content.fields.title or f"{pack.repository} {pack.version}"


def _what(content: CardContent) -> str:
    manifest = content.manifest
    pack = manifest.pack
    assert pack is not None
    size = sum(entry.bytes for entry in manifest.files.values()) / 1e6
    shapes = ", ".join(f"{space} {tuple(v.shape)} as {v.codec.kind}" for space, v in sorted(manifest.vectors.items()))
    count = manifest.concepts.rows if manifest.concepts is not None else 0
    concepts = f", {count:,} prototypes" if count else ""
    indexes = ", ".join(sorted(manifest.indexes)) or "none"
    text = (
        f"Version {pack.version} of `{pack.repository}`: {manifest.rows('directions'):,} directions{concepts} on "
        f"{manifest.rows('images'):,} images, {size:.1f} MB; vectors {shapes}; search indexes: {indexes}."
    )
    if failed := len(manifest.failures):
        text += f" {failed:,} images could not be mined; `manifest.json` says why."
    if manifest.left_out:
        lacking = ", ".join(_WITHOUT.get(name, f"{name}s") for name in manifest.left_out)
        why = "" if may_be_passed_on(manifest.provenance) else ", since pictures of its source may not be passed on"
        text += f"\n\nIt comes without {lacking}{why}: it holds directions, statistics and the names of sources."
    if content.fields.remarks:
        text += "\n\n" + "\n".join(f"- {shown(remark)}" for remark in content.fields.remarks)
    return text


def _regions(content: CardContent) -> str:
    """Each region of a data set with what it takes to load it, and its picture."""
    of_parts: dict[tuple[str, str], list[Group]] = {}
    for group in content.figures.groups:
        of_parts.setdefault((group.dataset, group.region), []).append(group)
    lines = ["| data set | region | directions | configuration |", "|---|---|---|---|"]
    for (dataset, region), groups in list(of_parts.items())[:_LISTED]:
        count = sum(group.directions for group in groups)
        lines.append(f"| {shown(dataset)} | {shown(region)} | {count:,} | `{config_of(dataset, region)}` |")
    if (more := len(of_parts) - _LISTED) > 0:
        lines.append(f"| and {more} more | | | |")
    pictures = list(_pictures(content, list(of_parts)))
    if pictures:
        told = "Some directions of each region: the picture at minus the strength, unchanged, and at plus the strength."
        lines += ["", told, "", *pictures]
    return "\n".join(lines)


def _pictures(content: CardContent, parts: Sequence[tuple[str, str]]) -> Iterator[str]:
    known = content.manifest.pictures
    for dataset, region in parts:
        path = known.get(part_name(dataset, region))
        if path is not None:
            yield f"**{shown(region)}** ({shown(dataset)})\n\n![{shown(region)}]({path})\n"


def _use(content: CardContent) -> str:
    pack = content.manifest.pack
    assert pack is not None and content.figures.groups  # nothing is published without directions
    first = next((g for g in content.figures.groups if _SAFE.fullmatch(g.region)), None)
    region = first.region if first is not None else "REGION"
    config = config_of(first.dataset, first.region) if first is not None else "directions"
    return usage(Use(pack, content.hub, content.manifest.provenance.model, region, config))


def quality_table(groups: Sequence[Group]) -> str:
    """Markdown table of medians per data set (where there are several), region, space and kind."""
    several = len({group.dataset for group in groups}) > 1
    names = [*(["data set"] if several else []), "region", "space", "kind", "directions", "images", "gain"]
    names += ["leakage / gain", "residual", "converged", "kept share", "ROIR of the edit"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for group in groups[:_LISTED]:
        converged = "-" if group.converged is None else f"{100 * group.converged:.0f} %"
        cells = [shown(group.dataset)] if several else []
        cells += [shown(group.region), group.space, group.kind, str(group.directions), str(group.images)]
        cells += [_figure(group.gain), _figure(group.leakage_ratio), _figure(group.residual), converged]
        cells += [_figure(group.kept_share), _figure(group.roir)]
        lines.append("| " + " | ".join(cells) + " |")
    if len(groups) > _LISTED:
        lines.append(f"\nand {len(groups) - _LISTED} more groups.")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _since(content: CardContent) -> str:
    if content.former is None:
        return "This is the first version."
    told = changes(content.former, content.manifest, content.figures.groups, content.before)
    return "\n".join([*told, *(f"- {shown(line)}" for line in content.fields.changes)])


def _sources(content: CardContent) -> str:
    provenance, fields = content.manifest.provenance, content.fields
    lines = [f"**Model.** {_described(provenance.model)}", "", f"- licence: {shown(fields.model_licence)}", ""]
    for source in sources_of(provenance):
        own = stated(source.get("licence")) or fields.data_licence
        lines += [f"**Data.** {_described(source)}", "", f"- licence: {shown(own)}"]
        if source.get("redistributable") is False:
            lines.append("- its pictures may not be passed on, and are not in this pack")
        lines.append("")
    return "\n".join(lines).rstrip()


def _described(part: Mapping[str, Any]) -> str:
    """The plain entries of a section of the provenance, on one line."""
    plain = {key: value for key, value in sorted(part.items()) if isinstance(value, str | int | float)}
    apart = ("licence", "citation", "redistributable")
    told = (f"{shown(k)}: {shown(v)}" for k, v in plain.items() if k not in apart)
    return "; ".join(told)


def bound_sources(content: CardContent) -> list[str]:
    """The sources that forbid commercial use, each with its licence."""
    provenance, fields = content.manifest.provenance, content.fields
    model = (str(provenance.model.get("reference", "the model")), stated(fields.model_licence))
    data = [
        (str(source.get("name", "the data")), stated(source.get("licence")) or stated(fields.data_licence))
        for source in sources_of(provenance)
    ]
    return [f"{name} ({licence})" for name, licence in (model, *data) if non_commercial(licence)]


def _licence(content: CardContent) -> str:
    fields = content.fields
    text = f"This pack: {shown(fields.licence)}. What model and data are licensed under applies to it too."
    bound = bound_sources(content)
    if bound:
        named = "; ".join(map(shown, bound))
        text += (
            f"\n\n**Not for commercial use** is what comes from: {named}. Directions that were found with it, and "
            "pictures edited along them, are bound by the same terms."
        )
    licences = {"model": fields.model_licence, "data": fields.data_licence}
    unknown = [what for what, licence in licences.items() if licence == NOT_STATED]
    if unknown:
        text += f"\n\nNobody stated the licence of the {' and of the '.join(unknown)}: find out before you use it."
    return f"{text}\n\nPlease cite:\n\n{cited(fields.citations)}"


def _provenance(manifest: Manifest) -> str:
    story = manifest.provenance
    return (
        f"Recipe {shown(story.recipe_fingerprint)}, code {shown(story.code_version)}; the whole recipe, seeds, "
        "versions of packages and a checksum of every file are in `manifest.json`."
    )
